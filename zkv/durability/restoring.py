"""Restores a store as it was at a moment, from a data directory or an archive.

The part of an archive that has the moment is found first: the newest one that does. So after a
divergence the history that went on counts; the other one is restored from its part by name.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from zkv.durability import archive, moments
from zkv.durability.backup import Known, write_restored
from zkv.durability.frozen_view import FrozenView
from zkv.durability.layout import explain
from zkv.errors import DataDirError

if TYPE_CHECKING:
    from pathlib import Path

    from zkv.durability.archive import PartRecord
    from zkv.durability.backup import State
    from zkv.durability.check import Survey
    from zkv.durability.files import Files
    from zkv.durability.moments import Moment, Span

_log = logging.getLogger("zkv.durability")


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
    moment: Moment,
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
        place, spans = _find(files, source, moment)
        known = Known(
            max([above, *[each.last_rev for each in spans]]), max(each.term for each in spans)
        )
        reached: list[tuple[int, int]] = []

        def load() -> State:
            state = moments.state_at(view, moment, up_to_damage)
            reached.append((state.rev, state.time))
            return state

        with FrozenView(files, place) as view:
            survey = write_restored(files, source, load, target, known)
    except OSError as error:
        raise DataDirError(explain(error, source)) from error
    return Restored(survey, *reached[0])


def _find(files: Files, source: Path, moment: Moment) -> tuple[Path, list[Span]]:
    """Return the directory that has the moment, and all spans. Raises DataDirError, OSError."""
    if not archive.is_archive(files, source):
        with FrozenView(files, source) as view:
            span = moments.span(view)
        _require([span], moment, f"{source}: does not have {moment}: it has {span}")
        return source, [span]
    parts = archive.read_record(files, source).parts
    if not parts:
        raise DataDirError(f"{source}: this archive has nothing yet")
    spans = [_span_of(files, source, part) for part in parts]
    _require(spans, moment, f"{source}: does not have {moment}: {_listed(parts, spans)}")
    number = max(place for place, span in enumerate(spans) if span.has(moment))
    if number < len(parts) - 1:
        _log.warning("%s has %s: %s", parts[number].name, moment, _listed(parts, spans))
    return source / parts[number].name, spans


def _span_of(files: Files, source: Path, part: PartRecord) -> Span:
    with FrozenView(files, source / part.name) as view:
        return moments.span(view, part.until)


def _require(spans: list[Span], moment: Moment, message: str) -> None:
    if not any(span.has(moment) for span in spans):
        raise DataDirError(message)


def _listed(parts: list[PartRecord], spans: list[Span]) -> str:
    texts = []
    for part, span in zip(parts, spans, strict=True):
        how = {
            "begun": "",
            "gap": ", after a gap",
            "diverged": ", of another history than the part before",
            "damaged": ", after damage",
        }[part.why]
        texts.append(f"{part.name}{how}: {span}")
    return "; ".join(texts)
