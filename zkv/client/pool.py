"""The connections of one `Client` in one process, which any number of threads share.

There are so many places. A place is an idle connection or, where none has been opened yet, leave to
open one. Who takes a place has it for itself until it is given back. Idle connections lie on a
stack, so that one thread alone keeps using the same; where there is no place, threads wait for one
in the order in which they came.

A signal's handler and a finalizer may run between any two steps, also in here, and use the same
client. A lock that the interrupted thread holds would never be released then. So there is none:
each step is one that Python makes whole, and the state is right between any two of them.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from typing import Final

from zkv.client.connection import Connection
from zkv.client.session import WriteSessions

MOST_CONNECTIONS: Final = 32
"""Of one client: more than a server can make use of, and sockets are not free."""

Place = Connection | None


class Pool:
    """Places for connections.

    Args:
        closed: whether the client has been closed already.

    Attributes:
        sessions: by which writes are numbered.
        closed: whether the client has been closed.
    """

    def __init__(self, closed: bool = False) -> None:
        self.closed = closed
        self.sessions = WriteSessions()
        self._free: deque[Place] = deque([None] * MOST_CONNECTIONS)
        self._waiters: deque[_Waiter] = deque()

    def take(self, seconds: float) -> Place:
        """A place for the caller alone.

        Args:
            seconds: to wait for one at most.

        Raises:
            TimeoutError: none became free in time.
        """
        if not self._waiters:
            try:
                return self._free.pop()
            except IndexError:
                pass
        return self._wait(seconds)

    def _wait(self, seconds: float) -> Place:
        waiter = _Waiter()
        self._waiters.append(waiter)
        try:
            self._serve()
            waiter.gate.acquire(timeout=max(0.0, seconds))
        except BaseException:
            if not self._gives_up(waiter):
                self.give_back(waiter.place)
            raise
        if self._gives_up(waiter):
            raise TimeoutError
        return waiter.place

    def _gives_up(self, waiter: _Waiter) -> bool:
        """Stand in line no longer; False = too late, it has been served."""
        if not waiter.claim():
            return False
        with suppress(ValueError):
            self._waiters.remove(waiter)
        return True

    def give_back(self, place: Place) -> None:
        """A place may be taken by others."""
        self._put(place)
        if self._waiters:
            self._serve()
        if self.closed:
            self.close()

    def drop(self, connection: Connection) -> None:
        """Close a connection, and give its place back."""
        connection.close()
        self.give_back(None)

    def close(self) -> None:
        """Close idle connections, and wake all who wait. May be called again."""
        self.closed = True
        self._serve()
        with suppress(IndexError):
            while True:
                place = self._free.pop()
                if place is not None:
                    place.close()

    def _put(self, place: Place) -> None:
        if place is None:
            self._free.appendleft(None)
        else:
            self._free.append(place)

    def _serve(self) -> None:
        """Give what is free to those who have waited longest."""
        while self._waiters and (self._free or self.closed):
            try:
                place = None if self.closed else self._free.pop()
            except IndexError:
                return  # Another thread was quicker, and serves when it gives its place back.
            if not self._hand_over(place):
                self._put(place)

    def _hand_over(self, place: Place) -> bool:
        """Give a place to the first in line; False = there is none, or it has left."""
        try:
            waiter = self._waiters.popleft()
        except IndexError:
            return False
        waiter.place = place
        if not waiter.claim():
            return False
        waiter.gate.release()
        return True


class _Waiter:
    """A thread that waits for a place.

    Attributes:
        gate: locked until its turn has come.
        place: what it got.
    """

    __slots__ = ("_claims", "gate", "place")

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.gate.acquire()
        self.place: Place = None
        self._claims = deque((True,))

    def claim(self) -> bool:
        """True for the first who asks: either somebody who serves it, or itself, to leave."""
        try:
            return self._claims.pop()
        except IndexError:
            return False
