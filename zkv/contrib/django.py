"""A cache for Django (https://www.djangoproject.com).

In the settings::

    CACHES = {
        "default": {
            "BACKEND": "zkv.contrib.django.ZkvCache",
            "LOCATION": "tcp://127.0.0.1:5555",
            "OPTIONS": {"prefix": "django/"},
        }
    }
    SESSION_ENGINE = "django.contrib.sessions.backends.cache"

An entry is ``prefix`` and the key that Django makes of prefix, version and key. Values are stored
as `zkv.contrib._caching` says, with pickle where they need it. A process has one client for each
such server, whichever threads and requests use it.

If a request fails, a `zkv.ClientError` is raised: an absent key and a server that is down are
not the same, least of all for sessions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from asgiref.sync import sync_to_async
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from django.core.exceptions import ImproperlyConfigured

from zkv.client import ConflictError, NotFoundError
from zkv.contrib._caching import add, dump, lifetime, load
from zkv.contrib._link import Link
from zkv.contrib._requests import delete_all, get_all, put_all


class ZkvCache(BaseCache):
    """A cache in a server; made by Django.

    Args:
        location: the endpoint, or several with commas; empty = as for `zkv.Client`.
        params: those of Django. Their ``OPTIONS`` are those of `zkv.Client`, such as ``timeout``
            (of a request), ``key_file``, ``server_key``; and ``prefix`` of all keys (``django/``).

    Raises:
        ImproperlyConfigured: an option is unknown, or `zkv.Client` does not accept it.
    """

    _links: ClassVar[set[Link]] = set()
    """Those that are open: Django may make a cache for each request, and each is to find them."""

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        options = {"prefix": "django/", **params.get("OPTIONS", {})}
        for name in ("MAX_ENTRIES", "CULL_FREQUENCY"):  # Of all caches; the server has its own way.
            options.pop(name, None)
        try:
            link = Link(location or None, **options)
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(f"CACHES: zkv.contrib.django.ZkvCache: {error}") from error
        self._links.add(link)
        self._keys = link.keys

    def get_backend_timeout(self, timeout: Any = DEFAULT_TIMEOUT) -> float | None:
        return lifetime(self.default_timeout if timeout is DEFAULT_TIMEOUT else timeout)

    def add(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        key, ttl = self.make_and_validate_key(key, version), self.get_backend_timeout(timeout)
        if ttl is not None and ttl <= 0:
            return key not in self._keys
        try:
            self._keys.put(key, dump(value), ttl=ttl, create=True)
        except ConflictError:
            return False
        return True

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        stored = self._keys.get(self.make_and_validate_key(key, version), self._missing_key)
        return default if stored is self._missing_key else load(stored)

    def set(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> None:
        self.set_many({key: value}, timeout, version)

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        ttl = self.get_backend_timeout(timeout)
        if ttl is not None and ttl <= 0:
            return self.delete(key, version)
        try:
            self._keys.touch(self.make_and_validate_key(key, version), ttl)
        except NotFoundError:
            return False
        return True

    def delete(self, key: Any, version: int | None = None) -> bool:
        return self._keys.delete(self.make_and_validate_key(key, version))

    def has_key(self, key: Any, version: int | None = None) -> bool:
        return self.make_and_validate_key(key, version) in self._keys

    def incr(self, key: Any, delta: Any = 1, version: int | None = None) -> Any:
        try:
            return add(self._keys, self.make_and_validate_key(key, version), delta)
        except NotFoundError:
            raise ValueError(f"Key {key!r} not found") from None

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        asked = {self.make_and_validate_key(key, version): key for key in keys}
        found = get_all(self._keys, asked)
        return {asked[key]: load(value) for key, value in found.items()}

    def set_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        items = {self.make_and_validate_key(key, version): dump(data[key]) for key in data}
        ttl = self.get_backend_timeout(timeout)
        if ttl is not None and ttl <= 0:
            delete_all(self._keys, items)
        else:
            put_all(self._keys, items, ttl)
        return []

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        delete_all(self._keys, (self.make_and_validate_key(key, version) for key in keys))

    def clear(self) -> None:
        self._keys.clear()

    # In Django 5.2 these take a request for each key, and lose counts.

    async def aincr(self, *arguments: Any, **named: Any) -> Any:
        return await sync_to_async(self.incr)(*arguments, **named)

    async def aget_many(self, *arguments: Any, **named: Any) -> dict[Any, Any]:
        return dict(await sync_to_async(self.get_many)(*arguments, **named))

    async def aset_many(self, *arguments: Any, **named: Any) -> list[Any]:
        return list(await sync_to_async(self.set_many)(*arguments, **named))

    async def adelete_many(self, *arguments: Any, **named: Any) -> None:
        await sync_to_async(self.delete_many)(*arguments, **named)
