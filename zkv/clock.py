"""The clock by which keys expire.

It returns Unix time in milliseconds, but after its start it follows the machine's uptime: a step of
the system clock, in either direction, changes no expiry while the server runs. After a restart it
begins at the system clock or at the time of the last logged commit, whichever is later: a key that
has been seen to expire never comes back.

The clock of a standby follows that of its primary, and its system clock does not count: if it were
an hour ahead, all keys would expire when the standby is promoted.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from zkv import compiled

if TYPE_CHECKING:
    _Base = object
else:  # The front looks at it in each turn: see zkv/compiled/states.c.
    _Base = compiled.store.ClockBase if compiled.COMPILED else object

_UPTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Includes the time for which the machine sleeps, if there is such a clock."""
_NS_PER_MS = 1_000_000
_read_ns = time.clock_gettime_ns


class Clock(_Base):
    """Returns the time in ms when called.

    Args:
        not_before: the earliest time to return, in ms.
        follows: begin exactly there, and go on by the uptime and by `follow`.
    """

    def __init__(self, not_before: int = 0, follows: bool = False) -> None:
        system = 0 if follows else time.time_ns() // _NS_PER_MS
        self.base = max(system, not_before) - _uptime()
        """The difference to the uptime, in ms. zkv/compiled/turn.c adds it, too."""

    def __call__(self) -> int:
        """Return the Unix time in ms; never less than before."""
        return self.base + _read_ns(_UPTIME) // _NS_PER_MS  # As `_uptime`, in one call less.

    def follow(self, other: int) -> None:
        """Go forward to the time of another clock, in ms, if that is later. One thread."""
        self.base = max(self.base, other - _uptime())


def _uptime() -> int:
    return time.clock_gettime_ns(_UPTIME) // _NS_PER_MS
