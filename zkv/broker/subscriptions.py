"""The subscriptions of the feed: which topics have followers.

Without users, libzmq applies each subscription itself, and only tells when a topic has got a
follower and when it has lost its last. With users, the feed decides about each (XPUB_MANUAL): it is
applied if the follower may read all keys that begin with the topic, and ignored otherwise. libzmq
keeps the ignored ones, too, so a follower that subscribes to more than `MOST_TOPICS` is cut off.

libzmq also tells, without a word about whose it was, of each subscription of a follower that left,
applied or not. So a topic counts as followed until all who asked for it have left.

Used in the feed's thread alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket as posix
from collections import Counter
from collections.abc import Callable
from typing import Final

import zmq

from zkv.broker.arrivals import Arrivals
from zkv.broker.sockets import cut_off
from zkv.users.registry import NO_ID, Users
from zkv.users.rights import NOBODY

_log = logging.getLogger("zkv.broker")

HEARTBEAT_TOPIC: Final = b"\0"
MOST_TOPICS: Final = 1_000
"""Topics that one follower may subscribe to, where there are users."""
LONGEST_TOPIC: Final = 1_024
"""Bytes of one, likewise."""
MOST_COUNTED: Final = 10_000
"""Followers that are counted before those that have left are forgotten."""
_SUBSCRIBE: Final = b"\x01"

_Socket = zmq.Socket[bytes]
_Connection = tuple[int, int]
"""Its descriptor, and the number of its inode, which tells it from a later one."""


class Subscriptions:
    """The subscriptions at one socket.

    Args:
        users: the users; None = whoever gets in may follow everything.
        begun: called when a topic has got a follower.
        arrivals: takes notes of the senders.
    """

    def __init__(self, users: Users | None, begun: Callable[[], None], arrivals: Arrivals) -> None:
        self._users = users
        self._begun = begun
        self._arrivals = arrivals
        self._asked: Counter[bytes] = Counter()
        self._followed: set[bytes] = set()
        self._topics_of: Counter[_Connection] = Counter()

    def __bool__(self) -> bool:
        """Return True if a topic may have a follower."""
        return bool(self._followed)

    @property
    def all_left(self) -> bool:
        """True if nobody asks for anything. Only where there are users."""
        return not self._asked

    def prepare(self, socket: _Socket) -> None:
        """Set the options of a socket that is not bound yet."""
        if self._users is None:
            socket.xpub_verbose = True  # Every new follower wakes the thread, and gets a heartbeat.
        else:
            socket.setsockopt(zmq.XPUB_MANUAL, 1)

    def take(self, socket: _Socket) -> None:
        """Take the subscriptions that wait at the socket."""
        question = self._arrivals.asked
        while int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            frame = socket.recv(copy=False)
            if self._arrivals.asked:
                self._arrivals.note(frame)
            news = frame.bytes
            topic = news[1:]
            if news[:1] == _SUBSCRIBE:
                self._take(socket, frame, topic)
            elif self._users is None:
                self._followed.discard(topic)  # Its last follower has left.
            else:
                self._leave(socket, frame, topic)
        if question:
            self._arrivals.heard(question, 0, nothing_left=True)

    def _take(self, socket: _Socket, frame: zmq.Frame, topic: bytes) -> None:
        if self._users is not None:
            self._asked[topic] += 1
            if not self._is_within_bounds(frame, topic) or not self._is_permitted(frame, topic):
                return
            socket.setsockopt(zmq.SUBSCRIBE, topic)
        self._followed.add(topic)
        self._begun()

    def _leave(self, socket: _Socket, frame: zmq.Frame, topic: bytes) -> None:
        """Note the end of a subscription, where there are users."""
        connection = _connection(frame)
        if connection is not None:  # The follower is still there.
            self._topics_of[connection] -= 1
        socket.setsockopt(zmq.UNSUBSCRIBE, topic)  # libzmq knows whose, if the follower is there.
        self._asked[topic] -= 1
        if self._asked[topic] <= 0:
            del self._asked[topic]
            self._followed.discard(topic)

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

    def _is_within_bounds(self, frame: zmq.Frame, topic: bytes) -> bool:
        """Count a topic; cut off a follower that has too many, or too long ones."""
        connection = _connection(frame)
        if connection is None:
            return True  # It follows by inproc.
        if self._topics_of[connection] > MOST_TOPICS:
            return False  # It was cut off, and had sent more before.
        self._topics_of[connection] += 1
        if len(self._topics_of) > MOST_COUNTED:
            self._forget_those_who_left()
        if self._topics_of[connection] <= MOST_TOPICS and len(topic) <= LONGEST_TOPIC:
            return True
        self._topics_of[connection] = MOST_TOPICS + 1
        _log.warning(
            "a follower at %s was cut off: it subscribed to more than %d topics, or to one of more "
            "than %d bytes", _property(frame, "Peer-Address"), MOST_TOPICS, LONGEST_TOPIC,
        )  # fmt: skip
        _cut(connection)
        return False

    def _forget_those_who_left(self) -> None:
        for connection in list(self._topics_of):
            if _inode(connection[0]) != connection[1]:
                del self._topics_of[connection]


def _property(frame: zmq.Frame, name: str) -> str:
    """Return what libzmq tells of the sender of a message; empty if nothing."""
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""


def _connection(frame: zmq.Frame) -> _Connection | None:
    """Return the connection that brought a message; None if it came by inproc, or has ended."""
    try:
        descriptor = int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return None
    return descriptor, _inode(descriptor)


def _inode(descriptor: int) -> int:
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return 0


def _cut(connection: _Connection) -> None:
    """End a connection, unless its descriptor has become another one's."""
    with contextlib.suppress(OSError):
        descriptor = os.dup(connection[0])
        with posix.socket(fileno=descriptor) as copy:
            if os.fstat(descriptor).st_ino == connection[1]:
                cut_off(copy)
