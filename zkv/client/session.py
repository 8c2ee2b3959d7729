"""Which session and sequence number a write goes by, so that it can be repeated safely.

The server remembers the replies to the newest numbers of a session, and refuses a number that is
older: one that is still being repeated must never fall behind. Waiting for it would stop all other
writes, so a session with a write that lags is set aside, and others go on in another session; once
its laggards are done, it is used again. So there are few sessions, however many writes there are,
and never more than writes in flight.

The idea of a completion record is that of RIFL (Lee et al., SOSP 2015).
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable
from typing import Final

WINDOW: Final = 64
"""Numbers of one session from the oldest in flight to the newest; a server remembers 128, unless
it was told otherwise."""


def random_name() -> str:
    """A name that nobody else makes up: 16 random bytes in hex."""
    return os.urandom(16).hex()


class WriteSession:
    """One session.

    Attributes:
        name: unique among all clients of a server.
        in_flight: the numbers that may be sent again, in the order in which they were taken.
    """

    __slots__ = ("_newest", "_numbers", "in_flight", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.in_flight: dict[int, None] = {}
        self._newest = 0
        self._numbers = itertools.count(1)  # Gives none twice, even to a signal's handler.

    def has_room(self) -> bool:
        """Whether another number leaves all that are in flight inside the window."""
        while True:
            try:
                oldest = next(iter(self.in_flight), None)
            except RuntimeError:  # Another thread has just given one back.
                continue
            return oldest is None or self._newest + 1 - oldest < WINDOW

    def take(self) -> int:
        """The next number."""
        seq = self._newest = next(self._numbers)
        self.in_flight[seq] = None
        return seq


class WriteSessions:
    """All sessions of a client, for any number of threads.

    Whoever takes a number has the session for itself for that moment; others take another one. So
    nobody waits, nor does a signal's handler that has interrupted somebody in here.

    Args:
        name: makes up names.
    """

    def __init__(self, name: Callable[[], str] = random_name) -> None:
        self._name = name
        self._sessions = deque([WriteSession(name())])  # The one to use next is the last.

    def __len__(self) -> int:
        return len(self._sessions)

    def take(self) -> tuple[WriteSession, int]:
        """Session and number for one write; to be given back once it is not repeated any more."""
        session = self._with_room()
        seq = session.take()
        self._sessions.append(session)
        return session, seq

    def give_back(self, session: WriteSession, seq: int) -> None:
        """The write by this number has been answered, or given up."""
        del session.in_flight[seq]

    def _with_room(self) -> WriteSession:
        """A session that takes another number, and that nobody else has at this moment."""
        for _ in range(len(self._sessions)):
            try:
                session = self._sessions.pop()
            except IndexError:  # Others have them all.
                break
            if session.has_room():
                return session
            self._sessions.appendleft(session)
        return WriteSession(self._name())
