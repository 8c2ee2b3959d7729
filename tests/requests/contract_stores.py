"""Stores that a suite in requests and replies can run on: what stands behind a server's sockets.

`Store` is what such a suite asks for; `STORES` has one line for each kind of store.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final
from unittest import mock

import msgspec
import pytest

from tests.requests.roads import Delayed, Roads, SteppedEngine
from tests.support import LIMIT, Message, unpack
from zkv.activity import Activities
from zkv.config import Settings, build, override
from zkv.durability.files import Files
from zkv.engine import Engine
from zkv.errors import ReadOnly
from zkv.protocol.codec import KeyLimits
from zkv.replication.role import Role
from zkv.requests.commands import Node
from zkv.requests.parking import Parking
from zkv.requests.slow_log import SlowLog
from zkv.users.quota import Quota
from zkv.users.rights import User

RETRIED = {"BUSY", "FULL", "READ_ONLY", "SHUTTING_DOWN"}
"""Codes with ``retry: true``."""
QUICK_DIRECTORY: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where files cost least; None = where temporary files go. No test here is about the disk."""
HOUR: Final = 3_600_000
"""In ms: the default of session_ttl."""
MAX_INT64: Final = 2**63 - 1
MIN_INT64: Final = -(2**63)


# --- Stores to test ---------------------------------------------------------------------------


class FakeClock:
    """Unix time in ms, which passes only when a test says so."""

    def __init__(self) -> None:
        self.time = 1_700_000_000_000

    def __call__(self) -> int:
        return self.time

    def advance(self, ms: int) -> None:
        self.time += ms


class RunningClock(FakeClock):
    """A clock on which 1 ms passes whenever somebody looks, once it is let go."""

    running = False

    def __call__(self) -> int:
        self.time += self.running
        return self.time


class Store(ABC):
    """What an implementation must offer to run the suite."""

    remembers_changes = True
    """Whether it keeps the changes of all that a test does."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock

    @abstractmethod
    def exchange(self, body: bytes) -> bytes:
        """Answer one request."""

    @abstractmethod
    def remove_expired(self) -> None:
        """Do now what is otherwise done in the background: remove what has expired."""

    @abstractmethod
    def serve(self, user: User | None) -> None:
        """Let all requests be those of this user, from now on; None = users are not known."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything."""

    def call(self, op: str, **fields: Any) -> Message:
        """The reply to a request; ``if_`` stands for `if`. Values may be `Raw`."""
        reply = unpack(self.exchange(request(op, **fields)))
        assert isinstance(reply, dict)
        return reply

    def ok(self, op: str, **fields: Any) -> Message:
        """`call` that must succeed."""
        reply = self.call(op, **fields)
        assert reply["ok"] is True, reply
        return reply

    def refused(self, code: str, op: str, **fields: Any) -> Message:
        """`call` that must fail with ``code``, and change nothing."""
        before = self.call("INFO")["rev"]
        reply = self.call(op, **fields)
        assert (reply["ok"], reply["code"]) == (False, code), reply
        assert reply["retry"] is (code in RETRIED)
        assert reply["applied"] is False
        assert isinstance(reply["message"], str)
        assert self.call("INFO")["rev"] == before
        return reply

    def put(self, key: str, value: Any = 0, **fields: Any) -> int:
        """PUT; the new revision."""
        rev: int = self.ok("PUT", key=key, value=value, **fields)["rev"]
        return rev

    def items(self, **fields: Any) -> list[list[Any]]:
        """All entries as SCAN gives them: key, value, revision."""
        items: list[list[Any]] = self.ok("SCAN", limit=10_000, **fields)["items"]
        return items

    @property
    def rev(self) -> int:
        """The store's revision."""
        rev: int = self.ok("INFO")["rev"]
        return rev


def op(name: str, **fields: Any) -> dict[str, Any]:
    """A request as a map; ``if_`` stands for `if`."""
    return {"op": name} | {name.removesuffix("_"): value for name, value in fields.items()}


def request(op: str, **fields: Any) -> bytes:
    """A request as a body; so is ``request(**map)``."""
    plain = {name.removesuffix("_"): value for name, value in fields.items()}
    return msgspec.msgpack.encode({"op": op} | plain)


def settings_for(limits: dict[str, Any], **durability: Any) -> Settings:
    """Settings with these limits."""
    return build({"limits": limits, "durability": durability})


def node_for(engine: Engine, settings: Settings) -> Node:
    """What commands work on, without a server around it."""
    limits = settings.limits

    def facts() -> dict[str, Any]:
        return {
            "uptime": 0.0,
            "endpoints": [],
            "feed": None,
            "limits": msgspec.to_builtins(limits),
            "durability": {},
            "stats": dict(engine.keyspace.statistics()),
        }

    def stop() -> Future[int]:
        raise AssertionError("nobody ends this one")

    keys = KeyLimits(limits.max_key_bytes, limits.max_value_bytes, limits.max_batch)
    return Node(
        engine=engine,
        limits=keys,
        max_reply_bytes=limits.max_reply_bytes,
        facts=facts,
        stop=stop,
        slow=SlowLog(0, Activities()),
        role=Role(),
        promote=lambda _: Future(),
        parking=Parking(engine),
        source=None,
        hand_over=None,
        promises=None,
    )


def quotas_of(user: User | None) -> list[Quota]:
    """What a server counts for this user."""
    return [] if user is None or user.quota is None else [user.quota]


class MemoryStore(Store):
    """The keyspace alone."""

    def __init__(self, clock: FakeClock, **limits: Any) -> None:
        super().__init__(clock)
        settings = settings_for(limits, data_dir=None)
        engine = Engine(settings.durability, settings.limits, now=clock)
        self._keyspace = engine.keyspace
        self.node = node_for(engine, settings)
        self.worker = Worker(self.node)

    def exchange(self, body: bytes) -> bytes:
        (answer,) = self.worker.send(body)
        return answer.body

    def remove_expired(self) -> None:
        while self._keyspace.expire(1) == 0:
            pass

    def serve(self, user: User | None) -> None:
        self._keyspace.set_quotas(quotas_of(user))
        self.worker.serve(user)

    def close(self) -> None:
        pass


class Disk(Files):
    """The real file system, which does as it is told. Syncs are counted, not made: nobody pulls
    the plug, and they would take most of the time.
    """

    def __init__(self) -> None:
        self.full = False
        self.refuses_sync = False
        self.syncs = 0
        self.before: dict[str, Callable[[], None]] = {}
        """What to do, once, before a file with such suffixes is created: ``create .wal.tmp``; or
        gets its name: ``rename .wal.tmp``.
        """

    def create(self, path: Path) -> BinaryIO:
        self.before.pop("create " + "".join(path.suffixes), lambda: None)()
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().create(path)

    def write(self, file: BinaryIO, data: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(file, data)

    def sync(self, file: BinaryIO) -> None:
        if self.refuses_sync:
            raise OSError(errno.EIO, "Input/output error")
        self.syncs += 1

    def rename(self, old: Path, new: Path) -> None:
        self.before.pop("rename " + "".join(old.suffixes), lambda: None)()
        super().rename(old, new)

    def sync_directory(self, path: Path) -> None:
        pass


class StuckDisk(Disk):
    """A disk whose syncs take until it is let go on, once it is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.sticks = False
        self.stuck, self.go_on = threading.Event(), threading.Event()

    def sync(self, file: BinaryIO) -> None:
        super().sync(file)
        if self.sticks:
            self.stuck.set()
            assert self.go_on.wait(LIMIT)


class Waiting:
    """Replies that wait for the disk."""

    def __init__(self, later: Delayed) -> None:
        self.ready = False
        self._later = later
        later.pending.notify(self._become_ready)

    def _become_ready(self) -> None:
        self.ready = True

    @functools.cached_property
    def bodies(self) -> list[bytes]:
        return self._later.bodies()


@dataclass
class Parked:
    """The answer to one request: it has left, or it waits for the disk, with others."""

    reply: bytes | None
    waiting: Waiting | None = None
    place: int = 0

    @property
    def left(self) -> bool:
        return self.waiting is None or self.waiting.ready

    @property
    def body(self) -> bytes:
        """The reply, which must have left."""
        assert self.left, "the reply has not left"
        reply = self.reply if self.waiting is None else self.waiting.bodies[self.place]
        assert reply is not None
        return reply

    def read(self) -> Message:
        """The same, unpacked."""
        reply = unpack(self.body)
        assert isinstance(reply, dict)
        return reply


class Worker:
    """What the front and a worker do with a batch, and a mailbox's part of parking its replies."""

    def __init__(self, node: Node) -> None:
        self._roads = Roads(node)
        self._engine = node.engine
        self.left: list[int] = []
        """The places of the batch sent last that the front left, to be run behind the others."""

    def send(self, *bodies: bytes) -> list[Parked]:
        """Run a batch. What must wait for the disk is parked until `settle`."""
        answers: dict[int, Parked] = {}

        def take(replies: dict[int, bytes]) -> None:
            answers.update({place: Parked(reply) for place, reply in replies.items()})

        for later in self._roads.answer(bodies, take, self._leave):
            waiting = Waiting(later)
            for number, place in enumerate(later.places):
                answers[place] = Parked(None, waiting, number)
        return [answers[place] for place in range(len(bodies))]

    def serve(self, user: User | None) -> None:
        """Let the requests be those of this user, from now on."""
        self._roads.user = user

    def settle(self) -> None:
        """Wait for the disk: one sync for all that was sent."""
        self._roads.commit(idle=False)
        if isinstance(self._engine, SteppedEngine):
            self._engine.commit_round()

    def exchange(self, body: bytes) -> bytes:
        (answer,) = self.send(body)
        self.settle()
        return answer.body

    def _leave(self, places: list[int]) -> None:
        self.left = places


class DurableStore(Store):
    """The engine on a directory of its own, without its threads."""

    def __init__(
        self,
        clock: FakeClock,
        disk: Disk | None = None,
        fsync: str = "always",
        segment_bytes: int = 64 * 1024 * 1024,
        **limits: Any,
    ) -> None:
        super().__init__(clock)
        self._user: User | None = None
        self.disk = disk or Disk()
        self._directory = tempfile.TemporaryDirectory(prefix="zkv-", dir=QUICK_DIRECTORY)
        self._settings = settings_for(
            limits, data_dir=self._directory.name, fsync=fsync, segment_bytes=segment_bytes
        )
        self.open()

    def open(self) -> None:
        """Recover what is there."""
        self.engine = SteppedEngine(self._settings, self.disk, self.clock)
        self.node = node_for(self.engine, self._settings)
        self.workers = [self.worker() for _ in range(2)]
        self.serve(self._user)

    def worker(self) -> Worker:
        """One more worker."""
        return Worker(self.node)

    def exchange(self, body: bytes) -> bytes:
        return self.workers[0].exchange(body)

    def remove_expired(self) -> None:
        while self.engine.keyspace.expire(1) == 0:
            pass

    def serve(self, user: User | None) -> None:
        self._user = user
        self.engine.keyspace.set_quotas(quotas_of(user))
        for worker in self.workers:
            worker.serve(user)

    def change_limits(self, **limits: Any) -> None:
        """Have other limits from the next start on."""
        self._settings = override(self._settings, limits=limits)

    def crash(self) -> None:
        """Forget whatever is in memory, and start again."""
        self.engine.close()
        self.open()

    @property
    def data_dir(self) -> Path:
        """Where its files are."""
        return Path(self._directory.name)

    def look(self) -> None:
        """Do what the snapshotter does in each interval: look whether all is in its place."""
        self.engine.snapshotter._look()

    def snapshot(self) -> int | ReadOnly:
        """Do what the snapshotter does when it is asked for a snapshot."""
        return self.engine.snapshotter._save_changes()

    def close(self) -> None:
        self.engine.close()
        self._directory.cleanup()


class ReopenedStore(DurableStore):
    """A store that crashes after every request."""

    def exchange(self, body: bytes) -> bytes:
        reply = super().exchange(body)
        self.crash()
        return reply

    def remove_expired(self) -> None:
        super().remove_expired()
        self.workers[0].exchange(request("SCAN"))  # which waits for the disk
        self.crash()


class SnapshottedStore(ReopenedStore):
    """A store that crashes after every request, right after a snapshot."""

    remembers_changes = False

    def crash(self) -> None:
        assert isinstance(self.snapshot(), int)
        super().crash()


class PureMemoryStore(MemoryStore):
    """The keyspace alone, without what is compiled."""

    def __init__(self, clock: FakeClock, **limits: Any) -> None:
        with mock.patch("zkv.compiled.COMPILED", False):
            super().__init__(clock, **limits)


class PureStore(ReopenedStore):
    """A store that crashes after every request, and does without what is compiled."""

    def open(self) -> None:
        with mock.patch("zkv.compiled.COMPILED", False):
            super().open()


def _lazy(clock: FakeClock, **limits: Any) -> Store:
    return DurableStore(clock, fsync="never", **limits)


STORES: dict[str, Callable[..., Store]] = {
    "memory": MemoryStore,
    "memory, pure Python": PureMemoryStore,
    "log, always": DurableStore,
    "log, never": _lazy,
    "log, reopened": ReopenedStore,
    "log, reopened, pure Python": PureStore,
    "snapshot, reopened": SnapshottedStore,
}
"""Name -> makes an empty store, of a clock and limits."""

on_two_stores: Final = pytest.mark.parametrize(
    "make_store", ["memory", "log, reopened, pure Python"], indirect=True
)
"""For tests of fields, limits and conditions with many cases.

These are checked before the log and the snapshots come in, once in C and once in Python, so that
the other stores would repeat what these two have shown. They differ in all else, too: one answers
from memory, the other from what it has replayed from its log.
"""

MakeStore = Callable[..., Store]


@contextlib.contextmanager
def opened(kind: str, clock: FakeClock | None = None, **limits: Any) -> Iterator[Store]:
    """A store of this kind for a while."""
    with contextlib.closing(STORES[kind](clock or FakeClock(), **limits)) as store:
        yield store
