"""A storage for limits (https://limits.readthedocs.io), and so for Flask-Limiter and slowapi.

Import this module; then ``zkv://HOST:PORT/PREFIX`` is a storage. It has fixed windows, moving
windows and sliding window counters. Programs count exactly, also together: each hit is one
transaction on the condition that nobody else has counted in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from limits.storage.base import (
    MovingWindowSupport,
    SlidingWindowCounterSupport,
    Storage,
    TimestampedSlidingWindow,
)

from zkv.client import ClientError, Entry, NotFoundError
from zkv.contrib._link import Link, in_url
from zkv.contrib._requests import until_alone


class ZkvStorage(
    Storage, MovingWindowSupport, SlidingWindowCounterSupport, TimestampedSlidingWindow
):
    """Counters in a server. A counter is the entry ``prefix + key``.

    Args:
        uri: ``zkv://HOST:PORT/PREFIX``; the prefix is ``limits/`` if it is omitted.
        wrap_exceptions: True = a request that fails raises ``limits.errors.StorageError``, else a
            `zkv.ClientError`.
        **options: of `zkv.Client`, such as ``timeout`` or ``key_file``.
    """

    STORAGE_SCHEME = ["zkv"]  # noqa: RUF012  as the base class declares it

    def __init__(self, uri: str, wrap_exceptions: bool = False, **options: Any) -> None:
        super().__init__(uri, wrap_exceptions=wrap_exceptions)
        endpoint, prefix = in_url(uri)
        self._link = Link(endpoint, prefix or "limits/", **options)
        self._keys = self._link.keys

    @property
    def base_exceptions(self) -> type[Exception]:
        return ClientError

    # --- Fixed windows

    @until_alone
    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        entry = self._entry(key)
        if entry is None:
            self._keys.put(key, amount, ttl=expiry, create=True)
            return amount
        with self._keys.txn() as txn:
            txn.check(key, entry.rev)
            txn.incr(key, amount)
        return int(txn.results[0])

    def get(self, key: str) -> int:
        return int(self._keys.get(key, 0))

    def get_expiry(self, key: str) -> float:
        entry = self._entry(key)
        return time.time() + ((entry.ttl if entry else None) or 0.0)

    def check(self) -> bool:
        try:
            self._link.client.ping()
        except ClientError:
            return False
        return True

    def reset(self) -> int:
        count = len(self._keys)
        self._keys.clear()
        return count

    def clear(self, key: str) -> None:
        self._keys.delete_many([key, _moving(key)])

    # --- Moving windows: pairs of a time and its hits, the newest first

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        def hit(entry: Entry | None) -> list[list[float]] | None:
            now = time.time()
            hits = _since(now - expiry, entry)
            used = sum(count for _, count in hits)
            return [[now, amount], *hits] if used + amount <= limit else None

        return self._change(_moving(key), expiry, hit)

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        now = time.time()
        hits = _since(now - expiry, self._entry(_moving(key)))
        return (hits[-1][0], int(sum(count for _, count in hits))) if hits else (now, 0)

    # --- Sliding windows: the counts of this period and of the one before

    def acquire_sliding_window_entry(
        self, key: str, limit: int, expiry: int, amount: int = 1
    ) -> bool:
        def hit(entry: Entry | None) -> int | None:
            before, share = self._weight(key, expiry, now)
            count: int = entry.value if entry else 0
            return count + amount if int(before * share) + count + amount <= limit else None

        now = time.time()
        return self._change(self.sliding_window_keys(key, expiry, now)[1], 2 * expiry, hit)

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        now = time.time()
        before, share = self._weight(key, expiry, now)
        count = self.get(self.sliding_window_keys(key, expiry, now)[1])
        left = (1 - now / expiry % 1) * expiry
        return before, share * expiry if before else 0.0, count, left + expiry

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        self._keys.delete_many(self.sliding_window_keys(key, expiry, time.time()))

    def _weight(self, key: str, expiry: int, now: float) -> tuple[int, float]:
        """Return the count of the period before, and the share of it that the window covers."""
        return self.get(self.sliding_window_keys(key, expiry, now)[0]), 1 - now / expiry % 1

    def _entry(self, key: str) -> Entry | None:
        try:
            return self._keys.get_entry(key)
        except NotFoundError:
            return None

    @until_alone
    def _change(self, key: str, ttl: float, change: Callable[[Entry | None], Any]) -> bool:
        """Write what ``change`` makes of an entry; False = it makes None."""
        entry = self._entry(key)
        value = change(entry)
        if value is not None:
            self._keys.put(key, value, ttl=ttl, if_rev=entry.rev if entry else 0)
        return value is not None


def _moving(key: str) -> str:
    return f"{key}/moving"


def _since(begin: float, entry: Entry | None) -> list[list[float]]:
    """Return the hits of a moving window."""
    return [each for each in entry.value if each[0] >= begin] if entry else []
