"""The slow log: the newest requests that took long, with where their time went.

A request goes through four parts: it waits for a thread (queue), for the lock of the store (lock),
it runs (execute), and its reply waits until what it reveals is safe (sync). `Marks` are the times
between them. Of requests that run together, the parts are those of the whole batch.

Only the newest entries are kept; but of each minute of a day there is a summary, with its slowest
request, which later ones do not displace. One lock guards both: nobody holds it for long, and only
slow requests take it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from operator import add
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from msgspec import UNSET, Struct, UnsetType
from msgspec.msgpack import encode

from zkv import compiled
from zkv.protocol.codec import decode
from zkv.protocol.requests import OP_NAMES

if TYPE_CHECKING:
    from zkv.activity import Activities, Activity
    from zkv.protocol.requests import AnyRequest
    from zkv.requests.batch import Batch
    from zkv.users.rights import User

KEPT: Final = 1_000
"""Entries that are kept at most."""
MINUTES: Final = 24 * 60
"""Minutes that are kept, of those in which a request was slow."""
MINUTE: Final = 60_000
"""Milliseconds."""
KEPT_OF_A_BATCH: Final = 16
"""Entries of requests that were answered together, at most: they took as long for one reason."""
KEPT_A_SECOND: Final = 1_000
"""Entries of simple requests in a second, at most, after `KEPT_AT_ONCE`. An entry takes several
times what a simple request does: a server that is slow because it is busy must not get busier."""
KEPT_AT_ONCE: Final = 1_000
"""Entries of simple requests that may come at once, after a time without any."""


KEPT_OF_A_KEY: Final = 256
"""Characters of a key that an entry has, at most."""


Told = tuple[str, str | int | None, str | None, int]
"""The op of a request, its key or its number of keys, its trace, and the size of its body."""


def told(request: AnyRequest, size: int) -> Told:
    """Return what is told of a request whose body has ``size`` bytes."""
    return OP_NAMES[type(request)], request.subject(), request.trace, size


class Timing(Struct, frozen=True):
    """How long each part of a request took, in whole microseconds; ``total`` is their sum."""

    queue: int
    lock: int
    execute: int
    sync: int
    total: int

    def __add__(self, other: Timing) -> Timing:
        return Timing(*map(add, msgspec.structs.astuple(self), msgspec.structs.astuple(other)))

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


class SlowMinute(Struct, frozen=True, kw_only=True):
    """The slow requests of one minute.

    Args:
        time: when it began: Unix time in ms.
        count: number of requests.
        timing: the sums of their parts.
        beside: how many of them were beside what.
        slowest: the one that took longest.
    """

    time: int
    count: int
    timing: Timing
    beside: dict[str, int]
    slowest: SlowEntry

    def plus(self, entry: SlowEntry) -> SlowMinute:
        """Return the summary with another one."""
        return SlowMinute(
            time=self.time,
            count=self.count + 1,
            timing=self.timing + entry.timing,
            beside=self.beside | {name: self.beside.get(name, 0) + 1 for name in entry.beside},
            slowest=max(self.slowest, entry, key=lambda each: each.timing.total),
        )


if TYPE_CHECKING:
    _Base = object
else:  # The front looks at it in each turn: see zkv/compiled/states.c.
    _Base = compiled.store.SlowLogBase if compiled.COMPILED else object


class SlowLog(_Base):
    """The slow log of a server.

    Args:
        seconds: a request that takes as long is slow; 0 = none is.
        activities: what may go on beside a request.
    """

    def __init__(self, seconds: float, activities: Activities) -> None:
        self._lock = threading.Lock()  # Guards the two below.
        self._entries: deque[SlowEntry] = deque(maxlen=KEPT)
        self._minutes: deque[SlowMinute] = deque(maxlen=MINUTES)
        self._activities = activities
        self._paid_until = 0.0
        self.resumes = 0.0
        """When simple requests are looked at again, by `time.perf_counter`."""
        self.threshold: float
        """Seconds from which a request is slow; infinite = none is."""
        self.set_threshold(seconds)

    def set_threshold(self, seconds: float) -> None:
        """Change what counts as slow; 0 = nothing does. Any thread."""
        self.threshold = seconds or float("inf")

    def newest(self, limit: int) -> tuple[list[SlowEntry], list[SlowMinute]]:
        """Return at most ``limit`` entries, and at most as many minutes, the newest first."""
        with self._lock:
            entries, minutes = list(self._entries), list(self._minutes)
        return entries[::-1][:limit], minutes[::-1][:limit]

    def clear(self) -> None:
        """Remove everything."""
        with self._lock:
            self._entries.clear()
            self._minutes.clear()
            self._paid_until = self.resumes = 0.0

    def add(
        self,
        of: Told,
        marks: Marks,
        finished: float,
        batch: int,
        own: Activity | None = None,
        user: User | None = None,
    ) -> None:
        """Add a request. Raises MemoryError.

        Args:
            of: what is told of it.
            marks: its times.
            finished: when its reply was made.
            batch: number of requests that ran together.
            own: the activity of the thread that ran it.
            user: whose it was; None = users are not known.
        """
        op, subject, trace, size = of
        entry = SlowEntry(
            time=int(time.time() * 1000),
            user=None if user is None else user.name,
            op=op,
            key=subject[:KEPT_OF_A_KEY] if isinstance(subject, str) else UNSET,
            keys=subject if isinstance(subject, int) else UNSET,
            bytes=size,
            timing=marks.timing(finished),
            batch=batch,
            beside=self._activities.beside(marks.arrived, finished, own, marks.started),
            trace=trace,
        )
        with self._lock:
            self._keep(entry)

    def _keep(self, entry: SlowEntry) -> None:
        """Keep an entry, and count it in its minute. Lock held."""
        self._entries.append(entry)
        began = entry.time // MINUTE * MINUTE
        # A clock that was set back begins no minute again.
        if self._minutes and self._minutes[-1].time >= began:
            self._minutes[-1] = self._minutes[-1].plus(entry)
        else:
            beside = dict.fromkeys(entry.beside, 1)
            self._minutes.append(
                SlowMinute(time=began, count=1, timing=entry.timing, beside=beside, slowest=entry)
            )

    def _pay(self, entries: int, now: float) -> None:
        """Note that so many entries are made (the generic cell rate algorithm, ITU-T I.371).

        Threads that do so at the same time may lose one another's: then there are some more.
        """
        self._paid_until = max(self._paid_until, now) + entries / KEPT_A_SECOND
        self.resumes = self._paid_until - (KEPT_AT_ONCE - 1) / KEPT_A_SECOND

    def add_run(
        self,
        batch: Batch,
        places: list[int],
        marks: Marks,
        finished: float,
        own: Activity | None = None,
    ) -> None:
        """Add requests that the lane has answered, as far as they are slow; see `add`.

        There are at most `KEPT_OF_A_BATCH`, and `KEPT_A_SECOND`.
        """
        if finished < self.resumes:
            return
        slow = [each for each in places if finished - batch.arrived(each) >= self.threshold]
        del slow[KEPT_OF_A_BATCH:]
        self._pay(len(slow), finished)
        for place in slow:
            with contextlib.suppress(MemoryError):
                of: Told | None = batch.summary(place)
                if of is None:
                    body = batch[place]
                    if not isinstance(body, bytes):
                        continue  # There is no memory for it.
                    of = told(decode(body), len(body))
                times, user = marks.of(batch, place), batch.user(place)
                self.add(of, times, finished, len(batch), own, user)
