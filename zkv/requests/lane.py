"""The lane: simple requests, run in C, many at a time. See "Simple requests" in ARCHITECTURE.md.

The front offers each batch to the lane. The lane runs requests up to the first that it does not
handle, which it leaves to the command of its op: one with a further field, one that fails, one that
is unusual in any way. The commands specify the behaviour; tests compare the two (`tests/compiled`).
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
from typing import TYPE_CHECKING, Final

from zkv import compiled
from zkv.defaults import MAX_LEVELS
from zkv.keyspace.change import PackedCommit
from zkv.keyspace.table import is_compiled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zkv.keyspace.store import Keyspace
    from zkv.log import Subject
    from zkv.protocol.codec import KeyLimits

LONG_STEPS: Final = 1_000
"""Steps of the longest request that the front runs; longer ones are run by workers."""
LARGE_BODY: Final = 1024 * 1024
"""Bytes of the largest body that the front reads."""
SLICE_STEPS: Final = 1_000
"""Steps of a long run between two rests: about 0.1 ms."""
REST_SECONDS: Final = 0.00005
"""Length of a rest."""
LOOK_SECONDS: Final = 0.0002
"""How long the front waits for the lock before it looks whether a long run has it."""


class Answers:
    """The answers to a batch. An index into any of its lists is the request's place in the batch.

    Args:
        subjects: an empty list if requests are logged; None otherwise.

    Attributes:
        replies: reply bodies; None if the lane did not answer the request.
        reveals: the newest revision that each reply reveals.
        ops: op names; empty if the lane did not answer the request.
        subjects: subjects for the request log; None if requests are not logged.
        newest: the newest revision that any of the lane's replies reveals.
    """

    __slots__ = ("newest", "ops", "replies", "reveals", "subjects")

    def __init__(self, subjects: list[Subject | None] | None = None) -> None:
        self.replies: list[bytes | None] = []
        self.reveals: list[int] = []
        self.ops: list[str] = []
        self.subjects = subjects
        self.newest = 0

    def leave_out(self, reply: bytes | None = None) -> None:
        """Append a request that the lane does not answer; ``reply`` is None if a worker will."""
        self.replies.append(reply)
        self.reveals.append(0)
        self.ops.append("")
        if self.subjects is not None:
            self.subjects.append(None)

    def take_out(self, places: list[int]) -> Answers:
        """Move the answers at ``places`` into an object of their own."""
        taken = Answers()
        taken.replies = [self.replies[place] for place in places]
        taken.ops = [self.ops[place] for place in places]
        if self.subjects is not None:
            taken.subjects = [self.subjects[place] for place in places]
        for place in places:
            self.replies[place] = None
            self.strike(place)
        return taken

    def strike(self, place: int) -> None:
        """Do not count or log the answer at ``place``, since another one replaces it."""
        self.ops[place] = ""
        if self.subjects is not None:
            self.subjects[place] = None


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
            commit_type=PackedCommit,
            max_key_bytes=limits.max_key_bytes,
            max_value_bytes=limits.max_value_bytes,
            max_batch=max_batch,
            max_reply_bytes=max_reply_bytes,
            max_levels=MAX_LEVELS,
            max_body_bytes=max_body_bytes,
            durable=durable,
            rest=rest,
            slice_steps=SLICE_STEPS,
            **keyspace.write_hooks()._asdict(),
        )

    def _run(self, bodies: Sequence[object], answers: Answers, aside: bool) -> int:
        """Run requests; return how many were answered. Lock held unless ``aside``."""
        keyspace = self._keyspace
        run = self._compiled.run(
            bodies,
            answers,
            rev=keyspace.rev,
            removed_rev=keyspace.removed_rev,
            now=keyspace.now(),
            takes_writes=not aside and keyspace.takes_writes,
            aside=aside,
        )
        if run.commits and run.replaced is not None:
            keyspace.add_run(run, run.replaced)
        answers.newest = max(answers.newest, run.newest)
        return run.taken


class Lane(_Lane):
    """The lane of the front. Beside a long run it only reads: see `WorkerLane`."""

    def run(self, bodies: Sequence[object], answers: Answers) -> int:
        """Run the requests after those that ``answers`` has; return how many were answered."""
        lock = self._keyspace.lock
        # Without names for the arguments: that takes 0.3 us, a sixth of a run.
        while not lock.acquire(False):
            if self._compiled.beside_long_run:
                return self._run(bodies, answers, True)
            if lock.acquire(True, LOOK_SECONDS):
                break
        try:
            return self._run(bodies, answers, False)
        finally:
            lock.release()


class WorkerLane(_Lane):
    """The lane of a worker: runs long requests in slices, and lets other threads run in between.

    It must be used by one thread. Its body is read without Python's lock.
    """

    def run(self, bodies: Sequence[object], answers: Answers) -> bool:
        """Run the request after those that ``answers`` has; return True if it was answered."""
        place = len(answers.replies)
        if not self._compiled.read(bodies[place]):
            return False
        with self._keyspace.lock:
            return self._run(bodies[: place + 1], answers, False) == 1


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
    return WorkerLane(keyspace, limits, max_reply_bytes, durable, most, sys.maxsize, rest=_rest)


def _rest() -> None:
    """Let the threads run that wait for Python's lock.

    To release the lock is not enough: this thread would get it again before they have woken up.
    """
    time.sleep(REST_SECONDS)
