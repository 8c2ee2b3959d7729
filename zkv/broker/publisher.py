"""Publishes messages, and knows how much of them waits for followers: in pure Python, and in C.

A message goes to each follower that has subscribed to its topic. libzmq keeps one copy of the body
for all of them, and frees it once it has been handed to the system for the last one. It calls a
function then. So what waits is counted, in messages and bytes; libzmq itself tells of neither.

`PythonPublisher` specifies the behaviour; `_frames.c` does the same with less work for each
message. `PUBLISHER` is the class in use.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

import zmq

from zkv.broker import frames


class Publisher(Protocol):
    """The socket of a feed. Must be used in one thread."""

    @property
    def waiting(self) -> tuple[int, int]:
        """Messages that not all their followers have got, and bytes of these."""

    def send(self, topic: bytes, body: bytes, /) -> bool:
        """Send a message to all who follow its topic.

        Return False if the socket does not drop (XPUB_NODROP), and the queue of one of them is
        full: then none has got it. Raises MemoryError, likewise.
        """


class PythonPublisher:
    """`Publisher` by means of pyzmq.

    Args:
        socket: an XPUB socket.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._messages = self._bytes = 0
        self._released: deque[int] = deque()  # Filled by pyzmq's thread, which must not count.

    @property
    def waiting(self) -> tuple[int, int]:
        """See `Publisher`."""
        while self._released:
            self._messages -= 1
            self._bytes -= self._released.popleft()
        return self._messages, self._bytes

    def send(self, topic: bytes, body: bytes, /) -> bool:
        """See `Publisher`."""
        size = len(topic) + len(body)
        frame = zmq.Frame(_Body(body, size, self._released), copy=False)
        self._messages += 1
        self._bytes += size
        try:
            self._socket.send(topic, zmq.SNDMORE | zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._socket.send(frame)
        return True


class _Body(bytes):
    """A body that reports its end."""

    _size: int
    _released: deque[int]

    def __new__(cls, body: bytes, size: int, released: deque[int]) -> _Body:
        self = super().__new__(cls, body)
        self._size = size
        self._released = released
        return self

    def __del__(self) -> None:
        self._released.append(self._size)


def _make_compiled(socket: zmq.Socket[bytes]) -> Publisher:
    from zkv.broker import _frames

    return _frames.Publisher(socket, frames.error)


PUBLISHER: Final = PythonPublisher if frames.COMPILED is None else _make_compiled
