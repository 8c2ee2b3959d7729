"""Runs the garbage collector in a process that holds millions of objects for weeks.

Python's own schedule now and then examines all objects at once: with a million keys this stops all
threads for 20 to 80 ms, and longer with more keys. But a store is no garbage. So objects that have
survived a collection are frozen, which excludes them from later ones. Four times a second, a thread
collects the objects that have been made since the last time. The memory of entries, replies and
requests does not depend on this: they are freed with their last reference, and requests make no
reference cycles. The collector finds cycles that errors and libraries leave, unless they have
lived for longer than one round.

Only for a process that runs nothing but a server, since the collector belongs to the whole process.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zkv.activity import Activity

ROUND_SECONDS: Final = 0.25
NEVER: Final = 2**30
"""Threshold of the oldest generation: only the thread collects it."""


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
    while not closing.wait(ROUND_SECONDS):
        with activity:
            gc.collect()
            gc.freeze()
