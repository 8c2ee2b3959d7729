"""Tells whose messages a thread receives from a socket, and when it has received all that waited.

Strategy: the thread notes this only while somebody asks, so it costs nothing otherwise. The memory
is shared with `_frames.c`, which does the same as `Arrivals.note` and `Arrivals.heard`.

A question is a number. The thread repeats the newest one as its answer once it has received
everything that had arrived when the question was asked. If more and more arrives, it also answers
after a message for each connection, and some more: libzmq takes one from each of them in turn.

A descriptor is noted modulo `PLACES`. If two have the same place, each counts as a sender when the
other one sends: so nobody is ever thought to be silent who is not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

import zmq

PLACES: Final = 65_536
"""Descriptors that are told apart."""
SOME_MORE: Final = 1_000
"""libzmq looks after every 100 frames which connections have a message."""


class Arrivals:
    """The arrivals at one socket. One thread notes them, another one asks.

    Attributes:
        words: the question, the answer, and the number of messages after which it is given even
            if more wait; shared with C.
        senders: one byte for each place; likewise.
        wake: makes the thread that notes look for messages, even if none has come.
    """

    def __init__(self) -> None:
        self.words = memoryview(bytearray(24)).cast("Q")
        self.senders = bytearray(PLACES)
        self.wake: Callable[[], None] = lambda: None
        self._last = 0  # Question.
        self._heard = 0  # The question that the thread knows.
        self._since = 0  # Messages received since.

    # --- For who asks ---

    def ask(self, connections: int) -> int:
        """Ask the next question, and return it. From now on senders are noted.

        Args:
            connections: number of connections.
        """
        self._last += 1
        self.words[2] = connections + SOME_MORE
        self.words[0] = self._last
        return self._last

    def rest(self) -> None:
        """Note no more senders, until the next question."""
        self.words[0] = 0

    def has_answered(self, question: int) -> bool:
        """Return True if everything has been received that had arrived at the question."""
        return self.words[1] >= question

    def forget(self, descriptor: int) -> None:
        """Forget that a connection has sent a message."""
        self.senders[descriptor % PLACES] = 0

    def has_sent(self, descriptor: int) -> bool:
        """Return True if a message from a connection has been received since `forget`."""
        return bool(self.senders[descriptor % PLACES])

    # --- For who receives ---

    @property
    def asked(self) -> int:
        """The newest question; 0: there is none."""
        return self.words[0]

    def note(self, frame: zmq.Frame) -> None:
        """Note who has sent a frame, after it has been received."""
        with contextlib.suppress(zmq.ZMQError):  # It came by inproc.
            self.senders[int(frame.get(zmq.SRCFD)) % PLACES] = 1

    def heard(self, question: int, received: int, nothing_left: bool) -> None:
        """Note what was received.

        Args:
            question: `asked`, as it was before.
            received: number of messages.
            nothing_left: True if no other message waits.
        """
        if question != self._heard:
            self._heard, self._since = question, 0
        self._since += received
        if nothing_left or self._since > self.words[2]:
            self.words[1] = question
