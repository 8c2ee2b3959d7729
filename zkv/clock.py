"""The clock by which keys expire.

It returns Unix time in milliseconds, but after its start it follows the machine's uptime: a step of
the system clock, in either direction, changes no expiry while the server runs. After a restart it
begins at the system clock or at the time of the last logged commit, whichever is later: a key that
has been seen to expire never comes back.
"""

from __future__ import annotations

import time

_UPTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Includes the time for which the machine sleeps, if there is such a clock."""
_NS_PER_MS = 1_000_000


class Clock:
    """Returns the time in ms when called.

    Args:
        not_before: the earliest time to return, in ms.
    """

    def __init__(self, not_before: int = 0) -> None:
        uptime = time.clock_gettime_ns(_UPTIME) // _NS_PER_MS
        self._base = max(time.time_ns() // _NS_PER_MS, not_before) - uptime

    def __call__(self) -> int:
        """Return the Unix time in ms; never less than before."""
        return self._base + time.clock_gettime_ns(_UPTIME) // _NS_PER_MS
