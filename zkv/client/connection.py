"""The sockets of both clients. `zkv.client.endpoints` chooses where they connect.

- LINGER is 0: closing a socket drops all that it has not sent. So unsent requests neither delay the
  end of the process nor run after their callers have given up.
- The option IMMEDIATE is not set: with it, the reply before the server closes the connection, as
  after END, may be lost. So a request may wait in its socket until there is a connection. A monitor
  reports if there ever was one; if not, the request has not been sent.
- libzmq does not reconnect by itself: each socket is one connection. When it fails or is lost, the
  monitor reports that, and the client opens another one. So the client knows at once that no server
  is there, and tries another endpoint without waiting.
- A connection that is garbage collected is closed in the same order as by `Connection.close`: if
  the monitor's socket were closed first, libzmq would wait in its I/O thread for a reader of the
  events, and all traffic of the process would stop.
- libzmq resolves a name to one kind of address, IPv4 or IPv6, as an option of the socket says. A
  server may listen at either, so a name has two addresses to try.
- A server has one key, or two while it changes its key, and the client may know several. Each makes
  an address of its own. While there are two, the kernel chooses at random which one a connection
  meets, so an address that has failed may succeed at once: see `zkv.client.retry.Trouble`.
"""

from __future__ import annotations

import errno
import itertools
import math
import sys
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

import zmq

from zkv import checks
from zkv.client.curve import CurveKeys
from zkv.client.errors import ClosedError
from zkv.client.process import generation, is_foreign
from zkv.endpoint import is_name

if TYPE_CHECKING:
    from zkv.client.retry import Trouble

MONITORED: Final = ("tcp://", "ipc://")
"""Transports whose monitor reports connections."""

SocketContext = zmq.Context[zmq.Socket[bytes]]


LOOK_SECONDS: Final = 0.1
"""How long a check of a connection stays valid: a check costs as much as sending."""
NEVER: Final = 2**31 - 1
"""Milliseconds until libzmq reconnects: longer than any socket lives. With -1, libzmq would not
report every failure."""

REFUSED: Final = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
"""The event of a handshake in which the server has refused the key of the client."""
HANDSHAKE_FAILED: Final = int(
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | REFUSED
)
"""The events of a handshake that has failed."""
_FAILED: Final = (
    zmq.EVENT_CLOSED | zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_DISCONNECTED | HANDSHAKE_FAILED
)


class Address(NamedTuple):
    """One address to try.

    Args:
        endpoint: as it was given.
        ipv6: True = the socket uses IPv6.
        server_key: the server's key; empty = the connection is not encrypted.
        is_last: True if it is the last address of its endpoint.
    """

    endpoint: str
    ipv6: bool
    server_key: str
    is_last: bool


def addresses(endpoint: str, keys: CurveKeys) -> list[Address]:
    """The addresses to try for an endpoint that has been checked.

    Raises:
        ValueError: the keys do not suffice.
        ConfigError: the key file cannot be used.
    """
    kinds = [False, True] if is_name(endpoint) else [endpoint.startswith("tcp://[")]
    each = [(ipv6, key) for ipv6 in kinds for key in keys.of(endpoint) or [""]]
    return [Address(endpoint, ipv6, key, (ipv6, key) == each[-1]) for ipv6, key in each]


class Connection:
    """One socket with one connection, and its monitor. Only one thread at a time may use it.

    Args:
        context: the ZeroMQ context of the socket.
        kind: of the socket, such as ``zmq.REQ``.
        address: of the server.
        keys: of the client.
        prepare: sets further options of the socket before it connects.

    Attributes:
        connected: True once there has been a connection, which may have received what was sent;
            as of the last `look`.
        failure: the event of libzmq that first reported the failure; 0 = none has; as of the last
            `look`.
        over: True once the connection has failed or was lost, so that nothing can be sent or
            received; as of the last `look`.
        ready: True once any request may be sent: there is a connection, and the server is one that
            the client may use.
        greeted: True once the server has said what it is.
        trouble: why the client may not use the server; None = there is no reason, or none yet.
        send: the socket's method, without the wrapper for options that the clients do not use.
        step: the seconds that the socket waits at most for a message.

    Raises:
        ValueError: libzmq refuses the endpoint.
        OSError: the process has too many open files.
        ClosedError: the context has been terminated.
    """

    __slots__ = (
        "__weakref__", "_looked", "_monitor", "address", "connected", "failure", "greeted", "over",
        "ready", "send", "socket", "step", "trouble",
    )  # fmt: skip

    def __init__(
        self,
        context: SocketContext,
        kind: int,
        address: Address,
        keys: CurveKeys,
        prepare: Callable[[zmq.Socket[bytes]], None] | None = None,
    ) -> None:
        self.address = address
        self.failure = 0
        self.step = -1.0
        self.connected = not address.endpoint.startswith(MONITORED)
        self.over = self.ready = self.greeted = False
        self.trouble: Trouble | None = None
        self._looked = 0.0
        self._monitor: zmq.Socket[bytes] | None = None
        try:
            self.socket = _open(context, kind)
        except zmq.ZMQError as error:
            raise explain(address.endpoint, error) from error
        own = type(self.socket) is zmq.Socket  # A context of the program may make others.
        self.send = super(zmq.Socket, self.socket).send if own else self.socket.send
        try:
            self.socket.ipv6 = address.ipv6
            self.socket.reconnect_ivl = NEVER
            if address.server_key:
                keys.equip(self.socket, address.server_key)
            if prepare is not None:
                prepare(self.socket)
            if not self.connected:
                self._monitor = _monitor(context, self.socket)
            self.socket.connect(address.endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise explain(address.endpoint, error) from error
        # The finalizer keeps the sockets alive until it runs.
        weakref.finalize(self, _close, self.socket, self._monitor, generation()).atexit = False

    @property
    def endpoint(self) -> str:
        """The endpoint as it was given."""
        return self.address.endpoint

    @property
    def ends_round(self) -> bool:
        """True if no other address of the endpoint is worth a try after this one has failed.

        A server that refuses the key of the client has had the right key itself. One that may not
        be used is the same at its other addresses.
        """
        return self.address.is_last or self.failure == REFUSED or self.trouble is not None

    @property
    def sockets(self) -> list[zmq.Socket[bytes]]:
        """The socket, and its monitor: once one of them is readable, receive and `look`."""
        return [self.socket] if self._monitor is None else [self.socket, self._monitor]

    def is_usable(self, surely: bool) -> bool:
        """True if a request may be sent.

        Args:
            surely: True = check now; False = a check a moment ago suffices.
        """
        now = time.monotonic()
        if surely or now - self._looked > LOOK_SECONDS:
            self._looked = now
            self.look()
        return not self.over and not self.socket.closed

    def look(self) -> bool:
        """Update the state of the connection; returns `over`."""
        monitor = self._monitor
        if self.socket.closed:  # Its context was destroyed.
            self.over = True
            return True
        while monitor is not None and int(monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event = int.from_bytes(monitor.recv_multipart(zmq.NOBLOCK)[0][:2], sys.byteorder)
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.connected = True
            else:
                self.over = True
                self.failure = self.failure or event
        return self.over

    def wait(self, seconds: float) -> bool:
        """Wait until there is a connection. Returns False if it failed or the time is up."""
        end = time.monotonic() + seconds
        while not self.connected and not self.over and self._monitor is not None:
            left = end - time.monotonic()
            if left <= 0:
                return False
            # An interrupt that arrives just before ZeroMQ waits is handled only afterwards.
            self._monitor.poll(math.ceil(1000 * min(left, 1.0)))
            self.look()
        return not self.over

    def wait_at_most(self, seconds: float) -> None:
        """Limit how long the socket waits for a message."""
        self.socket.rcvtimeo = math.ceil(seconds * 1000)
        self.step = seconds

    def close(self) -> None:
        """Close the socket and drop all that waits in it. May be called again."""
        _close(self.socket, self._monitor, generation())
        self._monitor = None


def _close(socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes] | None, made_in: int) -> None:
    if is_foreign(made_in):
        return  # The sockets belong to the parent process.
    if monitor is not None and not monitor.closed:
        if not socket.closed:  # The end of its context may have closed it.
            socket.monitor(None, 0)
        monitor.close()
    socket.close()


def _open(context: SocketContext, kind: int) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.linger = 0
    return socket


def explain(endpoint: str, error: zmq.ZMQError) -> Exception:
    """The error to raise if a socket could not be created or connected."""
    reason = zmq.strerror(error.errno or 0)
    if error.errno == errno.EMFILE:
        return OSError(error.errno, f"no socket for {endpoint}: {reason}")
    if error.errno in CONTEXT_GONE:
        return ClosedError(TERMINATED, False)
    return ValueError(f"endpoint {endpoint!r}: {reason}; expected tcp://HOST:PORT or ipc://PATH")


CONTEXT_GONE: Final = frozenset({zmq.ETERM, zmq.ENOTSOCK, zmq.ENOTSUP, errno.EFAULT})
"""The error numbers of a context that was terminated or destroyed."""
TERMINATED: Final = "the ZeroMQ context of the client has been terminated: create a new client"

_monitors = itertools.count()


def _monitor(context: SocketContext, socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """A socket that receives the events of the connection of ``socket``."""
    address = f"inproc://zkv-client-{next(_monitors)}"
    socket.monitor(address, zmq.EVENT_HANDSHAKE_SUCCEEDED | _FAILED)
    monitor = _open(context, zmq.PAIR)
    monitor.connect(address)
    return monitor


def refuse_to_pickle(self: object) -> NoReturn:
    """The ``__reduce__`` of objects that have connections: they cannot be pickled or copied."""
    raise TypeError(
        f"{type(self).__name__} cannot be pickled or copied, since it has connections: pass the "
        f"endpoint, and create a client in the other process"
    )


CLOSED: Final = "the client is closed, for instance by the end of its with block: create a new one"


def check_context(context: SocketContext | None) -> SocketContext | None:
    """Check the ``context`` argument. Raises TypeError if its sockets have to be awaited."""
    if context is not None:
        checks.instance("context", context, zmq.Context)
        if type(context).__module__ == "zmq.asyncio":
            raise TypeError(
                "context: a zmq.Context; not one of zmq.asyncio, whose sockets must be awaited. "
                "zmq.Context(context) makes one that shares its I/O threads"
            )
    return context
