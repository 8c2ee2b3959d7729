"""Sockets as both clients use them, and which endpoint to try.

- LINGER is 0: what was not sent yet goes with its socket. It neither holds up the end of the
  process nor runs when nobody waits for it any more.
- The option IMMEDIATE is left alone: with it, a reply may be lost after which the server closes
  the connection, as after END. So a request waits in its socket until there is a connection, and a
  monitor tells afterwards whether there ever was one: if not, the request has not been sent.
"""

from __future__ import annotations

import errno
import itertools
import math
from collections.abc import Sequence
from typing import Final

import zmq

LONGEST_TIMEOUT: Final = 86_400.0
"""Seconds. A limit there must be, since ZeroMQ counts milliseconds in a C int."""

MONITORED: Final = ("tcp://", "ipc://")
"""Transports that tell whether there is a connection."""

SocketContext = zmq.Context[zmq.Socket[bytes]]


class Connection:
    """One socket and its monitor. To be used by one thread at a time.

    Args:
        context: to make the socket in.
        kind: ``zmq.REQ`` or ``zmq.DEALER``.
        endpoint: of the server.

    Raises:
        ValueError: the endpoint is malformed.
        OSError: the process may not have another socket.
    """

    __slots__ = ("_connected", "_milliseconds", "_monitor", "endpoint", "socket")

    def __init__(self, context: SocketContext, kind: int, endpoint: str) -> None:
        self.endpoint = endpoint
        self._milliseconds = -1
        self._connected = not endpoint.startswith(MONITORED)
        self._monitor: zmq.Socket[bytes] | None = None
        try:
            self.socket = _open(context, kind)
        except zmq.ZMQError as error:
            raise _explain(endpoint, error) from error
        self.socket.ipv6 = "[" in endpoint
        try:
            if not self._connected:
                self._monitor = _monitor(context, self.socket)
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise _explain(endpoint, error) from error

    def was_connected(self) -> bool:
        """Whether there has been a connection, which may have taken what was sent."""
        if not self._connected and self._monitor is not None:
            self._connected = bool(self._monitor.poll(0))
        return self._connected

    def wait_at_most(self, seconds: float) -> None:
        """Have the socket wait no longer than this for a message."""
        milliseconds = math.ceil(seconds * 1000)
        if milliseconds != self._milliseconds:
            self.socket.rcvtimeo = self._milliseconds = milliseconds

    def close(self) -> None:
        """Drop the socket and all that waits in it. May be called again."""
        if self._monitor is not None:
            self.socket.monitor(None, 0)
            self._monitor.close()
            self._monitor = None
        self.socket.close()


def _open(context: SocketContext, kind: int) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.linger = 0
    return socket


def _explain(endpoint: str, error: zmq.ZMQError) -> Exception:
    """The error to raise where a socket could not be made or connected."""
    reason = zmq.strerror(error.errno or 0)
    if error.errno == errno.EMFILE:
        return OSError(error.errno, f"no socket for {endpoint}: {reason}")
    return ValueError(f"endpoint {endpoint!r}: {reason}; expected tcp://HOST:PORT or ipc://PATH")


_monitors = itertools.count()


def _monitor(context: SocketContext, socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """A socket that becomes readable once ``socket`` has been connected."""
    address = f"inproc://zkv-client-{next(_monitors)}"
    socket.monitor(address, zmq.EVENT_HANDSHAKE_SUCCEEDED)
    monitor = _open(context, zmq.PAIR)
    monitor.connect(address)
    return monitor


class Endpoints:
    """Where a server may be reached; one of them is in use until it fails.

    Args:
        endpoints: one or more of the same server: a write is repeated at any of them.

    Raises:
        ValueError: there is none.
    """

    def __init__(self, endpoints: str | Sequence[str]) -> None:
        self._all = [endpoints] if isinstance(endpoints, str) else list(endpoints)
        self._at = 0
        if not self._all:
            raise ValueError("no endpoint given")

    def __iter__(self) -> itertools.chain[str]:
        return itertools.chain(self._all)

    @property
    def current(self) -> str:
        """The endpoint to use now."""
        return self._all[self._at]

    def failed(self, endpoint: str) -> None:
        """Nothing came from ``endpoint``: use the next one."""
        if endpoint == self.current:
            self._at = (self._at + 1) % len(self._all)


def check_timeout(timeout: float) -> float:
    """``timeout`` in seconds. Raises ValueError where it is out of range."""
    if not 0 < timeout <= LONGEST_TIMEOUT:
        raise ValueError(f"timeout {timeout:g}: seconds, above 0 and up to {LONGEST_TIMEOUT:g}")
    return timeout
