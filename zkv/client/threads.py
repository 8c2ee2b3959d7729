"""Waiting and waking, for threads.

`zkv.client.tasks` has the same for asyncio. All that watches, mirrors and recipes need to know of
the difference is in these two modules.

A signal's handler or a finalizer may interrupt any of this, and call it again in the same thread.
So nothing here waits for a lock that an interrupted thread may hold.
"""

from __future__ import annotations

import contextlib
import math
import socket as posix
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TypeVar

import zmq

from zkv.client.errors import ClientError

__all__ = ["Background", "Condition", "Waiter", "complete"]

T = TypeVar("T")

JOIN_SECONDS: Final = 1.0
"""How long the end of work in the background is waited for."""


class Waiter:
    """Lets one thread wait for a socket, and others wake it."""

    def __init__(self) -> None:
        self._reader, self._writer = posix.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def wait(self, seconds: float, socket: zmq.Socket[bytes] | None = None) -> None:
        """Wait until there is something in ``socket``, or `wake`, but at most a second.

        An interrupt that comes just before ZeroMQ waits is only seen after it.
        """
        poller = zmq.Poller()
        poller.register(self._reader, zmq.POLLIN)
        if socket is not None:
            poller.register(socket, zmq.POLLIN)
        poller.poll(math.ceil(1000 * max(0.0, min(seconds, 1.0))))
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)

    def wake(self) -> None:
        """Wake who waits, or who will wait next. Any thread."""
        with contextlib.suppress(OSError):  # Closed, or woken often enough.
            self._writer.send(b"\0")

    def close(self) -> None:
        """May be called again."""
        self._reader.close()
        self._writer.close()


class Condition:
    """Lets threads wait until something is so, and be woken to look."""

    def __init__(self) -> None:
        self._gates: deque[threading.Lock] = deque()  # Each is locked until its thread is woken.

    def wait_for(self, is_so: Callable[[], bool], seconds: float | None) -> bool:
        """Wait until it is so; False = not in time. Raises what ``is_so`` raises."""
        end = math.inf if seconds is None else time.monotonic() + seconds
        while True:
            gate = threading.Lock()
            gate.acquire()
            self._gates.append(gate)  # Before looking: who changes something later opens it.
            try:
                if is_so():
                    return True
                left = end - time.monotonic()
                if left <= 0:
                    return False
                gate.acquire(timeout=min(left, threading.TIMEOUT_MAX))
            finally:
                with contextlib.suppress(ValueError):  # Woken: it has been taken away.
                    self._gates.remove(gate)

    def wake(self) -> None:
        """Have all who wait look again."""
        for _ in range(len(self._gates)):
            with contextlib.suppress(IndexError):
                self._gates.popleft().release()


class Background:
    """Work that is done beside what started it.

    Args:
        work: what to do.
        name: for people who debug.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._thread = threading.Thread(target=work, name=name, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until it is done, or for a second; not at all if it is the worker itself that asks.

        It ends by itself, but not before it gets its reply. Nor while it waits for a lock, such as
        one of `logging`, of a thread that was interrupted by the very handler that waits here.
        """
        if self._thread is not threading.current_thread():
            self._thread.join(JOIN_SECONDS)  # In a child by fork it is not there.


def complete(work: Callable[[], T], undo: Callable[[], object] | None = None) -> T:
    """Do some work.

    Args:
        work: what to do.
        undo: what to do after it where it was interrupted, as by Ctrl-C or a signal's handler that
            raises. A `ClientError` is an answer.
    """
    try:
        return work()
    except ClientError:
        raise
    except BaseException:
        if undo is not None:
            with contextlib.suppress(ClientError):
                undo()
        raise
