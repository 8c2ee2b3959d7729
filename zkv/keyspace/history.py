"""The newest commits, in memory. CHANGES and the feed read them.

Revisions in the history are contiguous. It is bounded by the number of changes and by their bytes;
the oldest commits are dropped first. Three kinds of commits are kept beyond these bounds:

- the newest commit;
- commits that are not safe yet, since nobody can have seen them. The front bounds their bytes
  (`zkv.broker.front`), and they are dropped once they are safe (`trim`);
- commits that a `Cursor` has not read yet, up to bounds of its own. Beyond those the cursor counts
  what it misses: a reader that stays slower than the writers costs a bounded amount of memory.

Protected by the keyspace's lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zkv import compiled
from zkv.keyspace.change import ARRAY16, CHANGES_AT, PackedCommit, count_in, revision_in

UNREAD_CHANGES: Final = 100_000
"""Changes that are kept for a cursor, even if the history is smaller."""
UNREAD_BYTES: Final = 64 * 1024 * 1024
"""Bytes of commits that are kept for a cursor, likewise."""
COMMIT_BYTES: Final = 48
"""Memory that a commit takes in addition to its bytes."""

SURPLUS_CHANGES: Final = 1_000
"""Changes beyond the bound for which it is worth to take the lock once they are safe."""
SURPLUS_BYTES: Final = 1024 * 1024
"""Bytes likewise."""

LEAST_CHANGES: Final = 1_000
"""Changes that are kept even if memory is short."""
_AT_ONCE: Final = 5_000
"""Commits that are dropped in one call: about 1 ms."""
_TRIM: Final = 1_024
"""Unused places at the start of the list before it is moved: moving takes time for each item."""
_DROPPED: Final = b""
"""Replaces a dropped commit in the list. So its memory is freed at once: to free thousands of
commits together takes many milliseconds."""


class Cursor:
    """The position of a reader that must see every commit.

    Args:
        rev: the revision after which it begins.

    Attributes:
        rev: the newest revision that was read or missed.
        missed: number of revisions that were dropped before they were read.
    """

    __slots__ = ("missed", "rev")

    def __init__(self, rev: int) -> None:
        self.rev = rev
        self.missed = 0


if TYPE_CHECKING:
    _Base = object
else:  # C has most of the attributes, since it extends it for the front.
    _Base = compiled.store.HistoryBase if compiled.COMPILED else object


class History(_Base):
    """The history of a keyspace.

    Args:
        most_changes: bound on the changes kept.
        most_bytes: bound on the bytes of packed commits kept.
        rev: the revision before the first commit.
    """

    def __init__(self, most_changes: int, most_bytes: int, rev: int = 0) -> None:
        self._most_changes = most_changes
        self._most_bytes = most_bytes
        self._unread_changes = max(most_changes, UNREAD_CHANGES)
        self._unread_bytes = max(most_bytes, UNREAD_BYTES)
        self._payloads: list[bytes] = []
        self._begin = 0  # Index of the oldest commit; those before it are dropped.
        self._changes = 0
        self._bytes = 0
        self._rev = rev
        self._jump = rev, rev  # The newest revisions before, and after, the last `restart`.
        self._cursor: Cursor | None = None
        self.has_surplus = False
        """True if the history is well beyond its bounds. May be read without the lock."""

    @property
    def most_changes(self) -> int:
        """The bound on the changes kept."""
        return self._most_changes

    @property
    def memory(self) -> int:
        """The memory that the commits take."""
        return self._bytes + (len(self._payloads) - self._begin) * COMMIT_BYTES

    @property
    def newest(self) -> int:
        """The newest revision, even if its commit is not kept."""
        return self._rev

    @property
    def oldest(self) -> int:
        """The oldest revision kept; the next revision if none is kept."""
        return self._rev - (len(self._payloads) - self._begin) + 1

    def add(self, payload: bytes, safe_rev: int) -> None:
        """Add the next commit; do not drop commits after ``safe_rev``."""
        rev = revision_in(payload)
        self.extend([payload], rev, count_in(payload), len(payload), safe_rev)

    def extend(
        self, payloads: list[bytes], rev: int, changes: int, size: int, safe_rev: int
    ) -> None:
        """Add the next commits.

        Args:
            payloads: the commits.
            rev: the revision of the last one.
            changes: the number of their changes.
            size: their bytes.
            safe_rev: do not drop commits after this revision.
        """
        self._rev = rev
        self._payloads += payloads
        self._changes += changes
        self._bytes += size
        if self._changes > self._most_changes or self._bytes > self._most_bytes:
            self._trim(min(safe_rev, self._rev - 1))

    def trim(self, safe_rev: int) -> bool:
        """Drop commits that are safe now, as `extend` does; return True if more are to be dropped.

        Each call takes about 1 ms at most.
        """
        before = self.oldest
        if self._changes > self._most_changes or self._bytes > self._most_bytes:
            self._trim(min(safe_rev, self._rev - 1))
        else:
            self.has_surplus = False
        return self.oldest >= before + _AT_ONCE

    def shrink(self, size: int, safe_rev: int) -> int:
        """Free so many bytes, as far as possible; return how many were freed.

        Drops the oldest safe commits, also unread ones, but keeps `LEAST_CHANGES`.
        """
        freed = 0
        last = min(safe_rev, self._rev - 1)
        end = min(len(self._payloads), self._begin + last + 1 - self.oldest)
        while self._begin < end and self._changes > LEAST_CHANGES and freed < size:
            payload = self._payloads[self._begin]
            self._payloads[self._begin] = _DROPPED
            self._begin += 1
            self._changes -= count_in(payload)
            self._bytes -= len(payload)
            freed += len(payload) + COMMIT_BYTES
        self._compact()
        return freed

    def restart(self, rev: int) -> None:
        """Drop everything; the next commit has revision ``rev`` + 1.

        A cursor that has read everything before misses nothing.
        """
        self._jump = self._rev, rev
        self._payloads.clear()
        self._begin = self._changes = self._bytes = 0
        self._rev = rev

    def roll_back(self, rev: int) -> None:
        """Drop the commits after ``rev``."""
        while self._rev > rev and len(self._payloads) > self._begin:
            payload = self._payloads.pop()
            self._changes -= count_in(payload)
            self._bytes -= len(payload)
            self._rev -= 1
        self._rev = min(self._rev, rev)

    def since(self, rev: int, most: int) -> list[PackedCommit]:
        """Return at most ``most`` commits after ``rev``, which is in `oldest` - 1 ... `newest`."""
        first = self._begin + rev + 1 - self.oldest
        return [PackedCommit(payload) for payload in self._payloads[first : first + most]]

    def place_cursor(self) -> Cursor:
        """Place a cursor after the newest commit. It replaces the previous one."""
        self._cursor = Cursor(self._rev)
        return self._cursor

    def hold_for(self, cursor: Cursor) -> None:
        """Keep commits for ``cursor`` again, from the oldest that is still there."""
        if self._cursor is not cursor:
            self._cursor = cursor
            cursor.rev = max(cursor.rev, self.oldest - 1)

    def remove_cursor(self) -> None:
        """Keep no commits for a cursor any more."""
        self._cursor = None

    def read(self, cursor: Cursor, most: int, safe_rev: int) -> list[PackedCommit]:
        """Return at most ``most`` commits up to ``safe_rev``, and move the cursor past them."""
        before, after = self._jump
        if cursor.rev == before and after <= safe_rev:
            cursor.rev = after
        missed = min(self.oldest - 1, safe_rev) - cursor.rev
        if missed > 0:
            cursor.missed += missed
            cursor.rev += missed
        commits = self.since(cursor.rev, min(most, max(0, safe_rev - cursor.rev)))
        cursor.rev += len(commits)
        self.trim(safe_rev)
        return commits

    def statistics(self) -> dict[str, int]:
        """Return the fields of INFO's ``stats.history``."""
        return {"changes": self._changes, "bytes": self._bytes, "oldest": self.oldest}

    def _trim(self, last: int) -> None:
        """Drop the oldest commits, up to ``last``, until the bounds are met."""
        read = last if self._cursor is None else min(last, self._cursor.rev)
        self._drop(read, self._most_changes, self._most_bytes)
        self._drop(last, self._unread_changes, self._unread_bytes)
        self._compact()
        # What is kept for a cursor is trimmed when it is read.
        usual = self._most_changes, self._most_bytes
        unread = self._unread_changes, self._unread_bytes
        changes, size = usual if self._cursor is None else unread
        self.has_surplus = (
            self._changes > changes + SURPLUS_CHANGES or self._bytes > size + SURPLUS_BYTES
        )

    def _compact(self) -> None:
        """Remove the unused places at the start of the list, if there are many."""
        if self._begin >= _TRIM + len(self._payloads) // 2:
            del self._payloads[: self._begin]
            self._begin = 0

    def _drop(self, last: int, most_changes: int, most_bytes: int) -> None:
        """Drop the oldest commits, up to ``last``, until both bounds are met."""
        payloads, begin, changes, size = self._payloads, self._begin, self._changes, self._bytes
        end = min(len(payloads), begin + last + 1 - self.oldest, begin + _AT_ONCE)
        place = begin
        while place < end and (changes > most_changes or size > most_bytes):
            payload = payloads[place]
            head = payload[CHANGES_AT]  # Here, as a call for each write would cost more.
            changes -= head & 0x0F if head < ARRAY16 else count_in(payload)
            size -= len(payload)
            payloads[place] = _DROPPED
            place += 1
        self._begin, self._changes, self._bytes = place, changes, size
