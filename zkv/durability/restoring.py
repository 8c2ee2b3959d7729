"""Restores a store as it was at a moment, from a data directory or an archive.

The part of an archive that has the moment is found first: the newest one that does. So after a
divergence the history that went on counts; the other one is restored from its part by name.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple

from zkv.durability import archive, moments
from zkv.durability.backup import Known, write_restored
from zkv.durability.frozen_view import FrozenView
from zkv.durability.layout import explain
from zkv.durability.moments import NoSuchMomentError
from zkv.errors import DataDirError

if TYPE_CHECKING:
    from pathlib import Path

    from zkv.durability.archive import Why
    from zkv.durability.backup import State
    from zkv.durability.check import Survey
    from zkv.durability.files import Files
    from zkv.durability.moments import PointInTime, Span

_log = logging.getLogger("zkv.durability")


_HOW: Final[dict[Why, str]] = {
    "begun": "",
    "gap": ", after a gap",
    "diverged": ", of another history than the part before",
    "damaged": ", after damage",
}


class _Place(NamedTuple):
    """A data directory that may have the moment.

    Args:
        directory: where it is.
        span: what it has.
        text: that says so.
    """

    directory: Path
    span: Span
    text: str


class Restored(NamedTuple):
    """A store that was restored."""

    survey: Survey
    """Of the new directory."""
    rev: int
    """The revision at which the store was as it is in the new directory."""
    time: int
    """The latest time up to there, Unix time in ms."""


def restore_moment(
    files: Files,
    source: Path,
    target: Path,
    moment: PointInTime,
    above: int = 0,
    up_to_damage: bool = False,
) -> Restored:
    """Make a store as it was at a moment, at a revision that no client can have seen.

    Args:
        files: the file operations.
        source: an archive, one of its parts, a backup or a data directory.
        target: the new directory; absent or empty. If restoring fails, it is left as it was.
        moment: the moment.
        above: the newest revision that clients may have seen, if the source does not have it.
        up_to_damage: if damage is on the way, restore what was before it.

    Raises:
        DamageError: damage is on the way.
        DataDirError: the source does not have the moment; something cannot be read or written.
        LockedError: another process has just begun to use ``target``.
    """
    try:
        places = _find(files, source)
        known = Known(
            max([above, *[each.span.last_rev for each in places]]),
            max([0, *[each.span.term for each in places]]),
        )
        missing: NoSuchMomentError | None = None
        for place in reversed(places):
            if place.span.has(moment):
                if place != places[-1]:
                    _log.warning("looking for %s in %s", moment, place.text)
                try:
                    return _restore(files, place, target, moment, known, up_to_damage)
                except NoSuchMomentError as error:  # A promotion has left out that revision.
                    missing = missing or error
    except OSError as error:
        raise DataDirError(explain(error, source)) from error
    listed = "; ".join(each.text for each in places) or "nothing"
    raise missing or NoSuchMomentError(f"{source}: does not have {moment}, but {listed}")


def _restore(
    files: Files, place: _Place, target: Path, moment: PointInTime, known: Known, up_to_damage: bool
) -> Restored:
    reached: list[tuple[int, int]] = []

    def load() -> State:
        state = moments.state_at(view, moment, up_to_damage)
        reached.append((state.rev, state.time))
        return state

    with FrozenView(files, place.directory) as view:
        survey = write_restored(files, place.directory, load, target, known)
    return Restored(survey, *reached[0])


def _find(files: Files, source: Path) -> list[_Place]:
    """Return the parts of an archive, the oldest first, or the directory itself.

    Raises DataDirError, OSError.
    """
    if not archive.is_archive(files, source):
        with FrozenView(files, source) as view:
            span = moments.span(view)
        return [_Place(source, span, str(span))]
    places = []
    for name in archive.part_names(files, source):
        part = archive.read_part(files, source / name)
        with FrozenView(files, source / name) as view:
            span = moments.span(view, part.until)
        places.append(_Place(source / name, span, f"{name}{_HOW[part.why]}: {span}"))
    return places
