"""Tells that memory is about to run out, as far as the process has a limit (``ulimit -v``).

The limit of a container is another matter: the system ends the process that exceeds it.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
from typing import Final

from zkv.errors import OutOfMemory

NO_MEMORY: Final = "out of memory"

MARGIN_BYTES: Final = 16 << 20
"""Memory that must be left, for reads, snapshots and libzmq, which ends the process without any."""


LARGE_BYTES: Final = 1 << 20
"""The size from which memory is tried; for less, `MARGIN_BYTES` is enough."""
COPIES: Final = 3
"""Copies of a large request or reply that exist at once."""


def is_short(more: int = 0) -> bool:
    """Return True if the process cannot have `MARGIN_BYTES`, and ``more``. It takes 5 us."""
    with contextlib.suppress(OSError, MemoryError), mmap.mmap(-1, MARGIN_BYTES + more):
        return False
    return True


def require(size: int) -> None:
    """Raise OutOfMemory if there is none for a request or a reply of ``size`` bytes.

    msgspec crashes if memory ends while it packs.
    """
    if size > LARGE_BYTES and is_short(COPIES * size):
        raise OutOfMemory(NO_MEMORY)


def has_run_out(error: BaseException) -> bool:
    """Return True if an error says that there is no memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    )
