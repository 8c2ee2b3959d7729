"""The log of a member: what is safe, what is rolled back, and what counts after the lease."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.cluster.logs import Hooked, hooked, lead, puts, whole_log
from tests.cluster.servers import BEYOND, LEASE, StandingClock
from tests.support import BadDisk
from zkv.cluster import records
from zkv.cluster import wal as module
from zkv.cluster.lease import Lease
from zkv.cluster.shared_log import SharedLog, Tenure
from zkv.cluster.wal import ReplicatedWal
from zkv.errors import ReadOnly
from zkv.etcd import Op
from zkv.keyspace.change import Commit
from zkv.keyspace.log import NOTHING


class Leader:
    """The log of a leader, with a disk and a way to etcd that fail when a test says so."""

    def __init__(self, directory: Path) -> None:
        self.shared, self.other, self.etcd = hooked()
        self.files, self.clock = BadDisk(), StandingClock()
        self.lease = Lease(LEASE, self.clock)
        self.wal = ReplicatedWal(self.files, directory, 0, 0, None, 2**20, self.lease, False)
        self.rolled_back: list[int] = []
        self.deposed = 0
        self.wal.attach(threading.Lock(), self.rolled_back.append)
        self.wal.on_deposed = self._note
        self.payloads: list[bytes] = []

    def _note(self, _reason: str) -> None:
        self.deposed += 1

    def lead(self) -> Tenure:
        """Take over."""
        tenure = lead(self.shared)
        self.lease.begin(self.clock.now)
        self.wal.lead(tenure)
        return tenure

    def takes(self) -> bool:
        """True if commits are taken."""
        return self.wal.takes_commits

    def write(self) -> int:
        """Queue a commit; its log number."""
        lsn = self.wal.last_lsn + 1
        self.payloads.append(Commit(lsn, 1, lsn, ()).pack())
        return self.wal.append(self.payloads[-1])


@pytest.fixture
def leader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Leader]:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.0)
    made = Leader(tmp_path)
    made.lead()
    yield made
    made.wal.close()


def lose(client: Hooked, fate: str) -> None:
    client.fate = lambda ops: fate if puts(ops, b"log/") else ""


def heal(client: Hooked) -> None:
    client.fate = lambda _: ""


def log_of(log: SharedLog) -> list[bytes]:
    return whole_log(log)


def test_a_commit_is_safe_once_etcd_and_the_disk_have_it(leader: Leader) -> None:
    wal = leader.wal
    lsn = leader.write()
    assert (wal.last_lsn, wal.safe_lsn) == (lsn, 0)
    assert wal.commit(lsn, durable=True)
    assert (wal.safe_lsn, wal.safe_rev) == (lsn, lsn)
    assert log_of(leader.other) == leader.payloads


def test_nobody_waits_for_etcd_who_is_not_patient(leader: Leader) -> None:
    lsn = leader.write()
    assert not leader.wal.commit(lsn, durable=True, patient=False)
    assert leader.wal.safe_lsn == 0
    assert not leader.wal.syncs_quickly


@pytest.mark.parametrize(
    ("others", "answered", "expected"),
    [
        (0, 9, [1, 1]),  # A lone writer waits for nobody.
        (1, 0, [1, 1]),  # Nobody comes back: it goes on.
        (1, 1, [1, 2]),
        (3, 1, [1, 4]),
        (3, 9, [1, 4]),  # No more than there were are waited for.
    ],
)
def test_an_append_waits_a_moment_for_those_whom_the_last_one_has_answered(
    leader: Leader,
    monkeypatch: pytest.MonkeyPatch,
    others: int,
    answered: int,
    expected: list[int],
) -> None:
    """``others`` write during the first append, and one of the answered in each pause after it."""
    monkeypatch.setattr(module, "GATHER_SHARE", 1e9)  # So that time does not end it.
    wal, left = leader.wal, [leader.write] * answered
    monkeypatch.setattr(wal._woken, "wait", lambda _seconds: left and left.pop()())

    def during(ops: Sequence[Op]) -> str:
        if puts(ops, b"log/") and wal.written_lsn == 0:
            for _ in range(others):
                leader.write()
        return ""

    leader.etcd.fate = during
    wal.commit(leader.write(), durable=True)
    if not others:
        leader.write()
    wal.commit(2, durable=True)
    batches = leader.other.read(0, leader.other.look().head.lsn)
    assert [len(batch.payloads) for batch in batches] == expected


@pytest.mark.parametrize("fate", ["lost", "unanswered", "late"])
def test_a_batch_without_an_answer_is_kept_and_sent_again(leader: Leader, fate: str) -> None:
    wal = leader.wal
    lose(leader.etcd, fate)
    lsn = leader.write()
    with pytest.raises(ReadOnly, match="etcd does not take the log") as caught:
        wal.commit(lsn, durable=True)
    assert caught.value.applied is None
    assert (wal.safe_lsn, wal.last_lsn, leader.rolled_back) == (0, lsn, [])
    with pytest.raises(ReadOnly):
        wal.append(b"another")
    heal(leader.etcd)
    safe: list[int] = []
    wal.on_safe = lambda: safe.append(wal.safe_lsn)
    wal.try_again()
    assert safe == [lsn], "who waits for commits is told"
    leader.etcd.arrive()
    following = leader.write()
    wal.commit(following, durable=True)
    assert log_of(leader.other) == leader.payloads
    assert wal.epoch == 0


def test_once_etcd_was_waited_for_in_vain_it_is_asked_only_once_each_time(
    leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each of those who wait would wait for as long, one after the other."""
    wal = leader.wal
    lose(leader.etcd, "lost")
    lsn = leader.write()
    with pytest.raises(ReadOnly):
        wal.commit(lsn, durable=True)
    monkeypatch.setattr(module, "WAIT_SECONDS", float("inf"))
    for _ in range(3):
        with pytest.raises(ReadOnly):
            wal.commit(lsn, durable=True)
    heal(leader.etcd)
    assert wal.commit(lsn, durable=True)


def test_who_is_deposed_rolls_back_what_etcd_has_not_confirmed(leader: Leader) -> None:
    wal = leader.wal
    wal.commit(leader.write(), durable=True)
    lsn = leader.write()
    lead(leader.other, "two")
    with pytest.raises(ReadOnly, match="taken over") as caught:
        wal.commit(lsn, durable=True)
    assert caught.value.applied is None
    assert (leader.rolled_back, wal.last_lsn, leader.deposed) == ([1], 1, 1)
    assert not leader.lease.held
    assert log_of(leader.other) == leader.payloads[:1]


def test_nothing_is_taken_between_a_rollback_and_the_beginning_to_follow(leader: Leader) -> None:
    """It would be on this disk, and not in etcd."""
    wal = leader.wal
    lsn = leader.write()
    lead(leader.other, "two")
    with pytest.raises(ReadOnly):
        wal.commit(lsn, durable=True)
    wal._retry_at = 0.0
    wal.try_again()
    with pytest.raises(ReadOnly):
        wal.append(b"an expiry")
    assert not leader.takes()
    wal.follow("deposed")
    assert leader.takes()
    wal.append(Commit(1, 1, 1, ()).pack())
    assert wal.commit(1, durable=False)


def test_a_leader_that_follows_drops_what_etcd_has_not_answered(leader: Leader) -> None:
    wal = leader.wal
    lose(leader.etcd, "late")
    with pytest.raises(ReadOnly):
        wal.commit(leader.write(), durable=True)
    wal.follow("it wants to")
    assert (leader.rolled_back, wal.last_lsn) == ([0], 0)
    heal(leader.etcd)
    leader.lead()  # A new term: what is late is nothing any more.
    leader.etcd.arrive()
    leader.payloads.clear()
    wal.commit(leader.write(), durable=True)
    assert log_of(leader.other) == leader.payloads


def test_if_the_disk_fails_after_etcd_has_confirmed_it_leads_no_more(leader: Leader) -> None:
    wal = leader.wal
    lsn = leader.write()
    leader.files.full = True
    with pytest.raises(ReadOnly, match="No space") as caught:
        wal.commit(lsn, durable=True)
    assert caught.value.applied is None, "etcd has it"
    assert (leader.rolled_back, leader.deposed) == ([0], 1)
    assert not leader.lease.held
    assert log_of(leader.other) == leader.payloads
    wal.follow("its disk is full")
    assert not leader.takes(), "so it does not take over again"
    leader.files.full = False
    wal._retry_at = 0.0
    wal.append(leader.payloads[0])
    assert wal.commit(1, durable=False)
    assert leader.takes()


def test_whoever_finds_that_the_disk_fails_a_batch_under_way_is_dropped(leader: Leader) -> None:
    """Else it would be appended later, with what was rolled back here."""
    wal = leader.wal
    lose(leader.etcd, "lost")
    with pytest.raises(ReadOnly):
        wal.commit(leader.write(), durable=True)
    wal.distrust("somebody changed a file")
    assert (leader.rolled_back, leader.deposed) == ([0], 1)
    heal(leader.etcd)
    wal.follow("a file was changed")
    wal._broken, wal._retry_at = False, 0.0  # As after a snapshot that took its place.
    leader.lead()
    leader.payloads.clear()
    wal.commit(leader.write(), durable=True)
    assert log_of(leader.other) == leader.payloads


def test_the_epoch_is_another_one_in_each_lapse_of_the_lease(leader: Leader) -> None:
    wal, clock = leader.wal, leader.clock
    epochs = [wal.epoch]
    for _ in range(3):
        clock.now += BEYOND
        epochs += [wal.epoch, wal.epoch]
        leader.lease.extend(clock.now)
        epochs.append(wal.epoch)
    assert epochs == [0, *(epochs[1:3]), 0, *(epochs[4:6]), 0, *(epochs[7:9]), 0]
    assert epochs[1] == epochs[2], "what begins and ends in one lapse can be answered"
    assert len({epochs[1], epochs[4], epochs[7], 0}) == 4


def test_after_a_deposition_the_epoch_never_is_one_that_was(leader: Leader) -> None:
    wal = leader.wal
    seen = {wal.epoch}
    for number in range(3):
        leader.clock.now += BEYOND
        assert wal.epoch not in seen
        seen.add(wal.epoch)
        wal.follow("deposed")
        assert wal.epoch not in seen
        assert wal.epoch == number + 1
        seen.add(wal.epoch)
        leader.lead()
        assert wal.epoch == number + 1


def test_nothing_counts_as_having_survived(leader: Leader) -> None:
    """A read of what is safe may have been made after the end of the lease."""
    leader.wal.commit(leader.write(), durable=True)
    leader.wal.follow("deposed")
    assert leader.wal.survived(0) == NOTHING


def test_a_lease_that_was_given_up_is_not_extended(leader: Leader) -> None:
    lease, now = leader.lease, leader.clock.now
    seen = [lease.held]
    for change in (lease.end, lambda: lease.extend(now), lambda: lease.begin(now)):
        change()
        seen.append(lease.held)
    assert seen == [True, False, False, True]


def test_a_server_that_stops_asks_a_silent_etcd_once(leader: Leader) -> None:
    wal, calls = leader.wal, []
    lsn = leader.write()

    def count(ops: object) -> str:
        calls.append(ops)
        return "lost"

    leader.etcd.fate = count
    wal.give_up()
    for _ in range(3):
        with pytest.raises(ReadOnly) as caught:
            wal.commit(lsn, durable=True)
        assert caught.value.applied is None
    assert len(calls) == 1


def test_a_server_that_stops_while_it_takes_over_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = Leader(tmp_path)
    monkeypatch.setattr(module, "WAIT_SECONDS", float("inf"))
    leader.wal.give_up()
    leader.lead()
    lose(leader.etcd, "lost")
    with pytest.raises(ReadOnly):
        leader.wal.commit(leader.write(), durable=True)
    leader.wal.close()


def lose_all(client: Hooked) -> None:
    client.fate = lambda _: "lost"


def test_what_is_in_etcd_is_never_told_to_be_not_applied_if_a_question_fails(
    leader: Leader,
) -> None:
    """A write may be in the batch that somebody else's wait has sent, before its own one begins."""
    wal = leader.wal
    wal.confirms_reads = True
    first, second = leader.write(), leader.write()
    assert wal.commit(first, durable=True), "both are in the log now"
    lose_all(leader.etcd)
    with pytest.raises(ReadOnly, match="does not confirm") as caught:
        wal.commit(second, durable=True)
    assert log_of(leader.other) == leader.payloads
    assert caught.value.applied is None


def test_nor_if_it_is_rolled_back_before_its_wait_begins(leader: Leader) -> None:
    wal = leader.wal
    first, second = leader.write(), leader.write()
    lose(leader.etcd, "unanswered")
    with pytest.raises(ReadOnly):
        wal.commit(first, durable=True)
    wal.follow("a renewal was refused")
    with pytest.raises(ReadOnly) as caught:
        wal.commit(second, durable=True)
    assert log_of(leader.other) == leader.payloads
    assert caught.value.applied is None


@pytest.mark.parametrize("size", [5, 1_000_000])
def test_a_batch_that_was_appended_long_ago_confirms_no_read(
    leader: Leader, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Another member may have taken over since, and have written what the read lacks."""
    monkeypatch.setattr(records, "PART_BYTES", size)
    wal = leader.wal
    wal.confirms_reads = True
    written = leader.write()
    leader.etcd.fate = lambda ops: "unanswered" if puts(ops, b"head") else ""
    with pytest.raises(ReadOnly):
        wal.commit(written, durable=True)
    heal(leader.etcd)
    lead(leader.other, "two")
    with pytest.raises(ReadOnly, match="taken over"):  # That of a read which was made now.
        wal.commit(written, durable=True)
