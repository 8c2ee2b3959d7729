"""Sockets as both clients use them, and which endpoint to try.

- LINGER is 0: what was not sent yet goes with its socket. It neither holds up the end of the
  process nor runs when nobody waits for it any more.
- The option IMMEDIATE is left alone: with it, a reply may be lost after which the server closes
  the connection, as after END. So a request waits in its socket until there is a connection, and a
  monitor tells afterwards whether there ever was one: if not, the request has not been sent.
"""

from __future__ import annotations

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
        self.socket = _open(context, kind, endpoint)
        try:
            if not self._connected:
                self._monitor = _monitor(context, self.socket)
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ValueError(
                f"endpoint {endpoint!r}: {zmq.strerror(error.errno or 0)}; expected "
                f"tcp://HOST:PORT or ipc://PATH"
            ) from error
        except BaseException:
            self.close()
            raise

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


def _open(context: SocketContext, kind: int, endpoint: str) -> zmq.Socket[bytes]:
    """A socket. Raises OSError where the process may not have another one."""
    try:
        socket = context.socket(kind)
    except zmq.ZMQError as error:
        reason = f"no socket for {endpoint}: {zmq.strerror(error.errno or 0)}"
        raise OSError(error.errno, reason) from error
    socket.linger = 0
    socket.ipv6 = "[" in endpoint
    return socket


_monitors = itertools.count()


def _monitor(context: SocketContext, socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """A socket that becomes readable once ``socket`` has been connected."""
    address = f"inproc://zkv-client-{next(_monitors)}"
    socket.monitor(address, zmq.EVENT_HANDSHAKE_SUCCEEDED)
    monitor = _open(context, zmq.PAIR, address)
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
