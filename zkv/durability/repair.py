"""Repairs a damaged data directory so that a server starts with it, with the least possible loss.

A plan is made from a survey, shown to the user, and only then carried out. If an intact snapshot
and an intact log after it lead to the newest known revision, the repair only moves the damaged
files aside. Otherwise it rebuilds the state from the snapshot that leads furthest and from every
commit of the log that follows without a gap. These include commits after a damaged frame if the
snapshot has that frame's revision. The result becomes the directory's only snapshot.

Originals are never deleted. They are moved to ``damaged-<time>/``, which has the layout of a data
directory.

Revisions and log numbers are never reused. If revisions up to N are lost, the new snapshot gets
revision N + 1, although its state is that before the loss; likewise its log number. So the
``if_rev`` of a client that saw a lost revision never holds by chance. A follower that has seen N
asks for changes that are no longer kept, and therefore reads the store again. If the newest segment
ends with unreadable bytes, the repair also skips as many revisions as they could have contained.

If anything is lost, a term begins (`zkv.keyspace.lineage`): standbys may have what is lost here.

Replies to exactly-once requests are kept or lost together with the writes. The reply to a request
that changed nothing has no revision of its own, and none is counted as lost. Therefore every repair
that reads past a damaged frame warns of that.

Order on disk: the new snapshot is complete before any file is moved, and it is the newest. So at
any moment the directory either gives the repaired state or is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zkv.durability import recovery, segment, snapshot, upgrade
from zkv.durability.backup import (
    after_loss,
    begin_log,
    copy_file,
    make_directories,
    write_state,
)
from zkv.durability.check import revisions
from zkv.errors import DamageError
from zkv.keyspace.change import misplacement

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zkv.durability.check import SegmentState, SnapshotState, Survey
    from zkv.durability.files import Files
    from zkv.durability.layout import Layout
    from zkv.keyspace import Commit


class Plan(NamedTuple):
    """The steps of a repair."""

    base: SnapshotState | None
    """The snapshot to begin with; None = an empty store."""
    reach: int
    """The revision whose state the repair restores."""
    known_rev: int
    """The newest revision that any file in the directory mentions."""
    known_lsn: int
    """The newest log number, likewise."""
    uncounted: int
    """The largest number of later revisions that there may have been."""
    builds: bool
    """True if a new snapshot replaces all files."""
    aside: list[Path]
    """The files to move aside."""
    segments: list[SegmentState]

    @property
    def loses(self) -> bool:
        """True if revisions are lost, or may be."""
        return self.reach < self.known_rev or self.uncounted > 0

    @property
    def forgets(self) -> bool:
        """True if replies to exactly-once requests that changed nothing may be lost."""
        return self.builds and any(each.fault is not None for each in self.segments)

    @property
    def rev(self) -> int:
        """The revision of the repaired directory."""
        return self.known_rev + self.uncounted + 1 if self.loses else self.reach

    @property
    def lsn(self) -> int:
        """The log number of the repaired directory."""
        return self.known_lsn + self.uncounted + 1 if self.loses else self.known_lsn

    @property
    def writes(self) -> bool:
        """True if a snapshot must be written, because no existing one has the repaired state."""
        return self.builds and self.rev > 0 and (self.base is None or self.base.lsn != self.lsn)

    def loss(self) -> str:
        """Text that lists the lost revisions."""
        lost = revisions(self.reach + 1, self.known_rev)
        more = (
            f"up to {self.uncounted} unreadable revisions after revision {self.known_rev}"
            if self.uncounted
            else ""
        )
        if self.reach < self.known_rev:
            return f"{lost}, and {more}" if more else lost
        return more or "nothing"


def make_plan(layout: Layout, found: Survey) -> Plan | None:
    """Plan the repair of the faults in a survey; None = there are none.

    Raises DamageError if nothing can be saved.
    """
    if not found.faults:
        return None
    return _plan_to_keep(found) or _plan_to_build(layout, found)


def _plan_to_keep(found: Survey) -> Plan | None:
    """The plan to move damaged files aside, if the remaining files contain everything."""
    log_end = found.segments[-1].last_rev if found.segments else 0
    if log_end < found.rev:
        return None
    whole = [each for each in found.snapshots if each.fault is None]
    kept = [each for each in whole if found.reach(each) == found.rev]
    if not kept and found.reach(None) != found.rev:
        return None
    oldest = kept[0].rev if kept else 0
    aside = [each.path for each in found.snapshots if each not in kept]
    aside += [
        each.path
        for each in found.segments
        if each.successor is not None
        and (each.successor.rev <= oldest or (each.fault and each.successor.rev == oldest + 1))
    ]
    base = kept[-1] if kept else None
    return Plan(base, found.rev, found.rev, found.lsn, 0, False, aside, found.segments)


def _plan_to_build(layout: Layout, found: Survey) -> Plan:
    """The plan to rebuild the newest state that can be reached."""
    whole = [each for each in found.snapshots if each.fault is None]
    bases: list[SnapshotState | None] = [None, *whole]
    reaches = [_reach(base.rev if base else 0, found.segments) for base in bases]
    reach = max(reaches)
    base = [base for base, its in zip(bases, reaches, strict=True) if its == reach][-1]
    plan = Plan(base, reach, found.rev, found.lsn, _uncounted(found), True, [], found.segments)
    if reach == 0 and plan.loses:
        raise DamageError(
            f"{layout.directory}: nothing in it can be saved: no snapshot is intact, and the log "
            f"does not go back to revision 1; see `zkv restore`"
        )
    aside = [each.path for each in found.snapshots if each is not base or plan.writes]
    return plan._replace(aside=aside + [each.path for each in found.segments])


def _reach(base: int, segments: list[SegmentState]) -> int:
    """The revision to which the readable commits after ``base`` lead without a gap."""
    reached = base
    for each in segments:
        limit = each.successor.rev - 1 if each.successor else None
        for run in each.runs:
            if run.first_rev <= reached + 1:
                last = run.last_rev if limit is None else min(run.last_rev, limit)
                reached = max(reached, last)
    return reached


def _uncounted(found: Survey) -> int:
    """The largest number of commits after the newest known revision that the log may have had."""
    if not found.segments:
        return 0
    newest = found.segments[-1]
    return max(0, newest.last_read + newest.unread - found.rev)


def carry_out(files: Files, layout: Layout, plan: Plan, name: str, now: float) -> Path:
    """Carry out ``plan``; returns the directory with the originals. The lock must be held.

    Args:
        files: the file operations.
        layout: the paths of the data directory.
        plan: the plan.
        name: the name, within the data directory, of the directory for the originals.
        now: Unix time in seconds.

    Raises:
        DamageError: data that was readable when the plan was made cannot be read now.
        OSError: something cannot be read or written. The repair may be tried again.
    """
    if plan.builds:
        upgrade.keep_copy(files, layout)
    aside = layout.directory / name
    make_directories(files, aside / layout.snapshots.name)
    make_directories(files, aside / layout.wal.name)
    for inner in (layout.snapshots, layout.wal):
        make_directories(files, inner)
    if plan.writes:
        _keep_copy(files, layout.snapshot(plan.rev), plan, aside)
        _write_snapshot(files, layout, plan, now)
    for path in plan.aside:
        if not (plan.writes and path == layout.snapshot(plan.rev)):
            files.rename(path, aside / path.relative_to(layout.directory))
    for inner in (layout.snapshots, layout.wal):
        files.sync_directory(aside / inner.name)
        files.sync_directory(inner)
    if plan.builds and plan.rev:
        begin_log(files, layout, plan.rev + 1, plan.lsn + 1)
    return aside


def _keep_copy(files: Files, path: Path, plan: Plan, aside: Path) -> None:
    """If the new snapshot takes the name of a damaged one, copy that one aside."""
    if path in plan.aside:
        copy_file(files, path, files, aside / path.parent.name / path.name, None)


def _write_snapshot(files: Files, layout: Layout, plan: Plan, now: float) -> None:
    base = plan.base
    loaded = snapshot.read(files, base.path) if base else snapshot.Loaded()
    replay = recovery.Replay(files, layout.wal, loaded)
    for commit in _commits(files, plan):
        follows = misplacement(commit, replay.rev, commit.lsn - 1) is None
        if follows and commit.rev <= plan.reach:
            replay.apply(commit)
    if replay.rev != plan.reach:
        raise DamageError(
            f"{layout.directory}: the files have changed: they lead to revision {replay.rev} now, "
            f"not to {plan.reach}"
        )
    created = max(int(now * 1000), replay.time)  # The clock must not go back.
    lineage = after_loss(replay.lineage, plan.lsn) if plan.loses else replay.lineage
    write_state(
        files, layout, plan.rev, plan.lsn, created, replay.entries, replay.sessions, lineage
    )


def _commits(files: Files, plan: Plan) -> Iterator[Commit]:
    """Every readable commit in order. Where two segments overlap, the later one counts."""
    for each in plan.segments:
        for run in each.runs:
            for commit in segment.read_run(files, each.path, run):
                if each.successor is None or not each.successor.replaces(commit):
                    yield commit
