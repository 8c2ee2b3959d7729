"""Replies until they are safe: what may leave now, what waits for the disk, and what comes of it.

A batch is run, and every reply names the newest revision that it tells of. What is safe by then
(see `zkv.engine`) is answered at once. The rest of the batch shares one commit group: its replies
are parked in the mailbox, and leave when the group's commits are on disk. So the thread goes on
meanwhile, and a batch, or many, cost one sync.

The order of the steps is what makes that right. The epoch is read before the batch is run. What is
safe is read after it, and only then whether the epoch is still the same: what is safe, and was not
rolled back before, cannot be rolled back later. Where the epoch has changed nothing counts as safe,
since what becomes safe from then on may be commits of others, with revisions that came free again.

Invariant: no reply tells of a revision that is not safe.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from zkv.durability.committer import A_BUG, CommitGroup
from zkv.errors import ReadOnly
from zkv.requests.call import fail

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zkv.broker.frames import BadEnvelope
    from zkv.broker.mailbox import Later
    from zkv.engine import Engine
    from zkv.protocol.replies import Failure, Reply
    from zkv.requests.account import Account
    from zkv.requests.call import Call, Caller
    from zkv.requests.lane import Answers


class Safe(NamedTuple):
    """The newest revision, and the newest number in the log, that were safe at one moment."""

    rev: int
    lsn: int

    def covers(self, call: Call) -> bool:
        """Whether what a call's reply tells of was safe then."""
        return call.rev <= self.rev and call.lsn <= self.lsn


NOTHING_SAFE: Final = Safe(-1, -1)
"""Not even a reply that tells of nothing in the store."""


@dataclass(slots=True)
class Answered:
    """What came of a batch.

    Args:
        replies: in its order; None where a reply is pending, or made by others.
        later: the places of those that are pending, and what they wait for.
        left: the places of those that others are to make.
        group: what is still to be committed; None where nothing waits for the disk.
        refusal: why that can never be.
    """

    replies: list[bytes | None]
    later: list[Later] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    group: CommitGroup | None = None
    refusal: ReadOnly | None = None


def what_is_safe(
    engine: Engine, epoch: int, revealed: Safe, patient: bool
) -> tuple[Safe, ReadOnly | None]:
    """What of a batch may be told now, and why the rest can never be.

    All commits are made safe as far as that takes no waiting for the disk.

    Args:
        engine: the store.
        epoch: read before the batch was run.
        revealed: the newest that any of its replies reveals.
        patient: whether others who write to the log may be waited for.
    """
    refusal: ReadOnly | None = None
    safe = Safe(engine.safe_rev, engine.safe_lsn)
    if revealed.rev > safe.rev or revealed.lsn > safe.lsn:
        try:
            engine.secure(patient)
        except ReadOnly as error:
            refusal = error
        safe = Safe(engine.safe_rev, engine.safe_lsn)
    return (safe if engine.epoch == epoch else NOTHING_SAFE), refusal


def commit(
    engine: Engine, answered: Answered, wait: Callable[[], bool], patient: bool = True
) -> None:
    """See to it that what waits for the disk is completed. Once its replies are parked.

    Args:
        engine: the store.
        answered: a batch.
        wait: asked only if something waits: whether this thread is to wait for the disk itself,
            which saves the way through the committer's thread and back.
        patient: whether it then waits for others who write to the log, too.
    """
    group = answered.group
    if group is None:
        return
    try:
        if answered.refusal is not None:
            group.complete(answered.refusal)
        elif not (wait() and engine.settle(group, patient)):
            engine.submit(group)
    except BaseException:
        # A bug. The thread goes on with the next batch; those who wait are not to wait for ever.
        group.complete(ReadOnly(A_BUG, applied=None))
        raise


class PendingReply:
    """A reply that another thread makes; encoded in the worker's own."""

    def __init__(self, caller: Caller, call: Call, reply: Future[Reply]) -> None:
        self._caller = caller
        self._call = call
        self._reply = reply

    def notify(self, ready: Callable[[], None]) -> None:
        """Have ``ready`` called once the reply is there."""

        def settled(_: Future[Reply]) -> None:
            ready()

        self._reply.add_done_callback(settled)

    def bodies(self) -> list[bytes]:
        """The encoded reply. To be called once."""
        future = self._reply
        del self._reply  # It refers back to what delivers this, and so does the call's result:
        self._call.result = None  # no cycle is to stay.
        error = future.exception()
        reply = future.result() if error is None else fail(error, self._call.request)
        body = self._caller.finish(self._call, reply)
        self._caller.flush()
        return [body]

    def give_up(self, error: BaseException) -> list[bytes]:
        """The reply where that failed."""
        return [self._caller.give_up(self._call.request, error)]


class PendingCalls:
    """Replies of a worker that may leave once what they tell of is on disk.

    Args:
        caller: whose they are.
        group: what they wait for.

    Attributes:
        places: of their requests in the batch.
    """

    def __init__(self, caller: Caller, group: CommitGroup) -> None:
        self._caller = caller
        self.group = group
        self.places: list[int] = []
        self._calls: list[tuple[Call, Reply | Failure | None]] = []

    def take(self, place: int, call: Call, reply: Reply | Failure | None) -> None:
        """Take a call and its result."""
        self.places.append(place)
        self._calls.append((call, reply))

    def notify(self, ready: Callable[[], None]) -> None:
        """Have ``ready`` called once the group is completed."""
        self.group.on_completion(ready)

    def bodies(self) -> list[bytes]:
        """The encoded replies: what was done, or that it could not be made safe."""
        caller, error = self._caller, self.group.error
        if error is None:
            bodies = [caller.finish(call, reply) for call, reply in self._calls]
        else:
            survived = Safe(*caller.engine.survived(self.group.epoch))
            bodies = [self._after_rollback(call, was, survived, error) for call, was in self._calls]
        caller.flush()
        return bodies

    def give_up(self, error: BaseException) -> list[bytes]:
        """The replies where that failed."""
        return [self._caller.give_up(call.request, error) for call, _ in self._calls]

    def _after_rollback(
        self, call: Call, was: Reply | Failure | None, survived: Safe, error: ReadOnly
    ) -> bytes:
        """The reply after others' commits, or this one, have been rolled back.

        The group waited for whatever had been queued by then. Of that, some may have become safe
        before the rest could not be written, and that stays.
        """
        caller = self._caller
        if not survived.covers(call):
            return caller.finish(call, caller.run_again(call, error))
        if caller.must_sync(call):
            unknown = ReadOnly(error.message, applied=None)
            return caller.finish(call, fail(unknown, call.request))
        return caller.finish(call, was)


class PendingRun:
    """Replies of the lane that may leave once the revisions that they tell of are on disk.

    They are taken out of what the lane has answered.

    Args:
        caller: runs again what has been rolled back.
        account: where they count once they leave.
        group: what they wait for.
        bodies: the batch.
        answers: what the lane has answered of it.
        safe_rev: the newest revision that is safe.
        started: when the batch was taken up.

    Attributes:
        places: of their requests in the batch.
    """

    def __init__(
        self,
        caller: Caller,
        account: Account,
        group: CommitGroup,
        bodies: Sequence[bytes | BadEnvelope],
        answers: Answers,
        safe_rev: int,
        started: float,
    ) -> None:
        self._caller = caller
        self._account = account
        self._group = group
        self._started = started
        reveals, ops = answers.reveals, answers.ops
        places = [place for place, rev in enumerate(reveals) if rev > safe_rev and ops[place]]
        self.places = places
        self._requests = cast("list[bytes]", [bodies[place] for place in places])
        self._reveals = [reveals[place] for place in places]
        self._answers = answers.take_out(places)

    def notify(self, ready: Callable[[], None]) -> None:
        """Have ``ready`` called once the group is completed."""
        self._group.on_completion(ready)

    def bodies(self) -> list[bytes]:
        """The encoded replies: what was done, or that it could not be made safe."""
        error = self._group.error
        bodies = [reply for reply in self._answers.replies if reply is not None]
        if error is not None:
            self._replace_what_was_rolled_back(bodies, error)
        self._account.add_run(self._answers.ops, self._answers.subjects, self._started)
        self._account.flush()
        return bodies

    def give_up(self, error: BaseException) -> list[bytes]:
        """The replies where that failed."""
        return [self._caller.give_up(body, error) for body in self._requests]

    def _replace_what_was_rolled_back(self, bodies: list[bytes], error: ReadOnly) -> None:
        """See `PendingCalls`."""
        survived_rev, _ = self._caller.engine.survived(self._group.epoch)
        for number, revealed in enumerate(self._reveals):
            if revealed > survived_rev:
                self._answers.strike(number)
                bodies[number] = self._caller.run_instead(
                    self._requests[number], self._started, error
                )
