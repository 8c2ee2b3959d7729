"""The activities of a server beside its requests: a slow request tells what ran at the same time.

An `Activity` is one thing that goes on now and then, such as writing a snapshot. One thread begins
and ends it; any thread may ask whether it went on in an interval, and so needs no lock: it may miss
what begins or ends at that moment. Only the last few intervals are known, which is enough for
requests that have just been answered. All times are those of `time.perf_counter`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from zkv import compiled

SHORT_SECONDS: Final = 0.001
"""An interval shorter than this explains no slow request."""


class _PythonActivity:
    __slots__ = ("_least", "since")

    _least: float
    since: float | None


if TYPE_CHECKING:
    _Base = _PythonActivity
else:  # The log in C begins and ends one with each write: see zkv/compiled/figures.c.
    _Base = compiled.store.ActivityBase if compiled.COMPILED else _PythonActivity


class Activity(_Base):
    """One thing that goes on now and then. Use it with ``with``, or set `since` and call `end`.

    Args:
        name: its name in the slow log.
        least: an interval shorter than this does not count, in seconds.
    """

    __slots__ = ("_last", "name")

    KEPT: Final = 4
    """Intervals that are known, at most."""

    def __init__(self, name: str, least: float = 0.0) -> None:
        self.name = name
        self._least = least
        self._last: tuple[tuple[float, float], ...] = ()
        self.since = None
        """When the present interval began; None = it does not go on."""

    def __enter__(self) -> None:
        self.since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        since, now = self.since, time.perf_counter()
        if since is not None and now - since < self._least:  # As nearly always: a call less.
            self.since = None
        else:
            self.end(now)

    def end(self, now: float) -> None:
        """End the interval that began at `since`."""
        since, self.since = self.since, None
        if since is not None and now - since >= self._least:
            self._last = (*self._last[1 - self.KEPT :], (since, now))

    def overlaps(self, began: float, ended: float, before: float = float("inf")) -> bool:
        """Return True if it went on at any time from ``began`` to ``ended``.

        An interval that did not begin before ``before`` does not count.
        """
        since = self.since
        if since is not None and since < before and since + self._least <= ended:
            return True
        return any(
            first < before and first <= ended and last >= began for first, last in self._last
        )


class Activities:
    """All activities of a server."""

    def __init__(self) -> None:
        self._all: list[Activity] = []

    def new(self, name: str, least: float = 0.0) -> Activity:
        """Add an activity. Several may have one name."""
        activity = Activity(name, least)
        self._all.append(activity)
        return activity

    def beside(
        self, began: float, ended: float, own: Activity | None = None, started: float = 0.0
    ) -> list[str]:
        """Return the names of those that went on from ``began`` to ``ended``.

        Args:
            began: when the request arrived.
            ended: when it was answered.
            own: the activity to which the request itself belongs, from ``started`` on.
            started: when it began to run.
        """
        others = [each for each in self._all if each is not own and each.overlaps(began, ended)]
        if own is not None and own.overlaps(began, ended, before=started):
            others.append(own)
        return sorted({each.name for each in others})
