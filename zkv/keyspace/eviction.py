"""Caches: prefixes whose entries are evicted, so that they take no more than a bound.

Strategy: the writer pays. If a commit, or a run of the lane, leaves a cache beyond its bound, it
evicts before it releases the lock: `Table.pick` samples the entries, and up to 100 are removed in
one commit. So evictions are written with the write that they follow, without a sync of their own.
For each change a writer evicts one entry, and 100 more: so it keeps up where its entries are about
as large as those that have to go. Since everyone waits for the lock meanwhile, it evicts at most
500 at a time; after a longer request the worker evicts the others in small steps (`Keyspace.owed`).

What is left even then, since a large entry came for thousands of small ones, the thread of
`zkv.keyspace.expirer` evicts. If a cache is beyond its bound by more than its slack, writes by
which it grows are refused until that thread has caught up.

Invariants: an eviction is a commit of its own between two others, so it removes nothing that a
transaction has staged and not committed. It removes only keys under the cache's prefix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from zkv.bounds import Range, after_prefix
from zkv.errors import Full, shorten
from zkv.keyspace.change import EXPIRE
from zkv.keyspace.room import growth_under

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zkv.keyspace.store import Keyspace
    from zkv.keyspace.transaction import StagedWrite

MOST_EVICTED: Final = 100
"""Entries evicted in one commit. A writer evicts at most so many more than it has written."""
MOST_AT_ONCE: Final = 500
"""Entries that a writer evicts in the hold of the lock in which it writes: about 1 ms."""
MOST_SLACK: Final = 16 * 1024 * 1024
"""Bytes beyond the bound at which growing writes are refused, for a large cache."""


class CacheBound(NamedTuple):
    """A cache. It counts keys, as UTF-8, and packed values.

    Args:
        prefix: its entries are those under this prefix.
        max_bytes: the bound.
        policy: "lru": what has not been used for longest goes first; "ttl": what expires first.
    """

    prefix: str
    max_bytes: int
    policy: Literal["lru", "ttl"] = "lru"

    @property
    def slack(self) -> int:
        """Bytes beyond the bound at which growing writes are refused."""
        return min(self.max_bytes // 20, MOST_SLACK)


class _Watched:
    """A cache, how much was evicted from it, and the mean size, by which the next is guessed."""

    def __init__(self, cache: CacheBound) -> None:
        self.cache = cache
        self.keys = Range(cache.prefix, after_prefix(cache.prefix))
        self.mean = cache.max_bytes
        self.evicted = 0


class Evictor:
    """Evicts from the caches of a keyspace. Every method: lock held.

    Args:
        keyspace: the keyspace.
        caches: the caches; no prefix begins with another.

    Attributes:
        behind: True if a cache is beyond its bound by more than its slack.
        owed: number of entries that writers have still to evict.
    """

    def __init__(self, keyspace: Keyspace, caches: Iterable[CacheBound]) -> None:
        self._keyspace = keyspace
        self._watched = [_Watched(cache) for cache in caches]
        self.behind = False
        self.owed = 0

    @property
    def evicted(self) -> int:
        """Number of entries that have been evicted."""
        return sum([each.evicted for each in self._watched])

    def statistics(self) -> dict[str, dict[str, int | None]]:
        """Return INFO's ``stats.caches``: figures of each cache, by its prefix."""
        bytes_under = self._keyspace.entries.bytes_under
        return {
            each.cache.prefix: {
                "bytes": bytes_under((each.cache.prefix,)),
                "max_bytes": each.cache.max_bytes,
                "evicted": each.evicted,
            }
            for each in self._watched
        }

    def require_room(self, transaction: StagedWrite) -> None:
        """Raise Full if a transaction lets a cache grow that is beyond its slack.

        It wakes the thread then, which may have given up while the log refused writes.
        """
        if not self.behind:
            return
        table = self._keyspace.entries
        for each in self._watched:
            cache = each.cache
            excess = self._excess(each)
            if excess > cache.slack and growth_under(table, transaction.staged, cache.prefix) > 0:
                self._keyspace.alarm()
                raise Full(
                    f"the cache {shorten(cache.prefix)} takes {excess} bytes more than "
                    f"its max_bytes, {cache.max_bytes}, and evictions have to catch up: repeat "
                    f"this soon",
                    seen_rev=transaction.rev - 1,
                )

    def pay(self, changes: int) -> None:
        """Evict what has to go after a write of so many changes; note what is left of it."""
        most = changes + MOST_EVICTED
        try:
            left = self.make_room(min(most, MOST_AT_ONCE))
        except MemoryError:  # The write itself is done.
            left = True
        if left:
            self.owed += max(0, most - MOST_AT_ONCE)
            self._keyspace.alarm()

    def make_room(self, most: int) -> bool:
        """Evict what has to go, at most ``most`` of each cache; return True if some is left."""
        left = self.behind = False
        for each in self._watched:
            excess = self._shrink(each, most)
            left = left or excess > 0
            self.behind = self.behind or excess > each.cache.slack
        self.owed = max(0, self.owed - most) if left else 0
        return left

    def _excess(self, each: _Watched) -> int:
        """Return the bytes beyond the bound; 0 as long as not all that was there is counted."""
        held = self._keyspace.entries.bytes_under((each.cache.prefix,))
        return 0 if held is None else max(0, held - each.cache.max_bytes)

    def _shrink(self, each: _Watched, most: int) -> int:
        """Evict at most ``most`` entries; return the bytes that are still to go."""
        excess = self._excess(each)
        while excess > 0 and most > 0 and self._keyspace.takes_writes:
            most -= self._evict(each, excess, min(most, MOST_EVICTED))
            excess = self._excess(each)
        return excess

    def _evict(self, each: _Watched, excess: int, most: int) -> int:
        """Evict until the excess has gone, at most ``most`` entries; return their number."""
        guess = min(most, excess // each.mean + 1)
        by_expiry = each.cache.policy == "ttl"
        transaction = self._keyspace.begin()
        transaction.evicts = True
        freed = 0
        for key, size in self._keyspace.entries.pick(each.keys, guess, by_expiry):
            if freed >= excess:
                break
            transaction.remove(key, EXPIRE)
            freed += size
        self._keyspace.record(transaction)
        count = len(transaction.changes)
        each.mean = max(1, freed // count)
        each.evicted += count
        return count
