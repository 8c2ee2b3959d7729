"""A keyspace with one method for each write, for tests that need neither protocol nor sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from zkv.keyspace import History, Keyspace, Sessions, StagedWrite, StoredEntry
from zkv.keyspace.log import ChangeLog
from zkv.keyspace.table import Table, new_table


class Store(Keyspace):
    """A `Keyspace` whose clock stands still unless a test sets ``time`` (Unix time in ms)."""

    def __init__(
        self,
        entries: dict[str, StoredEntry] | None = None,
        rev: int = 0,
        log: ChangeLog | None = None,
        history: int = 1_000,
        kind: Callable[[], Table] = new_table,
    ) -> None:
        self.time = 1_000_000
        kept = History(history, 2**30, rev)
        table = kind()
        table.update(entries or {})
        super().__init__(lambda: self.time, Sessions(), kept, table, rev, log)

    def put(self, key: str, value: bytes) -> tuple[int, StoredEntry | None]:
        """Write one entry; the revision, and what was there."""
        with self.lock:
            transaction = self.begin()
            previous = transaction.find(key)
            transaction.put(key, value)
            return self._finish(transaction), previous

    def put_many(self, items: Mapping[str, bytes]) -> int:
        """Write many entries; the revision."""
        with self.lock:
            transaction = self.begin()
            transaction.put_many(dict(items))
            return self._finish(transaction)

    def delete(self, key: str) -> tuple[int, StoredEntry | None]:
        """Remove an entry that is there; the revision, and what was there."""
        with self.lock:
            transaction = self.begin()
            previous = transaction.get(key)
            transaction.remove(key)
            return self._finish(transaction), previous

    def delete_many(self, keys: Iterable[str]) -> tuple[int, int]:
        """Remove what is there of ``keys``; how many there were, and the revision."""
        with self.lock:
            transaction = self.begin()
            present = [key for key in dict.fromkeys(keys) if transaction.find(key) is not None]
            for key in present:
                transaction.remove(key)
            return len(present), self._finish(transaction)

    def _finish(self, transaction: StagedWrite) -> int:
        self.commit(transaction)
        return transaction.reply_rev
