"""Recovery: from the files of a data directory to the state they hold, or to a refusal.

The newest snapshot is loaded, and every commit of the log behind its revision is applied in order.
Every revision in between must be there: a gap is damage. What the newest segment holds behind its
last good frame is judged by `Scan`: damage refuses, a torn tail is reported, and cut by the caller.

A segment whose successor begins at or before the snapshot's revision + 1 has nothing to add, and is
not read. Where a segment reaches beyond its successor's beginning, the successor counts: the rest
was never acknowledged, or is in the snapshot behind which the successor was begun.
"""

from __future__ import annotations

import itertools
import logging
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from zkv.durability import segment, snapshot
from zkv.durability.segment import Scan
from zkv.errors import DamageError, DataDirError
from zkv.keyspace.entry import Entry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zkv.durability.files import Files
    from zkv.durability.segment import Commit

_log = logging.getLogger("zkv.durability")

PROGRESS_SECONDS: Final = 5.0


class TornTail(NamedTuple):
    """What stands behind the last good frame of the newest segment, and was never acknowledged."""

    path: Path
    offset: int
    size: int
    reason: str


class Recovered(NamedTuple):
    """The state that a data directory holds."""

    entries: dict[str, Entry]
    rev: int
    snapshot_rev: int
    replayed: int
    torn: TornTail | None


def snapshots(files: Files, directory: Path) -> list[int]:
    """The revisions of the snapshots in ``directory``, oldest first. Raises OSError."""
    names = files.names(directory)
    return [rev for name in names if (rev := snapshot.revision_of(name)) is not None]


def segments(files: Files, directory: Path) -> list[int]:
    """The first revisions of the segments in ``directory``, oldest first. Raises OSError."""
    names = files.names(directory)
    return [rev for name in names if (rev := segment.first_revision(name)) is not None]


def recover(files: Files, snapshot_directory: Path, wal_directory: Path) -> Recovered:
    """The state in these directories. Nothing is written.

    Raises:
        DamageError: something that had been acknowledged cannot be read; nothing is passed over.
        DataDirError: a file cannot be read.
    """
    try:
        loaded = _load_newest(files, snapshot_directory)
        replay = Replay(files, wal_directory, loaded)
        torn = replay.run()
    except OSError as error:
        place = error.filename or snapshot_directory.parent
        raise DataDirError(f"{place}: {error.strerror or error}") from error
    return Recovered(replay.entries, replay.rev, loaded.rev, replay.replayed, torn)


def _load_newest(files: Files, directory: Path) -> snapshot.Loaded:
    revisions = snapshots(files, directory)
    if not revisions:
        return snapshot.Loaded(0, {})
    path = directory / snapshot.file_name(revisions[-1])
    progress = Progress(f"loading {path}")
    try:
        return snapshot.read(files, path, progress.report)
    except DamageError as error:
        raise DamageError(f"{error}; see `zkv check` and `zkv repair`") from None


class Replay:
    """Applies the log to what a snapshot held.

    Args:
        files: the door to the file system.
        directory: where the segments are.
        loaded: what to begin with; its entries are changed in place.
    """

    def __init__(self, files: Files, directory: Path, loaded: snapshot.Loaded) -> None:
        self._files = files
        self._directory = directory
        self._snapshot_rev = loaded.rev
        self.entries = loaded.entries
        self.rev = loaded.rev
        self.replayed = 0

    def run(self) -> TornTail | None:
        """Replay everything; returns the torn tail, if there is one.

        Raises DamageError, OSError.
        """
        firsts = segments(self._files, self._directory)
        torn = None
        for first, successor in itertools.zip_longest(firsts, firsts[1:]):
            if successor is None or successor > self._snapshot_rev + 1:
                torn = self._replay_segment(first, successor)
        return torn

    def _replay_segment(self, first: int, successor: int | None) -> TornTail | None:
        path = self._directory / segment.file_name(first)
        if first > self.rev + 1:
            raise self._gap(path, first)
        scan = Scan(self._files, path)
        progress = Progress(f"replaying {path}")
        for commit in scan.commits():
            if successor is not None and commit.rev >= successor:
                return None
            if commit.rev > self.rev:
                self._apply(commit)
                progress.report(scan.end, scan.size)
        if successor is not None and self.rev < successor - 1:
            raise self._incomplete(scan, successor)
        return None if successor is not None else self._judge_end(scan)

    def _apply(self, commit: Commit) -> None:
        for _, key, value in commit.changes:
            if value is None:
                self.entries.pop(key, None)
            else:
                self.entries[key] = Entry(value, commit.rev)
        self.rev = commit.rev
        self.replayed += 1

    def _judge_end(self, scan: Scan) -> TornTail | None:
        """Whether the newest segment's end is clean, torn or damaged."""
        if scan.fault is None:
            return None
        # A header is on disk before the segment has its name, and a snapshot is only written once
        # the log up to its revision is on disk: both vouch.
        if scan.damaged or scan.end == 0 or scan.next_rev <= self._snapshot_rev:
            raise DamageError(f"{scan.damage()}; see `zkv check` and `zkv repair`")
        return TornTail(scan.path, scan.end, scan.size, scan.fault)

    def _gap(self, path: Path, first: int) -> DamageError:
        return DamageError(
            f"{path}: revisions {self.rev + 1} to {first - 1} are missing before this segment; "
            f"see `zkv check` and `zkv repair`"
        )

    def _incomplete(self, scan: Scan, successor: int) -> DamageError:
        fault = scan.fault or "the segment ends too early"
        return DamageError(
            f"{scan.path}: damaged at offset {scan.end}: {fault}; revisions from "
            f"{scan.next_rev} to {max(successor - 1, scan.vouched_rev)} are affected; "
            f"see `zkv check` and `zkv repair`"
        )


class Progress:
    """Says in the log how far a long reading is, every few seconds.

    Args:
        what: what is being done.
        now: a clock in seconds.
    """

    def __init__(self, what: str, now: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._now = now
        self._next = now() + PROGRESS_SECONDS

    def report(self, done: int, total: int) -> None:
        """``done`` of ``total`` bytes have been read."""
        if self._now() >= self._next:
            self._next = self._now() + PROGRESS_SECONDS
            _log.info("%s: %d %%", self._what, 100 * done // max(total, 1))
