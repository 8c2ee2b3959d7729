# Generated from async_limiter.py by tools/unasync.py. Change that file, then: make generate
"""A rate limiter for all programs together, which counts in the store.

Time is divided into windows of one period, by the client's clock. Each window has a counter, which
expires. Counting takes one request, and clients never wait for each other. The price is precision:
around the boundary of two windows up to twice the limit may be allowed within one period, and
clients whose clocks differ begin their windows at different moments.
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
    from zkv.client.namespace import KeyOps


MOST: Final = 2**53
"""The largest limit and the largest count: a counter has room for a thousand such counts."""
SHORTEST: Final = 0.001
LONGEST: Final = LONGEST_TTL / 2
"""The longest period in seconds: a counter lives for two periods."""


class RateLimiter:
    """Limits a rate, separately for each user or address; made by `Client.rate_limiter`.

    Args:
        keyspace: the client or namespace with the counters.
        prefix: of their keys.
        limit: the maximum count in each period, from 1 to 2^53.
        period: in seconds, from 0.001 to 5 * 10^9, or a `timedelta`.
        now: returns the Unix time in seconds.
    """

    def __init__(
        self,
        keyspace: KeyOps,
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

    def allow(self, who: str = "", count: int = 1) -> Verdict:
        """Count one or several events, and check the limit. The verdict is true if allowed.

        Args:
            who: such as a user or an address; each has its own limit.
            count: how many to count, from 1 to 2^53. Refused events count, too.
        """
        checks.text("who", who)
        count = checks.integer("count", count, 1, MOST)
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
