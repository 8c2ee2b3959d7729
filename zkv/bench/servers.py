"""Starts what is to be measured, each on a free port with a temporary directory, and ends it.

A child is told of its parent's death, so none is left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from zkv.bench.connections import BenchError
from zkv.bench.generator import LoadTarget

START_LIMIT: Final = 20.0
POLICIES: Final = ("always", "interval", "never")
TRANSPORTS: Final = ("tcp", "ipc", "inproc")

QUIET: Final = '[server]\nfeed = ""\n[log]\nrequests = false\n'
"""How zkv is run here beside its defaults: without a line for each request, as its peers are."""


class Running(Struct):
    """A server that serves; ``pid`` is 0 where it is in this process."""

    name: str
    version: str
    target: LoadTarget
    pid: int = 0

    def cpu(self) -> float:
        """Seconds of CPU that it has used, user and system."""
        return cpu_of(self.pid) if self.pid else time.process_time()


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
        with child(command, directory) as process:
            (endpoint,) = ready(process, directory)
            yield Running(f"zkv {policy}", "", LoadTarget(endpoint=endpoint), process.pid)


def _zkv_inside(policy: str, directory: str) -> Iterator[Running]:
    """A zkv server in this process."""
    from zkv.config import build
    from zkv.server import Event, ServerCore

    endpoint = f"inproc://zkv-bench-{os.getpid()}"
    server = ServerCore(
        build({
            "server": {"endpoints": [endpoint], "feed": ""},
            "durability": {"data_dir": f"{directory}/data", "fsync": policy},
        })
    )  # fmt: skip
    server.start()
    supervisor = threading.Thread(target=server.wait, name="zkv-supervisor")
    supervisor.start()
    try:
        yield Running(f"zkv {policy}", "", LoadTarget(endpoint=endpoint))
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
        with child([*command, endpoint], directory) as process:
            (endpoint,) = ready(process, directory)
            kind = "in C" if compiled else "in Python"
            yield Running("floor", kind, LoadTarget(endpoint=endpoint), process.pid)


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


# --- children --------------------------------------------------------------------------------


@contextlib.contextmanager
def child(
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


def ready(process: subprocess.Popen[bytes], directory: str) -> list[str]:
    """The endpoints on the line READY."""
    words = process.stdout.readline().decode().split() if process.stdout else []
    if words[:1] != ["READY"]:
        raise BenchError(f"the server does not start: {last_line(directory)}")
    return words[1:]


def last_line(directory: str) -> str:
    """The last line that a child has written."""
    lines = (Path(directory) / "output.txt").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
