"""The slow log: the newest requests that took long, with where their time went.

A request goes through four parts: it waits for a thread (queue), for the lock of the store (lock),
it runs (execute), and its reply waits until what it reveals is safe (sync). `Marks` are the times
between them. Of requests that run together, the parts are those of the whole batch.

The threads of the broker add entries, and any thread reads them. A deque needs no lock for that.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import UNSET, Struct, UnsetType
from msgspec.msgpack import encode

from zkv.protocol.codec import decode
from zkv.protocol.requests import OP_NAMES

if TYPE_CHECKING:
    from zkv.activity import Activities, Activity
    from zkv.protocol.requests import AnyRequest
    from zkv.requests.batch import Batch

KEPT: Final = 1_000
"""Entries that are kept at most."""
KEPT_OF_A_BATCH: Final = 16
"""Entries of requests that were answered together, at most: they took as long for one reason."""


KEPT_OF_A_KEY: Final = 256
"""Characters of a key that an entry has, at most."""


class Timing(Struct, frozen=True):
    """How long each part of a request took, in whole microseconds; ``total`` is their sum."""

    queue: int
    lock: int
    execute: int
    sync: int
    total: int

    def packed(self) -> bytes:
        """Return the field `timing` of a reply, packed with its name."""
        return encode({"timing": self})[1:]


class Marks(NamedTuple):
    """The times between the parts of a request, by `time.perf_counter`.

    Args:
        arrived: when the front took it up.
        lock_wait: seconds for which the front then waited for the lock, before it left it.
        started: when it began to run.
        waited: seconds for which it then waited for the lock.
        executed: when it had run.
    """

    arrived: float
    lock_wait: float
    started: float
    waited: float
    executed: float

    def of(self, batch: Batch, place: int) -> Marks:
        """Return the times of one request in a batch that has these."""
        return self._replace(arrived=batch.arrived(place), lock_wait=batch.lock_wait(place))

    def timing(self, finished: float) -> Timing:
        """Return how long each part took, if the reply was made at ``finished``."""
        parts = (
            self.started - self.arrived - self.lock_wait,
            self.lock_wait + self.waited,
            self.executed - self.started - self.waited,
            finished - self.executed,
        )
        queue, lock, execute, sync = (round(max(0.0, part) * 1e6) for part in parts)
        return Timing(queue, lock, execute, sync, queue + lock + execute + sync)


class SlowEntry(Struct, frozen=True, kw_only=True):
    """One slow request.

    Args:
        time: Unix time of its reply, in ms.
        user: the client's user; None = users are not known.
        op: its op.
        key: its key, or the first `KEPT_OF_A_KEY` characters of it.
        keys: its number of keys, if it has not just one.
        bytes: size of its body.
        timing: how long each part took.
        batch: number of requests that were run together.
        beside: what the server did at the same time.
        trace: the field of that name in the request.
    """

    time: int
    user: str | None = None
    op: str
    key: str | UnsetType = UNSET
    keys: int | UnsetType = UNSET
    bytes: int
    timing: Timing
    batch: int
    beside: list[str]
    trace: str | None


class SlowLog:
    """The slow log of a server.

    Args:
        seconds: a request that takes as long is slow; 0 = none is.
        activities: what may go on beside a request.
    """

    def __init__(self, seconds: float, activities: Activities) -> None:
        self._entries: deque[SlowEntry] = deque(maxlen=KEPT)
        self._activities = activities
        self.threshold: float
        """Seconds from which a request is slow; infinite = none is."""
        self.set_threshold(seconds)

    def set_threshold(self, seconds: float) -> None:
        """Change what counts as slow; 0 = nothing does. Any thread."""
        self.threshold = seconds or float("inf")

    def newest(self, limit: int) -> list[SlowEntry]:
        """Return at most ``limit`` entries, the newest first."""
        entries = list(self._entries)  # In one step, which others cannot interrupt.
        return entries[::-1][:limit]

    def clear(self) -> None:
        """Remove all entries."""
        self._entries.clear()

    def add(
        self,
        request: AnyRequest,
        size: int,
        marks: Marks,
        finished: float,
        batch: int,
        own: Activity | None = None,
    ) -> None:
        """Add a request.

        Args:
            request: the request.
            size: size of its body.
            marks: its times.
            finished: when its reply was made.
            batch: number of requests that ran together.
            own: the activity of the thread that ran it.
        """
        subject = request.subject()
        with contextlib.suppress(MemoryError):  # The reply matters more.
            self._entries.append(
                SlowEntry(
                    time=int(time.time() * 1000),
                    op=OP_NAMES[type(request)],
                    key=subject[:KEPT_OF_A_KEY] if isinstance(subject, str) else UNSET,
                    keys=subject if isinstance(subject, int) else UNSET,
                    bytes=size,
                    timing=marks.timing(finished),
                    batch=batch,
                    beside=self._activities.beside(marks.arrived, finished, own, marks.started),
                    trace=request.trace,
                )
            )

    def add_run(
        self,
        batch: Batch,
        places: list[int],
        marks: Marks,
        finished: float,
        own: Activity | None = None,
    ) -> None:
        """Add requests that the lane has answered, as far as they are slow; see `add`."""
        slow = [each for each in places if finished - batch.arrived(each) >= self.threshold]
        for place in slow[:KEPT_OF_A_BATCH]:
            body = batch[place]
            if not isinstance(body, bytes):
                continue  # There is no memory for it.
            with contextlib.suppress(MemoryError):
                of = marks.of(batch, place)
                self.add(decode(body), len(body), of, finished, len(batch), own)
