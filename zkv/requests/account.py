"""The account of one thread: what INFO tells of its requests, and lines for the request log.

Each thread of the broker has one account for as long as the server runs: the thread that replaces a
dead one continues its account. Only that thread writes to it, but for the switch of the request
log. INFO reads it without a lock, and so may miss requests that are being counted at that moment.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

from zkv import compiled
from zkv.activity import SHORT_SECONDS, Activities
from zkv.figures import Buckets
from zkv.log import RequestRecord, RunRecord
from zkv.protocol.codec import add_field
from zkv.requests.slow_log import Marks, SlowLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.log import AnyRecord
    from zkv.requests.batch import Batch

SUCCESSES: Final = frozenset({"ok", "replayed"})
"""The results of requests that succeed, in the request log."""
LARGE: Final = "large op"
"""The name of the activity of a thread that runs a request which takes long."""
UNREADABLE: Final = "-"
"""The op of a request that could not be decoded, in the statistics and the log."""


if TYPE_CHECKING:
    _Base = object
else:  # The front looks at it in each turn: see zkv/compiled/states.c.
    _Base = compiled.store.AccountBase if compiled.COMPILED else object


class Account(_Base):
    """The account of one thread.

    Args:
        write_log: takes request records; None if requests are never logged.
        logs_requests: log requests from the start.
        slow: takes the requests that were slow; None = nothing is.
        activities: what goes on in the server, to which this thread's requests belong.

    Attributes:
        logs_requests: true while a line is logged for each request. The supervisor changes it.
        activity: the thread runs a request.
        taken: number of requests that this thread has received from the front.
        queued: seconds for which these have waited in between.
        failures: (op, code) -> number of requests that failed with that code.
        deaths: how often a bug, or a lack of memory, ended a batch or the thread.
        unroutable: messages without a receiver, counted by mailboxes of threads that have died.
    """

    def __init__(
        self,
        write_log: Callable[[list[AnyRecord]], None] | None = None,
        logs_requests: bool = False,
        slow: SlowLog | None = None,
        activities: Activities | None = None,
    ) -> None:
        activities = activities or Activities()
        self.slow = slow or SlowLog(0, activities)
        self.activity = activities.new(LARGE, SHORT_SECONDS)
        self._write_log = write_log
        self.logs_requests = logs_requests
        self._records: list[AnyRecord] = []
        self._latencies: defaultdict[str, Buckets] = defaultdict(Buckets)
        self.of_lane = compiled.store.Latencies() if compiled.COMPILED else None
        """The latencies of the lane; None without the compiled store, since there is no lane."""
        self.taken = 0
        self.queued = 0.0
        self.failures: Counter[tuple[str, str]] = Counter()
        self.deaths = 0
        self.unroutable = 0

    def add_call(
        self,
        op: str,
        subject: str | int | None,
        result: str,
        bytes_in: int,
        bytes_out: int,
        took: float,
        trace: str | None = None,
        user: str | None = None,
    ) -> None:
        """Count a request, and record it for the request log.

        Args:
            op: its name.
            subject: its key, or its number of keys.
            result: one of `SUCCESSES`, or the error code.
            bytes_in: size of the request body.
            bytes_out: size of the reply body.
            took: seconds since the thread took it up.
            trace: the field of that name in the request.
            user: the name of the user; None = users are not known.
        """
        self._latencies[op].add_time(took)
        if result not in SUCCESSES:
            self.failures[op, result] += 1
        if self.logs_requests:
            self._records.append(
                RequestRecord(
                    time.time(), op, subject, result, bytes_in, bytes_out, took, trace, user
                )
            )

    def add_run(self, batch: Batch, up_to: int, executed: float) -> None:
        """Count and record the lane's answers that reveal no later revision than ``up_to``.

        Args:
            batch: the batch, before its replies are sent.
            up_to: the revision.
            executed: when the requests had run, by `time.perf_counter`.
        """
        if self.of_lane is not None and self.of_lane.add(batch, up_to, self.slow):
            self.explain(batch, up_to, executed)
        if self.logs_requests and (answers := batch.answered(up_to)):
            took = time.perf_counter() - batch.taken
            self._records.append(RunRecord(time.time(), took, answers))

    def explain(self, batch: Batch, up_to: int, executed: float) -> None:
        """Tell clients that ask for it, and the slow log, where the time went: see `add_run`."""
        finished, started = time.perf_counter(), batch.taken
        marks = Marks(started, 0.0, started, batch.waited, executed)
        for place in batch.timed_places(up_to):
            timing, reply = marks.of(batch, place).timing(finished), batch.reply(place)
            if reply is not None:
                batch.amend_reply(place, add_field(reply, timing.packed()))
        waiting = set(batch.places(up_to))
        answered = [place for place in batch.places(-1) if place not in waiting]
        self.slow.add_run(batch, answered, marks, finished, self.activity)

    def latencies(self) -> dict[str, Buckets]:
        """Return the latencies by op. Any thread.

        A latency is measured from when a worker takes up the request, or the front the batch, up to
        the reply.
        """
        known = {} if self.of_lane is None else self.of_lane.report()
        latencies = {op: Buckets(*counted) for op, counted in known.items()}
        for op, times in dict(self._latencies).items():
            latencies.setdefault(op, Buckets()).merge(times)
        return latencies

    def flush(self) -> None:
        """Pass the records to the request log."""
        if self._records and self._write_log is not None:
            self._write_log(self._records)
            self._records = []
