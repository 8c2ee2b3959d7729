"""The client for threads: any number of them may share one.

Strategy: a request needs a connection, and has it for itself until its reply is there. Idle ones
lie on a stack, so that one thread alone keeps using the same; more are made up to a limit, and then
threads wait for one in the order in which they came. So a REQ socket is used by one thread at a
time, which is what ZeroMQ asks.

What makes it dependable:

- It never waits without a limit: a request is sent without waiting, a reply awaited in steps, since
  an interrupt that comes just before ZeroMQ waits is only seen after it, as is a lost connection.
- A REQ socket that is still owed a reply refuses the next request for ever. So a connection goes
  with any request that was not answered well.
- Every request has an id of its own, and only the reply with the same id counts.
- Reads, and writes that carry session and seq, are sent again; see `zkv.client.retry`.
- After a fork the child begins anew, with connections and sessions of its own: two processes that
  used the same session would get each other's replies.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import zmq

from zkv import checks
from zkv.client.codec import PLAIN, Codec
from zkv.client.connection import (
    CLOSED,
    ENVIRONMENT,
    Address,
    Connection,
    Endpoints,
    SocketContext,
    check_context,
    refuse_to_pickle,
)
from zkv.client.errors import ClosedError, RefusedError
from zkv.client.messages import READ_OPS, WRITE_OPS, bad_reply, check_answer
from zkv.client.namespace import ClientOps
from zkv.client.operations import Operation, Reply
from zkv.client.retry import DEFAULT_POLICY, REASON_SECONDS, Attempts, RetryPolicy
from zkv.client.session import WriteSessions

if TYPE_CHECKING:
    from zkv.checks import Seconds

T = TypeVar("T")

STEP: Final = 0.25
"""Seconds to wait for a reply before it is looked whether the connection is still there."""
MOST_CONNECTIONS: Final = 32
"""Of one client: more than a server can make use of, and sockets are not free."""


class Client(ClientOps):
    """A client of a server, for any number of threads, and a mapping of all its keys.

    The server need not be up yet: the first request connects, and waits for it up to the timeout.
    Use as a context manager, or `close` at the end.

    Args:
        endpoint: where the server listens: ``tcp://HOST:PORT`` or ``ipc://PATH``. Several may be
            given for the same server: where no reply comes from one, the next is tried. By
            default those that the variable ``ZKV_ENDPOINT`` lists, with commas between them; where
            it is not set, ``tcp://127.0.0.1:5555``.
        timeout: seconds for each request, with all its repeats; above 0, up to a day, or a
            `timedelta`.
        codec: types of values beside those of msgpack.
        durable: have each write on disk before it is answered, whatever the server's policy.
        retry: how patient to be within the timeout.
        context: to make sockets in, for ``inproc://`` endpoints; None = the process's own.

    Raises:
        ValueError: an endpoint is malformed, or the timeout out of range.
        TypeError: an argument is of another type.

    Example:
        >>> kv = Client()  # doctest: +SKIP
        >>> kv["greeting"] = "hello"  # doctest: +SKIP
        >>> kv.get_entry("greeting")  # doctest: +SKIP
        Entry(key='greeting', value='hello', rev=1, ttl=None)
        >>> kv.close()  # doctest: +SKIP

        In a program, a ``with`` block closes it at its end, also where an error is raised:

        >>> with Client() as kv:  # doctest: +SKIP
        ...     kv["greeting"] = "hello"
    """

    def __init__(
        self,
        endpoint: str | Sequence[str] = ENVIRONMENT,
        timeout: Seconds = 5.0,
        *,
        codec: Codec = PLAIN,
        durable: bool = False,
        retry: RetryPolicy = DEFAULT_POLICY,
        context: SocketContext | None = None,
    ) -> None:
        self.timeout = checks.timeout(timeout)
        self._endpoints = Endpoints(endpoint)
        self._codec = checks.instance("codec", codec, Codec)
        self._durable = {"durable": True} if checks.flag("durable", durable) else {}
        self._policy = checks.instance("retry", retry, RetryPolicy)
        self._context = check_context(context)
        self._ids = itertools.count(1)
        self._closed = False
        self._begin()
        self._idle.append(self._connect())
        self._open = 1
        _clients[id(self)] = self

    def _begin(self) -> None:
        """Begin without connections and with a new session."""
        self._lock = threading.RLock()  # A signal's handler may use the client, too.
        self._sessions = WriteSessions()
        self._idle: deque[Connection] = deque()
        self._waiters: deque[_Waiter] = deque()
        self._open = 0

    def _after_fork(self) -> None:
        _inherited.append(self._idle)
        self._context = None
        self._begin()

    def __repr__(self) -> str:
        return f"<Client {self.endpoint}{' closed' if self._closed else ''}>"

    __reduce__ = refuse_to_pickle

    @property
    def timeout(self) -> float:
        """Seconds for each request, with all its repeats; may be set to others."""
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: Seconds) -> None:
        self._timeout = checks.timeout(seconds)

    @property
    def endpoint(self) -> str:
        """The endpoint in use."""
        return self._endpoints.current.endpoint

    def close(self) -> None:
        """Close all connections. Requests under way in other threads still get their replies."""
        with self._lock:
            self._closed = True
            self._serve()
        with suppress(IndexError):
            while True:
                self._drop(self._idle.pop())

    def _run(self, operation: Operation[T], timeout: Seconds | None = None) -> T:
        op = operation.op
        wait = self._timeout if timeout is None else checks.timeout(timeout)
        if op not in WRITE_OPS:
            attempts = Attempts(self._policy, op, op in READ_OPS, wait)
            reply = self._ask(operation, operation.fields, self._codec, attempts)
        else:
            with self._lock:
                session, seq = self._sessions.take()
            try:
                fields = dict(operation.fields, session=session.name, seq=seq, **self._durable)
                attempts = Attempts(self._policy, op, True, wait)
                reply = self._ask(operation, fields, self._codec, attempts)
            finally:
                with self._lock:
                    self._sessions.give_back(session, seq)
        return operation.result(reply)

    def _ask(
        self, operation: Operation[Any], fields: dict[str, Any], codec: Codec, attempts: Attempts
    ) -> Reply:
        """Send a request until there is an answer to it, or no time left."""
        request_id = next(self._ids)
        body = operation.pack(operation.op, request_id, fields, codec)
        while True:
            reply = self._attempt(operation, request_id, body, codec, attempts)
            if reply is None:
                continue
            if reply["ok"] or operation.tolerates(reply):
                return reply
            try:
                pause = attempts.refused(reply)
            except RefusedError as error:
                self._name_old_server(operation.op, error)
                raise
            time.sleep(pause)

    def _attempt(
        self,
        operation: Operation[Any],
        request_id: int,
        body: bytes,
        codec: Codec,
        attempts: Attempts,
    ) -> Reply | None:
        """Send a request once; None = no reply, and it may be sent again."""
        op = operation.op
        connection = self._take(attempts)
        sent = False
        try:
            if connection.wait(attempts.time_to_connect()):
                self._endpoints.met = sent = True
                received = _exchange(connection, op, body, attempts.patience())
                if received is not None:
                    reply = operation.unpack(op, received, codec)
                    check_answer(op, request_id, reply)
                    self._give_back(connection)
                    return reply
        except zmq.ZMQError:  # Its context was terminated: that ends a connection like any other.
            connection.over = True
        except BaseException:  # Ctrl-C too must not leave a socket that is owed a reply.
            self._drop(connection)
            raise
        self._drop(connection)
        self._endpoints.failed(connection.address)
        if sent:
            attempts.no_reply(connection.endpoint, connected=True)
            time.sleep(attempts.pause() if connection.over else 0)
        else:
            self._no_connection(connection.address, attempts)
        return None

    def _no_connection(self, address: Address, attempts: Attempts) -> None:
        """Return when to try again. Raises UnavailableError where it is to be given up."""
        from zkv.client.trouble import find_trouble

        endpoint, endpoints = address.endpoint, self._endpoints
        if address.is_last or attempts.left() <= 0:
            trouble = None
            if attempts.asks_why(endpoint):
                trouble = find_trouble(endpoint, max(0.0, min(attempts.left(), REASON_SECONDS)))
            time.sleep(attempts.no_connection(endpoint, trouble, endpoints.number, endpoints.met))

    # --- Connections

    def _take(self, attempts: Attempts) -> Connection:
        """A connection of one's own. Raises NoReplyError where none becomes free in time."""
        connection: Connection | None = None
        if self._idle and not self._waiters and not self._closed:
            with suppress(IndexError):  # Another thread may be quicker.
                connection = self._idle.pop()
        if connection is None:
            connection = self._take_in_turn(attempts)
        try:
            if connection is not None:
                surely = not attempts.repeatable  # Another loss could not be made good.
                if connection.address == self._endpoints.current and connection.is_usable(surely):
                    return connection
                connection.close()
            return self._connect(attempts.applied())
        except BaseException:
            self._forget()
            raise

    def _take_in_turn(self, attempts: Attempts) -> Connection | None:
        """Wait behind those who came before; None = one may be opened."""
        waiter = _Waiter()
        with self._lock:
            self._waiters.append(waiter)
            self._serve()
        try:
            waiter.gate.acquire(timeout=max(0.0, attempts.left()))
            if self._closed:
                raise ClosedError(CLOSED, attempts.applied())
            if not waiter.served or attempts.left() <= 0:
                raise attempts.give_up(self.endpoint)  # Nothing is sent any more.
        except BaseException:
            self._leave(waiter)
            raise
        return waiter.connection

    def _leave(self, waiter: _Waiter) -> None:
        """Stand in line no longer, and give back what may have come."""
        with self._lock:
            if not waiter.served:
                self._waiters.remove(waiter)
                return
        if waiter.connection is None:
            self._forget()
        else:
            self._give_back(waiter.connection)

    def _serve(self) -> None:
        """Give what is free to those who have waited longest. With the lock held."""
        while self._waiters and (self._idle or self._open < MOST_CONNECTIONS or self._closed):
            waiter = self._waiters.popleft()
            waiter.served = True
            if self._idle:
                waiter.connection = self._idle.pop()
            else:
                self._open += 1
            waiter.gate.release()

    def _connect(self, applied: bool | None = False) -> Connection:
        context = self._context or zmq.Context.instance()
        try:
            return Connection(context, zmq.REQ, self._endpoints.current)
        except ClosedError as error:
            raise ClosedError(error.message, applied) from error

    def _give_back(self, connection: Connection) -> None:
        self._idle.append(connection)
        if self._waiters:
            with self._lock:
                self._serve()
        if self._closed:
            self.close()

    def _drop(self, connection: Connection) -> None:
        connection.close()
        self._forget()

    def _forget(self) -> None:
        with self._lock:
            self._open -= 1
            self._serve()


class _Waiter:
    """A thread that waits for a connection, or for leave to open one.

    Attributes:
        gate: locked until its turn has come.
        served: whether its turn has come.
        connection: what it got; None = it may open one.
    """

    __slots__ = ("connection", "gate", "served")

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.gate.acquire()
        self.served = False
        self.connection: Connection | None = None


def _exchange(connection: Connection, op: str, body: bytes, seconds: float) -> bytes | None:
    """Send a body and return the one that comes back; None = there is none in time.

    Raises:
        BadReplyError: what comes back has more than one frame.
    """
    socket = connection.socket
    try:
        socket.send(body, zmq.NOBLOCK)
    except zmq.Again:
        return None  # The server at an inproc endpoint has stopped: that cannot be reconnected to.
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        connection.wait_at_most(min(left, STEP))
        try:
            received = socket.recv()
        except zmq.Again:
            connection.look()
            if not connection.over:
                continue
            try:
                received = socket.recv(zmq.NOBLOCK)  # It may have come at the last moment.
            except zmq.Again:
                return None
        if socket.getsockopt(zmq.RCVMORE):
            raise bad_reply(op, "it has more than one body")
        return received
    return None


_clients: weakref.WeakValueDictionary[int, Client] = weakref.WeakValueDictionary()
_inherited: list[deque[Connection]] = []
"""Connections of the process that this one was forked from: not to be used, nor to be closed."""


def _after_fork() -> None:
    for client in list(_clients.values()):
        client._after_fork()


os.register_at_fork(after_in_child=_after_fork)
