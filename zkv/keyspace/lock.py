"""The lock of the keyspace, which counts how long threads have waited for it.

Nearly always it is free. Then it costs no look at a clock: a thread looks only if it has to wait.
"""

from __future__ import annotations

import threading
import time

from zkv.figures import Buckets


class _Own(threading.local):
    """The part that belongs to each thread."""

    waited = 0.0


class StoreLock:
    """A lock, to be used with ``with``.

    Attributes:
        acquire: as of `threading.Lock`. Who uses it counts a wait by `note`.
        release, locked: likewise.
        waits: the times for which threads have waited. Lock held.
    """

    __slots__ = ("_own", "acquire", "locked", "release", "waits")

    def __init__(self) -> None:
        lock = threading.Lock()
        self.acquire = lock.acquire
        self.release = lock.release
        self.locked = lock.locked
        self.waits = Buckets()
        self._own = _Own()

    def __enter__(self) -> None:
        if not self.acquire(False):
            began = time.perf_counter()
            self.acquire()
            self.note(began)

    def __exit__(self, _kind: object, _error: object, _traceback: object) -> None:
        self.release()

    @property
    def waited(self) -> float:
        """Seconds for which the calling thread has waited so far."""
        return self._own.waited

    def note(self, began: float) -> float:
        """Count a wait that began then, by `time.perf_counter`, and has just ended. Lock held.

        Returns the seconds for which the thread has waited.
        """
        seconds = time.perf_counter() - began
        self.waits.add_time(seconds)
        self._own.waited += seconds
        return seconds
