"""From request body to reply body: decode, run the command, encode, count, log.

Invariant: every body gets a reply, whatever is in it and whatever a command raises. What a command
raises unexpectedly is a bug: it is logged with its traceback and answered `INTERNAL`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from concurrent.futures import Future
from typing import TYPE_CHECKING

from zkv.broker.mailbox import BadEnvelope
from zkv.commands import COMMANDS, Node
from zkv.errors import BadRequestError, InternalError, RequestError, ShuttingDownError
from zkv.log import RequestRecord
from zkv.protocol.codec import decode, encode_reply
from zkv.protocol.replies import Failure, Reply, failure
from zkv.protocol.requests import OP_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.broker.mailbox import Body
    from zkv.protocol.requests import AnyRequest

_log = logging.getLogger("zkv.broker")

UNREADABLE = "-"
"""Stands for the op of a request that could not be decoded."""


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
        self._write_log = write_log
        self._stopping = stopping
        self._records: list[RequestRecord] = []
        self.requests: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()

    def answer(self, bodies: list[bytes | BadEnvelope]) -> list[Body]:
        """A reply to each of ``bodies``, in their order; some may be pending."""
        replies = [self._answer(body) for body in bodies]
        self._flush_log()
        return replies

    def finish(self, call: Call, reply: Reply | Failure) -> bytes:
        """Encode ``reply``, count and log the call."""
        request = call.request
        if request is not None and request.id is not None:
            reply.id = request.id
        body = encode_reply(reply)
        op = UNREADABLE if request is None else OP_NAMES[type(request)]
        result = "ok" if isinstance(reply, Reply) else reply.code
        self.requests[op] += 1
        if result != "ok":
            self.failures[result] += 1
        if self._write_log is not None:
            took = time.perf_counter() - call.started
            subject = None if request is None else request.subject()
            self._records.append(
                RequestRecord(time.time(), op, subject, result, call.bytes_in, len(body), took)
            )
        return body

    def finish_later(self, call: Call, done: Future[Reply]) -> bytes:
        """`finish` for a reply that was pending; the batch that it came in is long gone."""
        error = done.exception()
        body = self.finish(call, done.result() if error is None else fail(error, call.request))
        self._flush_log()
        return body

    def _answer(self, body: bytes | BadEnvelope) -> Body:
        call = Call(time.perf_counter(), len(body))
        try:
            if isinstance(body, BadEnvelope):
                raise BadRequestError(body.reason)
            call.request = decode(body)
            if self._stopping():
                raise ShuttingDownError("the server is stopping")
            answer = COMMANDS[type(call.request)](self._node, call.request)
        except Exception as error:
            return self.finish(call, fail(error, call.request))
        if isinstance(answer, Future):
            return PendingReply(self, call, answer)
        return self.finish(call, answer)

    def _flush_log(self) -> None:
        if self._records and self._write_log is not None:
            self._write_log(self._records)
            self._records = []


class Call:
    """One request on its way through the service."""

    __slots__ = ("bytes_in", "request", "started")

    def __init__(self, started: float, bytes_in: int) -> None:
        self.started = started
        self.bytes_in = bytes_in
        self.request: AnyRequest | None = None  # None as long as it could not be decoded.


class PendingReply:
    """A reply that waits for another thread; encoded in the worker's own."""

    def __init__(self, service: Service, call: Call, answer: Future[Reply]) -> None:
        self._service = service
        self._call = call
        self._answer = answer

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called, in any thread, once the reply is there."""
        self._answer.add_done_callback(lambda _: callback())

    def body(self) -> bytes:
        """The encoded reply."""
        return self._service.finish_later(self._call, self._answer)


def fail(error: BaseException, request: AnyRequest | None) -> Failure:
    """The reply to a request that raised ``error``; logs what is a bug."""
    if not isinstance(error, RequestError):
        _log.error("a command failed: this is a bug in zkv", exc_info=error)
        error = InternalError("a bug in the server; its log says more", applied=None)
    return failure(error, None if request is None else request.id)
