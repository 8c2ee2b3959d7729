"""An engine whose threads a test does by hand, and the two roads from a request to it.

`Roads` is what stands between a mailbox and the engine: the front takes a whole batch, and what it
leaves goes to a worker. `SteppedEngine` starts no thread: a test does the rounds of the committer
and of the snapshotter one by one. What is reached into of the engine's is in here, and
nowhere else.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from zkv.broker.front import FrontHandler
from zkv.broker.mailbox import Pending
from zkv.broker.waiting import Answered
from zkv.broker.worker import Handler, WorkerHandler
from zkv.config import Settings
from zkv.durability.committer import CommitGroup, settle
from zkv.durability.files import Files
from zkv.durability.snapshotter import Snapshotter
from zkv.durability.storage import Storage
from zkv.durability.wal import QUICK_SYNC_SECONDS, Wal
from zkv.engine import Engine
from zkv.errors import ReadOnly
from zkv.requests.account import Account
from zkv.requests.batch import Batch, new_batch
from zkv.requests.commands import Node
from zkv.requests.lane import open_lane, open_worker_lane
from zkv.users.rights import User


class SteppedEngine(Engine):
    """An engine whose threads are never started: a test does their rounds one by one."""

    def __init__(
        self, settings: Settings, files: Files, now: Callable[[], int] | None = None
    ) -> None:
        self._submitted: list[CommitGroup] = []
        self._committing = threading.Lock()
        super().__init__(settings.durability, settings.limits, files, now)
        self.front_syncs = False

    @property
    def wal(self) -> Wal:
        """The log."""
        assert self.disk is not None
        return self.disk.wal

    @property
    def snapshotter(self) -> Snapshotter:
        """What takes snapshots."""
        assert self.disk is not None
        return self.disk.snapshotter

    def submit(self, group: CommitGroup) -> None:
        self._submitted.append(group)

    @property
    def front_syncs(self) -> bool:
        """Whether the front may sync a batch that only writes, before it answers."""
        return self.wal.quick_sync_seconds > 0

    @front_syncs.setter
    def front_syncs(self, may: bool) -> None:
        self.wal.quick_sync_seconds = QUICK_SYNC_SECONDS if may else 0.0

    @property
    def storage(self) -> Storage:
        """The data directory."""
        assert self.disk is not None
        return self.disk.storage

    def commit_round(self) -> None:
        """What the committer does with everything that was submitted."""
        with self._committing:  # Some tests have several threads; there is one committer.
            groups, self._submitted = self._submitted, []
            settle(self.wal, groups)

    def sync_round(self) -> None:
        """What the committer does once per interval."""
        with contextlib.suppress(ReadOnly):
            self.wal.commit(self.wal.written_lsn, durable=True)

    def snapshotter_round(self) -> None:
        """What the snapshotter does once the interval has passed, or when it was asked."""
        snapshotter = self.snapshotter
        asked = [] if snapshotter._inbox.empty() else snapshotter._wait()
        outcome = snapshotter._save_changes()
        for future in asked:
            assert future is not None
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def save_at_end(self) -> int:
        """`Engine.save`, with the snapshotter's last round done here."""
        self.keyspace.end()
        self.snapshotter._inbox.put(None)
        self.snapshotter._run()
        return self.snapshotter._final.result(timeout=0)


class Roads:
    """The front and a worker, as the product has them, without their sockets.

    Args:
        node: what requests run on.
    """

    def __init__(self, node: Node) -> None:
        engine = node.engine
        lane = open_lane(engine.keyspace, node.limits, node.max_reply_bytes, engine.syncs_each)
        self._front = FrontHandler(node, lane, Account())
        behind = open_worker_lane(
            engine.keyspace, node.limits, node.max_reply_bytes, engine.syncs_each
        )
        self._worker = WorkerHandler(node, behind, Account())
        self._answered: list[tuple[Handler, Answered]] = []
        self.user: User | None = None
        """Whose requests they are."""

    def answer(
        self,
        bodies: Sequence[bytes],
        take: Callable[[dict[int, bytes]], None],
        leave: Callable[[list[int]], None] = lambda places: None,
    ) -> list[Delayed]:
        """Run a batch; the replies that must wait, with their places in it.

        Args:
            bodies: the batch.
            take: takes replies that may leave, by their places.
            leave: told the places of those that the front leaves, before the worker runs them.
        """
        places = list(range(len(bodies)))
        left, later = self._run(self._front, bodies, places, take)
        leave(left)
        if left:
            later += self._run(self._worker, bodies, left, take)[1]
        return later

    def _run(
        self,
        handler: Handler,
        bodies: Sequence[bytes],
        places: list[int],
        take: Callable[[dict[int, bytes]], None],
    ) -> tuple[list[int], list[Delayed]]:
        """Have a handler run the requests at some places; what it leaves, and what must wait."""
        batch = new_batch()
        for place in places:
            batch.add([], bodies[place], 0.0, 0.0, self.user)
        batch.taken = time.perf_counter()
        answered = handler.answer(batch) or Answered()
        self._answered.append((handler, answered))
        later = [
            Delayed([places[n] for n in some], pending, batch.split(some))
            for some, pending in answered.later
        ]
        take({places[n]: reply for n, reply in enumerate(replies_of(batch)) if reply is not None})
        left = [places[n] for n in answered.left]
        if answered.end is not None:  # The replies have become large: the rest is a batch, too.
            more_left, more = self._run(handler, bodies, places[answered.end :], take)
            left, later = left + more_left, later + more
        return left, later

    def commit(self, idle: bool) -> None:
        """See to it that what waits is committed: by the committer's next round, or before.

        Args:
            idle: whether nothing else is there to be done.
        """
        answered, self._answered = self._answered, []
        for handler, batch in answered:
            handler.commit(batch, lambda: idle)


class Delayed(NamedTuple):
    """Replies that wait: their places, and what a mailbox does about them."""

    places: list[int]
    pending: Pending
    batch: Batch

    def bodies(self) -> list[bytes]:
        """The replies, once they are complete."""
        self.pending.complete(self.batch)
        return [reply for reply in replies_of(self.batch) if reply is not None]


def replies_of(batch: Batch) -> list[bytes | None]:
    """The replies that wait to be sent."""
    return [batch.reply(place) for place in range(len(batch))]
