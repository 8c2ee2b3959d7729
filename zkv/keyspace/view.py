"""A view of the keyspace at one revision, while writes go on: copy on write, in small steps.

Strategy: the view walks the ordered index from the first key to the last, one chunk at a time. It
holds the keyspace's lock only while it reads a chunk. A write to a key ahead of the walk first
hands the replaced entry to the view (`keep`). So the view yields the entries exactly as they were
at its revision, without a copy of all and without a pause.

It takes memory for one replaced entry for each key that is written ahead of the walk.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from zkv.bounds import Range
from zkv.errors import OutOfMemory
from zkv.keyspace import memory
from zkv.keyspace.entry import StoredEntry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zkv.keyspace.sessions import SessionState
    from zkv.keyspace.store import Keyspace

CHUNK_ENTRIES = 500
"""Entries read in one hold of the lock: about 0.1 ms."""

REST_FACTOR = 1.0
"""After each chunk the reader sleeps for this many times the CPU time that the chunk took. Python
runs one thread at a time, and a thread that waits for a busy one may wait for 5 ms, at several
points of a request. A reader that yields by itself costs them only the time of a chunk.
"""

CHUNK_SESSIONS = 20
"""Sessions read in one hold of the lock."""

Chunk = list[tuple[str, StoredEntry]]
Step = TypeVar("Step")


class SnapshotView:
    """The entries at revision ``rev``. Made by `Keyspace.view`; must be closed.

    It also has what sessions remember of the commits up to log number ``lsn``, the newest then.
    Its attributes are protected by the keyspace's lock.
    """

    def __init__(self, keyspace: Keyspace, rev: int, lsn: int, count: int, time: int) -> None:
        self.rev = rev
        self.lsn = lsn
        self.lineage = keyspace.lineage
        self.count = count
        self.time = time  # Unix time in ms.
        self.lost = False  # True if commits that it contains were rolled back before `close`.
        self._keyspace = keyspace
        self._reached = ""  # The last key that has been read; no key is empty.
        self._all_reached = False
        self._most = CHUNK_ENTRIES
        self._kept: dict[str, StoredEntry | None] = {}

    def keep(self, key: str, old: StoredEntry | None) -> None:
        """Keep the entry that a write replaces, if the walk is not there yet. Lock held."""
        if not self._all_reached and key > self._reached:
            self._kept.setdefault(key, old)

    def rolled_back(self, lsn: int) -> None:
        """Note that the commits after ``lsn`` have been undone. Lock held."""
        self.lost = self.lost or self.lsn > lsn

    def chunks(self) -> Iterator[Chunk]:
        """Yield all entries in chunks: in key order, then those removed since ``rev``."""
        return self._resting(self._chunks())

    def _chunks(self) -> Iterator[Chunk]:
        while not self._all_reached:
            yield self._next_chunk()
        removed = [(key, old) for key, old in self._kept.items() if old is not None]
        self._kept.clear()
        for first in range(0, len(removed), CHUNK_ENTRIES):
            yield removed[first : first + CHUNK_ENTRIES]

    def sessions(self) -> Iterator[list[SessionState]]:
        """Yield the sessions in parts, with the replies up to log number ``lsn``.

        They are read in their current state, not in that of ``lsn``: newer replies are left out,
        and a reply that its session has dropped since is one that the client no longer needs.
        """
        return self._resting(self._sessions())

    def _sessions(self) -> Iterator[list[SessionState]]:
        with self._keyspace.lock:
            names = self._keyspace.sessions.names()
        for first in range(0, len(names), CHUNK_SESSIONS):
            with self._keyspace.lock:
                found = [
                    self._keyspace.sessions.state(name, self.lsn)
                    for name in names[first : first + CHUNK_SESSIONS]
                ]
            yield [state for state in found if state is not None]

    def _resting(self, steps: Iterator[Step]) -> Iterator[Step]:
        """Yield the same, and sleep after each step, in proportion to the CPU time it took."""
        began = time.thread_time()
        for step in steps:
            yield step
            if not self._keyspace.is_ending:  # Else all are waiting for this very snapshot.
                time.sleep(REST_FACTOR * (time.thread_time() - began))
            began = time.thread_time()

    def _next_chunk(self) -> Chunk:
        with self._keyspace.lock:
            rest = Range(self._reached, None, low_included=False)
            chunk = self._read(rest)
            if len(chunk) < self._most:
                self._all_reached = True
            else:
                self._reached = chunk[-1][0]
            if self._kept:
                then = [(key, self._kept.pop(key, entry)) for key, entry in chunk]
                chunk = [(key, entry) for key, entry in then if entry is not None]
        return chunk

    def _read(self, keys: Range) -> Chunk:
        """Return the next entries; from now on fewer at once, if memory is short."""
        while True:
            try:
                chunk = self._keyspace.entries.pairs(keys, self._most)
                memory.require(sum([len(entry.value) for _, entry in chunk]))
            except (MemoryError, OutOfMemory):
                if self._most == 1:
                    raise
                self._most //= 2
            else:
                return chunk

    def close(self) -> None:
        """Detach the view from the keyspace.

        Until then `lost` may still become true, even if all entries have been read.
        """
        with self._keyspace.lock:
            self._all_reached = True
            self._keyspace.release_view(self)
