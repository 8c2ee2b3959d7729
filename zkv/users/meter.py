"""The rate of a user's requests: a token bucket that holds those of one second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from zkv.errors import Overload


class Meter:
    """Counts the requests of a user. Only the front's thread uses it.

    Args:
        rate: requests per second, on average; as many may come at once.
        now: the clock, in seconds.
    """

    def __init__(self, rate: int, now: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._reason = f"more than {rate} requests per second; max_requests of the user"
        self._now = now
        self._left = float(rate)
        self._seen = now()

    def take(self) -> Overload | None:
        """Count a request; return why it must not run, if it is one too many."""
        now = self._now()
        self._left = min(self.rate, self._left + (now - self._seen) * self.rate)
        self._seen = now
        if self._left < 1:
            return Overload(self._reason, math.ceil((1 - self._left) / self.rate * 1000))
        self._left -= 1
        return None
