"""The last commits, in memory: what CHANGES and the change feed are answered from.

Revisions in it are contiguous. It is bounded by the number of changes and by their bytes; the
oldest commits go first; the newest one always stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zkv.keyspace.change import Commit

_TRIM: Final = 1_024
"""Commits that may be over before the list is moved: moving costs by the list's length."""


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
        self._begin = 0  # Commits before this index are gone.
        self._changes = 0
        self._bytes = 0
        self._rev = rev

    @property
    def newest(self) -> int:
        """The newest revision, whether or not it is kept."""
        return self._rev

    @property
    def oldest(self) -> int:
        """The oldest revision kept, or the next one where none is."""
        return self._rev - (len(self._commits) - self._begin) + 1

    def add(self, commit: Commit) -> None:
        """Take the next commit."""
        self._rev = commit.rev
        self._commits.append(commit)
        self._changes += len(commit.changes)
        self._bytes += _size(commit)
        while self._is_full() and len(self._commits) - self._begin > 1:
            self._drop_oldest()

    def restart(self, rev: int) -> None:
        """Forget everything; the next commit has revision ``rev`` + 1."""
        self._commits.clear()
        self._begin = self._changes = self._bytes = 0
        self._rev = rev

    def roll_back(self, rev: int) -> None:
        """Forget the commits after ``rev``."""
        while self._rev > rev and len(self._commits) > self._begin:
            commit = self._commits.pop()
            self._changes -= len(commit.changes)
            self._bytes -= _size(commit)
            self._rev -= 1
        self._rev = min(self._rev, rev)

    def since(self, rev: int, most: int) -> list[Commit]:
        """At most ``most`` commits after ``rev``, which is not before `oldest` - 1."""
        first = self._begin + rev + 1 - self.oldest
        return self._commits[first : first + most]

    def statistics(self) -> dict[str, int]:
        """How much is kept."""
        return {"changes": self._changes, "bytes": self._bytes, "oldest": self.oldest}

    def _is_full(self) -> bool:
        return self._changes > self._most_changes or self._bytes > self._most_bytes

    def _drop_oldest(self) -> None:
        commit = self._commits[self._begin]
        self._changes -= len(commit.changes)
        self._bytes -= _size(commit)
        self._begin += 1
        if self._begin >= _TRIM + len(self._commits) // 2:
            del self._commits[: self._begin]
            self._begin = 0


def _size(commit: Commit) -> int:
    """Roughly what the commit's keys and values take."""
    return sum([len(change.key) + len(memoryview(change.value)) for change in commit.changes])
