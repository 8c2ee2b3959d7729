"""A log in etcd without servers: what a leader appends, and what members claim."""

from __future__ import annotations

import itertools
import random

from zkv.cluster.joining import found
from zkv.cluster.records import Claim, Fence, LeaderRecord, LogBatch, MemberRecord
from zkv.cluster.shared_log import SharedLog, Tenure
from zkv.config import build
from zkv.etcd.errors import EtcdError

NOBODY = LeaderRecord(term=0, member="", endpoints=[], renewals=0, time=0)
_nonces = itertools.count(1)


class HandClock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class WrittenLog:
    """A log, with a leader that appends what a test says.

    Args:
        log: of a prefix where no store is yet.
    """

    def __init__(self, log: SharedLog) -> None:
        self.log = log
        found(log, build({}).limits)
        self.payloads: list[bytes] = []
        self.starts: list[int] = []
        """The log number with which each batch begins."""
        self.tenure = self.take_over("leader")

    def take_over(self, member: str) -> Tenure:
        """Have another member lead; the tenure of the former one is over."""
        seen = self.log.look()
        fence = Fence(seen.fence.term + 1, member, str(next(_nonces)))
        assert self.log.take_over(seen, fence, NOBODY)
        self.tenure = Tenure(self.log, self.log.look())
        return self.tenure

    def append(self, *sizes: int) -> None:
        """Append a batch with commits of so many bytes each."""
        rng = random.Random(len(self.payloads))
        payloads = [bytes([0x94]) + rng.randbytes(size - 1) for size in sizes]
        self.starts.append(len(self.payloads) + 1)
        self.payloads += payloads
        self.tenure.append(batch(self.tenure, payloads), never)

    def claim(self, name: str, newest: int, second: int = 0) -> None:
        """Have a member say which snapshots it has."""
        claim = Claim(newest, 1, second)
        self.log.declare(MemberRecord(name=name, endpoints=[], applied=newest, time=0, claim=claim))

    @property
    def kept(self) -> list[int]:
        """The log numbers with which the batches begin that are in etcd."""
        begin, end = self.log.keys.log_from(0)
        items = self.log.etcd.read(begin, end, keys_only=True, timeout=5.0).items
        return sorted({self.log.keys.place(item.key).first_lsn for item in items})

    @property
    def first(self) -> int:
        """Where the log begins."""
        return self.log.look().first.lsn


def batch(tenure: Tenure, payloads: list[bytes]) -> LogBatch:
    """The batch of some payloads, which need not be commits."""
    head = tenure.head
    first = head.lsn + 1
    return LogBatch(
        tenure.term, first, head.lsn + len(payloads), 0, 0, head.crc, head.size, payloads
    )


def never(_: EtcdError) -> bool:
    """Try nothing again."""
    return False
