"""The last commits, in memory: what CHANGES and the change feed are answered from.

Revisions in it are contiguous. It is bounded by the number of changes and by their bytes, and the
oldest commits go first. Three things stay beyond these bounds:

- the newest commit;
- what is not safe yet: nobody can have been told of it. It is bounded by what is in flight;
- what a `Cursor` has not read yet, up to bounds of its own. Beyond them its reader misses
  something, and the cursor counts it: a reader that is slower than the writers for long costs a
  bounded amount of memory, and is told.

Everything here is guarded by the keyspace's lock.
"""

from __future__ import annotations

from typing import Final

from zkv.keyspace.change import Packed

UNREAD_CHANGES: Final = 100_000
"""Changes that are kept for a cursor, however small the history is."""
UNREAD_BYTES: Final = 64 * 1024 * 1024
"""Bytes of commits that are kept for a cursor."""

_TRIM: Final = 1_024
"""Places that may be empty before the list is moved: moving costs by the list's length."""
_DROPPED: Final = Packed(0, 0, b"")
"""In the place of a commit that is gone: its memory is freed at once, and not that of thousands
together, which would take many milliseconds."""


class Cursor:
    """How far a reader of the history has come that is to see every commit.

    Args:
        rev: the revision that it begins behind.

    Attributes:
        rev: the newest revision read, or missed.
        missed: how many revisions were gone before they were read.
    """

    __slots__ = ("missed", "rev")

    def __init__(self, rev: int) -> None:
        self.rev = rev
        self.missed = 0


class History:
    """The newest commits up to ``rev``.

    Args:
        most_changes: how many changes are kept.
        most_bytes: how many bytes of commits, as they are packed.
        rev: the revision before the first commit that will be added.
    """

    def __init__(self, most_changes: int, most_bytes: int, rev: int = 0) -> None:
        self._most_changes = most_changes
        self._most_bytes = most_bytes
        self._commits: list[Packed] = []
        self._begin = 0  # Commits before this index are gone.
        self._changes = 0
        self._bytes = 0
        self._rev = rev
        self._cursor: Cursor | None = None

    @property
    def newest(self) -> int:
        """The newest revision, whether or not it is kept."""
        return self._rev

    @property
    def oldest(self) -> int:
        """The oldest revision kept, or the next one where none is."""
        return self._rev - (len(self._commits) - self._begin) + 1

    def add(self, commit: Packed, safe_rev: int) -> None:
        """Take the next commit; those after ``safe_rev`` stay."""
        self.extend([commit], commit.count, len(commit.payload), safe_rev)

    def extend(self, commits: list[Packed], changes: int, size: int, safe_rev: int) -> None:
        """Take the next commits, with so many changes and bytes; those after ``safe_rev`` stay."""
        self._rev = commits[-1].rev
        self._commits += commits
        self._changes += changes
        self._bytes += size
        if self._changes > self._most_changes or self._bytes > self._most_bytes:
            self._trim(min(safe_rev, self._rev - 1))

    def restart(self, rev: int) -> None:
        """Forget everything; the next commit has revision ``rev`` + 1."""
        self._commits.clear()
        self._begin = self._changes = self._bytes = 0
        self._rev = rev

    def roll_back(self, rev: int) -> None:
        """Forget the commits after ``rev``."""
        while self._rev > rev and len(self._commits) > self._begin:
            commit = self._commits.pop()
            self._changes -= commit.count
            self._bytes -= len(commit.payload)
            self._rev -= 1
        self._rev = min(self._rev, rev)

    def since(self, rev: int, most: int) -> list[Packed]:
        """At most ``most`` commits after ``rev``, which is from `oldest` - 1 to `newest`."""
        first = self._begin + rev + 1 - self.oldest
        return self._commits[first : first + most]

    def place_cursor(self) -> Cursor:
        """A cursor behind the newest commit. There is one at most: it takes the former's place."""
        self._cursor = Cursor(self._rev)
        return self._cursor

    def hold_for(self, cursor: Cursor) -> None:
        """Keep what is behind ``cursor`` again; what has gone meanwhile was not for it."""
        if self._cursor is not cursor:
            self._cursor = cursor
            cursor.rev = max(cursor.rev, self.oldest - 1)

    def remove_cursor(self) -> None:
        """Nobody reads on."""
        self._cursor = None

    def read(self, cursor: Cursor, most: int, safe_rev: int) -> list[Packed]:
        """At most ``most`` commits up to ``safe_rev`` behind the cursor, which moves over them."""
        missed = self.oldest - 1 - cursor.rev
        if missed > 0:
            cursor.missed += missed
            cursor.rev += missed
        commits = self.since(cursor.rev, min(most, max(0, safe_rev - cursor.rev)))
        cursor.rev += len(commits)
        return commits

    def statistics(self) -> dict[str, int]:
        """How much is kept."""
        return {"changes": self._changes, "bytes": self._bytes, "oldest": self.oldest}

    def _trim(self, last: int) -> None:
        """Let go of the oldest commits up to ``last``, as far as the bounds ask for it.

        One loop without a call in it, since each write comes here: 0.1 us a commit.
        """
        commits, place, oldest = self._commits, self._begin, self.oldest
        changes, size = self._changes, self._bytes
        most_changes, most_bytes = self._most_changes, self._most_bytes
        read = last if self._cursor is None else self._cursor.rev
        while oldest <= last and (changes > most_changes or size > most_bytes):
            if oldest > read and changes <= UNREAD_CHANGES and size <= UNREAD_BYTES:
                break
            commit = commits[place]
            changes -= commit.count
            size -= len(commit.payload)
            commits[place] = _DROPPED
            place += 1
            oldest += 1
        self._begin, self._changes, self._bytes = place, changes, size
        if place >= _TRIM + len(commits) // 2:
            del commits[:place]
            self._begin = 0
