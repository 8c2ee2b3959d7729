"""Ends connections that send a message without an end.

libzmq bounds one frame of a message (`max_message_bytes`), but not their number. Until the last one
has arrived, it keeps them where nobody else sees them. The watch here adds a bound in bytes. It
asks the system how much a connection has brought, and cuts it off.

It must never cut off a proper client: one may send the largest message slowly, send many that wait
because the server is held up, and do both at once. So bytes count as an unfinished message only if
the thread that receives says so (`zkv.broker.arrivals`):

- A connection that has brought `SHARE` of the bound since it was last known to have completed a
  message becomes a suspect. From then on the thread notes who sends.
- If it then brings more than the bound, the watch asks the thread to receive all that waits. If
  none of that came from this connection, all these bytes belong to one message that has not ended.

libzmq bounds how many messages wait for the front, but not how many wait for the feed. A follower
has little to say, so what it has sent and the feed has not taken yet has the same bound.

What libzmq keeps is memory of the process. So a look costs little while that has hardly grown: it
takes in all connections only then, or after `LONGEST_SECONDS`.

A peer that sends wakes the watch, at most once per `PAUSE_SECONDS`, or `SOON_SECONDS` while there
is a suspect; one that is silent costs nothing. A look takes at most `LOOKS` connections. So beside
the bound, and `SHARE` of it, a peer can send what the network brings between two looks: 20 ms for
up to 256 peers that send at the same moment. Loopback brings 20 to 40 MB in that time.

Only tcp is watched. The system does not count what comes by ipc; there the mode of the socket's
file, or its user, says who can connect.
"""

from __future__ import annotations

import contextlib
import select
import time
from typing import TYPE_CHECKING, Final

from zkv.broker.peers import NO_TRAFFIC, RECEIVED, ConnectionWatch, traffic
from zkv.broker.sockets import cut_off
from zkv.collector import resident_bytes

if TYPE_CHECKING:
    from zkv.broker.arrivals import Arrivals
    from zkv.broker.peers import Descriptors, Peer

PAUSE_SECONDS: Final = 0.02
"""Time between two looks."""
SOON_SECONDS: Final = 0.005
"""The same while there is a suspect."""
LOOKS: Final = 256
"""Connections that one look takes."""
SHARE: Final = 16
"""A connection becomes a suspect when it has brought 1/SHARE of the bound."""


GROWTH_BYTES: Final = 2 << 20
"""Growth of the process's memory after which a look takes in all connections."""
LONGEST_SECONDS: Final = 0.5
"""After this time it does so in any case."""


class _Connection:
    """A connection that is watched.

    Attributes:
        peer: the other end.
        mark: bytes that it had brought when it was last known to have completed a message.
        base: of a suspect, the bytes that libzmq had read when senders began to be noted.
        taken: of a suspect, the same at the last question.
        known: of a suspect, the same at the last question that was answered.
    """

    __slots__ = ("base", "known", "mark", "peer", "taken")

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.mark = self.base = self.taken = self.known = 0

    def suspect(self, taken: int) -> None:
        """Begin to count what it brings; libzmq has read so many bytes."""
        self.base = self.taken = self.known = taken


class MessageWatch(ConnectionWatch[_Connection]):
    """Watches what comes by tcp to one socket. The monitor's thread uses it.

    Args:
        most: bytes that a message may have, whatever is sent with it included.
        waiting: True if all messages that wait together may have no more.
        arrivals: what the socket's thread receives.
        descriptors: copies descriptors.
    """

    def __init__(
        self, most: int, waiting: bool, arrivals: Arrivals, descriptors: Descriptors
    ) -> None:
        super().__init__()
        self.most = most
        self.waiting = waiting
        self._arrivals = arrivals
        self._descriptors = descriptors
        self._arrived = select.poll()  # Tells, without taking anything, if that has something.
        self._arrived.register(self._epoll, select.POLLIN)
        self._suspects: dict[int, _Connection] = {}  # Of those that are watched.
        self._question = 0  # Not answered yet; 0 = there is none.
        self._least = 0  # Memory of the process since the last look at all connections.
        self._look_at_all = 0.0

    def add(self, descriptor: int, peer: Peer) -> None:
        """Watch a connection by tcp."""
        self._watch(descriptor, _Connection(peer))

    def _forget(self, descriptor: int) -> None:
        self._suspects.pop(descriptor, None)

    @property
    def must_look(self) -> bool:
        """True if `look` must be called even if no watched peer sends anything more."""
        return self._question > 0

    def look(self) -> list[int]:
        """Cut off those that have sent too much of a message; return their descriptors."""
        if not self._suspects and not self._question:
            if not self._arrived.poll(0):
                return []  # What arrives next wakes the watch.
            if not self._has_grown():
                self._next_look = time.monotonic() + PAUSE_SECONDS
                return []
        is_answered = self._question > 0 and self._arrivals.has_answered(self._question)
        ended = [each for each in list(self._suspects) if self._is_endless(each, is_answered)]
        if is_answered:
            self._question = 0
        arrived = self._look_for_suspects()
        suspects = self._suspects.values()
        if not self._question and (any(map(self._is_over, suspects)) or self._must_ask):
            self._question = self._arrivals.ask(len(self._watched))
            self._arrivals.wake()
        if not self._suspects:
            self._question = 0
            self._arrivals.rest()
        if arrived or self._question:  # Else what arrives next wakes the watch.
            pause = SOON_SECONDS if self._suspects else PAUSE_SECONDS
            self._next_look = time.monotonic() + pause
        return ended

    def _has_grown(self) -> bool:
        """Return True if messages without an end may have come since this last was True."""
        memory, now = resident_bytes(), time.monotonic()
        if memory is None or now >= self._look_at_all or memory > self._least + GROWTH_BYTES:
            self._least = memory or 0
            self._look_at_all = now + LONGEST_SECONDS
            return True
        self._least = min(self._least, memory)
        return False

    @property
    def _must_ask(self) -> bool:
        """True if a suspect's messages may have been taken, which only an answer tells."""
        return self.waiting and bool(self._suspects)

    def _is_over(self, connection: _Connection) -> bool:
        return connection.taken - connection.base > self.most

    def _has_brought_much(self, descriptor: int, received: int) -> bool:
        connection = self._watched.get(descriptor)
        if connection is None or received - connection.mark <= self.most // SHARE:
            return False
        return descriptor not in self._suspects

    def _look_for_suspects(self) -> bool:
        """Look at those that have sent something; return True if there were any."""
        arrived = [descriptor for descriptor, _ in self._epoll.poll(0, LOOKS)]
        brought = zip(arrived, RECEIVED(arrived), strict=True)
        fresh = [each for each, count in brought if self._has_brought_much(each, count)]
        if fresh and not self._arrivals.asked:
            self._arrivals.ask(len(self._watched))  # For the senders alone.
        for descriptor in fresh:
            self._arrivals.forget(descriptor)
            connection = self._watched[descriptor]
            with contextlib.suppress(OSError), self._descriptors.copy(descriptor) as socket:
                connection.suspect(traffic(socket, connection.peer).taken)
                self._suspects[descriptor] = connection
        return bool(arrived)

    def _is_endless(self, descriptor: int, is_answered: bool) -> bool:
        """Look at a suspect; cut it off if its message has no end, and return True if so."""
        connection = self._suspects[descriptor]
        with contextlib.suppress(OSError), self._descriptors.copy(descriptor) as socket:
            now = traffic(socket, connection.peer)
            if now is NO_TRAFFIC:
                return False  # It has ended, which its event will tell.
            has_sent = self._arrivals.has_sent(descriptor)
            if is_answered:
                connection.known = connection.taken
            if has_sent and (is_answered or not self.waiting):
                connection.mark = now.received
                del self._suspects[descriptor]
            elif (is_answered and not has_sent and self._is_over(connection)) or (
                self.waiting and now.taken - connection.known > self.most
            ):
                cut_off(socket)
                self.remove(descriptor)
                return True
            elif is_answered or not self._question:  # Else it would be newer than the question.
                connection.taken = now.taken
        return False
