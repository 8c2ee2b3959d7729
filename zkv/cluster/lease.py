"""The lease of a leader: until when no other member can lead.

A leader renews a record in etcd. It leads until the time at which it *sent* the last renewal that
was confirmed, plus the length of the lease, less a margin. Another member takes over only after it
has itself seen that record unchanged for the length of the lease plus the margin. Each measures
with its own clock, so only the rates of two clocks have to agree, within the margin.

No timer decides. `Lease.held` reads the clock: whoever answers a read asks it after the read, and
before the reply leaves. So a process that was stopped in between, for however long, answers nothing
that is out of date. The clock goes on while the machine sleeps (CLOCK_BOOTTIME). A machine of which
the whole clock was stopped, as a virtual one that is moved, is not covered.

This is the lease of Gray and Cheriton, "Leases: an efficient fault-tolerant mechanism for
distributed file cache consistency", SOSP 1989, kept in the log and not by etcd's lessor, which may
revoke or extend a lease wrongly when it is slow.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

_UPTIME: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
LEAST_MARGIN: Final = 0.5
"""Seconds of the smallest margin."""


def uptime() -> float:
    """Return the seconds since the machine's start, with those for which it has slept."""
    return time.clock_gettime(_UPTIME)


class _State(NamedTuple):
    """The state of a `Lease`, replaced in one step.

    Args:
        end: until when it is held, by its clock.
        lapses: how often it was held again after it had been over.
        given_up: it is not extended before it begins anew.
    """

    end: float
    lapses: int
    given_up: bool


class Lease:
    """Until when this member leads.

    Any thread may call any method.

    Args:
        seconds: the length of the lease.
        clock: returns seconds that do not stand still while the machine sleeps.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = uptime) -> None:
        self.seconds = seconds
        self.margin = max(LEAST_MARGIN, seconds / 10)
        self.clock = clock
        self._state = _State(0.0, 0, True)
        self._lock = threading.Lock()

    @property
    def held(self) -> bool:
        """True if no other member can lead at this moment."""
        return self.lapse is None

    @property
    def lapse(self) -> int | None:
        """None while it is held; else a number that is another one each time that it is over."""
        state = self._state  # Before the clock: it may be held again a moment later.
        return None if self.clock() < state.end else state.lapses

    @property
    def left(self) -> float:
        """Seconds for which it is still held; 0 if it is not."""
        return max(0.0, self._state.end - self.clock())

    @property
    def patience(self) -> float:
        """Seconds for which another member has to see the record unchanged before it takes over."""
        return self.seconds + self.margin

    def begin(self, sent_at: float) -> None:
        """Note that this member has taken over, by what it sent at this time, by `clock`."""
        with self._lock:
            self._extend(sent_at)

    def extend(self, sent_at: float) -> None:
        """Note that a renewal that was sent at this time was confirmed.

        Without effect after `end`: the renewal may have been under way meanwhile.
        """
        with self._lock:
            if not self._state.given_up:
                self._extend(sent_at)

    def end(self) -> None:
        """Give it up."""
        with self._lock:
            self._state = _State(0.0, self._state.lapses, True)

    def _extend(self, sent_at: float) -> None:
        state = self._state
        lapses = state.lapses + (self.clock() >= state.end)
        self._state = _State(max(state.end, sent_at + self.seconds - self.margin), lapses, False)
