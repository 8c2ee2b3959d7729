"""The asyncio client as a test of the other one sees it: each method waits for its result."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Coroutine
from typing import Any, Self

from tests.support import LIMIT
from zkv import AsyncClient, Client

AnyClient = Any
"""A `Client`, or something with the same methods."""


class Loop:
    """An event loop in a thread of its own. Use as a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT)
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine there, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(2 * LIMIT)


class Blocking:
    """Wraps an `AsyncClient`, a namespace, pipeline or transaction of it."""

    def __init__(self, loop: Loop, target: Any) -> None:
        self._loop = loop
        self._target = target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return value

        def method(*arguments: Any, **keywords: Any) -> Any:
            result = value(*arguments, **keywords)
            if inspect.iscoroutine(result):
                return self._loop.run(result)
            if inspect.isasyncgen(result):
                return iter(self._loop.run(_collect(result)))
            return None if result is None else Blocking(self._loop, result)

        return method

    def __len__(self) -> int:
        return len(self._target)

    def __contains__(self, key: str) -> bool:
        return bool(self.contains(key))

    def __enter__(self) -> Self:
        self._loop.run(self._target.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.run(self._target.__aexit__(*error))


async def _collect(generator: Any) -> list[Any]:
    return [each async for each in generator]


class Kind:
    """One kind of client, to make many of.

    Args:
        loop: in which asyncio clients run; None = the client is the one for threads.
    """

    def __init__(self, loop: Loop | None) -> None:
        self.loop = loop

    def __call__(self, endpoint: Any, timeout: float = LIMIT, **keywords: Any) -> AnyClient:
        if self.loop is None:
            return Client(endpoint, timeout, **keywords)
        return Blocking(self.loop, AsyncClient(endpoint, timeout, **keywords))
