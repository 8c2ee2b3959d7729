"""A store keeps all that was acknowledged, whatever happens to a leader that trims, and to etcd."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import zmq

from tests.cluster.stores import (
    LONG,
    StoreInEtcd,
    StoreMember,
    await_leader,
    fill,
    put,
    writing,
)
from tests.etcd.nodes import needs_etcd
from tests.replication.following import state_of
from tests.support import Raw, eventually, pack, unpack
from zkv.cluster.records import MemberRecord

pytestmark = [needs_etcd, pytest.mark.timeout(300)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreInEtcd]:
    with StoreInEtcd(tmp_path) as store:
        yield store


def is_trimmed(store: StoreInEtcd, before: int) -> bool:
    """Whether the log begins later than before."""
    return store.first > before


def test_leaders_killed_amid_trimming(store: StoreInEtcd) -> None:
    members = store.start("a", "b", "c")
    await_leader(members)
    with writing(members) as done:
        for _ in range(4):
            before = store.first
            eventually(partial(is_trimmed, store, before), "it is trimmed", LONG)
            leader = await_leader(members)
            leader.kill()
            await_leader(members)
            leader.start()
    put(members, "last", 1)
    head = store.log.look().head.lsn
    for each in members:
        each.await_lsn(head)
        assert [each.get(f"n{number}") for number in done] == done
    seen = store.log.look()
    lsn = seen.first.lsn - 1
    while lsn < seen.head.lsn:
        lsn = store.log.read(lsn, seen.head.lsn)[-1].last_lsn
    begin, end = store.log.keys.log_before(seen.first.lsn)
    assert store.log.etcd.read(begin, end, keys_only=True, timeout=5.0).items == []
    for each in members:
        assert each.stop() == 0
    states = [state_of(each.data_dir) for each in members]
    assert len({(state.entries, state.store) for state in states}) == 1


def test_an_etcd_that_was_wiped(store: StoreInEtcd) -> None:
    members = store.start("a", "b")
    leader = await_leader(members)
    fill(leader, 5)
    for each in members:
        each.await_lsn(store.log.look().head.lsn)
    for each in members:
        each.kill()
    states = [state_of(each.data_dir) for each in members]
    store.etcd.kill()
    shutil.rmtree(store.etcd.nodes[0].directory / "data")
    store.etcd.start()
    for each, state in zip(members, states, strict=True):
        each.launch()
        assert each.wait() == 2
        assert "there is no store in etcd" in each.log()
        assert f"with the log up to number {state.lsn}" in each.log()
        assert state_of(each.data_dir) == state
    store.run("store", "found")  # An empty one does not take its place.
    for each, state in zip(members, states, strict=True):
        each.launch()
        assert each.wait() == 2
        assert state_of(each.data_dir) == state
    new = store.member("c")
    new.start()
    await_leader([new])


def test_an_etcd_that_was_set_back(store: StoreInEtcd, tmp_path: Path) -> None:
    members = store.start("a", "b")
    leader = await_leader(members)
    fill(leader, 5)
    store.etcd.kill()
    older = store.etcd.nodes[0].directory / "data"
    shutil.copytree(older, tmp_path / "older")
    store.etcd.start()
    put(members, "acknowledged", 1)
    for each in members:
        each.await_lsn(store.log.look().head.lsn)
    last = state_of(leader.data_dir).lsn
    store.etcd.kill()
    shutil.rmtree(older)
    shutil.copytree(tmp_path / "older", older)
    store.etcd.start()
    head = store.log.look().head.lsn
    assert head < last
    for each in members:
        assert each.wait() == 2
    told = [each.log() for each in members]
    assert any(f"up to number {head} only" in log for log in told)
    assert any(f"this directory up to {last}" in log for log in told)
    for each in members:
        state = state_of(each.data_dir)
        assert state.lsn >= last
        each.launch()
        assert each.wait() == 2
        assert f"this directory up to {state.lsn}" in each.log()
        assert state_of(each.data_dir) == state
    assert {each.name: each.claim.newest for each in store.log.members()} == {"a": 0, "b": 0}


def test_a_snapshot_that_etcd_has_not_confirmed(store: StoreInEtcd) -> None:
    (member,) = store.start("a")
    await_leader([member])
    fill(member, 3)
    member.snapshot()
    names = snapshots(member)
    (node,) = store.etcd.nodes
    with Raw(member.endpoint, zmq.DEALER, timeout=LONG) as client:
        node.stop()
        client.send(pack({"op": "PUT", "key": "unknown", "value": 1, "id": 1}))
        client.send(pack({"op": "SNAPSHOT", "id": 2}))
        replies = {(reply := unpack(client.receive()))["id"]: reply for _ in range(2)}
        assert [replies[each]["code"] for each in (1, 2)] == ["READ_ONLY", "READ_ONLY"]
        assert replies[1]["applied"] is None
        assert snapshots(member) == names
        node.resume()
    put([member], "known", 1)
    member.snapshot()
    assert snapshots(member) != names


def snapshots(member: StoreMember) -> list[str]:
    """The names of complete snapshots."""
    return sorted(path.name for path in (member.data_dir / "snapshot").glob("*.snapshot"))


def test_a_removed_member_says_so(store: StoreInEtcd) -> None:
    members = store.start("a", "b")
    await_leader(members)
    store.run("member", "remove", "b")
    fill(members[0], 1)
    members[1].await_lsn(store.log.look().head.lsn)
    members[1].snapshot()
    eventually(lambda: "was removed from the members" in members[1].log(), "it says so", LONG)
    assert [each.name for each in store.log.members()] == ["a"]
    members[1].signal(signal.SIGTERM)
    assert members[1].wait() == 0
    members[1].start()
    eventually(lambda: len(store.log.members()) == 2, "it is declared again", LONG)


def test_two_members_are_needed_even_of_one_that_never_came(store: StoreInEtcd) -> None:
    members = store.start("a", "b")
    leader = await_leader(members)
    for name in ("c", "d"):
        store.log.declare(MemberRecord(name=name, endpoints=[], applied=0, time=0))
    fill(leader, 20)
    for each in members:
        each.await_lsn(store.log.look().head.lsn)
        each.snapshot()
    eventually(
        lambda: all(it.claim.newest for it in store.log.members() if it.name in "ab"),
        "both have snapshots", LONG,
    )  # fmt: skip
    assert store.first == 1, "two of four are no majority"
    store.run("member", "remove", "d")
    store.trim([leader, *[each for each in members if each is not leader]], 10)
