"""Logs handshakes that failed, and connections that were cut off, in a bounded number of lines.

Whoever reaches an endpoint can fail as often as the network carries it, and from many addresses.
So an address is logged once a minute for each reason, and a minute has at most `LINES` such lines.
The others are counted, and when the minute is over, one line says how many they were. INFO counts
all.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("zkv.broker")

AUTH: Final = "auth"
PROTOCOL: Final = "protocol"
TIMEOUT: Final = "timeout"
SIZE: Final = "size"
OTHER: Final = "other"
REASONS: Final = (AUTH, PROTOCOL, TIMEOUT, SIZE, OTHER)
"""The reasons in INFO's ``stats.handshakes_failed``."""
MESSAGE: Final = "message"
FILES: Final = "files"
CUTS: Final = (MESSAGE, FILES)
"""The reasons in INFO's ``stats.connections_cut``."""
FOLLOWER: Final = "follower"
"""The reason of those in INFO's ``stats.feed.cut_off``."""

PERIOD_SECONDS: Final = 60.0
_FAILED: Final = "the handshake with %s failed: it %s%s"
_CUT: Final = "the connection of %s was cut off: the peer %s%s"
_MORE: Final = "%d more connections failed or were cut off in the last minute"
LINES: Final = 100
"""Lines about single addresses in a period."""


class Refusal(NamedTuple):
    """Why a handshake failed, or a connection was cut off."""

    reason: str
    """One of `REASONS`, or of `CUTS`, or `FOLLOWER`."""
    text: str
    """The reason in the log, where its subject is the handshake, or the peer."""
    level: int = logging.WARNING
    """The level of the log line."""


class RefusalLog:
    """Logs failed handshakes and the like. Any thread may use it.

    Args:
        clock: returns seconds; never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # Protects what is below.
        self._end: float | None = None  # Of the current period; None: it has not begun.
        self._logged: set[tuple[str, str]] = set()
        self._left_out = 0

    def note(self, address: str, failure: Refusal, detail: str = "") -> None:
        """Log that a handshake with ``address`` has failed, or that it was cut off; or count it.

        Args:
            address: of the peer.
            failure: the reason.
            detail: what to append to the reason.
        """
        self.tell()
        line = (address, failure.text)
        with self._lock:
            if self._end is None:
                self._end = self._clock() + PERIOD_SECONDS
            if line in self._logged or len(self._logged) >= LINES:
                self._left_out += 1
                return
            self._logged.add(line)
        told = _FAILED if failure.reason in REASONS else _CUT
        _log.log(failure.level, told, *line, detail)

    def tell(self) -> None:
        """If the period is over, log how many were left out in it."""
        with self._lock:
            if self._end is None or self._clock() < self._end:
                return
            self._end = None
            left_out, self._left_out = self._left_out, 0
            self._logged.clear()
        if left_out:
            _log.warning(_MORE, left_out)

    def seconds_left(self) -> float | None:
        """Return the seconds until `tell` has something to log; None: nothing was left out."""
        with self._lock:
            if self._end is None or not self._left_out:
                return None
            return max(0.0, self._end - self._clock())
