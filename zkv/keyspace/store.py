"""The store: every entry, the ordered index of keys, and the revision, under one lock.

Invariants:
- `Keyspace.lock` guards every attribute here and every `SnapshotView`. Public methods take it
  themselves; a name with a leading underscore expects it to be held.
- Every write goes through `_commit`: it takes the next revision, logs the changes ahead, and
  applies
  all of them or none.
- `entries` and the index hold the same keys. Python orders str by code point, and UTF-8 keeps that
  order in its bytes, so the index is in the protocol's order.
- Until the log says that a commit is safe, what it replaced is kept, and `roll_back` can undo it.

Nothing here reads a clock, a file or a socket.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sortedcontainers import SortedList

from zkv.errors import NotFoundError, ShuttingDownError, shorten
from zkv.keyspace.change import DELETE, PUT, Change
from zkv.keyspace.entry import Entry
from zkv.keyspace.view import SnapshotView

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence


class ChangeLog(Protocol):
    """Where commits go before they are applied."""

    @property
    def safe_rev(self) -> int:
        """The newest revision that will not be rolled back."""

    def append(self, rev: int, changes: Sequence[Change]) -> None:
        """Take a commit. Called with the keyspace's lock held. Raises ReadOnlyError."""


class NoLog:
    """For a store that is not to outlive its process: everything is safe at once."""

    safe_rev = 2**63

    def append(self, rev: int, changes: Sequence[Change]) -> None:
        """Forget the commit."""


class Written(NamedTuple):
    """What one write did."""

    rev: int
    previous: Entry | None


class Keyspace:
    """The locked store that all workers share.

    Args:
        entries: what it holds at first.
        rev: the revision of that.
        log: takes every commit before it is applied.
    """

    def __init__(
        self,
        entries: dict[str, Entry] | None = None,
        rev: int = 0,
        log: ChangeLog | None = None,
    ) -> None:
        self.lock = threading.Lock()
        self.entries: dict[str, Entry] = {} if entries is None else entries
        self._index: SortedList[str] = SortedList(self.entries)
        self._rev = rev
        self._removed_rev = rev
        self._log = NoLog() if log is None else log
        self._undo: deque[tuple[int, list[tuple[str, Entry | None]]]] = deque()
        self._views: list[SnapshotView] = []
        self._sealed = False

    @property
    def rev(self) -> int:
        """The revision of the last committed write, 0 at first."""
        return self._rev

    def __len__(self) -> int:
        return len(self.entries)

    def get(self, key: str) -> Entry:
        """The entry of ``key``. Raises NotFoundError."""
        with self.lock:
            entry = self.entries.get(key)
            if entry is None:
                raise self._no_such_key(key)
            return entry

    def get_many(self, keys: Iterable[str]) -> tuple[list[Entry | None], int]:
        """The entries of ``keys`` at one revision, None where a key is absent.

        The second value is a revision at or after the last removal: absence depends on it.
        """
        with self.lock:
            return list(map(self.entries.get, keys)), self._removed_rev

    def put(self, key: str, value: bytes) -> Written:
        """Write one entry. Raises ShuttingDownError, ReadOnlyError."""
        with self.lock:
            previous = self.entries.get(key)
            return Written(self._commit((Change(PUT, key, value),)), previous)

    def put_many(self, items: Mapping[str, bytes]) -> int:
        """Write all ``items`` with one revision, which is returned.

        Raises ShuttingDownError, ReadOnlyError.
        """
        with self.lock:
            return self._commit([Change(PUT, key, value) for key, value in items.items()])

    def delete(self, key: str) -> Written:
        """Remove one entry. Raises NotFoundError, ShuttingDownError, ReadOnlyError."""
        with self.lock:
            previous = self.entries.get(key)
            if previous is None:
                raise self._no_such_key(key)
            return Written(self._commit((Change(DELETE, key, None),)), previous)

    def delete_many(self, keys: Iterable[str]) -> tuple[int, int]:
        """Remove what is there of ``keys`` with one revision: how many there were, and it.

        Raises ShuttingDownError, ReadOnlyError.
        """
        with self.lock:
            present = [key for key in dict.fromkeys(keys) if key in self.entries]
            return len(present), self._commit([Change(DELETE, key, None) for key in present])

    def seal(self) -> int:
        """Refuse every write from now on; returns the last revision there will be."""
        with self.lock:
            self._sealed = True
            return self._rev

    def roll_back(self, rev: int) -> None:
        """Undo every commit after ``rev``, none of which is safe. Call with the lock held."""
        while self._undo and self._undo[-1][0] > rev:
            _, replaced = self._undo.pop()
            for key, old in reversed(replaced):
                self._set(key, old)
        self._rev = min(self._rev, rev)
        self._removed_rev = min(self._removed_rev, rev)
        for view in self._views:
            view.lost = view.lost or view.rev > rev

    def view(self) -> SnapshotView:
        """The store as it is now, to be read in small steps while writes go on."""
        with self.lock:
            view = SnapshotView(self, self._rev, len(self.entries))
            self._views.append(view)
            return view

    def release_view(self, view: SnapshotView) -> None:
        """Forget ``view``: it needs no replaced entries any more. Call with the lock held."""
        if view in self._views:
            self._views.remove(view)

    def keys_after(self, key: str) -> Iterator[str]:
        """Keys behind ``key`` in order. Call with the lock held, as long as it is read."""
        return self._index.irange(minimum=key, inclusive=(False, True))

    def _commit(self, changes: Sequence[Change]) -> int:
        """Apply all ``changes`` as one revision, or none; no changes take no revision."""
        if self._sealed:
            raise ShuttingDownError("the server is stopping")
        if not changes:
            return self._rev
        rev = self._rev + 1
        self._log.append(rev, changes)
        self._undo.append((rev, [(change.key, self._apply(change, rev)) for change in changes]))
        self._rev = rev
        safe_rev = self._log.safe_rev
        while self._undo and self._undo[0][0] <= safe_rev:
            self._undo.popleft()
        return rev

    def _apply(self, change: Change, rev: int) -> Entry | None:
        """Make ``change`` so; returns the entry that it replaced."""
        _, key, value = change
        if value is None:
            self._removed_rev = rev
            return self._set(key, None)
        return self._set(key, Entry(value, rev))

    def _set(self, key: str, entry: Entry | None) -> Entry | None:
        """Have ``entry`` under ``key``, or nothing; returns what was there."""
        old = self.entries.get(key)
        for view in self._views:
            view.keep(key, old)
        if entry is not None:
            self.entries[key] = entry
            if old is None:
                self._index.add(key)
        elif old is not None:
            del self.entries[key]
            self._index.remove(key)
        return old

    def _no_such_key(self, key: str) -> NotFoundError:
        return NotFoundError(f"no such key: {shorten(key)}", seen_rev=self._removed_rev)
