"""The account of one thread: what INFO tells of its requests, and lines for the request log.

Each thread of the broker has one account for as long as the server runs: the thread that replaces a
dead one continues its account. Only that thread writes to it, but for the switch of the request
log. INFO reads it without a lock, and so may miss requests that are being counted at that moment.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

from zkv.figures import Buckets, step_of
from zkv.log import RequestRecord, RunRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.log import AnyRecord
    from zkv.requests.batch import Batch

SUCCESSES: Final = frozenset({"ok", "replayed"})
"""The results of requests that succeed, in the request log."""
UNREADABLE: Final = "-"
"""The op of a request that could not be decoded, in the statistics and the log."""


Passed = tuple[int, int]
"""Requests that have passed a point on their way: how many, and the sum of the times at which they
did, in ns of `time.perf_counter`. As an int, the sum stays exact."""


class Account:
    """The account of one thread.

    Args:
        write_log: takes request records; None if requests are never logged.
        logs_requests: log requests from the start.

    Attributes:
        logs_requests: true while a line is logged for each request. The supervisor changes it.
        latencies: by op. A latency is measured from when a worker takes up the request, or the
            front the batch, up to the reply.
        passed: the requests that the front has left to the workers, or that a worker has received.
        failures: (op, code) -> number of requests that failed with that code.
        deaths: how often a bug, or a lack of memory, ended a batch or the thread.
        unroutable: messages without a receiver, counted by mailboxes of threads that have died.
    """

    def __init__(
        self,
        write_log: Callable[[list[AnyRecord]], None] | None = None,
        logs_requests: bool = False,
    ) -> None:
        self._write_log = write_log
        self.logs_requests = logs_requests
        self._records: list[AnyRecord] = []
        self.latencies: defaultdict[str, Buckets] = defaultdict(Buckets)
        self.passed: Passed = (0, 0)
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
        started: float,
    ) -> None:
        """Count a request, and record it for the request log.

        Args:
            op: its name.
            subject: its key, or its number of keys.
            result: one of `SUCCESSES`, or the error code.
            bytes_in: size of the request body.
            bytes_out: size of the reply body.
            started: when the thread took it up, by `time.perf_counter`.
        """
        took = time.perf_counter() - started
        latencies = self.latencies[op]
        latencies.counts[step_of(took)] += 1
        latencies.total += took
        if result not in SUCCESSES:
            self.failures[op, result] += 1
        if self.logs_requests:
            self._records.append(
                RequestRecord(time.time(), op, subject, result, bytes_in, bytes_out, took)
            )

    def add_run(self, batch: Batch, up_to: int, started: float) -> None:
        """Count and record the lane's answers that reveal no later revision than ``up_to``.

        Args:
            batch: the batch, before its replies are sent.
            up_to: the revision.
            started: when the front took up the batch, by `time.perf_counter`.
        """
        took = time.perf_counter() - started
        step = step_of(took)
        for op, count in batch.ops(up_to).items():
            latencies = self.latencies[op]
            latencies.counts[step] += count
            latencies.total += took * count
        if self.logs_requests and (answers := batch.answered(up_to)):
            self._records.append(RunRecord(time.time(), took, answers))

    def add_passed(self, number: int, at: float) -> None:
        """Count requests that have passed, at a time by `time.perf_counter`."""
        before, times = self.passed
        self.passed = before + number, times + number * int(at * 1e9)  # Both at once, for readers.

    def flush(self) -> None:
        """Pass the records to the request log."""
        if self._records and self._write_log is not None:
            self._write_log(self._records)
            self._records = []
