"""The client for threads. Any number of threads may share one client.

Strategy: a request takes a connection from the pool (`zkv.client.pool`) and keeps it until the
reply has arrived. So only one thread at a time uses a REQ socket, as ZeroMQ requires. The usual
case, an idle connection and a reply in time, takes few calls of functions.

Invariants:

- The client never waits without a limit. It sends without waiting, and waits for a reply in steps:
  an interrupt that arrives just before ZeroMQ waits is handled only afterwards, and so is the loss
  of a connection.
- A REQ socket whose reply is outstanding refuses all further requests. So the client closes the
  connection of every request that did not get its reply.
- Every request has its own id, and only a reply with the same id is accepted.
- Reads, and writes with session and seq, are repeated; see `zkv.client.retry`.
- After a fork the child starts with its own connections and sessions: two processes with the same
  session would get each other's replies. A request in flight belongs to the parent.
- The client never holds a lock, so signal handlers and finalizers may use it, too.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from os import PathLike
from sys import modules
from typing import TYPE_CHECKING, Any, Final, TypeVar

import zmq

from zkv import checks
from zkv.client.codec import PLAIN, Codec
from zkv.client.connection import (
    CLOSED,
    Address,
    Connection,
    SocketContext,
    check_context,
    refuse_to_pickle,
)
from zkv.client.curve import KEY_FILE, SERVER_KEY, CurveKeys
from zkv.client.endpoints import ENVIRONMENT, Endpoints
from zkv.client.errors import ClosedError, RefusedError
from zkv.client.messages import (
    DATA_READS,
    READ_OPS,
    WRITE_OPS,
    bad_reply,
    check_answer,
)
from zkv.client.namespace import NO_FEATURES, ClientOps
from zkv.client.operations import Operation, Pack, Reply, Unpack
from zkv.client.plain import pack_first, unpack_first
from zkv.client.pool import Pool
from zkv.client.process import leave_alone, tell_of_forks
from zkv.client.retry import (
    DEFAULT_POLICY,
    NO_INFO,
    REASON_SECONDS,
    Attempts,
    RetryPolicy,
    Trouble,
)
from zkv.client.tracing import OPENTELEMETRY, begin
from zkv.compiled import COMPILED

if TYPE_CHECKING:
    from zkv.checks import ReadFrom, Seconds

T = TypeVar("T")

NOBLOCK: Final = int(zmq.NOBLOCK)

LARGE: Final = 4_000
"""Bytes of a reply from which on it is worth importing msgspec, which takes some time."""
MANY: Final = 200
"""The request of a client from which on that is worth it, whatever the size of the replies."""

STEP: Final = 0.25
"""Seconds to wait for a reply before checking that the connection still exists."""


class Client(ClientOps):
    """A client for any number of threads; also a mapping of all keys of the server.

    The server may still be down: the first request connects, and waits for the server up to the
    timeout. Use the client as a context manager, or call `close` at the end.

    Args:
        endpoint: where the server listens: ``tcp://HOST:PORT`` or ``ipc://PATH``; or a list of
            several endpoints, of one server or of several with copies of one store; or a text with
            commas between them. The client uses one of them. If it does not answer, or does not
            lead, the client goes on to the next, but never to another store, or to one that has
            forgotten what the client has seen. The default is the variable ``ZKV_ENDPOINT``; if
            that is not set, ``tcp://127.0.0.1:5555``.
        timeout: seconds for each request, including all its repeats; above 0, up to a day, or a
            `timedelta`.
        codec: adds types of values to those of msgpack.
        durable: True = the server answers each write only once it is on disk, whatever its fsync
            policy.
        retry: when requests are repeated within the timeout.
        context: the ZeroMQ context of the sockets, for ``inproc://`` endpoints; None = the
            process's own.
        server_key: the public key of the server, which ``zkv keygen`` has printed: tcp connections
            are encrypted, and go to this server alone. Or a list, while the server changes its key.
            The default is the variable ``ZKV_SERVER_PUBLIC_KEY``, with commas between keys. An
            empty list: connections are not encrypted, whatever the variable says.
        key_file: the file with the secret key of this client, made by ``zkv keygen``. The default
            is the variable ``ZKV_KEY_FILE``; if that is not set, the client makes a key for itself.
        read: ``"leader"`` = the server that leads answers all reads, so they show every write
            answered before; ``"stale"`` = any server may, so they may show an older state.

    Raises:
        ValueError: an endpoint or a key is malformed, the key file cannot be used, or the timeout
            is out of range.
        TypeError: an argument has the wrong type.

    Example:
        >>> kv = Client()  # doctest: +SKIP
        >>> kv["greeting"] = "hello"  # doctest: +SKIP
        >>> kv.get_entry("greeting")  # doctest: +SKIP
        Entry(key='greeting', value='hello', rev=1, ttl=None)
        >>> kv.close()  # doctest: +SKIP

        In a program, a ``with`` block closes the client, also if an error is raised:

        >>> with Client() as kv:  # doctest: +SKIP
        ...     kv["greeting"] = "hello"
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
        self._pack: Pack = pack_first
        self._unpack: Unpack = unpack_first
        self._pool = Pool()
        self._pool.take(float)
        # An endpoint that libzmq refuses is reported now.
        self._pool.give_back(self._open(self._endpoints.current))
        tell_of_forks(self)

    def _after_fork(self) -> None:
        leave_alone(self._pool)
        self._context = None
        self._features = None, NO_FEATURES
        self._pool = Pool(self._pool.closed)

    def __repr__(self) -> str:
        return f"<Client {self.endpoint}{' closed' if self._pool.closed else ''}>"

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

    def close(self) -> None:
        """Close all connections. Requests in flight in other threads still get their replies."""
        self._pool.close()

    def _run(self, operation: Operation[T], timeout: Seconds | None = None) -> T:
        op = operation.op
        wait = self._timeout if timeout is None else checks.timeout(timeout)
        if op not in WRITE_OPS:
            attempts = Attempts(self._policy, op, op in READ_OPS, wait)
            fields = operation.fields
            if (self._stale or "min_rev" in fields) and op in DATA_READS:
                fields = self._for_anybody(fields, attempts)
            reply = self._ask(operation, fields, self._codec, attempts)
        else:
            attempts = Attempts(self._policy, op, True, wait)
            sessions = self._pool.sessions
            session, seq = sessions.take()
            try:
                number = {"session": session.name, "seq": seq}
                fields = {**operation.fields, **number, **self._durable}
                reply = self._ask(operation, fields, self._codec, attempts)
            finally:
                sessions.give_back(session, seq)
        return operation.result(reply)

    def _ask(
        self, operation: Operation[Any], fields: dict[str, Any], codec: Codec, attempts: Attempts
    ) -> Reply:
        """Send a request until the server answers it or the time is up."""
        if OPENTELEMETRY in modules and not attempts.is_traced:
            span = begin(operation.op, fields, self._endpoints)
            if span is not None:
                return self._ask_traced(span, operation, fields, codec, attempts)
        request_id = next(self._ids)
        pack = operation.pack or self._pack
        body = pack(operation.op, request_id, fields, codec)
        while True:
            reply = self._attempt(operation, request_id, body, codec, attempts)
            if reply is None:
                continue
            if reply["ok"] or operation.tolerates(reply):
                return reply
            try:
                pause = attempts.refused(reply, self._endpoints.number)
            except RefusedError as error:
                plain = self._without_refused(fields, attempts, error)
                if plain is None:
                    self._name_old_server(operation.op, error)
                    raise
                fields = plain
                body = pack(operation.op, request_id, fields, codec)
            else:
                time.sleep(pause)

    def _takes(self, field: str, attempts: Attempts) -> bool:
        if self._features[0] is not self._endpoints.era:
            self._ask_for_features(attempts)
        return field in self._features[1]

    def _attempt(
        self,
        operation: Operation[Any],
        request_id: int,
        body: bytes,
        codec: Codec,
        attempts: Attempts,
    ) -> Reply | None:
        """Send a request once. Returns None if there is no reply and it may be sent again."""
        op, pool = operation.op, self._pool
        attempts.check_process()
        connection = self._take(pool, attempts)
        sent = False
        try:
            if connection.ready or self._greet(connection, attempts):
                sent = True
                seconds = attempts.patience()
                step = STEP if seconds > STEP else max(0.0, seconds)  # -1 ms would mean no limit.
                if step != connection.step:
                    connection.wait_at_most(step)
                connection.send(body, NOBLOCK)
                try:
                    frame: zmq.Frame | None = connection.socket.recv(0, False)
                except zmq.Again:
                    frame = _receive(connection, seconds - step)
                if frame is not None:
                    if frame.more:
                        raise bad_reply(op, "it has more than one frame")
                    received = frame.bytes
                    if len(received) >= LARGE or request_id == MANY:
                        self._use_msgspec()
                    reply = self._unpack(op, received, codec)
                    check_answer(op, request_id, reply)
                    pool.give_back(connection)
                    if not reply["ok"] and reply["code"] == "NOT_LEADER":
                        self._endpoints.refer(connection.address, reply.get("leader"))
                    return reply
        except zmq.ZMQError:
            # Its context was terminated, or the server at an inproc endpoint ended.
            connection.over = True
        except BaseException:  # Ctrl-C, too, must not leave a socket with an outstanding reply.
            pool.drop(connection)
            raise
        pool.drop(connection)
        self._endpoints.failed(connection.address, attempts.stays)
        self._endpoints.lost()
        if sent:
            attempts.no_reply(connection.endpoint, connected=True)
            time.sleep(attempts.pause() if connection.over else 0)
        else:
            self._no_connection(connection, attempts)
        return None

    def _greet(self, connection: Connection, attempts: Attempts) -> bool:
        """Wait for a connection, and find out if the client may use the server.

        Returns False if there is no connection, or the server may not be used.
        """
        endpoints = self._endpoints
        if not (connection.connected or connection.wait(attempts.time_to_connect())):
            return False
        endpoints.met = True
        if endpoints.number == 1:
            connection.ready = True
        elif not (connection.greeted and attempts.anywhere):
            reply = self._ask_who(connection, attempts)
            if reply is None:
                connection.trouble = NO_INFO
            elif not reply["ok"]:
                time.sleep(attempts.refused(reply, endpoints.number))
                connection.trouble = Trouble(f"{reply['code']}: {reply['message']}")
            else:
                self._introduced(connection, reply)
        return connection.trouble is None

    def _ask_who(self, connection: Connection, attempts: Attempts) -> Reply | None:
        """Ask INFO over one connection; None = there is no reply in time."""
        request_id = next(self._ids)
        seconds = attempts.time_to_connect()
        connection.send(self._pack("INFO", request_id, {}, PLAIN), NOBLOCK)
        frame = _receive(connection, seconds)
        if frame is None:
            return None
        if frame.more:
            raise bad_reply("INFO", "it has more than one frame")
        reply = self._unpack("INFO", frame.bytes, PLAIN)
        check_answer("INFO", request_id, reply)
        return reply

    def _use_msgspec(self) -> None:
        """Without C, pack and unpack by msgspec from now on: quicker once it has been imported."""
        if not COMPILED:
            from zkv.client.quick import pack_quickly, unpack_quickly

            self._pack, self._unpack = pack_quickly, unpack_quickly

    def _no_connection(self, failed: Connection, attempts: Attempts) -> None:
        """Wait until the next attempt is due. Raises UnavailableError to give up."""
        from zkv.client.trouble import find_trouble

        endpoint, endpoints = failed.endpoint, self._endpoints
        if failed.ends_round or attempts.left() <= 0:
            trouble = failed.trouble
            if attempts.asks_why(endpoint, failed.failure) and trouble is None:
                seconds = max(0.0, min(attempts.left(), REASON_SECONDS))
                trouble = find_trouble(endpoint, seconds, endpoints.keys, failed.failure)
            time.sleep(attempts.no_connection(endpoint, trouble, endpoints.number, endpoints.met))

    # --- Connections

    def _take(self, pool: Pool, attempts: Attempts) -> Connection:
        """Take a connection. Raises NoReplyError if none becomes free in time."""
        try:
            connection = pool.take(attempts.left)
        except TimeoutError:
            raise attempts.give_up(self.endpoint) from None
        if pool.closed:
            pool.give_back(connection)
            raise ClosedError(CLOSED, attempts.applied())
        try:
            address = self._endpoints.current
            surely = not attempts.repeatable  # Such a request cannot be sent again.
            if surely:
                attempts.goes_to(address.endpoint)
            if connection is not None:
                if connection.address == address and connection.is_usable(surely):
                    return connection
                connection.close()
                self._endpoints.lost()
            return self._open(address, attempts.applied())
        except BaseException:
            pool.give_back(None)
            raise

    def _open(self, address: Address, applied: bool | None = False) -> Connection:
        context = self._context or zmq.Context.instance()
        try:
            return Connection(context, zmq.REQ, address, self._endpoints.keys)
        except ClosedError as error:
            raise ClosedError(error.message, applied) from error


def _receive(connection: Connection, seconds: float) -> zmq.Frame | None:
    """Continue to wait for a reply; None = none arrived in time."""
    end = time.monotonic() + seconds
    while not connection.look():
        left = end - time.monotonic()
        if left <= 0:
            return None
        connection.wait_at_most(min(left, STEP))
        try:
            return connection.socket.recv(0, False)
        except zmq.Again:
            continue
    try:
        return connection.socket.recv(NOBLOCK, False)  # It may have arrived at the last moment.
    except zmq.Again:
        return None
