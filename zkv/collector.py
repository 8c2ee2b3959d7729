"""Runs the garbage collector in a process that holds millions of objects for weeks.

Python's own schedule now and then examines all objects at once: with a million keys this stops all
threads for 20 to 80 ms, and longer with more keys. But a store is no garbage. So objects that have
survived a collection are frozen, which excludes them from later ones. Four times a second, a thread
collects the objects that have been made since the last time. The memory of entries, replies and
requests does not depend on this: they are freed with their last reference, and requests make no
reference cycles. The collector finds cycles that errors and libraries leave, unless they have
lived for longer than one round.

The thread also has glibc return freed memory to the system. By itself that keeps what lies between
pieces in use: after a burst of large requests several times what the store needs, for ever. Limits
on malloc that avoid this from the start make a PUT of 1 MB cost twice as much.

Only for a process that runs nothing but a server, since the collector belongs to the whole process.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zkv.activity import Activity

ROUND_SECONDS: Final = 0.25
NEVER: Final = 2**30
"""Threshold of the oldest generation: only the thread collects it."""
TRIM_SECONDS: Final = 1.0
LONGEST_SECONDS: Final = 10
QUICK_BYTES: Final = 4 * 1024 * 1024
"""Growth in a second during which it is too early to return anything."""
GROWTH_BYTES: Final = 32 * 1024 * 1024
"""Growth of the process's memory after which it is worth to look for what can be returned."""


@contextlib.contextmanager
def collecting(activity: Activity) -> Iterator[None]:
    """Let a thread collect and freeze within the block. Enter it once the store is loaded.

    Args:
        activity: goes on while it collects.
    """
    usual = young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, NEVER)
    closing = threading.Event()
    thread = threading.Thread(target=_run, args=(closing, activity), name="zkv-collector")
    thread.start()
    try:
        yield
    finally:
        closing.set()
        thread.join()
        gc.set_threshold(*usual)
        gc.unfreeze()


def _run(closing: threading.Event, activity: Activity) -> None:
    gc.freeze()
    trimmer = Trimmer()
    due = time.monotonic() + TRIM_SECONDS
    while not closing.wait(ROUND_SECONDS):
        with activity:
            gc.collect()
            gc.freeze()
            if time.monotonic() >= due:
                trimmer.look()
                due = time.monotonic() + TRIM_SECONDS


class Trimmer:
    """Returns freed memory to the system after the process has grown.

    It looks once a second. While the process grows quickly it waits, at most `LONGEST_SECONDS`.
    """

    def __init__(self) -> None:
        # Other C libraries have no such function, and need none.
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._least = self._last = resident_bytes() or 0
        self._waited = 0

    def look(self) -> None:
        """Trim if it is worth it. Call this once a second."""
        now = resident_bytes()
        if now is None or self._trim is None:
            return
        rests, self._last = now < self._last + QUICK_BYTES, now
        self._least = min(self._least, now)
        if now <= self._least + GROWTH_BYTES:
            self._waited = 0
        elif rests or self._waited >= LONGEST_SECONDS:
            self._trim(0)
            self._least = self._last = resident_bytes() or 0
            self._waited = 0
        else:
            self._waited += 1


def resident_bytes() -> int | None:
    """Return the memory that this process has in use (RSS); None if the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        return None
