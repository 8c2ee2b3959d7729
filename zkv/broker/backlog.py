"""Bounds what waits for the followers of a feed, and cuts off those who hold it.

libzmq bounds the queue of a follower by messages, and not by bytes; so `MOST_BYTES` bounds what
waits for all of them together. libzmq keeps one copy of a message for all followers, so this costs
no more with many of them. If more waits, the feed pauses, which is no loss: the history keeps what
it has not read. Followers who read need only moments to take what waits, and then the feed goes on.
Those for whom something is still not sent after `PAUSE_SECONDS` are cut off, which frees it. They
connect again, and catch up with CHANGES. So one of them can delay others, and only as long.

The pause ends when half of the bytes have been taken. Else a follower who takes a message now and
then would keep the feed at its own pace.

Nobody can be cut off by inproc, so there the bound does not hold: followers are in the program.
"""

from __future__ import annotations

import contextlib
import os
import socket as posix
import termios
import time
from collections.abc import Callable
from typing import Final

from zkv.broker.peers import peer_address, queued
from zkv.broker.publisher import Publisher
from zkv.broker.refusals import FOLLOWER, Refusal
from zkv.broker.sockets import INPROC, connections_at, cut_off

MOST_BYTES: Final = 32 * 1024 * 1024
"""Bytes that may wait before the feed pauses. One revision more may wait."""
PAUSE_SECONDS: Final = 1.0
"""How long the feed pauses before it cuts off those for whom something waits."""

_STALLED: Final = Refusal(FOLLOWER, f"has not read for {PAUSE_SECONDS:g} s what waits for it")
_UNSENT: Final = 0x894B
"""The system's SIOCOUTQNSD: bytes of a tcp connection that have not been sent."""


class Backlog:
    """Bounds what waits for the followers at an endpoint.

    Args:
        publisher: counts it.
        endpoint: the endpoint, as bound.
        note_cut: called with the address of a follower that is cut off, and the reason.

    Attributes:
        lost: messages that waited when followers were cut off, so that these did not get them.
    """

    def __init__(
        self, publisher: Publisher, endpoint: str, note_cut: Callable[[str, Refusal], None]
    ) -> None:
        self._publisher = publisher
        self._endpoint = endpoint
        self._note_cut = note_cut
        self._paused_at: float | None = None
        self._stalled: set[int] = set()
        self._is_bounded = not endpoint.startswith(INPROC)
        self.lost = 0

    @property
    def is_paused(self) -> bool:
        """True if the feed must ask again a moment later."""
        return self._paused_at is not None

    def has_room(self) -> bool:
        """Return True if a revision may be published. Cuts off those who have held others up."""
        _, size = self._publisher.waiting
        if size <= (MOST_BYTES if self._paused_at is None else MOST_BYTES // 2):
            self._paused_at = None
            return True
        if not self._is_bounded:
            return True
        now = time.monotonic()
        if self._paused_at is None:
            self._paused_at = now
            self._stalled = set()
        elif now >= self._paused_at + PAUSE_SECONDS:
            self._cut_stalled()
        return False

    def _cut_stalled(self) -> None:
        """Cut off those for whom something waited at the last call, too.

        At one look alone it could be a heartbeat that is just being sent.
        """
        stalled = set()
        for connection in connections_at(self._endpoint):
            with contextlib.suppress(OSError):  # It has ended.
                inode = os.fstat(connection.fileno()).st_ino
                if not _unsent(connection):
                    continue
                if inode in self._stalled:
                    self._note_cut(peer_address(connection), _STALLED)
                    cut_off(connection)
                    self._paused_at = time.monotonic()
                stalled.add(inode)
        if self._stalled & stalled:
            self.lost += self._publisher.waiting[0]
            stalled.clear()
        self._stalled = stalled


def _unsent(connection: posix.socket) -> int:
    """Return the bytes that wait in the system. Raises OSError."""
    is_tcp = connection.family != posix.AF_UNIX
    question = _UNSENT if is_tcp else termios.TIOCOUTQ
    return queued(connection, question)
