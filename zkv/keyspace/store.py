"""The store: every entry, the ordered index of keys, and the revision, under one lock.

Invariants:
- `Keyspace.lock` guards every attribute here and every `SnapshotView`. Public methods take it
  themselves; a name with a leading underscore expects it to be held.
- Every write goes through `_commit`: it takes the next revision, applies all changes or none, and
  is the one place where a log can be written ahead.
- `entries` and the index hold the same keys. Python orders str by code point, and UTF-8 keeps that
  order in its bytes, so the index is in the protocol's order.

Nothing here reads a clock, a file or a socket.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from sortedcontainers import SortedList

from zkv.errors import NotFoundError, ShuttingDownError, shorten
from zkv.keyspace.entry import Entry
from zkv.keyspace.view import SnapshotView

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Change = tuple[str, bytes | None]
"""A key and its new packed value; None removes the key."""


class Written(NamedTuple):
    """What one write did."""

    rev: int
    previous: Entry | None


class Keyspace:
    """The locked store that all workers share.

    Args:
        entries: what it holds at first.
        rev: the revision of that.
    """

    def __init__(self, entries: dict[str, Entry] | None = None, rev: int = 0) -> None:
        self.lock = threading.Lock()
        self.entries: dict[str, Entry] = {} if entries is None else entries
        self._index: SortedList[str] = SortedList(self.entries)
        self._rev = rev
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
            raise _no_such_key(key)
        return entry

    def get_many(self, keys: Iterable[str]) -> list[Entry | None]:
        """The entries of ``keys`` at one revision, None where a key is absent."""
        with self.lock:
            return list(map(self.entries.get, keys))

    def put(self, key: str, value: bytes) -> Written:
        """Write one entry. Raises ShuttingDownError."""
        with self.lock:
            previous = self.entries.get(key)
            return Written(self._commit(((key, value),)), previous)

    def put_many(self, items: Mapping[str, bytes]) -> int:
        """Write all ``items`` with one revision, which is returned. Raises ShuttingDownError."""
        with self.lock:
            return self._commit(items.items())

    def delete(self, key: str) -> Written:
        """Remove one entry. Raises NotFoundError, ShuttingDownError."""
        with self.lock:
            previous = self.entries.get(key)
            if previous is None:
                raise _no_such_key(key)
            return Written(self._commit(((key, None),)), previous)

    def delete_many(self, keys: Iterable[str]) -> tuple[int, int]:
        """Remove what is there of ``keys`` with one revision: how many there were, and it.

        Raises ShuttingDownError.
        """
        with self.lock:
            present = [key for key in dict.fromkeys(keys) if key in self.entries]
            return len(present), self._commit([(key, None) for key in present])

    def seal(self) -> int:
        """Refuse every write from now on; returns the last revision there will be."""
        with self.lock:
            self._sealed = True
            return self._rev

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

    def _commit(self, changes: Iterable[Change]) -> int:
        """Apply all ``changes`` as one revision, or none; no changes take no revision."""
        if self._sealed:
            raise ShuttingDownError("the server is stopping")
        rev = self._rev + 1
        changed = False
        for key, value in changes:
            self._apply(key, None if value is None else Entry(value, rev))
            changed = True
        if changed:
            self._rev = rev
        return self._rev

    def _apply(self, key: str, entry: Entry | None) -> None:
        old = self.entries.get(key)
        for view in self._views:
            view.keep(key, old)
        if entry is None:
            del self.entries[key]
            self._index.remove(key)
            return
        self.entries[key] = entry
        if old is None:
            self._index.add(key)


def _no_such_key(key: str) -> NotFoundError:
    return NotFoundError(f"no such key: {shorten(key)}")
