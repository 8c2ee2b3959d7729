"""An engine without threads or sockets, and what else a test of crashes needs around it.

`Driver` runs request bodies through the front and a worker, and does by hand, when a test says so,
what the committer's and the snapshotter do: a run is the same each time, call by call.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Final, Self
from unittest import mock

import msgpack

from tests.durability.crash.ledger import Batch, Reply, Request, State
from tests.requests.roads import Delayed, Roads, SteppedEngine
from zkv.activity import Activities
from zkv.config import build
from zkv.durability import wal
from zkv.durability.files import Files
from zkv.errors import ReadOnly
from zkv.keyspace import view
from zkv.protocol.codec import KeyLimits
from zkv.replication.role import Role
from zkv.requests.commands import Node
from zkv.requests.parking import Parking
from zkv.requests.slow_log import SlowLog

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


Told = Callable[[Batch], None]
"""Hears of requests."""


def _nobody(_requests: Batch) -> None:
    pass


class _Run:
    """A batch on its way, and what has come of it so far."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._replies: dict[int, Reply] = {}
        self.left: list[int] = []

    def take(self, replies: dict[int, bytes]) -> None:
        """Take replies by their places."""
        self._replies.update({place: msgpack.unpackb(body) for place, body in replies.items()})

    def is_over(self) -> bool:
        """Whether all has been answered."""
        return len(self._replies) == len(self._batch)

    def outcome(self) -> list[tuple[Request, Reply]]:
        """Each request and its reply, in the order in which they were run."""
        missing = [each for place, each in enumerate(self._batch) if place not in self._replies]
        assert not missing, f"these requests got no reply: {missing}"
        places = sorted(self._replies, key=lambda place: (place in self.left, place))
        return [(self._batch[place], self._replies[place]) for place in places]


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
            slow=SlowLog(0, Activities()),
            role=Role(),
            promote=lambda _: Future(),
            parking=Parking(self.engine),
            source=None,
            hand_over=None,
            promises=None,
        )  # fmt: skip

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
        (((_, reply),),) = self.run([[request]])
        return reply

    def run(
        self,
        batches: Sequence[Batch],
        begin: Told = _nobody,
        leave: Told = _nobody,
    ) -> list[list[tuple[Request, Reply]]]:
        """Run some batches, each on roads of its own; the requests as they were run, and replies.

        One waits for the disk itself, and two are committed together by the committer. Of more, the
        first comes to the committer when the others have long been answered.

        May be called by the file layer while it is on its way: those are other roads, then.

        Args:
            batches: their requests.
            begin: told each batch before it is run.
            leave: told the requests that the front leaves, before they are run behind the others.
        """
        waiting = []
        with self._by_hand():
            for number, batch in enumerate(batches):
                begin(batch)
                idle = len(batches) == 1 or (len(batches) > 2 and number > 0)
                waiting.append(self._begin(batch, idle, leave))
                if idle:
                    self.let_time_pass()
            self.engine.commit_round()
            if not all(run.is_over() for run in waiting):
                self.engine.snapshotter_round()
        return [run.outcome() for run in waiting]

    def let_time_pass(self) -> None:
        """Let so much time pass that a log that refused writes is tried again."""
        self.clock.advance(wal.RETRY_SECONDS)

    def sync_round(self) -> None:
        """An interval has passed for the committer, where it has any."""
        if self.engine.settings.fsync != "interval":
            return
        with self._by_hand():
            self.engine.sync_round()

    def snapshotter_round(self) -> None:
        """An interval has passed for the snapshotter."""
        with self._by_hand():
            self.engine.snapshotter_round()

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

    def _begin(self, batch: Batch, idle: bool, leave: Told) -> _Run:
        """Run a batch; its last replies come later."""
        run = _Run(batch)
        roads = Roads(self._node)

        def put_off(places: list[int]) -> None:
            run.left = places
            leave([batch[place] for place in places])

        bodies = [msgpack.packb(request) for request in batch]
        self.engine.front_syncs = idle
        for later in roads.answer(bodies, run.take, put_off):

            def deliver(later: Delayed = later) -> None:
                run.take(dict(zip(later.places, later.bodies(), strict=True)))

            later.pending.notify(deliver)
        roads.commit(idle)
        return run

    def _end(self) -> Future[int]:
        future: Future[int] = Future()
        try:
            future.set_result(self.engine.save_at_end())
        except ReadOnly as error:
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
