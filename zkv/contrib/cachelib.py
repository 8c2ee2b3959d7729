"""A cache for cachelib (https://cachelib.readthedocs.io), and so for Flask-Caching, Flask-Session.

Values are stored as `zkv.contrib._caching` says, with pickle where they need it. If a request
fails, methods that tell by their result whether they succeeded (`set`, `add`, `inc` and so on)
return that, as cachelib asks for, and log why; all others raise a `zkv.ClientError`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import wraps
from typing import Any, TypeVar

from cachelib.base import BaseCache
from cachelib.serializers import BaseSerializer

from zkv.client import ClientError, ConflictError, NotFoundError
from zkv.contrib._caching import add, dump, lifetime, load
from zkv.contrib._link import Link
from zkv.contrib._requests import get_all, in_parts, until_alone

F = TypeVar("F", bound=Callable[..., Any])

_log = logging.getLogger("zkv.contrib")


def _or(failed: Any) -> Callable[[F], F]:
    """Make a method return ``failed`` if its request fails."""

    def decorate(method: F) -> F:
        @wraps(method)
        def run(*arguments: Any, **keywords: Any) -> Any:
            try:
                return method(*arguments, **keywords)
            except ClientError as error:
                _log.warning("%s failed: %s", method.__qualname__, error)
                return failed

        return run  # type: ignore[return-value]

    return decorate


class ZkvSerializer(BaseSerializer):
    """Converts between objects and what is stored for them."""

    def dumps(self, value: Any, protocol: int = 0) -> Any:
        return dump(value)

    def loads(self, bvalue: Any) -> Any:
        return load(bvalue)


class ZkvCache(BaseCache):
    """A cache in a server.

    Args:
        endpoint: as for `zkv.Client`; None = its default.
        default_timeout: seconds after which an entry expires; 0 = never.
        key_prefix: of all keys; None = ``cachelib/``. `clear` removes what is below it.
        ignore_delete_many_errors: as for other caches of cachelib.
        **options: further ones of `zkv.Client`, such as ``timeout`` or ``key_file``.
    """

    serializer = ZkvSerializer()

    def __init__(
        self, endpoint: str | Iterable[str] | None = None, default_timeout: Any = 300,
        key_prefix: str | None = None, ignore_delete_many_errors: bool = True, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(default_timeout)
        self.ignore_delete_many_errors = ignore_delete_many_errors  # Old versions have it not.
        self.key_prefix = "cachelib/" if key_prefix is None else key_prefix
        self._keys = Link(endpoint, self.key_prefix, **options).keys

    def _ttl(self, timeout: int | timedelta | None) -> float | None:
        """Return seconds above 0; None = for ever."""
        return lifetime(self._normalize_timeout(timeout) or None)

    def get(self, key: str) -> Any:
        stored = self._keys.get(key)
        return None if stored is None else self.serializer.loads(stored)

    def get_many(self, *keys: str) -> list[Any]:
        found = get_all(self._keys, keys)
        return [self.serializer.loads(found[key]) if key in found else None for key in keys]

    def has(self, key: str) -> bool:
        return key in self._keys

    @_or(failed=False)
    def set(self, key: str, value: Any, timeout: int | timedelta | None = None) -> bool | None:
        ttl = self._ttl(timeout)
        if ttl is not None and ttl < 0:
            self._keys.delete(key)
        else:
            self._keys.put(key, self.serializer.dumps(value), ttl=ttl)
        return True

    @_or(failed=False)
    def add(self, key: str, value: Any, timeout: int | timedelta | None = None) -> bool:
        ttl = self._ttl(timeout)
        if ttl is not None and ttl < 0:
            return key not in self._keys
        try:
            self._keys.put(key, self.serializer.dumps(value), ttl=ttl, create=True)
        except ConflictError:
            return False
        return True

    def set_many(self, mapping: dict[str, Any], timeout: Any = None) -> list[Any]:
        ttl, done = self._ttl(timeout), list[Any]()
        if ttl is not None and ttl < 0:
            return list(self.delete_many(*mapping))

        def put(items: list[tuple[str, Any]]) -> list[str]:
            self._keys.put_many(dict(items), ttl=ttl)
            return [key for key, _ in items]

        items = [(key, self.serializer.dumps(value)) for key, value in mapping.items()]
        try:
            for stored in in_parts(put, items):
                done += stored
        except ClientError as error:
            _log.warning("ZkvCache.set_many failed: %s", error)
        return done

    @_or(failed=False)
    def delete(self, key: str) -> bool:
        return self._keys.delete(key)

    @_or(failed=False)
    def clear(self) -> bool:
        self._keys.clear()
        return True

    @_or(failed=None)
    @until_alone
    def inc(self, key: str, delta: int = 1) -> int | None:
        dumps, loads = self.serializer.dumps, self.serializer.loads
        try:
            return int(add(self._keys, key, delta, dumps, loads))
        except NotFoundError:
            self._keys.put(key, dumps(delta), ttl=self._ttl(None), create=True)
            return delta

    def dec(self, key: str, delta: int = 1) -> int | None:
        return self.inc(key, -delta)
