"""A cache of function results, shared by all programs that use the store.

If a result is missing, one of the callers computes it under a lock, and the others wait. So an
expensive result is computed once, however many callers need it at that moment.

If a function asks for the result that it is computing (a recursive function or a signal handler may
do so), the cache calls the function directly: otherwise it would wait for itself.

A result that cannot be decoded counts as missing: it is computed again and overwritten.

Results take room until their ``ttl`` ends. A server bounds that, by evicting results, if its
settings declare a [[cache]] whose prefix their keys begin with: ``cache/``, unless the decorator
has a prefix of its own or belongs to a namespace; `AsyncCachedFunction.prefix` tells it. It may
evict a lock, too, since that is an entry beside the result: then a result may be computed more than
once.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar

from zkv import checks
from zkv.client.errors import BadValueError, LockLostError
from zkv.client.recipes.async_lock import AsyncLock
from zkv.client.recipes.cacheable import check_function, name_of
from zkv.client.values import pack

if TYPE_CHECKING:
    from zkv.checks import Seconds
    from zkv.client.async_namespace import AsyncKeyOps

P = ParamSpec("P")
R = TypeVar("R")

_MISSING: Final = object()

_log = logging.getLogger("zkv.client")


class _Computation:
    """A result that is being computed.

    Attributes:
        key: of the result, as it is stored.
        over: True once it has been computed. Tasks started meanwhile may still refer to this.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.over = False


_computations: ContextVar[tuple[_Computation, ...]] = ContextVar("computations", default=())
"""The computations that the current code is part of; tasks inherit those of their creator."""


class AsyncCache:
    """A decorator; made by `AsyncClient.cache`.

    Args:
        keyspace: the client or namespace that keeps the results.
        ttl: seconds for which a result is kept, as for `AsyncClient.put`; None = until
            `AsyncCachedFunction.forget` is called.
        prefix: of the keys; None = ``cache/``, the function's module and its name.
        lease: seconds after which another program computes a result, if the one that computes it
            has crashed.
    """

    def __init__(
        self, keyspace: AsyncKeyOps, ttl: Seconds | None, prefix: str | None, lease: Seconds
    ) -> None:
        self._keyspace = keyspace
        self._ttl = checks.ttl(ttl)
        self._prefix = checks.text_or_none("prefix", prefix)
        self._lease = checks.lease("lease", lease)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} prefix={self._prefix!r} ttl={self._ttl!r}>"

    def __call__(self, function: Callable[P, Awaitable[R]]) -> AsyncCachedFunction[P, R]:
        """Cache the results of ``function``.

        Raises:
            TypeError: the function cannot be cached (see `AsyncClient.cache`), or it has no name
                and no prefix was given.
        """
        check_function(function, is_async=True)  # sync: check_function(function, is_async=False)
        prefix = self._prefix
        if prefix is None:
            prefix = f"cache/{name_of(function)}/"
        return AsyncCachedFunction(
            function, self._keyspace.namespace(prefix), self._ttl, self._lease
        )


class AsyncCachedFunction(Generic[P, R]):
    """A function whose results are kept in the store, one for each set of arguments.

    The client must be able to store arguments and results. A stored result is returned as it is
    read: a tuple becomes a list. Errors of the function are raised unchanged and not stored.
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

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._kept._prefix!r} of {self._function!r}>"

    @property
    def prefix(self) -> str:
        """The prefix of the keys of all results, as the server's setting [[cache]] takes it."""
        return self._kept._prefix

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the stored result for these arguments; if there is none, compute and store it.

        Raises:
            ClientError: a request failed, or the codec cannot pack the result.
            TypeError, ValueError: an argument or the result cannot be stored.
        """
        key = self._key(args, kwargs)
        result: R
        kept: Any = await self._find(key)
        if kept is not _MISSING:
            result = kept
            return result
        stored = self._kept._prefix + key
        if any(each.key == stored and not each.over for each in _computations.get()):
            return await self._function(*args, **kwargs)
        try:
            async with AsyncLock(self._kept, f"{key}/lock", self._lease) as lock:
                kept = await self._find(key)
                if kept is _MISSING:
                    kept = await self._compute(stored, args, kwargs)
                    async with lock.txn() as txn:
                        txn.put(key, kept, ttl=self._ttl)
        except LockLostError:  # It ran out, or was evicted. The result is right all the same.
            if kept is _MISSING:
                raise
        result = kept
        return result

    async def _find(self, key: str) -> Any:
        """Return the stored result, or `_MISSING` if there is none that can be decoded."""
        try:
            return await self._kept.get(key, _MISSING)
        except BadValueError as error:
            _log.warning("computing a cached result again: %s", error)
            return _MISSING

    async def _compute(self, stored: str, args: Any, kwargs: Any) -> R:
        computation = _Computation(stored)
        outer = _computations.set((*_computations.get(), computation))
        try:
            return await self._function(*args, **kwargs)
        finally:
            computation.over = True
            _computations.reset(outer)

    async def forget(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Remove the result for these arguments. Returns True if there was one."""
        return await self._kept.delete(self._key(args, kwargs))

    def _key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Make a short key of arguments. Raises TypeError or ValueError for unsuitable ones."""
        try:
            packed = pack([args, sorted(kwargs.items())], self._kept._client._codec)
        except (TypeError, ValueError) as error:
            name = getattr(self._function, "__qualname__", repr(self._function))
            raise checks.named(f"an argument of {name} cannot be part of a key", error) from error
        return hashlib.blake2b(packed, digest_size=16).hexdigest()
