"""A standby beside a primary, and what tests compare of the two.

Nothing here waits for a time to pass: a standby has a commit when INFO's ``replication.applied``
says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.forking import run_zkv
from tests.support import (
    FREE_PORT,
    Message,
    Raw,
    ServerInProcess,
    ServerProcess,
    eventually,
    free_ports,
    zkv_command,
)
from zkv.broker.upstream import Upstream
from zkv.durability import recovery
from zkv.durability.files import Files
from zkv.durability.frozen_view import FrozenView
from zkv.keyspace import Sessions
from zkv.replication.place import StandbyDirectory
from zkv.server import Following

RAISED_BY = 2**32
"""By so much a promotion raises the revision."""


QUIET = "[log]\nrequests = false\n"
"""A config without a log line for each request."""


class Follower(ServerProcess):
    """A real ``zkv follow``. Use as a context manager.

    Args:
        directory: as of a `ServerProcess`.
        primary: the endpoints of the primary, with commas between.
        *flags: further flags; an ``--endpoint`` replaces the free port.
        data_dir: instead of a directory of its own.
        **keywords: as of a `ServerProcess`.
    """

    def __init__(
        self,
        directory: Path,
        primary: str,
        *flags: str,
        data_dir: Path | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(directory, *flags, **keywords)
        self.data_dir = data_dir or self.data_dir
        arguments = ["follow", primary, "--data-dir", str(self.data_dir), *flags]
        if "--endpoint" not in flags:
            arguments += ["--endpoint", FREE_PORT]
        if keywords.get("config") is not None:
            arguments += ["--config", str(directory / "config.toml")]
        self._command = zkv_command(*arguments)


class State(NamedTuple):
    """What a data directory holds, at a log number."""

    lsn: int
    rev: int
    entries: str
    """A hash over key, value, revision and deadline of each entry."""
    sessions: str
    """A hash over the remembered replies."""
    store: str
    terms: tuple[Any, ...]


def state_of(data_dir: Path, window: int = 128) -> State:
    """What a data directory holds, whether a server uses it or not.

    Args:
        data_dir: the directory.
        window: replies that each session remembers.
    """
    sessions = Sessions(window)
    with FrozenView(Files(), data_dir) as view:
        found = recovery.recover(view, view.layout.snapshots, view.layout.wal, sessions)
    entries = hashlib.sha256()
    for key in sorted(found.entries):
        entry = found.entries[key]
        entries.update(repr((key, bytes(entry.value), entry.rev, entry.expires)).encode())
    remembered = hashlib.sha256()
    for name in sorted(sessions.names()):
        state = sessions.state(name, found.lsn)
        assert state is not None
        # Not when it was used last: a repeat keeps a session alive, and is in no log.
        remembered.update(repr((name, state[2])).encode())
    return State(
        found.lsn, found.rev, entries.hexdigest(), remembered.hexdigest(),
        found.lineage.store, found.lineage.terms,
    )  # fmt: skip


def replication(client: Raw) -> Message:
    """INFO's ``replication``."""
    reply = client.ok(op="INFO")["replication"]
    assert isinstance(reply, dict)
    return reply


def applied(client: Raw) -> int:
    """The newest safe log number of a server."""
    return int(replication(client)["applied"])


def catch_up(standby: Raw, primary: Raw) -> int:
    """Wait until a standby has what its primary has now, in the same history; the log number."""
    figures = replication(primary)
    lsn, term = int(figures["applied"]), figures["term"]

    def has() -> bool:
        reply = standby.call(op="INFO")  # SHUTTING_DOWN where it begins anew.
        if not reply["ok"]:
            return False
        here = reply["replication"]
        return bool(here["applied"] >= lsn and here["term"] == term)

    eventually(has, f"log number {lsn} in term {term}")
    return lsn


def await_log(server: ServerProcess, text: str) -> None:
    """Wait until a server has logged something."""
    eventually(lambda: text in server.log(), text)


def await_new_history(server: ServerProcess) -> None:
    """Wait until a standby has begun anew: what it is asked before that may get no reply."""

    def has_begun() -> bool:
        _, begins, rest = server.log().rpartition("beginning anew")
        return bool(begins) and "recovered revision" in rest

    eventually(has_begun, "a new history")


@contextlib.contextmanager
def standby_in_process(directory: Path, primary: str) -> Iterator[ServerInProcess]:
    """A standby in this process, with a data directory of its own."""
    place = StandbyDirectory(Files(), directory)
    with contextlib.closing(Upstream([primary])) as source:
        with place.lock():
            record = place.prepare([primary])
            place.fetch(source.ask, record, lambda _: None)
        following = Following(source, record.member, [primary])
        with ServerInProcess(directory, following=following) as standby:
            yield standby


def promote(endpoint: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run ``zkv promote``."""
    return run_zkv("promote", "-e", endpoint, *flags)


def clock_ahead(directory: Path, seconds: int) -> dict[str, str]:
    """Variables for a child whose system clock is ahead by so much, or behind.

    Only what Python reads of it is changed, which is all that zkv does with it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "sitecustomize.py").write_text(
        "import time\n"
        "real, real_ns = time.time, time.time_ns\n"
        f"time.time = lambda: real() + {seconds}\n"
        f"time.time_ns = lambda: real_ns() + {seconds} * 1_000_000_000\n",
        encoding="utf-8",
    )
    root = Path(__file__).resolve().parents[2]
    assert sys.flags.isolated == 0
    return {"PYTHONPATH": f"{directory}:{root}"}


def write_some(client: Raw, count: int = 20, size: int = 10) -> None:
    for number in range(count):
        client.ok(op="PUT", key=f"k{number}", value="x" * size)


def compact(server: ServerProcess) -> None:
    """Have the log begin later than it did: two snapshots with more than a segment between.

    The server is started again: it keeps the log after a snapshot that was fetched just now.
    """
    server.kill()
    server.start()
    with Raw(server.endpoint) as client:
        for _ in range(3):
            write_some(client, 12, 1000)
            client.ok(op="SNAPSHOT")


def fixed_ports() -> tuple[str, ...]:
    """Flags for a server that is found again after it was started again."""
    endpoint, feed = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    return ("--endpoint", endpoint, "--feed", feed)
