"""A worker thread: a loop over batches from its mailbox.

A command that fails is answered by the caller and harms nobody. What gets past that ends the batch:
`INTERNAL` is answered to all of it, or to those whose pending replies could not be made, the log
says so with a traceback, it is counted, and the thread goes on with the next batch, since nothing
is kept from one to the other. So it is where memory ends while requests are received. If the
mailbox itself fails, the thread ends, and the broker puts another worker in its place.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import zmq

from zkv.broker.frames import BadEnvelope
from zkv.broker.mailbox import ReplyFailedError
from zkv.broker.waiting import Answered, PendingCalls, PendingReply, Safe, commit, what_is_safe
from zkv.durability.committer import CommitGroup
from zkv.requests.call import Caller

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zkv.broker.frames import BadEnvelope
    from zkv.broker.mailbox import Mailbox
    from zkv.requests.account import Account
    from zkv.requests.call import Call
    from zkv.requests.commands import Node

_log = logging.getLogger("zkv.broker")

MOST_IN_VAIN: Final = 100
"""After so many failures to receive in a row the mailbox itself counts as failed."""
PAUSE_SECONDS: Final = 0.01
"""After each: where memory ends, it may be there again a moment later."""


GOES_ON: Final = "the thread goes on with the next one"


class Handler(Protocol):
    """What a thread that serves does with a batch. It keeps nothing from one to the next."""

    def answer(self, bodies: Sequence[bytes | BadEnvelope]) -> Answered:
        """What comes of a batch. `commit` follows, once that is in the mailbox."""

    def commit(self, answered: Answered, is_idle: Callable[[], bool]) -> None:
        """See to it that what waits for the disk is completed.

        Args:
            answered: what came of the batch.
            is_idle: whether nothing else is there to be done.
        """

    def give_up(self, body: bytes | BadEnvelope, error: BaseException) -> bytes:
        """The reply to a request whose batch was ended by ``error``."""


class WorkerHandler:
    """Runs a batch request by request.

    Args:
        node: what requests run on.
        account: of the thread.
        stopping: true once new requests are to be refused.
    """

    def __init__(self, node: Node, account: Account, stopping: Callable[[], bool]) -> None:
        self._engine = node.engine
        self._caller = Caller(node, account, stopping)

    def answer(self, bodies: Sequence[bytes | BadEnvelope]) -> Answered:
        """As in `Handler`."""
        engine, caller = self._engine, self._caller
        epoch = engine.epoch
        calls = [self._run(body) for body in bodies]
        revealed = Safe(max([call.rev for call in calls]), max([call.lsn for call in calls]))
        safe, refusal = what_is_safe(engine, epoch, revealed, patient=True)
        answered = Answered([None] * len(calls), refusal=refusal)
        waiting = PendingCalls(caller, CommitGroup(epoch))
        for place, call in enumerate(calls):
            result = call.result
            if isinstance(result, Future):
                answered.later.append(([place], PendingReply(caller, call, result)))
            elif safe.covers(call) and not caller.must_sync(call):
                answered.replies[place] = caller.finish(call, result)
            else:
                waiting.take(place, call, result)
        if waiting.places:
            answered.group = waiting.group
            waiting.group.lsn = engine.last_lsn
            answered.later.append((waiting.places, waiting))
        caller.flush()
        return answered

    def commit(self, answered: Answered, is_idle: Callable[[], bool]) -> None:
        """As in `Handler`; an idle worker waits for the disk itself."""
        commit(self._engine, answered, is_idle)

    def give_up(self, body: bytes | BadEnvelope, error: BaseException) -> bytes:
        """As in `Handler`."""
        return self._caller.give_up(None if isinstance(body, BadEnvelope) else body, error)

    def _run(self, body: bytes | BadEnvelope) -> Call:
        if isinstance(body, BadEnvelope):
            return self._caller.refuse(body.error(body.reason))[0]
        return self._caller.run(body)


class Worker:
    """One worker thread, with a mailbox of its own.

    Args:
        name: of the thread.
        handler: answers the requests.
        account: of the thread.
        open_mailbox: makes the mailbox; called in the thread.
        died: told, in the thread, when the worker ends without having been asked to.
    """

    def __init__(
        self,
        name: str,
        handler: Handler,
        account: Account,
        open_mailbox: Callable[[], Mailbox],
        died: Callable[[Worker], None],
    ) -> None:
        self._handler = handler
        self.account = account
        self._open_mailbox = open_mailbox
        self._died = died
        self._mailbox: Mailbox | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)

    @property
    def served(self) -> bool:
        """Whether it has ever been able to receive."""
        return self._mailbox is not None

    @property
    def unroutable(self) -> int:
        """Messages that had nowhere to reply to."""
        return 0 if self._mailbox is None else self._mailbox.unroutable

    def start(self) -> None:
        """Start the thread and wait until it can receive."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Have the worker end once it has answered all that is queued."""
        if self._mailbox is not None:
            self._mailbox.stop()

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._mailbox = mailbox = self._open_mailbox()
            self._ready.set()
            try:
                serve(mailbox, self._handler, self.account, self._thread.name)
            finally:
                mailbox.close()
        except BaseException:
            _log.critical("%s ended; another takes its place", self._thread.name, exc_info=True)
            self._died(self)
        finally:
            self._ready.set()


def serve(mailbox: Mailbox, handler: Handler, account: Account, name: str) -> None:
    """Answer batches until the mailbox has no more.

    Args:
        mailbox: where they come from.
        handler: answers them.
        account: of the thread.
        name: of the thread, for the log.
    """
    in_vain = 0
    while True:
        bodies = None
        try:
            bodies = mailbox.receive()
            if not bodies:
                return
            in_vain = 0
            _answer(mailbox, handler, bodies)
        except ReplyFailedError as failure:
            account.deaths += 1
            cause = failure.__cause__
            _log.critical("a reply of %s ended in a bug; %s", name, GOES_ON, exc_info=cause)
        except BaseException as error:
            if bodies is None:
                in_vain += 1
                if isinstance(error, zmq.ZMQError) or in_vain == MOST_IN_VAIN:
                    raise
                time.sleep(PAUSE_SECONDS)
            account.deaths += 1
            _log.critical("a batch of %s ended in a bug; %s", name, GOES_ON, exc_info=True)
            if mailbox.unanswered:
                with contextlib.suppress(MemoryError):  # Then not even that can be said.
                    mailbox.give_up(partial(handler.give_up, error=error))


def _answer(mailbox: Mailbox, handler: Handler, bodies: list[bytes | BadEnvelope]) -> None:
    answered = handler.answer(bodies)
    try:
        mailbox.reply(answered.replies, answered.later, answered.left)
    finally:  # Whatever could not be sent: what waits for the disk waits for this.
        handler.commit(answered, mailbox.is_idle)
