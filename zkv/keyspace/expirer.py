"""The expiry thread: removes expired entries, and evicts what writers leave to it, in small steps.

It sleeps until the earliest deadline, and is woken when an earlier one is set, or when there is
something to evict (`zkv.keyspace.eviction`). Readers do not depend on it: they never see an expired
entry. It frees memory, and logs each removal as a change.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

from zkv.errors import NotLeader, ReadOnly, ShuttingDown

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.keyspace.store import Keyspace

_log = logging.getLogger("zkv.keyspace")

STEP: Final = 50
"""Entries removed in one hold of the lock: about 0.3 ms."""
PAUSE_SECONDS: Final = 0.0005
"""Pause between steps, so that other threads get the lock when many entries expire together."""
LONGEST_SLEEP: Final = 86_400.0
"""Seconds. A time to live may be longer than Python can wait."""
RETRY_SECONDS: Final = 1.0
"""Pause after the log refused a removal, or after a bug."""


class Expirer:
    """Removes expired entries, and evicts, in a thread of its own.

    Args:
        keyspace: holds the entries.
        removed: called after each step, to make the removals safe.
    """

    def __init__(self, keyspace: Keyspace, removed: Callable[[], None]) -> None:
        self._keyspace = keyspace
        self._removed = removed
        self._alarm = threading.Event()
        self._closing = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="zkv-expiry")
        keyspace.alarm = self._alarm.set

    def start(self) -> None:
        """Start the thread, if it does not run yet."""
        if self._thread.ident is None:
            self._thread.start()
        self._alarm.set()

    def close(self) -> None:
        """Stop the thread, if it was started, and wait for its end."""
        self._closing = True
        self._alarm.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            self._alarm.wait(self._step())
            self._alarm.clear()

    def _step(self) -> float | None:
        """Remove some; return the seconds until the next step, None = until the alarm."""
        try:
            rest = self._keyspace.expire(STEP)
            if self._keyspace.evict():
                rest = 0
            self._removed()
        except ReadOnly:
            return RETRY_SECONDS  # The log reports it; readers see no expired entry anyway.
        except (ShuttingDown, NotLeader):
            return None
        except BaseException:  # A bug, or no memory; the thread goes on.
            if not self._failing:  # Logged once, not at every attempt.
                self._failing = True
                _log.critical("entries cannot be expired or evicted; trying again", exc_info=True)
            return RETRY_SECONDS
        self._failing = False
        return None if rest is None else min(max(rest / 1000, PAUSE_SECONDS), LONGEST_SLEEP)
