"""The loop of one process: when to send, and what to record.

Closed loop: each slot sends its next operation when the last one is done; the server sets the pace.
A latency runs from sending to the reply.

Open loop: operation k is due at begin + k / rate, whatever the server does, and goes out as soon as
a slot is free. Its latency runs from when it was due. So a stall counts for everything that should
have been sent meanwhile, not for one operation only (what wrk2 calls coordinated omission, and
avoids in the same way).

When a reply has not come for ``timeout``, its connections are given up and made anew with all that
was in flight: such an operation counts as lost, or is sent again where the source says so. So a run
goes on across a restart of the server, and tells how long nothing came: the gap.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from zkv.bench.connections import Connections
from zkv.bench.histogram import Counts
from zkv.bench.workload import Source

INTERVAL: Final = 250_000_000
"""Nanoseconds. Figures are collected for each of these by itself: for progress and rate plots."""
CHECK: Final = 50_000_000
"""Nanoseconds from one look at timeouts, intervals and stop requests to the next."""
GAP: Final = 100_000_000
"""Nanoseconds without any reply that count as a gap."""
PATIENCE: Final = 30_000_000_000
"""Nanoseconds behind the end after which what is in flight is given up for good."""

clock: Final = time.perf_counter_ns
"""The same in all processes of a machine."""


class Pace(Struct, frozen=True, kw_only=True):
    """When to send and when to stop; times in nanoseconds.

    ``rate`` is in operations per second, 0 = closed loop. The end comes after ``duration`` or after
    ``operations``, whichever is not 0.
    """

    begin: int
    rate: float = 0.0
    duration: int = 0
    operations: int = 0
    timeout: int = 5_000_000_000


class Interval(Struct):
    """What happened in one interval: latencies by kind, and the number of failed operations."""

    number: int
    counts: list[dict[int, int]]
    failed: int = 0


class Totals(Struct):
    """What a whole run adds up to, besides its intervals; nanoseconds."""

    elapsed: int = 0
    lost: int = 0
    resent: int = 0
    unsent: int = 0
    gap: int = 0
    gap_at: int = 0
    behind: int = 0
    """How much later than due an operation was sent at worst although a slot was free."""


class Loop:
    """Drives a source over connections.

    Args:
        connections: with as many slots as ``slots``.
        source: what to send.
        slots: how many operations may be in flight.
        pace: when to send.
        report: takes each interval when it is over.
        stopped: asked now and then whether to end early.
    """

    def __init__(
        self,
        connections: Connections,
        source: Source,
        slots: int,
        pace: Pace,
        report: Callable[[Interval], None],
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._connections = connections
        self._source = source
        self._pace = pace
        self._report = report
        self._stopped = stopped
        self._free = list(range(slots - 1, -1, -1))
        self._started = [0] * slots  # When the operation was sent, or was due.
        self._sent = [0] * slots  # When its request was sent; 0 = the slot is free.
        self._kind = [0] * slots
        self._launched = 0
        self._most = pace.operations or sys.maxsize
        self._end = pace.begin + pace.duration if pace.duration else 0
        self._period = 1e9 / pace.rate if pace.rate else 0.0
        self._interval = 0
        self._failed = 0
        self._counts: list[Counts] = self._fresh()
        self._checked = pace.begin
        self._last_reply = pace.begin
        self.totals = Totals()

    def run(self) -> Totals:
        """Until the end, and until everything in flight has been answered or given up."""
        while clock() < self._pace.begin:
            time.sleep(max(0.0, min(0.01, (self._pace.begin - clock()) / 1e9)))
        if self._period:
            self._open()
        else:
            self._closed()
        self._drain()
        self._count_unsent()
        self.totals.elapsed = max(1, max(self._last_reply, self._end) - self._pace.begin)
        self._close_interval(self._interval + 1)
        return self.totals

    # --- when to send ------------------------------------------------------------------------

    def _closed(self) -> None:
        receive, flush = self._connections.receive, self._connections.flush
        take, launch, free = self._take, self._launch, self._free
        now = clock()
        while True:  # At least once: a process may be late for the whole of a very short run.
            while free and self._launched < self._most:
                launch(free.pop(), now)
            flush()
            replies = receive(0.05)
            now = clock()
            for slot, reply in replies:
                take(slot, reply, now)
            if now - self._checked > CHECK:
                self._look_around(now)
            if self._over(now):
                break

    def _open(self) -> None:
        begin = self._pace.begin
        while True:
            now = clock()
            due = begin + int(self._launched * self._period)
            while self._free and due <= now and not self._over(due):
                if now - due > self.totals.behind and self._last_reply < due:
                    self.totals.behind = now - due
                self._launch(self._free.pop(), now, due)
                due = begin + int(self._launched * self._period)
            self._connections.flush()
            if self._over(max(now, due) if self._free else now):
                break
            wait = (due - now) / 1e9 if self._free else 0.05
            replies = self._connections.receive(max(0.0, min(wait, 0.05)))
            now = clock()
            for slot, reply in replies:
                self._take(slot, reply, now)
            if now - self._checked > CHECK:
                self._look_around(now)

    def _drain(self) -> None:
        """Take what is in flight, and send nothing more."""
        self._connections.flush()
        give_up = clock() + self._pace.timeout + PATIENCE
        while any(self._sent):
            for slot, reply in self._connections.receive(0.05):
                self._take(slot, reply, clock())
            self._connections.flush()
            now = clock()
            if now - self._checked > CHECK:
                self._look_around(now)
            if now > give_up:
                self.totals.lost += sum(1 for sent in self._sent if sent)
                break

    def _over(self, now: int) -> bool:
        if self._end and now >= self._end:
            return True
        return self._launched >= self._most

    def _launch(self, slot: int, now: int, due: int = 0) -> None:
        self._launched += 1
        self._kind[slot], request = self._source.next(slot)
        self._started[slot] = due or now
        self._sent[slot] = now
        self._connections.send(slot, request)

    def _count_unsent(self) -> None:
        """What was due before the end and was never sent, as no slot was free."""
        if self._period and self._end:
            due = int((self._end - self._pace.begin) / self._period)
            self.totals.unsent = max(0, due - self._launched)

    # --- what to record ----------------------------------------------------------------------

    def _take(self, slot: int, reply: bytes, now: int) -> None:
        verdict = self._source.reply(slot, reply)
        if now - self._last_reply > GAP and now - self._last_reply > self.totals.gap:
            self.totals.gap = now - self._last_reply
            self.totals.gap_at = self._last_reply - self._pace.begin
        self._last_reply = now
        if verdict is True:
            # `histogram.bucket`, in line: a call would cost as much as all of it.
            value = now - self._started[slot]
            shift = value.bit_length() - 11
            self._counts[self._kind[slot]][
                value if shift <= 0 else (shift << 10) + (value >> shift)
            ] += 1
        elif verdict is False:
            self._failed += 1
        else:
            self._sent[slot] = now
            self._connections.send(slot, verdict)
            return
        self._sent[slot] = 0
        self._free.append(slot)

    def _look_around(self, now: int) -> None:
        """Whatever need not be done for each reply."""
        self._checked = now
        number = (now - self._pace.begin) // INTERVAL
        if number > self._interval:
            self._close_interval(number)
        oldest = min((sent for sent in self._sent if sent), default=now)
        if now - oldest > self._pace.timeout:
            self._start_over(now)
        if (not self._end or now < self._end) and self._stopped():
            self._end = now

    def _start_over(self, now: int) -> None:
        """A reply has not come in time: connect anew; what was in flight is lost or sent again."""
        self._connections.renew()
        for slot, sent in enumerate(self._sent):
            if not sent:
                continue
            again = self._source.lost(slot)
            if again is None:
                self.totals.lost += 1
                self._sent[slot] = 0
                self._free.append(slot)
            else:
                self.totals.resent += 1
                self._sent[slot] = now
                self._connections.send(slot, again)
        self._connections.flush()

    def _fresh(self) -> list[Counts]:
        return [defaultdict(int) for _ in self._source.kinds]

    def _close_interval(self, following: int) -> None:
        self._report(Interval(self._interval, [dict(c) for c in self._counts], self._failed))
        self._interval = following
        self._counts = self._fresh()
        self._failed = 0
