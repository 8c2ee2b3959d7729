"""The subscriptions of the feed: which topics have followers, within bounds.

Without users, libzmq applies each subscription itself. With users, the feed decides about each
(XPUB_MANUAL): it is applied if the follower may read all keys that begin with the topic, and
ignored otherwise. In both cases libzmq tells of every subscription and of every end of one, and
keeps each topic in a tree that takes about 50 bytes for each byte of it, even if it is ignored. So
a follower that exceeds the bounds is cut off: to ignore it would bound nothing. The bounds are on
the number of its topics, on the length of each, and on how often they change.

A subscription comes with the descriptor of its connection. Each connection has the set of its
topics here, so a repeated subscription, or the end of one that it never had, changes nothing. When
a follower has left, libzmq tells of the end of its subscriptions without a word about whose they
were. So the connections are looked at a moment later, and those that have ended are forgotten.

Some subscriptions come without a descriptor, and share one set: those by inproc, which have no
bounds, as they are the program's own; and those of peers with ZMTP 2 or older, which have one
follower's bounds together. If they exceed these, all connections that are not known are cut off.

A message of a follower that is no subscription confuses libzmq about whose the next ones are, until
none waits. With users, whoever sent such a message, or one of the next ones, is cut off, and can
connect and subscribe again.

Used in the feed's thread alone, except for `__bool__`.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket as posix
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import zmq

from zkv.broker.arrivals import Arrivals
from zkv.broker.peers import peer_address
from zkv.broker.refusals import FOLLOWER, Refusal
from zkv.broker.sockets import INPROC, connections_at, cut_off, is_connection_at
from zkv.users.registry import NO_ID, Users
from zkv.users.rights import NOBODY

HEARTBEAT_TOPIC: Final = b"\0"
LONGEST_TOPIC: Final = 1_024
"""Bytes of a topic, unless keys may be longer."""
CHANGES_A_SECOND: Final = 10
"""Subscriptions and ends of subscriptions that a follower may send in a second, for each topic that
it may have."""
WAITING: Final = 8
"""Subscriptions that wait between libzmq's I/O thread and this one, for each follower. libzmq puts
them into its tree before anybody can count them."""
WAITING_BYTES: Final = 65_536
"""Bytes that wait in the system, for the same reason."""
LOOK_SECONDS: Final = 0.1
"""Time from a sign that followers have left until their connections are looked at."""
_END: Final = b"\0"
_SUBSCRIBE: Final = b"\1"

_Socket = zmq.Socket[bytes]
_Connection = tuple[int, int]
"""Its descriptor, and the number of its inode, which tells it from a later one."""
_UNKNOWN: Final[_Connection] = (-1, 0)
"""Stands for all connections of which libzmq does not tell the descriptor."""
_TOO_MANY: Final = Refusal(FOLLOWER, "subscribed to more topics than limits.max_topics allows")
_TOO_LONG: Final = Refusal(FOLLOWER, "subscribed to a topic that is too long")
_TOO_OFTEN: Final = Refusal(FOLLOWER, "changed its subscriptions too often")
_CONFUSED: Final = Refusal(
    FOLLOWER, "sent a message that is no subscription, or at the same moment"
)


class TopicBounds(NamedTuple):
    """Bounds on the topics of one follower."""

    topics: int
    """Number of topics at a time."""
    longest: int
    """Bytes of one."""


class _Follower:
    """The topics of one connection, and how often they have lately changed.

    Args:
        shared: connections share this: those that are not known.

    Attributes:
        topics: how many subscriptions to each topic are applied: 0 if it was not permitted, and
            more than 1 only if connections share this.
        second: the second in which the last change was.
        changes: the number of changes in it.
        is_cut: it was cut off. What it had sent before still comes.
    """

    __slots__ = ("changes", "is_cut", "second", "shared", "topics")

    def __init__(self, shared: bool) -> None:
        self.shared = shared
        self.topics: dict[bytes, int] = {}
        self.second = 0
        self.changes = 0
        self.is_cut = False


class Subscriptions:
    """The subscriptions at one socket.

    Args:
        users: the users; None = whoever gets in may follow everything.
        bounds: of each follower.
        begun: called when somebody subscribes.
        cut_off: called with the address of a follower that is cut off, and the reason.
        arrivals: takes notes of the senders.
    """

    def __init__(
        self,
        users: Users | None,
        bounds: TopicBounds,
        begun: Callable[[], None],
        cut_off: Callable[[str, Refusal], None],
        arrivals: Arrivals,
    ) -> None:
        self._users = users
        self._bounds = bounds
        self._begun = begun
        self._arrivals = arrivals
        self._tell = cut_off
        self.endpoint = ""
        """Where the socket is bound; set by then."""
        self._followers: dict[_Connection, _Follower] = {}
        self._applied = 0
        self._look_at = math.inf

    def __bool__(self) -> bool:
        """Return True if a topic may have a follower. Any thread."""
        return self._applied > 0

    @property
    def all_left(self) -> bool:
        """True if nobody follows any more. Takes time."""
        self._forget_those_who_left()
        return not self._followers

    def prepare(self, socket: _Socket) -> None:
        """Set the options of a socket that is not bound yet."""
        socket.rcvhwm = WAITING
        socket.rcvbuf = WAITING_BYTES
        socket.setsockopt(zmq.XPUB_VERBOSER if self._users is None else zmq.XPUB_MANUAL, 1)

    def take(self, socket: _Socket) -> None:
        """Take the subscriptions that wait at the socket."""
        question = self._arrivals.asked
        now = time.monotonic()
        if now >= self._look_at:
            self._forget_those_who_left()
        confused = False
        while int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            frame = socket.recv(copy=False)
            if self._arrivals.asked:
                self._arrivals.note(frame)
            kind = frame.bytes[:1]
            confused = confused or kind not in {_SUBSCRIBE, _END}
            connection = _connection(frame)
            if connection is _UNKNOWN and kind == _END and not self._is_inproc:
                self._look_at = min(self._look_at, now + LOOK_SECONDS)  # Somebody has left.
                continue
            follower = self._follower(connection)
            if follower is None or follower.is_cut:
                continue  # libzmq takes its subscriptions back by itself.
            fault = None if self._is_inproc else self._fault(follower, frame, confused, int(now))
            if fault is not None:
                follower.is_cut = self._cut(connection, fault)
            elif kind == _SUBSCRIBE:
                self._begin(socket, follower, frame)
            elif kind == _END:
                self._end(socket, follower, frame.bytes[1:])
        if question:
            self._arrivals.heard(question, 0, nothing_left=True)

    @property
    def _is_inproc(self) -> bool:
        return self.endpoint.startswith(INPROC)

    def _follower(self, connection: _Connection) -> _Follower | None:
        """Return the follower with this connection; None if the connection has ended."""
        follower = self._followers.get(connection)
        if follower is None:
            shared = connection is _UNKNOWN
            if not shared and not is_connection_at(connection[0], self.endpoint):
                return None
            follower = self._followers[connection] = _Follower(shared)
        return follower

    def _fault(
        self, follower: _Follower, frame: zmq.Frame, confused: bool, second: int
    ) -> Refusal | None:
        """Count what a follower sends; return why it must be cut off; None: it need not be."""
        if confused and self._users is not None:
            return _CONFUSED
        if second != follower.second:
            follower.second, follower.changes = second, 0
        follower.changes += 1
        if follower.changes > CHANGES_A_SECOND * self._bounds.topics:
            return _TOO_OFTEN
        kind, topic = frame.bytes[:1], frame.bytes[1:]
        if kind != _SUBSCRIBE or topic in follower.topics:
            return None
        if len(topic) > self._bounds.longest:
            return _TOO_LONG
        return None if len(follower.topics) < self._bounds.topics else _TOO_MANY

    def _begin(self, socket: _Socket, follower: _Follower, frame: zmq.Frame) -> None:
        """Note a subscription; with users, have libzmq apply it if it is permitted."""
        topic = frame.bytes[1:]
        before = follower.topics.get(topic)
        if before is None or follower.shared:
            applied = self._users is None or self._apply(socket, frame, topic)
            follower.topics[topic] = (before or 0) + applied
            self._applied += applied
        self._begun()

    def _end(self, socket: _Socket, follower: _Follower, topic: bytes) -> None:
        """Note the end of a subscription."""
        if self._users is not None:
            socket.setsockopt(zmq.UNSUBSCRIBE, topic)  # libzmq knows whose.
        applied = follower.topics.pop(topic, 0)
        self._applied -= min(applied, 1)
        if applied > 1:
            follower.topics[topic] = applied - 1

    def _apply(self, socket: _Socket, frame: zmq.Frame, topic: bytes) -> bool:
        """Have libzmq apply a subscription, if it is permitted; return True if so."""
        permitted = self._is_permitted(frame, topic)
        if permitted:
            socket.setsockopt(zmq.SUBSCRIBE, topic)
        return permitted

    def _is_permitted(self, frame: zmq.Frame, topic: bytes) -> bool:
        """Return True if a follower may now read all keys that begin with a topic."""
        users = self._users
        if users is None:
            return True
        user = users.of(_property(frame, "User-Id") or NO_ID)
        if topic == HEARTBEAT_TOPIC:
            return user is not NOBODY
        # A topic may end within a character: then what precedes that must be permitted.
        return user.may_read(topic.decode(errors="ignore"))

    def _cut(self, connection: _Connection, fault: Refusal) -> bool:
        """End a connection, or all that are not known; return True if there was one."""
        cut = False
        if connection is _UNKNOWN:
            unknown = self._unknown_connections()
            self._look_at = min(self._look_at, time.monotonic() + LOOK_SECONDS)
        else:
            unknown = connections_at(self.endpoint, [connection[0]])
        for copy in unknown:
            with contextlib.suppress(OSError):  # It has ended by itself.
                if connection is _UNKNOWN or os.fstat(copy.fileno()).st_ino == connection[1]:
                    self._tell(peer_address(copy), fault)
                    cut_off(copy)
                    cut = True
        return cut

    def _unknown_connections(self) -> Iterator[posix.socket]:
        """Yield a copy of each connection that has not subscribed with its descriptor."""
        known = {inode for _, inode in self._followers}
        for copy in connections_at(self.endpoint):
            if os.fstat(copy.fileno()).st_ino not in known:
                yield copy

    def _forget_those_who_left(self) -> None:
        self._look_at = math.inf
        for connection, follower in list(self._followers.items()):
            if self._is_there(connection):
                follower.is_cut = follower.is_cut and not follower.shared
            else:
                self._applied -= sum(follower.topics.values())
                del self._followers[connection]

    def _is_there(self, connection: _Connection) -> bool:
        if connection is not _UNKNOWN:
            return _inode(connection[0]) == connection[1]
        return self._is_inproc or any(True for _ in self._unknown_connections())


def _property(frame: zmq.Frame, name: str) -> str:
    """Return what libzmq tells of the sender of a message; empty if nothing."""
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""


def _connection(frame: zmq.Frame) -> _Connection:
    """Return the connection that brought a message, or `_UNKNOWN`.

    If it has ended, its descriptor may by now be another one's.
    """
    try:
        descriptor = int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return _UNKNOWN
    return descriptor, _inode(descriptor)


def _inode(descriptor: int) -> int:
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return 0
