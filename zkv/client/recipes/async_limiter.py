"""A rate limiter for all programs together: so many per period, counted in the store.

Time is cut into windows of one period, by the client's clock, and each window has a counter that
goes by itself. Counting is one request, and no two clients ever wait for each other. What that
costs in sharpness: at the turn of two windows there may be up to twice the limit within a period,
and clocks that differ cut the windows at different moments.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from zkv import checks
from zkv.client.recipes.verdict import Verdict
from zkv.defaults import LONGEST_TTL

if TYPE_CHECKING:
    from zkv.checks import Seconds
    from zkv.client.async_namespace import AsyncKeyOps


MOST: Final = 2**53
"""Of a limit, and of a count: a thousand counts fit into a counter."""
SHORTEST: Final = 0.001
LONGEST: Final = LONGEST_TTL / 2
"""Seconds of a period: a counter lives for two."""


class AsyncRateLimiter:
    """So many per period, for each of those who are told apart; made by `AsyncClient.rate_limiter`.

    Args:
        keyspace: where the counters are.
        prefix: of their keys.
        limit: how many in each period, from 1 to 2^53.
        period: in seconds, from 0.001 to 5 * 10^9, or a `timedelta`.
        now: Unix time in seconds.
    """

    def __init__(
        self,
        keyspace: AsyncKeyOps,
        prefix: str,
        limit: int,
        period: Seconds,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._limit = checks.integer("limit", limit, 1, MOST)
        self._period = checks.seconds("period of the limit", period, SHORTEST, LONGEST)
        self._now = checks.function("now", now)
        self._counters = keyspace.namespace(f"{checks.text('prefix', prefix)}/")

    def __repr__(self) -> str:
        where = self._counters._prefix
        return f"<{type(self).__name__} {where!r} of {self._limit} per {self._period:g} s>"

    async def allow(self, who: str = "", count: int = 1) -> Verdict:
        """Count one more, or several, and tell whether that is within the limit.

        Args:
            who: a user, an address; each has a limit of its own.
            count: how many at once, from 1 to 2^53. What is refused counts, too.
        """
        checks.text("who", who)
        count = checks.integer("count", count, 1, MOST)
        now = self._now()
        window = int(now // self._period)
        key = f"{who}/{window}"
        async with self._counters.txn() as txn:
            txn.incr(key, count)
            txn.touch(key, 2 * self._period)
        used: int = txn.results[0]
        allowed = used <= self._limit
        wait = 0.0 if allowed else (window + 1) * self._period - now
        return Verdict(allowed, max(0, self._limit - used), wait)
