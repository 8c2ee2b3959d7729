"""The lock of the keyspace, which counts how long threads have waited for it.

Nearly always it is free. Then it costs no look at a clock: a thread looks only if it has to wait.
"""

from __future__ import annotations

import threading
import time

from zkv.figures import Buckets


class StoreLock:
    """A lock, to be used with ``with``.

    Attributes:
        acquire: as of `threading.Lock`. Who uses it counts a wait by `note`.
        release, locked: likewise.
        waits: the times for which threads have waited. Lock held.
    """

    __slots__ = ("acquire", "locked", "release", "waits")

    def __init__(self) -> None:
        lock = threading.Lock()
        self.acquire = lock.acquire
        self.release = lock.release
        self.locked = lock.locked
        self.waits = Buckets()

    def __enter__(self) -> None:
        if not self.acquire(False):
            began = time.perf_counter()
            self.acquire()
            self.note(began)

    def __exit__(self, _kind: object, _error: object, _traceback: object) -> None:
        self.release()

    def note(self, began: float) -> None:
        """Count a wait that began then, by `time.perf_counter`, and has just ended. Lock held."""
        self.waits.add_time(time.perf_counter() - began)
