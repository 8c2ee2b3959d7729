# Generated from async_limiter.py by tools/unasync.py. Change that file, then: make generate
"""A rate limiter for all programs together: so many per period, counted in the store.

Time is cut into windows of one period, by the client's clock, and each window has a counter that
goes by itself. Counting is one request, and no two clients ever wait for each other. What that
costs in sharpness: at the turn of two windows there may be up to twice the limit within a period,
and clocks that differ cut the windows at different moments.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from zkv.client.recipes.verdict import Verdict

if TYPE_CHECKING:
    from zkv.client.namespace import KeyOps


class RateLimiter:
    """So many per period, for each of those who are told apart; made by `Client.rate_limiter`.

    Args:
        keyspace: where the counters are.
        prefix: of their keys.
        limit: how many in each period.
        period: in seconds.
        now: Unix time in seconds.
    """

    def __init__(
        self,
        keyspace: KeyOps,
        prefix: str,
        limit: int,
        period: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        if limit < 1 or period <= 0:
            raise ValueError(f"limit {limit}, period {period:g}: a limit from 1, a period above 0")
        self._counters = keyspace.namespace(f"{prefix}/")
        self._limit = limit
        self._period = period
        self._now = now

    def allow(self, who: str = "", count: int = 1) -> Verdict:
        """Count one more, or several, and tell whether that is within the limit.

        Args:
            who: a user, an address; each has a limit of its own.
            count: how many at once. What is refused counts, too.
        """
        now = self._now()
        window = int(now // self._period)
        key = f"{who}/{window}"
        with self._counters.txn() as txn:
            txn.incr(key, count)
            txn.touch(key, 2 * self._period)
        used: int = txn.results[0]
        allowed = used <= self._limit
        wait = 0.0 if allowed else (window + 1) * self._period - now
        return Verdict(allowed, max(0, self._limit - used), wait)
