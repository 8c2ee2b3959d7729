"""An engine without threads or sockets, and what else a test of crashes needs around it.

`Driver` runs request bodies through a `Service`, as workers do, and does by hand, when a test says
so, what the committer's and the persistence thread do: a run is the same each time, call by call.
What it reaches into of the engine's is in `SteppedEngine`, and nowhere else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Final, Self
from unittest import mock

import msgpack

from tests.crash.ledger import Batch, Reply, State
from zkv.broker.mailbox import Pending
from zkv.broker.service import Service
from zkv.commands import Node
from zkv.config import Settings, build
from zkv.durability import wal
from zkv.durability.committer import CommitGroup, settle
from zkv.durability.files import Files
from zkv.engine import Engine
from zkv.errors import ReadOnlyError
from zkv.keyspace import view
from zkv.keyspace.lane import open_lane
from zkv.protocol.codec import KeyLimits

POLICIES: Final = ["always", "interval", "never"]
FIRST_SEED: Final = int(os.environ.get("TORTURE_SEED", "0"))
"""Another one makes the long forms of the tests try other things."""
KEYS: Final = [f"k{number}" for number in range(6)]
DATA: Final = PurePath("server", "data")
"""The data directory, below whatever a test's files are in."""
SMALL_SEGMENTS: Final = 1024
"""The smallest size of a segment that settings allow."""


class Clock:
    """Stands in for the module `time`; stands still until it is told to go on."""

    time = staticmethod(time.time)

    def __init__(self) -> None:
        self._now = 1000.0

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds


class SteppedEngine(Engine):
    """An engine whose threads are never started: a test does their rounds one by one."""

    def __init__(self, settings: Settings, files: Files) -> None:
        self._submitted: list[CommitGroup] = []
        super().__init__(settings.durability, settings.limits, files)

    def submit(self, group: CommitGroup) -> None:
        self._submitted.append(group)

    def commit_round(self) -> None:
        """What the committer does with everything that was submitted."""
        groups, self._submitted = self._submitted, []
        settle(self._wal, groups)

    def sync_round(self) -> None:
        """What the committer does once per interval."""
        with contextlib.suppress(ReadOnlyError):
            self._wal.commit(self._wal.written_lsn, durable=True)

    def persistence_round(self) -> None:
        """What the persistence thread does once the interval has passed, or when it was asked."""
        persistence = self._persistence
        asked = [] if persistence._inbox.empty() else persistence._wait()
        outcome = persistence._save_changes()
        for future in asked:
            assert future is not None
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def save_at_end(self) -> int:
        """`Engine.save`, with the persistence thread's last round done here."""
        self.keyspace.seal()
        self._persistence._inbox.put(None)
        self._persistence._run()
        return self._persistence._final.result(timeout=0)


class Driver:
    """One process's life on a data directory. Use as a context manager.

    Leaving it closes what is open and writes nothing, as a kill does.

    Args:
        data_dir: of the engine.
        files: the door to the file system.
        policy: when the log is synced.

    Raises:
        DataDirError: as `Engine` does.
    """

    def __init__(self, data_dir: Path, files: Files, policy: str = "always") -> None:
        durability = {
            "data_dir": str(data_dir), "fsync": policy, "segment_bytes": SMALL_SEGMENTS,
        }  # fmt: skip
        settings = build({"durability": durability})
        self.clock = Clock()
        with self._by_hand():
            self.engine = SteppedEngine(settings, files)
        limits = settings.limits
        keys = KeyLimits(limits.max_key_bytes, limits.max_value_bytes, limits.max_batch)
        self._node = Node(
            engine=self.engine,
            limits=keys,
            max_reply_bytes=limits.max_reply_bytes,
            facts=lambda: {
                "uptime": 0.0, "endpoints": [], "feed": None, "limits": {}, "durability": {},
                "stats": self.engine.statistics(),
            },
            stop=self._end,
        )  # fmt: skip
        self._lane = open_lane(
            self.engine.keyspace, keys, limits.max_reply_bytes, self.engine.syncs_each
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of every file; nothing is written."""
        self.engine.close()

    def call(self, **request: Any) -> Reply:
        """Run one request."""
        ((reply,),) = self.run([[request]])
        return reply

    def run(self, batches: Sequence[Batch]) -> list[list[Reply]]:
        """Run some batches, each in a worker of its own.

        One waits for the disk itself, and two are committed together by the committer. Of more, the
        first comes to the committer when the others have long been answered.

        May be called by the file layer while it is on its way: that is another worker, then.
        """
        waiting = []
        with self._by_hand():
            for number, batch in enumerate(batches):
                idle = len(batches) == 1 or (len(batches) > 2 and number > 0)
                waiting.append(self._begin(self._new_service(), batch, idle))
                if idle:
                    self.let_time_pass()
            self.engine.commit_round()
            if any(
                len(replies) < len(batch) for replies, batch in zip(waiting, batches, strict=True)
            ):
                self.engine.persistence_round()
        for replies, batch in zip(waiting, batches, strict=True):
            missing = [request for n, request in enumerate(batch) if n not in replies]
            assert not missing, f"these requests got no reply: {missing}"
        return [[replies[n] for n in sorted(replies)] for replies in waiting]

    def let_time_pass(self) -> None:
        """Let so much time pass that a log that refused writes is tried again."""
        self.clock.advance(wal.RETRY_SECONDS)

    def sync_round(self) -> None:
        """An interval has passed for the committer, where it has any."""
        if self.engine.settings.fsync != "interval":
            return
        with self._by_hand():
            self.engine.sync_round()

    def persistence_round(self) -> None:
        """An interval has passed for the persistence thread."""
        with self._by_hand():
            self.engine.persistence_round()

    def state(self, keys: Iterable[str] = KEYS) -> State:
        """What the store holds, as clients see it; nothing but ``keys`` may be there."""
        keys = list(keys)
        info = self.call(op="INFO")
        read = self.call(op="MGET", keys=keys)
        assert info["ok"], info
        assert read["ok"], read
        entries = {
            key: (value, rev)
            for key, value, rev in zip(keys, read["values"], read["revs"], strict=True)
            if rev
        }
        assert info["keys"] == len(entries), (info, entries)
        return State(info["rev"], entries)

    @contextlib.contextmanager
    def _by_hand(self) -> Iterator[None]:
        """Have time stand still, and snapshots taken in the smallest steps."""
        with (
            mock.patch.object(wal, "time", self.clock),
            mock.patch.object(view, "CHUNK_ENTRIES", 2),
        ):
            yield

    def _new_service(self) -> Service:
        return Service(self._node, None, lambda: False, self._lane)

    def _begin(self, service: Service, batch: Batch, idle: bool) -> dict[int, Reply]:
        """Run a batch as a worker does; the replies come into the mapping that is returned."""
        replies: dict[int, Reply] = {}
        bodies, later, _ = service.answer([msgpack.packb(request) for request in batch])
        for number, body in enumerate(bodies):
            if body is not None:
                replies[number] = msgpack.unpackb(body)
        for places, pending in later:

            def deliver(places: list[int] = places, pending: Pending = pending) -> None:
                replies.update(zip(places, map(msgpack.unpackb, pending.bodies()), strict=True))

            pending.notify(deliver)
        service.commit(lambda: idle)
        return replies

    def _end(self) -> Future[int]:
        future: Future[int] = Future()
        try:
            future.set_result(self.engine.save_at_end())
        except ReadOnlyError as error:
            future.set_exception(error)
        return future


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A fresh directory, in memory where there is room for files: thousands of them are made."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        root = Path(name) / "root"
        root.mkdir()
        yield root


class Complaints(logging.Handler):
    """Takes what zkv logs as warnings and worse. Use as a context manager."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []
        self._logger = logging.getLogger("zkv")

    def __enter__(self) -> Self:
        self._logger.addHandler(self)
        self._propagated = self._logger.propagate
        self._logger.propagate = False  # Thousands of lines would hide the ones of a failure.
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.propagate = self._propagated
        self._logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def lines(self, level: int = logging.WARNING) -> list[str]:
        """The messages of at least this level."""
        return [record.getMessage() for record in self.records if record.levelno >= level]

    def check_said_once(self) -> None:
        """Every failure was told once, until it was over."""
        said: set[str] = set()
        for record in self.records:
            message = record.getMessage()
            if record.levelno >= logging.ERROR:
                assert message not in said, f"said twice: {message}"
                said.add(message)
            elif "again" in message:
                said.clear()


@contextlib.contextmanager
def explained(**facts: object) -> Iterator[Complaints]:
    """Have a failure in here say how to repeat it, and what was logged."""
    with Complaints() as complaints:
        try:
            yield complaints
        except Exception as error:
            error.add_note(", ".join(f"{name} = {fact}" for name, fact in facts.items()))
            error.add_note("\n".join(["log:", *complaints.lines()]))
            raise
