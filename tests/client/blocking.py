"""The asyncio client as a test of the other one sees it: each method waits for its result."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sized
from functools import partial, wraps
from typing import Any, Final, Self

from tests.support import LIMIT
from zkv import AsyncClient, Client
from zkv.client.recipes.async_cache import AsyncCache

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
    """Wraps an `AsyncClient`, or something that it has made.

    It has the methods that the same thing has for threads, and waits for what they give.
    """

    def __init__(self, loop: Loop, target: Any) -> None:
        self._loop = loop
        self._target = target

    def __getattr__(self, name: str) -> Any:
        if name == "close":
            name = "aclose"
        value = getattr(self._target, name)
        if not callable(value):
            return value
        return partial(self._call, value)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        if isinstance(self._target, AsyncCache):
            (function,) = arguments
            return self._seen(self._target(beside_the_loop(function)))
        return self._call(self._target, *arguments, **keywords)

    def __len__(self) -> int:
        if isinstance(self._target, Sized):
            return len(self._target)
        if not hasattr(self._target, "count"):
            raise TypeError(f"{self!r} has no length")
        return int(self.count())

    def __contains__(self, key: str) -> bool:
        if isinstance(self._target, Mapping):
            return key in self._target
        return bool(self.contains(key))

    def __getitem__(self, key: str) -> Any:
        return self._target[key]

    def __repr__(self) -> str:
        return repr(self._target)

    def __eq__(self, other: object) -> bool:
        return bool(self._target == other)

    def __hash__(self) -> int:
        return hash(self._target)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self._target, AsyncIterator):
            return self._each(self._target)
        return iter(self._target)

    def __next__(self) -> Any:
        return next(self._each(self._target))

    def __enter__(self) -> Any:
        entered = self._loop.run(self._target.__aenter__())
        return self if entered is self._target else self._seen(entered)

    def __exit__(self, *error: object) -> None:
        self._loop.run(self._target.__aexit__(*error))

    def _call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        result = function(*arguments, **keywords)
        if inspect.iscoroutine(result):
            result = self._loop.run(result)
        if inspect.isasyncgen(result):
            return self._each(result)
        return self._seen(result)

    def _seen(self, result: Any) -> Any:
        """What has to be waited for, wrapped; anything else as it is."""
        waited_for = hasattr(result, "__aenter__") or "Async" in type(result).__name__
        return Blocking(self._loop, result) if waited_for else result

    def _each(self, iterator: AsyncIterator[Any]) -> Iterator[Any]:
        while (each := self._loop.run(_next(iterator))) is not END:
            yield each


END: Final = object()


async def _next(iterator: AsyncIterator[Any]) -> Any:
    return await anext(iterator, END)


def beside_the_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one for asyncio, for which the loop does not wait."""

    @wraps(function)
    async def run(*arguments: Any, **keywords: Any) -> Any:
        return await asyncio.to_thread(function, *arguments, **keywords)

    return run


class Kind:
    """One kind of client, to make many of.

    Args:
        loop: in which asyncio clients run; None = the client is the one for threads.
    """

    def __init__(self, loop: Loop | None) -> None:
        self.loop = loop

    def __call__(self, endpoint: Any, timeout: Any = LIMIT, **keywords: Any) -> AnyClient:
        if self.loop is None:
            return Client(endpoint, timeout, **keywords)
        return Blocking(self.loop, AsyncClient(endpoint, timeout, **keywords))
