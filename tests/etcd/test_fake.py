"""The etcd in memory: its faults, which a seed decides, and what a test may do to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.etcd.fake import LATEST, FakeClient, FakeEtcd, Faults
from tests.etcd.watching import Recorder
from tests.support import LIMIT
from zkv.etcd import (
    CompactedRevisionError,
    Compare,
    DeleteOp,
    EtcdClosedError,
    NoSpaceError,
    PutOp,
    UnknownOutcomeError,
    WatchLostError,
)


def put(client: FakeClient, key: bytes, value: bytes = b"") -> int:
    return client.transact([], [PutOp(key, value)], timeout=1.0).revision


def keys(client: FakeClient) -> list[bytes]:
    return [item.key for item in client.read(b"\0", b"\0", timeout=1.0).items]


def fails(call: Callable[[], object]) -> bool:
    try:
        call()
    except UnknownOutcomeError:
        return True
    return False


def test_a_request_that_is_lost() -> None:
    etcd = FakeEtcd()
    client, other = etcd.client("a", Faults(lost=1.0)), etcd.client("b")
    begin = etcd.clock.now()
    assert fails(lambda: put(client, b"k"))
    assert etcd.clock.now() == begin + 1.0
    etcd.settle()
    assert keys(other) == []


def test_an_answer_that_is_lost() -> None:
    etcd = FakeEtcd()
    client, other = etcd.client("a", Faults(unanswered=1.0)), etcd.client("b")
    assert fails(lambda: put(client, b"k"))
    assert keys(other) == [b"k"]


def test_a_request_that_is_executed_after_those_of_others() -> None:
    etcd = FakeEtcd()
    client, other = etcd.client("a", Faults(late=1.0)), etcd.client("b")
    fenced = [Compare(b"fence", "version", "=", 0)]
    assert fails(lambda: client.transact(fenced, [PutOp(b"k", b"late")], timeout=1.0))
    assert fails(lambda: client.transact([], [PutOp(b"l", b"late")], timeout=1.0))
    put(other, b"fence")
    put(other, b"l", b"early")
    for _ in range(LATEST):
        keys(other)
    assert keys(other) == [b"fence", b"l"]
    assert other.read(b"l", timeout=1.0).items[0].value == b"late"


def test_what_is_late_can_be_executed_at_once() -> None:
    etcd = FakeEtcd()
    client, other = etcd.client("a", Faults(late=1.0)), etcd.client("b")
    assert fails(lambda: put(client, b"k"))
    etcd.settle()
    assert keys(other) == [b"k"]


def test_a_delay_beyond_the_timeout_is_no_answer() -> None:
    etcd = FakeEtcd()
    client = etcd.client("a", Faults(delayed=1.0, delay=2.0))
    outcomes = []
    for number in range(100):
        begin = etcd.clock.now()
        outcomes.append(fails(lambda number=number: put(client, b"%d" % number)))  # type: ignore[misc]
        assert 0 < etcd.clock.now() - begin <= 1.0
    assert 20 < sum(outcomes) < 80
    assert len(keys(etcd.client("b"))) == 100


def story(seed: int) -> list[object]:
    etcd = FakeEtcd(seed, threads=False)
    faults = Faults(lost=0.1, unanswered=0.1, late=0.1, delayed=0.1, delay=2.0)
    clients = [etcd.client(name, faults) for name in ("a", "b")]
    recorder = Recorder()
    recorder.watch(clients[0], b"\0", b"\0")
    told: list[object] = []
    for number in range(300):
        client = clients[number % 2]
        told.append(fails(lambda: put(client, b"k", b"%d" % number)))  # noqa: B023  called at once
        if number % 7 == 0:
            told.append(etcd.deliver())
    etcd.settle()
    etcd.deliver()
    return [told, recorder.calls, etcd.clock.now()]


def test_a_seed_decides_everything() -> None:
    assert story(1) == story(1)
    assert story(1) != story(2)


def test_a_client_meets_the_same_faults_whatever_others_do() -> None:
    faults = Faults(lost=0.5)

    def outcomes(busy: bool) -> list[bool]:
        etcd = FakeEtcd(3)
        client, other = etcd.client("a", faults), etcd.client("b", faults)
        found = []
        for _ in range(50):
            found.append(fails(lambda: put(client, b"k")))
            if busy:
                fails(lambda: put(other, b"k"))
        return found

    assert outcomes(False) == outcomes(True)


def test_a_partition_is_of_one_client() -> None:
    etcd = FakeEtcd()
    client, other = etcd.client("a"), etcd.client("b")
    recorder, beside = Recorder(), Recorder()
    recorder.watch(client, b"k", from_revision=1)
    beside.watch(other, b"k", from_revision=1)
    client.partition()
    assert isinstance(recorder.ended(), WatchLostError)
    late = Recorder()
    late.watch(client, b"k")
    assert isinstance(late.ended(), WatchLostError)
    assert fails(lambda: put(client, b"k"))
    (status,) = client.status(1.0)
    assert isinstance(status.error, UnknownOutcomeError)
    put(other, b"k")
    beside.until(1)
    client.heal()
    assert keys(client) == [b"k"]
    other.close()
    assert isinstance(beside.ended(), EtcdClosedError)


def test_a_silent_partition_only_holds_watches_up() -> None:
    etcd = FakeEtcd(threads=False)
    client, other = etcd.client("a"), etcd.client("b")
    recorder = Recorder()
    recorder.watch(client, b"k")
    client.partition(silent=True)
    put(other, b"k")
    assert etcd.deliver() == 0
    client.heal()
    assert etcd.deliver() == 1
    assert len(recorder.events) == 1


def test_an_older_copy_is_restored() -> None:
    etcd = FakeEtcd()
    client = etcd.client()
    put(client, b"a")
    copy = etcd.copy()
    revision = put(client, b"b")
    recorder = Recorder()
    recorder.watch(client, b"b", from_revision=revision)
    recorder.until(1)
    cluster = client.status(1.0)[0].cluster_id
    etcd.restore(copy)
    assert isinstance(recorder.ended(), WatchLostError)
    assert keys(client) == [b"a"]
    assert put(client, b"c") == revision
    assert client.status(1.0)[0].cluster_id == cluster
    etcd.restore(copy)
    assert keys(client) == [b"a"], "a copy does not change"


def test_a_wiped_cluster_is_another_one() -> None:
    etcd = FakeEtcd()
    client = etcd.client()
    first = put(client, b"a")
    cluster = client.read(b"a", timeout=1.0).cluster_id
    etcd.wipe()
    found = client.read(b"a", timeout=1.0)
    assert found.items == []
    assert found.cluster_id != cluster
    assert put(client, b"a") == first


def test_a_full_database_refuses_puts_until_the_alarm_is_ended() -> None:
    etcd = FakeEtcd(quota=10_000)
    client = etcd.client()
    put(client, b"k", bytes(5_000))
    with pytest.raises(NoSpaceError):
        put(client, b"l", bytes(5_000))
    with pytest.raises(NoSpaceError):
        client.transact([Compare(b"k", "version", "=", 0)], [PutOp(b"l", b"")], timeout=1.0)
    assert [alarm.kind for alarm in client.alarms(1.0)] == ["NOSPACE"]
    revision = client.transact([], [DeleteOp(b"k")], timeout=1.0).revision
    client.compact(revision, 1.0)
    with pytest.raises(NoSpaceError):
        put(client, b"l")
    etcd.full = False
    put(client, b"l", bytes(5_000))
    assert client.status(1.0)[0].db_size_in_use > 5_000


def test_a_watch_that_compaction_overtakes() -> None:
    etcd = FakeEtcd(threads=False)
    client = etcd.client()
    recorder = Recorder()
    recorder.watch(client, b"k")
    put(client, b"k")
    client.compact(put(client, b"k"), LIMIT)
    etcd.deliver()
    assert isinstance(recorder.reason, CompactedRevisionError)
    assert recorder.calls == []
