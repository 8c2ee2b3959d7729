"""The connections of one `Client` in one process, shared by any number of threads.

The number of places is fixed. A place is an idle connection, or the permission to open one. A
thread that takes a place owns it until it gives it back. Idle connections are on a stack, so a
single thread keeps using the same one. If there is no free place, threads wait in the order in
which they came.

Signal handlers and finalizers may run between any two steps, also in this module, and may use the
same client. If the interrupted thread held a lock, it would never be released. So there are no
locks: each step is atomic in Python, and the state is consistent between any two steps.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from zkv.client.connection import Connection
from zkv.client.session import WriteSessions

MOST_CONNECTIONS: Final = 32
"""The maximum for one client: more than a server can use, and sockets have a cost."""

Place = Connection | None


class Pool:
    """Places for connections.

    Args:
        closed: True if the client has been closed already.

    Attributes:
        sessions: the sessions that number writes.
        closed: True once the client has been closed.
    """

    def __init__(self, closed: bool = False) -> None:
        self.closed = closed
        self.sessions = WriteSessions()
        self._free: deque[Place] = deque([None] * MOST_CONNECTIONS)
        self._waiters: deque[_Waiter] = deque()

    def take(self, left: Callable[[], float]) -> Place:
        """Take a place for the caller alone.

        Args:
            left: returns the seconds to wait at most.

        Raises:
            TimeoutError: no place became free in time.
        """
        if not self._waiters:
            try:
                return self._free.pop()
            except IndexError:
                pass
        return self._wait(left())

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
        """Leave the line of waiters. Returns False if the waiter already has a place."""
        if not waiter.claim():
            return False
        with suppress(ValueError):
            self._waiters.remove(waiter)
        return True

    def give_back(self, place: Place) -> None:
        """Give back a place, so that others may take it."""
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
        """Close idle connections, and wake all waiting threads. May be called again."""
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
        """Give free places to the threads that have waited longest."""
        while self._waiters and (self._free or self.closed):
            try:
                place = None if self.closed else self._free.pop()
            except IndexError:
                return  # Another thread took it, and serves when it gives its place back.
            if not self._hand_over(place):
                self._put(place)

    def _hand_over(self, place: Place) -> bool:
        """Give a place to the first waiter. Returns False if there is none, or it has left."""
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
        gate: locked until the thread gets a place.
        place: the place that it got.
    """

    __slots__ = ("_claims", "gate", "place")

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.gate.acquire()
        self.place: Place = None
        self._claims = deque((True,))

    def claim(self) -> bool:
        """True for the first caller: another thread that serves it, or the waiter itself."""
        try:
            return self._claims.pop()
        except IndexError:
            return False
