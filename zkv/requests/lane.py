"""The lane: simple requests, run in C, many at a time. See "Simple requests" in ARCHITECTURE.md.

The front offers each batch to the lane. The lane runs the requests that it can handle, and leaves
the others to the commands of their ops: one with a further field, one that fails, one that is
unusual in any way. The commands specify the behaviour; tests compare the two (`tests/compiled`).
The commits of a run are passed to the log, the history and the undo list in one step, so Python's
cost is paid once for a run and not for each request.

A request of many steps would hold up everyone. The front leaves it to a worker, whose lane runs it
in slices (zkv/compiled/long.c). Meanwhile the front only reads, aside.

Invariants: a run is one hold of the keyspace's lock, except for a run aside, which holds none and
writes nothing. A run's commits are appended to the log's queue in one step, and so are written,
made safe or rolled back together.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final, TypeVar

from zkv import compiled
from zkv.defaults import MAX_LEVELS
from zkv.keyspace.room import UNLIMITED
from zkv.keyspace.store import Undo
from zkv.keyspace.table import is_compiled

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.activity import Activity
    from zkv.compiled._store import Latencies, Run, Turn
    from zkv.keyspace.log import CommitLog
    from zkv.keyspace.store import Keyspace
    from zkv.protocol.codec import KeyLimits
    from zkv.replication.role import Role
    from zkv.requests.account import Account
    from zkv.requests.batch import Batch
    from zkv.requests.stopping import Stopping

A = TypeVar("A")

LONG_STEPS: Final = 1_000
"""Steps of the longest request that the front runs; longer ones are run by workers."""
LARGE_BODY: Final = 2 * 1024 * 1024
"""Bytes of the largest body that the front reads: a PUT of that size takes about 1 ms."""
SLICE_STEPS: Final = 1_000
"""Steps of a long run between two rests: 0.1 ms, or 1 ms if all is cold. The front waits less."""
REST_SECONDS: Final = 0.00005
"""Length of a rest."""
LOOK_SECONDS: Final = 0.0002
"""How long the front waits for the lock before it looks whether a long run has it."""
ENOUGH_BYTES: Final = 4 * 1024 * 1024
"""Bytes of replies after which no further request of a batch is run until these have been sent."""


class _Lane:
    """The base of the lanes of the front and of a worker.

    Args:
        keyspace: the keyspace.
        limits: limits of keys and values.
        max_reply_bytes: bytes of values that a reply may have.
        durable: a write is on disk when its reply is sent.
        max_batch: steps of the longest request that it takes.
        max_body_bytes: bytes of the largest body that it takes.
        rest: called between the slices of a run; None = a run is one slice.
    """

    def __init__(
        self,
        keyspace: Keyspace,
        limits: KeyLimits,
        max_reply_bytes: int,
        durable: bool,
        max_batch: int,
        max_body_bytes: int,
        rest: Callable[[], None] | None = None,
    ) -> None:
        self._keyspace = keyspace
        self._compiled = compiled.store.Lane(
            table=keyspace.entries,  # type: ignore[arg-type]
            keyspace=keyspace,
            max_key_bytes=limits.max_key_bytes,
            max_value_bytes=limits.max_value_bytes,
            max_batch=max_batch,
            max_reply_bytes=max_reply_bytes,
            max_levels=MAX_LEVELS,
            max_body_bytes=max_body_bytes,
            enough_bytes=ENOUGH_BYTES,
            durable=durable,
            rest=rest,
            slice_steps=SLICE_STEPS,
            **keyspace.write_hooks()._asdict(),
        )

    def _run(self, batch: Batch, first: int, end: int, *, aside: bool, logs: bool) -> Run:
        """Run the requests at these places, and add their replies. Lock held unless ``aside``."""
        keyspace = self._keyspace
        run = self._compiled.run(
            batch,
            first,
            end,
            rev=keyspace.rev,
            lsn=keyspace.last_lsn,
            removed_rev=keyspace.removed_rev,
            now=keyspace.now(),
            room=UNLIMITED if aside or keyspace.limit is None else keyspace.room(keyspace.limit),
            takes_writes=not aside and keyspace.takes_runs,
            aside=aside,
            logs=logs,
        )
        if run.payloads and run.replaced is not None:
            keyspace.add_run(run, run.replaced)
        return run


class Lane(_Lane):
    """The lane of the front. Beside a long run it only reads: see `WorkerLane`."""

    def run(self, batch: Batch, logs: bool = False) -> Run:
        """Run the simple requests of a batch, and add their replies; see `ENOUGH_BYTES`.

        Args:
            batch: the batch.
            logs: keep what the request log needs.
        """
        lock = self._keyspace.lock
        # Without names for the arguments: that takes 0.3 us, a sixth of a run.
        if not lock.acquire(False) and not self._wait_for_lock(batch):
            return self._run(batch, 0, len(batch), aside=True, logs=logs)
        try:
            return self._run(batch, 0, len(batch), aside=False, logs=logs)
        finally:
            lock.release()

    def turn(
        self,
        log: CommitLog,
        role: Role,
        account: Account,
        latencies: Latencies,
        stopping: Stopping,
        finish: Callable[[Batch, Run | None, int, float, bool | BaseException | None], A | None],
        writing: Activity | None,
        secures: bool,
    ) -> Turn[A]:
        """Return what answers whole batches with this lane: see `zkv.broker.front.FrontHandler`.

        Args:
            log: the log.
            role: the role of this server.
            account: the front's account.
            latencies: counts the answers.
            stopping: whether new requests must be refused.
            finish: does what is left of a turn: see `zkv.compiled._store.Turn`.
            writing: goes on while a snapshot is written; None if none ever is.
            secures: commits are safe once they are written.
        """
        keyspace = self._keyspace
        return compiled.store.Turn(
            lane=self._compiled,
            latencies=latencies,
            log=log,
            role=role,
            account=account,
            slow=account.slow,
            stopping=stopping,
            acquire=keyspace.lock.acquire,
            release=keyspace.lock.release,
            now=keyspace.now,
            finish=finish,
            undo=Undo,
            writing=writing,
            secures=secures,
        )

    def _wait_for_lock(self, batch: Batch) -> bool:
        """Wait for the lock, and tell the batch; return False, without it, if a long run has it."""
        lock, began = self._keyspace.lock, time.perf_counter()
        while not self._compiled.beside_long_run:
            if lock.acquire(True, LOOK_SECONDS):
                batch.waited = lock.note(began)
                return True
        return False


class WorkerLane(_Lane):
    """The lane of a worker: runs long requests in slices, and lets other threads run in between.

    It must be used by one thread. Its body is read without Python's lock.

    Attributes:
        wrote: True if the last request that ran has changed something.
    """

    wrote = False

    def run(self, batch: Batch, place: int, logs: bool = False) -> int | None:
        """Run one request, and add its reply.

        Args:
            batch: the request's batch.
            place: its place.
            logs: keep what the request log needs.

        Returns:
            The newest revision that the reply reveals; None if there is no reply.
        """
        if not self._compiled.read(batch, place):
            return None
        with self._keyspace.lock:
            ran = self._run(batch, place, place + 1, aside=False, logs=logs)
        self.wrote = bool(ran.payloads)
        return None if ran.left else ran.newest


def open_lane(
    keyspace: Keyspace, limits: KeyLimits, max_reply_bytes: int, durable: bool
) -> Lane | None:
    """Return the front's lane of a keyspace; None if its table is not compiled."""
    if not is_compiled(keyspace.entries):
        return None
    most = min(limits.max_batch, LONG_STEPS)
    return Lane(keyspace, limits, max_reply_bytes, durable, most, LARGE_BODY)


def open_worker_lane(
    keyspace: Keyspace, limits: KeyLimits, max_reply_bytes: int, durable: bool
) -> WorkerLane | None:
    """Return a lane for one worker; None if the table is not compiled."""
    if not is_compiled(keyspace.entries):
        return None
    most = limits.max_batch
    return WorkerLane(keyspace, limits, max_reply_bytes, durable, most, sys.maxsize, rest=rest)


def rest() -> None:
    """Let the threads run that wait for Python's lock.

    To release the lock is not enough: this thread would get it again before they have woken up.
    """
    time.sleep(REST_SECONDS)
