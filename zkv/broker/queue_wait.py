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

from zkv.requests.account import Passed

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
        self._lost = Passed()
        self._seconds = 0.0

    def report(self, front: Account, workers: Sequence[Account]) -> dict[str, float]:
        """Return how many requests the workers have taken, and the sum of their waits."""
        # In this order: what has been left meanwhile is not counted as taken.
        sums = [worker.taken for worker in workers]
        taken = Passed(sum(each.number for each in sums), sum(each.times for each in sums))
        left, deaths = front.forwarded, sum(each.deaths for each in (front, *workers))
        now = time.perf_counter()
        waiting = left.number - taken.number - self._lost.number
        if deaths != self._deaths or waiting < 0:
            self._deaths = deaths
            self._lost = self._lost.plus(waiting, now)
            waiting = 0
        waited = taken.times + self._lost.times + waiting * int(now * 1e9) - left.times
        # Between the readings above, a little may be counted that the next one finds shorter.
        self._seconds = max(self._seconds, waited / 1e9)
        return {"count": taken.number, "sum": round(self._seconds, 6)}
