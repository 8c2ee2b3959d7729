"""The store: every entry, the ordered index of keys, and the revision, under one lock.

Invariants:
- `Keyspace.lock` guards every attribute here, every `Watcher`, the sessions and the history.
  Methods whose text says "lock held" expect the caller to hold it; the others take it themselves.
- Every change goes through `commit`: it takes the next revision, logs the changes ahead, and
  applies all of them or none.
- `entries` and the index hold the same keys. Python orders str by code point, and UTF-8 keeps that
  order in its bytes, so the index is in the protocol's order.
- An entry past its deadline is gone for every method, whether or not it has been removed yet.
- Until the log says that a commit is safe, what it replaced is kept, and `roll_back` can undo it.

No file and no socket is touched here; the clock is passed in.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from itertools import islice, repeat
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from msgspec import Struct
from sortedcontainers import SortedList

from zkv.errors import Compacted, NotFound, ShuttingDown
from zkv.keyspace.change import EXPIRE, Commit, Once, Packed
from zkv.keyspace.entry import ABSENT, StoredEntry
from zkv.keyspace.log import MemoryLog
from zkv.keyspace.sessions import Window
from zkv.keyspace.table import Table, new_table
from zkv.keyspace.tally import PAUSE_SECONDS, Tally
from zkv.keyspace.transaction import StagedWrite, not_found
from zkv.keyspace.view import SnapshotView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from zkv.compiled._store import Replaced
    from zkv.keyspace.bounds import Range
    from zkv.keyspace.history import Cursor, History
    from zkv.keyspace.log import ChangeLog
    from zkv.keyspace.sessions import Sessions


PASSED_OVER: Final = 2_000
"""Expired keys that one page of a scan passes over at most: about 0.5 ms."""


class Watcher(Protocol):
    """Reads the store in small steps, and is told of what changes ahead of it. Lock held."""

    def keep(self, key: str, old: StoredEntry | None) -> None:
        """Learn what ``key`` was, before a write replaces it."""

    def rolled_back(self, rev: int) -> None:
        """Learn that the commits after ``rev`` have been undone."""


Remembering = list[tuple[Once, Window]]
"""What is remembered of exactly-once requests, and how to forget it."""


class Undo(Struct, frozen=True, gc=False):
    """How to take a commit back, or a run of them.

    Args:
        lsn: its number in the log; that of the last one.
        rev: the revision before.
        replaced: what its keys had before.
        remembered: what is remembered with it, and what the window of each session was before.
    """

    lsn: int
    rev: int
    replaced: dict[str, StoredEntry | None] | Replaced
    remembered: Remembering = []


FollowersOfWrites = tuple[
    "Callable[[str], None]",
    "Callable[[int, str], None]",
    "Callable[[str, StoredEntry | None], None]",
    "list[Watcher]",
    "Callable[[str, int, bytes, int, int], bool]",
    "Callable[[str, int, bytes, bytes, int, int, int], None]",
]
"""To be called, with the store's lock held: with each new key; with the deadline and the key of an
entry that was to expire and is replaced; and, while the fourth is not empty, with each key and the
entry that is replaced. And for exactly-once requests: whether one is to run, and what is to be
remembered of one."""


class Page(NamedTuple):
    """A part of a scan."""

    items: list[tuple[str, StoredEntry]]
    following: str | None
    """Behind which key to go on; None where there are no further ones in the range."""
    rev: int


class Keyspace:
    """The locked store that all workers share.

    Args:
        now: the clock, Unix time in ms; must not go back.
        sessions: what exactly-once requests have been answered.
        history: the newest commits, up to ``rev``.
        entries: what the store holds at first.
        rev: the revision of that.
        log: takes every commit before it is applied.
    """

    def __init__(
        self,
        now: Callable[[], int],
        sessions: Sessions,
        history: History,
        entries: Table | None = None,
        rev: int = 0,
        log: ChangeLog | None = None,
    ) -> None:
        self.lock = threading.Lock()
        self.now = now
        self.sessions = sessions
        self.history = history
        self.entries: Table = new_table() if entries is None else entries
        self.alarm: Callable[[], None] = lambda: None
        """Called, lock held, when an entry will expire sooner than any other."""
        self._index: SortedList[str] = SortedList(self.entries)
        self._deadlines: SortedList[tuple[int, str]] = SortedList(
            (entry.expires, key) for key, entry in self.entries.items() if entry.expires is not None
        )
        self._rev = rev
        self._removed_rev = rev
        self._log: ChangeLog = MemoryLog() if log is None else log
        self._undo: deque[Undo] = deque()
        self._remembered_in_run: Remembering = []  # In the run that is going on.
        self._watchers: list[Watcher] = []
        self.sealed = False
        """Whether writes are refused, since the server is stopping."""

    @property
    def rev(self) -> int:
        """The revision of the last committed write, 0 at first."""
        return self._rev

    @property
    def removed_rev(self) -> int:
        """A revision at or after the last removal. Lock held."""
        return self._removed_rev

    def __len__(self) -> int:
        with self.lock:
            return len(self.entries) - self._due_count()

    # --- Reading

    def live(self, key: str) -> StoredEntry | None:
        """The entry of ``key`` unless it has expired. Lock held."""
        entry = self.entries.get(key)
        if entry is not None and entry.expires is not None and entry.expires <= self.now():
            return None
        return entry

    def get(self, key: str) -> StoredEntry:
        """The entry of ``key``. Raises NotFound."""
        with self.lock:
            entry = self.live(key)
            if entry is None:
                raise self.no_such_key(key)
            return entry

    def get_many(self, keys: Sequence[str]) -> tuple[list[StoredEntry], int]:
        """The entries of ``keys`` at one revision, `ABSENT` where there is none.

        The second value is the newest revision that an absence among them depends on, or a later.
        """
        with self.lock:
            if self._due_count():
                found = [self.live(key) or ABSENT for key in keys]
                absent = [key for key, entry in zip(keys, found, strict=True) if entry is ABSENT]
                return found, max(map(self.absent_rev, absent), default=0)
            return list(map(self.entries.get, keys, repeat(ABSENT))), self._removed_rev

    def scan(self, keys: Range, limit: int, reverse: bool) -> Page:
        """The first ``limit`` entries of a range, or the last ones, backwards.

        Fewer, where it would have to pass over many that have expired.
        """
        with self.lock:
            found = self._walk(keys, reverse)
            if self._due_count():
                return self._scan_live(found, limit)
            names = list(islice(found, limit + 1))
            return self._page(names[:limit], names[limit - 1] if len(names) > limit else None)

    def count(self, keys: Range) -> tuple[int, int]:
        """How many keys are in a range, and at which revision; logarithmic in their number.

        While many expired keys wait for their removal it takes as long as looking at those takes,
        but not with the lock held.
        """
        while True:
            with self.lock:
                if keys.empty:
                    return 0, self._rev
                low = self._index.bisect_left(keys.low)
                high = len(self._index) if keys.high is None else self._index.bisect_left(keys.high)
                there, rev = high - low, self._rev
                due = self._due_count()
                if not due or there == len(self._index):
                    return there - due, rev
                tally = Tally(keys, self.now())
                self._step(tally)
                if tally.complete:
                    return there - tally.count, rev
                self._watchers.append(tally)
            self._complete(tally)
            if not tally.lost:
                return there - tally.count, rev

    def changes_since(self, rev: int, most: int) -> tuple[list[Packed], int]:
        """At most ``most`` commits after ``rev`` that are safe, and the newest safe revision.

        Raises Compacted: they are not kept any more.
        """
        with self.lock:
            safe_rev = self._safe_rev()
            oldest = self.history.oldest
            if rev < oldest - 1:
                raise Compacted(
                    f"changes since {rev} are not kept any more; the oldest is {oldest}",
                    oldest=oldest,
                )
            commits = self.history.since(rev, min(most, max(0, safe_rev - rev)))
            return commits, safe_rev

    def place_cursor(self) -> Cursor:
        """A cursor behind the newest commit, to `read` with. The store keeps one at a time."""
        with self.lock:
            return self.history.place_cursor()

    def pass_over(self, cursor: Cursor) -> int:
        """Move the cursor behind all that is safe, and keep nothing for it; where it is now."""
        with self.lock:
            self.history.remove_cursor()
            cursor.rev = max(cursor.rev, self._safe_rev())
            return cursor.rev

    def hold_for(self, cursor: Cursor) -> None:
        """Keep for the cursor what comes behind it, from now on."""
        with self.lock:
            self.history.hold_for(cursor)

    def remove_cursor(self) -> None:
        """Keep nothing for the cursor any more."""
        with self.lock:
            self.history.remove_cursor()

    def read(self, cursor: Cursor, most: int) -> list[Packed]:
        """The next commits behind the cursor, at most ``most``, as far as they are safe.

        What is gone already is passed over, and counted in `Cursor.missed`.
        """
        with self.lock:
            return self.history.read(cursor, most, self._safe_rev())

    # --- Writing

    def begin(self) -> StagedWrite:
        """A new transaction. Lock held. Raises ShuttingDown."""
        if self.sealed:
            raise ShuttingDown("the server is stopping")
        return StagedWrite(self, self._rev + 1)

    def commit(self, transaction: StagedWrite, once: Once | None = None) -> int:
        """Apply a transaction; returns its number in the log, 0 if there was nothing to log.

        Lock held, since `begin`. Raises ReadOnly, TooLarge, and then nothing is applied.
        """
        changes = transaction.changes
        if not changes and once is None:
            return 0
        now = self.now()
        commit = Commit(transaction.reply_rev, now, tuple(changes), once).pack()
        lsn = self._log.append(commit)
        rev = self._rev
        if changes:
            self._rev = transaction.rev
            self.history.add(commit, self._log.safe_rev)
            if None in transaction.staged.values():
                self._removed_rev = transaction.rev
        replaced = self._apply(transaction.staged)
        remembered: Remembering = []
        if once is not None:
            remembered.append((once, self.sessions.remember(once, self._rev, lsn, now)))
        self._keep(Undo(lsn, rev, replaced, remembered))
        return lsn

    def add_run(
        self, commits: list[Packed], rev: int, changes: int, size: int, replaced: Replaced
    ) -> None:
        """Log and remember commits that a `Lane` has made, and has applied. Lock held.

        Args:
            commits: what it has made; the store takes commits.
            rev: of the last one.
            changes: how many they have.
            size: the bytes of their payloads.
            replaced: how to take them back.
        """
        lsn = self._log.extend(commits)
        before, self._rev = self._rev, rev
        self.history.extend(commits, changes, size, self._log.safe_rev)
        remembered, self._remembered_in_run = self._remembered_in_run, []
        self._keep(Undo(lsn, before, replaced, remembered))

    @property
    def takes_writes(self) -> bool:
        """Whether nothing is wrong: writes would be taken. Lock held."""
        return not self.sealed and self._log.takes_commits

    def followers_of_writes(self) -> FollowersOfWrites:
        """What a lane, which applies its writes to the table itself, has to ask and to tell."""
        return (
            self._index.add,
            self._forget_deadline,
            self._tell_watchers,
            self._watchers,
            self._may_run_once,
            self._remember_in_run,
        )

    def _may_run_once(self, session: str, seq: int, digest: bytes, size: int, now: int) -> bool:
        """Whether an exactly-once request, whose reply has ``size`` bytes, is new.

        Raises RequestError where it must not run, as `Sessions.recall` and `require_room`.
        """
        if self.sessions.recall(session, seq, digest, now) is not None:
            return False
        self.sessions.require_room(session, seq, size)
        return True

    def _remember_in_run(
        self, session: str, seq: int, digest: bytes, reply: bytes, rev: int, place: int, now: int
    ) -> None:
        """Remember the reply to an exactly-once request of a run, whose commits come before log."""
        once = Once(session, seq, digest, reply)
        lsn = self._log.last_lsn + 1 + place
        self._remembered_in_run.append((once, self.sessions.remember(once, rev, lsn, now)))

    def expire(self, most: int) -> int | None:
        """Remove up to ``most`` entries that are past their deadline, each with a revision.

        Returns the ms until there is more to do, 0 if there is now; None if nothing will expire.
        Raises ReadOnly, ShuttingDown.
        """
        with self.lock:
            for _ in range(most):
                if not self._deadlines or self._deadlines[0][0] > self.now():
                    break
                transaction = self.begin()
                key = self._deadlines[0][1]
                transaction.remove(key, EXPIRE)
                self.commit(transaction)
            return max(0, self._deadlines[0][0] - self.now()) if self._deadlines else None

    def seal(self) -> int:
        """Refuse every write from now on; returns the last revision there will be."""
        with self.lock:
            self.sealed = True
            return self._rev

    def roll_back(self, lsn: int) -> None:
        """Undo every commit after ``lsn``, none of which is safe. Lock held."""
        while self._undo and self._undo[-1].lsn > lsn:
            undo = self._undo.pop()
            replaced = undo.replaced
            self._apply(replaced if isinstance(replaced, dict) else replaced.entries())
            for once, window in reversed(undo.remembered):
                self.sessions.undo(once, window)
            self._rev = undo.rev
        self.history.roll_back(self._rev)
        self._removed_rev = min(self._removed_rev, self._rev)
        for watcher in self._watchers:
            watcher.rolled_back(self._rev)

    # --- Views

    def view(self) -> SnapshotView:
        """The store as it is now, to be read in small steps while writes go on."""
        with self.lock:
            view = SnapshotView(self, self._rev, len(self.entries), self.now())
            self._watchers.append(view)
            return view

    def release_view(self, view: SnapshotView) -> None:
        """Forget ``view``, which nobody will ask any more. Lock held."""
        if view in self._watchers:
            self._watchers.remove(view)

    def keys_after(self, key: str) -> Iterator[str]:
        """Keys behind ``key`` in order. Lock held, as long as it is read."""
        return self._index.irange(minimum=key, inclusive=(False, True))

    def statistics(self) -> Mapping[str, object]:
        """What the sessions and the history take, and how many entries will expire."""
        with self.lock:
            self.sessions.forget_silent(self.now())
            return {
                "sessions": self.sessions.statistics(),
                "history": self.history.statistics(),
                "expiring": len(self._deadlines),
            }

    def no_such_key(self, key: str) -> NotFound:
        """The error for a key that is not there. Lock held."""
        return not_found(key, self.absent_rev(key))

    def absent_rev(self, key: str) -> int:
        """What the absence of ``key`` depends on: a revision at or after its removal. Lock held.

        Or at or after the write that set the time of which it died: without it, it may be there.
        """
        entry = self.entries.get(key)
        return self._removed_rev if entry is None else max(self._removed_rev, entry.rev)

    def _safe_rev(self) -> int:
        return min(self._rev, self._log.safe_rev)

    def _walk(self, keys: Range, reverse: bool) -> Iterator[str]:
        if keys.empty:
            return iter(())
        included = (keys.low_included, False)
        return self._index.irange(keys.low, keys.high, inclusive=included, reverse=reverse)

    def _scan_live(self, found: Iterator[str], limit: int) -> Page:
        """A page of ``found``, past those that have expired, but not past very many."""
        names: list[str] = []
        for looked_at, key in enumerate(found):
            if self.live(key) is None:
                if looked_at >= limit + PASSED_OVER:
                    return self._page(names, key)
            elif len(names) == limit:
                return self._page(names, names[-1])
            else:
                names.append(key)
        return self._page(names, None)

    def _page(self, names: list[str], following: str | None) -> Page:
        return Page(self.entries.pairs(names), following, self._rev)

    def _complete(self, tally: Tally) -> None:
        """Complete a tally in small steps. Without the lock held."""
        try:
            while not tally.complete and not tally.lost:
                time.sleep(PAUSE_SECONDS)
                with self.lock:
                    self._step(tally)
        finally:
            with self.lock:
                self._watchers.remove(tally)

    def _step(self, tally: Tally) -> None:
        behind = self._deadlines.irange(tally.reached, inclusive=(False, True))
        tally.step(behind)

    def _due_count(self) -> int:
        """How many entries have expired and are still to be removed."""
        if not self._deadlines or self._deadlines[0][0] > self.now():
            return 0
        return self._deadlines.bisect_left((self.now() + 1, ""))

    def _keep(self, undo: Undo) -> None:
        """Keep a way back for as long as it may be needed."""
        self._undo.append(undo)
        safe_lsn = self._log.safe_lsn
        while self._undo and self._undo[0].lsn <= safe_lsn:
            self._undo.popleft()

    def _tell_watchers(self, key: str, old: StoredEntry | None) -> None:
        for watcher in self._watchers:
            watcher.keep(key, old)

    def _apply(self, staged: dict[str, StoredEntry | None]) -> dict[str, StoredEntry | None]:
        """Have these entries under these keys, None = nothing; returns what was there before."""
        entries, index, watchers = self.entries, self._index, self._watchers
        replaced: dict[str, StoredEntry | None] = {}
        for key, entry in staged.items():
            replaced[key] = old = entries.get(key)
            for watcher in watchers:
                watcher.keep(key, old)
            if old is not None and old.expires is not None:
                self._forget_deadline(old.expires, key)
            if entry is not None:
                entries[key] = entry
                if old is None:
                    index.add(key)
                if entry.expires is not None:
                    self._set_deadline(entry.expires, key)
            elif old is not None:
                del entries[key]
                index.remove(key)
        return replaced

    def _forget_deadline(self, expires: int, key: str) -> None:
        self._deadlines.remove((expires, key))

    def _set_deadline(self, expires: int, key: str) -> None:
        deadline = (expires, key)
        self._deadlines.add(deadline)
        if self._deadlines[0] == deadline:
            self.alarm()
