"""A finding of `zkv doctor`."""

from __future__ import annotations

from typing import Final, NamedTuple

FINE: Final = "ok"
TELL: Final = "note"
ACT: Final = "todo"


class Diagnosis(NamedTuple):
    """A finding of a check.

    Args:
        level: `FINE`, `TELL` or `ACT`.
        subject: the part that was checked.
        text: the finding.
        advice: the remedy; empty = nothing to do.
    """

    level: str
    subject: str
    text: str
    advice: str = ""
