"""Waiting and waking, for the tasks of one event loop.

`zkv.client.threads` has the same for threads. These two modules contain all differences between
threads and asyncio that matter to watches, mirrors and recipes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import zmq

from zkv.client.errors import ClientError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from zkv.client.connection import Connection
    from zkv.client.curve import CurveKeys
    from zkv.client.retry import Trouble

__all__ = ["AsyncBackground", "AsyncCondition", "AsyncWaiter", "complete", "find_trouble"]

TURN_SECONDS: Final = 0.005
"""How long a task may process messages without a pause before other tasks get to run."""

T = TypeVar("T")

_log = logging.getLogger("zkv.client")


class AsyncWaiter:
    """One task waits for a connection, and other tasks can wake it."""

    def __init__(self) -> None:
        self._woken = False
        self._waiting: asyncio.Future[None] | None = None
        self._waited = 0.0  # When other tasks last got to run.

    async def wait(self, seconds: float, connection: Connection | None = None) -> None:
        """Wait at most ``seconds`` until `wake` is called, or ``connection`` has a message or ends.

        There is nothing to wait for at a connection that has ended.
        """
        # Look at the sockets first: their descriptors signal only what arrives after a look.
        is_there = connection is not None and (
            connection.look() or int(connection.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN
        )
        woken, self._woken = self._woken, False
        if not (woken or is_there):
            await self._wait(seconds, [] if connection is None else connection.sockets)
        elif time.monotonic() >= self._waited + TURN_SECONDS:
            await asyncio.sleep(0)
        else:
            return
        self._waited = time.monotonic()

    async def _wait(self, seconds: float, sockets: list[zmq.Socket[bytes]]) -> None:
        loop = asyncio.get_running_loop()
        self._waiting = waiting = loop.create_future()
        timer = loop.call_later(max(0.0, seconds), _resolve, waiting)
        descriptors = [int(each.getsockopt(zmq.FD)) for each in sockets]
        for descriptor in descriptors:
            loop.add_reader(descriptor, _resolve, waiting)
        try:
            await waiting
        finally:
            timer.cancel()
            for descriptor in descriptors:
                loop.remove_reader(descriptor)
            self._waiting = None

    def wake(self) -> None:
        """Wake the task that waits; if none does, the next `wait` returns at once."""
        if self._waiting is None:
            self._woken = True
        else:
            _resolve(self._waiting)

    def close(self) -> None:
        """Do nothing: unlike `zkv.client.threads.Waiter`, this holds no resources."""


class AsyncCondition:
    """Tasks wait until a condition is true; `wake` makes them check it again."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()

    async def wait_for(self, is_so: Callable[[], bool], seconds: float | None) -> bool:
        """Wait until ``is_so`` returns True. Returns False if the time is up.

        Errors of ``is_so`` are raised.
        """
        end = None if seconds is None else time.monotonic() + seconds
        while not is_so():
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return False
            await _is_set(self._woken, left)
        return True

    def wake(self) -> None:
        """Make all waiting tasks check the condition again."""
        self._woken.set()
        self._woken = asyncio.Event()


class AsyncBackground:
    """Work in the background.

    Args:
        work: the coroutine function to run.
        name: of the task, for debugging.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._task = asyncio.create_task(work(), name=name)

    async def join(self) -> None:
        """Wait until the work is done.

        This does not wait if the work itself calls it. Nor does it wait in another event loop, such
        as that of a forked child, where the work does not continue.
        """
        here = self._task.get_loop() is asyncio.get_running_loop()
        if here and self._task is not asyncio.current_task():
            await asyncio.wait([self._task])


def find_trouble(
    endpoint: str, seconds: float, keys: CurveKeys, failure: int, for_feed: bool
) -> asyncio.Future[Trouble | None]:
    """Run `zkv.client.trouble.find_trouble` in a thread."""
    from zkv.client.trouble import find_trouble_meanwhile

    loop = asyncio.get_running_loop()
    future: asyncio.Future[Trouble | None] = loop.create_future()

    def tell(found: Future[Trouble | None]) -> None:
        with suppress(RuntimeError):  # The loop has been closed, so nothing waits.
            loop.call_soon_threadsafe(_set, future, found.result())

    find_trouble_meanwhile(endpoint, seconds, keys, failure, for_feed).add_done_callback(tell)
    return future


SETTLING_SECONDS: Final = 1.0
"""How long a cancelled task waits until its work is done and undone."""

_settling: Final = set[asyncio.Task[None]]()


async def complete(
    work: Callable[[], Coroutine[Any, Any, T]], undo: Callable[[], Awaitable[object]] | None = None
) -> T:
    """Run some work to its end, even if this task is cancelled meanwhile.

    Then the cancellation takes effect once the work is done and undone, at most after
    `SETTLING_SECONDS`; the rest is done in the background.

    Args:
        work: the coroutine function to run.
        undo: run after the work if the task was cancelled.
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
        work.exception()  # The caller is gone; otherwise asyncio would log the error.
    if undo is not None:
        try:
            await undo()
        except ClientError as error:
            _log.warning("cancelled work could not be undone: %s", error)


def _resolve(future: asyncio.Future[None]) -> None:
    _set(future, None)


def _set(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


async def _is_set(event: asyncio.Event, seconds: float | None) -> None:
    """Wait until an event is set, or time is up."""
    try:
        async with asyncio.timeout(None if seconds is None else max(0.0, seconds)):
            await event.wait()
    except TimeoutError:
        pass
