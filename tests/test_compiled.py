"""What is compiled, beside the Python that specifies it: whatever comes, both do the same."""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.msgpack import Ext, encode

from tests.sanitizer import run_under_address_sanitizer
from tests.support import unpack
from tests.test_data_model import (
    DurableStore,
    FakeClock,
    MemoryStore,
    PlainMemoryStore,
    PlainStore,
    request,
)
from zkv import compiled
from zkv.broker.service import Service
from zkv.durability.segment import pack_frames
from zkv.keyspace import Entry, SnapshotView
from zkv.keyspace.lane import Answers
from zkv.keyspace.table import Table, new_table

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    not compiled.COMPILED, reason="zkv was installed without a C compiler"
)


# --- The table: a dict ------------------------------------------------------------------------

keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
entries = st.builds(
    Entry,
    st.binary(min_size=1, max_size=40),
    st.integers(0, 2**63 - 1),
    st.none() | st.integers(1, 2**63 - 1),
)
steps = st.lists(st.tuples(st.sampled_from(["set", "del", "pop", "get"]), keys, entries))


@given(steps=steps)
def test_a_table_is_a_dict(steps: list[tuple[str, str, Entry]]) -> None:
    table, model = new_table(), dict[str, Entry]()
    assert not isinstance(table, dict)
    for what, key, entry in steps:
        if what == "set":
            table[key] = model[key] = entry
        elif what == "del" and key in model:
            del table[key], model[key]
        elif what == "pop":
            assert table.pop(key, None) == model.pop(key, None)
        assert (key in table, table.get(key)) == (key in model, model.get(key))
        assert (len(table), table) == (len(model), model)
    assert sorted(table) == sorted(model)


def test_a_table_is_whole_while_it_grows() -> None:
    """It is walked through, and freed, at every size: it grows in steps."""
    for size in range(300):
        table, names = new_table(), [f"key {number}" for number in range(size)]
        for name in names:
            table[name] = Entry(b"1", 1)
        assert sorted(table) == sorted(names)


def test_a_table_of_many_grows_and_shrinks() -> None:
    chance = random.Random(1)
    table, model = new_table(), dict[str, Entry]()
    for number in range(60_000):
        key = f"key {chance.randrange(20_000)}"
        if chance.random() < 0.3 and key in model:
            del table[key], model[key]
        else:
            table[key] = model[key] = Entry(b"%d" % number, number)
    assert table == model
    for key in list(model):
        del table[key]
    assert len(table) == len(list(table)) == 0


@pytest.mark.parametrize("key", [b"k", 1, None, "\ud800"])
def test_what_is_no_key_is_in_no_table(key: Any) -> None:
    table: Any = new_table()
    for use in (
        lambda: table[key],
        lambda: table.get(key),
        lambda: key in table,
        functools.partial(table.__setitem__, key, Entry(b"1", 1)),
        functools.partial(table.__delitem__, key),
    ):
        with pytest.raises((TypeError, UnicodeEncodeError)):
            use()


NO_ENTRIES: list[Any] = [None, 1, Entry(b"1", 2**63)]


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

LIMITS: dict[str, Any] = {
    "max_key_bytes": 12,
    "max_value_bytes": 2_000,
    "max_batch": 6,
    "max_reply_bytes": 3_100,
    "session_window": 3,
    "max_sessions": 2,
}


def nested(levels: int) -> Raw:
    return Raw(b"\x91" * levels + b"\x01")


KEYS = ["a", "b", "ab", "", "\0", "\x01", "k" * 12, "k" * 13, "é", "é" * 6, "\U0010ffff"]
VALUES: list[Any] = [None, True, 0, -1, 2**40, 1.5, "text", b"\xff", [], [1, [2]], {"a": {"b": 1}}]
VALUES += [{1: 2}, "x" * 1_990, "x" * 1_999, "x" * 2_000, [0] * 600, nested(200), nested(3_000)]
VALUES += [Ext(1, b"12"), Ext(5, b"1" * 300)]
EDGES = [0, 5, 6, 7, 8, 15, 16, 31, 32, 63]
INTS: list[Any] = [number for bits in EDGES for number in (2**bits, 2**bits - 1, -(2**bits))]
INTS += [-(2**bits) - 1 for bits in EDGES if bits < 63]
INTS += [Raw(bytes([0xD0 + power]) + b"\x81" * 2**power) for power in range(4)]
INTS += [Raw(bytes([0xCC + power]) + b"\x01" * 2**power) for power in range(4)]
lane_keys = st.sampled_from(["a", "b"]) | st.sampled_from(KEYS)
lane_ints: st.SearchStrategy[Any] = st.integers(-3, 3) | st.sampled_from(INTS)
lane_values: st.SearchStrategy[Any] = lane_ints | st.sampled_from(VALUES)
ids = st.sampled_from([None, 0, -1, 2**63, 2**64 - 1, -(2**63), "id", "é", "", b"id", 1.5, [1]])
names = st.sampled_from(
    ["op", "key", "keys", "value", "by", "items", "id", "ttl", "prev", "session"]
)
plain_ops = st.one_of(
    st.fixed_dictionaries({"op": st.just("GET"), "key": lane_keys}),
    st.fixed_dictionaries({"op": st.just("PUT"), "key": lane_keys, "value": lane_values}),
    st.fixed_dictionaries(
        {"op": st.just("INCR"), "key": lane_keys}, optional={"by": lane_ints | lane_values}
    ),
)
requests = st.one_of(
    plain_ops,
    st.fixed_dictionaries({"op": st.just("MGET"), "keys": st.lists(lane_keys, max_size=7)}),
    st.fixed_dictionaries(
        {"op": st.just("MPUT"), "items": st.dictionaries(lane_keys, lane_values, max_size=7)}
    ),
    st.fixed_dictionaries({"op": st.just("DELETE"), "key": lane_keys}),
    st.fixed_dictionaries({"op": st.just("TOUCH"), "key": lane_keys, "ttl": st.just(1)}),
    st.fixed_dictionaries(
        {"op": st.just("PUT"), "key": lane_keys, "value": lane_values, "ttl": st.just(2)}
    ),
    st.dictionaries(names, lane_keys | lane_values, max_size=4),
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """The body of a request: mostly a good one, in any order of fields, or one that was spoilt."""
    fields = dict(draw(requests))
    number = draw(ids)
    if number is not None:
        fields["id"] = number
    if draw(st.booleans()):
        fields["session"] = draw(st.sampled_from(["s", "s", "é" * 32, "x" * 65, "", b"s", None]))
        fields["seq"] = draw(st.sampled_from([1, 2, 3, 4, 5, 300, 2**62, 2**63, 0, -1, None]))
    body = encode(dict(draw(st.permutations(list(fields.items())))))
    spoilt = draw(st.sampled_from(["no"] * 6 + ["cut", "flip", "more", "twice"]))
    place = draw(st.integers(0, len(body) - 1))
    if spoilt == "cut":
        return body[:place]
    if spoilt == "flip":
        return body[:place] + bytes([draw(st.integers(0, 255))]) + body[place + 1 :]
    if spoilt == "more":
        return body + b"\xc0"
    if spoilt == "twice" and body[0] in range(0x81, 0x8F):  # The first field once more.
        return bytes([body[0] + 1]) + body[1:] + encode(next(iter(fields))) + encode("a")
    return body


def told(store: MemoryStore | DurableStore, batch: list[bytes]) -> list[Any]:
    """The fields of the replies to one batch, in their order; msgpack may pack some otherwise."""
    service = Service(store.node, None, lambda: False)
    replies, later = service.answer(list(batch))
    service.commit(lambda: True)
    for places, pending in later:
        for place, body in zip(places, pending.bodies(), strict=True):
            replies[place] = body
    return [list(unpack(body).items()) for body in replies if body is not None]


def all_of(view: SnapshotView) -> dict[str, Entry]:
    return {key: entry for chunk in view.chunks() for key, entry in chunk}


def everything(store: MemoryStore | DurableStore) -> list[Any]:
    """What a store holds, and what it has logged."""
    keyspace = store.node.engine.keyspace
    read: list[Any] = [sorted(keyspace.entries.items()), list(keyspace.keys_after(""))]
    read += [store.call("CHANGES", since=0), store.call("COUNT"), store.call("INFO")["rev"]]
    sessions = keyspace.sessions
    states = [sessions.state(name, 2**62) for name in sessions.names()]
    return read + [state for state in states if state and state[2]]


@settings(max_examples=300)
@given(batches=st.lists(st.lists(bodies(), max_size=5), max_size=6), data=st.data())
def test_a_lane_does_what_the_commands_do(batches: list[list[bytes]], data: st.DataObject) -> None:
    """In any batches, on a clock that goes on, and with a snapshot that is being read."""
    clock = FakeClock()
    fast, plain = MemoryStore(clock, **LIMITS), PlainMemoryStore(clock, **LIMITS)
    views = []
    for batch in batches:
        assert told(fast, batch) == told(plain, batch)
        if data.draw(st.booleans()):
            clock.advance(700)
        if data.draw(st.booleans()):
            views.append([store._keyspace.view() for store in (fast, plain)])
    assert everything(fast) == everything(plain)
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
    fast, plain = DurableStore(clock, **LIMITS), PlainStore(clock, **LIMITS)
    try:
        payloads = []
        for store in (fast, plain):
            for batch in batches:
                told(store, batch)
            commits, _ = store.engine.keyspace.changes_since(0, 1_000)
            payloads.append([commit.payload for commit in commits])
            store.crash()
        assert payloads[0] == payloads[1]
        assert everything(fast) == everything(plain)
    finally:
        fast.close()
        plain.close()


def in_lane(store: MemoryStore, body: bytes) -> bool:
    """Whether a lane takes a request."""
    lane = store.node.lane
    assert lane is not None
    return lane.run([body], Answers()) == 1


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
        request("MPUT", items={"k": 1, "new": 2}, session="s", seq=2**62),
    ],
)
def test_a_lane_takes_what_is_plain(store: MemoryStore, body: bytes) -> None:
    assert in_lane(store, body)


def test_a_lane_leaves_what_is_large(store: MemoryStore) -> None:
    """It holds up everybody for as long as it takes."""
    body = request("PUT", key="k", value=b"x" * 1_100_000)
    assert not in_lane(store, body)
    assert unpack(store.exchange(body))["ok"]


def test_a_lane_takes_no_write_once_the_store_is_sealed(store: MemoryStore) -> None:
    store._keyspace.seal()
    assert not in_lane(store, request("PUT", key="k", value=1))
    assert in_lane(store, request("GET", key="k"))


def test_a_lane_leaves_nothing_behind(store: MemoryStore) -> None:
    """References to what is not freed would grow without bounds."""
    body = request("MPUT", items={f"k{number}": "x" * number for number in range(50)})
    read = request("MGET", keys=[f"k{number}" for number in range(50)])
    (replies, _) = store._service.answer([body, read] * 10)
    before = [sys.getrefcount(each) for each in (body, read, None, Entry)]
    size = resident()
    for _ in range(2_000):
        store._service.answer([body, read] * 10)
    assert [sys.getrefcount(each) for each in (body, read)] == before[:2]
    assert sys.getrefcount(Entry) - before[3] < 100
    assert resident() - size < 130_000_000, "the history may take 64 MiB, and as much on its way"
    assert len(replies) == 20


def resident() -> int:
    """Bytes of memory that this process takes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_commits_of_a_lane_are_taken_back(tmp_path: Path) -> None:
    """The disk refuses what a run has committed: new keys go, old ones are as they were."""
    store = DurableStore(FakeClock())
    try:
        store.put("old", 1)
        store.put("expiring", 2, ttl=100)
        before = everything(store), store.call("COUNT", prefix="e")
        store.disk.full = True
        batch = [
            request("PUT", key="old", value=5),
            request("PUT", key="new", value=5),
            request("PUT", key="old", value=6, session="s", seq=1),
            request("MPUT", items={"expiring": 7, "more": 8}),
            request("GET", key="old"),
        ]
        replies = told(store, batch)
        codes = [dict(reply).get("code") for reply in replies]
        assert codes == ["READ_ONLY"] * 4 + [None]
        assert dict(replies[4])["value"] == 1
        store.disk.full = False
        assert (everything(store), store.call("COUNT", prefix="e")) == before
        store.clock.advance(100_000)
        assert store.call("GET", key="expiring")["code"] == "NOT_FOUND"
    finally:
        store.close()


WITHOUT_MEMORY = """
import resource, sys
from tests import test_data_model
from tests.test_data_model import DurableStore, FakeClock, request
from zkv.keyspace import Entry

test_data_model.QUICK_DIRECTORY = sys.argv[1]  # for nobody cleans up

def end_memory():
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**22, taken + 2**22))

limits = dict.fromkeys(["max_message_bytes", "max_reply_bytes"], 2**28)
store = DurableStore(FakeClock(), max_value_bytes=2**27, **limits)
store.put("k", "x" * 2**26)
store.put("k", 0, ttl=1)
store.workers[0].send(request("PUT", key="k", value="x" * 2**26))
entry = Entry(bytes(2**26), 1)
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
@pytest.mark.timeout(600)
def test_all_of_it_under_address_sanitizer(tmp_path: Path) -> None:
    """All of the above, watched at each access to memory."""
    run_under_address_sanitizer(
        tmp_path, "zkv/compiled/_store", "tests/test_compiled.py", "tests/test_data_model.py",
        "-k", "not leaves_nothing_behind and not half_done",
    )  # fmt: skip
