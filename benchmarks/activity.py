"""Measures how busy the machine is with other programs during a pass.

The kernel counts the CPU time of all programs together, and of this process and the children that
it has waited for. The difference is that of others. *Steal* is time in which a virtual machine was
ready to run, but its host ran something else.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Final

from msgspec import Struct

USER, NICE, SYSTEM, STEAL = 0, 1, 2, 7
"""Fields of the first line of /proc/stat."""
BUSY: Final = 0.05
"""If others, or the host, take more than this share of the cores, figures are unreliable."""


class Activity(Struct):
    """The use of the machine during a pass. Shares are of the time of all cores."""

    seconds: float
    load_before: float
    load_after: float
    others: float
    steal: float

    @property
    def disturbs(self) -> bool:
        """True if it made the figures unreliable."""
        return max(self.others, self.steal) > BUSY


class Meter:
    """Measures from its creation to `read`, which must come after all children have ended."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0]
        self._began = time.monotonic()
        self._all, self._steal = _of_machine()
        self._own = _of_ours()

    def read(self) -> Activity:
        """The activity since the creation."""
        seconds = time.monotonic() - self._began
        everyone, steal = _of_machine()
        others = everyone - self._all - (_of_ours() - self._own)
        capacity = seconds * (os.cpu_count() or 1)
        return Activity(
            seconds=round(seconds, 1),
            load_before=round(self._load, 2),
            load_after=round(os.getloadavg()[0], 2),
            others=round(max(0.0, others) / capacity, 4),
            steal=round((steal - self._steal) / capacity, 4),
        )


def _of_machine() -> tuple[float, float]:
    """CPU seconds of all programs since the boot, and stolen seconds."""
    line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in line.split()[1:]]
    return ticks[USER] + ticks[NICE] + ticks[SYSTEM], ticks[STEAL]


def _of_ours() -> float:
    """CPU seconds of this process and of its children that have ended."""
    kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    used = [resource.getrusage(kind) for kind in kinds]
    return sum(each.ru_utime + each.ru_stime for each in used)
