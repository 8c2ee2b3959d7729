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
from zkv.durability.segment import Run, SegmentScan, Successor
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
    lsn: int
    entries: int
    fault: str | None


class SegmentState(NamedTuple):
    """The result of reading a segment."""

    path: Path
    first_rev: int
    first_lsn: int
    successor: Successor | None
    """The place where the next segment takes precedence."""
    size: int
    runs: tuple[Run, ...]
    """The readable commits: those up to a fault, then those after it. Commits in a torn tail were
    never acknowledged, and are not included."""
    last_rev: int
    """The last revision up to which the segment is intact."""
    last_lsn: int
    """The last log number, likewise."""
    known_lsn: int
    """The newest log number in it, perhaps after a fault."""
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
    lsn: int
    """The newest log number, likewise."""
    entries: int | None
    """The number of entries at `rev`; None if it is unknown."""
    serves: bool
    """True if a server starts with these files."""
    faults: list[Finding]

    def reach(self, base: SnapshotState | None) -> int | None:
        """The revision that recovery reaches from ``base``; None if the log has a gap or fault."""
        rev, lsn = (0, 0) if base is None else (base.rev, base.lsn)
        start = snapshot.Loaded(rev=rev, lsn=lsn)
        for each in self.segments:
            if each.successor is None or each.successor.needs_those_before(start):
                if each.first_rev > rev + 1 or each.first_lsn > lsn + 1 or each.fault is not None:
                    return None
                rev, lsn = max(rev, each.last_rev), max(lsn, each.last_lsn)
        return rev


def survey(view: FrozenView, report: Callable[[Finding], None] = lambda finding: None) -> Survey:
    """Check every file in ``view``; calls ``report`` with each finding as soon as it is made."""
    return _Surveyor(view, report).run()


class _Surveyor:
    def __init__(self, view: FrozenView, report: Callable[[Finding], None]) -> None:
        self._view = view
        self._layout = view.layout
        self._report = report
        self._newest = view.snapshots[-1] if view.snapshots else 0
        self._start = self._head(self._newest) if view.snapshots else snapshot.Loaded()
        """The newest snapshot, without its contents."""
        self._changed: dict[str, bool] = {}
        """Keys changed after the newest snapshot; True if they exist now."""
        self._entries = 0
        self._faults: list[Finding] = []

    def run(self) -> Survey:
        firsts = self._view.segments
        segments = [
            self._segment(first, None if follower is None else self._successor(follower))
            for first, follower in itertools.zip_longest(firsts, firsts[1:])
        ]
        snapshots = [self._snapshot(rev) for rev in self._view.snapshots]
        self._join(snapshots, segments)
        self._leftovers()
        whole = not snapshots or snapshots[-1].fault is None
        found = Survey(snapshots, segments, 0, 0, None, False, self._faults)
        serves = whole and found.reach(snapshots[-1] if snapshots else None) is not None
        return found._replace(
            rev=_newest_rev(snapshots, segments),
            lsn=_newest_lsn(snapshots, segments),
            serves=serves,
            entries=self._entries + sum(self._changed.values()) if serves else None,
        )

    def _say(self, level: Level, path: Path, text: str) -> None:
        finding = Finding(level, path, text)
        if level is Level.FAULT:
            self._faults.append(finding)
        self._report(finding)

    # Segments. ------------------------------------------------------------------------------

    def _successor(self, follower: int) -> Successor:
        path = self._layout.segment(follower)
        try:
            return segment.successor(self._view, path)
        except OSError:  # It is reported when all of it is read.
            return Successor(follower, None)

    def _segment(self, first: int, successor: Successor | None) -> SegmentState:
        path = self._layout.segment(first)
        scan = SegmentScan(self._view, path)
        progress = recovery.RecoveryProgress(f"reading {path}")
        try:
            for commit in scan.commits():
                if successor is None or not successor.replaces(commit):
                    self._note_changes(commit)
                progress.report(scan.end, scan.size)
            fault, torn = self._judge(scan, successor)
        except OSError as error:
            fault, torn = f"cannot be read: {error.strerror or error}", False
        header = scan.header or segment.new_header(first, first)
        last = scan.next_rev - 1 if successor is None else min(scan.next_rev, successor.rev) - 1
        end = max(scan.end, header.size)
        runs = [Run(first, scan.next_rev - 1, header.size, end, scan.salt)]
        if fault is not None:
            runs += scan.behind
        unread = 0
        if fault is not None and successor is None:
            unread = segment.most_frames(self._view, path, runs[-1].end)
        last_lsn = scan.next_lsn - 1
        if successor is not None and successor.lsn is not None:
            last_lsn = min(last_lsn, successor.lsn - 1)
        known_lsn = last_lsn if fault is None else max(last_lsn, scan.vouched_lsn)
        state = SegmentState(
            path, first, header.first_lsn, successor, scan.size, tuple(runs), last, last_lsn,
            known_lsn, fault, torn, unread,
        )  # fmt: skip
        self._say_segment(state, scan)
        return state

    def _note_changes(self, commit: Commit) -> None:
        if not self._start.covers(commit):
            for change in commit.changes:
                self._changed[change.key] = change.op not in REMOVALS

    def _judge(self, scan: SegmentScan, successor: Successor | None) -> tuple[str | None, bool]:
        """The fault of a segment, as recovery would see it; and True if its tail is torn."""
        fault = scan.fault and f"damaged at offset {scan.end}: {scan.fault}"
        if successor is not None:
            if successor.follows(scan) or (
                fault is None and self._lacks_only_replies(scan, successor)
            ):
                return None, False
            return fault or "ends too early", False
        if fault is None or self._is_left_behind(segment.first_revision(scan.path.name) or 0):
            return None, False
        damaged = scan.damaged or scan.end == 0 or scan.next_lsn <= self._start.lsn
        return (fault, False) if damaged else (None, True)

    def _lacks_only_replies(self, scan: SegmentScan, successor: Successor) -> bool:
        """True if what is missing before a segment changed nothing, and is in the newest snapshot.

        The log had failed in a segment without revisions. The one that was begun after the snapshot
        has taken its name.
        """
        return scan.next_rev >= successor.rev and not successor.needs_those_before(self._start)

    def _head(self, rev: int) -> snapshot.Loaded:
        """The snapshot at ``rev``, without its contents."""
        try:
            return snapshot.read_head(self._view, self._layout.snapshot(rev))
        except (DamageError, OSError):  # Its fault is found when all of it is read.
            return snapshot.Loaded(rev=rev, lsn=rev)

    def _is_left_behind(self, first_rev: int) -> bool:
        """True if the newest segment failed, and the newest snapshot has all its valid commits."""
        return not self._start.logged and first_rev <= self._newest

    def _say_segment(self, state: SegmentState, scan: SegmentScan) -> None:
        text = f"{revisions(state.first_rev, state.last_rev)}, {_size(state.size)}"
        if scan.header is not None:
            text += f", format {scan.header.version}"
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
        elif state.successor is not None and scan.next_rev > state.successor.rev:
            rest = revisions(state.successor.rev, scan.next_rev - 1)
            self._say(Level.NOTE, state.path, f"{text}; and {rest}, rolled back since")
        elif state.successor is not None and not state.successor.follows(scan):
            self._say(
                Level.NOTE, state.path,
                f"{text}; what is remembered of the requests after it that changed nothing is in "
                f"the newest snapshot alone",
            )  # fmt: skip
        else:
            self._say(Level.OK, state.path, text)

    # Snapshots. -----------------------------------------------------------------------------

    def _snapshot(self, rev: int) -> SnapshotState:
        path = self._layout.snapshot(rev)
        progress = recovery.RecoveryProgress(f"reading {path}")
        entries = 0
        fault = None
        beside = snapshot.Loaded()
        try:
            for chunk in snapshot.chunks(self._view, path, progress.report, beside):
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
                f"{count(entries, 'entry', 'entries')}, {_size(self._view.size(path))}, "
                f"format {beside.version}",
            )
        else:
            self._say(Level.FAULT, path, fault)
        return SnapshotState(path, rev, beside.lsn, entries, fault)

    # How they fit together. -----------------------------------------------------------------

    def _join(self, snapshots: list[SnapshotState], segments: list[SegmentState]) -> None:
        """Find revisions that are missing between files."""
        wal = self._layout.wal
        if not segments:
            if snapshots:
                self._say(Level.FAULT, wal, "there is no segment; its contents are unknown")
            return
        first, last = segments[0], segments[-1]
        if not snapshots and first.first_lsn > 1:
            missing = _missing(0, 0, first)
            self._say(Level.FAULT, first.path, f"missing before it: {missing}")
        for each in snapshots:
            if each.lsn + 1 < first.first_lsn and each.fault is None:
                missing = _missing(each.rev, each.lsn, first)
                self._say(Level.FAULT, each.path, f"missing after it: {missing}")
        left_behind = self._is_left_behind(last.first_rev)
        if last.last_lsn < self._start.lsn and last.fault is None and not left_behind:
            missing = revisions(last.last_rev + 1, self._newest)
            self._say(Level.FAULT, last.path, f"missing after it: {missing}")

    def _leftovers(self) -> None:
        layout, running = self._layout, self._view.holder is not None
        for name in self._view.names(layout.directory):
            if name.startswith("damaged-"):
                self._say(Level.NOTE, layout.directory / name, "moved aside by a repair")
            elif name.startswith("before-"):
                self._say(Level.NOTE, layout.directory / name, "kept by an upgrade")
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


def _newest_lsn(snapshots: list[SnapshotState], segments: list[SegmentState]) -> int:
    numbers = [each.lsn for each in snapshots]
    for each in segments:
        numbers += [each.first_lsn - 1, each.last_lsn]
        if each.successor is None:
            numbers.append(each.known_lsn)
    return max(numbers, default=0)


def _missing(rev: int, lsn: int, following: SegmentState) -> str:
    """Text for what is missing between a place in the log and a segment."""
    if following.first_rev > rev + 1:
        return revisions(rev + 1, following.first_rev - 1)
    return f"log numbers {lsn + 1} to {following.first_lsn - 1}"


def _explain(state: SegmentState, scan: SegmentScan) -> str:
    last = max(state.successor.rev - 1 if state.successor else 0, scan.vouched_rev)
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
