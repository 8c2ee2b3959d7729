"""Members of several versions: newer ones tell more, and a format that is not known is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgpack
import pytest

from tests.cluster.servers import Cluster, MemberEtcd, MemberServer, take_over
from tests.support import eventually
from zkv.cluster.records import (
    FORMAT,
    Claim,
    Fence,
    First,
    LeaderRecord,
    LiveRecord,
    LogHead,
    MemberRecord,
    PinRecord,
    StateRecord,
    StoreRecord,
    pack,
    read,
)
from zkv.errors import DamageError
from zkv.etcd import Compare, Op, PutOp, TxnResult

RECORDS = [
    StoreRecord(format=FORMAT, store="s", limits={"session_window": 8}, first_lsn=1),
    Fence(3, "a", "nonce"),
    LeaderRecord(term=3, member="a", endpoints=["tcp://h:1"], renewals=7, time=9),
    LogHead(5, 4, 3, 9, 77, 100),
    First(2, 50),
    MemberRecord(name="a", endpoints=[], applied=5, time=9, claim=Claim(4, 1, 2), nonce="n"),
    LiveRecord("a", 5, 9),
    StateRecord(member="a", lsn=5, hash=99),
    PinRecord("a", 3, "nonce", 1),
]


def newer(value: bytes) -> bytes:
    """A record as a version writes it that knows more fields; other values as they are."""
    content = msgpack.unpackb(value, strict_map_key=False)
    if isinstance(content, dict):
        content = {"further": [1, {"a": None}]} | content | {"last": "x"}
    return msgpack.packb(content) if isinstance(content, dict) else value


class NewerEtcd(MemberEtcd):
    """The client of a member of a newer version."""

    def transact(
        self,
        compares: Sequence[Compare],
        then: Sequence[Op],
        otherwise: Sequence[Op] = (),
        *,
        timeout: float,
    ) -> TxnResult:
        compares = [
            each._replace(value=newer(each.value)) if isinstance(each.value, bytes) else each
            for each in compares
        ]
        then = [
            each._replace(value=newer(each.value)) if isinstance(each, PutOp) else each
            for each in then
        ]
        return super().transact(compares, then, otherwise, timeout=timeout)


def newer_member(cluster: Cluster, name: str) -> MemberServer:
    """A member of a newer version, not started yet."""
    server = cluster.member(name)
    server.etcd.__class__ = NewerEtcd
    return server


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_further_fields_are_left_out(record: StoreRecord) -> None:
    value = newer(pack(record))
    assert value != pack(record)
    assert read(value, type(record), b"key") == record


def silence(one: MemberServer, other: MemberServer) -> None:
    """Have the other one take over."""
    one.etcd.partition(silent=True)
    take_over(other)
    one.etcd.heal()
    eventually(lambda: not one.leads, "the former leader follows")


def test_members_of_two_versions_take_over_from_each_other(cluster: Cluster) -> None:
    with newer_member(cluster, "new") as new:
        new.await_lead()
        with cluster.member("old") as old:
            assert new.call(op="PUT", key="k", value=1)["ok"]
            old.await_log(new)
            silence(new, old)
            assert old.outcome(op="INCR", key="k") == 2
            new.await_log(old)
            silence(old, new)
            assert new.outcome(op="INCR", key="k") == 3
            old.await_log(new)
            records = {each.name: each for each in cluster.log.members()}
            assert set(records) == {"new", "old"}
            assert b"further" in cluster.fake.store.now[cluster.log.keys.leader].value
        assert new.outcome(op="GET", key="k") == 3


def raise_format(cluster: Cluster) -> None:
    """Do what a newer version does once all declared members know its format."""
    log = cluster.log
    record = {"format": FORMAT + 1, "store": log.look().store.store, "something": "else"}
    log.etcd.transact([], [PutOp(log.keys.store, msgpack.packb(record))], timeout=1.0)


def test_a_running_member_stops_at_a_format_that_it_does_not_know(
    two: tuple[MemberServer, MemberServer], cluster: Cluster
) -> None:
    _, follower = two
    lsn = follower.lsn
    raise_format(cluster)
    follower.wait()
    member = follower.server._member
    assert member is not None
    assert str(member.failure) == (
        f"the store in etcd has format {FORMAT + 1}; this zkv reads up to {FORMAT}"
    )
    assert follower.lsn == lsn


def test_a_new_member_refuses_a_format_that_it_does_not_know(
    cluster: Cluster, tmp_path: Path
) -> None:
    raise_format(cluster)
    new = cluster.member("new")
    with pytest.raises(DamageError, match=f"has format {FORMAT + 1}; this zkv reads up to"):
        new.server.start()
    assert not (tmp_path / "new" / "member.json").exists()
    assert [each for each in (tmp_path / "new").iterdir() if each.name != "LOCK"] == []
