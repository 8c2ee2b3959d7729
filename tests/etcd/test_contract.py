"""The interface `Etcd`: a real etcd and the one in memory behave alike."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Final, Literal

import pytest

from tests.etcd.fake import FakeEtcd
from tests.etcd.nodes import EtcdCluster
from tests.etcd.watching import Recorder
from tests.support import LIMIT, eventually
from zkv.etcd import (
    CompactedRevisionError,
    Compare,
    DeleteOp,
    Etcd,
    EtcdClosedError,
    FutureRevisionError,
    InvalidCallError,
    Item,
    ItemEvent,
    Op,
    PutOp,
    ReadOp,
    RequestTooLargeError,
    TxnResult,
    with_prefix,
)
from zkv.etcd.client import EtcdClient

MakeClient = Callable[[], Etcd]
OPS: Final[tuple[Literal["=", "!=", "<", ">"], ...]] = ("=", "!=", "<", ">")


def put(etcd: Etcd, key: bytes, value: bytes = b"") -> int:
    """Put a value; its revision."""
    return etcd.transact([], [PutOp(key, value)], timeout=LIMIT).revision


def delete(etcd: Etcd, key: bytes, end: bytes | None = None) -> int:
    return etcd.transact([], [DeleteOp(key, end)], timeout=LIMIT).revision


def keys(etcd: Etcd, begin: bytes, end: bytes | None = None, *, revision: int = 0) -> list[bytes]:
    found = etcd.read(begin, end, revision=revision, timeout=LIMIT)
    return [item.key for item in found.items]


# Transactions


def test_an_item_tells_its_revisions_and_counts_its_puts(etcd: Etcd, prefix: bytes) -> None:
    key = prefix + b"k"
    first = put(etcd, key, b"a")
    second = put(etcd, key, b"b")
    assert second == first + 1
    assert etcd.read(key, timeout=LIMIT).items == [Item(key, b"b", first, second, 2)]
    delete(etcd, key)
    third = put(etcd, key, b"c")
    assert etcd.read(key, timeout=LIMIT).items == [Item(key, b"c", third, third, 1)]


def test_comparisons(etcd: Etcd, prefix: bytes) -> None:
    present, absent = prefix + b"p", prefix + b"q"
    made = put(etcd, present, b"b")
    last = put(etcd, present, b"b")
    wrong = []
    for target, actual in (("version", 2), ("create", made), ("mod", last)):
        for op in OPS:
            for key, is_value in ((present, actual), (absent, 0)):
                for other in (is_value - 1, is_value, is_value + 1):
                    compare = Compare(key, target, op, other)  # type: ignore[arg-type]
                    if holds(etcd, compare) != expected(is_value, op, other):
                        wrong.append(compare)
    for op in OPS:
        for value in (b"a", b"b", b"bb"):
            compare = Compare(present, "value", op, value)
            if holds(etcd, compare) != expected(b"b", op, value):
                wrong.append(compare)
            assert not holds(etcd, Compare(absent, "value", op, value))
    assert not wrong


def holds(etcd: Etcd, compare: Compare) -> bool:
    return etcd.transact([compare], [], timeout=LIMIT).succeeded


def expected(left: object, op: str, right: object) -> bool:
    return bool(eval(f"left {'==' if op == '=' else op} right", {"left": left, "right": right}))


def test_a_transaction_has_one_revision_and_reads_what_it_wrote(etcd: Etcd, prefix: bytes) -> None:
    a, b = prefix + b"a", prefix + b"b"
    before = put(etcd, b, b"old")
    read = ReadOp(*with_prefix(prefix))
    result = etcd.transact(
        [Compare(a, "version", "=", 0), Compare(b, "value", "=", b"old")],
        [read, PutOp(a, b"1"), PutOp(b, b"2"), read],
        timeout=LIMIT,
    )
    now = before + 1
    assert result.succeeded
    assert result.revision == now
    assert result.reads == [
        [Item(b, b"old", before, before, 1)],
        [Item(a, b"1", now, now, 1), Item(b, b"2", before, now, 2)],
    ]


def test_a_condition_that_fails_has_the_other_operations_executed(
    etcd: Etcd, prefix: bytes
) -> None:
    key = prefix + b"k"
    before = put(etcd, key, b"v")
    fails = [Compare(key, "version", "=", 0), Compare(key, "mod", "=", before)]
    result = etcd.transact(fails, [PutOp(key, b"no")], [ReadOp(key)], timeout=LIMIT)
    item = Item(key, b"v", before, before, 1)
    assert result == TxnResult(False, before, result.cluster_id, [[item]])
    result = etcd.transact(fails, [PutOp(key, b"no")], timeout=LIMIT)
    assert result == TxnResult(False, before, result.cluster_id, [])
    result = etcd.transact(fails, [], [PutOp(key, b"yes")], timeout=LIMIT)
    assert result == TxnResult(False, before + 1, result.cluster_id, [])


def test_only_what_changes_something_has_a_revision(etcd: Etcd, prefix: bytes) -> None:
    before = put(etcd, prefix + b"k")
    assert delete(etcd, prefix + b"absent") == before
    assert etcd.transact([], [], timeout=LIMIT).revision == before
    assert delete(etcd, *with_prefix(prefix)) == before + 1
    assert keys(etcd, *with_prefix(prefix)) == []


def test_an_operation_sees_a_deletion_before_it(etcd: Etcd, prefix: bytes) -> None:
    a, b = prefix + b"a", prefix + b"b"
    put(etcd, a)
    result = etcd.transact(
        [], [PutOp(b, b""), DeleteOp(a), DeleteOp(a), ReadOp(*with_prefix(prefix))], timeout=LIMIT
    )
    assert [item.key for item in result.reads[0]] == [b]


@pytest.mark.parametrize("branch", ["then", "otherwise"])
def test_a_key_is_not_written_twice(etcd: Etcd, prefix: bytes, branch: str) -> None:
    key = prefix + b"k"
    before = put(etcd, key, b"v")
    twice: list[list[Op]] = [
        [PutOp(key, b"1"), PutOp(key, b"2")],
        [PutOp(key, b"1"), DeleteOp(key)],
        [DeleteOp(*with_prefix(prefix)), PutOp(key, b"1")],
    ]
    for ops in twice:
        then, otherwise = (ops, []) if branch == "then" else ([], ops)
        with pytest.raises(InvalidCallError, match="duplicate"):
            etcd.transact([], then, otherwise, timeout=LIMIT)
    assert etcd.read(key, timeout=LIMIT).items == [Item(key, b"v", before, before, 1)]
    etcd.transact([], [PutOp(key, b"1")], [PutOp(key, b"2")], timeout=LIMIT)  # That is allowed.


def test_at_most_128_operations(etcd: Etcd, prefix: bytes) -> None:
    ops = [PutOp(prefix + b"%d" % each, b"") for each in range(129)]
    with pytest.raises(InvalidCallError, match="too many"):
        etcd.transact([], ops, timeout=LIMIT)
    etcd.transact([], ops[:128], timeout=LIMIT)
    assert len(keys(etcd, *with_prefix(prefix))) == 128


def test_no_key_is_empty(etcd: Etcd) -> None:
    calls: list[Callable[[], object]] = [
        lambda: etcd.transact([], [PutOp(b"", b"")], timeout=LIMIT),
        lambda: etcd.transact([], [ReadOp(b"")], timeout=LIMIT),
        lambda: etcd.read(b"", timeout=LIMIT),
    ]
    for call in calls:
        with pytest.raises(InvalidCallError, match="key is not provided"):
            call()


def test_a_request_has_at_most_a_mebibyte_and_a_half(etcd: Etcd, prefix: bytes) -> None:
    key = prefix + b"k"
    revision = put(etcd, key, bytes(3 << 19 >> 1))
    for size in (3 << 19, 3_000_000, 20_000_000):
        with pytest.raises(RequestTooLargeError):
            put(etcd, key, bytes(size))
    put(etcd, key, bytes((3 << 19) - 1_000))
    assert keys(etcd, key, revision=revision) == [key]
    both = etcd.transact([], [ReadOp(key), ReadOp(key)], timeout=LIMIT)
    assert [len(item.value) for items in both.reads for item in items] == [(3 << 19) - 1_000] * 2


# Reads


def test_ranges(etcd: Etcd, prefix: bytes) -> None:
    names = [b"a", b"ab", b"b", b"b\x00", b"b\xff", b"b\xff\xff", b"c"]
    for name in names:
        put(etcd, prefix + name)

    def found(begin: bytes, end: bytes | None) -> list[bytes]:
        return [key.removeprefix(prefix) for key in keys(etcd, begin, end)]

    assert found(prefix + b"b", None) == [b"b"]
    assert found(prefix + b"b", b"") == [b"b"]
    assert found(prefix + b"ab", prefix + b"b\xff") == [b"ab", b"b", b"b\x00"]
    assert found(prefix + b"b", prefix + b"a") == []
    assert found(*with_prefix(prefix)) == names
    assert found(*with_prefix(prefix + b"b")) == [b"b", b"b\x00", b"b\xff", b"b\xff\xff"]
    assert found(*with_prefix(prefix + b"b\xff")) == [b"b\xff", b"b\xff\xff"]
    assert set(names) <= set(found(*with_prefix(b"")))
    assert found(*with_prefix(b"\xff\xff")) == []
    put(etcd, b"\xff\xff" + prefix)
    assert found(*with_prefix(b"\xff\xff")) == [b"\xff\xff" + prefix]
    delete(etcd, b"\xff\xff" + prefix)


def test_a_limit_and_what_it_leaves(etcd: Etcd, prefix: bytes) -> None:
    for each in range(5):
        put(etcd, prefix + b"%d" % each, b"v")
    part = etcd.read(*with_prefix(prefix), limit=3, keys_only=True, timeout=LIMIT)
    assert [item.key for item in part.items] == [prefix + b"%d" % each for each in range(3)]
    assert {item.value for item in part.items} == {b""}
    assert part.more
    assert part.count == 5
    whole = etcd.read(*with_prefix(prefix), limit=5, serializable=True, timeout=LIMIT)
    assert {item.value for item in whole.items} == {b"v"}
    assert not whole.more
    limited = etcd.transact(
        [], [ReadOp(*with_prefix(prefix), limit=2, keys_only=True)], timeout=LIMIT
    )
    assert [(item.key, item.value) for item in limited.reads[0]] == [
        (prefix + b"0", b""), (prefix + b"1", b""),
    ]  # fmt: skip


def test_an_older_state(etcd: Etcd, prefix: bytes) -> None:
    a, b = prefix + b"a", prefix + b"b"
    first = put(etcd, a, b"1")
    put(etcd, b)
    deleted = delete(etcd, a)
    last = put(etcd, a, b"2")
    assert keys(etcd, *with_prefix(prefix), revision=first) == [a]
    assert keys(etcd, *with_prefix(prefix), revision=deleted) == [b]
    old = etcd.read(a, revision=first, timeout=LIMIT)
    assert old.items == [Item(a, b"1", first, first, 1)]
    assert old.revision == last
    with pytest.raises(FutureRevisionError):
        etcd.read(a, revision=last + 1, timeout=LIMIT)


def test_compaction(etcd: Etcd, prefix: bytes) -> None:
    key = prefix + b"k"
    first = put(etcd, key, b"1")
    second = put(etcd, key, b"2")
    third = put(etcd, key, b"3")
    etcd.compact(second, LIMIT)
    with pytest.raises(CompactedRevisionError):
        etcd.read(key, revision=first, timeout=LIMIT)
    assert etcd.read(key, revision=second, timeout=LIMIT).items == [
        Item(key, b"2", first, second, 2)
    ]
    for revision in (first, second):
        with pytest.raises(CompactedRevisionError):
            etcd.compact(revision, LIMIT)
    with pytest.raises(FutureRevisionError):
        etcd.compact(third + 1, LIMIT)
    etcd.compact(third, LIMIT)
    assert etcd.read(key, timeout=LIMIT).items == [Item(key, b"3", first, third, 3)]


def test_all_answers_name_one_cluster(connect: MakeClient, prefix: bytes) -> None:
    etcd, other = connect(), connect()
    ids = {
        etcd.read(prefix, timeout=LIMIT).cluster_id,
        other.transact([], [], timeout=LIMIT).cluster_id,
        *(each.cluster_id for each in etcd.status(LIMIT)),
    }
    assert len(ids) == 1
    assert ids != {0}


# Watches


def test_a_watch_from_a_revision_on(etcd: Etcd, prefix: bytes) -> None:
    a, b = prefix + b"a", prefix + b"b"
    first = put(etcd, a, b"0")
    second = put(etcd, a, b"1")
    put(etcd, b"elsewhere")
    recorder = Recorder()
    watch = recorder.watch(etcd, *with_prefix(prefix), from_revision=second)
    assert [(event.deleted, event.item) for event in recorder.until(1)] == [
        (False, Item(a, b"1", first, second, 2))
    ]
    third = etcd.transact([], [PutOp(b, b"2"), DeleteOp(a)], timeout=LIMIT).revision
    put(etcd, b"elsewhere")
    events = recorder.until(3)[1:]
    assert [(each.deleted, each.item.key, each.item.mod_revision) for each in events] == [
        (False, b, third), (True, a, third),
    ]  # fmt: skip
    assert [revision for revision, _ in recorder.calls] == [second, third]
    assert len(recorder.threads) == 1
    assert threading.current_thread().name not in recorder.threads
    watch.close()
    assert watch.join(LIMIT)


def test_a_watch_from_now_on(etcd: Etcd, prefix: bytes) -> None:
    key = prefix + b"k"
    put(etcd, key, b"before")
    recorder = Recorder()
    watch = recorder.watch(etcd, key)
    eventually(lambda: put(etcd, key, b"after") and recorder.events, "it has reached etcd")
    watch.close()
    assert {event.item.value for event in recorder.events} == {b"after"}


def test_a_watch_from_a_revision_that_has_not_come(etcd: Etcd, prefix: bytes) -> None:
    key = prefix + b"k"
    before = put(etcd, key)
    recorder = Recorder()
    watch = recorder.watch(etcd, key, from_revision=before + 3)
    for _ in range(4):
        put(etcd, key)
    events = recorder.until(2)
    watch.close()
    assert [event.item.mod_revision for event in events] == [before + 3, before + 4]


def test_a_watch_that_is_far_behind_is_handed_all_in_order(etcd: Etcd, prefix: bytes) -> None:
    first = put(etcd, prefix + b"0")
    for number in range(1, 1_201):
        etcd.transact(
            [], [PutOp(prefix + b"%d" % number, b""), PutOp(prefix + b"last", b"")], timeout=LIMIT
        )
    recorder = Recorder()
    watch = recorder.watch(etcd, *with_prefix(prefix), from_revision=first)
    events = recorder.until(2_401)
    watch.close()
    revisions = [event.item.mod_revision for event in events]
    assert revisions == sorted(revisions)
    assert len(set(events)) == len(events) == 2_401
    for revision, part in recorder.calls:
        assert part[-1].item.mod_revision == revision
    ends = [revision for revision, _ in recorder.calls]
    assert ends == sorted(set(ends)), "the events of a revision came in two parts"


def test_a_watch_from_a_compacted_revision_ends(etcd: Etcd, prefix: bytes) -> None:
    key = prefix + b"k"
    first = put(etcd, key)
    second = put(etcd, key)
    last = put(etcd, key)
    etcd.compact(second, LIMIT)
    recorder = Recorder()
    watch = recorder.watch(etcd, key, from_revision=first)
    reason = recorder.ended()
    assert isinstance(reason, CompactedRevisionError)
    assert reason.revision == second
    assert watch.join(LIMIT)
    assert recorder.ends == 1
    again = Recorder()
    watch = again.watch(etcd, key, from_revision=second)
    assert [event.item.mod_revision for event in again.until(2)] == [second, last]
    watch.close()


def test_a_closed_watch_says_nothing_more(etcd: Etcd, prefix: bytes) -> None:
    key = prefix + b"k"
    recorder, other = Recorder(), Recorder()
    revision = put(etcd, key)
    watch = recorder.watch(etcd, key, from_revision=revision)
    beside = other.watch(etcd, key, from_revision=revision)
    recorder.until(1)
    watch.close()
    watch.close()
    assert watch.join(LIMIT)
    put(etcd, key)
    other.until(2)
    beside.close()
    assert len(recorder.events) == 1
    assert recorder.ends == 0


def test_a_watch_may_be_closed_by_its_own_callback(etcd: Etcd, prefix: bytes) -> None:
    key = prefix + b"k"
    recorder = Recorder()
    revision = put(etcd, key)
    made = threading.Event()

    def on_events(revision: int, events: list[ItemEvent]) -> None:
        assert made.wait(LIMIT)
        watch.close()

    watch = etcd.watch(key, None, revision, on_events, recorder.on_end)
    made.set()
    assert watch.join(LIMIT)
    assert recorder.ends == 0


# Status, and the end


def test_the_status(etcd: Etcd, prefix: bytes) -> None:
    revision = put(etcd, prefix + b"k", bytes(1_000))
    (status,) = etcd.status(LIMIT)
    assert status.error is None
    assert status.leader == status.member_id != 0
    assert status.revision == revision
    assert status.version.startswith("3.")
    assert status.db_size >= status.db_size_in_use > 1_000
    assert status.errors == ()
    assert etcd.alarms(LIMIT) == []


def test_a_closed_client_refuses_calls_and_ends_watches(connect: MakeClient, prefix: bytes) -> None:
    etcd, other = connect(), connect()
    recorder = Recorder()
    revision = put(etcd, prefix + b"k")
    watch = recorder.watch(etcd, prefix + b"k", from_revision=revision)
    recorder.until(1)
    etcd.close()
    etcd.close()
    assert isinstance(recorder.ended(), EtcdClosedError)
    assert watch.join(LIMIT)
    calls: list[Callable[[], object]] = [
        lambda: put(etcd, prefix + b"k"),
        lambda: keys(etcd, prefix),
        lambda: etcd.status(LIMIT),
        lambda: etcd.alarms(LIMIT),
        lambda: etcd.compact(1, LIMIT),
        lambda: recorder.watch(etcd, prefix),
    ]
    for call in calls:
        with pytest.raises(EtcdClosedError):
            call()
    assert keys(other, prefix + b"k") == [prefix + b"k"]


# The one in memory beside the real one


def random_transaction(
    chance: random.Random, prefix: bytes, newest: int
) -> tuple[list[Compare], list[Op], list[Op]]:
    def key() -> bytes:
        return prefix + bytes([chance.choice(b"abcde")])

    def compare() -> Compare:
        op = chance.choice(OPS)
        if chance.random() < 0.3:
            return Compare(key(), "value", op, chance.choice([b"", b"1", b"2"]))
        target = chance.choice(["version", "create", "mod"])
        other = chance.randint(0, 3) if target == "version" else newest - chance.randint(0, 5)
        return Compare(key(), target, op, other)  # type: ignore[arg-type]

    def op() -> Op:
        end = chance.choice([None, key(), with_prefix(prefix)[1]])
        kind = chance.random()
        if kind < 0.5:
            return PutOp(key(), chance.choice([b"", b"1", b"2"]))
        if kind < 0.8:
            return ReadOp(key(), end, chance.randint(0, 3), chance.random() < 0.3)
        return DeleteOp(key(), end)

    compares = [compare() for _ in range(chance.randint(0, 2))]
    then, otherwise = ([op() for _ in range(chance.randint(0, 4))] for _ in range(2))
    return compares, then, otherwise


def test_both_answer_random_transactions_alike(node: EtcdCluster, prefix: bytes) -> None:
    seed = random.getrandbits(32)
    print("seed", seed)
    chance = random.Random(seed)
    real = EtcdClient(node.endpoints)
    before = put(real, prefix)
    cluster = FakeEtcd()
    cluster.store.revision = before - 1
    fake = cluster.client()
    put(fake, prefix)
    for etcd in (real, fake):
        etcd.compact(before, LIMIT)
    for _ in range(500):
        newest = cluster.store.revision
        asked = random_transaction(chance, prefix, newest)
        assert outcome(real, *asked) == outcome(fake, *asked), asked
        if chance.random() < 0.02:
            revision = newest - chance.randint(0, 3)
            assert compacted(real, revision) == compacted(fake, revision)
        revision = newest - chance.randint(0, 10)
        assert state(real, prefix, revision) == state(fake, prefix, revision)
    begin = cluster.store.compacted
    changes = [changes_of(etcd, prefix, begin, cluster.store.revision) for etcd in (real, fake)]
    assert changes[0] == changes[1]
    real.close()


def outcome(etcd: Etcd, compares: list[Compare], then: list[Op], otherwise: list[Op]) -> object:
    try:
        return etcd.transact(compares, then, otherwise, timeout=LIMIT)._replace(cluster_id=0)
    except InvalidCallError as error:
        return type(error)


def compacted(etcd: Etcd, revision: int) -> object:
    try:
        etcd.compact(revision, LIMIT)
    except CompactedRevisionError as error:
        return type(error)
    return None


def state(etcd: Etcd, prefix: bytes, revision: int) -> object:
    try:
        return etcd.read(*with_prefix(prefix), revision=revision, timeout=LIMIT).items
    except CompactedRevisionError as error:
        return type(error)


def changes_of(etcd: Etcd, prefix: bytes, begin: int, last: int) -> list[object]:
    """What a watch says from a revision on; a last put ends it."""
    recorder = Recorder()
    assert put(etcd, prefix, b"end") == last + 1
    watch = recorder.watch(etcd, *with_prefix(prefix), from_revision=begin + 1)
    while not recorder.events or recorder.events[-1].item.value != b"end":
        recorder.until(len(recorder.events) + 1)
    watch.close()
    return list(recorder.events)
