"""Figures as people read them: bytes, times and percentiles."""

from __future__ import annotations

import time
from typing import Any

from zkv import figures


def shown(value: Any, unit: str) -> str:
    """A figure in readable units.

    Args:
        value: its value in INFO.
        unit: its unit; see `zkv.figures`.
    """
    if isinstance(value, str):
        return value
    if unit == figures.BYTES:
        return size(value)
    if unit == figures.TIME:
        return f"{duration(max(0.0, time.time() - value))} ago"
    return duration(value) if unit == figures.SECONDS else f"{value:,}"


def size(number: float) -> str:
    """A number of bytes with a unit, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{number:,.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"


def duration(seconds: float) -> str:
    """A number of seconds in a suitable unit."""
    if seconds == 0:
        return "0 s"
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (120.0, 1.0, "s")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes < 120:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def percentile(counts: list[int], share: float) -> float:
    """The time, in seconds, within which a share of the requests was done.

    Args:
        counts: a histogram from INFO: the number of requests that took less than 1 µs, from 1 to
            2 µs, from 2 to 4 µs and so on. They are assumed to be spread evenly in each step.
        share: from 0 to 1.
    """
    wanted, below = share * sum(counts), 0
    for step, count in enumerate(counts):
        if count and below + count >= wanted:
            low = 0.0 if step == 0 else 2.0 ** (step - 1)
            return float(low + (2.0**step - low) * (wanted - below) / count) / 1e6
        below += count
    return 0.0
