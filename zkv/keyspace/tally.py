"""How many keys of a range have expired and are still to be removed, counted in small steps.

A million keys may expire at once, and their removal takes a while: COUNT must leave them out all
that time, and must not hold the lock for as long as it takes to look at all of them. So the tally
walks the deadlines up to one moment a chunk at a time. A write to an entry that the walk has not
reached yet first tells the tally (`keep`). What comes out is exact for the moment at which the
tally was made.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zkv.keyspace.bounds import Range
    from zkv.keyspace.entry import StoredEntry

CHUNK_DEADLINES: Final = 2_000
"""Deadlines looked at in one hold of the lock: about 0.3 ms."""
PAUSE_SECONDS: Final = 0.0001
"""Between chunks, so that whoever waits for the lock gets it."""


class Tally:
    """Guarded by the store's lock.

    Args:
        keys: the range.
        now: Unix time in ms; what expires later is not counted.

    Attributes:
        count: how many have been found.
        reached: every deadline up to this one has been looked at.
        complete: whether all have been.
        lost: whether commits have been rolled back meanwhile: it must be begun anew.
    """

    def __init__(self, keys: Range, now: int) -> None:
        self._keys = keys
        self._now = now
        self.count = 0
        self.reached = (0, "")
        self.complete = False
        self.lost = False

    def step(self, deadlines: Iterable[tuple[int, str]]) -> None:
        """Look at some of the deadlines behind `reached`, which are given in order."""
        chunk = list(islice(deadlines, CHUNK_DEADLINES))
        due = [deadline for deadline in chunk if deadline[0] <= self._now]
        holds = self._keys.holds
        self.count += sum([holds(key) for _, key in due])
        self.complete = len(due) < CHUNK_DEADLINES
        if due:
            self.reached = due[-1]

    def keep(self, key: str, old: StoredEntry | None) -> None:
        """Count an entry that a write is about to replace, unless the walk has been there."""
        if old is None or old.expires is None or old.expires > self._now or self.complete:
            return
        if (old.expires, key) > self.reached and self._keys.holds(key):
            self.count += 1

    def rolled_back(self, _rev: int) -> None:
        """Learn that the commits after a revision have been undone."""
        self.lost = True
