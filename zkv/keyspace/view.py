"""A point-in-time view of a store that goes on changing: copy on write, read in small steps.

Strategy: the view walks the ordered index from the first key to the last, a chunk at a time, each
under the store's lock and for no longer than the chunk takes. A write to a key that the walk has
not reached yet first hands the entry that it replaces to the view (`keep`). So the view gives the
store exactly as it was at its revision, without a copy of it and without a pause.

The memory it takes is one replaced entry for each key that is written ahead of the walk.
"""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from zkv.keyspace.entry import StoredEntry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zkv.keyspace.sessions import SessionState
    from zkv.keyspace.store import Keyspace

CHUNK_ENTRIES = 500
"""Entries read in one hold of the lock: about 0.1 ms."""

REST_FACTOR = 1.0
"""After each chunk the reader rests for this many times the CPU time that it took for it. Python
runs one thread at a time, and whoever waits while another computes may wait for 5 ms: at each of
several points on the way of a request. A reader that gives way by itself costs them a chunk's time.
"""

CHUNK_SESSIONS = 20
"""Sessions read in one hold of the lock."""

Chunk = list[tuple[str, StoredEntry]]
Step = TypeVar("Step")


class SnapshotView:
    """The store as it was at ``rev``. Made by `Keyspace.view`, and to be closed.

    Its attributes are guarded by the store's lock.
    """

    def __init__(self, keyspace: Keyspace, rev: int, count: int, time: int) -> None:
        self.rev = rev
        self.count = count
        self.time = time  # Unix time in ms.
        self.lost = False  # Whether commits that it shows have been rolled back; until `close`.
        self._keyspace = keyspace
        self._reached = ""  # Every key up to this one has been read; no key is empty.
        self._all_reached = False
        self._kept: dict[str, StoredEntry | None] = {}

    def keep(self, key: str, old: StoredEntry | None) -> None:
        """Remember what ``key`` was, before a write replaces it. Call with the lock held."""
        if not self._all_reached and key > self._reached:
            self._kept.setdefault(key, old)

    def rolled_back(self, rev: int) -> None:
        """Learn that the commits after ``rev`` have been undone. Call with the lock held."""
        self.lost = self.lost or self.rev > rev

    def chunks(self) -> Iterator[Chunk]:
        """All entries, each once; in key order but for keys removed since ``rev``, which end it."""
        return self._resting(self._chunks())

    def _chunks(self) -> Iterator[Chunk]:
        while not self._all_reached:
            yield self._next_chunk()
        removed = [(key, old) for key, old in self._kept.items() if old is not None]
        self._kept.clear()
        for first in range(0, len(removed), CHUNK_ENTRIES):
            yield removed[first : first + CHUNK_ENTRIES]

    def sessions(self) -> Iterator[list[SessionState]]:
        """The exactly-once replies that tell of nothing newer than ``rev``, in parts.

        Read as they are, not as they were: what has been remembered since is left out, and what a
        session has let go of since is not needed by a client that has gone on.
        """
        return self._resting(self._sessions())

    def _sessions(self) -> Iterator[list[SessionState]]:
        with self._keyspace.lock:
            names = self._keyspace.sessions.names()
        for first in range(0, len(names), CHUNK_SESSIONS):
            with self._keyspace.lock:
                found = [
                    self._keyspace.sessions.state(name, self.rev)
                    for name in names[first : first + CHUNK_SESSIONS]
                ]
            yield [state for state in found if state is not None]

    def _resting(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The same, with a rest behind each, which is in proportion to what the caller did."""
        began = time.thread_time()
        for step in steps:
            yield step
            if not self._keyspace.sealed:  # Else nobody waits but for this.
                time.sleep(REST_FACTOR * (time.thread_time() - began))
            began = time.thread_time()

    def _next_chunk(self) -> Chunk:
        store = self._keyspace
        with store.lock:
            keys = list(islice(store.keys_after(self._reached), CHUNK_ENTRIES))
            kept = {key: self._kept.pop(key) for key in keys if key in self._kept}
            chunk = store.entries.pairs([key for key in keys if key not in kept])
            if kept:
                then = dict(chunk) | kept
                chunk = [(key, entry) for key in keys if (entry := then[key]) is not None]
            if len(keys) < CHUNK_ENTRIES:
                self._all_reached = True
            else:
                self._reached = keys[-1]
        return chunk

    def close(self) -> None:
        """Be done with it. The store knows the view until then, also when all of it has been read.

        For `lost` may still come true.
        """
        with self._keyspace.lock:
            self._all_reached = True
            self._keyspace.release_view(self)
