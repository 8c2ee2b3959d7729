"""Trims the log in etcd, as the leader does: what enough members have in snapshots is deleted.

It may go if at least two members and a majority of those that are declared have a snapshot of it,
and say so (`zkv.cluster.claims`); where one member alone is declared, if that has two. At least
`store.log_bytes` of the log stay, so that a member that was away for a moment need not fetch a
snapshot, and so does everything from a pin on (`zkv.cluster.pins`).

No two clocks are compared. The leader notes, by its own clock, when it has seen a record change. A
claim counts if it was written after this term had begun, and has changed within `CLAIM_SECONDS`; a
pin, if it has changed within `PIN_SECONDS`. So a leader that has just taken over counts no claim of
which it has only heard, and every pin.

The bytes of all commits before a batch are in the batch: so the place to trim to is found by a
binary search in etcd, and nothing has to be remembered.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.cluster.records import First
    from zkv.cluster.shared_log import Declared, Seen, SharedLog, Tenure

_log = logging.getLogger("zkv.cluster")

CLAIM_SECONDS: Final = 3600.0
"""A claim counts for so long after it was renewed."""
PIN_SECONDS: Final = 60.0
"""A pin lapses after so long without a move."""
LEAST_MEMBERS: Final = 2
"""Members that have to have a snapshot of what is trimmed, where there are so many."""
LEAST_SHARE: Final = 16
"""The log is trimmed once it has one part in this many more than has to stay."""


class Covered(NamedTuple):
    """Up to which commit snapshots are there.

    Args:
        lsn: its log number.
        by: the members that have them.
    """

    lsn: int
    by: list[Declared]


class _Noted:
    """When records of others have changed, as seen here."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[int, float]] = {}

    def age(self, name: str, revision: int) -> float:
        """Return how long a record has been seen at this revision, in seconds."""
        now = self._clock()
        if self._seen.get(name, (0, 0.0))[0] != revision:
            self._seen[name] = revision, now
        return now - self._seen[name][1]

    def forget_others(self, names: set[str]) -> None:
        self._seen = {name: self._seen[name] for name in self._seen if name in names}


class LogTrimmer:
    """Trims the log while this member leads. One thread.

    Args:
        log: the log in etcd.
        log_bytes: bytes of commits that stay at least.
        clock: returns seconds that do not stand still while the machine sleeps.
    """

    def __init__(self, log: SharedLog, log_bytes: int, clock: Callable[[], float]) -> None:
        self._log = log
        self._log_bytes = log_bytes
        self._claims = _Noted(clock)
        self._pins = _Noted(clock)
        self.obstacle: str | None = None
        """Why the log could not be trimmed the last time; None = there was nothing to trim."""

    def trim(self, tenure: Tenure) -> int:
        """Trim what may go, and delete it.

        Returns the revision of etcd in which something was deleted last; 0 if nothing was. Raises
        EtcdError, DamageError, DeposedError.
        """
        seen = self._log.look()
        covered, pinned = self._covered(tenure), self._pinned()
        first = self._next_first(seen, covered, pinned)
        if first is None or covered is None or not tenure.trim(seen, first, covered.by):
            first = seen.first
        else:
            names = ", ".join(each.record.name for each in covered.by)
            _log.info("the log in etcd begins at %d now: %s have the rest", first.lsn, names)
        return self._sweep(tenure, first)

    def _sweep(self, tenure: Tenure, first: First) -> int:
        """Delete what is before the beginning, also what a killed leader has left there."""
        newest = 0
        while revision := tenure.sweep(first):
            newest = revision
        return newest

    def _next_first(self, seen: Seen, covered: Covered | None, pinned: int) -> First | None:
        """Return where the log may begin; None to leave it as it is."""
        self.obstacle = None
        surplus = seen.head.size - seen.first.size - self._log_bytes
        if surplus <= self._log_bytes // LEAST_SHARE:
            return None
        if covered is None or covered.lsn < seen.first.lsn:
            self.obstacle = "not enough members have a snapshot of it"
            return None
        if pinned <= seen.first.lsn:
            self.obstacle = "a member is fetching a snapshot"
            return None
        bound = min(covered.lsn + 1, pinned, seen.head.lsn)
        return self._log.last_before(seen.first, bound, seen.head.size - self._log_bytes)

    def _covered(self, tenure: Tenure) -> Covered | None:
        """Return up to where enough members have snapshots; None if too few say anything."""
        declared = self._log.declared()
        self._claims.forget_others({each.record.name for each in declared})
        valid = [
            each
            for each in declared
            if self._claims.age(each.record.name, each.revision) <= CLAIM_SECONDS
            and each.revision > tenure.revision
            and each.record.claim.newest
        ]
        if len(declared) == 1:
            return Covered(valid[0].record.claim.second, valid) if valid else None
        needed = max(LEAST_MEMBERS, len(declared) // 2 + 1)
        valid.sort(key=lambda each: each.record.claim.newest, reverse=True)
        if len(valid) < needed:
            return None
        return Covered(valid[needed - 1].record.claim.newest, valid[:needed])

    def _pinned(self) -> int:
        """Return from which log number on somebody needs the log; remove pins that have lapsed."""
        pins = self._log.pins()
        self._pins.forget_others({each.record.member for each in pins})
        pinned = 2**63
        for each in pins:
            if self._pins.age(each.record.member, each.revision) <= PIN_SECONDS:
                pinned = min(pinned, each.record.lsn)
            else:
                self._log.unpin(each.record.member, each.revision)
                _log.warning("the pin of member %s has lapsed", each.record.member)
        return pinned
