"""How long requests wait between the front and the workers, from sums alone.

The front knows when requests are left to the workers, and a worker when it takes some up; but which
one gets which request is decided by libzmq. Their sums suffice: the waits of all requests that were
taken are together the sum of the times when they were taken, less the sum of the times when they
were left. Those that still wait are counted as if they were taken now. So neither the front nor a
worker does more than add twice for each batch.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zkv.requests.account import Account


class QueueWait:
    """The waits for workers, as INFO's ``stats.queue_wait`` has them.

    Requests that a thread loses with its death would seem to wait for ever. So after a death all
    that are on the way count as lost; those that arrive nevertheless are found again.
    """

    def __init__(self) -> None:
        self._deaths = 0
        self._lost = 0
        self._lost_times = 0
        self._seconds = 0.0

    def report(self, front: Account, workers: Sequence[Account]) -> dict[str, float]:
        """Return how many requests the workers have taken, and the sum of their waits."""
        # In this order: what has been left meanwhile is not counted as taken.
        taken, taken_times = map(sum, zip(*(worker.passed for worker in workers), strict=True))
        left, left_times = front.passed
        deaths = sum(each.deaths for each in (front, *workers))
        now = int(time.perf_counter() * 1e9)
        waiting = left - taken - self._lost
        if deaths != self._deaths or waiting < 0:
            self._deaths = deaths
            self._lost += waiting
            self._lost_times += waiting * now
            waiting = 0
        waited = taken_times + self._lost_times + waiting * now - left_times
        # Between the readings above, a little may be counted that the next one finds shorter.
        self._seconds = max(self._seconds, waited / 1e9)
        return {"count": taken, "sum": round(self._seconds, 6)}
