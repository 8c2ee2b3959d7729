"""The client for threads: any number of them may share one.

Strategy: a request takes a connection out of the pool (`zkv.client.pool`), and has it for itself
until its reply is there. So a REQ socket is used by one thread at a time, which is what ZeroMQ
asks.

What makes it dependable:

- It never waits without a limit: a request is sent without waiting, a reply awaited in steps, since
  an interrupt that comes just before ZeroMQ waits is only seen after it, as is a lost connection.
- A REQ socket that is still owed a reply refuses the next request for ever. So a connection goes
  with any request that was not answered well.
- Every request has an id of its own, and only the reply with the same id counts.
- Reads, and writes that carry session and seq, are sent again; see `zkv.client.retry`.
- After a fork the child begins anew, with connections and sessions of its own: two processes that
  used the same session would get each other's replies. A request that was under way belongs to the
  parent.
- No lock is held at any time, so a signal's handler and a finalizer may use the client, too.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
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
from zkv.client.pool import Pool
from zkv.client.process import leave_alone, tell_of_forks
from zkv.client.retry import DEFAULT_POLICY, REASON_SECONDS, Attempts, RetryPolicy

if TYPE_CHECKING:
    from zkv.checks import Seconds

T = TypeVar("T")

STEP: Final = 0.25
"""Seconds to wait for a reply before it is looked whether the connection is still there."""


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
        self._pool = Pool()
        self._pool.take(0)
        self._pool.give_back(self._open())  # What cannot be is told now.
        tell_of_forks(self)

    def _after_fork(self) -> None:
        leave_alone(self._pool)
        self._context = None
        self._pool = Pool(self._pool.closed)

    def __repr__(self) -> str:
        return f"<Client {self.endpoint}{' closed' if self._pool.closed else ''}>"

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
        self._pool.close()

    def _run(self, operation: Operation[T], timeout: Seconds | None = None) -> T:
        op = operation.op
        wait = self._timeout if timeout is None else checks.timeout(timeout)
        if op not in WRITE_OPS:
            attempts = Attempts(self._policy, op, op in READ_OPS, wait)
            reply = self._ask(operation, operation.fields, self._codec, attempts)
        else:
            attempts = Attempts(self._policy, op, True, wait)
            sessions = self._pool.sessions
            session, seq = sessions.take()
            try:
                fields = dict(operation.fields, session=session.name, seq=seq, **self._durable)
                reply = self._ask(operation, fields, self._codec, attempts)
            finally:
                sessions.give_back(session, seq)
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
        op, pool = operation.op, self._pool
        attempts.check_process()
        connection = self._take(pool, attempts)
        sent = False
        try:
            if connection.wait(attempts.time_to_connect()):
                self._endpoints.met = sent = True
                received = _exchange(connection, op, body, attempts.patience())
                if received is not None:
                    reply = operation.unpack(op, received, codec)
                    check_answer(op, request_id, reply)
                    pool.give_back(connection)
                    return reply
        except zmq.ZMQError:  # Its context was terminated: that ends a connection like any other.
            connection.over = True
        except BaseException:  # Ctrl-C too must not leave a socket that is owed a reply.
            pool.drop(connection)
            raise
        pool.drop(connection)
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

    def _take(self, pool: Pool, attempts: Attempts) -> Connection:
        """A connection of one's own. Raises NoReplyError where none becomes free in time."""
        try:
            connection = pool.take(attempts.left())
        except TimeoutError:
            raise attempts.give_up(self.endpoint) from None  # Nothing is sent any more.
        if pool.closed:
            pool.give_back(connection)
            raise ClosedError(CLOSED, attempts.applied())
        try:
            if connection is not None:
                surely = not attempts.repeatable  # Another loss could not be made good.
                if connection.address == self._endpoints.current and connection.is_usable(surely):
                    return connection
                connection.close()
            return self._open(attempts.applied())
        except BaseException:
            pool.give_back(None)
            raise

    def _open(self, applied: bool | None = False) -> Connection:
        context = self._context or zmq.Context.instance()
        try:
            return Connection(context, zmq.REQ, self._endpoints.current)
        except ClosedError as error:
            raise ClosedError(error.message, applied) from error


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
