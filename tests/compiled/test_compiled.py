"""What is compiled, beside the Python that specifies it: whatever comes, both do the same."""

from __future__ import annotations

import functools
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.msgpack import encode

from tests.compiled.alike import check_alike, told
from tests.compiled.lane_requests import LIMITS, bodies, items_twice, nested, users
from tests.compiled.sanitizer import run_under_address_sanitizer
from tests.compiled.slices import batch_of, open_front_lane
from tests.requests.contract_stores import (
    DurableStore,
    FakeClock,
    MemoryStore,
    PureMemoryStore,
    PureStore,
    op,
    request,
)
from tests.support import unpack
from zkv import compiled
from zkv.activity import Activities
from zkv.durability.segment import pack_frames
from zkv.figures import step_of
from zkv.keyspace import CacheBound, SnapshotView, StoredEntry
from zkv.keyspace.change import DELETE, PUT, Commit, KeyChange
from zkv.keyspace.table import Table, new_table
from zkv.requests.account import Account
from zkv.requests.batch import ALL, Batch, new_batch
from zkv.requests.lane import open_lane
from zkv.requests.slow_log import SlowLog
from zkv.users.quota import Quota
from zkv.users.rights import User

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not compiled.COMPILED, reason="zkv was installed without a C compiler"
)


# --- The table: a dict ------------------------------------------------------------------------

keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
entries = st.builds(
    StoredEntry,
    st.binary(min_size=1, max_size=40),
    st.integers(0, 2**63 - 1),
    st.none() | st.integers(1, 2**63 - 1),
)
steps = st.lists(st.tuples(st.sampled_from(["set", "del", "pop", "get"]), keys, entries))


@given(steps=steps)
def test_a_table_is_a_dict(steps: list[tuple[str, str, StoredEntry]]) -> None:
    table, model = new_table(), dict[str, StoredEntry]()
    assert not isinstance(table, dict)
    for what, key, entry in steps:
        if what == "set":
            table[key] = model[key] = entry
        elif what == "del" and key in model:
            del table[key], model[key]
        elif what == "pop":
            assert table.pop(key, None) == model.pop(key, None)
        assert (key in table, table.get(key)) == (key in model, model.get(key))
        assert (len(table), dict(table)) == (len(model), model)
    assert list(table) == sorted(model)


def test_a_table_is_whole_while_it_grows() -> None:
    """It is walked through, and freed, at every size: it grows in steps."""
    for size in range(300):
        table, names = new_table(), [f"key {number}" for number in range(size)]
        for name in names:
            table[name] = StoredEntry(b"1", 1)
        assert list(table) == sorted(names)


def test_a_table_of_many_grows_and_shrinks() -> None:
    chance = random.Random(1)
    table, model = new_table(), dict[str, StoredEntry]()
    for number in range(60_000):
        key = f"key {chance.randrange(20_000)}"
        if chance.random() < 0.3 and key in model:
            del table[key], model[key]
        else:
            table[key] = model[key] = StoredEntry(b"%d" % number, number)
    assert table == model
    for key in list(model):
        del table[key]
    assert len(table) == len(list(table)) == 0


def test_bytes_are_counted_of_what_is_loaded() -> None:
    table: Any = new_table()
    table.count_bytes(["a", "ab"])
    assert not table.count_more(2)
    assert compiled.store.load_entries(table, encode([("a", 1, 1), ("ab", "text", 1)])) == 2
    changes = KeyChange(PUT, "abc", Raw(b"\x01")), KeyChange(DELETE, "a")
    frames = pack_frames([Commit(2, 1, 2, changes).pack()], 0, 7)
    compiled.store.replay(table, frames, 0, 7, 2, 2, 100, 0, 1)
    assert list(table) == ["ab", "abc"]
    assert table.bytes_under(("a",)) == table.bytes_under(("ab",)) == (2 + 5) + (3 + 1)


@pytest.mark.parametrize("key", [b"k", 1, None, "\ud800"])
def test_what_is_no_key_is_in_no_table(key: Any) -> None:
    table: Any = new_table()
    for use in (
        lambda: table[key],
        lambda: table.get(key),
        lambda: key in table,
        functools.partial(table.__setitem__, key, StoredEntry(b"1", 1)),
        functools.partial(table.__delitem__, key),
    ):
        with pytest.raises((TypeError, UnicodeEncodeError)):
            use()


NO_ENTRIES: list[Any] = [None, 1, StoredEntry(b"1", 2**63)]


@pytest.mark.parametrize("entry", NO_ENTRIES)
def test_only_entries_are_put(entry: Any) -> None:
    table: Table = new_table()
    with pytest.raises((TypeError, AttributeError, OverflowError)):
        table["k"] = entry
    assert len(table) == 0


def test_a_missing_key_is_named() -> None:
    table = new_table()
    with pytest.raises(KeyError, match="nothing"):
        table["nothing"]
    with pytest.raises(KeyError, match="nothing"):
        del table["nothing"]


# --- The log's frames -------------------------------------------------------------------------


@given(
    payloads=st.lists(st.binary(max_size=300)),
    synced=st.integers(0, 2**64 - 1),
    salt=st.integers(0, 2**32 - 1),
)
def test_frames_are_packed_alike(payloads: list[bytes], synced: int, salt: int) -> None:
    frames = pack_frames(payloads, synced, salt)
    with mock.patch("zkv.compiled.COMPILED", False):
        assert frames == pack_frames(payloads, synced, salt)


@pytest.mark.parametrize("payloads", [None, [None], [b"1", "2"], (b"1",)])
def test_frames_are_made_of_bytes(payloads: Any) -> None:
    with pytest.raises((TypeError, SystemError)):
        compiled.store.pack_frames(payloads, 0, 0)


# --- The lane: the commands -------------------------------------------------------------------


def all_of(view: SnapshotView) -> dict[str, StoredEntry]:
    return {key: entry for chunk in view.chunks() for key, entry in chunk}


def everything(store: MemoryStore | DurableStore) -> list[Any]:
    """What a store holds, and what it has logged."""
    keyspace = store.node.engine.keyspace
    read: list[Any] = [list(keyspace.entries.items())]
    read += [store.call("CHANGES", since=0), store.call("COUNT"), store.call("INFO")["rev"]]
    sessions = keyspace.sessions
    states = [sessions.state(name, 2**62) for name in sessions.names()]
    read += [sessions.statistics()[name] for name in ("replies", "bytes")]
    return read + [state for state in states if state and state[2]]


class Recorder:
    """Records what a store tells its watchers."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, StoredEntry | None]] = []

    def keep(self, key: str, old: StoredEntry | None) -> None:
        self.kept.append((key, old))

    def rolled_back(self, rev: int) -> None:
        raise AssertionError("nothing is")


@settings(max_examples=300)
@given(batches=st.lists(st.lists(bodies(), max_size=5), max_size=6), data=st.data())
def test_a_lane_does_what_the_commands_do(batches: list[list[bytes]], data: st.DataObject) -> None:
    """In any batches, on a clock that goes on, and with a snapshot that is being read."""
    clock = FakeClock()
    fast, plain = MemoryStore(clock, **LIMITS), PureMemoryStore(clock, **LIMITS)
    views, watchers = [], [Recorder(), Recorder()]
    fast._keyspace._watchers.append(watchers[0])
    plain._keyspace._watchers.append(watchers[1])
    user = data.draw(users)
    for store in (fast, plain):
        store.serve(user)
        store._keyspace.sessions._most_bytes = 3_000  # Settings allow no such limit.
    for batch in batches:
        check_alike(fast.worker, plain.worker, batch)
        check_counts(fast, user)
        check_counts(plain, user)
        clock.advance(data.draw(st.sampled_from([0, 700, 2_000])))
        if data.draw(st.booleans()):
            views.append([store._keyspace.view() for store in (fast, plain)])
    assert everything(fast) == everything(plain)
    assert watchers[0].kept == watchers[1].kept
    for of_fast, of_plain in views:
        read = [
            dict(pair for chunk in view.chunks() for pair in chunk) for view in (of_fast, of_plain)
        ]
        assert read[0] == read[1]


@settings(max_examples=60)
@given(batches=st.lists(st.lists(bodies(), max_size=5), max_size=4))
def test_a_lane_logs_what_the_commands_log(batches: list[list[bytes]]) -> None:
    """What is read back after a crash is the same, and so is every byte of the log's payloads."""
    clock = FakeClock()
    fast, plain = DurableStore(clock, **LIMITS), PureStore(clock, **LIMITS)
    try:
        for batch in batches:
            check_alike(fast.workers[0], plain.workers[0], batch)
        payloads = []
        for store in (fast, plain):
            commits, _ = store.engine.keyspace.changes_since(0, 1_000)
            payloads.append([commit.payload for commit in commits])
            store.crash()
        assert payloads[0] == payloads[1]
        assert everything(fast) == everything(plain)
    finally:
        fast.close()
        plain.close()


def test_a_silent_session_is_forgotten_whatever_the_order_of_sessions() -> None:
    """A start does not order them by their last use: a snapshot takes its time."""
    clock = FakeClock()
    fast, plain = MemoryStore(clock, session_ttl=10.0), PureMemoryStore(clock, session_ttl=10.0)
    known = [(1, b"digest..", b"reply", 0)]
    for store in (fast, plain):
        sessions = store._keyspace.sessions
        sessions.restore(("early", clock.time + 5_000, known))
        sessions.restore(("late", clock.time - 9_000, known))
        store.ok("PUT", key="k", value=0, session="s", seq=1)
    clock.advance(2_000)
    for store in (fast, plain):
        store.ok("PUT", key="k", value=1, session="late", seq=2)
        store.ok("PUT", key="k", value=1, session="early", seq=2)
        sessions = store._keyspace.sessions
        assert sorted(sessions._sessions["late"].replies) == [2]
    assert everything(fast) == everything(plain)


def check_counts(store: MemoryStore, user: User | None) -> None:
    """A store counts the bytes that it holds."""
    if user is None or user.quota is None:
        return
    prefixes, entries = user.quota.prefixes, store._keyspace.entries
    held = [(key, entry) for key, entry in entries.items() if key.startswith(prefixes)]
    expected = sum(len(key.encode()) + len(entry.value) for key, entry in held)
    assert entries.bytes_under(prefixes) == expected


def in_lane(store: MemoryStore, body: bytes) -> bool:
    """Whether a lane takes a request."""
    node = store.node
    lane = open_lane(node.engine.keyspace, node.limits, node.max_reply_bytes, False)
    assert lane is not None
    return lane.run(batch_of(body))[0] == []


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore(FakeClock())
    store.put("k", "value")
    store.put("n", 0)
    store.put("expiring", 2**63 - 3, ttl=1)
    return store


@pytest.mark.parametrize(
    "body",
    [
        request("GET", key="k"),
        request("GET", key="k", id=7),
        request("GET", id="seven", key="k"),
        request("PUT", key="k", value={"a": [1, 2]}),
        request("PUT", key="new", value="x" * 100_000),
        request("MGET", keys=["k", "absent", "é"]),
        request("MPUT", items={"k": 1, "new": 2}),
        request("PUT", key="k", value=1, session="s", seq=1),
        request("INCR", key="n"),
        request("INCR", key="n", by=-(2**63), id=7),
        request("INCR", key="expiring", by=2),
        request("INCR", key="new", session="s", seq=1),
        request("TXN", ops=[op("INCR", key="n"), op("GET", key="n"), op("INCR", key="n", by=2)]),
        request("TXN", ops=[op("GET", key="absent"), op("PUT", key="k", value=1)], id="seven"),
        request("TXN", ops=[op("INCR", key="expiring"), op("PUT", key="expiring", value=1)]),
        request("TXN", ops=[op("INCR", key="n")], if_=[("k", 1), ("new", 0)], session="s", seq=1),
        request("MPUT", items={"k": 1, "new": 2}, session="s", seq=2**62),
        request("MPUT", items=items_twice("k", "new", "k", "k")),
        request("PUT", key="k", value=nested(500)),
        request("PUT", key="k", value=[{"a": [number]} for number in range(1_000)]),
        request("MPUT", items={"k": nested(500)}),
        request("TXN", ops=[op("PUT", key="k", value=nested(500)), op("GET", key="k")]),
    ],
)
def test_a_lane_takes_what_is_plain(store: MemoryStore, body: bytes) -> None:
    assert in_lane(store, body)


def test_a_lane_leaves_what_is_beyond_a_quota(store: MemoryStore) -> None:
    """And nothing else: a user within a quota is served as fast as others."""
    store.put("q/1", 1)
    keyspace = store.node.engine.keyspace
    keyspace.set_quotas([Quota(("q/",), 1)])
    lane = open_front_lane(store.node)

    def takes(max_bytes: int, op: str, **fields: Any) -> bool:
        user = User("ann", write=["q/"], max_bytes=max_bytes)
        batch = new_batch()
        batch.add([], request(op, **fields), 0.0, 0.0, user)
        return lane.run(batch)[0] == []

    bytes_under = functools.partial(keyspace.entries.bytes_under, ("q/",))
    assert bytes_under() == 4
    assert not takes(7, "PUT", key="q/2", value=2)
    assert not takes(7, "MPUT", items={"q/1": 1, "q/2": 2})
    assert not takes(7, "TXN", ops=[op("INCR", key="q/1", by=1_000), op("INCR", key="q/3")])
    assert bytes_under() == 4
    assert takes(3, "PUT", key="q/1", value=2), "it does not grow"
    assert takes(1, "TXN", ops=[op("INCR", key="q/1"), op("GET", key="q/1")])
    assert takes(8, "PUT", key="q/2", value=2), "it fits"
    assert bytes_under() == 8
    assert takes(0, "PUT", key="q/3", value=3), "there is no quota"


def test_a_lane_uses_what_it_reads_and_evicts_what_it_has_to(store: MemoryStore) -> None:
    """Each of its ops is a use: MGET, the conditions of a TXN and INCR, too."""
    keyspace = store.node.engine.keyspace
    keyspace.set_caches([CacheBound("c/", 8 * 4)])
    for name in "abcdefgh":
        assert in_lane(store, request("PUT", key=f"c/{name}", value=1))
    assert in_lane(store, request("GET", key="c/b"))
    assert in_lane(store, request("MGET", keys=["c/c", "c/a", "c/x"]))
    ops = [op("GET", key="c/d"), op("INCR", key="c/f")]
    condition = ("c/e", keyspace.entries["c/e"].rev)
    assert in_lane(store, request("TXN", ops=ops, **{"if": [condition]}))
    assert in_lane(store, request("MPUT", items={"c/k": 1, "c/l": 2, "other": 1}))
    assert keyspace.evicted == 2
    assert [key for key in keyspace.entries if key.startswith("c/")] == [
        f"c/{name}" for name in "abcdefkl"
    ]


def test_a_lane_leaves_writes_to_a_cache_that_is_far_beyond_its_bound(store: MemoryStore) -> None:
    keyspace = store.node.engine.keyspace
    keyspace.set_caches([CacheBound("c/", 4_000)])
    assert in_lane(store, request("MPUT", items={f"c/{number:03}": 1 for number in range(600)}))
    assert in_lane(store, request("PUT", key="c/large", value="x" * 3_000))
    for body in (request("PUT", key="c/x", value=1), request("PUT", key="other", value=1)):
        assert not in_lane(store, body)
    assert store.refused("FULL", "PUT", key="c/x", value=1)["retry"] is True
    store.ok("PUT", key="other", value=1)
    assert in_lane(store, request("GET", key="c/large"))
    while keyspace.evict():
        pass
    assert in_lane(store, request("PUT", key="c/x", value=1))


@pytest.mark.parametrize(
    "value", [nested(501), {"a": nested(500)}, [0] * 1_000 + [nested(500)], nested(100_000)]
)
def test_a_lane_leaves_what_is_nested_too_deeply(store: MemoryStore, value: Any) -> None:
    for body in (
        request("PUT", key="k", value=value),
        request("MPUT", items={"new": 1, "k": value}),
        request("TXN", ops=[op("INCR", key="n"), op("PUT", key="k", value=value)]),
    ):
        assert not in_lane(store, body)
        reply = unpack(store.exchange(body))
        assert reply["code"] == "BAD_REQUEST"
        assert "is nested deeper than 500 levels" in reply["message"]
    assert store.ok("MGET", keys=["k", "new", "n"])["values"] == ["value", None, 0]


def test_items_that_are_there_twice_are_put_as_the_commands_put_them() -> None:
    """Each has the place of the first and the value of the last."""
    chance = random.Random(1)
    clock = FakeClock()
    fast, plain = MemoryStore(clock), PureMemoryStore(clock)
    watchers = [Recorder(), Recorder()]
    fast._keyspace._watchers.append(watchers[0])
    plain._keyspace._watchers.append(watchers[1])
    lists = [list(keys) for keys in ("a", "aa", "ab", "aab", "aba", "abba", "aaaa", "abcabcaac")]
    lists += [[f"{chance.randrange(10**power)}" for _ in range(10_000)] for power in range(1, 6)]
    for seq, keys in enumerate(lists, 1):
        once = request("MPUT", items=items_twice(*keys), session="s", seq=seq)
        other = request("MPUT", items=items_twice(*keys, "more"), session="s", seq=seq)
        check_alike(fast.worker, plain.worker, [once, once, other])
        assert in_lane(fast, request("MPUT", items=items_twice(*keys[:1_000])))
        plain.ok("MPUT", items=items_twice(*keys[:1_000]))
    assert everything(fast) == everything(plain)
    assert watchers[0].kept == watchers[1].kept


def test_items_that_are_there_twice_are_logged_and_counted_once() -> None:
    store = DurableStore(FakeClock())
    try:
        store.put("b", 0)
        told(store.workers[0], [request("MPUT", items=items_twice("a", "b", "a", "a"))])
        (commit,), _ = store.engine.keyspace.changes_since(1, 10)
        assert commit.count == 2
        assert [(each.key, bytes(each.value)) for each in commit.changes] == [
            ("a", b"\x03"), ("b", b"\x01")
        ]  # fmt: skip
        lane = open_lane(store.engine.keyspace, store.node.limits, 1_000, True)
        assert lane is not None
        batch = batch_of(body := request("MPUT", items=items_twice("a", "b", "a")))
        lane.run(batch, logs=True)
        size = len(batch.reply(0) or b"")
        assert batch.answered(ALL) == [("MPUT", 2, len(body), size, None, None)]
    finally:
        store.close()


def counted_ops(batch: Batch) -> dict[str, int]:
    """The number of the lane's answers by op."""
    account = Account()
    account.add_run(batch, ALL, time.perf_counter())
    return {op: sum(times.counts) for op, times in account.latencies().items()}


def test_an_answer_that_another_one_replaces_does_not_count(store: MemoryStore) -> None:
    node = store.node
    lane = open_lane(node.engine.keyspace, node.limits, node.max_reply_bytes, False)
    assert lane is not None
    batch = batch_of(request("GET", key="k"), request("PUT", key="k", value=1))
    assert lane.run(batch, logs=True)[0] == []
    assert counted_ops(batch) == {"GET": 1, "PUT": 1}
    batch.set_reply(1, b"another")
    assert (counted_ops(batch), batch.places(-1)) == ({"GET": 1}, [0])
    assert [op for op, *_ in batch.answered(ALL)] == ["GET"]


@pytest.mark.parametrize("seconds", [0.0, 1e-6, 3e-6, 0.001, 0.5, 20.0, 1e6])
def test_a_latency_of_the_lane_is_counted_as_any_other(store: MemoryStore, seconds: float) -> None:
    node = store.node
    lane = open_lane(node.engine.keyspace, node.limits, node.max_reply_bytes, False)
    assert lane is not None
    batch = batch_of(request("GET", key="k"), request("PUT", key="k", value=1), request("PING"))
    lane.run(batch)
    latencies = compiled.store.Latencies()
    began = time.perf_counter()
    batch.taken = began - seconds
    slow = SlowLog(0.4, Activities())
    is_slow = latencies.add(batch, ALL, slow)
    most = time.perf_counter() - began + seconds
    report = latencies.report()
    assert is_slow == (seconds >= 0.4)
    assert set(report) == {"GET", "PUT"}
    for counts, total in report.values():
        assert sum(counts) == 1
        assert seconds - 1e-9 <= total <= most
        assert step_of(seconds) <= counts.index(1) <= step_of(most)
    slow.resumes = time.perf_counter() + 60
    assert not latencies.add(batch, ALL, slow)
    with pytest.raises(TypeError):
        latencies.add(batch, ALL)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        latencies.add(batch, ALL, 0.4)  # type: ignore[arg-type]


def test_a_lane_leaves_what_is_large(store: MemoryStore) -> None:
    """It holds up everybody for as long as it takes."""
    body = request("PUT", key="k", value=b"x" * 2_100_000)
    assert not in_lane(store, body)
    assert unpack(store.exchange(body))["ok"]


def test_a_lane_leaves_a_reply_that_is_too_large_to_be_remembered(store: MemoryStore) -> None:
    store.put("large", "x" * 600_000)
    ops = [op("GET", key="large"), op("INCR", key="n"), op("GET", key="large")]
    once = request("TXN", ops=ops, session="s", seq=1)
    assert not in_lane(store, once)
    assert unpack(store.exchange(once))["code"] == "TOO_LARGE"
    assert in_lane(store, request("TXN", ops=ops))
    assert store.ok("GET", key="n")["value"] == 1


def test_a_lane_leaves_a_txn_that_reads_too_much() -> None:
    store = MemoryStore(FakeClock(), **LIMITS)
    store.put("k", "x" * (LIMITS["max_reply_bytes"] // 2 - 3))  # With the head of its str.
    ops = [op("GET", key="k"), op("INCR", key="n"), op("GET", key="k")]
    assert in_lane(store, request("TXN", ops=ops))
    too_much = request("TXN", ops=[*ops, op("GET", key="absent")])
    assert not in_lane(store, too_much)
    assert unpack(store.exchange(too_much))["code"] == "TOO_LARGE"
    assert store.ok("GET", key="n")["value"] == 1


@pytest.mark.parametrize("fsync", ["always", "interval", "never"])
def test_a_lane_knows_what_is_durable(fsync: str) -> None:
    """Also of what a TXN has only read: the store's revision may be on disk by now."""
    store = DurableStore(FakeClock(), fsync=fsync)
    try:
        reading = request("TXN", ops=[op("GET", key="k"), op("GET", key="absent")])
        assert unpack(store.exchange(reading))["durable"]
        store.put("k", "value")
        store.crash()
        assert unpack(store.exchange(reading))["durable"]
    finally:
        store.close()


def test_a_lane_takes_no_write_once_the_store_is_sealed(store: MemoryStore) -> None:
    store._keyspace.end()
    assert not in_lane(store, request("PUT", key="k", value=1))
    assert in_lane(store, request("GET", key="k"))


def test_a_lane_leaves_nothing_behind(store: MemoryStore) -> None:
    """References to what is not freed would grow without bounds."""
    body = request("MPUT", items={f"k{number}": "x" * number for number in range(50)})
    read = request("MGET", keys=[f"k{number}" for number in range(50)])
    ops = [op(name, key=key) for key in ("n", "m") for name in ("INCR", "GET")]
    txn, failing = request("TXN", ops=ops), request("TXN", ops=[*ops, op("INCR", key="k1")])
    twice = request("MPUT", items=items_twice(*"abcab"))
    bodies = [body, read, txn, failing, twice] * 5
    replies = store.worker.send(*bodies)
    before = [sys.getrefcount(each) for each in (body, read, None, StoredEntry)]
    size = resident()
    for _ in range(2_000):
        store.worker.send(*bodies)
    assert [sys.getrefcount(each) for each in (body, read)] == before[:2]
    assert sys.getrefcount(StoredEntry) - before[3] < 100
    assert resident() - size < 130_000_000, "the history may take 64 MiB, and as much on its way"
    assert len(replies) == 25


def resident() -> int:
    """Bytes of memory that this process takes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_commits_of_a_lane_are_taken_back(tmp_path: Path) -> None:
    """The disk refuses what a run has committed: new keys go, old ones are as they were."""
    store = DurableStore(FakeClock())
    try:
        store.put("old", 1)
        store.put("expiring", 2, ttl=100)
        store.put("counted", 3, ttl=100)
        store.put("lasting", 4, ttl=100)
        before = everything(store), store.call("COUNT", prefix="e")
        store.disk.full = True
        batch = [
            request("PUT", key="old", value=5),
            request("PUT", key="new", value=5),
            request("PUT", key="old", value=6, session="s", seq=1),
            request("MPUT", items=items_twice("expiring", "more", "expiring", "more", "more")),
            request("GET", key="old"),
            request("INCR", key="counted"),
            request("INCR", key="lasting"),
            request("TXN", ops=[op("INCR", key="lasting"), op("PUT", key="lasting", value=1)] * 2),
            request("TXN", ops=[op("INCR", key="newest"), op("INCR", key="newest")]),
        ]
        replies = told(store.workers[0], batch)
        codes = [dict(reply).get("code") for reply in replies]
        assert codes == ["READ_ONLY"] * 4 + [None] + ["READ_ONLY"] * 4
        assert dict(replies[4])["value"] == 1
        store.disk.full = False
        assert (everything(store), store.call("COUNT", prefix="e")) == before
        store.clock.advance(100_000)
        for key in ("expiring", "counted", "lasting"):
            assert store.call("GET", key=key)["code"] == "NOT_FOUND"
        assert store.call("COUNT")["count"] == 1
    finally:
        store.close()


WITHOUT_MEMORY = """
import resource, sys
from tests.requests import contract_stores
from tests.requests.contract_stores import DurableStore, FakeClock, request
from zkv.keyspace import StoredEntry

contract_stores.QUICK_DIRECTORY = sys.argv[1]  # for nobody cleans up

def end_memory():
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**22, taken + 2**22))

limits = dict.fromkeys(["max_message_bytes", "max_reply_bytes"], 2**28)
store = DurableStore(FakeClock(), max_value_bytes=2**27, **limits)
store.put("k", "x" * 2**26)
store.put("k", 0, ttl=1)
store.workers[0].send(request("PUT", key="k", value="x" * 2**26))
entry = StoredEntry(bytes(2**26), 1)
"""


@pytest.mark.parametrize(
    ("last", "where"),
    [
        ("end_memory(); store.engine.keyspace.entries['j'] = entry", "commit"),
        (
            "store.workers[0].settle(); store.workers[0].send(request('PUT', key='k', value=1));"
            "store.disk.full = True; end_memory(); store.workers[0].settle()",
            "rollback",
        ),
    ],
    ids=["commit", "rollback"],
)
def test_no_commit_is_left_half_done_where_memory_ends(
    tmp_path: Path, last: str, where: str
) -> None:
    """What the log says and what the store holds would differ for good."""
    outcome = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY + last, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == -signal.SIGABRT, outcome.stderr
    assert f"zkv: out of memory in the middle of a {where}" in outcome.stderr


# --- With AddressSanitizer ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_of_it_under_address_sanitizer(tmp_path: Path) -> None:
    """All of the above, watched at each access to memory."""
    run_under_address_sanitizer(
        tmp_path,
        "tests/compiled/test_compiled.py", "tests/compiled/test_long.py",
        "tests/compiled/test_plain.py", "tests/compiled/test_hashes.py",
        "tests/keyspace/test_table.py", "tests/keyspace/test_eviction.py", "tests/requests",
        "--ignore=tests/requests/test_exactly_once.py", "--ignore=tests/requests/test_model.py",
        "-k", "not leaves_nothing_behind and not half_done and not used_again and not given_back",
    )  # fmt: skip


# --- One binary for every Python ----------------------------------------------------------------


@pytest.mark.parametrize(
    "path", sorted((ROOT / "zkv").rglob("*.c")), ids=lambda path: str(path.name)
)
def test_no_format_asks_for_what_another_python_refuses(path: Path) -> None:
    """Built with headers from 3.13 on, a format with a # is a SystemError under 3.11 and 3.12."""
    calls = re.findall(r'Py(?:Arg_ParseTuple|_BuildValue)\w*\([^"]*"([^"]*)"', path.read_text())
    assert not [each for each in calls if "#" in each]
