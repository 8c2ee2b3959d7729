"""The garbage collector's part in a process that holds millions of objects for weeks.

Python's own schedule goes over everything at once, now and then: with a million keys that stalls
all threads for 20 to 80 ms, and for longer the more there are. A store is no garbage, though. So
what has survived a collection is frozen, and never looked at again, and each round, four times a
second, goes over what has come since the last. The memory of entries, replies and requests does
not depend on this: they are freed when the last reference goes, and nothing on the way of a request
is cyclic. What the collector would find is what an error or a library leaves, and it does, unless
that has lived for longer than a round.

This is for a process that is a server and nothing else: it changes the collector for all of it.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUND_SECONDS: Final = 0.25
NEVER: Final = 2**30
"""As a threshold of the oldest generation: its collection is up to the thread."""


@contextlib.contextmanager
def collecting() -> Iterator[None]:
    """Within, a thread collects and freezes. To be entered once the store is loaded."""
    usual = young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, NEVER)
    closing = threading.Event()
    thread = threading.Thread(target=_run, args=(closing,), name="zkv-collector")
    thread.start()
    try:
        yield
    finally:
        closing.set()
        thread.join()
        gc.set_threshold(*usual)
        gc.unfreeze()


def _run(closing: threading.Event) -> None:
    gc.freeze()
    while not closing.wait(ROUND_SECONDS):
        gc.collect()
        gc.freeze()
