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

from zkv.keyspace.change import Commit

UNREAD_CHANGES: Final = 100_000
"""Changes that are kept for a cursor, however small the history is."""
UNREAD_BYTES: Final = 64 * 1024 * 1024
"""Bytes of keys and values that are kept for a cursor."""

_TRIM: Final = 1_024
"""Places that may be empty before the list is moved: moving costs by the list's length."""
_DROPPED: Final = Commit(0, 0, ())
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
        most_bytes: how many bytes of keys and values.
        rev: the revision before the first commit that will be added.
    """

    def __init__(self, most_changes: int, most_bytes: int, rev: int = 0) -> None:
        self._most_changes = most_changes
        self._most_bytes = most_bytes
        self._commits: list[Commit] = []
        self._sizes: list[int] = []  # Of each commit, in bytes; see `_size`.
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

    def add(self, commit: Commit, safe_rev: int) -> None:
        """Take the next commit; those after ``safe_rev`` stay."""
        if commit.once is not None:  # Nobody asks the history for an answer, which may be large.
            commit = Commit(commit.rev, commit.time, commit.changes)
        self._rev = commit.rev
        size = _size(commit)
        self._commits.append(commit)
        self._sizes.append(size)
        self._changes += len(commit.changes)
        self._bytes += size
        while self._is_over(self._most_changes, self._most_bytes) and self._may_drop(safe_rev):
            self._drop_oldest()

    def restart(self, rev: int) -> None:
        """Forget everything; the next commit has revision ``rev`` + 1."""
        self._commits.clear()
        self._sizes.clear()
        self._begin = self._changes = self._bytes = 0
        self._rev = rev

    def roll_back(self, rev: int) -> None:
        """Forget the commits after ``rev``."""
        while self._rev > rev and len(self._commits) > self._begin:
            commit = self._commits.pop()
            self._changes -= len(commit.changes)
            self._bytes -= self._sizes.pop()
            self._rev -= 1
        self._rev = min(self._rev, rev)

    def since(self, rev: int, most: int) -> list[Commit]:
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

    def read(self, cursor: Cursor, most: int, safe_rev: int) -> list[Commit]:
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

    def _is_over(self, changes: int, size: int) -> bool:
        return self._changes > changes or self._bytes > size

    def _may_drop(self, safe_rev: int) -> bool:
        """Whether the oldest commit need not stay."""
        oldest = self.oldest
        if oldest > safe_rev or oldest == self._rev:
            return False
        unread = self._cursor is not None and oldest > self._cursor.rev
        return not unread or self._is_over(UNREAD_CHANGES, UNREAD_BYTES)

    def _drop_oldest(self) -> None:
        commit = self._commits[self._begin]
        self._changes -= len(commit.changes)
        self._bytes -= self._sizes[self._begin]
        self._commits[self._begin] = _DROPPED
        self._begin += 1
        if self._begin >= _TRIM + len(self._commits) // 2:
            del self._commits[: self._begin]
            del self._sizes[: self._begin]
            self._begin = 0


def _size(commit: Commit) -> int:
    """Roughly what the commit's keys and values take."""
    return sum([len(change.key) + len(memoryview(change.value)) for change in commit.changes])
