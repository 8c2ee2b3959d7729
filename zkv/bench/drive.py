"""The loop of one process of the generator: when to send, and what to record.

Closed loop: each slot sends its next operation when the previous one is done, so the server sets
the pace. The latency is the time from sending to the reply.

Open loop: operation k is due at begin + k / rate, whatever the server does, and is sent as soon as
a slot is free. The latency is the time from when it was due to the reply. So a stall counts for all
operations that should have been sent meanwhile, not only for one. (wrk2 avoids this error, which it
calls coordinated omission, in the same way.)

If a reply does not arrive within ``timeout``, the loop closes all connections and connects again.
The operations in flight count as lost, or are sent again if the source wants that. So a run
continues across a restart of the server, and reports the longest time without any reply: the gap.
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
"""Nanoseconds. Figures are collected per interval of this length, for progress and plots."""
CHECK: Final = 50_000_000
"""Nanoseconds between checks for timeouts, ends of intervals and stop requests."""
GAP: Final = 100_000_000
"""A time without any reply counts as a gap if it is longer than this, in nanoseconds."""
PATIENCE: Final = 30_000_000_000
"""Nanoseconds after the end, beyond the timeout, until operations in flight count as lost."""

clock: Final = time.perf_counter_ns
"""A clock that all processes of a machine share."""


class Pace(Struct, frozen=True, kw_only=True):
    """When to send and when to stop; times are in nanoseconds.

    ``rate`` is in operations per second, 0 = closed loop. The run ends after ``duration`` or after
    ``operations``, whichever is not 0.
    """

    begin: int
    rate: float = 0.0
    duration: int = 0
    operations: int = 0
    timeout: int = 5_000_000_000


class Interval(Struct):
    """The figures of one interval: latencies by kind, and the number of failed operations."""

    number: int
    counts: list[dict[int, int]]
    failed: int = 0


class Totals(Struct):
    """The totals of a run, in addition to its intervals; times are in nanoseconds."""

    elapsed: int = 0
    lost: int = 0
    resent: int = 0
    unsent: int = 0
    gap: int = 0
    gap_at: int = 0
    behind: int = 0
    """The longest time that an operation was sent too late although a slot was free."""


class Loop:
    """Sends the requests of a source over connections, and records the replies.

    Args:
        connections: connections with ``slots`` slots.
        source: makes the requests.
        slots: the number of operations that may be in flight.
        pace: when to send and to stop.
        report: called with each interval when it is over.
        stopped: called now and then; a result of True ends the run early.
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
        """Run until the end, and until every operation in flight is answered or counts as lost."""
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
        while True:  # At least once, since a very short run may be over before a process begins.
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
        """Wait for the replies in flight, and begin no new operation."""
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
        """Count the operations that were due before the end and never sent: no slot was free."""
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
            # `histogram.bucket`, inlined: a call would double the cost.
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
        """Do the work that is not needed for each reply: timeouts, intervals, stop requests."""
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
        """Connect again after a timeout; operations in flight are lost or sent again."""
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
