"""Recovery: reads the state from the files of a data directory, or refuses to.

Recovery loads the newest snapshot and applies every later commit of the log in order. A missing
revision is damage. `SegmentScan` judges the bytes after the last good frame of the newest segment:
recovery refuses damage, and reports a torn tail, which the caller cuts off.

If the log had failed when the snapshot was written, the snapshot's header says so. Then the
snapshot contains everything valid in the newest segment, and recovery does not read that segment.

Log numbers decide what the snapshot covers, and nothing else: a commit that changes nothing has no
revision of its own, and clocks may be set back. A segment whose successor begins at or before the
snapshot's log number + 1 is covered. Recovery reads it only for the history, and a fault in it only
makes the history shorter. It does not read it at all if the history cannot keep anything of it
(`LogReader.oldest`). If a segment has log numbers that its successor has, too, those in the
successor count: the others were never acknowledged, or are in the snapshot after which the
successor was begun.

Files of format 1 have no log numbers: there a commit's number is its revision
(`zkv.keyspace.change`), and a snapshot's, too. Whether a snapshot of that format covers a commit
that changes nothing, and has the snapshot's revision, is decided by their times, as the version
that wrote them did.

In C, whole runs of usual commits are applied without an object for each (`Replay._take`,
zkv/compiled/replay.c). C stops before anything else, such as a fault, and Python handles it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from zkv import compiled
from zkv.durability import formats, segment, snapshot
from zkv.durability.segment import SegmentEnd, SegmentScan, Successor, Taken
from zkv.errors import DamageError, DataDirError
from zkv.keyspace.change import entry_after, revision_in
from zkv.keyspace.history import History
from zkv.keyspace.sessions import Sessions
from zkv.keyspace.table import is_compiled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zkv.durability.files import Files
    from zkv.keyspace import Commit
    from zkv.keyspace.lineage import Lineage, TermStart
    from zkv.keyspace.table import Table

_log = logging.getLogger("zkv.durability")

PROGRESS_SECONDS: Final = 5.0
_NO_LIMIT: Final = 2**63 - 1

TakeBelow = Callable[[bytes, int, int, int, int, int], Taken]
"""A `segment.Take` that also gets a limit: it must stop before a commit of this revision."""


class TornTail(NamedTuple):
    """The bytes after the last good frame of the newest segment, which were never acknowledged."""

    path: Path
    offset: int
    size: int
    reason: str


class Recovered(NamedTuple):
    """The state that a data directory holds."""

    entries: Table
    rev: int
    lsn: int
    """The log number of the newest commit."""
    snapshot_rev: int
    replayed: int
    time: int
    """The latest time in the snapshot or a commit, Unix time in ms."""
    torn: TornTail | None
    end: SegmentEnd | None
    """Where the log can be continued; None = it must begin a new segment."""
    lineage: Lineage
    """Which store it is, and its terms."""


def snapshots(files: Files, directory: Path) -> list[int]:
    """The revisions of the snapshots in ``directory``, oldest first. Raises OSError."""
    names = files.names(directory)
    return [rev for name in names if (rev := snapshot.revision_of(name)) is not None]


def segments(files: Files, directory: Path) -> list[int]:
    """The first revisions of the segments in ``directory``, oldest first. Raises OSError."""
    names = files.names(directory)
    return [rev for name in names if (rev := segment.first_revision(name)) is not None]


def versions(files: Files, snapshot_directory: Path, wal_directory: Path) -> set[int]:
    """The formats of the snapshots and segments in these directories, but for damaged ones.

    Raises FormatError if a newer zkv has written one, OSError.
    """
    found = set()
    for rev in snapshots(files, snapshot_directory):
        with contextlib.suppress(DamageError, OSError):
            path = snapshot_directory / snapshot.file_name(rev)
            found.add(snapshot.read_head(files, path).version)
    for first in segments(files, wal_directory):
        with contextlib.suppress(OSError):
            header = segment.read_header(files, wal_directory / segment.file_name(first))
            found |= set() if header is None else {header.version}
    return found


def recover(
    files: Files,
    snapshot_directory: Path,
    wal_directory: Path,
    sessions: Sessions | None = None,
    history: History | None = None,
) -> Recovered:
    """Read the state in these directories. Nothing is written.

    Args:
        files: the file operations.
        snapshot_directory: where snapshots are.
        wal_directory: where segments are.
        sessions: empty; is filled with the replies to exactly-once requests. None = discard them.
        history: empty; is filled with the newest commits. None = discard them.

    Raises:
        DamageError: acknowledged data cannot be read. Recovery never skips any of it.
        DataDirError: a file cannot be read.
    """
    try:
        loaded = _load_newest(files, snapshot_directory)
        replay = Replay(files, wal_directory, loaded, sessions, history)
        torn = replay.run()
    except OSError as error:
        place = error.filename or snapshot_directory.parent
        raise DataDirError(f"{place}: {error.strerror or error}") from error
    return Recovered(
        replay.entries, replay.rev, replay.lsn, loaded.rev, replay.replayed, replay.time, torn,
        replay.end, replay.lineage,
    )  # fmt: skip


def _load_newest(files: Files, directory: Path) -> snapshot.Loaded:
    revisions = snapshots(files, directory)
    if not revisions:
        return snapshot.Loaded()
    path = directory / snapshot.file_name(revisions[-1])
    progress = RecoveryProgress(f"loading {path}")
    try:
        return snapshot.read(files, path, progress.report)
    except DamageError as error:
        raise DamageError(f"{error}; see `zkv check` and `zkv repair`") from None


class _Replayed(NamedTuple):
    """The result of applying some frames in C."""

    end: int
    """The offset in the bytes up to which it has taken the frames."""
    next_rev: int
    next_lsn: int
    synced: int
    """The largest ``synced`` of these frames."""
    time: int
    """The latest time in the commits; 0 if there are none."""
    applied: int
    """The number of commits that are not in the snapshot."""
    payloads: list[bytes]
    """The commits for the history, packed."""
    changes: int
    """The number of changes in ``payloads``."""
    size: int
    """The bytes of their payloads."""
    once: list[tuple[str, int, bytes, bytes, int, int]]
    """For each exactly-once request that is not in the snapshot: session, sequence number, digest,
    reply, revision and time."""


class Replay:
    """Applies the log to the contents of a snapshot.

    Args:
        files: the file operations.
        directory: where the segments are.
        loaded: the contents of the snapshot; its entries are changed in place.
        sessions: is filled with the replies to exactly-once requests; None = a new one without
            limits.
        history: is filled with the newest commits; None = discard them.
    """

    def __init__(
        self,
        files: Files,
        directory: Path,
        loaded: snapshot.Loaded,
        sessions: Sessions | None = None,
        history: History | None = None,
    ) -> None:
        self._log = LogReader(files, directory, loaded)
        self.sessions = Sessions() if sessions is None else sessions
        self._history = History(0, 0) if history is None else history
        for state in loaded.sessions:
            self.sessions.restore(state)
        self._loaded = loaded
        self.entries = loaded.entries
        self.rev = loaded.rev
        self.time = loaded.created
        self.lineage = loaded.lineage
        self.replayed = 0

    @property
    def lsn(self) -> int:
        """The log number of the newest commit read so far."""
        return self._log.lsn

    @property
    def end(self) -> SegmentEnd | None:
        """After the replay: where the log can be continued, if it can."""
        return self._log.end

    def run(self, until: int | None = None) -> TornTail | None:
        """Replay everything, or up to a revision; returns the torn tail if there is one.

        Raises DamageError, OSError.
        """
        if until != self.rev:
            take = self._take if is_compiled(self.entries) else None
            for commit in self._log.commits(self._history.most_changes, take, until):
                self.apply(commit)
                if commit.rev == until:
                    break
        if self._history.newest != self.rev:
            self._history.restart(self.rev)
        return self._log.torn

    def run_before(self, is_beyond: Callable[[Commit], bool], most: int) -> int:
        """Replay everything before a commit; returns the log number that was reached.

        Args:
            is_beyond: tells if a commit is to be left, and all after it.
            most: no commit before this revision is to be left, so C may take it.

        Raises DamageError, OSError. Then all commits before the damage have been applied.
        """
        take = self._take if is_compiled(self.entries) else None
        for commit in self._log.commits(0, take, most):
            if is_beyond(commit):
                return commit.lsn - 1
            self.apply(commit)
        return self.lsn

    def apply(self, commit: Commit) -> None:
        """Apply a commit. One that the snapshot covers is only added to the history."""
        self.time = max(self.time, commit.time)
        if commit.changes and commit.rev >= self._log.oldest:
            self._add_history([commit.payload], len(commit.changes), len(commit.payload))
        if self._loaded.covers(commit):
            return
        if commit.once is not None:
            self.sessions.remember(commit.once, commit.rev, 0, commit.time)
        if commit.begins is not None:
            self.lineage = self._begin(commit.begins, commit)
        if not commit.changes:
            return
        for change in commit.changes:
            entry = entry_after(change, commit.rev)
            if entry is None:
                self.entries.pop(change.key, None)
            else:
                self.entries[change.key] = entry
        self.rev = max(self.rev, commit.rev)
        self.replayed += 1

    def _begin(self, start: TermStart, commit: Commit) -> Lineage:
        self.rev = commit.rev
        self.replayed += 1
        try:
            return self.lineage.begin(start, commit.lsn)
        except ValueError as error:
            raise DamageError(f"{self._log.directory}: log number {commit.lsn}: {error}") from None

    def _take(
        self, frames: bytes, at: int, salt: int, next_rev: int, next_lsn: int, limit: int
    ) -> Taken:
        """Apply frames in C as far as they are usual; does what `apply` does with each commit."""
        done = _Replayed(
            *compiled.store.replay(
                self.entries,  # type: ignore[arg-type]
                frames, at, salt, next_rev, next_lsn, limit, self._loaded.lsn, self._log.oldest,
            )
        )  # fmt: skip
        self.time = max(self.time, done.time)
        self.sessions.replay(done.once)
        if done.payloads:
            self._add_history(done.payloads, done.changes, done.size)
        if done.applied:
            self.replayed += done.applied
            self.rev = max(self.rev, done.next_rev - 1)
        return Taken(done.end, done.next_rev, done.next_lsn, done.synced)

    def _add_history(self, payloads: list[bytes], changes: int, size: int) -> None:
        first, last = revision_in(payloads[0]), revision_in(payloads[-1])
        if first != self._history.newest + 1:
            self._history.restart(first - 1)
        self._history.extend(payloads, last, changes, size, last)


class LogReader:
    """Reads the log after a snapshot: every commit once, in order, without gaps.

    Args:
        files: the file operations.
        directory: where the segments are.
        start: the snapshot after which to begin.
    """

    def __init__(self, files: Files, directory: Path, start: snapshot.Loaded) -> None:
        self._files = files
        self.directory = directory
        self._start = start
        self.rev = start.rev
        """The newest revision read so far."""
        self.lsn = start.lsn
        """The newest log number read so far."""
        self.oldest = 0
        """The history keeps no commit before this revision."""
        self.torn: TornTail | None = None
        """After everything is read: the torn tail, if there is one."""
        self.end: SegmentEnd | None = None
        """After everything is read: the end of the newest segment, if it can be continued."""
        self._take: TakeBelow | None = None
        self._until: int | None = None

    def commits(
        self, kept: int = 0, take: TakeBelow | None = None, until: int | None = None
    ) -> Iterator[Commit]:
        """Every commit up to the end, except for those that ``take`` takes.

        Args:
            kept: the most changes that the history keeps. The earlier commits that it may keep are
                read as well, as far as they are still there.
            take: applies usual commits in C; None = all are returned.
            until: a revision that ``take`` must leave; None = none.

        Raises DamageError, OSError.
        """
        self._take, self._until = take, until
        firsts = segments(self._files, self.directory)
        # Each revision has a change at least, and the log leads to `newest` at least, since it is
        # in the snapshot or before a segment. So commits before `oldest` have `kept` changes or
        # more behind them, and the history drops them. It always keeps the newest commit.
        newest = max([self._start.rev, *[first - 1 for first in firsts]])
        self.oldest = newest - max(kept, 1) + 1
        for first, follower in itertools.zip_longest(firsts, firsts[1:]):
            successor = self._successor(first, follower)
            if successor is None or successor.needs_those_before(self._start):
                yield from self._read_segment(first, successor)
            elif successor.rev > self.oldest or self._may_have_replies(successor):
                yield from self._read_covered(first, successor)

    def _successor(self, first: int, follower: int | None) -> Successor | None:
        """The place where a segment's follower takes precedence; None if nothing does.

        Raises FormatError, OSError.
        """
        start = self._start
        if follower is None:
            if first > start.rev or start.logged:
                return None
            # The log failed in this segment. Its follower was to begin after the snapshot.
            return Successor(start.rev + 1, start.lsn + 1)
        if follower <= start.rev:
            return Successor(follower, 0)  # The snapshot covers all before it: it is not read.
        return segment.successor(self._files, self.directory / segment.file_name(follower))

    def _may_have_replies(self, successor: Successor) -> bool:
        """True if a segment may have refusals that the snapshot does not cover, by their times."""
        start = self._start
        return start.version == formats.FIRST and successor.rev == start.rev + 1

    def _read_covered(self, first: int, successor: Successor) -> Iterator[Commit]:
        """The commits of a segment that the entries do not need. A fault only ends the reading."""
        scan = SegmentScan(self._files, self.directory / segment.file_name(first))
        progress = RecoveryProgress(f"reading {scan.path}")
        for commit in scan.commits(self._take_of(scan, successor, progress)):
            if commit.rev < successor.rev and (commit.changes or not self._start.numbered):
                yield commit
                progress.report(scan.end, scan.size)
        if scan.fault is not None:
            _log.warning("%s; ignored, since a snapshot covers it", scan.damage())

    def _read_segment(self, first: int, successor: Successor | None) -> Iterator[Commit]:
        path = self.directory / segment.file_name(first)
        if first > self.rev + 1:
            raise self._gap(path, f"revisions {self.rev + 1} to {first - 1}")
        scan = SegmentScan(self._files, path)
        progress = RecoveryProgress(f"reading {path}")
        before = self.lsn
        for commit in scan.commits(self._take_of(scan, successor, progress)):
            self._pass(scan.next_rev - 1, scan.next_lsn - 1)
            if successor is not None and successor.replaces(commit):
                break
            self._pass(commit.rev, commit.lsn)
            yield commit
            progress.report(scan.end, scan.size)
        else:
            self._pass(scan.next_rev - 1, scan.next_lsn - 1)
            self._end_segment(scan, first, successor)
        if scan.header is not None and scan.header.first_lsn > before + 1:
            raise self._gap(path, f"log numbers {before + 1} to {scan.header.first_lsn - 1}")

    def _pass(self, rev: int, lsn: int) -> None:
        self.rev, self.lsn = max(self.rev, rev), max(self.lsn, lsn)

    def _end_segment(self, scan: SegmentScan, first: int, successor: Successor | None) -> None:
        """Judge a segment that has been read. Raises DamageError."""
        if successor is not None:
            if not successor.follows(scan):
                raise self._incomplete(scan, successor.rev)
            return
        self.torn = self._judge_end(scan)
        version = formats.CURRENT if scan.header is None else scan.header.version
        self.end = SegmentEnd(first, scan.end, scan.synced, scan.salt, version)

    def _take_of(
        self, scan: SegmentScan, successor: Successor | None, progress: RecoveryProgress
    ) -> segment.Take | None:
        """The function that takes commits of a segment, up to its successor, in C."""
        take = self._take
        if take is None:
            return None
        first = None if successor is None else successor.rev
        limit = min(rev for rev in (first, self._until, _NO_LIMIT) if rev is not None)

        def taking(frames: bytes, at: int, salt: int, next_rev: int, next_lsn: int) -> Taken:
            progress.report(scan.end, scan.size)
            return take(frames, at, salt, next_rev, next_lsn, limit)

        return taking

    def _judge_end(self, scan: SegmentScan) -> TornTail | None:
        """The torn tail of the newest segment, if it has one. Raises DamageError for damage."""
        # The header is on disk before the segment gets its name, and the log up to a snapshot's
        # log number is on disk before the snapshot gets its name. If either is unreadable now, it
        # is damaged, not torn.
        if scan.next_lsn <= self._start.lsn:
            raise self._incomplete(scan, self._start.rev + 1)
        if scan.fault is None:
            return None
        if scan.damaged or scan.end == 0:
            raise DamageError(f"{scan.damage()}; see `zkv check` and `zkv repair`")
        return TornTail(scan.path, scan.end, scan.size, scan.fault)

    def _gap(self, path: Path, missing: str) -> DamageError:
        return DamageError(
            f"{path}: {missing} are missing before this segment; see `zkv check` and `zkv repair`"
        )

    def _incomplete(self, scan: SegmentScan, successor: int) -> DamageError:
        fault = scan.fault or "the segment ends too early"
        last = max(successor - 1, scan.vouched_rev)
        # Otherwise it is what is remembered of requests that changed nothing.
        hit = (
            f"revisions from {scan.next_rev} to {last} are affected; "
            if last >= scan.next_rev
            else ""
        )
        return DamageError(
            f"{scan.path}: damaged at offset {scan.end}: {fault}; {hit}"
            f"see `zkv check` and `zkv repair`"
        )


class RecoveryProgress:
    """Logs the progress of a long operation every `PROGRESS_SECONDS`.

    Args:
        what: the operation, for the log.
        now: a clock in seconds.
    """

    def __init__(self, what: str, now: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._now = now
        self._next = now() + PROGRESS_SECONDS

    def report(self, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` bytes are done."""
        if self._now() >= self._next:
            self._next = self._now() + PROGRESS_SECONDS
            _log.info("%s: %d %%", self._what, 100 * done // max(total, 1))
