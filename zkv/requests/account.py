"""What one thread has answered: counters and times for INFO, and lines for the request log.

Each thread that serves has one account of its own, for as long as the server runs: who takes the
place of a thread that died goes on with it. Nobody else writes to it; INFO reads it at any moment,
and so may miss what is being counted just then.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

from zkv.log import RequestRecord, RunRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.log import AnyRecord, Subject

UNREADABLE: Final = "-"
"""Stands for the op of a request that could not be decoded."""

LATENCY_STEPS: Final = 64
"""Steps by which times are counted: less than 1 µs, 2 µs, 4 µs ... None is past the last one."""


class Account:
    """The account of one thread.

    Args:
        write_log: takes request records; None where requests are not logged.

    Attributes:
        latencies: op -> how many requests took how long, in `LATENCY_STEPS`, from when they were
            taken up to their reply; those of a run from when the run was.
        failures: (op, code) -> how many requests failed so.
        deaths: how often a bug, or the end of memory, ended a batch or the thread.
        unroutable: messages that had nowhere to reply to, of threads that have died.
    """

    def __init__(self, write_log: Callable[[list[AnyRecord]], None] | None = None) -> None:
        self._write_log = write_log
        self._records: list[AnyRecord] = []
        self.latencies: defaultdict[str, list[int]] = defaultdict(lambda: [0] * LATENCY_STEPS)
        self.failures: Counter[tuple[str, str]] = Counter()
        self.deaths = 0
        self.unroutable = 0

    @property
    def logs_requests(self) -> bool:
        """Whether a line is to be logged for each request."""
        return self._write_log is not None

    def add_call(
        self,
        op: str,
        subject: str | int | None,
        result: str,
        bytes_in: int,
        bytes_out: int,
        started: float,
    ) -> None:
        """Count a request that is being answered, and note it for the log.

        Args:
            op: its name.
            subject: its key, or how many keys it has.
            result: ``ok``, ``replayed``, or the code of its failure.
            bytes_in: of its body.
            bytes_out: of the reply's.
            started: when it was taken up, by `time.perf_counter`.
        """
        took = time.perf_counter() - started
        self.latencies[op][_step(took)] += 1
        if self._write_log is not None:
            self._records.append(
                RequestRecord(time.time(), op, subject, result, bytes_in, bytes_out, took)
            )

    def add_run(
        self, ops: list[str], subjects: list[Subject | None] | None, started: float
    ) -> None:
        """Count what a lane has answered and is leaving now, likewise. Not where an op is empty."""
        took = time.perf_counter() - started
        for op in set(ops):
            if op:
                self.latencies[op][_step(took)] += ops.count(op)
        if subjects is not None and any(subjects):
            self._records.append(RunRecord(time.time(), took, ops, subjects))

    def flush(self) -> None:
        """Hand over what is to be logged."""
        if self._records and self._write_log is not None:
            self._write_log(self._records)
            self._records = []


def _step(seconds: float) -> int:
    """Which of the `LATENCY_STEPS` a time belongs to: how many bits its µs take."""
    return int(seconds * 1e6).bit_length()
