"""Counts the keys of a range that have expired and are still to be removed, in small steps.

A million keys may expire at once, and their removal takes a while. Meanwhile COUNT must not count
them, and must not hold the lock while it looks at all of them. So the tally walks the deadlines up
to the time of its creation, one chunk at a time. A write to an entry ahead of the walk first calls
`keep`, which counts the replaced entry if it has expired. The result is exact for the time of the
tally's creation.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zkv.bounds import Range
    from zkv.keyspace.entry import StoredEntry

CHUNK_DEADLINES: Final = 2_000
"""Deadlines read in one hold of the lock: about 0.3 ms."""
PAUSE_SECONDS: Final = 0.0001
"""Pause between chunks, so that threads waiting for the lock get it."""


class Tally:
    """A count in progress. Protected by the keyspace's lock.

    Args:
        keys: the range.
        now: Unix time in ms; keys that expire later do not count.

    Attributes:
        count: keys counted so far.
        reached: the last deadline that has been read.
        complete: all deadlines have been read.
        lost: commits were rolled back meanwhile, so the count must start again.
    """

    def __init__(self, keys: Range, now: int) -> None:
        self._keys = keys
        self._now = now
        self.count = 0
        self.reached = (0, "")
        self.complete = False
        self.lost = False

    def step(self, deadlines: Iterable[tuple[int, str]]) -> None:
        """Read the next deadlines after `reached`, given in order."""
        chunk = list(islice(deadlines, CHUNK_DEADLINES))
        due = [deadline for deadline in chunk if deadline[0] <= self._now]
        holds = self._keys.holds
        self.count += sum([holds(key) for _, key in due])
        self.complete = len(due) < CHUNK_DEADLINES
        if due:
            self.reached = due[-1]

    def keep(self, key: str, old: StoredEntry | None) -> None:
        """Count an entry that a write replaces, unless the walk has already passed it."""
        if old is None or old.expires is None or old.expires > self._now or self.complete:
            return
        if (old.expires, key) > self.reached and self._keys.holds(key):
            self.count += 1

    def rolled_back(self, _lsn: int) -> None:
        """Note that commits were rolled back."""
        self.lost = True
