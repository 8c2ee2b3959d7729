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
import time
from typing import TYPE_CHECKING, Final

from zkv.broker.peers import ConnectionWatch, traffic
from zkv.broker.sockets import cut_off

if TYPE_CHECKING:
    from zkv.broker.peers import Descriptors, Peer, Traffic

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


class HandshakeWatch(ConnectionWatch["Peer"]):
    """Watches the handshakes at one socket. One thread uses it. It is true if it watches any.

    Args:
        is_curve: True if connections by tcp have CURVE.
        descriptors: copies descriptors.
    """

    def __init__(self, is_curve: bool, descriptors: Descriptors) -> None:
        super().__init__()
        self._most = HANDSHAKE_BYTES + (0 if is_curve else READ_AHEAD_BYTES)
        self._descriptors = descriptors
        self._unread: dict[int, None] = {}  # Those that sent too much for libzmq to read at once.

    def __bool__(self) -> bool:
        return bool(self._watched)

    @property
    def must_look(self) -> bool:
        """True if `suspects` must be called even if no watched peer sends anything more."""
        return bool(self._unread)

    def add(self, descriptor: int, peer: Peer) -> None:
        """Watch a connection by tcp."""
        self._watch(descriptor, peer)

    def _forget(self, descriptor: int) -> None:
        self._unread.pop(descriptor, None)

    def suspects(self) -> list[int]:
        """Return connections that have sent too much for a handshake.

        Take the socket's events afterwards, and call `cut` then.
        """
        fresh = [descriptor for descriptor, _ in self._epoll.poll(0, LOOKS)]
        earlier = list(self._unread)[:LOOKS]
        if fresh:
            self._next_look = time.monotonic() + PAUSE_SECONDS
        return [each for each in dict.fromkeys(fresh + earlier) if self._is_suspect(each)]

    def cut(self, descriptor: int) -> bool:
        """Cut off a suspect, if it is still watched; return True if so."""
        with contextlib.suppress(OSError), self._descriptors.copy(descriptor) as socket:
            if self._is_over(traffic(socket, self._watched.get(descriptor))):
                cut_off(socket)
                self.remove(descriptor)
                return True
        return False

    def _is_suspect(self, descriptor: int) -> bool:
        self._unread.pop(descriptor, None)
        with contextlib.suppress(OSError), self._descriptors.copy(descriptor) as socket:
            look = traffic(socket, self._watched.get(descriptor))
            if look.acked > _ANSWERED:
                self.remove(descriptor)  # It is done.
            elif look.received > self._most >= look.taken:
                self._unread[descriptor] = None
            return self._is_over(look)
        return False

    def _is_over(self, look: Traffic) -> bool:
        return look.taken > self._most and look.acked <= _ANSWERED
