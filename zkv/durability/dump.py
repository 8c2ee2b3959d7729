"""Reads the entries of a data directory at a revision, and its log, for `zkv dump`.

Values stay packed: no value can stop a dump.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zkv.durability import recovery, segment, snapshot
from zkv.durability.check import revisions
from zkv.durability.recovery import LogReader, Replay
from zkv.errors import DamageError, DataDirError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zkv.durability.frozen_view import FrozenView
    from zkv.keyspace import Commit
    from zkv.keyspace.table import Table


def newest_state(view: FrozenView) -> Table:
    """The entries that a server would start with. Raises DamageError, DataDirError."""
    layout = view.layout
    return recovery.recover(view, layout.snapshots, layout.wal).entries


def state_at(view: FrozenView, rev: int) -> Table:
    """The entries at revision ``rev``, from the newest intact snapshot before it and the log.

    Raises:
        DamageError: every snapshot before it, or the log after them, is damaged.
        DataDirError: the store has not reached it, or its snapshot and log have been removed.
    """
    bases = [base for base in reversed(view.snapshots) if base <= rev]
    if view.segments[:1] == [1] or not view.snapshots:
        bases.append(0)
    if not bases:
        raise DataDirError(
            f"{view.layout.directory}: revision {rev} cannot be reconstructed any more: the "
            f"oldest that can is {view.snapshots[0]}"
        )
    damages: list[DamageError] = []
    for base in bases:
        try:
            return _replay(view, base, rev)
        except DamageError as error:
            damages.append(error)
    raise damages[0]


def _replay(view: FrozenView, base: int, rev: int) -> Table:
    """The entries at ``rev``, from the snapshot at ``base``. Raises DamageError, DataDirError."""
    layout = view.layout
    loaded = snapshot.Loaded()
    if base:
        path = layout.snapshot(base)
        loaded = snapshot.read(view, path, recovery.RecoveryProgress(f"loading {path}").report)
    replay = Replay(view, layout.wal, loaded)
    replay.run(until=rev)
    if replay.rev != rev:
        raise DataDirError(
            f"{layout.directory}: there is no revision {rev}: the newest is {replay.rev}"
        )
    return replay.entries


def log(view: FrozenView, until: int | None) -> Iterator[Commit]:
    """The commits that are still in the log, up to revision ``until``, one in memory at a time.

    Raises DamageError, DataDirError or OSError, after all commits before that.
    """
    first = view.segments[0] if view.segments else 1
    header = segment.read_header(view, view.layout.segment(first)) if view.segments else None
    lsn = first - 1 if header is None else header.first_lsn - 1
    reader = LogReader(view, view.layout.wal, snapshot.Loaded(rev=first - 1, lsn=lsn))
    if until is None or until >= first:
        for commit in reader.commits():
            yield commit
            if commit.rev == until:
                return
    if until is not None:
        there = revisions(first, reader.rev)
        raise DataDirError(
            f"{view.layout.wal}: revision {until} is not in the log: it holds {there}"
        )
