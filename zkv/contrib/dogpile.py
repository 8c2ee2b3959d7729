"""A backend for dogpile.cache (https://dogpilecache.sqlalchemy.org), by the name ``zkv``.

Use it as any backend::

    region = make_region().configure(
        "zkv",
        expiration_time=3600,
        arguments={"endpoint": "tcp://127.0.0.1:5555", "distributed_lock": True},
    )

An entry is ``prefix`` and the key, its value the bytes that the region's serializer makes (by
default with pickle). If a request fails, a `zkv.ClientError` is raised.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dogpile.cache.api import NO_VALUE, BytesBackend, CacheMutex

from zkv.client import LockLostError, Namespace
from zkv.contrib._caching import lifetime
from zkv.contrib._link import Link
from zkv.contrib._requests import delete_all, get_all, put_all

CLIENT_OPTIONS: Final = ("endpoint", "timeout", "key_file", "server_key")


class ZkvBackend(BytesBackend):
    """A cache in a server; made by a region.

    Args:
        arguments: of the region. Others than these are ignored, as by other backends:

            - ``endpoint``, ``timeout``, ``key_file``, ``server_key``: as for `zkv.Client`.
            - ``prefix``: of all keys (``dogpile/``).
            - ``distributed_lock``: True = among all programs, only one at a time makes a value.
              Else this holds for the threads of a process.
            - ``lock_ttl``: seconds after which such a lock is free if its holder has crashed (30).
            - ``expiration``: seconds after which entries are removed; more than the region's
              ``expiration_time``. None = never.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._is_locked_by_all = arguments.get("distributed_lock", False)
        self._lock_ttl = arguments.get("lock_ttl", 30.0)
        self._ttl = lifetime(arguments.get("expiration"))
        options = {name: arguments[name] for name in CLIENT_OPTIONS if name in arguments}
        self._keys = Link(prefix=arguments.get("prefix", "dogpile/"), **options).keys

    def get_mutex(self, key: str) -> CacheMutex | None:
        return (
            _Mutex(self._keys, f"_lock/{key}", self._lock_ttl) if self._is_locked_by_all else None
        )

    def get_serialized(self, key: str) -> Any:
        return self._keys.get(key, NO_VALUE)

    def get_serialized_multi(self, keys: Sequence[str]) -> Sequence[Any]:
        found = get_all(self._keys, keys)
        return [found.get(key, NO_VALUE) for key in keys]

    def set_serialized(self, key: str, value: bytes) -> None:
        self._keys.put(key, value, ttl=self._ttl)

    def set_serialized_multi(self, mapping: Mapping[str, bytes]) -> None:
        put_all(self._keys, mapping, self._ttl)

    def delete(self, key: str) -> None:
        self._keys.delete(key)

    def delete_multi(self, keys: Sequence[str]) -> None:
        delete_all(self._keys, keys)


class _Mutex(CacheMutex):
    """A lock of all programs for one key. The threads of a region share the object."""

    def __init__(self, keys: Namespace, key: str, ttl: float) -> None:
        self._keys = keys
        self._key = key
        self._lock = keys.lock(key, ttl=ttl)
        self._mine = threading.Lock()

    def acquire(self, wait: bool = True) -> bool:
        if not self._mine.acquire(blocking=wait):
            return False
        acquired = False
        try:
            acquired = self._lock.acquire(None if wait else 0)
        finally:
            if not acquired:
                self._mine.release()
        return acquired

    def release(self) -> None:
        try:
            self._lock.release()
        except LockLostError:
            pass  # The value that was made meanwhile is no worse for that.
        finally:
            self._mine.release()

    def locked(self) -> bool:
        return self._key in self._keys
