"""The store as it was at a moment: at a revision, or at the last commit not after a time.

Strategy: load the newest intact snapshot that is not beyond the moment, and apply the log up to it.
All that is read is checked. A damaged snapshot does no harm if an older one leads to the moment. If
the log is damaged on the way, nothing is given unless the caller asks for the state before the
damage.

Times are those of commits. They never decrease in a log: a server's clock continues after the
newest time that it has recovered, and a standby's after that of its primary (`zkv.clock`). So "not
after a time" cuts the log in one place. A snapshot may serve if the moment is not before its own
time, which is not before any commit in it.

A revision takes with it what is logged at the same revision: remembered refusals.
"""

from __future__ import annotations

import itertools
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from zkv.durability import recovery, snapshot
from zkv.durability.backup import State
from zkv.durability.recovery import Replay
from zkv.durability.segment import SegmentScan
from zkv.errors import DamageError, DataDirError

if TYPE_CHECKING:
    from pathlib import Path

    from zkv.durability.frozen_view import FrozenView
    from zkv.durability.snapshot import Loaded
    from zkv.keyspace import Commit

_log = logging.getLogger("zkv.durability")

_NO_LIMIT: Final = 2**63 - 1


class NoSuchMomentError(DataDirError):
    """A directory does not have a moment."""


class PointInTime(NamedTuple):
    """A revision, or a time in Unix ms; neither = the newest."""

    rev: int | None = None
    time: int | None = None

    def is_before(self, commit: Commit) -> bool:
        """Return True if a commit came after the moment."""
        if self.rev is not None:
            return commit.rev > self.rev
        return self.time is not None and commit.time > self.time

    def allows(self, head: Loaded) -> bool:
        """Return True if a snapshot has nothing from after the moment."""
        if self.rev is not None:
            return head.rev <= self.rev
        return self.time is None or head.created <= self.time

    def __str__(self) -> str:
        if self.rev is not None:
            return f"revision {self.rev}"
        return "the newest moment" if self.time is None else at(self.time)


class Span(NamedTuple):
    """The moments that a data directory has, if nothing in it is damaged."""

    first_rev: int
    first_time: int
    last_rev: int
    last_time: int
    """The directory has all that was answered up to then, Unix time in ms."""
    term: int
    """The number of the newest term; 0 = there is none."""

    def has(self, moment: PointInTime) -> bool:
        """Return True if it has a moment."""
        if moment.rev is not None:
            return self.first_rev <= moment.rev <= self.last_rev
        return moment.time is None or self.first_time <= moment.time <= self.last_time

    def __str__(self) -> str:
        return (
            f"revisions {self.first_rev} to {self.last_rev}, {at(self.first_time)} to "
            f"{at(self.last_time)}"
        )


class _Failed(NamedTuple):
    """Where damage has ended the way from a snapshot."""

    head: Loaded | None
    rev: int
    time: int
    error: DamageError


def at(time: int) -> str:
    """Return a time in Unix ms as text, in UTC."""
    moment = datetime.fromtimestamp(time / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def span(view: FrozenView, until: int = 0) -> Span:
    """Return the moments that a data directory has.

    Args:
        view: the directory.
        until: a time in Unix ms up to which it is known to have everything.

    Faults are not reported: the span says what there was before them. Raises FormatError, OSError.
    """
    heads = _heads(view)
    newest = heads[-1] if heads else snapshot.Loaded()
    if heads and view.segments[:1] != [1]:
        first = heads[0]
    else:  # The log begins with the store.
        began = _first_commit(view, view.layout.segment(1)) if view.segments[:1] == [1] else None
        first = snapshot.Loaded(created=0 if began is None else began.time)
    rev, time, term = newest.rev, newest.created, newest.lineage.term
    for segment_rev, follower in itertools.zip_longest(view.segments, view.segments[1:]):
        if follower is not None and follower <= newest.rev:
            continue
        scan = SegmentScan(view, view.layout.segment(segment_rev))
        rev = max(rev, segment_rev - 1)
        for commit in scan.commits():
            rev, time = max(rev, commit.rev), max(time, commit.time)
            term = term if commit.begins is None else max(term, commit.begins.term)
        rev = max(rev, scan.vouched_rev)
    return Span(first.rev, first.created, rev, max(time, until), term)


def state_at(view: FrozenView, moment: PointInTime, up_to_damage: bool = False) -> State:
    """Return the store as it was at a moment.

    Args:
        view: the data directory, or the part of an archive.
        moment: the moment.
        up_to_damage: if damage is on the way, return the newest state before it.

    Raises:
        DamageError: damage is on the way, and the message says what can be reached.
        NoSuchMomentError: the directory does not have the moment.
        FormatError, OSError: a file cannot be read.
    """
    heads: list[Loaded | None] = [head for head in reversed(_heads(view)) if moment.allows(head)]
    if view.segments[:1] == [1] or not view.snapshots:
        heads.append(None)
    failed: list[_Failed] = []
    for head in heads:
        way = _Way(view, head, moment)
        try:
            state = way.go()
        except DamageError as error:
            error.__traceback__ = None  # It refers to the store.
            failed.append(_Failed(head, way.rev, way.time, error))
            continue
        for each in failed:
            _log.warning("%s; an older snapshot leads to %s", each.error, moment)
        return state
    if not failed:
        raise NoSuchMomentError(f"{view.layout.directory}: does not have {moment}: {_oldest(view)}")
    best = max(failed, key=lambda each: each.rev)
    if best.rev < 0:
        raise failed[0].error
    if up_to_damage:
        _log.warning("%s; restoring what was before that: revision %d", best.error, best.rev)
        return _Way(view, best.head, moment).go(stops_at_damage=True)
    raise DamageError(
        f"{best.error}; what was before that can be reached, up to revision {best.rev} of "
        f"{at(best.time)}, with --up-to-damage{_behind(view, moment)}"
    )


class _Way:
    """From a snapshot to a moment."""

    def __init__(self, view: FrozenView, head: Loaded | None, moment: PointInTime) -> None:
        self._view = view
        self._head = head
        self._moment = moment
        self._replay: Replay | None = None

    @property
    def rev(self) -> int:
        """The revision that was reached; -1 if not even the snapshot could be read."""
        return -1 if self._replay is None else self._replay.rev

    @property
    def time(self) -> int:
        """The latest time up to there."""
        return 0 if self._replay is None else self._replay.time

    def go(self, stops_at_damage: bool = False) -> State:
        """Return the state at the moment, or before the damage.

        Raises DamageError, NoSuchMomentError, OSError.
        """
        moment, replay = self._moment, self._load()
        try:
            lsn = replay.run_before(moment.is_before, self._limit())
        except DamageError:
            # What is damaged may come after the moment.
            if not stops_at_damage and replay.rev != moment.rev:
                raise
            lsn = replay.lsn
        else:
            if moment.rev is not None and replay.rev != moment.rev:
                raise NoSuchMomentError(
                    f"{self._view.layout.directory}: there is no revision {moment.rev}: the last "
                    f"one before it is {replay.rev}"
                )
        return State(replay.entries, replay.sessions, replay.rev, lsn, replay.time, replay.lineage)

    def _load(self) -> Replay:
        view, loaded = self._view, snapshot.Loaded()
        if self._head is not None:
            path = view.layout.snapshot(self._head.rev)
            progress = recovery.RecoveryProgress(f"loading {path}")
            loaded = snapshot.read(view, path, progress.report)
        self._replay = Replay(view, view.layout.wal, loaded)
        return self._replay

    def _limit(self) -> int:
        """Return a revision before which every commit belongs to the moment."""
        if self._moment.rev is not None:
            return self._moment.rev
        if self._moment.time is None:
            return _NO_LIMIT
        for first in reversed(self._view.segments):
            commit = _first_commit(self._view, self._view.layout.segment(first))
            if commit is not None and commit.time <= self._moment.time:
                return first
        return 0


def _heads(view: FrozenView) -> list[Loaded]:
    """Return all snapshots whose beginning can be read, without their contents, oldest first."""
    heads = []
    for rev in view.snapshots:
        try:
            head = snapshot.read_head(view, view.layout.snapshot(rev))
        except DamageError as error:
            _log.warning("%s; ignored", error)
            continue
        if head.rev == rev:
            heads.append(head)
    return heads


def _first_commit(view: FrozenView, path: Path) -> Commit | None:
    return next(SegmentScan(view, path).commits(), None)


def _oldest(view: FrozenView) -> str:
    try:
        return f"it has {span(view)}"
    except OSError as error:
        return f"{error.filename or view.layout.directory}: {error.strerror or error}"


def _behind(view: FrozenView, moment: PointInTime) -> str:
    """Return text that says where the directory can be read again after the damage."""
    later = [head for head in _heads(view) if not moment.allows(head)]
    if not later:
        return ""
    return f"; and from revision {later[0].rev} of {at(later[0].created)} on"
