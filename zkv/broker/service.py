"""From request bodies to reply bodies: decode, run the command, wait for the disk, encode, log.

Strategy: a batch is run request by request; every outcome names the newest revision that it tells
of. What is safe by then (see `zkv.engine`) is answered at once. The rest shares one commit group:
its replies are parked in the mailbox and leave when the group's revision is on disk, so that the
worker goes on meanwhile, and a batch, or many, cost one sync.

Invariants: every body gets a reply, whatever is in it and whatever a command raises; what a command
raises unexpectedly is a bug, logged with its traceback and answered `INTERNAL`. No reply tells of a
revision that is not safe.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter, defaultdict
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

from zkv.broker.frames import BadEnvelope
from zkv.commands import execute
from zkv.errors import (
    BadRequestError,
    DeadlineError,
    InternalError,
    ReadOnlyError,
    RequestError,
    ShuttingDownError,
)
from zkv.log import RequestRecord
from zkv.protocol.codec import decode, encode_repeat, encode_reply
from zkv.protocol.replies import CommitReply, Failure, Reply, failure
from zkv.protocol.requests import OP_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.broker.mailbox import Body
    from zkv.commands import Node
    from zkv.durability.committer import CommitGroup
    from zkv.engine import Safe
    from zkv.protocol.requests import AnyRequest

_log = logging.getLogger("zkv.broker")

UNREADABLE = "-"
"""Stands for the op of a request that could not be decoded."""

LATENCY_STEPS: Final = 64
"""Steps by which times are counted: less than 1 µs, 2 µs, 4 µs ... None is past the last one."""


class Call:
    """One request on its way through the service, and what came of it."""

    __slots__ = ("bytes_in", "lsn", "remembered", "request", "result", "rev", "started")

    def __init__(self, bytes_in: int) -> None:
        self.started = time.perf_counter()
        self.bytes_in = bytes_in
        self.request: AnyRequest | None = None  # None as long as it could not be decoded.
        self.result: Reply | Failure | Future[Reply] | None = None
        self.remembered = b""  # The packed reply to answer again, where there is no result.
        self.rev = 0  # The newest revision that the reply tells of.
        self.lsn = 0  # The log's number of what it committed.


class Service:
    """Answers requests in one worker thread; its counters are that thread's own.

    Args:
        node: what commands work on.
        write_log: takes request records; None where requests are not logged.
        stopping: true once new requests are to be refused.
    """

    def __init__(
        self,
        node: Node,
        write_log: Callable[[list[RequestRecord]], None] | None,
        stopping: Callable[[], bool],
    ) -> None:
        self._node = node
        self._engine = node.engine
        self._write_log = write_log
        self._stopping = stopping
        self._records: list[RequestRecord] = []
        self._group: CommitGroup = self._engine.new_group()
        self._refusal: ReadOnlyError | None = None
        self.latencies: defaultdict[str, list[int]] = defaultdict(lambda: [0] * LATENCY_STEPS)
        """Op -> how many requests took how long, in `LATENCY_STEPS`, from decoding to encoding."""
        self.failures: Counter[str] = Counter()

    def answer(self, bodies: list[bytes | BadEnvelope]) -> list[Body]:
        """A reply to each of ``bodies``, in their order; some may be pending.

        To be followed by `commit`, once the replies are in the mailbox.
        """
        self._group = self._engine.new_group()
        calls = [self._run(body) for body in bodies]
        self._refusal = self._secure(calls)
        # In this order: what is safe, and was not rolled back before, cannot be rolled back later.
        safe = self._engine.safe
        current = self._engine.is_current(self._group)
        replies = [self._reply(call, safe, current) for call in calls]
        self._flush_log()
        return replies

    def commit(self, is_idle: Callable[[], bool]) -> None:
        """See to it that what waits for the disk is completed.

        Args:
            is_idle: asked only if something waits: whether the worker has nothing else to do. It
                then waits for the disk itself, which saves the way through the committer's thread
                and back.
        """
        if self._group.lsn is None:
            return
        if self._refusal is not None:
            self._group.complete(self._refusal)
        elif is_idle():
            self._engine.settle(self._group)
        else:
            self._engine.submit(self._group)

    def finish(self, call: Call, reply: Reply | Failure | None) -> bytes:
        """Encode ``reply``, or the one that is remembered, count and log the call."""
        request = call.request
        if reply is None:
            request_id = None if request is None else request.id
            body = encode_repeat(call.remembered, request_id, call.rev <= self._engine.durable_rev)
        else:
            if request is not None and request.id is not None:
                reply.id = request.id
            if isinstance(reply, CommitReply):
                reply.tell_durable(self._engine.durable_rev)
            body = encode_reply(reply)
        op = UNREADABLE if request is None else OP_NAMES[type(request)]
        took = time.perf_counter() - call.started
        # How many bits the µs take is the step: this runs for every request, and has to be cheap.
        self.latencies[op][int(took * 1e6).bit_length()] += 1
        result = "ok" if reply is not None else "replayed"
        if isinstance(reply, Failure):
            result = reply.code
            self.failures[result] += 1
        if self._write_log is not None:
            subject = None if request is None else request.subject()
            self._records.append(
                RequestRecord(time.time(), op, subject, result, call.bytes_in, len(body), took)
            )
        return body

    def finish_later(self, call: Call, reply: Reply | Failure | None) -> bytes:
        """`finish` for a reply that was pending; the batch that it came in is long gone."""
        body = self.finish(call, reply)
        self._flush_log()
        return body

    def run_again(self, call: Call, refusal: ReadOnlyError) -> Reply | Failure:
        """What to answer after commits that ``call`` made or saw have been rolled back."""
        if call.request is None or call.request.writes:
            return fail(refusal, call.request)
        self._execute(call, call.request)
        if call.rev > self._engine.safe.rev or isinstance(call.result, Future | None):
            return fail(refusal, call.request)
        return call.result

    def _run(self, body: bytes | BadEnvelope) -> Call:
        call = Call(len(body))
        try:
            if isinstance(body, BadEnvelope):
                raise BadRequestError(body.reason)
            call.request = request = decode(body)
            if self._stopping():
                raise ShuttingDownError("the server is stopping")
            if request.deadline is not None and time.time() * 1000 > request.deadline:
                raise DeadlineError("the deadline had passed when the request would have run")
            if request.durable and request.writes and not self._engine.lasting:
                raise BadRequestError("field `durable`: this server keeps its data in memory alone")
        except Exception as error:
            call.result = fail(error, call.request)
        else:
            self._execute(call, request)
        return call

    def _execute(self, call: Call, request: AnyRequest) -> None:
        try:
            answer = execute(self._node, request)
        except Exception as error:
            call.result = fail(error, request)
            call.rev = error.seen_rev if isinstance(error, RequestError) else 0
            return
        if isinstance(answer, Future):
            call.result = answer
        else:
            call.result = answer.reply
            call.rev = answer.rev
            call.lsn = answer.lsn
            call.remembered = answer.remembered

    def _secure(self, calls: list[Call]) -> ReadOnlyError | None:
        """Make the batch safe as far as that takes no waiting for the disk."""
        safe = self._engine.safe
        newest = max([call.lsn for call in calls]), max([call.rev for call in calls])
        if newest[0] <= safe.lsn and newest[1] <= safe.rev:
            return None
        try:
            self._engine.secure()
        except ReadOnlyError as error:
            return error
        return None

    def _reply(self, call: Call, safe: Safe, current: bool) -> Body:
        result = call.result
        if isinstance(result, Future):
            return PendingReply(self, call, result)
        is_safe = current and call.rev <= safe.rev and call.lsn <= safe.lsn
        if is_safe and not self._must_sync(call):
            return self.finish(call, result)
        self._group.lsn = self._engine.last_lsn
        return PendingCommit(self, call, result, self._group)

    def _must_sync(self, call: Call) -> bool:
        """Whether a write must be on disk first because its client asked for that."""
        request = call.request
        if request is None or not (request.durable and request.writes):
            return False
        return call.rev > self._engine.durable_rev

    def _flush_log(self) -> None:
        if self._records and self._write_log is not None:
            self._write_log(self._records)
            self._records = []


class PendingReply:
    """A reply that another thread makes; encoded in the worker's own."""

    def __init__(self, service: Service, call: Call, reply: Future[Reply]) -> None:
        self._service = service
        self._call = call
        self._reply = reply

    def notify(self, deliver: Callable[[], None], wake: Callable[[], None]) -> None:
        """Have ``deliver`` and ``wake`` called once the reply is there."""

        def settled(_: Future[Reply]) -> None:
            deliver()
            wake()

        self._reply.add_done_callback(settled)

    def body(self) -> bytes:
        """The encoded reply. To be called once."""
        future = self._reply
        del self._reply  # It refers back to what delivers this, and so does the call's result:
        self._call.result = None  # no cycle is to stay.
        error = future.exception()
        reply = future.result() if error is None else fail(error, self._call.request)
        return self._service.finish_later(self._call, reply)


class PendingCommit:
    """A reply that may leave once its revision is on disk."""

    __slots__ = ("_call", "_group", "_reply", "_service")

    def __init__(
        self, service: Service, call: Call, reply: Reply | Failure | None, group: CommitGroup
    ) -> None:
        self._service = service
        self._call = call
        self._reply = reply
        self._group = group

    def notify(self, deliver: Callable[[], None], wake: Callable[[], None]) -> None:
        """Have ``deliver`` and ``wake`` called once the group is completed."""
        self._group.on_completion(deliver, wake)

    def body(self) -> bytes:
        """The encoded reply: what was done, or that it could not be made safe."""
        reply = self._reply
        if self._group.error is not None:
            reply = self._service.run_again(self._call, self._group.error)
        return self._service.finish_later(self._call, reply)


def give_up(body: bytes | BadEnvelope, error: BaseException) -> bytes:
    """The reply to a request whose service died of ``error``, before or after it ran."""
    request: AnyRequest | None = None
    if not isinstance(body, BadEnvelope):
        with contextlib.suppress(RequestError):
            request = decode(body)
    return encode_reply(fail(error, request))


def fail(error: BaseException, request: AnyRequest | None) -> Failure:
    """The reply to a request that raised ``error``; logs what is a bug."""
    if not isinstance(error, RequestError):
        _log.error("a command failed: this is a bug in zkv", exc_info=error)
        error = InternalError("a bug in the server; its log says more", applied=None)
    return failure(error, None if request is None else request.id)
