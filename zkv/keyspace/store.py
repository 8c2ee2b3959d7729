"""The keyspace: all entries, in the order of their keys, and the revision, under one lock.

Invariants:
- `Keyspace.lock` protects every attribute here, every `Watcher`, the sessions and the history.
  Methods documented as "Lock held" expect the caller to hold it; the others take it themselves.
- Every write goes through `commit`, or `add_run` for those of the lane. It takes the next revision,
  queues the changes for the log, and applies all of them or none.
- An entry whose deadline has passed is absent for every method, even before it is removed.
- Until the log says that a commit is safe, its undo information is kept for `roll_back`.

This package uses no files and no sockets; the clock is passed in.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import repeat
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from msgspec import Struct
from sortedcontainers import SortedList

from zkv import compiled
from zkv.errors import Compacted, NotFound, RequestError, ShuttingDown
from zkv.keyspace.change import (
    EXPIRE,
    Commit,
    EvictionPayload,
    Once,
    PackedCommit,
    entry_after,
    misplacement,
)
from zkv.keyspace.entry import ABSENT, StoredEntry
from zkv.keyspace.eviction import MOST_EVICTED, Evictor
from zkv.keyspace.half_done import end_process
from zkv.keyspace.lineage import NO_LINEAGE, Lineage
from zkv.keyspace.lock import StoreLock
from zkv.keyspace.log import MemoryLog
from zkv.keyspace.room import (
    BEYOND,
    DEADLINE_BYTES,
    ENTRY_BYTES,
    MemoryLimit,
    growth_of,
    most_growth,
    require_room,
)
from zkv.keyspace.sessions import Window
from zkv.keyspace.table import Table, new_table
from zkv.keyspace.tally import PAUSE_SECONDS, Tally
from zkv.keyspace.transaction import StagedWrite, not_found
from zkv.keyspace.view import SnapshotView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from zkv.bounds import Range
    from zkv.compiled._store import Replaced
    from zkv.compiled._store import Run as LaneRun
    from zkv.keyspace.eviction import CacheBound
    from zkv.keyspace.history import Cursor, History
    from zkv.keyspace.lineage import TermStart
    from zkv.keyspace.log import ChangeLog
    from zkv.keyspace.sessions import Sessions
    from zkv.users.quota import Quota


SHRINK_SHARE: Final = 100
"""If memory is short, the history gives up one part in this many of the limit more than needed."""
COUNTED_ENTRIES: Final = 2_000
"""Entries that are counted for quotas in one hold of the lock: about 0.1 ms."""
PASSED_OVER: Final = 2_000
"""Expired keys that one page of a scan skips at most: about 0.5 ms."""


class Watcher(Protocol):
    """Reads the keyspace in small steps, and follows the writes in the meantime. Lock held."""

    def keep(self, key: str, old: StoredEntry | None) -> None:
        """Take the entry of ``key``, which a write is about to replace."""

    def rolled_back(self, lsn: int) -> None:
        """Note that the commits after ``lsn`` have been undone."""


class Undo(Struct, frozen=True, gc=False):
    """How to undo a commit, or all commits of a run.

    Args:
        lsn: log number of the (last) commit.
        rev: the revision before.
        replaced: the replaced entries.
        remembered: the windows of sessions before the replies that were remembered with it.
        lineage: the lineage before, if it begins a term.
    """

    lsn: int
    rev: int
    replaced: dict[str, StoredEntry | None] | Replaced
    remembered: list[Window] = []
    lineage: Lineage | None = None


class WriteHooks(NamedTuple):
    """The functions that a lane must call, since it writes to the table itself. Lock held.

    Attributes:
        forget_deadline: with the deadline and the key of each replaced entry that would expire.
        notify_watchers: with each key and the entry that is replaced, while `watchers` has any.
        watchers: the list of those who follow the writes.
        may_run: before an exactly-once request; see `Keyspace._may_run_once`.
        remember: after an exactly-once request; see `Keyspace._remember_in_run`.
    """

    forget_deadline: Callable[[int, str], None]
    notify_watchers: Callable[[str, StoredEntry | None], None]
    watchers: list[Watcher]
    may_run: Callable[[str, int, bytes, int, int], bool]
    remember: Callable[[str, int, bytes, bytes, int, int, int], None]


class Page(NamedTuple):
    """A page of a scan."""

    items: list[tuple[str, StoredEntry]]
    following: str | None
    """The next page begins after this key; None if the range has no more keys."""
    rev: int


if TYPE_CHECKING:
    _Base = object
else:  # C has some of the attributes, since it does `add_run` for the front.
    _Base = compiled.store.KeyspaceBase if compiled.COMPILED else object


class Keyspace(_Base):
    """All data of a server, shared by its threads.

    Args:
        now: the clock, Unix time in ms; must never go back.
        sessions: the remembered exactly-once requests.
        history: the newest commits, up to ``rev``.
        entries: the initial entries.
        rev: their revision.
        log: takes every commit before it is applied.
        max_memory: bytes that entries, history and sessions may take together; 0 = no limit.
        lineage: which store it is, and its terms.
    """

    def __init__(
        self,
        now: Callable[[], int],
        sessions: Sessions,
        history: History,
        entries: Table | None = None,
        rev: int = 0,
        log: ChangeLog | None = None,
        max_memory: int = 0,
        lineage: Lineage = NO_LINEAGE,
    ) -> None:
        self.lock = StoreLock()
        self.lineage = lineage
        """Which store it is, and its terms. Changes with the lock held."""
        self.now = now
        self.sessions = sessions
        self.history = history
        self.entries: Table = new_table() if entries is None else entries
        self.alarm: Callable[[], None] = lambda: None
        """Called, lock held, when an entry is going to expire before all others, or if a write
        could not evict all that has to go."""
        self._deadlines: SortedList[tuple[int, str]] = SortedList(self.entries.deadlines())
        self.rev = rev
        """The revision of the last committed write, 0 at first."""
        self.removed_rev = rev
        """A revision at or after the last removal. Lock held."""
        self._log: ChangeLog = MemoryLog() if log is None else log
        self.limit = MemoryLimit(max_memory) if max_memory else None
        """The memory limit; None if there is none."""
        self._undo: deque[Undo] = deque()
        self._remembered_in_run: list[Window] = []  # During a run of the lane.
        self._watchers: list[Watcher] = []
        self.expired = 0
        """Number of expired entries that have been removed. Lock held."""
        self._sealed: Callable[[], RequestError] | None = None
        """Makes the error for all writes; None = only the log may refuse them."""
        self.is_ending = False
        """True once the server is stopping."""
        self._evictor: Evictor | None = None
        self._quota_prefixes: set[str] = set()
        self._cache_prefixes: set[str] = set()

    def __len__(self) -> int:
        with self.lock:
            return len(self.entries) - self._due_count()

    # --- Reading

    def live(self, key: str) -> StoredEntry | None:
        """The entry of ``key``; None if it is absent or has expired. Lock held."""
        entry = self.entries.get(key)
        return None if entry is None or self._has_expired(entry) else entry

    def get(self, key: str) -> StoredEntry:
        """Return the entry of ``key``. Raises NotFound."""
        with self.lock:
            entry = self.live(key)
            if entry is None:
                raise self.no_such_key(key)
            return entry

    def get_many(self, keys: Sequence[str]) -> tuple[list[StoredEntry], int]:
        """Return the entries of ``keys`` at one revision; `ABSENT` for keys without one.

        The second value is a revision at or after the newest one that the absences depend on.
        """
        with self.lock:
            if self._due_count():
                found = [self.live(key) or ABSENT for key in keys]
                absent = [key for key, entry in zip(keys, found, strict=True) if entry is ABSENT]
                return found, max(map(self.absent_rev, absent), default=0)
            return list(map(self.entries.get, keys, repeat(ABSENT))), self.removed_rev

    def scan(self, keys: Range, limit: int, reverse: bool) -> Page:
        """Return the first ``limit`` entries of a range; if ``reverse``, the last, backwards.

        A page may have fewer, to bound the number of expired entries that are skipped.
        """
        with self.lock:
            if self._due_count():
                return self._scan_live(keys, limit, reverse)
            items = self.entries.pairs(keys, limit + 1, reverse)
            following = items[limit - 1][0] if len(items) > limit else None
            return Page(items[:limit], following, self.rev)

    def count(self, keys: Range) -> tuple[int, int]:
        """Count the keys of a range, and return the revision; about 10 us for a million keys.

        While expired keys wait for their removal, it also takes the time to look at all of them,
        but in small steps, without holding the lock in between.
        """
        while True:
            with self.lock:
                there, rev = self.entries.count(keys), self.rev
                if not there:
                    return 0, rev
                due = self._due_count()
                if not due or there == len(self.entries):
                    return there - due, rev
                tally = Tally(keys, self.now())
                self._step(tally)
                if tally.complete:
                    return there - tally.count, rev
                self._watchers.append(tally)
            self._complete(tally)
            if not tally.lost:
                return there - tally.count, rev

    def changes_since(self, rev: int, most: int) -> tuple[list[PackedCommit], int]:
        """Return at most ``most`` safe commits after ``rev``, and the newest safe revision.

        Raises Compacted if some are no longer kept.
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
        """Place a cursor after the newest commit. It replaces the previous one."""
        with self.lock:
            return self.history.place_cursor()

    def pass_over(self, cursor: Cursor) -> int:
        """Move the cursor past all safe commits, stop keeping any; return its revision."""
        with self.lock:
            self.history.remove_cursor()
            cursor.rev = max(cursor.rev, self._safe_rev())
            return cursor.rev

    def hold_for(self, cursor: Cursor) -> None:
        """Keep commits after the cursor again."""
        with self.lock:
            self.history.hold_for(cursor)

    def remove_cursor(self) -> None:
        """Keep no commits for a cursor any more."""
        with self.lock:
            self.history.remove_cursor()

    def read(self, cursor: Cursor, most: int) -> list[PackedCommit]:
        """Return at most ``most`` safe commits after the cursor, and move it past them.

        Revisions that are no longer kept are skipped and counted in `Cursor.missed`.
        """
        with self.lock:
            return self.history.read(cursor, most, self._safe_rev())

    def put_back(self, cursor: Cursor, rev: int) -> None:
        """Move the cursor back: commits after ``rev`` that were read will be read again."""
        with self.lock:
            cursor.rev = rev

    # --- Writing

    def begin(self, quota: Quota | None = None) -> StagedWrite:
        """Begin a transaction of a user with this quota. Lock held.

        Raises ShuttingDown, or NotLeader, if writes are refused.
        """
        if self._sealed is not None:
            raise self._sealed()
        return StagedWrite(self, self.rev + 1, quota)

    def commit(self, transaction: StagedWrite, once: Once | None = None) -> int:
        """Log and apply a transaction; return its log number, 0 if there is nothing to log.

        The lock must have been held since `begin`. Raises Full, ReadOnly or TooLarge, and then
        nothing is applied.
        """
        changes = transaction.changes
        if not changes and once is None:
            return 0
        require_room(self.entries, transaction)
        if self._evictor is None:
            return self.record(transaction, once)
        self._evictor.require_room(transaction)
        lsn = self.record(transaction, once)
        self._evictor.pay(len(changes))
        return lsn

    def record(self, transaction: StagedWrite, once: Once | None = None) -> int:
        """Log and apply a transaction as `commit` does, but evict nothing. Raises the same."""
        changes = transaction.changes
        now = self.now()
        lsn = self._log.last_lsn + 1
        payload = Commit(transaction.reply_rev, now, lsn, tuple(changes), once).pack()
        if self.limit is not None:
            self._require_memory(self.limit, transaction, len(payload))
        if transaction.evicts:
            payload = EvictionPayload(payload)
        removed = None in transaction.staged.values()
        self._log.append(payload, removed and not any(transaction.staged.values()))
        try:
            rev = self.rev
            if changes:
                self.rev = transaction.rev
                self.history.add(payload, self._log.safe_rev)
                if removed:
                    self.removed_rev = transaction.rev
            replaced = self._apply(transaction.staged)
            remembered: list[Window] = []
            if once is not None:
                remembered.append(self.sessions.remember(once, self.rev, lsn, now))
            self._keep(Undo(lsn, rev, replaced, remembered))
        except MemoryError:
            end_process("commit")
        return lsn

    def begin_term(self, start: TermStart, rev: int) -> int:
        """Begin a term; return the log number of the commit that does. Lock held.

        Args:
            start: the term.
            rev: the revision of the store from then on: the present one, or a higher one. If it is
                higher, the history begins anew.

        Raises ReadOnly.
        """
        commit = Commit(rev, self.now(), self._log.last_lsn + 1, (), begins=start)
        return self._record_term(commit, commit.pack(), start)

    def _record_term(self, commit: Commit, payload: bytes, start: TermStart) -> int:
        lineage = self.lineage.begin(start, commit.lsn)
        self._log.append(payload)
        try:
            self._keep(Undo(commit.lsn, self.rev, {}, lineage=self.lineage))
            self.lineage = lineage
            if commit.rev != self.rev:
                self.rev = self.removed_rev = commit.rev
                self.history.restart(commit.rev)
        except MemoryError:
            end_process("commit")
        return commit.lsn

    def apply(self, commits: Sequence[Commit]) -> None:
        """Log and apply commits of another server's log, which follow the newest one here.

        Lock held.

        Raises:
            ValueError: one of them does not follow; those before it are applied.
            ReadOnly: the log refuses commits; likewise.
        """
        for commit in commits:
            if (why := misplacement(commit, self.rev, self._log.last_lsn)) is not None:
                raise ValueError(why)
            if commit.begins is not None:
                self._record_term(commit, commit.payload, commit.begins)
            else:
                self._apply_logged(commit)

    def _apply_logged(self, commit: Commit) -> None:
        staged = {change.key: entry_after(change, commit.rev) for change in commit.changes}
        self._log.append(commit.payload)
        try:
            rev = self.rev
            if staged:
                self.rev = commit.rev
                self.history.add(commit.payload, self._log.safe_rev)
                if None in staged.values():
                    self.removed_rev = commit.rev
            replaced = self._apply(staged)
            remembered: list[Window] = []
            if (once := commit.once) is not None:
                window = self.sessions.remember(once, self.rev, commit.lsn, commit.time)
                remembered.append(window)
            self._keep(Undo(commit.lsn, rev, replaced, remembered))
        except MemoryError:
            end_process("commit")

    def room(self, limit: MemoryLimit) -> int:
        """Return by how many bytes the entries may grow within ``limit``. Lock held."""
        used = self._used()
        limit.note(used)
        return limit.most - used

    def _require_memory(self, limit: MemoryLimit, transaction: StagedWrite, size: int) -> None:
        """Raise Full if a transaction, packed into so many bytes, does not fit into the limit."""
        room = self.room(limit)
        if most_growth(transaction.staged, size) <= room:
            return
        growth = growth_of(self.entries, transaction.staged)
        missing = max(growth, 0) - room
        if missing > 0:  # Some more, so that not every write has to do this.
            missing -= self.history.shrink(missing + limit.most // SHRINK_SHARE, self._safe_rev())
        beyond = int((BEYOND - 1) * limit.most) if growth <= 0 else 0
        if missing > beyond and growth >= 0:
            raise limit.refuse(self._used(), growth, transaction.rev - 1)

    def add_run(self, run: LaneRun, replaced: Replaced) -> None:
        """Log and remember the commits of a run, which the lane has already applied. Lock held.

        There is at least one commit, and `takes_writes` was true before the run.
        """
        try:
            lsn = self._log.extend(run.payloads, run.bytes)
            before, self.rev = self.rev, run.rev
            self.history.extend(run.payloads, run.rev, run.changes, run.bytes, self._log.safe_rev)
            remembered, self._remembered_in_run = self._remembered_in_run, []
            self._keep(Undo(lsn, before, replaced, remembered))
        except MemoryError:
            end_process("commit")
        if self._evictor is not None:
            self._evictor.pay(run.changes)

    def set_caches(self, caches: Sequence[CacheBound]) -> None:
        """Let these prefixes be caches, from now on. Else as `set_quotas`."""
        with self.lock:
            if any(cache.policy == "lru" for cache in caches):
                self.entries.keep_clocks()
            self._evictor = Evictor(self, caches) if caches else None
            self._cache_prefixes = {cache.prefix for cache in caches}
        self._count_bytes()

    def set_quotas(self, quotas: Iterable[Quota]) -> None:
        """Count what these quotas limit, from now on; return when all that is there is counted.

        Prefixes that have been counted stay so. For others it takes about 0.2 s for each million
        keys under them, in small steps, between which it does not hold the lock. Until it returns,
        quotas with such prefixes limit nothing. One thread at a time may call it.
        """
        self._quota_prefixes = {prefix for quota in quotas for prefix in quota.prefixes}
        self._count_bytes()

    def _count_bytes(self) -> None:
        entries = self.entries
        with self.lock:
            entries.count_bytes(self._quota_prefixes | self._cache_prefixes)
            more = entries.count_more(COUNTED_ENTRIES)
        while more:
            time.sleep(PAUSE_SECONDS)
            with self.lock:
                more = entries.count_more(COUNTED_ENTRIES)

    @property
    def last_lsn(self) -> int:
        """The log number of the newest commit. Lock held."""
        return self._log.last_lsn

    @property
    def takes_writes(self) -> bool:
        """True unless the log refuses writes, or all are refused. Lock held."""
        return self._sealed is None and self._log.takes_commits

    @property
    def takes_runs(self) -> bool:
        """True if the lane may write; else each write has to be looked at. Lock held."""
        return (
            self._log.takes_commits
            and self._sealed is None
            and (self._evictor is None or not self._evictor.behind)
        )

    @property
    def owed(self) -> int:
        """Number of entries that writers have still to evict: see `zkv.keyspace.eviction`."""
        return 0 if self._evictor is None else self._evictor.owed

    @property
    def evicted(self) -> int:
        """Number of entries that have been evicted."""
        return 0 if self._evictor is None else self._evictor.evicted

    def write_hooks(self) -> WriteHooks:
        """Return the functions that a lane must call for its writes."""
        return WriteHooks(
            forget_deadline=self._forget_deadline,
            notify_watchers=self._notify_watchers,
            watchers=self._watchers,
            may_run=self._may_run_once,
            remember=self._remember_in_run,
        )

    def _may_run_once(self, session: str, seq: int, digest: bytes, size: int, now: int) -> bool:
        """Return True if an exactly-once request whose reply has ``size`` bytes is new.

        Raises RequestError if it must not run: see `Sessions.recall` and `require_capacity`.
        """
        sessions = self.sessions
        if sessions.recall(session, seq, digest, now) is not None:
            return False
        sessions.require_capacity(session, seq, size)
        return True

    def _remember_in_run(
        self, session: str, seq: int, digest: bytes, reply: bytes, rev: int, lsn: int, now: int
    ) -> None:
        """Remember a reply during a run; its commit has the revision and the log number."""
        once = Once(session, seq, digest, reply)
        self._remembered_in_run.append(self.sessions.remember(once, rev, lsn, now))

    def expire(self, most: int) -> int | None:
        """Remove up to ``most`` expired entries, each with a revision of its own.

        Returns the ms until the next entry expires, 0 if one has; None if none ever will.
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
                self.expired += 1
            return max(0, self._deadlines[0][0] - self.now()) if self._deadlines else None

    def evict(self) -> bool:
        """Evict some of what has to go; return True if some is left, and can be evicted."""
        with self.lock:
            evictor = self._evictor
            return evictor is not None and evictor.make_room(MOST_EVICTED) and self.takes_writes

    def forget_safe(self) -> None:
        """Free what is kept only until commits are safe: their undo, and surplus history."""
        more = True
        while more:
            with self.lock:
                self._drop_undo()
                more = self.history.trim(self._safe_rev())

    def end(self) -> int:
        """Refuse all writes from now on, as the server is stopping; return the last revision."""
        with self.lock:
            self.is_ending = True
            self._sealed = _is_stopping
            return self.rev

    def seal(self, error: Callable[[], RequestError]) -> None:
        """Refuse all writes from now on.

        Args:
            error: makes the error for each.
        """
        with self.lock:
            if not self.is_ending:
                self._sealed = error

    def unseal(self) -> None:
        """Take writes again, unless the server is stopping."""
        with self.lock:
            if not self.is_ending:
                self._sealed = None
            self.alarm()

    def roll_back(self, lsn: int) -> None:
        """Undo every commit after ``lsn``; none of them is safe. Lock held."""
        while self._undo and self._undo[-1].lsn > lsn:
            undo = self._undo.pop()
            replaced = undo.replaced
            self._apply(replaced if isinstance(replaced, dict) else replaced.entries())
            for window in reversed(undo.remembered):
                self.sessions.undo(window)
            self.rev = undo.rev
            self.lineage = undo.lineage or self.lineage
        self.history.roll_back(self.rev)
        self.removed_rev = min(self.removed_rev, self.rev)
        for watcher in self._watchers:
            watcher.rolled_back(lsn)

    # --- Views

    def view(self) -> SnapshotView:
        """Return a view of the current revision, to be read in small steps during writes."""
        with self.lock:
            lsn = self._log.last_lsn
            view = SnapshotView(self, self.rev, lsn, len(self.entries), self.now())
            self._watchers.append(view)
            return view

    def release_view(self, view: SnapshotView) -> None:
        """Stop notifying ``view`` of writes. Lock held."""
        if view in self._watchers:
            self._watchers.remove(view)

    def statistics(self) -> Mapping[str, object]:
        """Return INFO's fields about sessions, history, expiry and memory."""
        with self.lock:
            self.sessions.forget_silent(self.now())
            caches = {} if self._evictor is None else {"caches": self._evictor.statistics()}
            self.history.trim(self._safe_rev())
            return {
                "sessions": self.sessions.statistics(),
                "history": self.history.statistics(),
                "expiring": len(self._deadlines),
                "memory": self._memory(),
                **caches,
            }

    def _memory(self) -> dict[str, int]:
        """Return INFO's ``stats.memory``. Lock held."""
        keys, values = self.entries.sizes()
        parts = {
            "keys": keys,
            "values": values,
            "index": self._index_memory(),
            "history": self.history.memory,
            "sessions": self.sessions.memory,
        }
        limit = 0 if self.limit is None else self.limit.most
        return {"used": sum(parts.values()), "limit": limit, **parts}

    def _used(self) -> int:
        """Return the sum of the parts that `_memory` tells."""
        keys, values = self.entries.sizes()
        return keys + values + self._index_memory() + self.history.memory + self.sessions.memory

    def _index_memory(self) -> int:
        return len(self.entries) * ENTRY_BYTES + len(self._deadlines) * DEADLINE_BYTES

    def no_such_key(self, key: str) -> NotFound:
        """Return the error for an absent key. Lock held."""
        return not_found(key, self.absent_rev(key))

    def absent_rev(self, key: str) -> int:
        """Return a revision that the absence of ``key`` depends on, or a later one. Lock held.

        That is its removal or, if it expired and is not removed yet, the write that set its expiry.
        """
        entry = self.entries.get(key)
        return self.removed_rev if entry is None else max(self.removed_rev, entry.rev)

    def _safe_rev(self) -> int:
        return min(self.rev, self._log.safe_rev)

    def _has_expired(self, entry: StoredEntry) -> bool:
        return entry.expires is not None and entry.expires <= self.now()

    def _walk(self, keys: Range, step: int, reverse: bool) -> Iterator[tuple[str, StoredEntry]]:
        """Iterate over the entries of a range; reads ``step`` of them at a time."""
        while items := self.entries.pairs(keys, step, reverse):
            yield from items
            keys = keys.beyond(items[-1][0], reverse)

    def _scan_live(self, keys: Range, limit: int, reverse: bool) -> Page:
        """Return a page of the live entries; skip a bounded number of expired ones."""
        items: list[tuple[str, StoredEntry]] = []
        for looked_at, (key, entry) in enumerate(self._walk(keys, limit + 1, reverse)):
            if self._has_expired(entry):
                if looked_at >= limit + PASSED_OVER:
                    return Page(items, key, self.rev)
            elif len(items) == limit:
                return Page(items, items[-1][0], self.rev)
            else:
                items.append((key, entry))
        return Page(items, None, self.rev)

    def _complete(self, tally: Tally) -> None:
        """Complete a tally in small steps. The lock must not be held."""
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
        """Return the number of expired entries that are still to be removed."""
        if not self._deadlines or self._deadlines[0][0] > self.now():
            return 0
        return self._deadlines.bisect_left((self.now() + 1, ""))

    def _keep(self, undo: Undo) -> None:
        """Keep undo information, and drop that of commits which are safe now."""
        self._undo.append(undo)
        self._drop_undo()

    def _drop_undo(self) -> None:
        undo, safe_lsn = self._undo, self._log.safe_lsn
        while undo and undo[0].lsn <= safe_lsn:
            undo.popleft()

    def _notify_watchers(self, key: str, old: StoredEntry | None) -> None:
        for watcher in self._watchers:
            watcher.keep(key, old)

    def _apply(self, staged: dict[str, StoredEntry | None]) -> dict[str, StoredEntry | None]:
        """Set these entries, None = remove; return the entries that they replace."""
        entries, watchers = self.entries, self._watchers
        replaced: dict[str, StoredEntry | None] = {}
        for key, entry in staged.items():
            replaced[key] = old = entries.get(key)
            for watcher in watchers:
                watcher.keep(key, old)
            if old is not None and old.expires is not None:
                self._forget_deadline(old.expires, key)
            if entry is not None:
                entries[key] = entry
                if entry.expires is not None:
                    self._set_deadline(entry.expires, key)
            elif old is not None:
                del entries[key]
        return replaced

    def _forget_deadline(self, expires: int, key: str) -> None:
        self._deadlines.remove((expires, key))

    def _set_deadline(self, expires: int, key: str) -> None:
        deadline = (expires, key)
        self._deadlines.add(deadline)
        if self._deadlines[0] == deadline:
            self.alarm()


def _is_stopping() -> ShuttingDown:
    return ShuttingDown("the server is stopping")
