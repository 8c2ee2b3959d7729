"""Asks the system about connections of libzmq, by their descriptors.

libzmq may close a descriptor at any time, and it may become another one's. So whoever acts on a
connection does so through a copy, which stays the same, and compares the inode.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket as posix
import struct
import termios
import time
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from zkv.broker.sockets import cut_off, is_connection_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# The system's `struct tcp_info`, as far as tcpi_bytes_acked and tcpi_bytes_received.
_TCP_INFO: Final = struct.Struct("=120x2Q")
_INT: Final = struct.Struct("=i")
_CREDENTIALS: Final = struct.Struct("=3i")  # The system's `struct ucred`.


class Peer(NamedTuple):
    """The other end of a connection."""

    address: str
    """Where it is, for the log."""
    is_tcp: bool
    inode: int
    """Identifies the connection; its descriptor can become another one's."""
    accepted_at: float
    """Time by the system's steady clock."""

    @property
    def age(self) -> float:
        """Seconds since the connection was accepted."""
        return time.monotonic() - self.accepted_at


class Traffic(NamedTuple):
    """The bytes that have passed on a connection."""

    received: int
    taken: int
    """Of the bytes received, those that libzmq has read; or fewer."""
    acked: int
    """Bytes of the server's that the peer has got."""


NO_TRAFFIC: Final = Traffic(0, 0, 0)


_Watched = TypeVar("_Watched")

# With EPOLLOUT, which is nearly always true, since what arrives is reported only if any of these
# is still true when the thread asks; libzmq may have read the data by then.
_ARRIVALS: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET


class ConnectionWatch(Generic[_Watched]):
    """The tcp connections that are watched at one socket, and which of them has sent something.

    libzmq may close their descriptors at any time. One thread uses it.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, _Watched] = {}  # By descriptor.
        self._next_look = 0.0

    def fileno(self) -> int:
        """Return a descriptor that is readable if a watched peer has sent something."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Close what this object has opened."""
        self._epoll.close()

    @property
    def seconds_left(self) -> float:
        """Seconds for which the watch rests; 0 or less: it may look."""
        return self._next_look - time.monotonic()

    def remove(self, descriptor: int) -> None:
        """Watch a connection no longer, if it is watched."""
        if self._watched.pop(descriptor, None) is not None:
            self._forget(descriptor)
            with contextlib.suppress(OSError):  # The connection has ended.
                self._epoll.unregister(descriptor)

    def remove_all(self) -> None:
        """Watch none of the present connections any longer."""
        for descriptor in list(self._watched):
            self.remove(descriptor)

    def _watch(self, descriptor: int, watched: _Watched) -> None:
        self.remove(descriptor)  # It was another one's.
        with contextlib.suppress(OSError):  # The connection has ended.
            self._epoll.register(descriptor, _ARRIVALS)
            self._watched[descriptor] = watched

    def _forget(self, descriptor: int) -> None:
        """Forget what else is known of a connection that is watched no longer."""


class Descriptors:
    """The descriptors of connections. One thread uses it, between `open` and `close`."""

    _copied: posix.socket
    _nothing = -1

    def open(self) -> None:
        """Open what `copy` needs, unless it is open."""
        # The socket's descriptor is the place of the copy. It is kept ready, since an attacker may
        # have used up all others. AF_UNIX: Python then makes room for addresses of any family.
        if self._nothing < 0:
            self._copied = posix.socket(posix.AF_UNIX)
            self._nothing = os.open(os.devnull, os.O_RDONLY)

    def close(self) -> None:
        """Close what this object has opened."""
        if self._nothing >= 0:
            self._copied.close()
            os.close(self._nothing)
            self._nothing = -1

    @contextlib.contextmanager
    def copy(self, descriptor: int) -> Iterator[posix.socket]:
        """Copy a descriptor. The copy stays the same, even if libzmq closes the original.

        Raises:
            OSError: it is no socket, or no more.
        """
        os.dup2(descriptor, self._copied.fileno(), inheritable=False)
        try:
            yield self._copied
        finally:
            os.dup2(self._nothing, self._copied.fileno(), inheritable=False)

    def find_peer(self, descriptor: int, endpoint: str) -> Peer | None:
        """Return the peer of a connection; None if the connection has ended.

        Args:
            descriptor: of the connection, or by now of anything else.
            endpoint: where it was accepted, as libzmq reports it.
        """
        with contextlib.suppress(OSError), self.copy(descriptor) as socket:
            if is_connection_at(socket.fileno(), endpoint):
                # The object's `family` is that of the place which the copy took.
                is_tcp = isinstance(socket.getsockname(), tuple)
                inode = os.fstat(socket.fileno()).st_ino
                return Peer(peer_address(socket), is_tcp, inode, time.monotonic())
        return None

    def cut_off(self, descriptor: int, peer: Peer) -> bool:
        """End a connection, if it is still there; return True if so."""
        with contextlib.suppress(OSError), self.copy(descriptor) as socket:
            if os.fstat(socket.fileno()).st_ino == peer.inode:
                cut_off(socket)
                return True
        return False


def traffic(socket: posix.socket, peer: Peer | None) -> Traffic:
    """Return what has passed on a copied tcp connection; zeros if it is not that of ``peer``.

    Raises OSError.
    """
    if peer is None or os.fstat(socket.fileno()).st_ino != peer.inode:
        return NO_TRAFFIC
    info = socket.getsockopt(posix.IPPROTO_TCP, posix.TCP_INFO, _TCP_INFO.size)
    acked, received = _TCP_INFO.unpack(info)
    # Asked for later, so that `taken` is never too large.
    return Traffic(received, received - queued(socket, termios.FIONREAD), acked)


def queued(socket: posix.socket, question: int) -> int:
    """Return the bytes in a queue of the system's; ``question`` says in which. Raises OSError."""
    (size,) = _INT.unpack(fcntl.ioctl(socket, question, bytes(_INT.size)))
    return int(size)


def received(descriptors: Sequence[int]) -> list[int]:
    """Return the bytes that have arrived on each tcp connection, or on what it is now; 0: none.

    The watch asks often, so `_frames.c` does the same.
    """
    return [_received_by(each) for each in descriptors]


def _received_by(descriptor: int) -> int:
    try:
        socket = posix.socket(posix.AF_INET, posix.SOCK_STREAM, 0, descriptor)
    except OSError:
        return 0
    try:
        info = socket.getsockopt(posix.IPPROTO_TCP, posix.TCP_INFO, _TCP_INFO.size)
    except OSError:
        return 0
    finally:
        socket.detach()
    return int(_TCP_INFO.unpack(info)[1])


def _find_compiled() -> Callable[[Sequence[int]], list[int]]:
    try:
        from zkv.broker import _frames
    except ImportError:
        return received
    return _frames.received


RECEIVED: Final = _find_compiled()
"""`received`, in C where it is built."""


def peer_address(socket: posix.socket) -> str:
    """Return how the log names the peer of a connection by tcp or ipc. Raises OSError."""
    if isinstance(socket.getsockname(), tuple):
        host: str = socket.getpeername()[0]
        return host.removeprefix("::ffff:")  # Of IPv4, at an endpoint for both.
    data = socket.getsockopt(posix.SOL_SOCKET, posix.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(data)
    return uid_address(uid)


def uid_address(uid: int) -> str:
    """Return how the log names a peer by ipc, which has no address."""
    return f"uid {uid} of this machine"
