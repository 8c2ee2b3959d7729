"""Another member takes over: when it may, what it knows, and what time it is then."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from tests.cluster.servers import BEYOND, LEASE, Cluster, MemberServer, await_look, take_over
from tests.support import Raw, eventually, pack, unpack
from zkv.cluster import membership
from zkv.cluster.lease import Lease
from zkv.cluster.records import LogBatch
from zkv.cluster.shared_log import SharedLog
from zkv.etcd import AccessError, EtcdError, NoSpaceError, Op, PutOp, UnknownOutcomeError
from zkv.server import Event

HOUR_NS = 3_600 * 10**9
SLOW = 0.92


def fall_silent(one: MemberServer) -> None:
    one.etcd.partition(silent=True)


def puts_fence(ops: Sequence[Op]) -> bool:
    return any(isinstance(op, PutOp) and op.key.endswith(b"/fence") for op in ops)


# --- When


@pytest.mark.parametrize("rate", [SLOW, 1.0, 1 / SLOW])
def test_two_clocks_may_differ_in_their_rates(
    two: tuple[MemberServer, MemberServer], rate: float
) -> None:
    """At the first moment at which another one may lead, the former one does not any more."""
    one, other = two
    fall_silent(one)
    await_look(other)
    patience = Lease(LEASE).patience
    one.clock.now += rate * patience
    take_over(other, patience)
    assert other.outcome(op="PUT", key="k", value="new") == "ok"
    assert one.outcome(op="GET", key="k") == "NOT_LEADER"


def test_nobody_takes_over_from_a_leader_that_renews(
    two: tuple[MemberServer, MemberServer],
) -> None:
    one, other = two
    renewed = threading.Semaphore(0)
    one.etcd.after = lambda _: renewed.release()
    for _ in range(3):
        await_look(other)
        other.clock.now += LEASE
        one.clock.now += LEASE / 4
        assert renewed.acquire(timeout=20)
        eventually(lambda: one.leads, "a renewal")
    assert not other.leads


@pytest.mark.parametrize("error", [AccessError("no"), NoSpaceError("full"), EtcdError("odd")])
def test_a_leader_whose_renewals_fail_goes_on_once_they_do_not(
    two: tuple[MemberServer, MemberServer], error: EtcdError
) -> None:
    one, _ = two
    failed = threading.Semaphore(0)

    def fail(ops: Sequence[Op]) -> None:
        if any(isinstance(op, PutOp) for op in ops):
            failed.release()
            raise error

    one.etcd.hook = fail
    assert failed.acquire(timeout=20)
    one.clock.now += BEYOND
    assert one.outcome(op="GET", key="k") == "NOT_LEADER"
    one.etcd.hook = None
    one.await_lead()
    assert one.outcome(op="PUT", key="k", value="new") == "ok"


@pytest.mark.parametrize("arrives", [True, False])
def test_a_take_over_without_an_answer(
    two: tuple[MemberServer, MemberServer], arrives: bool
) -> None:
    """It finds out that it leads, or tries again."""
    one, other = two
    done: list[bool] = []

    def lose(ops: Sequence[Op]) -> None:
        if puts_fence(ops) and not done:
            done.append(True)
            raise UnknownOutcomeError("no answer came in time")

    if arrives:
        other.etcd.after = lose
    else:
        other.etcd.hook = lose
    fall_silent(one)
    take_over(other)
    assert done
    assert other.call(op="INFO")["replication"]["term"] == 2
    assert other.outcome(op="GET", key="k") == "old"


def test_a_take_over_that_arrives_behind_another_attempt_counts_too(
    two: tuple[MemberServer, MemberServer],
) -> None:
    """Else the member would wait for the lease of a leader that it is itself."""
    one, other = two
    attempts: list[Sequence[Op]] = []

    def swap(ops: Sequence[Op]) -> None:
        if not puts_fence(ops) or len(attempts) == 2:
            return
        attempts.append(ops)
        if len(attempts) == 1:
            raise UnknownOutcomeError("no answer came in time")
        other.etcd.hook = None
        other.etcd.transact([], attempts[0], timeout=1.0)  # The first one is carried out now.

    other.etcd.hook = swap
    fall_silent(one)
    take_over(other)
    assert len(attempts) == 2
    assert other.outcome(op="GET", key="k") == "old"


# --- What it knows


def test_a_refusal_that_was_remembered_is_repeated_by_the_next_leader(
    two: tuple[MemberServer, MemberServer],
) -> None:
    """It has a log number, and no revision: whoever counted revisions would have lost it."""
    one, other = two
    asked = {"op": "PUT", "key": "k", "value": "new", "if_rev": 77, "session": "s", "seq": 1}
    assert one.outcome(**asked) == "CONFLICT"
    fall_silent(one)
    take_over(other)
    again = other.call(**asked)
    assert (again["code"], again.get("replayed")) == ("CONFLICT", True)


@pytest.mark.parametrize("ended", [True, False])
def test_a_refusal_shows_an_etcd_that_was_set_back_and_has_grown(
    cluster: Cluster, ended: bool
) -> None:
    """The newest commit of a member may have no revision, and is of its history all the same."""
    with cluster.member("a") as one:
        one.await_lead()
        with cluster.member("b") as other:
            assert one.call(op="PUT", key="k", value="old")["ok"]
            other.await_log(one)
        before = cluster.fake.copy()
        asked = {"op": "PUT", "key": "k", "value": 1, "if_rev": 77, "session": "s", "seq": 1}
        assert one.outcome(**asked) == "CONFLICT"
        lsn = one.lsn
        if not ended:
            fall_silent(one)
    cluster.fake.restore(before)
    with cluster.member("b") as other:
        await_look(other)
        other.clock.now += BEYOND
        other.await_lead()
        assert other.call(op="PUT", key="k", value="new")["ok"]
        assert other.lsn > lsn
        with cluster.member("a") as one:
            member = one.server._member
            assert member is not None
            eventually(lambda: member.failure is not None, "it stops")
            assert f"commit {lsn} in etcd" in str(member.failure)


def test_a_write_whose_answer_was_lost_is_found_again_by_its_session(
    two: tuple[MemberServer, MemberServer],
) -> None:
    one, other = two
    asked = {"op": "INCR", "key": "n", "session": "s", "seq": 1}

    def swallow(ops: Sequence[Op]) -> None:
        if any(isinstance(op, PutOp) and b"/log/" in op.key for op in ops):
            one.etcd.partition(silent=True)
            raise UnknownOutcomeError("no answer came in time")

    one.etcd.after = swallow
    reply = one.call(**asked)
    assert (reply["code"], reply["applied"]) == ("READ_ONLY", None)
    take_over(other)
    again = other.call(**asked)
    assert (again["value"], again.get("replayed")) == (1, True)


def test_a_read_that_waits_for_a_revision_gets_it_over_a_deposition(
    two: tuple[MemberServer, MemberServer],
) -> None:
    one, other = two
    rev = one.call(op="INFO")["rev"]
    with Raw(one.endpoint) as client:
        client.send(pack({"op": "GET", "key": "k", "min_rev": rev + 1}))
        fall_silent(one)
        one.clock.now += BEYOND
        take_over(other)
        assert other.outcome(op="PUT", key="k", value="new") == "ok"
        one.etcd.heal()
        reply = unpack(client.receive())
    assert (reply["ok"], reply.get("value")) == (True, "new")


def test_a_follower_reads_nothing_that_was_rolled_back(
    two: tuple[MemberServer, MemberServer],
) -> None:
    """What a deposed leader had not got into etcd is in no answer of it, `stale` or not."""
    one, other = two
    fall_silent(one)
    with Raw(one.endpoint) as writer:
        writer.send(pack({"op": "PUT", "key": "k", "value": "lost"}))
        keyspace = one.server._engine.keyspace
        before = one.server._engine.safe_rev
        eventually(lambda: keyspace.rev > before, "the write")
        one.clock.now += BEYOND
        assert one.outcome(op="GET", key="k", stale=True) in {"old", "READ_ONLY"}
        take_over(other)
        one.etcd.heal()
        one.await_log(other)
        assert one.outcome(op="GET", key="k", stale=True) == "old"
        reply = unpack(writer.receive())
    assert (reply["code"], reply["applied"]) == ("READ_ONLY", None)


# --- What time it is


def test_a_member_that_is_an_hour_ahead_ends_no_entry_too_early(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns
    with cluster.member("a") as one:
        one.await_lead()
        monkeypatch.setattr("zkv.clock.time.time_ns", lambda: now() + HOUR_NS)
        with cluster.member("b") as other:
            assert one.outcome(op="PUT", key="k", value="old", ttl=3_000) == "ok"
            assert one.outcome(op="INCR", key="n", session="s", seq=1) == 1
            other.await_log(one)
            fall_silent(one)
            take_over(other)
            assert other.outcome(op="GET", key="k") == "old"
            assert other.call(op="INCR", key="n", session="s", seq=1).get("replayed")


def test_a_take_over_moves_the_time_on_once(
    two: tuple[MemberServer, MemberServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many attempts it takes: else entries and locks would end too early."""
    monkeypatch.setattr(membership, "RETRY_SECONDS", 0.0)
    one, other = two
    left = [200]

    def lose(ops: Sequence[Op]) -> None:
        if puts_fence(ops) and left[0]:
            left[0] -= 1
            raise UnknownOutcomeError("no answer came in time")

    other.etcd.hook = lose
    assert one.outcome(op="PUT", key="k", value="old", ttl=100 * LEASE) == "ok"
    other.await_log(one)
    fall_silent(one)
    take_over(other)
    assert not left[0]
    assert other.outcome(op="GET", key="k") == "old"


def test_the_time_of_a_store_begins_with_that_of_the_system(cluster: Cluster) -> None:
    before = time.time_ns() // 1_000_000
    assert cluster.log.look().head.time <= before
    with cluster.member("a") as one:
        one.await_lead()
        assert one.outcome(op="PUT", key="k", value="v") == "ok"
        assert cluster.log.look().head.time >= before


# --- The end


def test_a_planned_end_answers_what_is_under_way_and_hands_over(
    two: tuple[MemberServer, MemberServer],
) -> None:
    one, other = two
    with Raw(one.endpoint) as writer:
        writer.send(pack({"op": "PUT", "key": "k", "value": "new"}))
        assert unpack(writer.receive())["ok"]
    assert one.stop()
    other.await_lead()  # Its clock has not moved.
    assert other.outcome(op="GET", key="k") == "new"


def test_end_without_etcd_says_that_not_everything_is_saved(
    two: tuple[MemberServer, MemberServer],
) -> None:
    one, _ = two
    fall_silent(one)
    with Raw(one.endpoint) as writer, Raw(one.endpoint) as client:
        writer.send(pack({"op": "PUT", "key": "k", "value": "new"}))
        keyspace = one.server._engine.keyspace
        before = one.server._engine.safe_rev
        eventually(lambda: keyspace.rev > before, "the write")
        reply = client.call(op="END")
        assert reply["code"] == "READ_ONLY"
        assert not one.wait(), "exit status 1"
        refused = unpack(writer.receive())
        assert (refused["code"], refused["applied"]) == ("READ_ONLY", None)


def test_a_member_that_is_stopped_while_it_takes_over(
    two: tuple[MemberServer, MemberServer],
) -> None:
    one, other = two
    begun = threading.Event()

    def stop(ops: Sequence[Op]) -> None:
        if any(isinstance(op, PutOp) and b"/log/" in op.key for op in ops) and not begun.is_set():
            begun.set()
            other.server.post(Event.STOP)
            assert other.server._member is not None
            eventually(other.server._member._closing.is_set, "the stop")

    other.etcd.hook = stop
    fall_silent(one)
    await_look(other)
    other.clock.now += BEYOND
    assert begun.wait(20)
    assert other.wait()
    one.etcd.heal()
    one.await_lead()  # Its own clock has not moved: it was handed over.
    assert one.outcome(op="GET", key="k") == "old"


def test_a_member_that_is_stopped_does_not_read_the_rest_of_the_log(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be gigabytes of it."""
    with cluster.member("a") as one:
        one.await_lead()
        for number in range(5):
            assert one.call(op="PUT", key="k", value=number)["ok"]
        other = cluster.member("b")
        read, reads = SharedLog.read, []

        def read_while_it_stops(log: SharedLog, after: int, head: int, _: int) -> list[LogBatch]:
            if log.etcd is other.etcd:
                reads.append(after)
                other.server.post(Event.STOP)
                assert other.server._member is not None
                eventually(other.server._member._closing.is_set, "the stop")
            return read(log, after, head, 1)

        monkeypatch.setattr(SharedLog, "read", read_while_it_stops)
        with other:
            assert other.wait()
        assert reads == [0]
