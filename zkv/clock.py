"""The clock by which keys expire.

It shows Unix time in milliseconds, but once begun it runs by the machine's uptime: stepping the
system clock, in either direction, neither kills keys nor keeps them alive while the server runs. At
a restart it begins at the system clock, or where it had been when the last commit was logged,
whichever is later: so what has been seen to expire never comes back.
"""

from __future__ import annotations

import time

_UPTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Goes on while the machine sleeps, where there is such a clock."""
_NS_PER_MS = 1_000_000


class Clock:
    """Call it to get the time in ms.

    Args:
        not_before: in ms; the earliest time that it may show.
    """

    def __init__(self, not_before: int = 0) -> None:
        uptime = time.clock_gettime_ns(_UPTIME) // _NS_PER_MS
        self._base = max(time.time_ns() // _NS_PER_MS, not_before) - uptime

    def __call__(self) -> int:
        """Unix time in milliseconds; never goes back."""
        return self._base + time.clock_gettime_ns(_UPTIME) // _NS_PER_MS
