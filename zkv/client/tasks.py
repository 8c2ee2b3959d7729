"""Waiting and waking, for the tasks of one event loop.

`zkv.client.threads` has the same for threads. All that watches, mirrors and recipes need to know of
the difference is in these two modules.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import zmq

from zkv.client.errors import ClientError

__all__ = ["AsyncBackground", "AsyncCondition", "AsyncWaiter", "complete"]

TURN_SECONDS: Final = 0.005
"""How long messages may come one after the other before other tasks have their turn."""

T = TypeVar("T")

_log = logging.getLogger("zkv.client")


class AsyncWaiter:
    """Lets one task wait for a socket, and others wake it."""

    def __init__(self) -> None:
        self._woken = False
        self._waiting: asyncio.Future[None] | None = None
        self._waited = 0.0  # When other tasks had their turn.

    async def wait(self, seconds: float, socket: zmq.Socket[bytes] | None = None) -> None:
        """Wait until there is something in ``socket``, or `wake`, but not for longer than this."""
        # Looked at first: ZeroMQ tells by its descriptor only what has come since somebody looked.
        is_there = socket is not None and int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN
        woken, self._woken = self._woken, False
        if not (woken or is_there):
            await self._wait(seconds, socket)
        elif time.monotonic() >= self._waited + TURN_SECONDS:
            await asyncio.sleep(0)
        else:
            return
        self._waited = time.monotonic()

    async def _wait(self, seconds: float, socket: zmq.Socket[bytes] | None) -> None:
        loop = asyncio.get_running_loop()
        self._waiting = waiting = loop.create_future()
        timer = loop.call_later(max(0.0, seconds), _resolve, waiting)
        descriptor = -1 if socket is None else int(socket.getsockopt(zmq.FD))
        if socket is not None:
            loop.add_reader(descriptor, _resolve, waiting)
        try:
            await waiting
        finally:
            timer.cancel()
            if socket is not None:
                loop.remove_reader(descriptor)
            self._waiting = None

    def wake(self) -> None:
        """Wake who waits, or who will wait next."""
        if self._waiting is None:
            self._woken = True
        else:
            _resolve(self._waiting)

    def close(self) -> None:
        """May be called again."""


class AsyncCondition:
    """Lets tasks wait until something is so, and be woken to look."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()

    async def wait_for(self, is_so: Callable[[], bool], seconds: float | None) -> bool:
        """Wait until it is so; False = not in time. Raises what ``is_so`` raises."""
        end = None if seconds is None else time.monotonic() + seconds
        while not is_so():
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return False
            await _is_set(self._woken, left)
        return True

    def wake(self) -> None:
        """Have all who wait look again."""
        self._woken.set()
        self._woken = asyncio.Event()


class AsyncBackground:
    """Work that is done beside what started it.

    Args:
        work: what to do.
        name: for people who debug.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._task = asyncio.create_task(work(), name=name)

    async def join(self) -> None:
        """Wait until it is done, unless it is the worker itself that asks.

        Nor in another event loop, such as that of a child by fork: there it does not go on.
        """
        here = self._task.get_loop() is asyncio.get_running_loop()
        if here and self._task is not asyncio.current_task():
            await asyncio.wait([self._task])


SETTLING_SECONDS: Final = 1.0
"""How long who is cancelled waits for what it had begun."""

_settling: Final = set[asyncio.Task[None]]()


async def complete(
    work: Callable[[], Coroutine[Any, Any, T]], undo: Callable[[], Awaitable[object]] | None = None
) -> T:
    """Do some work to its end, also where this task is cancelled meanwhile.

    The task is cancelled then, but not before the work is done, and undone; where the server is
    away, that goes on in the background.

    Args:
        work: what to do.
        undo: what to do after it if nobody is there any more for whom it was done.
    """
    task = asyncio.ensure_future(work())
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        settling = asyncio.ensure_future(_settle(task, undo))
        _settling.add(settling)
        settling.add_done_callback(_settling.discard)
        await asyncio.wait([settling], timeout=SETTLING_SECONDS)
        raise


async def _settle(work: asyncio.Future[Any], undo: Callable[[], Awaitable[object]] | None) -> None:
    await asyncio.wait([work])
    if not work.cancelled():
        work.exception()  # Nobody is there to be told.
    if undo is not None:
        try:
            await undo()
        except ClientError as error:
            _log.warning("what was cancelled could not be undone: %s", error)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _is_set(event: asyncio.Event, seconds: float | None) -> None:
    """Wait until an event is set, or time is up."""
    try:
        async with asyncio.timeout(None if seconds is None else max(0.0, seconds)):
            await event.wait()
    except TimeoutError:
        pass
