"""Measures the start of servers with a million keys, and the memory that each key takes.

Each server has a directory of its own, in which it is brought step by step to the states from which
it is started: it makes the steps of a state, and is killed, as a crash would end it. Then the
servers of that state are started in turn. A start takes until a GET is answered with its value.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from benchmarks.load import Load
from benchmarks.record import Record
from benchmarks.servers import POLL, AbsentError, Server, ask_redis, ask_zkv, named, running
from zkv.bench.connections import BenchError
from zkv.bench.servers import cpu_of

KEYS: Final = 1_000_000
COMMITS: Final = 900_000
VALUE_BYTES: Final = 16
FIRST_KEY: Final = "k0000000"
MEMORY_ROW: Final = "keys of 8 bytes, values of 16 bytes"


class State(Struct, frozen=True):
    """A state of directories, and the steps by which each server comes there from the last one.

    ``fill`` stores all keys, ``commits`` writes most of them again, one in each request, and
    ``snapshot`` writes all to a file from which the next start begins.
    """

    name: str
    steps: dict[str, tuple[str, ...]]
    starts: bool = True
    """False if only the memory is measured."""


STATES: Final = (
    State("from the log alone", {"zkv never": ("fill",), "Redis AOF no fsync": ("fill",)}),
    State("from a snapshot", {"zkv never": ("snapshot",), "Redis": ("fill", "snapshot")}),
    State(
        f"from a snapshot, and a log of {COMMITS:,} further PUTs",
        {"zkv never": ("commits",), "Redis AOF no fsync": ("snapshot", "commits")},
    ),
    State("memory", {"Valkey": ("fill",), "memcached": ("fill",)}, starts=False),
)


class Starts:
    """Measures all of them.

    Args:
        record: gets the figures.
        load: the load program.
        keys: the number of keys.
        commits: the number of keys that are written again.
    """

    def __init__(
        self, record: Record, load: Load, keys: int = KEYS, commits: int = COMMITS
    ) -> None:
        self._record = record
        self._load = load
        self._keys = keys
        self._commits = commits

    def measure(self, rounds: int) -> None:
        """Measure each start once in each round, and the memory once."""
        with tempfile.TemporaryDirectory(prefix="zkv-bench-") as root:
            for state in STATES:
                ready = [name for name in state.steps if self._prepare(state, name, root)]
                for number in range(rounds if state.starts else 0):
                    first = number % max(1, len(ready))
                    for name in ready[first:] + ready[:first]:
                        self._start(state, name, root)

    def _prepare(self, state: State, name: str, root: str) -> bool:
        """Bring a server's directory to a state; False if it is not installed."""
        steps = {"fill": self._fill, "commits": self._commit, "snapshot": _snapshot}
        try:
            with _killed(name, root) as server:
                for step in state.steps[name]:
                    steps[step](server)
        except AbsentError:
            return False
        return True

    def _start(self, state: State, name: str, root: str) -> None:
        began = time.monotonic()
        with _killed(name, root) as server:
            _get(server)
            found = {
                "seconds": time.monotonic() - began,
                "cpu_seconds": cpu_of(server.pid),
                "megabytes": _bytes_in(Path(root, name)) / 1e6,
            }
            if (count := _count(server)) != self._keys:
                raise BenchError(f"{name} has {count:,} keys after a start {state.name}")
        self._record.add("start", state.name, name, found)

    # --- Steps ---

    def _fill(self, server: Server) -> None:
        before = _memory_of(server.pid)
        self._load.fill(server, self._keys, VALUE_BYTES)
        each = (_memory_of(server.pid) - before) / self._keys
        name = server.contender.name
        self._record.add("memory", MEMORY_ROW, name, {"bytes_per_key": each})

    def _commit(self, server: Server) -> None:
        self._load.fill(server, self._commits, VALUE_BYTES, batch=1, seed=1)


@contextlib.contextmanager
def _killed(name: str, root: str) -> Iterator[Server]:
    """A server in its own directory, which is killed at the end."""
    directory = Path(root, name)
    directory.mkdir(exist_ok=True)
    with running(named(name), str(directory)) as server:
        yield server
        os.kill(server.pid, signal.SIGKILL)


def _snapshot(server: Server) -> None:
    if server.contender.protocol == "zkv":
        ask_zkv(server.port, op="SNAPSHOT")
    elif server.contender.name == "Redis":
        ask_redis(server.port, "SAVE")
    else:
        ask_redis(server.port, "BGREWRITEAOF")
        while "aof_rewrite_in_progress:1" in ask_redis(server.port, "INFO persistence"):
            time.sleep(POLL)


def _bytes_in(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _memory_of(pid: int) -> int:
    """Resident bytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# --- Questions -------------------------------------------------------------------------------


def _get(server: Server) -> None:
    """Read a key that is stored. Raises BenchError."""
    if server.contender.protocol == "zkv":
        ask_zkv(server.port, op="GET", key=FIRST_KEY)
    elif not ask_redis(server.port, f"GET {FIRST_KEY}").startswith(f"${VALUE_BYTES}"):
        raise BenchError(f"{server.contender.name} has lost {FIRST_KEY}")


def _count(server: Server) -> int:
    if server.contender.protocol == "zkv":
        return int(ask_zkv(server.port, op="COUNT")["count"])
    return int(ask_redis(server.port, "DBSIZE").strip(":"))
