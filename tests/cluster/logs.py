"""The log in etcd without a server: clients of which a test decides what becomes of each call."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Final

from tests.etcd.fake import NONE, FakeClient, FakeEtcd, Faults
from zkv.cluster.records import FORMAT, Fence, LeaderRecord, LogBatch, LogHead, StoreRecord
from zkv.cluster.shared_log import Seen, SharedLog, Tenure
from zkv.etcd import Compare, EtcdError, Op, PutOp, TxnResult, UnknownOutcomeError
from zkv.keyspace.change import Commit

STORE: Final = StoreRecord(format=FORMAT, store="s", limits={}, first_lsn=1)
_numbers = itertools.count(1)


def new_log(etcd: FakeEtcd, name: str = "", faults: Faults = NONE) -> SharedLog:
    return SharedLog(etcd.client(name, faults), "store", 1.0)


def new_store() -> tuple[FakeEtcd, SharedLog]:
    """An etcd with an empty store, and a log without faults."""
    etcd = FakeEtcd(1, threads=False)
    log = new_log(etcd)
    assert log.found(STORE, Fence(0, "", ""), LogHead(0, 0, 0, 0))
    return etcd, log


def take_over(log: SharedLog, nonce: str) -> Seen | None:
    """Take over, if that can be known; what is there then."""
    seen = log.look()
    leader = LeaderRecord(term=seen.fence.term + 1, member=nonce, endpoints=[], renewals=0, time=1)
    log.take_over(seen, Fence(seen.fence.term + 1, nonce, nonce), leader)
    seen = log.look()
    return seen if seen.fence.nonce == nonce else None


def lead(log: SharedLog, nonce: str = "one") -> Tenure:
    """Take over, where nothing fails."""
    seen = take_over(log, nonce)
    assert seen is not None
    tenure = Tenure(log, seen)
    tenure.clear()
    return tenure


def next_batch(tenure: Tenure, commits: int = 1) -> LogBatch:
    """A batch that follows the head; each has another time, and so other bytes."""
    head, time = tenure.head, next(_numbers)
    payloads = [
        Commit(head.rev, time, head.lsn + each, ()).pack() for each in range(1, commits + 1)
    ]
    return LogBatch.after(head, tenure.term, payloads, 1)


def never(_: EtcdError) -> bool:
    return False


def always(_: EtcdError) -> bool:
    return True


def whole_log(log: SharedLog) -> list[bytes]:
    """The payloads of all commits up to the head."""
    head = log.look().head.lsn
    payloads: list[bytes] = []
    while len(payloads) < head:
        for batch in log.read(len(payloads), head):
            payloads += batch.payloads
    return payloads


class Hooked(FakeClient):
    """A client of which a test decides what becomes of each transaction."""

    def __init__(self, etcd: FakeEtcd) -> None:
        super().__init__(etcd, random.Random(0), NONE)
        self.fate: Callable[[Sequence[Op]], str] = lambda _: ""
        """Returns "lost", "unanswered", "late" or nothing."""
        self.late: list[Callable[[], object]] = []

    def transact(
        self,
        compares: Sequence[Compare],
        then: Sequence[Op],
        otherwise: Sequence[Op] = (),
        *,
        timeout: float,
    ) -> TxnResult:
        fate = self.fate(then)

        def call() -> TxnResult:
            return super(Hooked, self).transact(compares, then, otherwise, timeout=timeout)

        if not fate:
            return call()
        if fate == "late":
            self.late.append(call)
        elif fate == "unanswered":
            call()
        raise UnknownOutcomeError("no answer came in time", "hooked")

    def arrive(self) -> None:
        """Have etcd carry out what is late."""
        late, self.late = self.late, []
        for call in late:
            call()


def hooked() -> tuple[SharedLog, SharedLog, Hooked]:
    """The log of a member whose client is hooked, another one, and that client."""
    etcd, other = new_store()
    client = Hooked(etcd)
    return SharedLog(client, "store", 1.0), other, client


def once(fate: str, wants: Callable[[Sequence[Op]], bool]) -> Callable[[Sequence[Op]], str]:
    """A fate for the first transaction that is wanted."""
    left = [fate]

    def of(ops: Sequence[Op]) -> str:
        return left.pop() if left and wants(ops) else ""

    return of


def puts(ops: Sequence[Op], word: bytes) -> bool:
    return any(isinstance(op, PutOp) and word in op.key for op in ops)
