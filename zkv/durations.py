"""Durations on a command line: seconds, or numbers with units: ``500ms``, ``5m``, ``1d12h``."""

from __future__ import annotations

import argparse
import math
import re
from typing import Final

UNITS: Final = {"w": 604_800.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
"""Unit -> seconds. In a duration, larger units come first, as here."""
_PART: Final = r"(?:([0-9]+(?:\.[0-9]+)?)%s)?"
_WITH_UNITS: Final = re.compile("".join(_PART % unit for unit in UNITS))


def seconds(text: str) -> float:
    """Return the seconds that ``text`` means; the caller checks their range.

    Raises ValueError.
    """
    found = _WITH_UNITS.fullmatch(text)
    if found is not None and text:
        numbers = zip(found.groups(), UNITS.values(), strict=True)
        return math.fsum(float(number) * factor for number, factor in numbers if number)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"{text!r} is not a duration: give seconds, or for example 500ms, 90s, 5m, 1h30m, 7d"
        )
    return number


def argument(text: str) -> float:
    """Parse a duration, as a ``type`` of argparse."""
    try:
        return seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive_argument(text: str) -> float:
    """Parse a duration of more than 0 seconds."""
    number = argument(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number
