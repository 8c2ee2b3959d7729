"""Recovery: reads the state from the files of a data directory, or refuses to.

Recovery loads the newest snapshot and applies every later commit of the log in order. A missing
revision is damage. `SegmentScan` judges the bytes after the last good frame of the newest segment:
recovery refuses damage, and reports a torn tail, which the caller cuts off.

If the log had failed when the snapshot was written, the snapshot's header says so. Then the
snapshot contains everything valid in the newest segment, and recovery does not read that segment.

A segment whose successor begins at or before the snapshot's revision + 1 adds nothing to the state.
Recovery reads it only for the history, and a fault in it only makes the history shorter. If a
segment has revisions that its successor has, too, those in the successor count: the others were
never acknowledged, or are in the snapshot after which the successor was begun.
"""

from __future__ import annotations

import itertools
import logging
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from zkv.durability import segment, snapshot
from zkv.durability.segment import SegmentEnd, SegmentScan
from zkv.errors import DamageError, DataDirError
from zkv.keyspace.change import REMOVALS
from zkv.keyspace.entry import StoredEntry
from zkv.keyspace.history import History
from zkv.keyspace.sessions import Sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zkv.durability.files import Files
    from zkv.keyspace import Commit
    from zkv.keyspace.table import Table

_log = logging.getLogger("zkv.durability")

PROGRESS_SECONDS: Final = 5.0


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
    snapshot_rev: int
    replayed: int
    time: int
    """The latest time in the snapshot or a commit, Unix time in ms."""
    torn: TornTail | None
    end: SegmentEnd | None
    """Where the log can be continued; None = it must begin a new segment."""


def snapshots(files: Files, directory: Path) -> list[int]:
    """The revisions of the snapshots in ``directory``, oldest first. Raises OSError."""
    names = files.names(directory)
    return [rev for name in names if (rev := snapshot.revision_of(name)) is not None]


def segments(files: Files, directory: Path) -> list[int]:
    """The first revisions of the segments in ``directory``, oldest first. Raises OSError."""
    names = files.names(directory)
    return [rev for name in names if (rev := segment.first_revision(name)) is not None]


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
        replay.entries, replay.rev, loaded.rev, replay.replayed, replay.time, torn, replay.end
    )


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
        self._log = LogReader(files, directory, loaded.rev, loaded.logged)
        self.sessions = Sessions() if sessions is None else sessions
        self._history = History(0, 0) if history is None else history
        self._wants_older = history is not None
        for state in loaded.sessions:
            self.sessions.restore(state)
        self._loaded = loaded
        self.entries = loaded.entries
        self.rev = loaded.rev
        self.time = loaded.created
        self.replayed = 0

    @property
    def end(self) -> SegmentEnd | None:
        """After the replay: where the log can be continued, if it can."""
        return self._log.end

    def run(self, until: int | None = None) -> TornTail | None:
        """Replay everything, or up to a revision; returns the torn tail if there is one.

        Raises DamageError, OSError.
        """
        if until != self.rev:
            for commit in self._log.commits(self._wants_older):
                self.apply(commit)
                if commit.rev == until:
                    break
        if self._history.newest != self.rev:
            self._history.restart(self.rev)
        return self._log.torn

    def apply(self, commit: Commit) -> None:
        """Apply a commit. One that the snapshot covers is only added to the history."""
        self.time = max(self.time, commit.time)
        if commit.once is not None and self._is_behind_the_snapshot(commit):
            self.sessions.remember(commit.once, commit.rev, 0, commit.time)
        if commit.changes:
            self._add_history(commit)
        if commit.rev <= self.rev:
            return
        for change in commit.changes:
            if change.op in REMOVALS:
                self.entries.pop(change.key, None)
            else:
                self.entries[change.key] = StoredEntry(
                    bytes(change.value), commit.rev, change.expires
                )
        self.rev = commit.rev
        self.replayed += 1

    def _is_behind_the_snapshot(self, commit: Commit) -> bool:
        """True if the commit came after the snapshot, so the snapshot lacks its remembered reply.

        A reply that the snapshot covers must not be added: the session may have forgotten it since.
        A commit that changed nothing has the revision of the commit before it, so its time decides.
        """
        loaded = self._loaded
        if commit.changes or commit.rev != loaded.rev:
            return commit.rev > loaded.rev
        return commit.time >= loaded.created

    def _add_history(self, commit: Commit) -> None:
        if commit.rev != self._history.newest + 1:
            self._history.restart(commit.rev - 1)
        self._history.add(commit.payload, commit.rev)


class LogReader:
    """Reads the log after a revision: every commit once, in order, without gaps.

    Args:
        files: the file operations.
        directory: where the segments are.
        rev: the revision after which to begin: that of the snapshot.
        logged: True if the log was on disk up to ``rev`` when the snapshot was written.
    """

    def __init__(self, files: Files, directory: Path, rev: int, logged: bool = True) -> None:
        self._files = files
        self._directory = directory
        self._snapshot_rev = rev
        self._logged = logged
        self.rev = rev
        """The newest revision read so far."""
        self.torn: TornTail | None = None
        """After everything is read: the torn tail, if there is one."""
        self.end: SegmentEnd | None = None
        """After everything is read: the end of the newest segment, if it can be continued."""

    def commits(self, older: bool = False) -> Iterator[Commit]:
        """Every commit up to the end; if ``older``, also the earlier ones that are still there.

        Raises DamageError, OSError.
        """
        firsts = segments(self._files, self._directory)
        for first, follower in itertools.zip_longest(firsts, firsts[1:]):
            successor = follower
            if successor is None and first <= self._snapshot_rev and not self._logged:
                # The log failed in this segment. Its successor was to begin after the snapshot.
                successor = self._snapshot_rev + 1
            if successor is None or successor > self._snapshot_rev + 1:
                yield from self._read_segment(first, successor, older)
            elif older:
                yield from self._read_covered(first, successor)

    def _read_covered(self, first: int, successor: int) -> Iterator[Commit]:
        """The commits of a segment that the state does not need. A fault only ends the reading."""
        scan = SegmentScan(self._files, self._directory / segment.file_name(first))
        for commit in scan.commits():
            if commit.rev < successor:
                yield commit
        if scan.fault is not None:
            _log.warning("%s; ignored, since a snapshot covers it", scan.damage())

    def _read_segment(self, first: int, successor: int | None, older: bool) -> Iterator[Commit]:
        path = self._directory / segment.file_name(first)
        if first > self.rev + 1:
            raise self._gap(path, first)
        scan = SegmentScan(self._files, path)
        progress = RecoveryProgress(f"reading {path}")
        for commit in scan.commits():
            if successor is not None and commit.rev >= successor:
                return
            if commit.rev > self.rev or older or not commit.changes:
                self.rev = max(self.rev, commit.rev)
                yield commit
                progress.report(scan.end, scan.size)
        if successor is None:
            self.torn = self._judge_end(scan)
            self.end = SegmentEnd(first, scan.end, scan.synced, scan.salt)
        elif self.rev < successor - 1:
            raise self._incomplete(scan, successor)

    def _judge_end(self, scan: SegmentScan) -> TornTail | None:
        """The torn tail of the newest segment, if it has one. Raises DamageError for damage."""
        # The header is on disk before the segment gets its name, and the log up to a snapshot's
        # revision is on disk before the snapshot gets its name. If either is unreadable now, it is
        # damaged, not torn.
        if scan.next_rev <= self._snapshot_rev:
            raise self._incomplete(scan, self._snapshot_rev + 1)
        if scan.fault is None:
            return None
        if scan.damaged or scan.end == 0:
            raise DamageError(f"{scan.damage()}; see `zkv check` and `zkv repair`")
        return TornTail(scan.path, scan.end, scan.size, scan.fault)

    def _gap(self, path: Path, first: int) -> DamageError:
        return DamageError(
            f"{path}: revisions {self.rev + 1} to {first - 1} are missing before this segment; "
            f"see `zkv check` and `zkv repair`"
        )

    def _incomplete(self, scan: SegmentScan, successor: int) -> DamageError:
        fault = scan.fault or "the segment ends too early"
        return DamageError(
            f"{scan.path}: damaged at offset {scan.end}: {fault}; revisions from "
            f"{scan.next_rev} to {max(successor - 1, scan.vouched_rev)} are affected; "
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
