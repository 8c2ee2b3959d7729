"""Keeps descriptors back from connections, for the log and the snapshots.

The system gives out the lowest descriptor that is free. So a connection whose descriptor is beyond
the room that they have tells that all below are in use: it is cut off at once. Until then it has
one of those that are kept back, of which files need a few, for moments; `zkv.durability.files`
waits for one if many connections come at the same time.

libzmq ends the process if it finds no descriptor for a connection by ipc, and it may accept some
hundred before the thread that cuts them off gets to run. So ipc has only half of the descriptors.
"""

from __future__ import annotations

import logging
import resource
from typing import Final

_log = logging.getLogger("zkv.broker")

KEPT_BACK: Final = 64
"""Descriptors that connections do not get."""
LEAST_SHARE: Final = 4
"""At most 1/LEAST_SHARE of all descriptors is kept back."""
IPC_SHARE: Final = 2
"""Connections by ipc have the lowest 1/IPC_SHARE of all."""
WARNED: Final = 0.8
"""Share of the room in use from which the log warns."""
CALM: Final = 0.7
"""Share below which it may warn again."""


class Room:
    """The descriptors that connections may have. One thread uses it."""

    def __init__(self) -> None:
        self._warned = False

    def admits(self, descriptor: int, is_tcp: bool) -> bool:
        """Return True if a new connection may keep its descriptor; warn if few are left."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)  # Others may have changed it.
        room = room_for_connections(limit, is_tcp)
        if descriptor >= WARNED * room and not self._warned:
            self._warned = True
            _log.warning(
                "%d of %d files are open; connections by %s are refused from %d on: raise the "
                "limit (ulimit -n, or LimitNOFILE= in a systemd unit)",
                descriptor + 1, limit, "tcp" if is_tcp else "ipc", room,
            )  # fmt: skip
        elif descriptor < CALM * room:
            self._warned = False
        return descriptor < room


def room_for_connections(limit: int, is_tcp: bool) -> int:
    """Return the first descriptor that a connection does not get.

    Args:
        limit: number of files that the process may open.
        is_tcp: False: it came by ipc.
    """
    if not is_tcp:
        return limit // IPC_SHARE
    return limit - min(KEPT_BACK, limit // LEAST_SHARE)
