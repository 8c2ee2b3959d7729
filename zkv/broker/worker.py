"""A worker thread: a loop that answers batches from its mailbox.

A command that fails is answered by the caller and affects no other request. Any other exception
ends the batch: the rest of it is answered `INTERNAL`, or, if pending replies could not be made,
those. The exception is logged with its traceback and counted, and the thread continues with the
next batch, since it keeps no state between batches. The same happens if memory runs out while it
receives. If the mailbox itself fails, the thread ends, and the broker starts another worker.
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

from zkv.broker.mailbox import ReplyFailedError
from zkv.broker.waiting import (
    Answered,
    PendingCalls,
    PendingReply,
    PendingRun,
    Safe,
    commit,
    make_safe,
)
from zkv.durability.committer import CommitGroup
from zkv.requests.batch import BadEnvelope
from zkv.requests.call import Caller
from zkv.requests.lane import ENOUGH_BYTES, rest

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.broker.mailbox import Answer, Later, Mailbox
    from zkv.requests.account import Account
    from zkv.requests.batch import Batch
    from zkv.requests.call import Call
    from zkv.requests.commands import Node
    from zkv.requests.lane import WorkerLane

_log = logging.getLogger("zkv.broker")

MOST_FAILURES: Final = 100
"""After so many failures to receive or send, with nothing received in between, the mailbox itself
counts as failed."""
PAUSE_SECONDS: Final = 0.01
"""Pause after each of them: there may be memory again a moment later."""


CONTINUES: Final = "the thread continues with the next batch"


class Handler(Protocol):
    """Answers batches for the front or a worker. It keeps no state from one batch to the next."""

    @property
    def answer(self) -> Answer:
        """Runs a batch, and adds the replies that may be sent at once.

        Returns what is not answered yet; None if everything is. After the mailbox has taken it,
        `commit` must be called.
        """

    def commit(self, answered: Answered, is_idle: Callable[[], bool]) -> None:
        """Have the batch's commit group completed, if there is one.

        Args:
            answered: the results of the batch.
            is_idle: returns true if no other request is waiting.
        """

    def give_up(self, body: bytes | BadEnvelope, error: BaseException) -> bytes:
        """Return the reply to a request whose batch ended with ``error``."""


class WorkerHandler:
    """Runs a batch, one request after the other.

    Its lane runs those that the front has left because they are long, or because the lock was held
    for a long one. The commands run the others.

    Args:
        node: the commands' environment.
        lane: a lane of its own; None if the store is not compiled.
        account: the worker's account.
    """

    def __init__(self, node: Node, lane: WorkerLane | None, account: Account) -> None:
        self._engine = node.engine
        self._role = node.role
        self._lane = lane
        self._account = account
        self._stopping = node.stopping
        self._caller = Caller(node, account)

    def answer(self, batch: Batch) -> Answered | None:
        """See `Handler`."""
        engine, caller, account = self._engine, self._caller, self._account
        epoch, waited = engine.epoch, engine.keyspace.lock.waited
        newest, calls, end = self._run_all(batch)
        ran = len(batch) if end is None else end
        account.queued += batch.queued(ran)
        executed, batch.waited = time.perf_counter(), engine.keyspace.lock.waited - waited
        revealed = Safe(
            max([newest, *[call.rev for call in calls.values()]]),
            max([call.lsn for call in calls.values()], default=0),
        )
        safe, refusal = make_safe(engine, epoch, revealed, patient=True)
        later: list[Later] = []
        answered = Answered(later, refusal=refusal, end=end)
        group = CommitGroup(epoch)
        waiting = PendingCalls(caller, group)
        for place, call in calls.items():
            result = call.result
            if isinstance(result, Future):
                later.append(([place], PendingReply(caller, call, result)))
            elif safe.covers(call) and not caller.must_sync(call):
                batch.set_reply(place, caller.finish(call, result))
            else:
                waiting.take(place, call, result)
        run = PendingRun(caller, account, group, executed)
        for places, pending in ((waiting.places, waiting), (batch.places(safe.rev), run)):
            if places:
                group.lsn = engine.last_lsn
                answered.group = group
                later.append((places, pending))
        if len(calls) < ran:
            account.add_run(batch, safe.rev, executed)
        caller.flush()
        return answered if later or end is not None else None

    def commit(self, answered: Answered, is_idle: Callable[[], bool]) -> None:
        """See `Handler`. An idle worker waits for a quick disk, but not for other threads."""
        commit(self._engine, answered, is_idle)

    def give_up(self, body: bytes | BadEnvelope, error: BaseException) -> bytes:
        """See `Handler`."""
        return self._caller.give_up(None if isinstance(body, BadEnvelope) else body, error)

    def _run_all(self, batch: Batch) -> tuple[int, dict[int, Call], int | None]:
        """Run a batch, until its replies have become large.

        Returns:
            The newest revision that a reply of the lane reveals; the calls of the requests that
            the lane has left, by place; the place from which on requests are still to run, or None.
        """
        newest = size = 0
        calls: dict[int, Call] = {}
        for place in range(len(batch)):
            if size + batch.replied >= ENOUGH_BYTES:
                return newest, calls, place
            self._account.taken += 1
            is_simple = (
                self._role.leads and not self._stopping.begun and batch.overload(place) is None
            )
            lane = self._lane if is_simple else None
            rev = None if lane is None else self._run_in_lane(lane, batch, place)
            if rev is None:
                calls[place] = call = self._run(batch, place)
                call.batch = len(batch)
                size += call.size
            else:
                newest = max(newest, rev)
            self._evict()
        return newest, calls, None

    def _evict(self) -> None:
        """Evict what a long request has left over: see `zkv.keyspace.eviction`."""
        keyspace = self._engine.keyspace
        with contextlib.suppress(MemoryError):  # The request itself is done.
            while keyspace.owed and keyspace.evict():
                rest()

    def _run_in_lane(self, lane: WorkerLane, batch: Batch, place: int) -> int | None:
        with self._account.activity:
            rev = lane.run(batch, place, self._account.logs_requests)
        # What it read counts only if this server still leads.
        return rev if self._role.leads or lane.wrote else None

    def _run(self, batch: Batch, place: int) -> Call:
        body = batch[place]
        if isinstance(body, BadEnvelope):
            return self._caller.refuse(body.error(body.reason))[0]
        user, overload = batch.user(place), batch.overload(place)
        if overload is not None:
            return self._caller.refuse_overload(body, batch.arrived(place), user, overload)[0]
        return self._caller.run(body, batch.arrived(place), batch.lock_wait(place), user)


class Worker:
    """One worker thread, and its mailbox.

    Args:
        name: name of the thread.
        handler: answers the requests.
        account: the worker's account.
        open_mailbox: makes the mailbox; called in the thread.
        died: called, in the thread, if the worker ends unexpectedly.
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
        """True if its mailbox could be opened."""
        return self._mailbox is not None

    @property
    def unroutable(self) -> int:
        """Number of messages without a receiver."""
        return 0 if self._mailbox is None else self._mailbox.passed.unroutable

    @property
    def bytes_taken(self) -> int:
        """Bytes of the bodies that it has received."""
        return 0 if self._mailbox is None else self._mailbox.passed.bytes_in

    def start(self) -> None:
        """Start the thread, and wait until it can receive."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Make the worker end once it has answered all queued requests."""
        if self._mailbox is not None:
            self._mailbox.stop()

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def is_alive(self) -> bool:
        """Return True while the thread runs."""
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
            _log.critical("%s died; a new worker replaces it", self._thread.name, exc_info=True)
            self._died(self)
        finally:
            self._ready.set()


def serve(mailbox: Mailbox, handler: Handler, account: Account, name: str) -> None:
    """Answer batches until the mailbox returns none.

    Args:
        mailbox: receives the batches.
        handler: answers them.
        account: the thread's account.
        name: the thread's name, for the log.
    """
    failures = received = 0
    while True:
        answered = None
        try:
            answered = mailbox.turn(handler.answer)
            if answered is None:
                return
            try:
                mailbox.reply(answered.later, answered.left, answered.end)
            finally:  # Even if sending failed: parked replies, and others in the group, wait.
                handler.commit(answered, mailbox.is_idle)
        except ReplyFailedError as failure:
            account.deaths += 1
            cause = failure.__cause__
            _log.critical("a reply of %s failed with a bug; %s", name, CONTINUES, exc_info=cause)
        except BaseException as error:
            if answered is None and not mailbox.unanswered:
                failures = failures + 1 if mailbox.passed.bytes_in == received else 1
                received = mailbox.passed.bytes_in
                if isinstance(error, zmq.ZMQError) or failures == MOST_FAILURES:
                    raise
                time.sleep(PAUSE_SECONDS)
            account.deaths += 1
            if isinstance(error, MemoryError):
                _log.error("out of memory in %s; %s", name, CONTINUES)
            else:
                _log.critical("a batch of %s failed with a bug; %s", name, CONTINUES, exc_info=True)
            if mailbox.unanswered:
                with contextlib.suppress(MemoryError):  # No memory even for an error reply.
                    mailbox.give_up(partial(handler.give_up, error=error))
