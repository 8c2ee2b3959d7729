"""Waiting and waking, for threads.

`zkv.client.tasks` has the same for asyncio. These two modules contain all differences between
threads and asyncio that matter to watches, mirrors and recipes.

A signal handler or a finalizer may interrupt any of these methods, and call it again in the same
thread. So no method waits for a lock that an interrupted thread may hold.
"""

from __future__ import annotations

import contextlib
import math
import socket as posix
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import zmq

from zkv.client.errors import ClientError

if TYPE_CHECKING:
    from zkv.client.connection import Connection
    from zkv.client.curve import CurveKeys
    from zkv.client.retry import Trouble

__all__ = ["Background", "Condition", "Waiter", "complete", "find_trouble"]

T = TypeVar("T")

JOIN_SECONDS: Final = 1.0
"""The longest wait for the end of background work."""


class Waiter:
    """One thread waits for a connection, and other threads can wake it."""

    def __init__(self) -> None:
        self._reader, self._writer = posix.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def wait(self, seconds: float, connection: Connection | None = None) -> None:
        """Wait at most a second until `wake` is called, or ``connection`` has a message or ends.

        The limit is for Ctrl-C: an interrupt that arrives just before ZeroMQ waits is handled only
        afterwards. There is nothing to wait for at a connection that has ended.
        """
        if connection is not None and connection.look():
            return
        poller = zmq.Poller()
        poller.register(self._reader, zmq.POLLIN)
        for socket in [] if connection is None else connection.sockets:
            poller.register(socket, zmq.POLLIN)
        poller.poll(math.ceil(1000 * max(0.0, min(seconds, 1.0))))
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)

    def wake(self) -> None:
        """Wake the thread that waits; if none does, the next `wait` returns at once."""
        with contextlib.suppress(OSError):  # Closed, or woken often enough.
            self._writer.send(b"\0")

    def close(self) -> None:
        """Close the sockets. May be called again."""
        self._reader.close()
        self._writer.close()


class Condition:
    """Threads wait until a condition is true; `wake` makes them check it again."""

    def __init__(self) -> None:
        self._gates: deque[threading.Lock] = deque()  # Each is locked until its thread is woken.

    def wait_for(self, is_so: Callable[[], bool], seconds: float | None) -> bool:
        """Wait until ``is_so`` returns True. Returns False if the time is up.

        Errors of ``is_so`` are raised.
        """
        end = math.inf if seconds is None else time.monotonic() + seconds
        while True:
            gate = threading.Lock()
            gate.acquire()
            self._gates.append(gate)  # Before the check: a later change opens the gate.
            try:
                if is_so():
                    return True
                left = end - time.monotonic()
                if left <= 0:
                    return False
                gate.acquire(timeout=min(left, threading.TIMEOUT_MAX))
            finally:
                with contextlib.suppress(ValueError):  # `wake` has removed it.
                    self._gates.remove(gate)

    def wake(self) -> None:
        """Make all waiting threads check the condition again."""
        for _ in range(len(self._gates)):
            with contextlib.suppress(IndexError):
                self._gates.popleft().release()


class Background:
    """Work in the background.

    Args:
        work: the function to run.
        name: of the thread, for debugging.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._thread = threading.Thread(target=work, name=name, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until the work is done, at most a second; not at all if the work itself calls this.

        The work ends by itself, but only after its request is answered. If it waits for a lock,
        such as one of `logging`, that is held by the thread that a signal handler has interrupted,
        and the handler waits here, it can end only after the handler.
        """
        if self._thread is not threading.current_thread():
            self._thread.join(JOIN_SECONDS)  # In a forked child the thread does not exist.


def find_trouble(
    endpoint: str, seconds: float, keys: CurveKeys, failure: int, for_feed: bool
) -> Trouble | None:
    """Run `zkv.client.trouble.find_trouble`."""
    from zkv.client import trouble

    return trouble.find_trouble(endpoint, seconds, keys, failure, for_feed)


def complete(work: Callable[[], T], undo: Callable[[], object] | None = None) -> T:
    """Run some work, and undo it if it is interrupted.

    Args:
        work: the function to run.
        undo: run if the work was interrupted, by Ctrl-C or by a signal handler that raises; not
            after a `ClientError`.
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
