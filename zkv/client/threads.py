"""Waiting and waking, for threads.

`zkv.client.tasks` has the same for asyncio. All that watches, mirrors and recipes need to know of
the difference is in these two modules.
"""

from __future__ import annotations

import contextlib
import math
import socket as posix
import threading
from collections.abc import Callable
from threading import Lock as Mutex
from typing import TypeVar

import zmq

from zkv.client.errors import ClientError

__all__ = ["Background", "Condition", "Mutex", "Waiter", "complete"]

T = TypeVar("T")


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
        self._condition = threading.Condition()

    def wait_for(self, is_so: Callable[[], bool], seconds: float | None) -> bool:
        """Wait until it is so; False = not in time. Raises what ``is_so`` raises."""
        with self._condition:
            return self._condition.wait_for(is_so, seconds)

    def wake(self) -> None:
        """Have all who wait look again."""
        with self._condition:
            self._condition.notify_all()


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
        """Wait until it is done, unless it is the worker itself that asks."""
        if self._thread is not threading.current_thread():
            self._thread.join()  # In a child by fork it is not there, and not waited for.


def complete(work: Callable[[], T], undo: Callable[[], object] | None = None) -> T:
    """Do some work.

    Args:
        work: what to do.
        undo: what to do after it where it was interrupted, as by Ctrl-C.
    """
    try:
        return work()
    except Exception:
        raise
    except BaseException:
        if undo is not None:
            with contextlib.suppress(ClientError):
                undo()
        raise
