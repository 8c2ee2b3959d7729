"""Sockets as both clients use them, and which endpoint to try.

- LINGER is 0: what was not sent yet goes with its socket. It neither holds up the end of the
  process nor runs when nobody waits for it any more.
- The option IMMEDIATE is left alone: with it, a reply may be lost after which the server closes
  the connection, as after END. So a request may wait in its socket until there is a connection, and
  a monitor tells whether there ever was one: if not, the request has not been sent.
- libzmq does not connect anew by itself: a socket is one connection, and when it has failed or was
  lost, the monitor says so, and whoever uses it takes another. So it is known at once that there is
  nobody, and another endpoint is tried without waiting.
- A connection that nobody has any more is closed in the same order as by `Connection.close`: if
  its monitor's socket went first, libzmq would wait in its I/O thread for somebody to read events,
  and nothing in the process would be sent or received any more.
- For a name libzmq looks up one kind of address, IPv4 or IPv6, by an option of the socket. A server
  may listen at either, so a name is two places to try.
"""

from __future__ import annotations

import errno
import itertools
import math
import sys
import time
import weakref
from collections.abc import Iterable
from typing import Final, NamedTuple, NoReturn

import zmq

from zkv import checks
from zkv.client.errors import ClosedError
from zkv.client.process import generation, is_foreign
from zkv.endpoint import check_to_connect, from_environment, is_name

MONITORED: Final = ("tcp://", "ipc://")
"""Transports that tell whether there is a connection."""

SocketContext = zmq.Context[zmq.Socket[bytes]]


LOOK_SECONDS: Final = 0.1
"""How long a connection that was well is taken for well: to look costs as much as to send."""
NEVER: Final = 2**31 - 1
"""Milliseconds until libzmq connects anew: more than a socket lives for. With -1 it would not tell
of all that fails."""

_FAILED: Final = (
    zmq.EVENT_CLOSED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class Address(NamedTuple):
    """One place to try.

    Args:
        endpoint: as it was given.
        ipv6: whether the socket takes IPv6.
        is_last: whether nothing else is to be tried for the same endpoint.
    """

    endpoint: str
    ipv6: bool
    is_last: bool


def addresses(endpoint: str) -> list[Address]:
    """The places to try for an endpoint that has been checked."""
    if is_name(endpoint):
        return [Address(endpoint, False, False), Address(endpoint, True, True)]
    return [Address(endpoint, endpoint.startswith("tcp://["), True)]


class Connection:
    """One socket with one connection, and its monitor. To be used by one thread at a time.

    Args:
        context: to make the socket in.
        kind: ``zmq.REQ`` or ``zmq.DEALER``.
        address: of the server.

    Attributes:
        connected: whether there has been a connection, which may have taken what was sent, as far
            as `look` has seen.
        over: whether it has failed or was lost, likewise: nothing is sent or received any more.

    Raises:
        ValueError: libzmq does not take the endpoint.
        OSError: the process may not have another socket.
        ClosedError: the context has been terminated.
    """

    __slots__ = (
        "__weakref__", "_looked", "_milliseconds", "_monitor", "address", "connected", "over",
        "socket",
    )  # fmt: skip

    def __init__(self, context: SocketContext, kind: int, address: Address) -> None:
        self.address = address
        self._milliseconds = -1
        self.connected = not address.endpoint.startswith(MONITORED)
        self.over = False
        self._looked = 0.0
        self._monitor: zmq.Socket[bytes] | None = None
        try:
            self.socket = _open(context, kind)
        except zmq.ZMQError as error:
            raise explain(address.endpoint, error) from error
        try:
            self.socket.ipv6 = address.ipv6
            self.socket.reconnect_ivl = NEVER
            if not self.connected:
                self._monitor = _monitor(context, self.socket)
            self.socket.connect(address.endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise explain(address.endpoint, error) from error
        # It has the sockets, so they do not go before it.
        weakref.finalize(self, _close, self.socket, self._monitor, generation()).atexit = False

    @property
    def endpoint(self) -> str:
        """The endpoint as it was given."""
        return self.address.endpoint

    @property
    def monitor_descriptor(self) -> int | None:
        """A file descriptor that tells when to `look`; None = there is nothing to be seen."""
        return None if self._monitor is None else int(self._monitor.getsockopt(zmq.FD))

    def is_usable(self, surely: bool) -> bool:
        """Whether a request may be sent.

        Args:
            surely: look now; else it may be known from a moment ago.
        """
        now = time.monotonic()
        if surely or now - self._looked > LOOK_SECONDS:
            self._looked = now
            self.look()
        return not self.over and not self.socket.closed

    def look(self) -> bool:
        """See what has become of the connection; whether it is over."""
        monitor = self._monitor
        if self.socket.closed:  # By the end of its context.
            self.over = True
            return True
        while monitor is not None and int(monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event = int.from_bytes(monitor.recv_multipart(zmq.NOBLOCK)[0][:2], sys.byteorder)
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.connected = True
            else:
                self.over = True
        return self.over

    def wait(self, seconds: float) -> bool:
        """Wait until there is a connection; False = it has failed, or takes longer."""
        end = time.monotonic() + seconds
        while not self.connected and not self.over and self._monitor is not None:
            left = end - time.monotonic()
            if left <= 0:
                return False
            # An interrupt that comes just before ZeroMQ waits is only seen after it.
            self._monitor.poll(math.ceil(1000 * min(left, 1.0)))
            self.look()
        return not self.over

    def wait_at_most(self, seconds: float) -> None:
        """Have the socket wait no longer than this for a message."""
        milliseconds = math.ceil(seconds * 1000)
        if milliseconds != self._milliseconds:
            self.socket.rcvtimeo = self._milliseconds = milliseconds

    def close(self) -> None:
        """Drop the socket and all that waits in it. May be called again."""
        _close(self.socket, self._monitor, generation())
        self._monitor = None


def _close(socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes] | None, made_in: int) -> None:
    if is_foreign(made_in):
        return  # They are the parent's.
    if monitor is not None and not monitor.closed:
        if not socket.closed:  # As by the end of its context.
            socket.monitor(None, 0)
        monitor.close()
    socket.close()


def _open(context: SocketContext, kind: int) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.linger = 0
    return socket


def explain(endpoint: str, error: zmq.ZMQError) -> Exception:
    """The error to raise where a socket could not be made or connected."""
    reason = zmq.strerror(error.errno or 0)
    if error.errno == errno.EMFILE:
        return OSError(error.errno, f"no socket for {endpoint}: {reason}")
    if error.errno in CONTEXT_GONE:
        return ClosedError(TERMINATED, False)
    return ValueError(f"endpoint {endpoint!r}: {reason}; expected tcp://HOST:PORT or ipc://PATH")


CONTEXT_GONE: Final = frozenset({zmq.ETERM, zmq.ENOTSOCK, zmq.ENOTSUP, errno.EFAULT})
"""What is said where a context was terminated or destroyed."""
TERMINATED: Final = "the ZeroMQ context of the client has been terminated: make a new client"

_monitors = itertools.count()


def _monitor(context: SocketContext, socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """A socket that becomes readable when something becomes of the connection of ``socket``."""
    address = f"inproc://zkv-client-{next(_monitors)}"
    socket.monitor(address, zmq.EVENT_HANDSHAKE_SUCCEEDED | _FAILED)
    monitor = _open(context, zmq.PAIR)
    monitor.connect(address)
    return monitor


class _Environment(tuple[str, ...]):
    """The type of `ENVIRONMENT`, for signatures."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ZKV_ENDPOINT"


ENVIRONMENT: Final = _Environment()
"""In the place of endpoints: those that the environment names. None would be taken by mistake."""


class Endpoints:
    """Where a server may be reached; one place is in use until it fails.

    Args:
        endpoints: one or more of the same server: a write is repeated at any of them; `ENVIRONMENT`
            = those that it names.

    Attributes:
        met: whether there has been a connection to any of them.

    Raises:
        TypeError: one is no text.
        ValueError: there is none, or one is malformed.
    """

    def __init__(self, endpoints: object) -> None:
        if endpoints is ENVIRONMENT:
            endpoints = from_environment()
        if isinstance(endpoints, (str, bytes)) or not isinstance(endpoints, Iterable):
            endpoints = [endpoints]
        self._endpoints = [check_to_connect(each) for each in endpoints]
        if not self._endpoints:
            raise ValueError("no endpoint given")
        self._all = [address for each in self._endpoints for address in addresses(each)]
        self._at = 0
        self.met = False

    @property
    def number(self) -> int:
        """How many different ones there are."""
        return len(set(self._endpoints))

    @property
    def current(self) -> Address:
        """The place to try now."""
        return self._all[self._at]

    def failed(self, address: Address) -> None:
        """Nothing came from ``address``: use the next one."""
        if address == self.current:
            self._at = (self._at + 1) % len(self._all)


def refuse_to_pickle(self: object) -> NoReturn:
    """The ``__reduce__`` of what has connections, and so is not copied, nor sent to a process."""
    raise TypeError(
        f"{type(self).__name__} cannot be pickled or copied, since it has connections: send the "
        f"endpoint, and make a client of its own in the other process"
    )


CLOSED: Final = "the client is closed, as at the end of its with block: make a new one"


def check_context(context: SocketContext | None) -> SocketContext | None:
    """A context in which sockets wait as ZeroMQ has them wait. Raises TypeError."""
    if context is not None:
        checks.instance("context", context, zmq.Context)
        if type(context).__module__ == "zmq.asyncio":
            raise TypeError(
                "context: a zmq.Context; not one of zmq.asyncio, whose sockets are awaited. "
                "zmq.Context(context) shares its sockets' threads"
            )
    return context
