"""One request: decode it, check that it may run, run its command, encode the reply.

All requests that the lane leaves take this path, which also specifies how the lane must behave. A
`Call` holds one request and its result; a `Caller` runs calls for one thread.

Invariant: every body gets a reply, whatever it holds and whatever a command raises. An unexpected
exception is a bug: it is logged with its traceback, and answered `INTERNAL`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

from zkv.durability.committer import A_BUG
from zkv.errors import (
    BadRequest,
    Deadline,
    Denied,
    Internal,
    OutOfMemory,
    Overload,
    ReadOnly,
    RequestError,
    ShuttingDown,
)
from zkv.keyspace import memory
from zkv.log import AUDIT
from zkv.protocol.codec import add_field, decode, encode_repeat, encode_reply
from zkv.protocol.replies import CommitReply, Failure, Reply, failure
from zkv.protocol.requests import OP_NAMES, Delete, End, MDelete, Txn, needs_leader
from zkv.requests import permission
from zkv.requests.account import UNREADABLE
from zkv.requests.commands import execute
from zkv.requests.slow_log import Marks, told
from zkv.users.rights import SCOPE_END

if TYPE_CHECKING:
    from zkv.protocol.requests import AnyRequest
    from zkv.requests.account import Account
    from zkv.requests.commands import Node
    from zkv.users.rights import User

_log = logging.getLogger("zkv.requests")
_audit = logging.getLogger(AUDIT)


class Call:
    """One request and its result.

    Args:
        bytes_in: size of its body.
        arrived: when the front took it up, by `time.perf_counter`.
        started: when the thread took it up, likewise.
        lock_wait: for how many seconds the front has waited for the lock in between.
        user: whose it is; None = everybody may do everything.
    """

    __slots__ = (
        "arrived", "batch", "bytes_in", "executed", "lock_wait", "lsn", "remembered", "request",
        "result", "rev", "size", "started", "user", "waited",
    )  # fmt: skip

    def __init__(
        self,
        bytes_in: int,
        arrived: float,
        started: float,
        lock_wait: float = 0.0,
        user: User | None = None,
    ) -> None:
        self.user = user
        self.arrived = arrived
        self.lock_wait = lock_wait
        self.started = self.executed = started
        self.waited = 0.0  # Seconds for which it waited for the lock.
        self.batch = 1  # Number of requests that ran together.
        self.bytes_in = bytes_in
        self.request: AnyRequest | None = None  # None if it cannot be decoded.
        self.result: Reply | Failure | Future[Reply] | None = None  # None for a repeat.
        self.remembered = b""  # The packed reply to the original request, for a repeat.
        self.rev = 0  # The newest revision that the reply reveals.
        self.lsn = 0  # The log number of its commit; 0 = none.
        self.size = 0  # Bytes of what may be large in the reply.

    def pass_over(self, resumed: float) -> None:
        """Leave out of its times that it was parked until ``resumed``: it wanted to wait."""
        parked = max(0.0, resumed - self.executed)
        self.arrived += parked
        self.started += parked
        self.executed += parked


class Caller:
    """Runs requests one by one, in one thread.

    Args:
        node: the commands' environment.
        account: the thread's account.
    """

    def __init__(self, node: Node, account: Account) -> None:
        self._node = node
        self.engine = node.engine
        self._account = account
        self._stopping = node.stopping
        self._lock = node.engine.keyspace.lock

    def run(self, body: bytes, arrived: float, lock_wait: float, user: User | None) -> Call:
        """Run a request.

        Args:
            body: its body.
            arrived: when the front took it up, by `time.perf_counter`.
            lock_wait: for how many seconds the front then waited for the lock.
            user: whose it is; None = everybody may do everything.
        """
        call = Call(len(body), arrived, time.perf_counter(), lock_wait, user)
        waited = self._lock.waited
        self._account.activity.since = call.started
        try:
            memory.require(len(body))
            call.request = request = decode(body)
            self._require_readiness(request)
            self._require_permission(request, user)
        except Exception as error:
            call.result = fail(error, call.request)
        else:
            self._execute(call, request)
        call.executed = time.perf_counter()
        call.waited = self._lock.waited - waited
        self._account.activity.end(call.executed)
        return call

    def refuse(self, error: RequestError) -> tuple[Call, Failure]:
        """Return the call, and its result, for a message without a body."""
        now = time.perf_counter()
        call = Call(0, now, now)
        call.result = refusal = failure(error, None)
        return call, refusal

    def refuse_overload(
        self, body: bytes, arrived: float, user: User | None, overload: Overload
    ) -> tuple[Call, Failure]:
        """Return the call, and its result, for a request that must not run now.

        A malformed one is told so instead.
        """
        call = Call(len(body), arrived, time.perf_counter(), user=user)
        try:
            call.request = decode(body)
        except Exception as error:
            call.result = refusal = fail(error, None)
        else:
            call.result = refusal = fail(overload.error(), call.request)
        return call, refusal

    def give_up(
        self,
        asked: bytes | AnyRequest | None,
        error: BaseException,
        started: float | None = None,
    ) -> bytes:
        """Count, and encode, the reply to a request during which ``error`` was raised.

        The request may or may not have run.

        Args:
            asked: the request, or its body; None if it has none.
            error: an exception that no command should raise.
            started: when the request was taken up, by `time.perf_counter`; None = not known.
        """
        request = _request_in(asked) if isinstance(asked, bytes) else asked
        size = len(asked) if isinstance(asked, bytes) else 0
        started = started or time.perf_counter()
        call = Call(size, started, started)
        call.request = request
        return self.finish(call, fail(error, request))

    def run_again(self, call: Call, refusal: ReadOnly) -> Reply | Failure:
        """Return the reply to a call after commits that it made or saw were rolled back.

        A write is refused. A read runs again, and is refused if it sees unsafe commits again.
        """
        if call.request is None or call.request.writes:
            return fail(refusal, call.request)
        epoch = self.engine.epoch
        self._execute(call, call.request)
        if not self._node.role.leads and needs_leader(call.request):
            return fail(self._node.role.error("knows all of them"), call.request)
        safe = call.rev <= self.engine.safe_rev and self.engine.epoch == epoch
        if self.engine.log.confirms_reads and needs_leader(call.request):
            safe = False
        if not safe or isinstance(call.result, Future | None):
            return fail(refusal, call.request)
        return call.result

    def run_instead(
        self, body: bytes, started: float, refusal: ReadOnly, user: User | None
    ) -> bytes:
        """Return the reply to a request that the lane answered, after a rollback."""
        call = Call(len(body), started, started, user=user)
        call.request = decode(body)
        return self.finish(call, self.run_again(call, refusal))

    def must_sync(self, call: Call) -> bool:
        """True if the client wants its write on disk before the reply, and it is not there yet."""
        request = call.request
        if request is None or not (request.durable and request.writes):
            return False
        return call.rev > self.engine.durable_rev

    def finish(self, call: Call, reply: Reply | Failure | None) -> bytes:
        """Encode ``reply``, or the remembered one if it is None, and count the call."""
        request, result = call.request, "ok"
        op = _op_of(request)
        if reply is None:
            request_id = None if request is None else request.id
            body = encode_repeat(call.remembered, request_id, call.rev <= self.engine.durable_rev)
            result = "replayed"
        else:
            if request is not None and request.id is not None:
                reply.id = request.id
            if isinstance(reply, CommitReply):
                reply.set_durable(self.engine.durable_rev)
            body = encode_reply(reply)
            if isinstance(reply, Failure):
                result = reply.code
        finished = time.perf_counter()
        took = finished - call.arrived
        if request is not None and (request.timing or took >= self._account.slow.threshold):
            body = self._explain(call, request, body, finished)
        subject = trace = None
        if request is not None and self._account.logs_requests:
            subject, trace = request.subject(), request.trace
        took = finished - call.started
        if request is not None and call.user is not None and result == "ok":
            _audit_if_grave(request, call.user)
        user = None if call.user is None else call.user.name
        self._account.add_call(op, subject, result, call.bytes_in, len(body), took, trace, user)
        return body

    def _explain(self, call: Call, request: AnyRequest, body: bytes, finished: float) -> bytes:
        """Tell the slow log, and the client if it asks for it, where the time went."""
        marks = Marks(call.arrived, call.lock_wait, call.started, call.waited, call.executed)
        slow = self._account.slow
        if finished - call.arrived >= slow.threshold:
            own = self._account.activity
            with contextlib.suppress(MemoryError):  # The reply matters more.
                of = told(request, call.bytes_in)
                slow.add(of, marks, finished, call.batch, own, call.user)
        return add_field(body, marks.timing(finished).packed()) if request.timing else body

    def flush(self) -> None:
        """Pass the records to the request log."""
        self._account.flush()

    def _require_readiness(self, request: AnyRequest) -> None:
        if self._stopping.begun:
            raise ShuttingDown("the server is stopping")
        if request.deadline is not None and time.time() * 1000 > request.deadline:
            raise Deadline("the deadline had passed when the request would have run")
        self._require_lead(request)
        if request.durable and request.writes and not self.engine.lasting:
            raise BadRequest("field `durable`: this server keeps its data in memory alone")

    def _require_lead(self, request: AnyRequest) -> None:
        if needs_leader(request):
            self._node.role.require_lead("takes writes" if request.writes else "knows all of them")

    def _require_permission(self, request: AnyRequest, user: User | None) -> None:
        if user is not None and request.session is not None and SCOPE_END in request.session:
            raise BadRequest("field `session`: U+0000 is not allowed where there are users")
        try:
            permission.require(user, request)
        except Denied as error:
            if self._has_run(request, user):
                error.applied = None  # Before the right was taken away, perhaps.
            raise

    def _has_run(self, request: AnyRequest, user: User | None) -> bool:
        """Return True if the reply to a request of this session and number is remembered."""
        if request.session is None or request.seq is None or user is None:
            return False
        keyspace = self.engine.keyspace
        with keyspace.lock:
            return keyspace.sessions.knows(user.session(request.session), request.seq)

    def _execute(self, call: Call, request: AnyRequest) -> None:
        try:
            answer = execute(self._node, request, call.user)
            if not request.writes:  # What it read counts only if this server still leads.
                self._require_lead(request)
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
            call.size = answer.size + len(answer.remembered)


def _request_in(body: bytes) -> AnyRequest | None:
    """Decode ``body`` if that is still possible, after something has failed."""
    with contextlib.suppress(RequestError, MemoryError):
        return decode(body)
    return None


def _op_of(request: AnyRequest | None) -> str:
    return UNREADABLE if request is None else OP_NAMES[type(request)]


def _audit_if_grave(request: AnyRequest, user: User) -> None:
    """Log who ended the server, or removed many keys; no setting turns this off."""
    removed: list[str] = []
    if isinstance(request, MDelete):
        removed = request.keys
    elif isinstance(request, Txn):
        removed = [each.key for each in request.ops if isinstance(each, Delete)]
    if isinstance(request, End):
        _audit.warning("audit: END by user %r", user.name)
    elif isinstance(request, MDelete) or len(removed) > 1:
        first = repr(removed[0]) if removed else "nothing"
        op = OP_NAMES[type(request)]
        _audit.info("audit: %s removed %d keys, %s first, by user %r",
                    op, len(removed), first, user.name)  # fmt: skip


class _MemoryLog:
    """Says in the log that memory has run out, once a second at most. Any thread."""

    def __init__(self) -> None:
        self._next = 0.0

    def tell(self, op: str) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 1.0
            _log.error("out of memory for %s", op)


_memory_log = _MemoryLog()


def fail(error: BaseException, request: AnyRequest | None) -> Failure:
    """Return the reply to a request that raised ``error``; log it if it is no usual failure."""
    if isinstance(error, MemoryError):
        error = OutOfMemory(memory.NO_MEMORY, applied=None)
    if isinstance(error, OutOfMemory):
        _memory_log.tell(_op_of(request))
    elif not isinstance(error, RequestError):
        _log.error("a command failed: this is a bug in zkv", exc_info=error)
        error = Internal(A_BUG, applied=None)
    return failure(error, None if request is None else request.id)
