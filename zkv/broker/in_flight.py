"""Counts the bytes of replies that wait, and refuses requests of connections beyond a limit.

A client that sends requests and does not read would fill the memory with replies. libzmq bounds
their number for each connection, not their bytes. So the bytes are counted from when a reply is
handed to libzmq, or parked, until its I/O thread has written it, and libzmq gives it back. While
more than the limit waits for a connection, its further requests are answered BUSY, and do not run.
Nothing is lost, and a write is repeated as after any BUSY. A user may have a limit of its own, for
all its connections together.

Only large replies are counted: small ones are bounded well enough by their number, and so cost
nothing. A connection may exceed the limit by what the requests add that are running then. A batch
ends early where its replies become large (`ENOUGH_BYTES`), so that is little.

`PythonInFlight` specifies the behaviour; `in_flight.c` does the same in C.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from zkv.errors import Overload

if TYPE_CHECKING:
    from collections.abc import Iterable

    import zmq

Owner = bytes | str
"""A connection, by its address; or a user, by name."""

COUNTED: Final = 4_096
"""Bytes of the smallest reply that is counted."""
RETRY_MS: Final = 100
"""When a client may repeat a request that was refused because it has not read its replies."""
OVERLOAD: Final = Overload(
    "too many bytes of replies wait for this connection: read them first; max_in_flight_bytes",
    RETRY_MS,
)
"""Why a request of a connection over its limit is refused."""
USER_OVERLOAD: Final = Overload(
    "too many bytes of replies wait for the connections of this user: read them first; "
    "max_in_flight_bytes of the user",
    RETRY_MS,
)
"""Why a request of a user over its limit is refused."""
SWEEP: Final = 1_000
"""Replies after which connections are forgotten that have gone without another request."""


class Parked:
    """Replies that are parked: they wait until ``done`` is set."""

    done = False


class PythonInFlight:
    """The replies that wait, by means of pyzmq. Any thread.

    Args:
        limit: bytes that may wait for one connection.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._waiting: dict[Owner, list[tuple[zmq.MessageTracker | Parked, int]]] = {}
        self._counted = 0

    def count(
        self, owners: Iterable[Owner], tracker: zmq.MessageTracker | Parked, size: int
    ) -> None:
        """Count a reply until the tracker says that it waits no longer."""
        with self._lock:
            for owner in owners:
                self._waiting.setdefault(owner, []).append((tracker, size))
            self._counted += 1
            if self._counted % SWEEP == 0:
                for each in list(self._waiting):
                    self._sizes(each)

    def is_over(self, owner: Owner, limit: int) -> bool:
        """Return True if more than ``limit`` bytes wait for an owner.

        One reply is never too much: libzmq gives it back only some time after it has written it.
        """
        if not self._waiting:
            return False
        with self._lock:
            sizes = self._sizes(owner)
        return len(sizes) > 1 and sum(sizes) > limit

    def _sizes(self, owner: Owner) -> list[int]:
        """Forget what has been written; return the sizes of the replies that still wait."""
        replies = [each for each in self._waiting.pop(owner, []) if not each[0].done]
        if replies:
            self._waiting[owner] = replies
        return [size for _, size in replies]
