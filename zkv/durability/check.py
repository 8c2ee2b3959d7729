"""Reads every file of a data directory, and reports all that it finds; changes nothing.

`recovery` stops at the first fault that keeps the server from starting, and skips files that it
does not need. A survey reads everything, including the older snapshot and its segments, and
continues after a fault. Both use the same rule to distinguish damage from a torn tail
(`SegmentScan`).

Memory: one frame at a time, and the keys that have changed since the newest snapshot.
"""

from __future__ import annotations

import enum
import itertools
from typing import TYPE_CHECKING, NamedTuple

from zkv.durability import recovery, segment, snapshot
from zkv.durability.segment import HEADER_BYTES, Run, SegmentScan
from zkv.errors import DamageError
from zkv.keyspace.change import REMOVALS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zkv.durability.frozen_view import FrozenView
    from zkv.keyspace import Commit


class Level(enum.Enum):
    """The severity of a finding."""

    OK = "ok"
    NOTE = "note"
    """Not a fault, but worth knowing."""
    FAULT = "fault"


class Finding(NamedTuple):
    """A remark about one file."""

    level: Level
    path: Path
    text: str


class SnapshotState(NamedTuple):
    """The result of reading a snapshot."""

    path: Path
    rev: int
    entries: int
    fault: str | None


class SegmentState(NamedTuple):
    """The result of reading a segment."""

    path: Path
    first_rev: int
    successor: int | None
    """The first revision of the next segment, which takes precedence from there on."""
    size: int
    runs: tuple[Run, ...]
    """The readable commits: those up to a fault, then those after it. Commits in a torn tail were
    never acknowledged, and are not included."""
    last_rev: int
    """The last revision up to which the segment is intact."""
    fault: str | None
    torn: bool
    unread: int
    """The largest number of commits that may have been after the last readable one."""

    @property
    def last_read(self) -> int:
        """The revision of the last readable commit."""
        return max(run.last_rev for run in self.runs)


class Survey(NamedTuple):
    """The result of checking a data directory."""

    snapshots: list[SnapshotState]
    segments: list[SegmentState]
    rev: int
    """The newest revision that any file in the directory mentions."""
    entries: int | None
    """The number of entries at `rev`; None if it is unknown."""
    serves: bool
    """True if a server starts with these files."""
    faults: list[Finding]

    def reach(self, base: int) -> int | None:
        """The revision that recovery reaches from ``base``; None if the log has a gap or fault."""
        reached = base
        for each in self.segments:
            if each.successor is None or each.successor > base + 1:
                if each.first_rev > reached + 1 or each.fault is not None:
                    return None
                reached = max(reached, each.last_rev)
        return reached


def survey(view: FrozenView, report: Callable[[Finding], None] = lambda finding: None) -> Survey:
    """Check every file in ``view``; calls ``report`` with each finding as soon as it is made."""
    return _Surveyor(view, report).run()


class _Surveyor:
    def __init__(self, view: FrozenView, report: Callable[[Finding], None]) -> None:
        self._view = view
        self._layout = view.layout
        self._report = report
        self._newest = view.snapshots[-1] if view.snapshots else 0
        self._failed_log = self._newest > 0 and not self._logged(self._newest)
        """True if the log had failed when the newest snapshot was written."""
        self._changed: dict[str, bool] = {}
        """Keys changed after the newest snapshot; True if they exist now."""
        self._entries = 0
        self._faults: list[Finding] = []

    def run(self) -> Survey:
        firsts = self._view.segments
        segments = [
            self._segment(first, successor)
            for first, successor in itertools.zip_longest(firsts, firsts[1:])
        ]
        snapshots = [self._snapshot(rev) for rev in self._view.snapshots]
        self._join(snapshots, segments)
        self._leftovers()
        whole = not snapshots or snapshots[-1].fault is None
        found = Survey(snapshots, segments, 0, None, False, self._faults)
        serves = whole and found.reach(self._newest) is not None
        return found._replace(
            rev=_newest_rev(snapshots, segments),
            serves=serves,
            entries=self._entries + sum(self._changed.values()) if serves else None,
        )

    def _say(self, level: Level, path: Path, text: str) -> None:
        finding = Finding(level, path, text)
        if level is Level.FAULT:
            self._faults.append(finding)
        self._report(finding)

    # Segments. ------------------------------------------------------------------------------

    def _segment(self, first: int, successor: int | None) -> SegmentState:
        path = self._layout.segment(first)
        scan = SegmentScan(self._view, path)
        progress = recovery.RecoveryProgress(f"reading {path}")
        try:
            for commit in scan.commits():
                if successor is None or commit.rev < successor:
                    self._note_changes(commit)
                progress.report(scan.end, scan.size)
            fault, torn = self._judge(scan, successor)
        except OSError as error:
            fault, torn = f"cannot be read: {error.strerror or error}", False
        last = scan.next_rev - 1 if successor is None else min(scan.next_rev, successor) - 1
        end = max(scan.end, HEADER_BYTES)
        runs = [Run(first, scan.next_rev - 1, HEADER_BYTES, end, scan.salt)]
        if fault is not None:
            runs += scan.behind
        unread = 0
        if fault is not None and successor is None:
            unread = segment.most_frames(self._view, path, runs[-1].end)
        state = SegmentState(
            path, first, successor, scan.size, tuple(runs), last, fault, torn, unread
        )
        self._say_segment(state, scan)
        return state

    def _note_changes(self, commit: Commit) -> None:
        if commit.rev > self._newest:
            for change in commit.changes:
                self._changed[change.key] = change.op not in REMOVALS

    def _judge(self, scan: SegmentScan, successor: int | None) -> tuple[str | None, bool]:
        """The fault of a segment, as recovery would see it; and True if its tail is torn."""
        fault = scan.fault and f"damaged at offset {scan.end}: {scan.fault}"
        if successor is not None:
            if scan.next_rev >= successor:
                return None, False
            return fault or "ends too early", False
        if fault is None or self._is_left_behind(segment.first_revision(scan.path.name) or 0):
            return None, False
        damaged = scan.damaged or scan.end == 0 or scan.next_rev <= self._newest
        return (fault, False) if damaged else (None, True)

    def _logged(self, rev: int) -> bool:
        """True if the log was on disk when the snapshot at ``rev`` was written."""
        try:
            return snapshot.read_header(self._view, self._layout.snapshot(rev)).logged
        except (DamageError, OSError):
            return True  # Its fault is found when all of it is read.

    def _is_left_behind(self, first_rev: int) -> bool:
        """True if the newest segment failed, and the newest snapshot has all its valid commits."""
        return self._failed_log and first_rev <= self._newest

    def _say_segment(self, state: SegmentState, scan: SegmentScan) -> None:
        text = f"{revisions(state.first_rev, state.last_rev)}, {_size(state.size)}"
        if state.fault is not None:
            self._say(Level.FAULT, state.path, _explain(state, scan))
        elif state.torn and self._view.holder is not None:
            self._say(Level.OK, state.path, f"{text}; more is being written")
        elif state.torn:
            self._say(
                Level.NOTE, state.path,
                f"{text}; torn tail: the {state.size - scan.end} bytes from offset {scan.end} on "
                f"did not reach the disk before a crash ({scan.fault}); "
                f"the next start cuts them off",
            )  # fmt: skip
        elif state.successor is not None and scan.next_rev > state.successor:
            rest = revisions(state.successor, scan.next_rev - 1)
            self._say(Level.NOTE, state.path, f"{text}; and {rest}, rolled back since")
        else:
            self._say(Level.OK, state.path, text)

    # Snapshots. -----------------------------------------------------------------------------

    def _snapshot(self, rev: int) -> SnapshotState:
        path = self._layout.snapshot(rev)
        progress = recovery.RecoveryProgress(f"reading {path}")
        entries = 0
        fault = None
        try:
            for chunk in snapshot.chunks(self._view, path, progress.report):
                entries += len(chunk)
                if rev == self._newest:
                    self._entries += sum(key not in self._changed for key, _ in chunk)
        except DamageError as error:
            fault = str(error).removeprefix(f"{path}: ")
        except OSError as error:
            fault = f"cannot be read: {error.strerror or error}"
        if fault is None:
            self._say(
                Level.OK,
                path,
                f"{count(entries, 'entry', 'entries')}, {_size(self._view.size(path))}",
            )
        else:
            self._say(Level.FAULT, path, fault)
        return SnapshotState(path, rev, entries, fault)

    # How they fit together. -----------------------------------------------------------------

    def _join(self, snapshots: list[SnapshotState], segments: list[SegmentState]) -> None:
        """Find revisions that are missing between files."""
        wal = self._layout.wal
        if not segments:
            if snapshots:
                self._say(Level.FAULT, wal, "there is no segment; its contents are unknown")
            return
        first, last = segments[0].first_rev, segments[-1].last_rev
        if not snapshots and first > 1:
            missing = revisions(1, first - 1)
            self._say(Level.FAULT, segments[0].path, f"missing before it: {missing}")
        for each in snapshots:
            if each.rev + 1 < first and each.fault is None:
                missing = revisions(each.rev + 1, first - 1)
                self._say(Level.FAULT, each.path, f"missing after it: {missing}")
        left_behind = self._is_left_behind(segments[-1].first_rev)
        if last < self._newest and segments[-1].fault is None and not left_behind:
            missing = revisions(last + 1, self._newest)
            self._say(Level.FAULT, segments[-1].path, f"missing after it: {missing}")

    def _leftovers(self) -> None:
        layout, running = self._layout, self._view.holder is not None
        for name in self._view.names(layout.directory):
            if name.startswith("damaged-"):
                self._say(Level.NOTE, layout.directory / name, "moved aside by a repair")
        for directory in (layout.snapshots, layout.wal):
            for name in self._view.names(directory):
                path = directory / name
                if name.endswith(snapshot.UNFINISHED):
                    text = "being written" if running else "unfinished; ignored"
                    self._say(Level.OK if running else Level.NOTE, path, text)
                elif ".torn-" in name:
                    self._say(Level.NOTE, path, "a torn tail that was cut off a segment")
                elif not self._is_data(directory, name):
                    self._say(Level.NOTE, path, "not a file of zkv")

    def _is_data(self, directory: Path, name: str) -> bool:
        path = directory / name
        layout, view = self._layout, self._view
        return path in map(layout.snapshot, view.snapshots) or path in map(
            layout.segment, view.segments
        )


def _newest_rev(snapshots: list[SnapshotState], segments: list[SegmentState]) -> int:
    revisions = [each.rev for each in snapshots]
    for each in segments:
        revisions += [each.first_rev - 1, each.last_rev]
        if each.successor is None:
            revisions += [run.last_rev for run in each.runs]
    return max(revisions, default=0)


def _explain(state: SegmentState, scan: SegmentScan) -> str:
    last = max(state.successor - 1 if state.successor else 0, scan.vouched_rev)
    hit = revisions(scan.next_rev, last) if last else f"revisions from {scan.next_rev} on"
    behind = [
        revisions(run.first_rev, run.last_rev)
        for run in state.runs[1:]
        if run.first_rev <= run.last_rev
    ]
    but = f"; {', '.join(behind)} after that can be read" if behind else ""
    return f"{state.fault}; {hit} affected{but}"


def revisions(first: int, last: int) -> str:
    """Text such as "revision 7", "revisions 7 to 9" or "no revisions"."""
    if last < first:
        return "no revisions"
    return f"revision {first}" if first == last else f"revisions {first} to {last}"


def count(number: int, one: str, many: str) -> str:
    """Text such as "1 entry" or "2 entries"."""
    return f"{number} {one if number == 1 else many}"


def _size(size: int) -> str:
    number = float(size)
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"
