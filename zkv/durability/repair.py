"""Makes a damaged data directory one that a server starts with, and loses as little as can be.

A plan is made from a survey, shown, and only then carried out. Where a whole snapshot has a whole
log behind it, up to the newest revision that anything tells of, what is damaged is only moved
aside. Otherwise the state is built anew, from the snapshot that gets furthest and every commit of
the log that follows without a gap - also those behind a damaged frame, if that frame's revision is
in the snapshot - and becomes the directory's one snapshot.

Originals are never deleted: they go to ``damaged-<time>/``, which is itself laid out as a data
directory.

Revisions do not come again. Where revisions up to N are lost, the repair takes revision N + 1: the
snapshot has that revision, though the state in it is that of before the loss. So an ``if_rev`` of
a client that saw a lost revision never holds by chance, and whoever follows the changes and has
seen N is behind, asks for what is no longer kept, and reads the store anew. If the newest segment
ends with bytes that cannot be read, as many revisions as could have been in them are skipped, too.

What exactly-once requests were answered is kept as the writes are. An answer to a request that
changed nothing has no revision of its own: that one was lost cannot be told from what is left, and
is said of every repair that reads past a damaged frame.

Order on disk: the new snapshot is there before anything is moved, and it is newer than all else.
So at any moment the directory either gives the repaired state or is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zkv.durability import recovery, segment, snapshot
from zkv.durability.backup import (
    begin_log,
    copy_file,
    make_directories,
    write_state,
)
from zkv.durability.check import revisions
from zkv.errors import DamageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zkv.durability.check import SegmentState, SnapshotState, Survey
    from zkv.durability.files import Files
    from zkv.durability.layout import Layout
    from zkv.keyspace import Commit


class Plan(NamedTuple):
    """What a repair is going to do."""

    base: SnapshotState | None
    """The snapshot that it begins with; None = an empty store."""
    reach: int
    """The revision whose state there will be."""
    known_rev: int
    """The newest revision that anything in the directory tells of."""
    uncounted: int
    """How many more there may have been, at most."""
    builds: bool
    """Whether a new snapshot takes the place of all that is there."""
    aside: list[Path]
    """What is moved aside."""
    segments: list[SegmentState]

    @property
    def loses(self) -> bool:
        """Whether revisions are lost, or may be."""
        return self.reach < self.known_rev or self.uncounted > 0

    @property
    def forgets(self) -> bool:
        """Whether answers to exactly-once requests that changed nothing may be lost."""
        return self.builds and any(each.fault is not None for each in self.segments)

    @property
    def rev(self) -> int:
        """The revision that the directory has afterwards."""
        return self.known_rev + self.uncounted + 1 if self.loses else self.reach

    @property
    def writes(self) -> bool:
        """Whether a new snapshot has to be written: none is what the directory is to hold."""
        return self.builds and self.rev > 0 and (self.base is None or self.base.rev != self.rev)

    def loss(self) -> str:
        """What is lost, for a message."""
        lost = revisions(self.reach + 1, self.known_rev)
        more = (
            f"up to {self.uncounted} behind revision {self.known_rev} that left nothing readable"
            if self.uncounted
            else ""
        )
        if self.reach < self.known_rev:
            return f"{lost}, and {more}" if more else lost
        return more or "nothing"


def make_plan(layout: Layout, found: Survey) -> Plan | None:
    """How to repair what a survey found; None where nothing needs it.

    Raises DamageError where nothing can be saved.
    """
    if not found.faults:
        return None
    return _plan_to_keep(found) or _plan_to_build(layout, found)


def _plan_to_keep(found: Survey) -> Plan | None:
    """Move aside what is damaged, if what stays is all there ever was."""
    log_end = found.segments[-1].last_rev if found.segments else 0
    if log_end < found.rev:
        return None
    whole = [each for each in found.snapshots if each.fault is None]
    kept = [each for each in whole if found.reach(each.rev) == found.rev]
    if not kept and found.reach(0) != found.rev:
        return None
    oldest = kept[0].rev if kept else 0
    aside = [each.path for each in found.snapshots if each not in kept]
    aside += [
        each.path
        for each in found.segments
        if each.successor is not None
        and (each.successor <= oldest or (each.fault and each.successor == oldest + 1))
    ]
    base = kept[-1] if kept else None
    return Plan(base, found.rev, found.rev, 0, False, aside, found.segments)


def _plan_to_build(layout: Layout, found: Survey) -> Plan:
    """Build the furthest state that there is."""
    whole = [each for each in found.snapshots if each.fault is None]
    bases: list[SnapshotState | None] = [None, *whole]
    reaches = [_reach(base.rev if base else 0, found.segments) for base in bases]
    reach = max(reaches)
    base = [base for base, its in zip(bases, reaches, strict=True) if its == reach][-1]
    plan = Plan(base, reach, found.rev, _uncounted(found), True, [], found.segments)
    if reach == 0 and plan.loses:
        raise DamageError(
            f"{layout.directory}: nothing in it can be saved: no snapshot is whole, and no log "
            f"goes back to revision 1; see `zkv restore`"
        )
    aside = [each.path for each in found.snapshots if each is not base or plan.writes]
    return plan._replace(aside=aside + [each.path for each in found.segments])


def _reach(base: int, segments: list[SegmentState]) -> int:
    """The revision that everything readable behind ``base`` leads to without a gap."""
    reached = base
    for each in segments:
        limit = each.successor - 1 if each.successor else None
        for run in each.runs:
            if run.first_rev <= reached + 1:
                last = run.last_rev if limit is None else min(run.last_rev, limit)
                reached = max(reached, last)
    return reached


def _uncounted(found: Survey) -> int:
    """How many commits behind the newest known revision the log may have held."""
    if not found.segments:
        return 0
    newest = found.segments[-1]
    return max(0, newest.last_read + newest.unread - found.rev)


def carry_out(files: Files, layout: Layout, plan: Plan, name: str, now: float) -> Path:
    """Do what ``plan`` says, and return where the originals are. The lock must be held.

    Args:
        files: the door to the file system.
        layout: of the data directory.
        plan: what to do.
        name: of the directory, in the data directory, that takes the originals.
        now: Unix time in seconds.

    Raises:
        DamageError: what could be read for the plan cannot be read now.
        OSError: something cannot be read or written. The repair may be tried again.
    """
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
        begin_log(files, layout, plan.rev + 1)
    return aside


def _keep_copy(files: Files, path: Path, plan: Plan, aside: Path) -> None:
    """Copy aside a damaged snapshot whose name the new one takes."""
    if path in plan.aside:
        copy_file(files, path, files, aside / path.parent.name / path.name, None)


def _write_snapshot(files: Files, layout: Layout, plan: Plan, now: float) -> None:
    base = plan.base
    loaded = snapshot.read(files, base.path) if base else snapshot.Loaded()
    replay = recovery.Replay(files, layout.wal, loaded)
    for commit in _commits(files, plan):
        expected = replay.rev + 1 if commit.changes else replay.rev
        if commit.rev == expected <= plan.reach:
            replay.apply(commit)
    if replay.rev != plan.reach:
        raise DamageError(
            f"{layout.directory}: revision {plan.reach} could be reached before, and now only "
            f"{replay.rev}"
        )
    created = max(int(now * 1000), replay.time)  # The clock must not go back.
    write_state(files, layout, plan.rev, created, replay.entries, replay.sessions)


def _commits(files: Files, plan: Plan) -> Iterator[Commit]:
    """Every commit that can be read, in order, as far as its segment counts."""
    for each in plan.segments:
        for run in each.runs:
            for commit in segment.read_run(files, each.path, run):
                if each.successor is None or commit.rev < each.successor:
                    yield commit
