"""The checks that there is room for a write: the memory limit, and the quota of its user.

Both count what entries are, not what the process takes: that does not shrink when they are removed.

The memory limit counts entries, history and sessions. It refuses only writes that make the entries
grow, so removals, and writes that replace as much, always go on, or nobody could ever free memory.
Before it refuses, the history is shortened. What is not counted in advance is the history of the
write itself: so with the last write before a refusal, or with many that do not grow, the count may
be above the limit; up to `BEYOND` of it writes go on that neither grow nor shrink.

A quota counts by prefix, and not by who wrote an entry. That needs nothing in the files, and can be
derived from the entries alone: so it is exact after a restart. Entries count for as long as they
are in the table, also those that have expired and are still to be removed.

The lane checks its requests by the same rules, but leaves those that do not fit to Python
(`has_room` in zkv/compiled/lane.c).
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from zkv.errors import Full
from zkv.keyspace.entry import entry_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zkv.keyspace.entry import StoredEntry
    from zkv.keyspace.table import Table
    from zkv.keyspace.transaction import StagedWrite

_log = logging.getLogger("zkv.keyspace")

ENTRY_BYTES: Final = 56
"""Memory that an entry takes, beside its key and value, in the compiled table."""
DEADLINE_BYTES: Final = 200
"""Memory that an entry takes in addition if it expires."""
UNLIMITED: Final = 2**62
"""The room where there is no memory limit."""
BEYOND: Final = 1.05
"""Up to so many times the limit, writes go on that do not make the entries grow."""
WARN_AT, CALM_AT = 0.8, 0.75
"""Shares of the limit: from the first on the log warns, below the second it may do so again."""
QUIET_SECONDS: Final = 60.0
"""The log tells the same thing at most so often."""
CLEAR_AT: Final = 0.95
"""After a refusal the log says that there is room again below this share of the limit."""


class MemoryLimit:
    """The limit on the memory that a keyspace takes, as it is counted. Keyspace's lock held.

    Args:
        most: bytes.
    """

    __slots__ = ("_calm_below", "_is_full", "_quiet_until", "_told_full", "_warn_from", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self._warn_from = WARN_AT * self.most
        self._calm_below = -1.0
        self._is_full = self._told_full = False
        self._quiet_until: dict[str, float] = {}

    def note(self, used: int) -> None:
        """Have the log warn if so much is a reason to, once."""
        if used >= self._warn_from:
            self._warn_from, self._calm_below = float("inf"), CALM_AT * self.most
            if self._may_tell("much"):
                _log.warning("%d bytes are used of limits.max_memory (%d)", used, self.most)
        elif used < self._calm_below:
            self._warn_from, self._calm_below = WARN_AT * self.most, -1.0
        if self._is_full and used < CLEAR_AT * self.most:
            self._is_full = False
            if self._told_full:
                _log.warning("there is room again in limits.max_memory (%d)", self.most)

    def refuse(self, used: int, growth: int, rev: int) -> Full:
        """Return the error for a write that does not fit, and have the log say so, once."""
        if not self._is_full:
            self._is_full = True
            self._told_full = self._may_tell("full")
            if self._told_full:
                _log.error(
                    "limits.max_memory (%d) is reached: writes that grow are refused, all else "
                    "continues",
                    self.most,
                )
        return Full(
            f"{used} bytes are used, and this write adds {growth}; limits.max_memory of the server "
            f"is {self.most}: remove something first",
            seen_rev=rev,
        )

    def _may_tell(self, what: str) -> bool:
        """Return True if the log has not told this for a while: a store may fill up each second."""
        now = time.monotonic()
        if now < self._quiet_until.get(what, 0.0):
            return False
        self._quiet_until[what] = now + QUIET_SECONDS
        return True


def growth_of(table: Table, staged: Mapping[str, StoredEntry | None]) -> int:
    """Return by how many bytes a transaction makes the entries grow.

    That an entry gets an expiry is no growth: a held lock is renewed.
    """
    growth = 0
    for key, entry in staged.items():
        before = table.get(key)
        growth += entry_bytes(key, entry) - entry_bytes(key, before)
        if before is None and entry is not None:
            growth += ENTRY_BYTES + (DEADLINE_BYTES if entry.expires else 0)
        elif before is not None and entry is None:
            growth -= ENTRY_BYTES
    return growth


def growth_under(
    table: Table, staged: Mapping[str, StoredEntry | None], prefixes: str | tuple[str, ...]
) -> int:
    """Return by how many bytes of keys and values what is under ``prefixes`` would grow."""
    return sum([
        entry_bytes(key, entry) - entry_bytes(key, table.get(key))
        for key, entry in staged.items()
        if key.startswith(prefixes)
    ])  # fmt: skip


def most_growth(staged: Mapping[str, StoredEntry | None], size: int) -> int:
    """Return an upper bound of `growth_of`, which takes no look at the table.

    Args:
        staged: the staged entries.
        size: bytes of the packed commit.
    """
    return size + len(staged) * (ENTRY_BYTES + DEADLINE_BYTES)


def require_room(table: Table, transaction: StagedWrite) -> None:
    """Raise Full if a transaction would exceed its quota and makes what is there grow.

    While what is there has not been counted, there is no quota.
    """
    quota = transaction.quota
    held = None if quota is None else table.bytes_under(quota.prefixes)
    if quota is None or held is None:
        return
    growth = growth_under(table, transaction.staged, quota.prefixes)
    if growth > 0 and held + growth > quota.max_bytes:
        raise Full(
            f"what is under your write prefixes takes {held} bytes and would take "
            f"{held + growth}; max_bytes is {quota.max_bytes}: remove something first",
            seen_rev=transaction.rev - 1,
        )
