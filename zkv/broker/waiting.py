"""Holds replies until they are safe.

After a batch has run, each reply knows the newest revision that it reveals. Replies that are safe
by then (see `zkv.engine`) are sent at once. The others form one commit group: they are parked in
the mailbox, and sent when the group's commits are on disk. Meanwhile the thread continues, so one
sync serves a whole batch, or many.

The order of the steps is essential:

1. Read the epoch.
2. Run the batch.
3. Read what is safe, after making commits safe as far as that takes no waiting.
4. Read the epoch again. If it has changed, nothing counts as safe.

A commit that is safe, and was not rolled back before step 3, cannot be rolled back later. After a
rollback, however, other commits may reuse the revisions that it freed and become safe, so the
comparison of revisions in step 3 proves nothing about this batch. That is why step 4 comes last.

Invariant: no reply is sent that reveals a revision which is not safe.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from zkv.durability.committer import A_BUG, CommitGroup
from zkv.errors import ReadOnly
from zkv.requests.batch import ALL
from zkv.requests.call import fail
from zkv.requests.parking import ParkedReply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zkv.broker.mailbox import Later
    from zkv.engine import Engine
    from zkv.protocol.replies import Failure, Reply
    from zkv.requests.account import Account
    from zkv.requests.batch import Batch
    from zkv.requests.call import Call, Caller


class Safe(NamedTuple):
    """The newest revision and the newest log number that were safe at one moment."""

    rev: int
    lsn: int

    def covers(self, call: Call) -> bool:
        """Return True if all that the call's reply reveals was safe then."""
        return call.rev <= self.rev and call.lsn <= self.lsn


NOTHING_SAFE: Final = Safe(-1, -1)
"""Covers no call, not even one that reveals nothing."""


@dataclass(slots=True)
class Answered:
    """The results of a batch, apart from the replies that it has.

    Args:
        later: the places of pending replies, and the objects that will complete them.
        left: the places of requests that are left to the workers.
        group: the commits that the pending replies wait for; None if none waits for the disk.
        refusal: the log's error, if these commits cannot be made safe.
        end: the place from which on requests are still to run, once these replies have been sent;
            None = all have run, or are left.
    """

    later: Sequence[Later] = ()
    left: Sequence[int] = ()
    group: CommitGroup | None = None
    refusal: ReadOnly | None = None
    end: int | None = None


def make_safe(
    engine: Engine, epoch: int, revealed: Safe, patient: bool
) -> tuple[Safe, ReadOnly | None]:
    """Make commits safe if that takes no waiting for the disk.

    Args:
        engine: the engine.
        epoch: the epoch before the batch ran.
        revealed: the newest that any reply of the batch reveals.
        patient: wait for other threads that write to the log.

    Returns:
        What is safe now, and the log's error if the rest cannot be made safe.
    """
    refusal: ReadOnly | None = None
    if revealed.rev > engine.safe_rev or revealed.lsn > engine.safe_lsn:
        try:
            engine.secure(patient)
        except ReadOnly as error:
            refusal = error
    return safe_now(engine, epoch), refusal


def safe_now(engine: Engine, epoch: int) -> Safe:
    """Return what is safe of that which a batch reveals.

    Args:
        engine: the engine.
        epoch: the epoch before the batch ran.
    """
    safe = Safe(engine.safe_rev, engine.safe_lsn)
    # Below 0 nothing was answered that only a leader may answer, so nobody has to confirm it.
    confirmed = epoch < 0 or not engine.log.confirms_reads
    return safe if confirmed and engine.epoch == epoch else NOTHING_SAFE


def commit(engine: Engine, answered: Answered, wait: Callable[[], bool]) -> None:
    """Have a batch's commit group completed. Call this after its replies have been parked.

    A thread that waited here for others, which sync again and again, could be overtaken each time:
    a lock is not fair. The committer takes groups in their order.

    Args:
        engine: the engine.
        answered: the batch.
        wait: called if there is a group; returns true if this thread may wait for the disk itself,
            if that is quick, which saves two switches to the committer's thread and back.
    """
    group = answered.group
    if group is None:
        return
    try:
        if answered.refusal is not None:
            group.complete(answered.refusal)
        elif not (wait() and engine.settle(group, patient=False)):
            engine.submit(group)
    except BaseException:
        # A bug. The thread continues with the next batch, but these clients must get a reply.
        group.complete(ReadOnly(A_BUG, applied=None))
        raise


class PendingReply:
    """A reply that another thread makes; encoded in the mailbox's thread."""

    def __init__(self, caller: Caller, call: Call, reply: Future[Reply]) -> None:
        self._caller = caller
        self._call = call
        self._reply = reply
        self.sizes: list[int] = []  # It has no values.

    def notify(self, ready: Callable[[], None]) -> None:
        """Call ``ready`` once the reply is there."""

        def settled(_: Future[Reply]) -> None:
            ready()

        self._reply.add_done_callback(settled)

    def complete(self, batch: Batch) -> None:
        """Add the encoded reply. Call this once."""
        future = self._reply
        del self._reply  # The future refers to the callback that refers to this object, and so
        self._call.result = None  # does the call's result: break the cycles.
        if isinstance(future, ParkedReply):
            self._call.pass_over(future.resumed)
        error = future.exception()
        reply = future.result() if error is None else fail(error, self._call.request)
        batch.set_reply(0, self._caller.finish(self._call, reply))
        self._caller.flush()

    def give_up(self, batch: Batch, error: BaseException) -> None:
        """Add an error reply after `complete` raised ``error``."""
        call = self._call
        batch.set_reply(0, self._caller.give_up(call.request, error, call.started))


class PendingCalls:
    """Replies of a worker that wait for a commit group.

    Args:
        caller: the worker's caller.
        group: the group.

    Attributes:
        places: places of the requests in the batch.
        sizes: about the bytes of each reply.
    """

    def __init__(self, caller: Caller, group: CommitGroup) -> None:
        self._caller = caller
        self.group = group
        self.places: list[int] = []
        self.sizes: list[int] = []
        self._calls: list[tuple[Call, Reply | Failure | None]] = []

    def take(self, place: int, call: Call, reply: Reply | Failure | None) -> None:
        """Add a call and its result."""
        self.places.append(place)
        self.sizes.append(call.size)
        self._calls.append((call, reply))

    def notify(self, ready: Callable[[], None]) -> None:
        """Call ``ready`` once the group is complete."""
        self.group.on_completion(ready)

    def complete(self, batch: Batch) -> None:
        """Add the encoded replies; after a rollback, those that `_after_rollback` makes."""
        caller, error = self._caller, self.group.error
        if error is None:
            for place, (call, reply) in enumerate(self._calls):
                batch.set_reply(place, caller.finish(call, reply))
        else:
            survived = Safe(*caller.engine.survived(self.group.epoch))
            for place, (call, was) in enumerate(self._calls):
                batch.set_reply(place, self._after_rollback(call, was, survived, error))
        caller.flush()

    def give_up(self, batch: Batch, error: BaseException) -> None:
        """Add error replies after `complete` raised ``error``."""
        for place, (call, _) in enumerate(self._calls):
            batch.set_reply(place, self._caller.give_up(call.request, error, call.started))

    def _after_rollback(
        self, call: Call, was: Reply | Failure | None, survived: Safe, error: ReadOnly
    ) -> bytes:
        """Return the reply to a call after a rollback.

        The group waited for all commits that were queued when it was made. Some of them may have
        become safe before writing the others failed; replies that reveal only those are sent.
        """
        caller = self._caller
        if not survived.covers(call):
            return caller.finish(call, caller.run_again(call, error))
        if caller.must_sync(call):
            unknown = ReadOnly(error.message, applied=None)
            return caller.finish(call, fail(unknown, call.request))
        return caller.finish(call, was)


class PendingRun:
    """Replies of the lane that wait for a commit group. They are in the parked batch already.

    Args:
        caller: runs reads again after a rollback.
        account: counts the replies when they are sent.
        group: the group.
        executed: when the batch had run, by `time.perf_counter`.
    """

    def __init__(
        self, caller: Caller, account: Account, group: CommitGroup, executed: float
    ) -> None:
        self._caller = caller
        self._account = account
        self._group = group
        self._executed = executed
        self.sizes: list[int] = []  # They are packed.

    def notify(self, ready: Callable[[], None]) -> None:
        """Call ``ready`` once the group is complete."""
        self._group.on_completion(ready)

    def complete(self, batch: Batch) -> None:
        """After a rollback, replace the replies that did not survive. Count the others."""
        error = self._group.error
        if error is not None:
            self._replace_what_was_rolled_back(batch, error)
        self._account.add_run(batch, ALL, self._executed)
        self._account.flush()

    def give_up(self, batch: Batch, error: BaseException) -> None:
        """Replace all replies after `complete` raised ``error``."""
        for place, body in enumerate(batch):
            request = body if isinstance(body, bytes) else None
            batch.set_reply(place, self._caller.give_up(request, error, batch.taken))

    def _replace_what_was_rolled_back(self, batch: Batch, error: ReadOnly) -> None:
        """Run requests again of which the commits did not survive; see `PendingCalls`."""
        survived_rev, _ = self._caller.engine.survived(self._group.epoch)
        for place in batch.places(survived_rev):
            body = batch[place]
            if isinstance(body, bytes):
                user = batch.user(place)
                reply = self._caller.run_instead(body, batch.taken, error, user)
            else:  # There is no memory for the body.
                reply = self._caller.give_up(None, error, batch.taken)
            batch.set_reply(place, reply)
