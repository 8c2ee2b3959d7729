"""The log in etcd: what was acknowledged is there, whatever becomes of answers on their way."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cluster.logs import (
    STORE,
    Hooked,
    always,
    hooked,
    lead,
    never,
    new_log,
    new_store,
    next_batch,
    once,
    puts,
    take_over,
    whole_log,
)
from tests.etcd.fake import FakeEtcd, Faults
from zkv.cluster import records
from zkv.cluster.records import Fence, LeaderRecord, LogBatch, LogHead
from zkv.cluster.shared_log import LARGE_PARTS, DeposedError, Tenure, parts_after
from zkv.etcd import DeleteOp, EtcdError, Op, UnknownOutcomeError

SMALL_PART: Final = 60
"""Bytes of a part: so a batch of some commits has several."""
FAULTS: Final = Faults(lost=0.1, unanswered=0.15, late=0.15, delayed=0.1, delay=2.0)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "PART_BYTES", SMALL_PART)


# --- One fault at a time


@pytest.mark.parametrize("fate", ["lost", "unanswered", "late"])
@pytest.mark.parametrize("what", [b"log/", b"head"])
@pytest.mark.parametrize("commits", [1, 10])
def test_an_append_without_an_answer_is_repeated(fate: str, what: bytes, commits: int) -> None:
    log, _, client = hooked()
    tenure = lead(log)
    batch = next_batch(tenure, commits)
    client.fate = once(fate, lambda ops: puts(ops, what))
    tenure.append(batch, always)
    assert tenure.head == batch.head
    client.arrive()
    following = next_batch(tenure)
    tenure.append(following, never)
    assert whole_log(log) == [*batch.payloads, *following.payloads]


@pytest.mark.parametrize("fate", ["lost", "unanswered", "late"])
def test_an_append_that_was_given_up_may_be_tried_again(fate: str) -> None:
    log, _, client = hooked()
    tenure = lead(log)
    batch = next_batch(tenure, 10)
    client.fate = once(fate, lambda ops: puts(ops, b"head"))
    with pytest.raises(UnknownOutcomeError):
        tenure.append(batch, never)
    client.arrive()
    tenure.append(batch, never)
    assert whole_log(log) == batch.payloads


@pytest.mark.parametrize("commits", [1, 10])
def test_who_is_deposed_appends_nothing_however_late_it_arrives(commits: int) -> None:
    log, other, client = hooked()
    tenure = lead(log)
    first = next_batch(tenure)
    tenure.append(first, never)
    batch = next_batch(tenure, commits)
    client.fate = lambda ops: "late" if puts(ops, b"log/") else ""
    for _ in range(3):
        with pytest.raises(UnknownOutcomeError):
            tenure.append(batch, never)
    successor = lead(other, "two")
    client.arrive()
    client.fate = lambda _: ""
    with pytest.raises(DeposedError):
        tenure.append(batch, always)
    new = next_batch(successor, 3)
    successor.append(new, never)
    client.arrive()
    assert whole_log(other) == [*first.payloads, *new.payloads]


@pytest.mark.parametrize("commits", [1, 10])
def test_from_a_take_over_on_the_former_leader_appends_nothing(commits: int) -> None:
    """Also before the new one has written anything else."""
    log, other, _ = hooked()
    tenure = lead(log)
    assert take_over(other, "two") is not None
    with pytest.raises(DeposedError):
        tenure.append(next_batch(tenure, commits), never)
    assert whole_log(other) == []


def test_who_was_deposed_after_the_append_is_told_that_it_is_there() -> None:
    log, other, client = hooked()
    tenure = lead(log)
    batch = next_batch(tenure, 10)
    client.fate = once("unanswered", lambda ops: puts(ops, b"head"))
    with pytest.raises(UnknownOutcomeError):
        tenure.append(batch, never)
    successor = lead(other, "two")
    new = next_batch(successor)
    successor.append(new, never)
    tenure.append(batch, never)
    assert whole_log(other) == [*batch.payloads, *new.payloads]
    with pytest.raises(DeposedError):
        tenure.append(next_batch(tenure), never)


def test_who_is_deposed_in_the_middle_of_a_batch_leaves_nothing_of_it() -> None:
    log, other, client = hooked()
    tenure = lead(log)
    batch = next_batch(tenure, 10)
    successors: list[Tenure] = []

    def depose(ops: Sequence[Op]) -> str:
        if puts(ops, b"log/") and not puts(ops, b"-00000-of-") and not successors:
            successors.append(lead(other, "two"))
        return ""

    client.fate = depose
    with pytest.raises(DeposedError):
        tenure.append(batch, always)
    (successor,) = successors
    assert whole_log(other) == []
    new = next_batch(successor, 2)
    successor.append(new, never)
    assert whole_log(other) == new.payloads


def test_leftovers_of_another_term_are_cleared() -> None:
    log, other, client = hooked()
    tenure = lead(log)
    client.fate = lambda ops: "lost" if puts(ops, b"head") else ""
    with pytest.raises(UnknownOutcomeError):
        tenure.append(next_batch(tenure, 10), never)
    begin, end = other.keys.log_from(1)
    assert other.etcd.read(begin, end, timeout=1.0).items
    successor = lead(other, "two")
    assert not other.etcd.read(begin, end, timeout=1.0).items
    new = next_batch(successor, 10)
    successor.append(new, never)
    assert whole_log(other) == new.payloads


def arrives_first(client: Hooked) -> str:
    client.arrive()
    return ""


@pytest.mark.parametrize("commits", [1, 10])
@pytest.mark.parametrize("when", ["before", "within", "after"])
def test_a_clearance_that_arrives_late_removes_nothing_that_was_appended(
    when: str, commits: int
) -> None:
    log, _, client = hooked()
    seen = take_over(log, "one")
    assert seen is not None
    tenure = Tenure(log, seen)
    client.fate = once("late", lambda ops: any(isinstance(op, DeleteOp) for op in ops))
    with pytest.raises(UnknownOutcomeError):
        tenure.clear()
    if when == "before":
        client.arrive()
    tenure = Tenure(log, seen)  # As after another look, in which nothing was new.
    tenure.clear()
    if when == "within":
        client.fate = lambda ops: arrives_first(client) if puts(ops, b"head") else ""
    batch = next_batch(tenure, commits)
    tenure.append(batch, never)
    client.arrive()
    assert whole_log(log) == batch.payloads


def test_a_clearance_of_one_who_was_deposed_is_refused() -> None:
    log, other, _ = hooked()
    seen = take_over(log, "one")
    assert seen is not None
    lead(other, "two")
    with pytest.raises(DeposedError):
        Tenure(log, seen).clear()


def test_only_one_of_two_takes_over() -> None:
    log, other, client = hooked()
    seen = log.look()
    leader = LeaderRecord(term=1, member="m", endpoints=[], renewals=0, time=1)
    client.fate = once("late", lambda ops: puts(ops, b"fence"))
    with pytest.raises(UnknownOutcomeError):
        log.take_over(seen, Fence(1, "one", "one"), leader)
    assert other.take_over(seen, Fence(1, "two", "two"), leader)
    client.arrive()
    assert log.look().fence.nonce == "two"


def test_who_saw_an_older_renewal_does_not_take_over() -> None:
    log, other, _ = hooked()
    tenure = lead(log)
    seen = other.look()
    tenure.renew(LeaderRecord(term=1, member="m", endpoints=[], renewals=1, time=1))
    assert seen.leader is not None
    assert not other.take_over(seen, Fence(2, "two", "two"), seen.leader)


# --- All faults, in any order


class Candidate:
    """A member, which takes over and appends as it likes, through a bad network."""

    def __init__(self, etcd: FakeEtcd, name: str) -> None:
        self.log = new_log(etcd, name, FAULTS)
        self.name = name
        self.tenure: Tenure | None = None
        self.batch: LogBatch | None = None  # Appended, or not.
        self.attempts = 0

    def act(self, chance: random.Random, story: Story) -> None:
        """Do one thing."""
        try:
            if self.tenure is None:
                self._take_over()
            elif self.batch is None:
                self.batch = next_batch(self.tenure, chance.choice([1, 2, 12]))
                story.tried += self.batch.payloads
            else:
                self.tenure.append(self.batch, lambda _: chance.random() < 0.5)
                story.acknowledged += self.batch.payloads
                self.batch = None
        except DeposedError:
            if self.batch is not None:
                story.refused += self.batch.payloads
            self.tenure = self.batch = None
        except EtcdError:
            pass

    def _take_over(self) -> None:
        self.attempts += 1
        seen = take_over(self.log, f"{self.name}/{self.attempts}")
        if seen is not None:
            tenure = Tenure(self.log, seen)
            tenure.clear()
            self.tenure = tenure


class Story:
    """What was tried, and what came of it."""

    def __init__(self) -> None:
        self.tried: list[bytes] = []
        self.acknowledged: list[bytes] = []
        self.refused: list[bytes] = []


@settings(max_examples=150)
@given(st.integers(0, 2**32))
def test_the_log_has_what_was_acknowledged_and_nothing_that_was_refused(seed: int) -> None:
    chance = random.Random(seed)
    etcd = FakeEtcd(seed, threads=False)
    log = new_log(etcd, "looker")
    assert log.found(STORE, Fence(0, "", ""), LogHead(0, 0, 0, 0))
    candidates = [Candidate(etcd, name) for name in ("a", "b", "c")]
    story = Story()
    current = candidates[0]
    for _ in range(60):
        if chance.random() < 0.1:
            current = chance.choice(candidates)
            if chance.random() < 0.7:
                current.tenure = current.batch = None  # Its process is another one.
        current.act(chance, story)
        whole_log(log)  # Raises if there is a hole, or damage.
    etcd.settle()
    there = whole_log(log)
    assert len(set(there)) == len(there)
    assert set(story.acknowledged) <= set(there) <= set(story.tried)
    assert not set(story.refused) & set(there)


def batch_of(size: int) -> LogBatch:
    return LogBatch(1, 1, 1, 1, 1, 0, 0, [bytes(size)])


@pytest.mark.parametrize(
    ("batches", "size", "parts"),
    [
        (16, 100, 256),  # Small ones: as many as one request may read.
        (16, 4 * 1024 * 1024, 16),
        (1, 60_000, 69),  # So many have 4 MiB.
        (256, 0, 256),
    ],
)
def test_how_much_is_read_at_once(batches: int, size: int, parts: int) -> None:
    assert parts_after([batch_of(size)] * batches) == parts


def test_a_long_log_of_small_batches_takes_few_requests() -> None:
    _, log = new_store()
    tenure = lead(log)
    for _ in range(600):
        tenure.append(next_batch(tenure), never)
    reads, lsn, parts = 0, 0, LARGE_PARTS
    while lsn < 600:
        batches = log.read(lsn, 600, parts)
        reads, lsn, parts = reads + 1, batches[-1].last_lsn, parts_after(batches)
    assert reads == 4  # 16, 256, 256 and the rest.
