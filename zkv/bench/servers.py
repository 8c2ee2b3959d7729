"""Starts the servers to measure, each on a free port with a temporary directory, and stops them.

The kernel stops a child when its parent dies, so no server is left running.
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
"""The settings of a zkv server: no feed, and no log line for each request."""


class Running(Struct):
    """A running server. ``pid`` is 0 if it is in this process, or was not started here."""

    name: str
    version: str
    target: LoadTarget
    pid: int = 0

    def cpu(self) -> float:
        """The CPU seconds that it has used, user and system."""
        return cpu_of(self.pid) if self.pid else time.process_time()


def cpu_of(pid: int) -> float:
    """The CPU seconds that a process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- zkv -------------------------------------------------------------------------------------


@contextlib.contextmanager
def zkv(policy: str, transport: str = "tcp") -> Iterator[Running]:
    """Start a zkv server with an fsync policy."""
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
    """Start the floor: ROUTER, libzmq's proxy and DEALER, with a worker that answers a constant."""
    with tempfile.TemporaryDirectory(prefix="zkv-bench-") as directory:
        compiled = _compile_floor(directory)
        command = [compiled] if compiled else [sys.executable, "-m", "zkv.bench.floor"]
        endpoint = "tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{directory}/socket"
        with child([*command, endpoint], directory) as process:
            (endpoint,) = ready(process, directory)
            kind = "in C" if compiled else "in Python"
            yield Running("floor", kind, LoadTarget(endpoint=endpoint), process.pid)


def _compile_floor(directory: str) -> str | None:
    """Compile the floor; returns its path, or None without a compiler or libzmq's headers."""
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
    """A child process that ends with the ``with`` block, or when this process dies.

    Its output goes to a file in ``directory``. If it ``announces`` on standard output that it is
    ready, standard output is a pipe instead.
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
    """In the child: get SIGTERM when the parent dies (Linux only); get no Ctrl-C."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    os.setsid()


def ready(process: subprocess.Popen[bytes], directory: str) -> list[str]:
    """Wait for the READY line; returns its endpoints. Raises BenchError."""
    words = process.stdout.readline().decode().split() if process.stdout else []
    if words[:1] != ["READY"]:
        raise BenchError(f"the server does not start: {last_line(directory)}")
    return words[1:]


def last_line(directory: str) -> str:
    """The last line of a child's output."""
    lines = (Path(directory) / "output.txt").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"


def free_port() -> int:
    """A port that is not in use."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
