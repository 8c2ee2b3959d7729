"""The client for asyncio: many requests in flight over one DEALER socket.

Strategy: a request takes one of a bounded number of places, is sent at once, and a future waits for
the reply with its id. Whoever is cancelled takes the future away; a reply that nobody waits for is
dropped. So cancellation costs nothing but the reply.

A reply that does not come in time discredits its link, the socket: the request is sent again over a
fresh one, and so is whatever comes after. Requests that wait at the old link may still get their
replies there; it is closed when nobody waits at it any more. A link whose connection fails or is
lost lets all that wait there go at once.

ZeroMQ tells through a file descriptor that *something* has happened since somebody last looked, and
sending is looking, too. So after something was sent the socket is looked at once more.

A client belongs to the event loop in which it was first used.
"""

from __future__ import annotations

import asyncio
import itertools
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar

import zmq

from zkv.client import operations
from zkv.client.codec import PLAIN, Codec
from zkv.client.connection import (
    Connection,
    Endpoints,
    SocketContext,
    check_timeout,
    refuse_to_pickle,
)
from zkv.client.errors import (
    BadReplyError,
    ClosedError,
    ConflictError,
    NotFoundError,
    TooLargeError,
)
from zkv.client.messages import (
    READ_OPS,
    WRITE_OPS,
    check_reply,
    lost,
)
from zkv.client.operations import RAISE, Change, Entry, Operation, Reply
from zkv.client.pipeline import AsyncPipeline, AsyncTransaction
from zkv.client.retry import DEFAULT_POLICY, REASON_SECONDS, Attempts, RetryPolicy, Trouble
from zkv.client.session import Sessions
from zkv.client.steps import unpack_quickly
from zkv.defaults import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from concurrent.futures import Future

    from zkv.client.async_watch import AsyncMirror, AsyncWatch

T = TypeVar("T")

MOST_IN_FLIGHT: Final = 128
"""Requests of one client: two batches of a worker, so that one is ready when the other is done."""

DELIMITER: Final = b""


class AsyncKeyspace:
    """What a client and its namespaces have in common: all ops on keys."""

    _prefix: str
    _client: AsyncClient

    @abstractmethod
    async def _run(self, operation: Operation[T]) -> T:
        """Carry out an operation, with retries."""

    # --- One key

    async def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or ``default`` where it is not there."""
        return await self._run(operations.get(self._prefix + key, default))

    async def get_entry(self, key: str) -> Entry:
        """A key's value with its revision and time to live; see `Client.get_entry`."""
        return await self._run(operations.get_entry(self._prefix + key, key))

    async def contains(self, key: str) -> bool:
        """Whether a key is there."""
        return await self._run(operations.contains(self._prefix + key))

    async def put(
        self,
        key: str,
        value: Any,
        *,
        ttl: float | None = None,
        if_rev: int | None = None,
        create: bool = False,
    ) -> int:
        """Write a value and return its revision; see `Client.put`."""
        return await self._run(operations.put(self._prefix + key, value, ttl, if_rev, create))

    async def delete(self, key: str, *, if_rev: int | None = None) -> bool:
        """Remove a key; whether it was there. See `Client.delete`."""
        return await self._run(operations.delete(self._prefix + key, if_rev))

    async def pop(self, key: str, default: Any = RAISE) -> Any:
        """Remove a key and return its value, in one step; see `Client.pop`."""
        try:
            return await self._run(operations.pop(self._prefix + key, default))
        except TooLargeError:  # The server does not keep such a value for the case of a repeat.
            return await self._pop_large(key, default)

    async def _pop_large(self, key: str, default: Any) -> Any:
        while True:
            try:
                entry = await self.get_entry(key)
                await self.delete(key, if_rev=entry.rev)
                return entry.value
            except ConflictError:
                continue
            except NotFoundError:
                if default is RAISE:
                    raise
                return default

    async def setdefault(self, key: str, default: Any = None) -> Any:
        """The value of a key; where it is not there, write ``default`` and return that."""
        while True:
            try:
                return await self._run(operations.get(self._prefix + key, RAISE))
            except NotFoundError:
                pass
            try:
                await self.put(key, default, create=True)
                return default
            except ConflictError:
                continue

    async def incr(self, key: str, by: int = 1) -> int:
        """Add to an int of 64 bits and return the sum; see `Client.incr`."""
        return await self._run(operations.incr(self._prefix + key, by))

    async def touch(self, key: str, ttl: float | None) -> int:
        """Give a key another time to live; see `Client.touch`."""
        return await self._run(operations.touch(self._prefix + key, ttl))

    # --- Many keys

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of many keys at one moment; see `Client.get_many`."""
        return await self._run(operations.get_many(self._prefix, keys))

    async def get_entries(self, keys: Iterable[str]) -> dict[str, Entry]:
        """Like `get_many`, with revisions; see `Client.get_entries`."""
        return await self._run(operations.get_entries(self._prefix, keys))

    async def put_many(self, items: Mapping[str, Any], *, ttl: float | None = None) -> int:
        """Write many values, all or nothing, and return the revision that they all have."""
        return await self._run(operations.put_many(self._prefix, items, ttl))

    async def delete_many(self, keys: Iterable[str]) -> int:
        """Remove many keys at one moment; how many were there."""
        return await self._run(operations.delete_many(self._prefix, keys))

    async def clear(self) -> None:
        """Remove all keys, page by page."""
        fields = operations.scan_fields(self._prefix, values=False)
        async for page in self._pages(operations.Scan(self._prefix, fields, None)):
            await self.delete_many([entry.key for entry in page])

    async def scan(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        end: str | None = None,
        after: str | None = None,
        limit: int | None = None,
        values: bool = True,
        reverse: bool = False,
    ) -> AsyncIterator[Entry]:
        """Entries in the order of their keys, read page by page; see `Client.scan`."""
        fields = operations.scan_fields(
            self._prefix, prefix, start=start, end=end, after=after, values=values, reverse=reverse
        )
        async for page in self._pages(operations.Scan(self._prefix, fields, limit)):
            for entry in page:
                yield entry

    async def _pages(self, scan: operations.Scan) -> AsyncIterator[list[Entry]]:
        while (page := scan.next_page()) is not None:
            try:
                if entries := await self._run(page):
                    yield entries
            except TooLargeError as error:
                scan.too_large(error)

    async def count(self, prefix: str = "") -> int:
        """How many keys there are that begin with ``prefix``."""
        return await self._run(operations.count(self._prefix + prefix))

    async def changes(self, since: int, prefix: str = "") -> AsyncIterator[Change]:
        """What has changed after a revision, oldest first, up to now; see `Client.changes`."""
        pages = operations.Changes(self._prefix, prefix, since)
        while (page := pages.next_page()) is not None:
            for change in await self._run(page):
                yield change

    def watch(
        self, prefix: str = "", *, since: int | None = None, feed: str | None = None
    ) -> AsyncWatch:
        """Changes as they come, for as long as one likes; see `Client.watch`.

            async with kv.watch("user/") as watch:
                async for change in watch:
                    ...

        It begins where the block does, or with the first change that is asked for.
        """
        from zkv.client.async_watch import AsyncWatch

        return AsyncWatch(self, prefix, since, feed)

    def mirror(
        self, prefix: str = "", *, timeout: float | None = None, feed: str | None = None
    ) -> AsyncMirror:
        """A copy of the entries in memory, that follows every change; see `Client.mirror`.

        async with kv.mirror("config/") as settings:
            settings["config/greeting"]
        """
        from zkv.client.async_watch import AsyncMirror

        return AsyncMirror(self, prefix, timeout, feed)

    def txn(self) -> AsyncTransaction:
        """Ops that happen as a whole or not at all; see `Client.txn`.

        async with kv.txn() as txn:
            txn.incr("account/a", -5)
            txn.incr("account/b", 5)
        """
        return AsyncTransaction(self._prefix, self._run)

    def pipeline(self) -> AsyncPipeline:
        """Ops that are sent in as few messages as possible; see `Client.pipeline`.

        Like this::

            async with kv.pipeline() as pipe:
                pipe.get("a")
                pipe.put("b", 2)
            a, rev = pipe.results
        """
        return AsyncPipeline(self._prefix, self._run)

    def namespace(self, prefix: str) -> AsyncNamespace:
        """The keys that begin with ``prefix``, without the prefix."""
        return AsyncNamespace(self, prefix)


class AsyncNamespace(AsyncKeyspace):
    """The keys under one prefix. Made by `AsyncClient.namespace`.

    Args:
        parent: a client, or another namespace.
        prefix: stands before all keys, behind that of the parent.
    """

    def __init__(self, parent: AsyncKeyspace, prefix: str) -> None:
        self._parent = parent
        self._client = parent._client
        self._prefix = parent._prefix + prefix

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._prefix!r}>"

    async def _run(self, operation: Operation[T]) -> T:
        return await self._parent._run(operation)


class AsyncClient(AsyncKeyspace):
    """A client of a server, for the tasks of one event loop.

    The server need not be up yet: the first request connects, and waits for it up to the timeout.
    Use as an async context manager, or `aclose` at the end. Any number of tasks may use it at once;
    128 requests are in flight at most, others wait for their turn.

    Args:
        endpoint: as for `Client`.
        timeout: seconds for each request, with waiting for its turn and all its repeats.
        codec: types of values beside those of msgpack.
        durable: have each write on disk before it is answered, whatever the server's policy.
        retry: how patient to be within the timeout.
        context: to make sockets in, for ``inproc://`` endpoints; None = the process's own.

    Raises:
        ValueError: an endpoint is malformed, or the timeout out of range.
        TypeError: an endpoint is no str.
    """

    _prefix = ""

    def __init__(
        self,
        endpoint: str | Sequence[str] = DEFAULT_ENDPOINT,
        timeout: float = 5.0,
        *,
        codec: Codec = PLAIN,
        durable: bool = False,
        retry: RetryPolicy = DEFAULT_POLICY,
        context: SocketContext | None = None,
    ) -> None:
        self.timeout = check_timeout(timeout)
        self._endpoints = Endpoints(endpoint)
        self._codec = codec
        self._durable = {"durable": True} if durable else {}
        self._policy = retry
        self._context = context
        self._ids = itertools.count(1)
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sessions: Sessions
        self._places: asyncio.Semaphore
        self._link: _Link | None = None
        self._links: set[_Link] = set()
        self._connect().close()  # What cannot be is told now.

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<AsyncClient {self.endpoint}{' closed' if self._closed else ''}>"

    __reduce__ = refuse_to_pickle

    @property
    def _client(self) -> AsyncClient:  # type: ignore[override]  # of a namespace, an attribute
        return self

    @property
    def endpoint(self) -> str:
        """The endpoint in use."""
        return self._endpoints.current.endpoint

    async def aclose(self) -> None:
        """Close all sockets; requests under way end with a `ClosedError`."""
        self._closed = True
        self._link = None
        while self._links:
            self._links.pop().close()

    async def ping(self) -> dict[str, Any]:
        """Whether the server is there: its ``protocol``, ``version`` and ``time`` (Unix, ms)."""
        return await self._run(operations.ping())

    async def info(self) -> dict[str, Any]:
        """What the server is, holds and has done, as the protocol's INFO tells it."""
        return await self._run(operations.info())

    async def snapshot(self, timeout: float | None = None) -> int:  # noqa: ASYNC109  of the request
        """Have a snapshot written that holds every write answered before; its revision."""
        return await self._run(operations.snapshot(), timeout)

    async def end(self, timeout: float | None = None) -> int:  # noqa: ASYNC109  of the request
        """Have the server save everything and end; the revision that was saved last."""
        return await self._run(operations.end(), timeout)

    async def call(self, op: str, /, **fields: Any) -> Reply:
        """Send a request as it is, once, and return the reply as it comes; see `Client.call`."""
        attempts = Attempts(self._policy, op, False, self.timeout)
        return await self._ask(operations.plain(op, fields), fields, PLAIN, attempts)

    async def _run(
        self,
        operation: Operation[T],
        timeout: float | None = None,  # noqa: ASYNC109  of the request
    ) -> T:
        op = operation.op
        wait = self.timeout if timeout is None else check_timeout(timeout)
        attempts = Attempts(self._policy, op, op in READ_OPS or op in WRITE_OPS, wait)
        reply = await self._ask(operation, operation.fields, self._codec, attempts)
        return operation.result(reply)

    async def _ask(
        self, operation: Operation[Any], fields: dict[str, Any], codec: Codec, attempts: Attempts
    ) -> Reply:
        """Take a place and send a request until there is an answer to it, or no time left."""
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

    async def _repeat(
        self, operation: Operation[Any], fields: dict[str, Any], codec: Codec, attempts: Attempts
    ) -> Reply:
        request_id = next(self._ids)
        body = operation.pack(operation.op, request_id, fields, codec)
        while True:
            reply = await self._attempt(operation.op, request_id, body, codec, attempts)
            if reply is None:
                continue
            if reply["ok"] or operation.tolerates(reply):
                return reply
            await asyncio.sleep(attempts.refused(reply))

    async def _attempt(
        self, op: str, request_id: int, body: bytes, codec: Codec, attempts: Attempts
    ) -> Reply | None:
        """Send a request once; None = no reply, and it may be sent again."""
        link = self._send(op, request_id, body, codec, attempts)
        waiting = link.waiting[request_id]
        patience = attempts.patience()
        timer = waiting.future.get_loop().call_later(patience, _resolve, waiting.future, None)
        try:
            reply = await waiting.future
        finally:
            timer.cancel()
            del link.waiting[request_id]
            if link is not self._link and not link.waiting:
                self._close(link)
        if reply is None:
            self._retire(link)
            if link.was_connected():
                attempts.no_reply(link.endpoint, connected=True)
                await asyncio.sleep(attempts.pause() if link.over else 0)
            else:
                await self._no_connection(link, attempts)
        return reply

    async def _no_connection(self, link: _Link, attempts: Attempts) -> None:
        """Return when to try again. Raises UnavailableError where it is to be given up."""
        endpoint, endpoints = link.endpoint, self._endpoints
        if link.is_last_place or attempts.left() <= 0:
            trouble = await link.trouble(attempts.left()) if attempts.asks_why(endpoint) else None
            pause = attempts.no_connection(endpoint, trouble, endpoints.number, endpoints.met)
            await asyncio.sleep(pause)

    # --- Places and links

    def _bind(self) -> None:
        """Belong to the running loop from now on. Raises RuntimeError where it is another one."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self._sessions = Sessions()
            self._places = asyncio.Semaphore(MOST_IN_FLIGHT)
        elif self._loop is not loop:
            raise RuntimeError("this AsyncClient was used in another event loop: make one in each")

    async def _take_place(self, attempts: Attempts) -> None:
        """Wait for one's turn. Raises NoReplyError where that takes too long."""
        if not self._places.locked():
            await self._places.acquire()  # Does not wait.
            return
        try:
            async with asyncio.timeout(attempts.left()):
                await self._places.acquire()
        except TimeoutError:
            raise attempts.give_up(self.endpoint) from None

    def _send(
        self, op: str, request_id: int, body: bytes, codec: Codec, attempts: Attempts
    ) -> _Link:
        """Send a body over the current link, which is returned, or over a fresh one."""
        if self._closed:
            raise ClosedError("the client is closed", attempts.applied())
        loop = asyncio.get_running_loop()
        waiting = _Waiting(loop.create_future(), op, codec)
        if self._link is not None:
            if not attempts.repeatable:
                self._link.look()  # Its loss could not be made good.
            if self._link.send(request_id, body, waiting):
                return self._link
            # Full of requests whose senders were cancelled, or its connection is no more.
            self._retire(self._link)
        connection = self._connect(attempts.applied())
        self._link = _Link(connection, loop, self._codec, self._endpoints, attempts)
        self._links.add(self._link)
        self._link.send(request_id, body, waiting)
        return self._link

    def _retire(self, link: _Link) -> None:
        """Send nothing more over ``link``; close it once nobody waits at it."""
        if not link.was_connected() or not link.over:
            self._endpoints.failed(link.address)
        if link is self._link:
            self._link = None
        if not link.waiting:
            self._close(link)

    def _close(self, link: _Link) -> None:
        self._links.discard(link)
        link.close()

    def _connect(self, applied: bool | None = False) -> Connection:
        context = self._context or zmq.Context.instance()
        try:
            return Connection(context, zmq.DEALER, self._endpoints.current)
        except ClosedError as error:
            raise ClosedError(error.message, applied) from error


class _Waiting(NamedTuple):
    """Who waits for a reply, and how it is to be read."""

    future: asyncio.Future[Reply | None]
    op: str
    codec: Codec


class _Link:
    """A DEALER socket, and those who wait for replies over it.

    Args:
        connection: the socket.
        loop: tells when there is something to receive.
        codec: by which replies are read, unless who waits has another one.
        endpoints: are told when there is a connection.
        attempts: at the request that it is made for; tell how long to wait for a connection.
    """

    def __init__(
        self,
        connection: Connection,
        loop: asyncio.AbstractEventLoop,
        codec: Codec,
        endpoints: Endpoints,
        attempts: Attempts,
    ) -> None:
        self.address = connection.address
        self.endpoint = connection.endpoint
        self.waiting: dict[int, _Waiting] = {}
        self._connection = connection
        self._socket = connection.socket
        self._loop = loop
        self._codec = codec
        self._endpoints = endpoints
        self._looking = False
        self._trouble: asyncio.Future[Trouble | None] | None = None
        self._descriptors = [int(self._socket.getsockopt(zmq.FD))]
        loop.add_reader(self._descriptors[0], self._receive)
        if (monitor := connection.monitor_descriptor) is not None:
            self._descriptors.append(monitor)
            loop.add_reader(monitor, self.look)
        self._timer = loop.call_later(attempts.time_to_connect(), self._too_late)
        loop.call_soon(self.look)

    @property
    def is_last_place(self) -> bool:
        """Whether nothing else is to be tried for the same endpoint."""
        return self.address.is_last

    @property
    def over(self) -> bool:
        """Whether its connection has failed or was lost."""
        return self._connection.over

    def send(self, request_id: int, body: bytes, waiting: _Waiting) -> bool:
        """Send a body; False = the socket takes no more."""
        if self.over:
            return False
        try:
            self._socket.send(DELIMITER, zmq.SNDMORE | zmq.NOBLOCK)
            self._socket.send(body, zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError:  # Its context was terminated.
            self._connection.over = True
            return False
        self.waiting[request_id] = waiting
        if not self._looking:
            self._looking = True
            self._loop.call_soon(self._look)
        return True

    def was_connected(self) -> bool:
        """Whether there may have been a connection that took what was sent."""
        return self._connection.connected

    async def trouble(self, seconds: float) -> Trouble | None:
        """Why there is no connection; all who ask share one answer."""
        from zkv.client.trouble import find_trouble_meanwhile

        if self._trouble is None:
            self._trouble = future = self._loop.create_future()

            def tell(found: Future[Trouble | None]) -> None:
                with suppress(RuntimeError):  # The loop has been closed: nobody asks any more.
                    self._loop.call_soon_threadsafe(_resolve, future, found.result())

            seconds = max(0.0, min(seconds, REASON_SECONDS))
            find_trouble_meanwhile(self.endpoint, seconds).add_done_callback(tell)
        return await asyncio.shield(self._trouble)

    def close(self) -> None:
        """Close the socket; whoever still waits gets a `ClosedError`. May be called again."""
        if not self._descriptors:
            return
        self.look()  # For the last time: it may have been connected meanwhile.
        while self._descriptors:
            self._loop.remove_reader(self._descriptors.pop())
        self._timer.cancel()
        self._connection.close()
        for waiting in self.waiting.values():
            applied = lost(waiting.op) if self._connection.connected else False
            _fail(waiting.future, ClosedError("the client was closed", applied))

    def look(self) -> None:
        """See what has become of the connection."""
        if not self._descriptors or self.over:
            return
        try:
            over = self._connection.look()
        except zmq.ZMQError:  # Its context was terminated.
            over = self._connection.over = True
        self._endpoints.met |= self.was_connected()
        if over:
            self._receive()  # What came before the end.
            self._let_go()

    def _too_late(self) -> None:
        """There should be a connection by now."""
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
        """Hand out all replies that are there."""
        socket = self._socket
        try:
            while not socket.closed and int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                frames = socket.recv_multipart(zmq.NOBLOCK)
                if len(frames) == 2 and not frames[0]:
                    self._hand_out(frames[1])
        except zmq.ZMQError:  # Its context was terminated.
            self.look()

    def _hand_out(self, body: bytes) -> None:
        try:
            reply = unpack_quickly("-", body, self._codec)
        except BadReplyError as error:
            self._fail_the_only_one(error)
            return
        request_id = reply.get("id")
        waiting = self.waiting.get(request_id) if type(request_id) is int else None
        if waiting is None:
            return  # Nobody waits for it any more.
        try:
            if waiting.codec is not self._codec:
                reply = unpack_quickly(waiting.op, body, waiting.codec)
            check_reply(waiting.op, reply)
        except BadReplyError as error:
            _fail(waiting.future, error)
            return
        _resolve(waiting.future, reply)

    def _fail_the_only_one(self, error: BadReplyError) -> None:
        """Nobody knows whose reply it is, unless only one waits; the others will ask again."""
        if len(self.waiting) == 1:
            (waiting,) = self.waiting.values()
            _fail(waiting.future, BadReplyError(error.message, lost(waiting.op)))


def _resolve(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Reply | None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
