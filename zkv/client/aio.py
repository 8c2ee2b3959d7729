"""The client for asyncio: many requests in flight over one DEALER socket.

Strategy: a request takes one of a limited number of places and is sent at once; a future waits for
the reply with its id. A cancelled task removes its future, and the client drops replies for which
no future waits. So a cancellation loses only that reply. The receiver reads only the id of a reply;
the task that sent the request decodes the rest, so that an error of the codec is raised there.

If a reply does not arrive in time, the client no longer trusts its link (the socket): it sends the
request again over a new link, and all later requests, too. Requests that wait at the old link may
still get their replies there; the link is closed when no request waits at it. If the connection of
a link fails or is lost, all requests that wait at it are sent again at once.

ZeroMQ signals by a file descriptor that *something* has happened since the last look at the socket,
and sending counts as a look. So the client looks at the socket again after it has sent something.

A client belongs to the event loop in which it was first used. In a forked child it starts again, in
another loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from os import PathLike
from sys import modules
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import zmq

from zkv import checks
from zkv.client.async_namespace import NO_FEATURES, AsyncClientOps
from zkv.client.codec import PLAIN, Codec
from zkv.client.connection import (
    CLOSED,
    Connection,
    SocketContext,
    check_context,
    refuse_to_pickle,
)
from zkv.client.curve import KEY_FILE, SERVER_KEY, CurveKeys
from zkv.client.endpoints import ENVIRONMENT, Endpoints
from zkv.client.errors import (
    BadReplyError,
    ClientError,
    ClosedError,
    MisuseError,
    RefusedError,
)
from zkv.client.messages import (
    DATA_READS,
    READ_OPS,
    WRITE_OPS,
    check_answer,
    lost,
)
from zkv.client.operations import Operation, Reply
from zkv.client.process import leave_alone, tell_of_forks
from zkv.client.quick import id_of, pack_best, unpack_best
from zkv.client.retry import (
    DEFAULT_POLICY,
    NO_INFO,
    REASON_SECONDS,
    Attempts,
    RetryPolicy,
    Trouble,
)
from zkv.client.session import WriteSessions
from zkv.client.tasks import find_trouble
from zkv.client.tracing import OPENTELEMETRY, begin

if TYPE_CHECKING:
    from zkv.checks import ReadFrom, Seconds


T = TypeVar("T")

MOST_IN_FLIGHT: Final = 128
"""Requests of one client: two batches of a worker, so that one waits while the other runs."""

DELIMITER: Final = b""
NOBLOCK: Final = int(zmq.NOBLOCK)
MORE: Final = int(zmq.SNDMORE | zmq.NOBLOCK)


class AsyncClient(AsyncClientOps):
    """A client for the tasks of one event loop.

    The server may still be down: the first request connects, and waits for the server up to the
    timeout. Use the client as an async context manager, or call `aclose` at the end. Any number of
    tasks may use it at once; at most 128 requests are in flight, and the others wait.

    Args:
        endpoint: as for `Client`.
        timeout: as for `Client`; includes the wait for a place among the 128.
        codec: adds types of values to those of msgpack.
        durable: True = the server answers each write only once it is on disk, whatever its fsync
            policy.
        retry: when requests are repeated within the timeout.
        context: the ZeroMQ context of the sockets, for ``inproc://`` endpoints; None = the
            process's own.
        server_key: as for `Client`.
        key_file: as for `Client`.
        read: as for `Client`.

    Raises:
        ValueError: an endpoint or a key is malformed, the key file cannot be used, or the timeout
            is out of range.
        TypeError: an argument has the wrong type.
    """

    def __init__(  # noqa: PLR0913  all have defaults
        self,
        endpoint: str | Sequence[str] = ENVIRONMENT,
        timeout: Seconds = 5.0,
        *,
        codec: Codec = PLAIN,
        durable: bool = False,
        retry: RetryPolicy = DEFAULT_POLICY,
        context: SocketContext | None = None,
        server_key: str | Sequence[str] = SERVER_KEY,
        key_file: str | PathLike[str] = KEY_FILE,
        read: ReadFrom = "leader",
    ) -> None:
        self.timeout = checks.timeout(timeout)
        self._endpoints = Endpoints(endpoint, CurveKeys(server_key, key_file))
        self._codec = checks.instance("codec", codec, Codec)
        self._durable = {"durable": True} if checks.flag("durable", durable) else {}
        self._policy = checks.instance("retry", retry, RetryPolicy)
        self._context = check_context(context)
        self._stale = checks.read_from(read) == "stale"
        self._ids = itertools.count(1)
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sessions: WriteSessions
        self._places: asyncio.Semaphore
        self._asking: asyncio.Future[None] | None = None  # For all tasks that want to know.
        self._link: _Link | None = None
        self._links: set[_Link] = set()
        self._connect().close()  # An endpoint that libzmq refuses is reported now.
        tell_of_forks(self)

    def _after_fork(self) -> None:
        """Start again, in an event loop that is not the parent's."""
        leave_alone((self._loop, self._link, self._links, self._asking))
        if self._loop is not None:
            _inherited_loops.add(self._loop)
        self._context = self._loop = self._link = self._asking = None
        self._features = None, NO_FEATURES
        self._links = set()

    def __repr__(self) -> str:
        return f"<AsyncClient {self.endpoint}{' closed' if self._closed else ''}>"

    __reduce__ = refuse_to_pickle

    @property
    def timeout(self) -> float:
        """Seconds for each request, including all its repeats. You may set it."""
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: Seconds) -> None:
        self._timeout = checks.timeout(seconds)

    @property
    def endpoint(self) -> str:
        """The endpoint in use."""
        return self._endpoints.current.endpoint

    async def aclose(self) -> None:
        """Close all sockets; requests in flight raise a `ClosedError`."""
        self._closed = True
        self._link = None
        while self._links:
            self._links.pop().close()

    async def _run(
        self,
        operation: Operation[T],
        timeout: Seconds | None = None,  # noqa: ASYNC109  of the request
    ) -> T:
        op = operation.op
        wait = self._timeout if timeout is None else checks.timeout(timeout)
        attempts = Attempts(self._policy, op, op in READ_OPS or op in WRITE_OPS, wait)
        fields = operation.fields
        if (self._stale or "min_rev" in fields) and op in DATA_READS:
            fields = await self._for_anybody(fields, attempts)
        reply = await self._ask(operation, fields, self._codec, attempts)
        return operation.result(reply)

    async def _ask(
        self, operation: Operation[Any], fields: dict[str, Any], codec: Codec, attempts: Attempts
    ) -> Reply:
        """Take a place, and send a request until the server answers it or the time is up."""
        if OPENTELEMETRY in modules and not attempts.is_traced:
            span = begin(operation.op, fields, self._endpoints)
            if span is not None:
                return await self._ask_traced(span, operation, fields, codec, attempts)
        self._bind()
        await self._take_place(attempts)
        try:
            if not (attempts.repeatable and operation.op in WRITE_OPS):
                return await self._repeat(operation, fields, codec, attempts)
            session, seq = self._sessions.take()
            try:
                fields = dict(fields, session=session.name, seq=seq, **self._durable)
                return await self._repeat(operation, fields, codec, attempts)
            finally:
                self._sessions.give_back(session, seq)
        finally:
            self._places.release()

    async def _takes(self, field: str, attempts: Attempts) -> bool:
        self._bind()
        if self._features[0] is not self._endpoints.era:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.ensure_future(self._ask_for_features(attempts))
            await asyncio.wait([self._asking], timeout=max(0.0, attempts.left()))
        return field in self._features[1]

    async def _repeat(
        self, operation: Operation[Any], fields: dict[str, Any], codec: Codec, attempts: Attempts
    ) -> Reply:
        request_id = next(self._ids)
        pack = operation.pack or pack_best
        body = pack(operation.op, request_id, fields, codec)
        while True:
            reply = await self._attempt(operation, request_id, body, codec, attempts)
            if reply is None:
                continue
            if reply["ok"] or operation.tolerates(reply):
                return reply
            try:
                pause = attempts.refused(reply, self._endpoints.number)
            except RefusedError as error:
                plain = self._without_refused(fields, attempts, error)
                if plain is None:
                    await self._name_old_server(operation.op, error)
                    raise
                fields = plain
                body = pack(operation.op, request_id, fields, codec)
            else:
                await asyncio.sleep(pause)

    async def _attempt(
        self,
        operation: Operation[Any],
        request_id: int,
        body: bytes,
        codec: Codec,
        attempts: Attempts,
    ) -> Reply | None:
        """Send a request once. Returns None if there is no reply and it may be sent again."""
        op = operation.op
        attempts.check_process()
        link = self._usable(attempts)
        if not link.ready and not await self._greet(link, attempts):
            self._retire(link, attempts.stays)
            await self._no_connection(link, attempts)
            return None
        future = link.send(op, request_id, body)
        if future is None:  # Nothing has been sent: another link may take it.
            self._retire(link, attempts.stays)
            if attempts.left() <= 0:
                raise attempts.give_up(link.endpoint)
            await asyncio.sleep(0)
            return None
        received = await self._receive(link, request_id, future, attempts.patience())
        if received is not None:
            reply = unpack_best(op, received, codec)
            check_answer(op, request_id, reply)
            if not reply["ok"] and reply["code"] == "NOT_LEADER":
                self._go_on(link, reply)
            return reply
        self._retire(link, attempts.stays)
        if link.was_connected():
            attempts.no_reply(link.endpoint, connected=True)
            await asyncio.sleep(attempts.pause() if link.over else 0)
        else:
            await self._no_connection(link, attempts)
        return None

    async def _receive(
        self, link: _Link, request_id: int, future: asyncio.Future[bytes | None], seconds: float
    ) -> bytes | None:
        """Wait for the body of a reply; None = there is none in time.

        Raises:
            ClosedError: the client was closed.
            BadReplyError: the reply cannot be read.
        """
        timer = future.get_loop().call_later(seconds, _resolve, future, None)
        try:
            return await future
        finally:
            timer.cancel()
            del link.waiting[request_id]
            if link is not self._link and not link.waiting:
                self._close(link)

    # --- Which server

    async def _greet(self, link: _Link, attempts: Attempts) -> bool:
        """Find out if the client may use the server, for all tasks that want to.

        Returns False if there is no connection, or the server may not be used.
        """
        if link.connection.greeted and attempts.anywhere:
            return True
        if link.greeting is None or link.greeting.done():
            link.greeting = asyncio.ensure_future(self._ask_who(link, attempts.time_to_connect()))
        greeting = link.greeting
        await asyncio.wait([greeting], timeout=max(0.0, attempts.left()))
        reply = greeting.result() if greeting.done() else None
        if isinstance(reply, ClientError):
            raise reply
        if reply is not None and not reply["ok"]:
            await asyncio.sleep(attempts.refused(reply, self._endpoints.number))
        return reply is not None and link.connection.trouble is None and not link.over

    async def _ask_who(self, link: _Link, seconds: float) -> Reply | ClientError | None:
        """Ask INFO over one connection; None = there is no reply in time."""
        request_id = next(self._ids)
        body = pack_best("INFO", request_id, {}, PLAIN)
        connection = link.connection
        try:
            future = link.send("INFO", request_id, body)
            if future is None:
                return None
            received = await self._receive(link, request_id, future, seconds)
            if received is None:
                connection.trouble = NO_INFO if link.was_connected() and not link.over else None
                return None
            reply = unpack_best("INFO", received, PLAIN)
            check_answer("INFO", request_id, reply)
        except ClientError as error:
            return error
        if reply["ok"]:
            self._introduced(connection, reply)
        else:
            connection.trouble = Trouble(f"{reply['code']}: {reply['message']}")
        return reply

    def _go_on(self, link: _Link, reply: Reply) -> None:
        """Go on from a server that does not lead."""
        if self._endpoints.refer(link.address, reply.get("leader")) and link is self._link:
            self._retire(link)

    async def _no_connection(self, link: _Link, attempts: Attempts) -> None:
        """Wait until the next attempt is due. Raises UnavailableError to give up."""
        endpoint, endpoints = link.endpoint, self._endpoints
        if link.connection.ends_round or attempts.left() <= 0:
            trouble = link.connection.trouble
            if attempts.asks_why(endpoint, link.failure) and trouble is None:
                trouble = await link.trouble(attempts.left())
            pause = attempts.no_connection(endpoint, trouble, endpoints.number, endpoints.met)
            await asyncio.sleep(pause)

    # --- Places and links

    def _bind(self) -> None:
        """Tie the client to the running loop. Raises MisuseError if it belongs to another one."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            if loop in _inherited_loops:
                text = "this event loop belongs to the parent process: create one in each process"
                raise MisuseError(text, applied=False)
            self._loop = loop
            self._sessions = WriteSessions()
            self._places = asyncio.Semaphore(MOST_IN_FLIGHT)
        elif self._loop is not loop:
            text = "this AsyncClient belongs to another event loop: create one in each loop"
            raise MisuseError(text, applied=False)

    async def _take_place(self, attempts: Attempts) -> None:
        """Wait for a place. Raises NoReplyError if that takes too long."""
        if not self._places.locked():
            await self._places.acquire()  # Does not wait.
            return
        try:
            async with asyncio.timeout(attempts.left()):
                await self._places.acquire()
        except TimeoutError:
            raise attempts.give_up(self.endpoint) from None

    def _usable(self, attempts: Attempts) -> _Link:
        """Return the current link, or a new one."""
        if self._closed:
            raise ClosedError(CLOSED, attempts.applied())
        address, link = self._endpoints.current, self._link
        if not attempts.repeatable:  # Such a request cannot be sent again.
            attempts.goes_to(address.endpoint)
            if link is not None:
                link.look()
        if link is not None:
            if link.address == address and not link.over:
                return link
            self._retire(link)
        connection = self._connect(attempts.applied())
        connection.ready = self._endpoints.number == 1
        self._link = _Link(connection, asyncio.get_running_loop(), self._endpoints, attempts)
        self._links.add(self._link)
        return self._link

    def _retire(self, link: _Link, stays: bool = False) -> None:
        """Send nothing more over ``link``; close it once no request waits at it."""
        if not link.was_connected() or not link.over:
            self._endpoints.failed(link.address, stays)
        if link is self._link:
            self._link = None
            self._endpoints.lost()
        if not link.waiting:
            self._close(link)

    def _close(self, link: _Link) -> None:
        self._links.discard(link)
        link.close()

    def _connect(self, applied: bool | None = False) -> Connection:
        context = self._context or zmq.Context.instance()
        try:
            return Connection(context, zmq.DEALER, self._endpoints.current, self._endpoints.keys)
        except ClosedError as error:
            raise ClosedError(error.message, applied) from error


_inherited_loops: Final[set[asyncio.AbstractEventLoop]] = set()
"""Event loops of the parent process. Parent and child would share the selector of such a loop."""


class _Waiting(NamedTuple):
    """The future of a request that waits for its reply. The result is the reply's packed body."""

    future: asyncio.Future[bytes | None]
    op: str


class _Link:
    """A DEALER socket, and the requests that wait for replies over it.

    Args:
        connection: the socket.
        loop: the event loop, which signals that there is something to receive.
        endpoints: of the client; the link records there that it has connected.
        attempts: of the request for which the link is made; they limit the wait for a connection.
    """

    def __init__(
        self,
        connection: Connection,
        loop: asyncio.AbstractEventLoop,
        endpoints: Endpoints,
        attempts: Attempts,
    ) -> None:
        self.address = connection.address
        self.endpoint = connection.endpoint
        self.waiting: dict[int, _Waiting] = {}
        self.connection = connection
        self.greeting: asyncio.Future[Reply | ClientError | None] | None = None
        self._socket = connection.socket
        self._loop = loop
        self._endpoints = endpoints
        self._looking = False
        self._trouble: asyncio.Future[Trouble | None] | None = None
        self._descriptors = [int(each.getsockopt(zmq.FD)) for each in connection.sockets]
        for descriptor, act in zip(self._descriptors, (self._receive, self.look), strict=False):
            loop.add_reader(descriptor, act)
        self._timer = loop.call_later(attempts.time_to_connect(), self._too_late)
        loop.call_soon(self.look)

    @property
    def ready(self) -> bool:
        """True once any request may be sent: the client may use the server for it."""
        return self.connection.ready

    @property
    def failure(self) -> int:
        """How the connection failed, as `Connection.failure`."""
        return self.connection.failure

    @property
    def over(self) -> bool:
        """True if the connection has failed or was lost."""
        return self.connection.over

    def send(self, op: str, request_id: int, body: bytes) -> asyncio.Future[bytes | None] | None:
        """Send a body. Returns the future of the reply's; None = nothing can be sent any more.

        The connection has ended, or it is full of requests whose tasks were cancelled.
        """
        if self.over:
            return None
        try:
            self.connection.send(DELIMITER, MORE)
            self.connection.send(body, NOBLOCK)
        except zmq.Again:
            return None
        except zmq.ZMQError:  # Its context was terminated.
            self.connection.over = True
            return None
        waiting = _Waiting(self._loop.create_future(), op)
        self.waiting[request_id] = waiting
        if not self._looking:
            self._looking = True
            self._loop.call_soon(self._look)
        return waiting.future

    def was_connected(self) -> bool:
        """Return True if there may have been a connection that received what was sent."""
        return self.connection.connected

    async def trouble(self, seconds: float) -> Trouble | None:
        """Find out why there is no connection; all callers share one answer."""
        if self._trouble is None:
            seconds = max(0.0, min(seconds, REASON_SECONDS))
            self._trouble = find_trouble(
                self.endpoint, seconds, self._endpoints.keys, self.failure, for_feed=False
            )
        return await asyncio.shield(self._trouble)

    def close(self) -> None:
        """Close the socket; requests that wait get a `ClosedError`. May be called again."""
        if not self._descriptors:
            return
        self.look()  # It may have connected meanwhile, which decides `applied` below.
        while self._descriptors:
            self._loop.remove_reader(self._descriptors.pop())
        self._timer.cancel()
        self.connection.close()
        for waiting in self.waiting.values():
            applied = lost(waiting.op) if self.connection.connected else False
            _fail(waiting.future, ClosedError("the client was closed", applied))

    def look(self) -> None:
        """Update the state of the connection."""
        if not self._descriptors or self.over:
            return
        try:
            over = self.connection.look()
        except zmq.ZMQError:  # Its context was terminated.
            over = self.connection.over = True
        self._endpoints.met |= self.was_connected()
        if over:
            self._endpoints.lost()
            self._receive()  # Replies that arrived before the end.
            self._let_go()

    def _too_late(self) -> None:
        """End the wait for a connection if there is none by now."""
        self.look()
        if not self.was_connected():
            self._let_go()

    def _let_go(self) -> None:
        for waiting in self.waiting.values():
            _resolve(waiting.future, None)

    def _look(self) -> None:
        self._looking = False
        self._receive()

    def _receive(self) -> None:
        """Give out all replies that have arrived."""
        receive = self._socket.recv
        try:
            while True:
                frames = [receive(NOBLOCK, False)]
                while frames[-1].more:
                    frames.append(receive(NOBLOCK, False))
                if len(frames) == 2 and not len(frames[0]):
                    self._hand_out(frames[1].bytes)
        except zmq.Again:
            return
        except zmq.ZMQError:  # Its context was terminated.
            self.look()

    def _hand_out(self, body: bytes) -> None:
        """Give a body to the task that waits, which decodes it: a codec may raise anything."""
        try:
            request_id = id_of(body)
        except BadReplyError as error:
            self._fail_the_only_one(error)
            return
        waiting = self.waiting.get(request_id) if type(request_id) is int else None
        if waiting is not None:  # Otherwise its task was cancelled.
            _resolve(waiting.future, body)

    def _fail_the_only_one(self, error: BadReplyError) -> None:
        """Fail the only request that waits. With several, the reply could belong to any of them.

        Those are sent again later.
        """
        if len(self.waiting) == 1:
            (waiting,) = self.waiting.values()
            _fail(waiting.future, BadReplyError(error.message, lost(waiting.op)))


def _resolve(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[bytes | None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
