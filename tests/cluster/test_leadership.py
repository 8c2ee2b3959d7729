"""What a member answers at the end of its lease, and what becomes of a leader that fails."""

from __future__ import annotations

import errno
import os
import threading
from typing import Any, BinaryIO

import pytest
import zmq

from tests.broker.followers import Follower
from tests.cluster.servers import BEYOND, Cluster, Gate, MemberServer, take_over
from tests.support import FREE_PORT, BadDisk, Raw, eventually, pack, unpack
from zkv.cluster.wal import ReplicatedWal
from zkv.durability.files import Files
from zkv.durability.wal import Wal
from zkv.requests.call import Caller


@pytest.fixture(params=["lane", "command", "absent"])
def held_read(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[Gate, dict[str, Any]]:
    """A gate in which a read waits after it has run, and before anything was made of that."""
    gate = Gate()
    if request.param == "lane":
        epoch: property = vars(ReplicatedWal)["epoch"]
        reads: list[int] = []

        def read_held(self: ReplicatedWal) -> int:
            if threading.current_thread().name == "zkv-front" and gate.armed:
                if reads:  # The first one is before the run.
                    gate.pass_through()
                reads.append(1)
            return int(epoch.__get__(self))

        monkeypatch.setattr(ReplicatedWal, "epoch", epoch.getter(read_held))
        return gate, {"op": "GET", "key": "k"}
    execute = Caller._execute

    def execute_held(*arguments: Any) -> None:
        execute(*arguments)
        gate.pass_through()

    monkeypatch.setattr(Caller, "_execute", execute_held)
    if request.param == "absent":
        return gate, {"op": "GET", "key": "absent"}
    return gate, {"op": "COUNT", "prefix": "k"}


def begin_read(one: MemberServer, gate: Gate, asked: dict[str, Any]) -> Raw:
    """Have a read run at a leader, which is stopped before it can answer."""
    client = Raw(one.endpoint)
    gate.arm()
    client.send(pack(asked))
    gate.await_thread()
    return client


def end_read(client: Raw, gate: Gate) -> Any:
    """Let the leader go on; the code of the reply."""
    gate.open()
    with client:
        reply = unpack(client.receive())
    return "ok" if reply["ok"] else reply["code"]


def write_elsewhere(one: MemberServer, other: MemberServer) -> None:
    """Let another member take over, and change what the former leader has read."""
    one.etcd.partition(silent=True)
    one.clock.now += BEYOND
    take_over(other)
    assert other.call(op="PUT", key="k", value="new")["ok"]
    assert other.call(op="PUT", key="absent", value="new")["ok"]


def test_a_read_that_was_under_way_at_the_end_of_the_lease_is_not_answered(
    two: tuple[MemberServer, MemberServer], held_read: tuple[Gate, dict[str, Any]]
) -> None:
    one, other = two
    gate, asked = held_read
    client = begin_read(one, gate, asked)
    write_elsewhere(one, other)
    assert end_read(client, gate) == "NOT_LEADER"


def test_nor_is_it_once_the_member_has_found_out_that_it_was_deposed(
    two: tuple[MemberServer, MemberServer], held_read: tuple[Gate, dict[str, Any]]
) -> None:
    one, other = two
    gate, asked = held_read
    client = begin_read(one, gate, asked)
    write_elsewhere(one, other)
    one.etcd.heal()
    eventually(lambda: one.server._engine.log.epoch == 1, "deposed, and rolled back")
    assert end_read(client, gate) == "NOT_LEADER"


def test_nor_while_it_rolls_back(
    two: tuple[MemberServer, MemberServer],
    held_read: tuple[Gate, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At no moment of a deposition is the epoch that in which the read ran."""
    one, other = two
    gate, asked = held_read
    log = one.server._engine.log
    epochs: list[int] = []
    refuse = Wal._begin_refusal

    def look(*arguments: Any) -> None:
        epochs.append(log.epoch)
        refuse(*arguments)

    client = begin_read(one, gate, asked)
    write_elsewhere(one, other)
    monkeypatch.setattr(Wal, "_begin_refusal", look)
    one.etcd.heal()
    eventually(lambda: log.epoch == 1, "deposed, and rolled back")
    assert epochs
    assert 0 not in epochs
    assert end_read(client, gate) == "NOT_LEADER"


def test_a_member_whose_lease_is_over_answers_what_needs_no_leader(
    two: tuple[MemberServer, MemberServer],
) -> None:
    one, _ = two
    one.etcd.partition(silent=True)
    one.clock.now += BEYOND
    assert one.outcome(op="PING") == "ok"
    assert one.call(op="INFO")["replication"]["role"] == "follower"
    assert one.outcome(op="CHANGES", since=0) == "ok"
    assert one.outcome(op="GET", key="k", stale=True) == "old"
    assert one.outcome(op="GET", key="k", min_rev=1) == "old"
    assert one.outcome(op="GET", key="k") == "NOT_LEADER"
    assert one.outcome(op="COUNT", prefix="") == "NOT_LEADER"
    refused = one.call(op="PUT", key="k", value="new")
    assert (refused["code"], refused["applied"]) == ("NOT_LEADER", False)


def test_a_lease_that_is_held_again_before_anybody_took_over_goes_on(
    two: tuple[MemberServer, MemberServer],
) -> None:
    one, _ = two
    one.etcd.partition(silent=True)
    one.clock.now += BEYOND
    assert one.outcome(op="GET", key="k") == "NOT_LEADER"
    one.etcd.heal()
    one.await_lead()
    assert one.outcome(op="GET", key="k") == "old"
    assert one.outcome(op="PUT", key="k", value="new") == "ok"


def test_info_waits_for_nothing_that_etcd_has_not_confirmed(
    two: tuple[MemberServer, MemberServer],
) -> None:
    one, _ = two
    before = one.call(op="INFO")["rev"]
    one.etcd.partition(silent=True)
    with Raw(one.endpoint) as writer:
        writer.send(pack({"op": "PUT", "key": "k", "value": "new"}))
        keyspace = one.server._engine.keyspace
        eventually(lambda: keyspace.rev > before, "the write")
        assert one.call(op="INFO")["rev"] == before
        one.etcd.heal()
        assert unpack(writer.receive())["ok"]


def test_the_feed_publishes_nothing_that_etcd_has_not_confirmed(
    cluster: Cluster, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    with cluster.member("a", server={"feed": FREE_PORT}) as one:
        one.await_lead()
        follower = Follower(context, one.server.feed).joined()
        try:
            rev = one.call(op="PUT", key="k", value="old")["rev"]
            assert [change[3] for change in follower.changes(rev)] == ["old"]
            one.etcd.partition(silent=True)
            assert one.outcome(op="PUT", key="k", value="new") == "READ_ONLY"
            heartbeat = follower.next()
            assert heartbeat.is_heartbeat
            assert heartbeat.fields["rev"] == rev
            one.etcd.heal()
            assert [change[3] for change in follower.changes(rev + 1)] == ["new"]
        finally:
            follower.close()


def test_a_member_that_was_deposed_tells_how_far_it_is_behind(
    two: tuple[MemberServer, MemberServer],
) -> None:
    one, other = two
    assert one.call(op="INFO")["replication"]["lag_seconds"] == 0
    one.etcd.partition(silent=True)
    take_over(other)
    one.etcd.heal()
    one.await_log(other)
    figures = one.call(op="INFO")["replication"]
    assert figures["role"] == "follower"
    assert figures["lag_seconds"] is not None
    eventually(
        lambda: one.call(op="INFO")["replication"]["leader"] == other.server.endpoints, "its leader"
    )


def test_what_etcd_did_not_answer_is_sent_again_once_it_does(
    two: tuple[MemberServer, MemberServer],
) -> None:
    one, other = two
    one.etcd.partition(silent=True)
    reply = one.call(op="PUT", key="k", value="new")
    assert (reply["code"], reply["applied"]) == ("READ_ONLY", None)
    one.etcd.heal()
    eventually(lambda: one.server._engine.takes_writes, "writes are taken again")
    assert one.outcome(op="GET", key="k") == "new"
    other.await_log(one)
    assert other.outcome(op="GET", key="k", stale=True) == "new"


class SyncFails(Files):
    """A disk of which a sync fails once a test says so."""

    fails = False

    def sync(self, file: BinaryIO) -> None:
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync(file)


def rejoins(one: MemberServer, other: MemberServer) -> None:
    """See that a member leads no more, and has what its successor writes."""
    take_over(other)
    assert other.outcome(op="PUT", key="k", value="newer") == "ok"
    one.await_log(other)
    assert one.outcome(op="GET", key="k", stale=True) == "newer"
    assert not one.leads


def test_a_leader_whose_disk_does_not_sync_leads_no_more(cluster: Cluster) -> None:
    files = SyncFails()
    with cluster.member("a", files) as one:
        one.await_lead()
        with cluster.member("b") as other:
            assert one.outcome(op="PUT", key="k", value="old") == "ok"
            files.fails = True
            eventually(lambda: not one.leads, "the end of its lead")
            other.await_lead()  # At once: the record is released.
            assert other.outcome(op="PUT", key="k", value="new") == "ok"
            files.fails = False
            one.await_log(other)
            assert one.outcome(op="GET", key="k", stale=True) == "new"


def test_a_leader_whose_disk_is_full_leads_no_more(cluster: Cluster) -> None:
    files = BadDisk()
    with cluster.member("a", files) as one:
        one.await_lead()
        with cluster.member("b") as other:
            files.full = True
            reply = one.call(op="PUT", key="k", value="new", session="s", seq=1)
            assert (reply["code"], reply["applied"]) == ("READ_ONLY", None)
            other.await_lead()
            again = other.call(op="PUT", key="k", value="new", session="s", seq=1)
            assert again["ok"]
            assert again["replayed"], "etcd had it"
            files.full = False
            one.await_log(other)
            assert one.outcome(op="GET", key="k", stale=True) == "new"


def test_a_leader_that_has_rolled_back_writes_nothing_of_its_own(
    two: tuple[MemberServer, MemberServer],
) -> None:
    """Until its thread has noticed, expiry still runs, and would write to this disk alone."""
    one, other = two
    one.etcd.partition(silent=True)
    log, engine = one.server._engine.log, one.server._engine
    before = log.last_lsn
    with log._io:  # type: ignore[attr-defined]
        log._step_down("deposed")  # type: ignore[attr-defined]
    log._retry_at = 0.0  # type: ignore[attr-defined]
    with engine.keyspace.lock, pytest.raises(Exception, match="deposed"):
        log.append(b"x")
    assert log.last_lsn == before
    one.etcd.heal()
    rejoins(one, other)
