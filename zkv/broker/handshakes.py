"""Ends connections that send too much before their handshake is done.

libzmq keeps what a peer sends in its handshake, up to the limit for messages. It bounds the time of
a handshake (`HANDSHAKE_MS`); the watch here adds a bound in bytes. It asks the system how much a
connection has sent, and cuts it off.

libzmq does not tell whose handshake has succeeded, so the watch concludes it. It must never cut off
a proper client, even one whose first request is large and comes together with its handshake.

- With CURVE the server's last command of the handshake tells. A peer that has got no more than the
  answers before that command is not done: libzmq refuses one that does not wait for it.
- Without CURVE a success ends the watch of all the socket's connections, as it may be that of any.
  libzmq reads `READ_AHEAD_BYTES` at a time, and reports a success before it reads on. So the thread
  first looks what libzmq has read, then takes the events, and then cuts off. This protects from
  mistakes only; but without CURVE anybody can complete a handshake anyway.

A peer that sends wakes the thread; one that is silent costs nothing. A look takes at most `LOOKS`
connections, and the next one comes `PAUSE_SECONDS` later. Meanwhile loopback brings about 5 MB, and
a network of 10 Gbit/s 2.5 MB, to all connections together, as one I/O thread reads them. The
system's buffers (``tcp_rmem``) hold what libzmq has not read.

Only tcp is watched. The system does not count what comes by ipc, so there the time must suffice,
and the mode of the socket's file says who can connect.
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
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from zkv.broker.sockets import cut_off

if TYPE_CHECKING:
    from collections.abc import Iterator

HANDSHAKE_MS: Final = 3_000
"""Time that a handshake may take. libzmq then ends the connection."""
HANDSHAKE_BYTES: Final = 4_096
"""Bytes that a peer may send in its handshake. libzmq's own clients send less than 1,000."""
READ_AHEAD_BYTES: Final = 8_192
"""Bytes that libzmq reads before it uses the first of them (its ``in_batch_size``)."""
PAUSE_SECONDS: Final = 0.002
"""Time between two looks."""
LOOKS: Final = 64
"""Connections that one look takes."""

_ANSWERED: Final = 64 + 170 + 12
"""The most bytes that a server with CURVE answers before a handshake is done: greeting, WELCOME and
ERROR. READY, which it sends instead of ERROR, has at least 52."""

# The system's `struct tcp_info`, as far as tcpi_bytes_acked and tcpi_bytes_received.
_TCP_INFO: Final = struct.Struct("=120x2Q")
_INT: Final = struct.Struct("=i")
_CREDENTIALS: Final = struct.Struct("=3i")  # The system's `struct ucred`.
# With EPOLLOUT, which is nearly always true, since what arrives is reported only if any of these
# is still true when the thread asks; libzmq may have read the data by then.
_ARRIVALS: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET


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


class _Look(NamedTuple):
    received: int
    taken: int
    """Of the bytes received, those that libzmq has read; or fewer."""
    acked: int
    """Bytes of the server's that the peer has got."""


class HandshakeWatch:
    """Watches the handshakes at one socket. One thread uses it. It is true if it watches any.

    Args:
        is_curve: True if connections by tcp have CURVE.
    """

    def __init__(self, is_curve: bool) -> None:
        self._most = HANDSHAKE_BYTES + (0 if is_curve else READ_AHEAD_BYTES)
        self._epoll = select.epoll()
        # Its descriptor is the place of `_copy`. It is kept ready, since an attacker may have used
        # up all others. AF_UNIX, since Python then makes room for the addresses of any family.
        self._copied = posix.socket(posix.AF_UNIX)
        self._watched: dict[int, Peer] = {}  # By descriptor.
        self._unread: dict[int, None] = {}  # Those that sent too much for libzmq to read at once.

    def __bool__(self) -> bool:
        return bool(self._watched)

    def fileno(self) -> int:
        """Return a descriptor that is readable if a watched peer has sent something."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Close the descriptors."""
        self._copied.close()
        self._epoll.close()

    @property
    def must_look(self) -> bool:
        """True if `suspects` must be called even if no watched peer sends anything more."""
        return bool(self._unread)

    def find_peer(self, descriptor: int, endpoint: str) -> Peer | None:
        """Return the peer of a connection; None if the connection has ended.

        Args:
            descriptor: of the connection, or by now of anything else.
            endpoint: where it was accepted, as libzmq reports it.
        """
        with contextlib.suppress(OSError), self._copy(descriptor) as socket:
            name = socket.getsockname()
            is_tcp = isinstance(name, tuple)
            if endpoint not in (_tcp_endpoints(name) if is_tcp else _ipc_endpoints(name)):
                return None
            address = _tcp_address(socket) if is_tcp else _ipc_address(socket)
            return Peer(address, is_tcp, os.fstat(socket.fileno()).st_ino, time.monotonic())
        return None

    def add(self, descriptor: int, peer: Peer) -> None:
        """Watch a connection by tcp, whose descriptor libzmq may close at any time."""
        self.remove(descriptor)  # It was another one's.
        with contextlib.suppress(OSError):  # The connection has ended.
            self._epoll.register(descriptor, _ARRIVALS)
            self._watched[descriptor] = peer

    def remove(self, descriptor: int) -> None:
        """Watch a connection no longer, if it is watched."""
        if self._watched.pop(descriptor, None) is not None:
            self._unread.pop(descriptor, None)
            with contextlib.suppress(OSError):  # The connection has ended.
                self._epoll.unregister(descriptor)

    def remove_all(self) -> None:
        """Watch none of the present connections any longer."""
        for descriptor in list(self._watched):
            self.remove(descriptor)

    def suspects(self) -> list[int]:
        """Return connections that have sent too much for a handshake.

        Take the socket's events afterwards, and call `cut` then.
        """
        fresh = [descriptor for descriptor, _ in self._epoll.poll(0, LOOKS)]
        earlier = list(self._unread)[:LOOKS]
        return [each for each in dict.fromkeys(fresh + earlier) if self._is_suspect(each)]

    def cut(self, descriptor: int) -> bool:
        """Cut off a suspect, if it is still watched; return True if so."""
        with contextlib.suppress(OSError), self._copy(descriptor) as socket:
            if self._is_over(self._look(descriptor, socket)):
                cut_off(socket)
                self.remove(descriptor)
                return True
        return False

    def _is_suspect(self, descriptor: int) -> bool:
        self._unread.pop(descriptor, None)
        with contextlib.suppress(OSError), self._copy(descriptor) as socket:
            look = self._look(descriptor, socket)
            if look.acked > _ANSWERED:
                self.remove(descriptor)  # It is done.
            elif look.received > self._most >= look.taken:
                self._unread[descriptor] = None
            return self._is_over(look)
        return False

    def _is_over(self, look: _Look) -> bool:
        return look.taken > self._most and look.acked <= _ANSWERED

    def _look(self, descriptor: int, socket: posix.socket) -> _Look:
        """Look at a connection, through its copy. Returns zeros if it is not watched any more."""
        peer = self._watched.get(descriptor)
        if peer is None or os.fstat(socket.fileno()).st_ino != peer.inode:
            return _Look(0, 0, 0)
        info = socket.getsockopt(posix.IPPROTO_TCP, posix.TCP_INFO, _TCP_INFO.size)
        acked, received = _TCP_INFO.unpack(info)
        # Asked for later, so that `taken` is never too large.
        (unread,) = _INT.unpack(fcntl.ioctl(socket, termios.FIONREAD, bytes(_INT.size)))
        return _Look(received, received - unread, acked)

    @contextlib.contextmanager
    def _copy(self, descriptor: int) -> Iterator[posix.socket]:
        """Copy a descriptor. The copy stays the same, even if libzmq closes the original.

        Raises:
            OSError: it is no socket, or no more.
        """
        os.dup2(descriptor, self._copied.fileno(), inheritable=False)
        try:
            yield self._copied
        finally:
            os.dup2(self._epoll.fileno(), self._copied.fileno(), inheritable=False)


def _tcp_endpoints(name: tuple[Any, ...]) -> tuple[str, str]:
    """Return the endpoints that a socket with this name can be at, for IPv4 and IPv6."""
    host, port = name[:2]
    return f"tcp://{host}:{port}", f"tcp://[{host}]:{port}"


def _ipc_endpoints(name: str | bytes) -> tuple[str]:
    # An abstract address begins with NUL.
    return ("ipc://" + os.fsdecode(name).replace("\0", "@"),)


def _tcp_address(socket: posix.socket) -> str:
    host: str = socket.getpeername()[0]
    return host.removeprefix("::ffff:")  # Of IPv4, at an endpoint for both.


def _ipc_address(socket: posix.socket) -> str:
    data = socket.getsockopt(posix.SOL_SOCKET, posix.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(data)
    return uid_address(uid)


def uid_address(uid: int) -> str:
    """Return how the log names a peer by ipc, which has no address."""
    return f"uid {uid} of this machine"
