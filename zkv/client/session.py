"""Assigns a session and a sequence number to each write, so that it can be repeated safely.

The server remembers the replies to the newest numbers of a session, and refuses older numbers. So a
number that is still being repeated must stay within that window. Waiting for it would stop all
other writes, so a session with a slow write is set aside, and other writes use another session;
once its slow writes are done, it is used again. So there are few sessions for any number of writes,
and never more than writes in flight.

The completion record is the idea of RIFL (Lee et al., SOSP 2015).
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable
from typing import Final

WINDOW: Final = 64
"""Numbers of one session from the oldest in flight to the newest; a server remembers 128 by
default."""


def random_name() -> str:
    """Make a unique name: 16 random bytes in hex."""
    return os.urandom(16).hex()


class WriteSession:
    """One session.

    Attributes:
        name: unique among all clients of a server.
        in_flight: the numbers that may be sent again, in the order in which they were assigned.
    """

    __slots__ = ("_newest", "_numbers", "in_flight", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.in_flight: dict[int, None] = {}
        self._newest = 0
        self._numbers = itertools.count(1)  # Unique, even if a signal handler interrupts it.

    def has_room(self) -> bool:
        """True if all numbers in flight stay within the window after another number."""
        while True:
            try:
                oldest = next(iter(self.in_flight), None)
            except RuntimeError:  # Another thread has just given back a number.
                continue
            return oldest is None or self._newest + 1 - oldest < WINDOW

    def take(self) -> int:
        """Take the next number."""
        seq = self._newest = next(self._numbers)
        self.in_flight[seq] = None
        return seq


class WriteSessions:
    """All sessions of a client, for any number of threads.

    While a thread takes a number, it owns the session; other threads use another one. So no thread
    waits, and neither does a signal handler that has interrupted one of these methods.

    Args:
        name: makes names.
    """

    def __init__(self, name: Callable[[], str] = random_name) -> None:
        self._name = name
        self._sessions = deque([WriteSession(name())])  # The one to use next is the last.

    def __len__(self) -> int:
        return len(self._sessions)

    def take(self) -> tuple[WriteSession, int]:
        """Take session and number for one write; give them back once it is no longer repeated."""
        sessions = self._sessions
        try:
            session = sessions.pop()
        except IndexError:  # Other threads own all of them.
            session = WriteSession(self._name())
        else:
            if session.in_flight and not session.has_room():
                session = self._with_room(session)
        seq = session.take()
        sessions.append(session)
        return session, seq

    def give_back(self, session: WriteSession, seq: int) -> None:
        """Give back the number of a write that has been answered or given up."""
        del session.in_flight[seq]

    def _with_room(self, full: WriteSession) -> WriteSession:
        """Return a session that has room and that no other thread owns at this moment.

        Args:
            full: the one that was to be used next; it is given back.
        """
        self._sessions.appendleft(full)
        for _ in range(len(self._sessions)):
            try:
                session = self._sessions.pop()
            except IndexError:  # Other threads own all of them.
                break
            if not session.in_flight or session.has_room():
                return session
            self._sessions.appendleft(session)
        return WriteSession(self._name())
