"""A cache of what functions return, shared by all programs that use the store.

A value that is missing is computed by one of those who want it, under a lock; the others wait for
it. So a value that is costly to make is made once, however many want it at that moment.

Who computes a value and asks for the same one meanwhile, as a function that calls itself or a
signal's handler may do, would wait for itself. So there the function is simply called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar

import msgpack

from zkv.client.recipes.async_lock import AsyncLock

if TYPE_CHECKING:
    from zkv.client.async_namespace import AsyncKeyOps

P = ParamSpec("P")
R = TypeVar("R")

_MISSING: Final = object()


class _Computation:
    """A value that is being computed.

    Attributes:
        key: of it, as it is stored.
        over: whether it is done. What has been started meanwhile may still know of it.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.over = False


_computations: ContextVar[tuple[_Computation, ...]] = ContextVar("computations", default=())
"""Those that this code is part of, also in tasks that they have started."""


class AsyncCache:
    """A decorator; made by `AsyncClient.cache`.

    Args:
        keyspace: where the values are kept.
        ttl: seconds for which a value is kept; None = until it is forgotten.
        prefix: of the keys; None = ``cache/``, the function's module and its name.
        lease: seconds after which somebody else computes the value, if who does it has crashed.
    """

    def __init__(
        self, keyspace: AsyncKeyOps, ttl: float | None, prefix: str | None, lease: float
    ) -> None:
        self._keyspace = keyspace
        self._ttl = ttl
        self._prefix = prefix
        self._lease = lease

    def __call__(self, function: Callable[P, Awaitable[R]]) -> AsyncCachedFunction[P, R]:
        """Cache what ``function`` returns."""
        prefix = self._prefix
        if prefix is None:
            prefix = f"cache/{function.__module__}.{function.__qualname__}/"
        return AsyncCachedFunction(
            function, self._keyspace.namespace(prefix), self._ttl, self._lease
        )


class AsyncCachedFunction(Generic[P, R]):
    """A function whose results are kept in the store, by its arguments.

    Arguments and results may be whatever the store takes; a result that is kept comes back as the
    store gives it, a tuple as a list. What the function raises comes as it is, and is not kept.
    """

    __name__: str
    __qualname__: str
    __wrapped__: Callable[P, Awaitable[R]]

    def __init__(
        self,
        function: Callable[P, Awaitable[R]],
        kept: AsyncKeyOps,
        ttl: float | None,
        lease: float,
    ) -> None:
        self._function = function
        self._kept = kept
        self._ttl = ttl
        self._lease = lease
        update_wrapper(self, function)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """What is kept for these arguments; else what the function returns, which is then kept.

        Raises:
            ClientError: the store cannot be asked.
            TypeError: an argument or the result cannot be stored.
        """
        key = _key(args, kwargs)
        result: R
        kept: Any = await self._kept.get(key, _MISSING)
        if kept is not _MISSING:
            result = kept
            return result
        stored = self._kept._prefix + key
        if any(each.key == stored and not each.over for each in _computations.get()):
            return await self._function(*args, **kwargs)
        async with AsyncLock(self._kept, f"{key}/lock", self._lease) as lock:
            kept = await self._kept.get(key, _MISSING)
            if kept is _MISSING:
                kept = await self._compute(stored, args, kwargs)
                async with lock.txn() as txn:
                    txn.put(key, kept, ttl=self._ttl)
            result = kept
        return result

    async def _compute(self, stored: str, args: Any, kwargs: Any) -> R:
        computation = _Computation(stored)
        outer = _computations.set((*_computations.get(), computation))
        try:
            return await self._function(*args, **kwargs)
        finally:
            computation.over = True
            _computations.reset(outer)

    async def forget(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Have the next call with these arguments compute anew; whether anything was kept."""
        return await self._kept.delete(_key(args, kwargs))


def _key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """A short key for arguments. Raises TypeError."""
    packed = msgpack.packb([args, sorted(kwargs.items())])
    return hashlib.blake2b(packed, digest_size=16).hexdigest()
