"""What each op does, as the contract says it: without any socket, and on a clock that stands still.

The first part is a suite that any implementation of the store can run. It speaks in requests and
replies only, asks for nothing beyond `Store`, and runs once for each line of `STORES`; another
implementation joins by a line there (`tests/requests/contract_stores.py`). The second part, from
"Durability" on, is about the log.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import threading
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Final
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from tests.requests.contract_stores import (
    HOUR,
    MAX_INT64,
    MIN_INT64,
    STORES,
    Disk,
    DurableStore,
    FakeClock,
    MakeStore,
    MemoryStore,
    Store,
    Worker,
    op,
    opened,
    request,
)
from tests.support import LIMIT, Message, raw_fields, traced_memory, unpack
from zkv.errors import BadRequest, ReadOnly
from zkv.keyspace.change import Commit, KeyChange
from zkv.requests.call import Caller
from zkv.requests.lane import Answers


@pytest.fixture(params=STORES)
def make_store(request: pytest.FixtureRequest) -> Iterator[MakeStore]:
    """Makes stores of every kind: ``make_store(session_window=2)``."""
    with contextlib.ExitStack() as stack:
        yield lambda clock=None, **limits: stack.enter_context(
            opened(request.param, clock, **limits)
        )


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    """An empty store."""
    return make_store()


@pytest.fixture
def remembering(make_store: MakeStore) -> MakeStore:
    """`make_store`, where a store remembers the changes of a whole test."""

    def make(**limits: Any) -> Store:
        store = make_store(**limits)
        if not store.remembers_changes:
            pytest.skip("a snapshot lets it forget the changes before")
        return store

    return make


@pytest.fixture
def durable_store() -> Iterator[DurableStore]:
    """An empty store with a log."""
    with contextlib.closing(DurableStore(FakeClock())) as store:
        yield store


def test_every_kind_of_store_was_written_for_this_tree() -> None:
    import zkv

    assert Path(zkv.__file__).parents[1] == Path(__file__).parents[2]


# --- PUT, GET, DELETE -------------------------------------------------------------------------

RAW_VALUES = [
    b"\xc0",
    b"\xc2",
    b"\xc3",
    b"\x07",
    b"\xcc\x07",
    b"\xcf\x00\x00\x00\x00\x00\x00\x00\x07",
    b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00",
    b"\xca\x3f\xc0\x00\x00",
    b"\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00",
    b"\xa0",
    b"\xdb\x00\x00\x00\x02hi",
    b"\xa1\xff",
    b"\xc4\x02\x00\xff",
    b"\x92\x01\x90",
    b"\x82\xa1b\x01\xa1a\x02",
    b"\xc7\x03\x05abc",
    b"\xd6\xff\x00\x00\x00\x01",
]


@pytest.mark.parametrize("raw", RAW_VALUES, ids=bytes.hex)
def test_a_value_comes_back_byte_for_byte(store: Store, raw: bytes) -> None:
    store.put("k", Raw(raw))

    assert raw_fields(store.exchange(request("GET", key="k")))["value"] == raw
    assert raw_fields(store.exchange(request("MGET", keys=["k"])))["values"] == b"\x91" + raw
    assert raw in store.exchange(request("SCAN"))


def test_every_write_takes_the_next_revision_and_its_entry_tells_it(store: Store) -> None:
    assert store.rev == 0
    revisions = [store.put("a"), store.put("b"), store.put("a"), store.ok("DELETE", key="b")["rev"]]

    assert revisions == [1, 2, 3, 4]
    assert store.ok("GET", key="a") == {"ok": True, "value": 0, "rev": 3}
    assert store.rev == 4


def test_get_of_what_is_not_there_is_not_found(store: Store) -> None:
    store.refused("NOT_FOUND", "GET", key="k")
    store.put("k")
    store.ok("DELETE", key="k")
    store.refused("NOT_FOUND", "GET", key="k")


@pytest.mark.parametrize("name", ["PUT", "DELETE"])
def test_a_write_with_the_right_revision_is_done(store: Store, name: str) -> None:
    rev = store.put("k", "old")
    store.put("other")
    value = {"value": "new"} if name == "PUT" else {}

    reply = store.ok(name, key="k", if_rev=rev, **value)

    assert reply["rev"] == 3
    assert store.ok("MGET", keys=["k"])["values"] == ["new" if name == "PUT" else None]


@pytest.mark.parametrize("name", ["PUT", "DELETE"])
@pytest.mark.parametrize("asked", [0, 1, 3, 4, MAX_INT64])
def test_a_write_with_the_wrong_revision_is_a_conflict(store: Store, name: str, asked: int) -> None:
    store.put("k", "old")
    store.put("k", "newer")
    store.put("other")
    value = {"value": "mine"} if name == "PUT" else {}

    reply = store.refused("CONFLICT", name, key="k", if_rev=asked, **value)

    assert (reply["key"], reply["rev"]) == ("k", 2)
    assert store.ok("GET", key="k") == {"ok": True, "value": "newer", "rev": 2}


@pytest.mark.parametrize("name", ["PUT", "DELETE"])
def test_a_write_to_an_absent_key_with_a_revision_is_a_conflict(store: Store, name: str) -> None:
    rev = store.put("k")
    store.ok("DELETE", key="k")
    value = {"value": "mine"} if name == "PUT" else {}

    for asked in (rev, 2, 3):
        reply = store.refused("CONFLICT", name, key="k", if_rev=asked, **value)
        assert (reply["key"], reply["rev"]) == ("k", 0)


def test_put_with_revision_0_creates_and_never_replaces(store: Store) -> None:
    assert store.put("k", 1, if_rev=0) == 1
    store.refused("CONFLICT", "PUT", key="k", value=2, if_rev=0)
    store.ok("DELETE", key="k")
    assert store.put("k", 3, if_rev=0) == 3
    assert store.ok("GET", key="k")["value"] == 3


def test_delete_of_what_is_not_there_is_not_found(store: Store) -> None:
    store.refused("NOT_FOUND", "DELETE", key="k")
    store.refused("NOT_FOUND", "DELETE", key="k", prev=True)
    store.refused("NOT_FOUND", "DELETE", key="k", if_rev=0)


def test_prev_tells_what_was_there_and_whether_anything_was(store: Store) -> None:
    def told(reply: Message) -> tuple[Any, Any]:
        return reply["prev"], reply["prev_rev"]

    assert told(store.ok("PUT", key="k", value=None, prev=True)) == (None, 0)
    assert told(store.ok("PUT", key="k", value=[1], prev=True)) == (None, 1)
    assert told(store.ok("PUT", key="k", value=2, prev=True, if_rev=2)) == ([1], 2)
    assert told(store.ok("DELETE", key="k", prev=True, if_rev=3)) == (2, 3)
    assert told(store.ok("PUT", key="k", value=3, prev=True, if_rev=0)) == (None, 0)
    assert told(store.ok("DELETE", key="k", prev=True)) == (3, 5)
    assert store.ok("PUT", key="k", value=4, prev=False).keys() == {"ok", "rev", "durable"}
    assert store.ok("DELETE", key="k").keys() == {"ok", "rev", "durable"}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("GET", {"key": "k", "if_rev": 1}),
        ("PUT", {"key": "k"}),
        ("PUT", {"key": "k", "value": 1, "if_rev": -1}),
        ("PUT", {"key": "k", "value": 1, "prev": 1}),
        ("PUT", {"key": "k", "value": 1, "tll": 1}),
        ("DELETE", {"key": "k", "value": 1}),
        ("TOUCH", {"key": "k"}),
        ("TOUCH", {"key": "k", "ttl": 1, "if_rev": 1}),
        ("INCR", {"key": "k", "by": 1.0}),
        ("INCR", {"key": "k", "by": True}),
        ("INCR", {"key": "k", "by": MAX_INT64 + 1}),
        ("INCR", {"key": "k", "by": "1"}),
        ("INCR", {"key": "k", "ttl": 1}),
        ("MPUT", {"items": {"k": 1}, "if_rev": 1}),
        ("MDELETE", {"keys": {"k": 1}}),
        ("TXN", {"ops": [{"op": "MPUT", "items": {}}]}),
        ("TXN", {"ops": [{"op": "TXN", "ops": []}]}),
        ("TXN", {"ops": [], "if": [["k"]]}),
        ("TXN", {"ops": [], "if": [["k", -1]]}),
        ("SCAN", {"limit": 0}),
        ("CHANGES", {}),
        ("CHANGES", {"since": -1}),
        ("CHANGES", {"since": 0, "limit": 0}),
        ("PUT", {"key": "", "value": 1}),
        ("PUT", {"key": "\0k", "value": 1}),
        ("PUT", {"key": 1, "value": 1}),
        *[("PUT", {"key": "k", "value": 1, "ttl": ttl}) for ttl in (0, -1, -0.5, "1", 1e11)],
    ],
    ids=repr,
)
def test_a_request_that_makes_no_sense_is_refused(
    store: Store, name: str, fields: dict[str, Any]
) -> None:
    store.put("k")
    store.refused("BAD_REQUEST", name, **fields)
    assert store.items() == [["k", 0, 1]]


# --- INCR -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"\x00", 0),
        (b"\x7f", 127),
        (b"\xff", -1),
        (b"\xe0", -32),
        (b"\xcc\xff", 255),
        (b"\xcd\xff\xff", 2**16 - 1),
        (b"\xce\xff\xff\xff\xff", 2**32 - 1),
        (b"\xcf\x00\x00\x00\x00\x00\x00\x00\x05", 5),
        (b"\xcf\x7f\xff\xff\xff\xff\xff\xff\xf0", MAX_INT64 - 15),
        (b"\xd0\x80", -128),
        (b"\xd0\x05", 5),
        (b"\xd1\x80\x00", -(2**15)),
        (b"\xd2\x80\x00\x00\x00", -(2**31)),
        (b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00", MIN_INT64),
        (b"\xd3\x00\x00\x00\x00\x00\x00\x00\x05", 5),
    ],
    ids=lambda value: value.hex() if isinstance(value, bytes) else None,
)
def test_incr_adds_to_an_int_of_any_width(store: Store, raw: bytes, value: int) -> None:
    store.put("k", Raw(raw))

    reply = store.ok("INCR", key="k", by=7)
    assert reply == {"ok": True, "value": value + 7, "rev": 2, "durable": reply["durable"]}
    assert store.ok("GET", key="k") == {"ok": True, "value": value + 7, "rev": 2}


def test_incr_of_an_absent_key_starts_at_0(store: Store) -> None:
    assert store.ok("INCR", key="k")["value"] == 1
    assert store.ok("INCR", key="k")["value"] == 2
    assert store.ok("INCR", key="j", by=-5)["value"] == -5
    assert store.ok("INCR", key="i", by=0)["value"] == 0
    assert store.items() == [["i", 0, 4], ["j", -5, 3], ["k", 2, 2]]


@pytest.mark.parametrize(
    ("value", "by"),
    [
        (MAX_INT64, 1),
        (MAX_INT64, MAX_INT64),
        (1, MAX_INT64),
        (MIN_INT64, -1),
        (MIN_INT64, MIN_INT64),
        (-1, MIN_INT64),
    ],
)
def test_incr_past_the_range_of_int64_is_refused(store: Store, value: int, by: int) -> None:
    store.put("k", value)
    store.refused("WRONG_TYPE", "INCR", key="k", by=by)
    assert store.ok("GET", key="k") == {"ok": True, "value": value, "rev": 1}


@pytest.mark.parametrize(
    ("value", "by", "total"),
    [
        (MAX_INT64 - 1, 1, MAX_INT64),
        (0, MAX_INT64, MAX_INT64),
        (0, MIN_INT64, MIN_INT64),
        (MIN_INT64 + 1, -1, MIN_INT64),
        (MIN_INT64, MAX_INT64, -1),
        (MAX_INT64, MIN_INT64, -1),
        (MAX_INT64, 0, MAX_INT64),
    ],
)
def test_incr_reaches_the_bounds_of_int64(store: Store, value: int, by: int, total: int) -> None:
    store.put("k", value)
    assert store.ok("INCR", key="k", by=by)["value"] == total
    assert store.ok("GET", key="k")["value"] == total


@pytest.mark.parametrize(
    "raw",
    [
        b"\xc0",
        b"\xc2",
        b"\xc3",
        b"\xca\x3f\x80\x00\x00",
        b"\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00",
        b"\xcf\x80\x00\x00\x00\x00\x00\x00\x00",
        b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xa11",
        b"\xd9\x011",
        b"\xa1\xff",
        b"\xc4\x011",
        b"\x91\x01",
        b"\xdc\x00\x01\x01",
        b"\x81\x01\x01",
        b"\xde\x00\x01\x01\x01",
        b"\xd4\x00\x01",
        b"\xc7\x01\x00\x01",
        b"\xd6\xff\x00\x00\x00\x01",
    ],
    ids=bytes.hex,
)
def test_incr_of_anything_else_is_refused(store: Store, raw: bytes) -> None:
    store.put("k", Raw(raw))
    for by in (0, 1, -1):
        store.refused("WRONG_TYPE", "INCR", key="k", by=by)
    assert raw_fields(store.exchange(request("GET", key="k")))["value"] == raw


def test_incr_keeps_the_time_to_live(store: Store) -> None:
    store.put("k", 1, ttl=10)
    store.clock.advance(3_000)
    store.ok("INCR", key="k")
    assert store.ok("GET", key="k") == {"ok": True, "value": 2, "rev": 2, "ttl": 7.0}

    store.clock.advance(7_000)
    assert store.ok("INCR", key="k")["value"] == 1
    store.clock.advance(HOUR)
    assert store.ok("GET", key="k") == {"ok": True, "value": 1, "rev": 3}


# --- Time to live -----------------------------------------------------------------------------

GIVE_TTL: dict[str, Callable[[Store], object]] = {
    "PUT": lambda store: store.put("k", 5, ttl=1.5),
    "PUT over another": lambda store: (store.put("k", 4), store.put("k", 5, ttl=1.5)),
    "PUT over a shorter one": lambda store: (store.put("k", 4, ttl=1), store.put("k", 5, ttl=1.5)),
    "PUT over a longer one": lambda store: (store.put("k", 4, ttl=9), store.put("k", 5, ttl=1.5)),
    "MPUT": lambda store: store.ok("MPUT", items={"k": 5}, ttl=1.5),
    "TOUCH": lambda store: (store.put("k", 5), store.ok("TOUCH", key="k", ttl=1.5)),
    "TOUCH to less": lambda store: (store.put("k", 5, ttl=9), store.ok("TOUCH", key="k", ttl=1.5)),
    "TOUCH to more": lambda store: (store.put("k", 5, ttl=1), store.ok("TOUCH", key="k", ttl=1.5)),
    "INCR behind": lambda store: (store.put("k", 4, ttl=1.5), store.ok("INCR", key="k")),
    "PUT in a TXN": lambda store: store.ok("TXN", ops=[op("PUT", key="k", value=5, ttl=1.5)]),
    "TOUCH in a TXN": lambda store: store.ok(
        "TXN", ops=[op("PUT", key="k", value=5), op("TOUCH", key="k", ttl=1.5)]
    ),
    "INCR in a TXN": lambda store: store.ok(
        "TXN", ops=[op("PUT", key="k", value=4, ttl=1.5), op("INCR", key="k")]
    ),
}


@pytest.mark.parametrize("give", GIVE_TTL)
def test_a_key_is_there_until_its_time_and_gone_at_the_very_millisecond(
    store: Store, give: str
) -> None:
    GIVE_TTL[give](store)
    for left in (1.5, 0.5, 0.001):
        store.clock.time += round((store.ok("GET", key="k")["ttl"] - left) * 1000)
        reply = store.ok("GET", key="k")
        assert (reply["value"], reply["ttl"]) == (5, left)
        store.remove_expired()

    store.clock.advance(1)
    store.refused("NOT_FOUND", "GET", key="k")
    store.remove_expired()
    store.refused("NOT_FOUND", "GET", key="k")


SEES_KEY: dict[str, Callable[[Store], bool]] = {
    "GET": lambda store: store.call("GET", key="k")["ok"],
    "MGET": lambda store: store.ok("MGET", keys=["k"])["revs"] != [0],
    "PUT if_rev": lambda store: not store.call("PUT", key="k", value=1, if_rev=0)["ok"],
    "PUT prev": lambda store: store.ok("PUT", key="k", value=1, prev=True)["prev_rev"] != 0,
    "DELETE": lambda store: store.call("DELETE", key="k")["ok"],
    "DELETE if_rev": lambda store: store.call("DELETE", key="k", if_rev=1)["ok"],
    "TOUCH": lambda store: store.call("TOUCH", key="k", ttl=None)["ok"],
    "INCR": lambda store: store.ok("INCR", key="k")["value"] == 6,
    "MDELETE": lambda store: store.ok("MDELETE", keys=["k"])["deleted"] == 1,
    "TXN if": lambda store: not store.call("TXN", if_=[["k", 0]], ops=[])["ok"],
    "TXN GET": lambda store: store.ok("TXN", ops=[op("GET", key="k")])["results"][0]["rev"] != 0,
    "TXN DELETE": lambda store: store.call("TXN", ops=[op("DELETE", key="k")])["ok"],
    "TXN TOUCH": lambda store: store.call("TXN", ops=[op("TOUCH", key="k", ttl=9)])["ok"],
    "TXN INCR": lambda store: (
        store.ok("TXN", ops=[op("INCR", key="k")])["results"][0]["value"] == 6
    ),
    "TXN PUT if_rev": lambda store: (
        not store.call("TXN", ops=[op("PUT", key="k", value=1, if_rev=0)])["ok"]
    ),
    "SCAN": lambda store: bool(store.items()),
    "SCAN backwards": lambda store: bool(store.items(reverse=True)),
    "SCAN without values": lambda store: bool(store.items(prefix="k", values=False)),
    "COUNT": lambda store: store.ok("COUNT")["count"] == 1,
    "COUNT prefix": lambda store: store.ok("COUNT", prefix="k")["count"] == 1,
    "INFO": lambda store: store.ok("INFO")["keys"] == 1,
}


@pytest.mark.parametrize("probe", SEES_KEY)
def test_every_op_sees_a_key_until_its_time_and_not_from_then_on(
    make_store: MakeStore, probe: str
) -> None:
    before, expired, removed = make_store(), make_store(), make_store()
    for store in (before, expired, removed):
        store.put("k", 5, ttl=1.5)
    before.clock.advance(1_499)
    expired.clock.advance(1_500)
    removed.clock.advance(1_500)
    removed.remove_expired()

    assert [SEES_KEY[probe](store) for store in (before, expired, removed)] == [True, False, False]


def test_the_removal_is_a_change_with_a_revision_of_its_own(remembering: MakeStore) -> None:
    store = remembering()
    store.ok("MPUT", items={"b": 1, "a": 2}, ttl=1)
    store.put("c", 3, ttl=2)
    store.remove_expired()
    assert store.rev == 2

    store.clock.advance(1_000)
    assert store.rev == 2
    store.remove_expired()

    assert store.rev == 4
    assert store.ok("CHANGES", since=2)["changes"] == [
        [3, "EXPIRE", "a", None],
        [4, "EXPIRE", "b", None],
    ]
    store.remove_expired()
    assert store.rev == 4


@pytest.mark.parametrize("later", [{}, {"ttl": 10}])
@pytest.mark.parametrize("expired", [False, True])
def test_a_new_entry_does_not_die_of_the_old_ones_time_to_live(
    store: Store, expired: bool, later: dict[str, int]
) -> None:
    store.put("k", "old", ttl=1)
    store.clock.advance(1_000 if expired else 500)
    rev = store.put("k", "new", **later)
    store.clock.advance(1_000)
    store.remove_expired()

    assert store.items() == [["k", "new", rev]]
    assert store.rev == rev
    assert store.ok("GET", key="k").get("ttl") == (9.0 if later else None)


def test_put_without_ttl_and_touch_with_nil_let_a_key_stay(store: Store) -> None:
    store.put("p", 1, ttl=1)
    store.put("t", 2, ttl=1)
    store.put("p", 3)
    assert store.ok("TOUCH", key="t", ttl=None)["rev"] == 4
    store.clock.advance(HOUR)
    store.remove_expired()

    assert store.items() == [["p", 3, 3], ["t", 2, 4]]


def test_touch_changes_nothing_but_expiry_and_revision(store: Store) -> None:
    store.put("k", Raw(b"\xcf\x00\x00\x00\x00\x00\x00\x00\x07"))
    assert store.ok("TOUCH", key="k", ttl=2)["rev"] == 2
    reply = raw_fields(store.exchange(request("GET", key="k")))
    assert reply["value"] == b"\xcf\x00\x00\x00\x00\x00\x00\x00\x07"
    assert (unpack(reply["rev"]), unpack(reply["ttl"])) == (2, 2.0)
    store.refused("NOT_FOUND", "TOUCH", key="j", ttl=1)
    store.refused("NOT_FOUND", "TOUCH", key="j", ttl=None)


@pytest.mark.parametrize(
    ("ttl", "ms"), [(1, 1_000), (2.0, 2_000), (0.25, 250), (0.0004, 1), (1e-9, 1), (0.0016, 2)]
)
def test_a_ttl_is_taken_to_the_millisecond(store: Store, ttl: float, ms: int) -> None:
    store.put("k", 1, ttl=ttl)
    store.clock.advance(ms - 1)
    assert store.ok("GET", key="k")["ttl"] == 0.001
    store.clock.advance(1)
    store.refused("NOT_FOUND", "GET", key="k")


def test_many_deadlines_are_kept_apart(store: Store) -> None:
    for ms in range(1, 31):
        store.put(f"k{ms:02}", ms, ttl=ms / 1000)
    for ms in range(1, 31):
        store.clock.advance(1)
        if ms % 3 == 0:
            store.remove_expired()
        assert [value for _, value, _ in store.items()] == list(range(ms + 1, 31))
        assert store.ok("COUNT", prefix="k")["count"] == store.ok("INFO")["keys"] == 30 - ms


# --- MGET, MPUT, MDELETE ----------------------------------------------------------------------


def test_mget_answers_in_the_order_of_the_keys_and_tells_nil_from_absent(store: Store) -> None:
    store.put("n", None)
    store.put("a", 1)

    reply = store.ok("MGET", keys=["x", "a", "n", "a", "y"])

    assert reply == {"ok": True, "values": [None, 1, None, 1, None], "revs": [0, 2, 1, 2, 0]}
    assert store.ok("MGET", keys=[]) == {"ok": True, "values": [], "revs": []}


def test_mput_writes_all_with_one_revision(store: Store) -> None:
    store.put("b", "old", ttl=1)
    assert store.ok("MPUT", items={"c": 3, "a": 1, "b": 2})["rev"] == 2
    store.clock.advance(HOUR)
    assert store.items() == [["a", 1, 2], ["b", 2, 2], ["c", 3, 2]]
    assert store.rev == 2


def test_mput_gives_all_the_same_time_to_live(store: Store) -> None:
    store.ok("MPUT", items={"a": 1, "b": 2}, ttl=2)
    assert [store.ok("GET", key=key)["ttl"] for key in "ab"] == [2.0, 2.0]
    store.clock.advance(1_999)
    assert store.ok("MGET", keys=["a", "b"])["revs"] == [1, 1]
    store.clock.advance(1)
    assert store.ok("MGET", keys=["a", "b"])["revs"] == [0, 0]


def test_mdelete_removes_what_is_there_with_one_revision(store: Store) -> None:
    store.ok("MPUT", items=dict.fromkeys("abcd", 0))
    assert store.ok("MDELETE", keys=["a", "x", "c", "a"])["deleted"] == 2
    assert store.rev == 2
    assert store.items() == [["b", 0, 1], ["d", 0, 1]]


def test_a_write_of_nothing_takes_no_revision(store: Store) -> None:
    store.put("a")
    assert store.ok("MPUT", items={})["rev"] == 1
    assert store.ok("MDELETE", keys=[])["rev"] == 1
    assert store.ok("MDELETE", keys=["x", "y"]).items() >= {"deleted": 0, "rev": 1}.items()
    assert store.ok("TXN", ops=[])["rev"] == 1
    assert store.rev == 1


@pytest.mark.parametrize("bad", ["", "\0", "k" * 1_025])
def test_one_bad_key_spoils_the_whole_batch(store: Store, bad: str) -> None:
    store.put("a", 1)
    code = "TOO_LARGE" if len(bad) > 1 else "BAD_REQUEST"
    store.refused(code, "MPUT", items={"a": 2, "b": 2, bad: 2})
    store.refused(code, "MDELETE", keys=["a", bad])
    store.refused(code, "TXN", ops=[op("DELETE", key="a"), op("PUT", key=bad, value=1)])
    assert store.items() == [["a", 1, 1]]


# --- TXN --------------------------------------------------------------------------------------


def test_txn_applies_all_with_one_revision_and_answers_for_each(store: Store) -> None:
    store.ok("MPUT", items={"d": "gone", "t": "kept", "i": 41})

    reply = store.ok(
        "TXN",
        ops=[
            op("PUT", key="p", value="new", prev=True),
            op("DELETE", key="d", prev=True),
            op("TOUCH", key="t", ttl=5),
            op("INCR", key="i"),
            op("GET", key="i"),
            op("GET", key="x"),
            op("GET", key="t"),
        ],
    )

    assert reply["rev"] == 2
    put, delete, touch, incr, *gets = reply["results"]
    assert put.items() >= {"ok": True, "rev": 2, "prev": None, "prev_rev": 0}.items()
    assert delete.items() >= {"ok": True, "rev": 2, "prev": "gone", "prev_rev": 1}.items()
    assert touch.items() >= {"ok": True, "rev": 2}.items()
    assert incr.items() >= {"ok": True, "rev": 2, "value": 42}.items()
    assert gets == [
        {"ok": True, "value": 42, "rev": 2},
        {"ok": True, "value": None, "rev": 0},
        {"ok": True, "value": "kept", "rev": 2, "ttl": 5.0},
    ]
    assert store.rev == 2
    assert store.items() == [["i", 42, 2], ["p", "new", 2], ["t", "kept", 2]]


def test_an_op_in_a_txn_sees_what_the_ones_before_have_done(store: Store) -> None:
    store.put("k", 1)

    reply = store.ok(
        "TXN",
        ops=[
            op("DELETE", key="k"),
            op("GET", key="k"),
            op("PUT", key="k", value=10, if_rev=0, prev=True),
            op("INCR", key="k", by=5),
            op("PUT", key="k", value=20, if_rev=2, prev=True),
            op("TOUCH", key="k", ttl=1),
            op("INCR", key="k"),
            op("GET", key="k"),
            op("DELETE", key="k", if_rev=2, prev=True),
            op("INCR", key="k", by=7),
        ],
    )

    results = reply["results"]
    assert (results[1]["value"], results[1]["rev"]) == (None, 0)
    assert (results[2]["prev"], results[2]["prev_rev"]) == (None, 0)
    assert results[3]["value"] == 15
    assert (results[4]["prev"], results[4]["prev_rev"]) == (15, 2)
    assert results[6]["value"] == 21
    assert results[7] == {"ok": True, "value": 21, "rev": 2, "ttl": 1.0}
    assert (results[8]["prev"], results[8]["prev_rev"]) == (21, 2)
    assert results[9]["value"] == 7
    store.clock.advance(HOUR)
    store.remove_expired()
    assert store.items() == [["k", 7, 2]]


FAILING: list[tuple[str, dict[str, Any]]] = [
    ("NOT_FOUND", op("DELETE", key="x")),
    ("NOT_FOUND", op("DELETE", key="made", if_rev=0)),
    ("NOT_FOUND", op("TOUCH", key="x", ttl=1)),
    ("CONFLICT", op("PUT", key="a", value=1, if_rev=0)),
    ("CONFLICT", op("PUT", key="x", value=1, if_rev=1)),
    ("CONFLICT", op("DELETE", key="a", if_rev=2)),
    ("WRONG_TYPE", op("INCR", key="s")),
    ("WRONG_TYPE", op("INCR", key="n", by=MAX_INT64)),
    ("BAD_REQUEST", op("PUT", key="", value=1)),
    ("TOO_LARGE", op("PUT", key="k" * 2_000, value=1)),
    ("TOO_LARGE", op("GET", key="k" * 2_000)),
]


@pytest.mark.parametrize(("code", "failing"), FAILING, ids=str)
def test_a_txn_of_which_one_op_fails_leaves_nothing_behind(
    remembering: MakeStore, code: str, failing: dict[str, Any]
) -> None:
    store = remembering()
    store.ok("MPUT", items={"a": 1, "s": "text", "n": 1})
    store.ok("TOUCH", key="n", ttl=60)
    before = store.items()
    first = [
        op("PUT", key="made", value=1),
        op("DELETE", key="made"),
        op("TOUCH", key="n", ttl=1),
        op("PUT", key="z", value=0, ttl=1),
    ]
    then = [op("PUT", key="a", value=2), op("DELETE", key="n")]

    reply = store.refused(code, "TXN", ops=[*first, failing, *then])
    assert reply["index"] == 4
    if code == "CONFLICT":
        assert reply["key"] == failing["key"]
        assert reply["rev"] == (1 if failing["key"] == "a" else 0)

    assert store.items() == before
    assert store.ok("CHANGES", since=2) == {"ok": True, "changes": [], "next": 2, "rev": 2}
    assert store.ok("GET", key="n")["ttl"] == 60.0
    store.clock.advance(5_000)
    store.remove_expired()
    assert store.items() == before
    assert store.put("next") == 3


def test_a_txn_fails_with_the_first_thing_that_does_not_hold(store: Store) -> None:
    a, b = store.put("a", 1), store.put("b", 2)

    bad_condition = store.refused(
        "CONFLICT",
        "TXN",
        if_=[["a", a], ["x", 0], ["b", a]],
        ops=[op("DELETE", key="x")],
    )
    assert bad_condition.items() >= {"field": "if", "index": 2, "key": "b", "rev": b}.items()
    present = store.refused("CONFLICT", "TXN", if_=[["a", 0]], ops=[op("DELETE", key="x")])
    assert present.items() >= {"field": "if", "index": 0, "key": "a", "rev": a}.items()
    absent = store.refused("CONFLICT", "TXN", if_=[["x", 1]], ops=[])
    assert absent.items() >= {"field": "if", "index": 0, "key": "x", "rev": 0}.items()
    bad_key = store.refused("BAD_REQUEST", "TXN", if_=[["a", a], ["", 0]], ops=[])
    assert (bad_key["field"], bad_key["index"]) == ("if", 1)
    ops = [op("GET", key="a"), op("DELETE", key="b"), op("DELETE", key="b"), op("INCR", key="b")]
    absent = store.refused("NOT_FOUND", "TXN", if_=[["a", a]], ops=ops)
    assert (absent["field"], absent["index"]) == ("ops", 2)
    ops = [op("PUT", key="a", value=1), op("PUT", key="b", value=1, if_rev=0)]
    bad_op = store.refused("CONFLICT", "TXN", if_=[["a", a], ["b", b]], ops=ops)
    assert bad_op.items() >= {"field": "ops", "index": 1, "key": "b", "rev": b}.items()
    ops = [op("PUT", key="b", value=1), op("DELETE", key="b", if_rev=b)]
    own = store.refused("CONFLICT", "TXN", ops=ops)
    assert own.items() >= {"field": "ops", "index": 1, "key": "b", "rev": b + 1}.items()


def test_conditions_are_about_the_state_before_the_ops(store: Store) -> None:
    a = store.put("a", 1)
    ops = [op("PUT", key="a", value=2), op("PUT", key="b", value=2)]
    assert store.ok("TXN", if_=[["a", a], ["b", 0], ["a", a]], ops=ops)["rev"] == 2
    store.refused("CONFLICT", "TXN", if_=[["a", a], ["b", 0]], ops=ops)
    assert store.items() == [["a", 2, 2], ["b", 2, 2]]


def test_a_txn_that_only_reads_takes_no_revision(store: Store) -> None:
    rev = store.put("a", 1)
    reply = store.ok("TXN", if_=[["a", rev]], ops=[op("GET", key="a"), op("GET", key="b")])
    assert reply["rev"] == store.rev == 1
    assert [(result["value"], result["rev"]) for result in reply["results"]] == [(1, 1), (None, 0)]


def test_a_txn_that_undoes_itself_takes_a_revision_all_the_same(remembering: MakeStore) -> None:
    store = remembering()
    assert store.ok("TXN", ops=[op("PUT", key="a", value=1), op("DELETE", key="a")])["rev"] == 1
    assert store.items() == []
    assert store.ok("CHANGES", since=0)["changes"] == [[1, "PUT", "a", 1], [1, "DELETE", "a", None]]


@pytest.mark.parametrize(
    "alien",
    [
        {"id": 1},
        {"id": "x"},
        {"session": "s", "seq": 1},
        {"session": "s"},
        {"seq": 1},
        {"deadline": 2**62},
        {"durable": True},
    ],
    ids=repr,
)
@pytest.mark.parametrize("inner", [op("PUT", key="a", value=1), op("GET", key="a")], ids=str)
def test_fields_of_a_whole_request_are_refused_inside_a_txn(
    store: Store, inner: dict[str, Any], alien: dict[str, Any]
) -> None:
    reply = store.refused("BAD_REQUEST", "TXN", ops=[op("PUT", key="b", value=1), inner | alien])
    assert reply["index"] == 1
    assert any(f"`{name}`" in reply["message"] for name in alien)
    assert store.items() == []


# --- SCAN and COUNT ---------------------------------------------------------------------------

LETTERS = "a\x01\x7f\x80\xe9\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff"
"""Keys of every length in UTF-8, the first and last of each, and the neighbours of surrogates."""

keys = st.text(LETTERS, min_size=1, max_size=3)
bounds = st.none() | st.text(LETTERS + "\0", max_size=3)
in_few_stores = pytest.mark.parametrize("kind", ["memory", "snapshot, reopened"])


def brute_scan(
    there: dict[str, Any],
    prefix: str | None = None,
    start: str | None = None,
    end: str | None = None,
    after: str | None = None,
    limit: int = 100,
    reverse: bool = False,
    **_: object,
) -> tuple[list[str], str | None]:
    """The keys of a page and its ``next``, found the simple way."""
    order = sorted(there, key=str.encode, reverse=reverse)
    found = [
        key
        for key in map(str.encode, order)
        if key.startswith((prefix or "").encode())
        and (start is None or key >= start.encode())
        and (end is None or key < end.encode())
        and (after is None or (key < after.encode() if reverse else key > after.encode()))
    ]
    page = [key.decode() for key in found[:limit]]
    return page, page[-1] if len(found) > limit else None


def given_fields(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Maps of these fields, any of which may be absent; a field that is None is absent, too."""
    return st.fixed_dictionaries({}, optional=strategies).map(
        lambda fields: {name: value for name, value in fields.items() if value is not None}
    )


scans = given_fields(
    prefix=bounds,
    start=bounds,
    end=bounds,
    after=bounds,
    limit=st.integers(1, 12),
    reverse=st.booleans(),
    values=st.booleans(),
)
lives = st.sampled_from([None, 1, 2])


def fill(store: Store, entries: dict[str, int | None]) -> dict[str, list[Any]]:
    """Write entries with these ttls, let a second pass; the items that are left."""
    for number, (key, ttl) in enumerate(entries.items()):
        store.put(key, number, **({} if ttl is None else {"ttl": ttl}))
    store.clock.advance(1_000)
    return {
        key: [key, number, number + 1]
        for number, (key, ttl) in enumerate(entries.items())
        if ttl != 1
    }


@in_few_stores
@given(entries=st.dictionaries(keys, lives, max_size=15), fields=scans, removed=st.booleans())
def test_scan_gives_what_a_search_through_all_gives(
    kind: str, entries: dict[str, int | None], fields: dict[str, Any], removed: bool
) -> None:
    with opened(kind) as store:
        there = fill(store, entries)
        if removed:
            store.remove_expired()
        rev = store.rev

        reply = store.ok("SCAN", **fields)

        page, following = brute_scan(there, **fields)
        items = [there[key] for key in page]
        if fields.get("values") is False:
            items = [[key, None, rev] for key, _, rev in items]
        assert reply == {"ok": True, "items": items, "next": following, "rev": rev}


@in_few_stores
@given(entries=st.dictionaries(keys, lives, max_size=15), prefix=bounds, removed=st.booleans())
def test_count_counts_what_scan_gives(
    kind: str, entries: dict[str, int | None], prefix: str | None, removed: bool
) -> None:
    with opened(kind) as store:
        there = fill(store, entries)
        if removed:
            store.remove_expired()
        fields = {} if prefix is None else {"prefix": prefix}

        page, _ = brute_scan(there, prefix)
        assert store.ok("COUNT", **fields) == {"ok": True, "count": len(page)}
        assert store.ok("INFO")["keys"] == len(there)


def test_scan_gives_100_entries_with_their_values_unless_told_otherwise(store: Store) -> None:
    store.ok("MPUT", items={f"{number:03}": number for number in range(101)})
    reply = store.ok("SCAN")
    assert reply["items"] == [[f"{number:03}", number, 1] for number in range(100)]
    assert reply["next"] == "099"
    assert store.ok("SCAN", after="099")["items"] == [["100", 100, 1]]
    assert store.ok("SCAN", limit=101)["next"] is None


def pages(store: Store, limit: int, between: Callable[[], object], **fields: Any) -> list[Any]:
    """All items of a scan, page by page."""
    items: list[Any] = []
    after: dict[str, str] = {}
    while True:
        reply = store.ok("SCAN", limit=limit, **fields, **after)
        assert len(reply["items"]) <= limit
        items += reply["items"]
        if reply["next"] is None:
            return items
        after = {"after": reply["next"]}
        between()


writes_between = st.lists(
    st.tuples(st.sampled_from(["PUT", "short", "DELETE", "expiry"]), keys), max_size=40
)


@pytest.mark.parametrize("kind", ["memory", "log, never"])
@given(
    staying=st.sets(keys, max_size=15),
    others=writes_between,
    limit=st.integers(1, 5),
    reverse=st.booleans(),
    each=st.integers(1, 6),
)
def test_a_scan_page_by_page_under_writes_gives_each_staying_key_once(
    kind: str,
    staying: set[str],
    others: list[tuple[str, str]],
    limit: int,
    reverse: bool,
    each: int,
) -> None:
    with opened(kind) as store:
        store.ok("MPUT", items=dict.fromkeys(staying, "stays"))
        writes = iter([(how, key) for how, key in others if key not in staying])

        def write(how: str, key: str) -> None:
            match how:
                case "PUT":
                    store.put(key)
                case "short":
                    store.put(key, ttl=0.002)
                case "DELETE":
                    store.call("DELETE", key=key)
                case "expiry":
                    store.clock.advance(1)
                    store.remove_expired()

        def write_some() -> None:
            for how, key in itertools.islice(writes, each):
                write(how, key)

        write_some()
        found = [key for key, _, _ in pages(store, limit, write_some, reverse=reverse)]

        assert found == sorted(set(found), key=str.encode, reverse=reverse)
        assert [key for key in found if key in staying] == sorted(staying, reverse=reverse)


def test_scans_and_counts_beside_writers_in_other_threads(durable_store: DurableStore) -> None:
    store = durable_store
    staying = [f"{number:03}" for number in range(0, 200, 2)]
    store.ok("MPUT", items=dict.fromkeys(staying, "stays"))
    done = threading.Event()
    errors: list[BaseException] = []

    def write(worker: Worker, mine: list[str]) -> None:
        # Each batch is put and taken away as a whole: whoever sees a part of it sees a torn write.
        try:
            while not done.is_set():
                for body in (
                    request("MPUT", items=dict.fromkeys(mine, "goes")),
                    request("MDELETE", keys=mine),
                ):
                    assert unpack(worker.exchange(body))["ok"]
        except BaseException as error:
            errors.append(error)

    batches = [[f"{number:03}" for number in range(first, 200, 8)] for first in (1, 3, 5)]
    threads = [
        threading.Thread(target=write, args=(store.worker(), batch), daemon=True)
        for batch in batches
    ]
    for thread in threads:
        thread.start()
    reverse = False
    for _ in range(60):
        reverse = not reverse
        found = [key for key, _, _ in pages(store, 7, lambda: None, reverse=reverse)]
        assert found == sorted(set(found), reverse=reverse)
        assert [key for key in found if key in staying] == sorted(staying, reverse=reverse)
        at_once = {key for key, _, _ in store.items()}
        for batch in batches:
            assert len(at_once & set(batch)) in {0, len(batch)}
            assert store.ok("MGET", keys=batch)["revs"].count(0) in {0, len(batch)}
        assert (store.ok("COUNT")["count"] - len(staying)) % len(batches[0]) == 0
    done.set()
    for thread in threads:
        thread.join()
    assert errors == []


# --- CHANGES ----------------------------------------------------------------------------------


def test_changes_tell_what_became_of_each_key(remembering: MakeStore) -> None:
    store = remembering()
    store.put("a", [1], ttl=60)
    store.ok("INCR", key="n", by=3)
    store.ok("TOUCH", key="a", ttl=None)
    store.ok("MPUT", items={"b": 1, "c": 2}, ttl=1)
    store.ok("TXN", ops=[op("PUT", key="d", value=1), op("INCR", key="d"), op("DELETE", key="a")])
    store.ok("MDELETE", keys=["n", "x", "b"])
    store.clock.advance(1_000)
    store.remove_expired()
    store.ok("DELETE", key="d")

    everything: list[list[Any]] = [
        [1, "PUT", "a", [1]],
        [2, "PUT", "n", 3],
        [3, "TOUCH", "a", [1]],
        [4, "PUT", "b", 1],
        [4, "PUT", "c", 2],
        [5, "PUT", "d", 1],
        [5, "PUT", "d", 2],
        [5, "DELETE", "a", None],
        [6, "DELETE", "n", None],
        [6, "DELETE", "b", None],
        [7, "EXPIRE", "c", None],
        [8, "DELETE", "d", None],
    ]
    assert store.ok("CHANGES", since=0) == {
        "ok": True, "changes": everything, "next": 8, "rev": 8,
    }  # fmt: skip
    for since in range(9):
        assert store.ok("CHANGES", since=since)["changes"] == [
            change for change in everything if change[0] > since
        ]


def test_what_changes_nothing_is_no_change(remembering: MakeStore) -> None:
    store = remembering()
    store.put("a")
    store.call("DELETE", key="x", session="s", seq=1)
    store.call("PUT", key="a", value=1, if_rev=0)
    store.ok("MDELETE", keys=["x"], session="s", seq=2)
    store.ok("TXN", ops=[op("GET", key="a")], session="s", seq=3)
    assert store.ok("CHANGES", since=0) == {
        "ok": True, "changes": [[1, "PUT", "a", 0]], "next": 1, "rev": 1,
    }  # fmt: skip
    assert store.ok("CHANGES", since=1) == {"ok": True, "changes": [], "next": 1, "rev": 1}


@pytest.mark.parametrize("kind", ["memory", "log, reopened"])
@given(
    sizes=st.lists(st.integers(1, 6), max_size=12),
    limit=st.integers(1, 9),
    prefix=st.sampled_from(["", "a", "b", "x"]),
)
def test_a_page_of_changes_ends_with_a_whole_revision(
    kind: str, sizes: list[int], limit: int, prefix: str
) -> None:
    with opened(kind) as store:
        everything: list[list[Any]] = []
        for rev, size in enumerate(sizes, 1):
            items = {f"{'ab'[rev % 2]}{number}": rev for number in range(size)}
            store.ok("MPUT", items=items)
            everything += [[rev, "PUT", key, rev] for key in items]

        found: list[list[Any]] = []
        since = 0
        while since < len(sizes):
            reply = store.ok("CHANGES", since=since, limit=limit, prefix=prefix)
            page = reply["changes"]
            assert reply["rev"] == len(sizes)
            assert reply["next"] > since, "it goes on"
            since = reply["next"]
            before_last = [change for change in page if change[0] < max(page)[0]]
            assert len(before_last) < limit, "it ends as soon as there are enough"
            found += page
        assert found == [change for change in everything if change[2].startswith(prefix)]
        assert since == len(sizes)


def test_a_page_of_changes_has_1000_unless_told_otherwise(remembering: MakeStore) -> None:
    store = remembering()
    for batch in range(3):
        store.ok("MPUT", items={f"{batch}-{number}": 0 for number in range(600)})
    reply = store.ok("CHANGES", since=0)
    assert (len(reply["changes"]), reply["next"], reply["rev"]) == (1_200, 2, 3)


@pytest.mark.parametrize("limits", [{"history": 5}, {"history_bytes": 130}], ids=repr)
def test_changes_that_are_not_kept_are_compacted(
    remembering: MakeStore, limits: dict[str, int]
) -> None:
    store = remembering(**limits)
    for number in range(4):
        store.put("k", number)  # 29 bytes each, as they stand in the log
    assert len(store.ok("CHANGES", since=0)["changes"]) == 4
    store.ok("MPUT", items={"k": 4, "j": 4})
    store.put("k", 5)

    # 7 changes in 6 revisions; 5 changes or 130 bytes, in whole revisions, are kept.
    for since in (0, 1):
        assert store.refused("COMPACTED", "CHANGES", since=since)["oldest"] == 3
    assert [change[0] for change in store.ok("CHANGES", since=2)["changes"]] == [3, 4, 5, 5, 6]


def test_a_revision_larger_than_the_history_is_kept_until_the_next(
    remembering: MakeStore,
) -> None:
    store = remembering(history=2)
    store.put("k")
    store.ok("MPUT", items={"a": 1, "b": 2, "c": 3})
    assert store.refused("COMPACTED", "CHANGES", since=0)["oldest"] == 2
    assert len(store.ok("CHANGES", since=1)["changes"]) == 3
    store.put("k")
    assert store.refused("COMPACTED", "CHANGES", since=1)["oldest"] == 3
    assert store.ok("CHANGES", since=2)["changes"] == [[3, "PUT", "k", 0]]


def test_without_history_only_the_newest_revision_is_kept(remembering: MakeStore) -> None:
    store = remembering(history=0)
    store.put("k")
    store.put("l")
    assert store.refused("COMPACTED", "CHANGES", since=0)["oldest"] == 2
    assert store.ok("CHANGES", since=1)["changes"] == [[2, "PUT", "l", 0]]


# --- Exactly-once writes ----------------------------------------------------------------------


def fill_for_once(store: Store) -> None:
    store.ok("MPUT", items={"a": 1, "b": 2})


ONCE: dict[str, dict[str, Any]] = {
    "PUT": op("PUT", key="a", value="v", prev=True),
    "DELETE": op("DELETE", key="a", prev=True),
    "TOUCH": op("TOUCH", key="a", ttl=5),
    "INCR": op("INCR", key="a", by=2),
    "MPUT": op("MPUT", items={"a": 5, "c": 6}, ttl=60),
    "MDELETE": op("MDELETE", keys=["a", "b", "x"]),
    "TXN": op("TXN", ops=[op("INCR", key="a"), op("GET", key="b"), op("DELETE", key="b")]),
    "nothing to do": op("MDELETE", keys=["x"]),
    "NOT_FOUND": op("DELETE", key="x"),
    "NOT_FOUND, TOUCH": op("TOUCH", key="x", ttl=1),
    "CONFLICT": op("PUT", key="a", value=1, if_rev=0),
    "WRONG_TYPE": op("INCR", key="a", by=MAX_INT64),
    "CONFLICT in a TXN": op("TXN", **{"if": [["b", 1], ["a", 0]]}, ops=[]),
    "NOT_FOUND in a TXN": op("TXN", ops=[op("INCR", key="a"), op("DELETE", key="x")]),
}


@pytest.mark.parametrize("write", ONCE)
def test_a_repeat_is_answered_as_the_first_and_does_nothing(store: Store, write: str) -> None:
    fill_for_once(store)
    once = ONCE[write] | {"session": "s", "seq": 1}

    first = store.call(**once)
    after = store.items(), store.rev
    store.put("between")
    rev = store.rev
    repeats = [store.call(**once), store.call(**once)]

    assert "replayed" not in first
    # By the time of a repeat it may have got to the disk.
    known = {field: value for field, value in first.items() if field != "durable"}
    for repeat in repeats:
        assert repeat.items() >= (known | {"replayed": True}).items()
        assert repeat.keys() == first.keys() | {"replayed"}
    assert store.rev == rev
    store.ok("DELETE", key="between")
    assert store.items() == after[0]


def test_a_refusal_is_remembered_although_the_write_could_be_done_by_now(store: Store) -> None:
    refusals = {
        1: ("NOT_FOUND", op("DELETE", key="k")),
        2: ("CONFLICT", op("PUT", key="k", value=1, if_rev=2)),
        3: ("WRONG_TYPE", op("INCR", key="s")),
        4: ("NOT_FOUND", op("TXN", ops=[op("DELETE", key="k")])),
    }
    store.put("s", "text")
    for seq, (code, write) in refusals.items():
        assert store.call(**write, session="s", seq=seq)["code"] == code

    store.put("k", 0)
    store.put("s", 1)
    before = store.items()

    for seq, (code, write) in refusals.items():
        repeat = store.call(**write, session="s", seq=seq)
        assert (repeat["code"], repeat["replayed"], repeat["applied"]) == (code, True, False)
    assert store.items() == before
    assert store.call("DELETE", key="k", session="s", seq=5)["ok"]


def test_a_repeat_has_its_own_id(store: Store) -> None:
    assert store.ok("INCR", key="k", session="s", seq=1, id=7)["id"] == 7
    assert store.ok("INCR", key="k", session="s", seq=1, id="x")["id"] == "x"
    assert "id" not in store.ok("INCR", key="k", session="s", seq=1)
    assert "id" not in store.ok("INCR", key="j", session="s", seq=2)
    assert store.ok("INCR", key="j", session="s", seq=2, id=1)["id"] == 1


def test_other_content_under_a_remembered_number_is_refused(store: Store) -> None:
    first: dict[str, Any] = op("PUT", key="k", value=1, session="s", seq=1)
    store.ok(**(first))

    others: list[dict[str, Any]] = [
        {"value": 2},
        {"value": Raw(b"\xcc\x01")},
        {"value": 1.0},
        {"value": True},
        {"key": "j"},
        {"ttl": 1},
        {"if_rev": 0},
        {"prev": True},
    ]
    for other in others:
        store.refused("BAD_REQUEST", **(first | other))
    store.refused("BAD_REQUEST", "INCR", key="k", session="s", seq=1)

    same: list[dict[str, Any]] = [
        {"durable": not isinstance(store, MemoryStore)},
        {"deadline": 2**53},
        {"id": 5},
        {"ttl": None},
        {"prev": False},
    ]
    for more in same:
        assert store.ok(**(first | more))["replayed"] is True
    assert store.items() == [["k", 1, 1]]


def test_the_window_ends_exactly_where_it_should(make_store: MakeStore) -> None:
    store = make_store(session_window=4)
    for seq in range(1, 8):
        store.ok("INCR", key="k", session="s", seq=seq)

    for seq in (1, 2, 3):
        store.refused("STALE_SEQ", "INCR", key="k", session="s", seq=seq)
    for seq in (4, 5, 6, 7):
        reply = store.ok("INCR", key="k", session="s", seq=seq)
        assert (reply["value"], reply["replayed"]) == (seq, True)
    assert store.ok("GET", key="k")["value"] == 7


def test_a_jump_moves_the_window_and_what_was_skipped_may_still_come(make_store: MakeStore) -> None:
    store = make_store(session_window=4)
    store.ok("INCR", key="k", session="s", seq=2)
    store.ok("INCR", key="k", session="s", seq=100)

    for seq in (1, 2, 95, 96):
        store.refused("STALE_SEQ", "INCR", key="k", session="s", seq=seq)
    for seq in (98, 97, 99):
        assert "replayed" not in store.ok("INCR", key="k", session="s", seq=seq)
    assert [
        store.ok("INCR", key="k", session="s", seq=seq)["value"] for seq in (97, 98, 99, 100)
    ] == [4, 3, 5, 2]
    assert store.ok("INFO")["stats"]["sessions"].items() >= {"sessions": 1, "replies": 4}.items()


def test_numbers_may_come_in_any_order_inside_the_window(make_store: MakeStore) -> None:
    store = make_store(session_window=8)
    order = [3, 1, 8, 2, 7, 5, 6, 4]
    first = {seq: store.ok("INCR", key="k", session="s", seq=seq) for seq in order}
    assert [first[seq]["value"] for seq in order] == list(range(1, 9))
    for seq in range(1, 9):
        repeat = store.ok("INCR", key="k", session="s", seq=seq)
        assert (repeat["value"], repeat["rev"]) == (first[seq]["value"], first[seq]["rev"])
    assert store.ok("GET", key="k")["value"] == 8


@pytest.mark.parametrize("kind", ["memory", "log, reopened", "snapshot, reopened"])
@given(seqs=st.lists(st.integers(1, 12), max_size=25), window=st.integers(1, 5))
def test_a_session_behaves_as_a_set_of_the_newest_numbers(
    kind: str, seqs: list[int], window: int
) -> None:
    remembered: dict[int, int] = {}
    total = newest = 0
    with opened(kind, session_window=window) as store:
        for seq in seqs:
            reply = store.call("INCR", key="k", session="s", seq=seq)
            if seq <= newest - window:
                assert reply["code"] == "STALE_SEQ"
            elif seq in remembered:
                assert (reply["value"], reply["replayed"]) == (remembered[seq], True)
            else:
                total += 1
                newest = max(newest, seq)
                remembered[seq] = total
                assert reply["value"] == total
                assert "replayed" not in reply
            held = [seq for seq in remembered if seq > newest - window]
            stats = store.ok("INFO")["stats"]["sessions"]
            assert stats["replies"] == len(held)
        assert store.call("MGET", keys=["k"])["values"] == [total or None]


def test_sessions_know_nothing_of_each_other(store: Store) -> None:
    for name in ("s", "t", "S", "\xdf", "x" * 64):
        assert "replayed" not in store.ok("INCR", key="k", session=name, seq=1)
    assert store.ok("INCR", key="k", session="s", seq=1)["value"] == 1
    assert store.ok("GET", key="k")["value"] == 5


@pytest.mark.parametrize(
    "fields",
    [
        {"session": "s"},
        {"seq": 1},
        {"session": "", "seq": 1},
        {"session": "x" * 65, "seq": 1},
        {"session": "\xdf" * 33, "seq": 1},
        {"session": "s", "seq": 0},
        {"session": "s", "seq": -1},
        {"session": "s", "seq": 1.0},
        {"session": "s", "seq": True},
    ],
    ids=repr,
)
def test_half_a_session_is_refused(store: Store, fields: dict[str, Any]) -> None:
    store.refused("BAD_REQUEST", "INCR", key="k", **fields)


def test_a_session_means_nothing_to_a_read(store: Store) -> None:
    store.put("k", 1)
    for value in (1, 2):
        reply = store.ok("GET", key="k", session="s", seq=1)
        assert (reply["value"], "replayed" in reply) == (value, False)
        store.put("k", 2)
    assert store.ok("INFO")["stats"]["sessions"]["sessions"] == 0


def test_what_was_never_run_is_not_remembered(make_store: MakeStore) -> None:
    store = make_store(max_batch=3, max_value_bytes=1_000)
    once = {"session": "s", "seq": 1}
    store.refused("BAD_REQUEST", "PUT", key="", value=1, **once)
    store.refused("TOO_LARGE", "PUT", key="k", value="x" * 2_000, **once)
    store.refused("TOO_LARGE", "MDELETE", keys=list("abcd"), **once)
    store.refused("DEADLINE", "PUT", key="k", value=1, deadline=1, **once)
    store.refused("BAD_REQUEST", "TXN", ops=[op("GET", key="k", id=1)], **once)
    assert store.ok("INFO")["stats"]["sessions"]["sessions"] == 0
    assert "replayed" not in store.ok("PUT", key="k", value=2, **once)


def test_a_session_is_forgotten_after_its_time_of_silence(make_store: MakeStore) -> None:
    store = make_store(session_ttl=10)
    store.ok("INCR", key="k", session="s", seq=1)
    store.clock.advance(9_999)
    assert store.ok("INCR", key="k", session="s", seq=1)["replayed"] is True

    late = make_store(session_ttl=10)
    late.ok("INCR", key="k", session="s", seq=1)
    late.clock.advance(10_000)
    assert late.ok("INCR", key="k", session="s", seq=1)["value"] == 2


def test_a_session_that_was_forgotten_is_a_new_one(make_store: MakeStore) -> None:
    """Its name may come again, and nothing of the former one is left, nor is after a crash."""
    store = make_store(session_ttl=10, session_window=3)
    for seq in (1, 2, 3, 4, 50):
        store.ok("INCR", key="k", session="s", seq=seq)
    store.clock.advance(10_000)
    for seq in (1, 2, 3, 4):
        assert "replayed" not in store.ok("INCR", key="k", session="s", seq=seq)
    for seq in (4, 3, 2):
        assert store.ok("INCR", key="k", session="s", seq=seq)["replayed"] is True
    assert store.ok("GET", key="k")["value"] == 9
    assert store.ok("INFO")["stats"]["sessions"]["replies"] == 3


def test_a_session_that_lives_by_repeats_keeps_its_answers_over_a_crash() -> None:
    """Repeats are signs of life, and in no log."""
    with contextlib.closing(DurableStore(FakeClock(), session_ttl=2)) as store:
        store.ok("INCR", key="k", session="s", seq=1)
        for _ in range(2):
            store.clock.advance(1_200)
            assert store.ok("INCR", key="k", session="s", seq=1)["replayed"] is True
        store.ok("INCR", key="k", session="s", seq=2)
        store.crash()
        assert store.ok("INCR", key="k", session="s", seq=1)["replayed"] is True
        assert store.ok("GET", key="k")["value"] == 2


@pytest.mark.parametrize("levels", [501, 900, 9_000, 170_000])
@pytest.mark.parametrize("saved", [False, True], ids=["in the log", "in a snapshot"])
def test_a_deeper_value_that_is_stored_already_is_served(levels: int, saved: bool) -> None:
    """An older zkv took what its Python could decode; this Python may not decode as much."""
    value = b"\x91" * levels + b"\xc0"
    store = DurableStore(FakeClock())
    try:
        keyspace = store.engine.keyspace
        with keyspace.lock:
            transaction = keyspace.begin()
            transaction.put("deep", value, store.clock() + 1_000)
            transaction.put("flat", b"\x01")
            keyspace.commit(transaction)
        store.ok("COUNT")
        if saved:
            assert store.snapshot() == 1
        store.crash()
        for body in (
            request("GET", key="deep"),
            request("MGET", keys=["flat", "deep"]),
            request("SCAN"),
            request("TXN", ops=[op("GET", key="deep")]),
            *([] if saved else [request("CHANGES", since=0)]),
        ):
            assert value in store.exchange(body)
        store.ok("TOUCH", key="deep", ttl=5)
        store.crash()
        assert value in store.exchange(request("GET", key="deep"))
        assert store.refused("BAD_REQUEST", "PUT", key="deep", value=Raw(value))
        store.ok("DELETE", key="deep")
        assert store.items() == [["flat", 1, 1]]
    finally:
        store.close()


def test_answers_at_the_revision_of_a_snapshot_stay_on_a_full_disk() -> None:
    """Their segment ends where the snapshot does, and still the snapshot does not have them."""
    with contextlib.closing(DurableStore(FakeClock(), segment_bytes=1024)) as store:
        store.ok("PUT", key="k", value=b"x" * 100)
        store.snapshot()
        for seq in range(1, 60):
            store.ok("MDELETE", keys=["absent"], session="s", seq=seq)
        store.ok("PUT", key="k", value=b"x" * 1000)  # Begins a segment right behind them.
        store.engine.storage.make_room(1)
        store.crash()
        assert store.ok("MDELETE", keys=["absent"], session="s", seq=5)["replayed"] is True


@pytest.mark.parametrize("kind", ["memory", "log, always"])
def test_silent_sessions_are_forgotten_step_by_step(kind: str) -> None:
    """However many there are, no request has to wait until all of them are gone."""
    with opened(kind, session_ttl=10) as store:
        for name in range(50):
            store.ok("INCR", key="k", session=f"s{name}", seq=1)
        store.clock.advance(10_000)
        assert store.ok("INFO")["stats"]["sessions"]["sessions"] > 0
        # The last of them has not been forgotten yet, and is a new one all the same.
        assert "replayed" not in store.ok("INCR", key="k", session="s49", seq=1)
        left = [store.ok("INFO")["stats"]["sessions"]["sessions"] for _ in range(10)]
        assert left[-1] == 1
        assert store.ok("INCR", key="k", session="s49", seq=1)["replayed"] is True


def test_a_session_that_writes_is_not_forgotten(make_store: MakeStore) -> None:
    store = make_store(session_ttl=10)
    for seq in range(1, 6):
        store.ok("INCR", key="k", session="s", seq=seq)
        store.ok("INCR", key="k", session=f"other {seq}", seq=1)
        store.clock.advance(9_000)
    assert store.ok("INCR", key="k", session="s", seq=1)["value"] == 1
    assert store.ok("INFO")["stats"]["sessions"]["sessions"] == 2


@pytest.mark.parametrize("kind", ["memory", "log, always"])
def test_a_session_that_repeats_is_not_forgotten(kind: str) -> None:
    with opened(kind, session_ttl=10) as store:
        store.ok("INCR", key="k", session="s", seq=1)
        for _ in range(5):
            store.clock.advance(9_000)
            assert store.ok("INCR", key="k", session="s", seq=1)["replayed"] is True


def test_there_are_only_so_many_sessions(make_store: MakeStore) -> None:
    store = make_store(max_sessions=2, session_ttl=10)
    store.ok("INCR", key="k", session="a", seq=1)
    store.clock.advance(5_000)
    store.ok("INCR", key="k", session="b", seq=1)

    reply = store.refused("BUSY", "INCR", key="k", session="c", seq=1)
    assert "max_sessions" in reply["message"]
    assert store.ok("INCR", key="k", session="a", seq=1)["replayed"] is True
    store.ok("INCR", key="k", session="b", seq=2)
    store.ok("INCR", key="k")

    store.clock.advance(10_000)
    assert "replayed" not in store.ok("INCR", key="k", session="c", seq=1)
    assert store.ok("GET", key="k")["value"] == 5


LEAST_ROOM: Final = 2 * 1024 * 1024
"""The least session_bytes; three quarters of it are for all replies, the rest for small ones."""
LARGE: Final = 500_000
"""Bytes of a reply of which three have room in that."""


def read_large(store: Store, session: str, seq: int) -> Message:
    """A write with a reply of `LARGE` bytes."""
    ops = [op("GET", key="large"), op("INCR", key="k")]
    return store.call("TXN", ops=ops, session=session, seq=seq)


def test_replies_that_are_remembered_may_take_so_many_bytes(make_store: MakeStore) -> None:
    store = make_store(session_bytes=LEAST_ROOM, session_window=2, session_ttl=10)
    store.put("large", b"x" * LARGE)
    first = [read_large(store, session, 1) for session in "abc"]
    assert all(reply["ok"] for reply in first)

    rev = store.rev
    refused = read_large(store, "d", 1)
    assert (refused["code"], refused["retry"], refused["applied"]) == ("BUSY", True, False)
    assert f"session_bytes is {LEAST_ROOM}" in refused["message"]
    assert read_large(store, "a", 2)["code"] == "BUSY"
    assert store.rev == rev
    assert store.ok("INFO")["stats"]["sessions"]["bytes"] <= LEAST_ROOM

    repeats = [read_large(store, session, 1) for session in "abc"]
    assert [reply["results"] for reply in repeats] == [reply["results"] for reply in first]
    assert all(reply["replayed"] for reply in repeats)
    assert store.ok("INCR", key="k", session="e", seq=1)["value"] == 4
    assert store.ok("INCR", key="k")["value"] == 5

    store.clock.advance(10_000)
    assert read_large(store, "d", 1)["results"][1]["value"] == 6


def test_a_reply_that_drives_out_others_of_its_session_has_their_room(
    make_store: MakeStore,
) -> None:
    store = make_store(session_bytes=LEAST_ROOM, session_window=2)
    store.put("large", b"x" * LARGE)
    for seq in range(1, 6):
        assert read_large(store, "a", seq)["ok"]
    assert read_large(store, "b", 1)["ok"]
    assert read_large(store, "b", 2)["code"] == "BUSY"
    assert read_large(store, "b", 3)["ok"]
    assert read_large(store, "b", 2)["code"] == "BUSY", "it drives out none: 3 is the newest"
    assert read_large(store, "a", 4)["replayed"] is True
    assert store.ok("INFO")["stats"]["sessions"]["replies"] == 3


@pytest.mark.parametrize("kind", ["memory", "log, always"])
def test_small_replies_have_room_of_their_own_but_not_without_end(kind: str) -> None:
    with opened(kind, session_bytes=LEAST_ROOM, session_window=1_000) as store:
        store.put("large", b"x" * LARGE)
        for seq in (1, 2, 3):
            assert read_large(store, "a", seq)["ok"]
        store.put("small", b"x" * 900)
        ops = [op("GET", key="small")]
        taken = 0
        while (reply := store.call("TXN", ops=ops, session="b", seq=taken + 1))["ok"]:
            taken += 1
        assert 400 < taken < 600
        assert reply["code"] == "BUSY"
        assert f"session_bytes is {LEAST_ROOM}" in reply["message"]
        size = store.ok("INFO")["stats"]["sessions"]["bytes"]
        assert LEAST_ROOM - 1_300 < size <= LEAST_ROOM


def test_a_client_whose_window_is_full_goes_on_where_there_is_no_room_at_all() -> None:
    with contextlib.closing(
        DurableStore(FakeClock(), session_bytes=2 * LEAST_ROOM, session_window=1)
    ) as store:
        store.put("large", b"x" * LARGE)
        for session in "abcde":
            assert read_large(store, session, 1)["ok"]
        store.ok("INCR", key="n", session="n", seq=1)
        store.change_limits(session_bytes=store.ok("INFO")["stats"]["sessions"]["bytes"])
        store.crash()
        assert store.call("INCR", key="n", session="new", seq=1)["code"] == "BUSY"

        for seq, by in enumerate([2**8, 2**16, 2**32, 2**62], 2):
            reply = store.ok("INCR", key="n", by=by, session="n", seq=seq)
            assert reply["value"] > by, "the reply grows with its number"


def test_a_start_with_less_room_forgets_nothing_and_takes_what_drives_out_as_much() -> None:
    with contextlib.closing(
        DurableStore(FakeClock(), session_bytes=2 * LEAST_ROOM, session_window=3)
    ) as store:
        store.put("large", b"x" * LARGE)
        for session in "ab":
            for seq in (1, 2, 3):
                assert read_large(store, session, seq)["ok"]
        store.change_limits(session_bytes=LEAST_ROOM)
        for restart in (store.crash, store.snapshot, store.crash):
            restart()
            for session in "ab":
                for seq in (1, 2, 3):
                    assert read_large(store, session, seq)["replayed"] is True
        assert read_large(store, "c", 1)["code"] == "BUSY"
        assert store.call("INCR", key="k", session="c", seq=1)["code"] == "BUSY"
        assert read_large(store, "a", 4)["ok"]
        assert store.ok("INCR", key="k", session="a", seq=6)["value"] == 8


@pytest.mark.parametrize("kind", ["memory", "log, reopened", "snapshot, reopened"])
@given(
    asked=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 6), st.sampled_from([0, 3, 5, 9])),
        max_size=15,
    )
)
@settings(max_examples=30)
def test_the_room_for_replies_is_counted_over_all_sessions(
    kind: str, asked: list[tuple[str, int, int]]
) -> None:
    """Sizes are in 100,000 bytes, and what is beside them is less than one."""
    window, most = 3, 15
    remembered: dict[str, dict[int, int]] = {name: {} for name in "abc"}
    with opened(kind, session_bytes=LEAST_ROOM, session_window=window) as store:
        store.ok("MPUT", items={f"{size}": b"x" * (size * 100_000) for size in (0, 3, 5, 9)})
        for session, seq, size in asked:
            known = remembered[session]
            newest = max(known, default=0)
            if seq in known or seq <= newest - window:
                continue
            ops = [op("GET", key=f"{size}"), op("INCR", key="k")]
            reply = store.call("TXN", ops=ops, session=session, seq=seq)
            left = {old: kept for old, kept in known.items() if old > seq - window}
            more = size - sum(known.values()) + sum(left.values())
            total = sum(sum(replies.values()) for replies in remembered.values())
            assert reply["ok"] is (size == 0 or more <= 0 or total + more <= most), (seq, size)
            if reply["ok"]:
                remembered[session] = left | {seq: size}
        stats = store.ok("INFO")["stats"]["sessions"]
        assert stats["replies"] == sum(map(len, remembered.values()))
        total = sum(sum(replies.values()) for replies in remembered.values())
        assert stats["bytes"] // 100_000 == total


def test_what_sessions_take_is_shown(make_store: MakeStore) -> None:
    store = make_store(session_window=2, session_ttl=10)

    def shown() -> tuple[int, int, int]:
        stats = store.ok("INFO")["stats"]["sessions"]
        return stats["sessions"], stats["replies"], stats["bytes"]

    assert shown() == (0, 0, 0)
    store.put("k", "x" * 1_000)
    store.ok("PUT", key="k", value=1, prev=True, session="s", seq=1)
    sessions, replies, size = shown()
    assert (sessions, replies) == (1, 1)
    assert 1_250 <= size <= 1_350

    store.ok("INCR", key="k", session="s", seq=2)
    store.ok("INCR", key="k", session="t", seq=1)
    assert shown()[:2] == (2, 3)
    store.ok("INCR", key="k", session="s", seq=3)
    sessions, replies, size = shown()
    assert (sessions, replies) == (2, 3)
    assert size < 1_000, "the large one fell out of the window"

    store.clock.advance(10_000)
    store.call("DELETE", key="x", session="u", seq=1)
    assert shown()[:2] == (1, 1)


def test_a_reply_that_is_remembered_no_more_takes_no_memory(make_store: MakeStore) -> None:
    """Not for longer than the history, which counts it, keeps its write."""
    size = 200_000
    store = make_store(session_window=2, history_bytes=2 * size)
    store.put("large", b"x" * size)
    ops = [op("GET", key="large"), op("INCR", key="k")]
    tracemalloc.start()
    try:
        for seq in range(1, 31):
            store.ok("TXN", ops=ops, session="s", seq=seq)
        assert store.ok("INFO")["stats"]["sessions"]["replies"] == 2
        while gc.collect():  # A store that crashed is garbage in a cycle, and holds files, too.
            pass
        assert traced_memory("zkv") < 8 * size
    finally:
        tracemalloc.stop()


def test_a_reply_too_large_to_be_remembered_is_refused_before_the_write(store: Store) -> None:
    store.put("k", b"x" * 1_100_000)
    write = op("PUT", key="k", value=1, prev=True)
    store.refused("TOO_LARGE", **write, session="s", seq=1)
    assert store.ok("GET", key="k")["rev"] == 1
    assert store.ok("PUT", key="k", value=1, session="s", seq=1)["rev"] == 2


# --- Deadline and limits ----------------------------------------------------------------------


def test_a_request_does_not_run_past_its_deadline(store: Store) -> None:
    now = 1_750_000_000_123
    watch = SimpleNamespace(time=lambda: now / 1000, perf_counter=time.perf_counter)
    with mock.patch("zkv.requests.call.time", watch):
        store.put("k", 1, deadline=now)
        store.put("k", 2, deadline=now + 1)
        store.refused("DEADLINE", "PUT", key="k", value=3, deadline=now - 1)
        store.refused("DEADLINE", "GET", key="k", deadline=0)
        store.refused("DEADLINE", "TXN", ops=[op("DELETE", key="k")], deadline=-5)
        assert store.ok("GET", key="k", deadline=now)["value"] == 2


def test_a_repeat_past_its_deadline_does_not_run_either(store: Store) -> None:
    store.ok("INCR", key="k", session="s", seq=1)
    store.refused("DEADLINE", "INCR", key="k", session="s", seq=1, deadline=1)
    assert store.ok("INCR", key="k", session="s", seq=1)["value"] == 1


def test_a_key_is_measured_in_bytes_of_utf8(make_store: MakeStore) -> None:
    store = make_store(max_key_bytes=12)
    for good in ("k" * 12, "\xe9" * 6, "\u0800" * 4, "\U0010ffff" * 3):
        store.put(good)
        for name, fields in _about(good + "k"):
            reply = store.refused("TOO_LARGE", name, **fields)
            assert "13 bytes" in reply["message"]
            assert "max_key_bytes is 12" in reply["message"]


def _about(key: str) -> list[tuple[str, dict[str, Any]]]:
    return [
        ("GET", {"key": key}),
        ("PUT", {"key": key, "value": 1}),
        ("DELETE", {"key": key}),
        ("TOUCH", {"key": key, "ttl": 1}),
        ("INCR", {"key": key}),
        ("MGET", {"keys": ["a", key]}),
        ("MPUT", {"items": {"a": 1, key: 2}}),
        ("MDELETE", {"keys": ["a", key]}),
        ("TXN", {"ops": [op("GET", key=key)]}),
        ("TXN", {"if_": [[key, 0]], "ops": []}),
    ]


def test_a_value_is_measured_as_it_is_packed(make_store: MakeStore) -> None:
    store = make_store(max_value_bytes=100)
    fits, over = Raw(b"\xd9\x62" + b"x" * 98), Raw(b"\xd9\x63" + b"x" * 99)
    store.put("k", fits)
    store.ok("MPUT", items={"k": fits})
    store.ok("TXN", ops=[op("PUT", key="k", value=fits)])

    for name, fields in (
        ("PUT", {"key": "k", "value": over}),
        ("MPUT", {"items": {"a": 1, "k": over}}),
        ("TXN", {"ops": [op("PUT", key="k", value=over)]}),
    ):
        reply = store.refused("TOO_LARGE", name, **fields)
        assert "101 bytes" in reply["message"]
        assert "max_value_bytes is 100" in reply["message"]


def test_a_batch_may_have_so_many_parts(make_store: MakeStore) -> None:
    store = make_store(max_batch=3)
    names = list("abcd")
    store.ok("MPUT", items=dict.fromkeys(names[:3], 1))
    store.ok("MGET", keys=names[:3])
    store.ok("MDELETE", keys=names[:3])
    store.ok("SCAN", limit=3)
    store.ok("TXN", if_=[[name, 0] for name in names[:3]], ops=[op("GET", key="a")] * 3)

    for name, fields in (
        ("MPUT", {"items": dict.fromkeys(names, 1)}),
        ("MGET", {"keys": names}),
        ("MGET", {"keys": ["a"] * 4}),
        ("MDELETE", {"keys": names}),
        ("TXN", {"ops": [op("INCR", key="a")] * 4}),
        ("TXN", {"if_": [["a", 0]] * 4, "ops": []}),
    ):
        reply = store.refused("TOO_LARGE", name, **fields)
        assert "max_batch is 3" in reply["message"]
    assert store.ok("SCAN", limit=3)["items"] == []


def test_a_reply_that_is_too_large_says_how_to_ask_instead(make_store: MakeStore) -> None:
    store = make_store(max_value_bytes=1_000, max_reply_bytes=2_500)
    store.ok("MPUT", items=dict.fromkeys("abc", "x" * 900))

    assert len(store.ok("MGET", keys=["a", "b"])["values"]) == 2
    reply = store.refused("TOO_LARGE", "MGET", keys=["a", "b", "c"])
    assert "ask for fewer keys" in reply["message"]
    assert "max_reply_bytes is 2500" in reply["message"]

    assert len(store.ok("SCAN", limit=2)["items"]) == 2
    assert "smaller limit" in store.refused("TOO_LARGE", "SCAN", limit=3)["message"]
    assert len(store.ok("SCAN", limit=3, values=False)["items"]) == 3

    gets = [op("GET", key=name) for name in "abc"]
    assert len(store.ok("TXN", ops=gets[:2])["results"]) == 2
    reply = store.refused("TOO_LARGE", "TXN", ops=[op("INCR", key="n"), *gets])
    assert (reply["index"], "ask for less" in reply["message"]) == (3, True)
    puts = [op("PUT", key=name, value=1, prev=True) for name in "abc"]
    assert store.refused("TOO_LARGE", "TXN", ops=puts)["index"] == 2
    assert store.ok("COUNT")["count"] == 3


# --- Durability -------------------------------------------------------------------------------


def everything(store: Store, sessions: dict[str, int]) -> dict[str, Any]:
    """All that a client can find out about a store; ``sessions``: name -> seq to repeat."""
    items = store.items()
    return {
        "items": items,
        "ttls": [store.ok("GET", key=key).get("ttl") for key, _, _ in items],
        "count": store.ok("COUNT")["count"],
        "changes": store.ok("CHANGES", since=0),
        "rev": store.rev,
        "stats": store.ok("INFO")["stats"],
        "replies": [
            store.ok("INCR", key="n", session=name, seq=seq) | {"durable": None}
            for name, seq in sessions.items()
        ],
    }


LOST_WRITES: dict[str, dict[str, Any]] = {
    "PUT": op("PUT", key="a", value="lost"),
    "PUT ttl": op("PUT", key="a", value="lost", ttl=1),
    "PUT new": op("PUT", key="new", value="lost", ttl=1),
    "PUT over ttl": op("PUT", key="t", value="lost"),
    "DELETE": op("DELETE", key="a"),
    "DELETE ttl": op("DELETE", key="t"),
    "TOUCH": op("TOUCH", key="t", ttl=None),
    "TOUCH shorter": op("TOUCH", key="t", ttl=1),
    "INCR": op("INCR", key="n"),
    "MPUT": op("MPUT", items={"a": 1, "t": 1, "new": 1}, ttl=1),
    "MDELETE": op("MDELETE", keys=["a", "t", "n"]),
    "TXN": op(
        "TXN",
        ops=[
            op("DELETE", key="a"),
            op("PUT", key="a", value=1, ttl=1),
            op("TOUCH", key="t", ttl=1),
            op("INCR", key="new"),
            op("DELETE", key="n"),
        ],
    ),
    "once": op("INCR", key="n", session="s", seq=2),
    "once, refused": op("DELETE", key="x", session="s", seq=2),
}


@pytest.fixture
def impatient_log() -> Iterator[None]:
    """After a refusal the very next write tries the disk again."""
    with mock.patch("zkv.durability.wal.RETRY_SECONDS", 0):
        yield


@pytest.mark.usefixtures("impatient_log")
@pytest.mark.parametrize("fsync", ["always", "never"])
@pytest.mark.parametrize("write", LOST_WRITES)
def test_a_write_that_the_disk_refuses_leaves_nothing_behind(fsync: str, write: str) -> None:
    with contextlib.closing(DurableStore(FakeClock(), fsync=fsync)) as store:
        store.ok("MPUT", items={"a": 1, "n": 1})
        store.put("t", 2, ttl=10)
        store.ok("INCR", key="n", session="s", seq=1)
        before = everything(store, {"s": 1})

        store.disk.full = True
        reply = store.call(**LOST_WRITES[write])
        assert (reply["ok"], reply["code"]) == (False, "READ_ONLY"), reply
        assert (reply["retry"], reply["applied"]) == (True, False)
        assert everything(store, {"s": 1}) == before
        store.clock.advance(5_000)
        assert len(store.items()) == 3

        store.disk.full = False
        reply = store.call(**LOST_WRITES[write])
        assert reply.get("code") == ("NOT_FOUND" if "refused" in write else None)
        assert "replayed" not in reply
        after = everything(store, {"s": 1})
        assert after["rev"] == before["rev"] + ("refused" not in write)
        store.crash()
        assert everything(store, {"s": 1}) == after


@pytest.mark.usefixtures("impatient_log")
@pytest.mark.parametrize("fsync", ["always", "never"])
def test_a_write_for_which_memory_ends_is_refused_and_leaves_no_gap(fsync: str) -> None:
    """What a batch commits is put together for the log, which may take a lot of memory at once."""
    with contextlib.closing(DurableStore(FakeClock(), fsync=fsync)) as store:
        store.put("k", 1)
        with mock.patch("zkv.durability.segment.pack_frames", side_effect=MemoryError):
            reply = store.call("PUT", key="k", value=2)
        assert (reply["code"], reply["applied"]) == ("READ_ONLY", False)
        assert reply["message"] == "the log cannot be written: out of memory"
        assert store.put("k", 3) == 2
        store.crash()
        assert store.ok("GET", key="k")["value"] == 3


@pytest.mark.parametrize(
    "write",
    [
        op("TXN", ops=[op("TOUCH", key="k", ttl=1)] * 3),
        op("TXN", ops=[op("TOUCH", key="k", ttl=1), op("PUT", key="j", value="x" * 450)]),
        op("MPUT", items={"k": "x" * 500, "j": "x" * 500}, ttl=1),
    ],
    ids=["touches", "put", "items"],
)
def test_what_no_frame_of_the_log_holds_is_too_large(
    durable_store: DurableStore, write: dict[str, Any]
) -> None:
    """A TXN writes much more than it says: each TOUCH of a large entry logs its value once more."""
    store = durable_store
    with mock.patch("zkv.keyspace.change.MOST_PAYLOAD_BYTES", 900):
        store.put("k", "x" * 440)
        message = store.refused("TOO_LARGE", **write)["message"]
        assert message.endswith("the log takes 900 at most: write less in one request")
        store.refused("TOO_LARGE", **write, session="s", seq=1)
        store.put("j", 1)
    store.crash()
    assert [key for key, *_ in store.items()] == ["j", "k"]


@pytest.mark.usefixtures("impatient_log")
def test_several_writes_that_the_disk_refuses_are_undone_together() -> None:
    with contextlib.closing(DurableStore(FakeClock())) as store:
        store.put("a", 1, ttl=10)
        store.ok("INCR", key="n", session="s", seq=1)
        before = everything(store, {"s": 1})

        one, other = store.workers
        answers = one.send(
            request("PUT", key="a", value=2),
            request("INCR", key="n", session="s", seq=2),
            request("GET", key="a"),
            request("MDELETE", keys=["a", "n"]),
        )
        answers += other.send(
            request("PUT", key="a", value=3, if_rev=0, ttl=99),
            request("COUNT"),
            request("INCR", key="n", session="s", seq=2),
        )
        assert not any(answer.left for answer in answers)
        store.disk.full = True
        one.settle()
        other.settle()

        replies = [answer.read() for answer in answers]
        for index in (0, 1, 3, 4, 6):
            assert (replies[index]["code"], replies[index]["retry"]) == ("READ_ONLY", True)
            assert replies[index]["applied"] is (False if index < 4 else None)
        assert (replies[2]["value"], replies[2]["rev"]) == (1, 1)
        assert replies[5]["count"] == 2
        assert everything(store, {"s": 1}) == before
        store.disk.full = False
        assert store.ok("INCR", key="n", session="s", seq=2)["value"] == 2


class StuckDisk(Disk):
    """Its syncs take until it is let go on, once it is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.sticks = False
        self.stuck, self.go_on = threading.Event(), threading.Event()

    def sync(self, file: BinaryIO) -> None:
        super().sync(file)
        if self.sticks:
            self.stuck.set()
            assert self.go_on.wait(LIMIT)


@contextlib.contextmanager
def between(store: DurableStore, do: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """A request that the front leaves, and a worker refuses; ``do`` is done when it comes there.

    What is plain before and behind it is run by the front, one part before and one after that.
    """
    leave_out = Answers.leave_out

    def do_and_refuse() -> None:
        do()
        raise BadRequest("this is no snapshot")

    def do_and_leave_out(answers: Answers) -> None:
        if any(answers.ops):
            do()
        leave_out(answers)

    with (
        mock.patch.object(Answers, "leave_out", do_and_leave_out),
        mock.patch.object(store.engine, "snapshot", do_and_refuse),
    ):
        yield op("SNAPSHOT")


def once(do: Callable[[], None]) -> Callable[[], None]:
    """``do``, the first time that it is called."""
    waiting = [do]
    return lambda: waiting.pop()() if waiting else None


@pytest.mark.usefixtures("impatient_log")
@pytest.mark.parametrize(
    ("put", "get"),
    [
        (op("PUT"), op("GET")),
        (op("PUT", prev=True), op("GET", deadline=MAX_INT64)),
        (op("PUT", ttl=9), op("GET", deadline=MAX_INT64)),
    ],
    ids=["the front's", "a worker's", "a worker's, with ttl"],
)
def test_what_is_on_disk_is_not_refused_for_what_could_not_follow(
    put: dict[str, Any], get: dict[str, Any]
) -> None:
    """Another thread has begun to sync the first half of a batch; the disk refuses the rest."""
    disk = StuckDisk()
    with contextlib.closing(DurableStore(FakeClock(), disk)) as store:
        log = store.engine.wal
        syncing = threading.Thread(target=log.flush)

        def sync() -> None:
            disk.sticks = True
            syncing.start()
            assert disk.stuck.wait(LIMIT)

        worker = store.workers[0]
        with between(store, once(sync)) as pause:
            answers = worker.send(
                request(**put, key="a", value=1, session="s", seq=1, id=1),
                request(**get, key="a", id=2),
                request(**pause, id=3),
                request(**get, key="a", id=4),
                request(**put, key="b", value=2, session="s", seq=2, id=5),
                request(**get, key="b", id=6),
                request("COUNT", id=7),
            )
        disk.go_on.set()
        syncing.join()
        disk.full = True
        worker.settle()
        disk.full = False

        first, read, _, again, second, absent, count = [answer.read() for answer in answers]
        assert [first["id"], read["id"], again["id"]] == [1, 2, 4]
        assert (first["rev"], first["durable"]) == (1, True)
        assert (read["value"], again["value"]) == (1, 1)
        assert (second["code"], second["applied"], second["id"]) == ("READ_ONLY", False, 5)
        assert (absent["code"], absent["id"]) == ("NOT_FOUND", 6)
        assert (count["count"], count["id"]) == (1, 7)
        assert store.ok(**put, key="a", value=1, session="s", seq=1)["replayed"] is True
        assert store.ok(**put, key="b", value=2, session="s", seq=2)["rev"] == 2


@pytest.mark.usefixtures("impatient_log")
@pytest.mark.parametrize(
    "put", [op("PUT"), op("PUT", prev=True)], ids=["the front's", "a worker's"]
)
def test_what_is_written_is_not_refused_for_what_could_not_follow(put: dict[str, Any]) -> None:
    """It is safe, and stays. That it is on disk, too, is what nobody can tell."""
    with contextlib.closing(DurableStore(FakeClock(), fsync="never")) as store:

        def write() -> None:
            store.engine.secure()
            store.disk.full = True

        worker = store.workers[0]
        durable_put = op("PUT", key="b", value=2, durable=True)
        behind = [] if put == op("PUT") else [durable_put]
        with between(store, once(write)) as pause:
            answers = worker.send(
                request(**put, key="a", value=1),
                *[request(**each) for each in behind],
                request(**pause),
                request(**put, key="c", value=3),
            )
        worker.settle()
        store.disk.full = False

        first, *durable, _, second = [answer.read() for answer in answers]
        assert (first["ok"], first["rev"]) == (True, 1)
        for reply in durable:
            assert (reply["code"], reply["applied"]) == ("READ_ONLY", None)
        assert (second["code"], second["applied"]) == ("READ_ONLY", False)
        assert [key for key, *_ in store.items()] == ["a", *["b" for _ in behind]]


WRITES = [name for name in ONCE if not ONCE[name].get("if")]


@pytest.mark.parametrize("write", ONCE)
def test_a_write_is_answered_once_it_is_on_disk_and_not_before(
    durable_store: DurableStore, write: str
) -> None:
    store = durable_store
    fill_for_once(store)
    syncs = store.disk.syncs
    body = request(**ONCE[write], session="s", seq=1)
    worker = store.workers[0]

    (first,) = worker.send(body)
    assert not first.left
    (repeat,) = store.workers[1].send(body)
    assert not repeat.left, "the repeat tells no more than the first may tell"
    assert store.disk.syncs == syncs
    worker.settle()

    assert store.disk.syncs == syncs + 1
    assert first.read().get("durable", True) is True
    store.workers[1].settle()
    assert store.disk.syncs == syncs + 1
    assert repeat.read()["replayed"] is True


READERS: dict[str, dict[str, Any]] = {
    "GET": op("GET", key="k"),
    "GET of nothing": op("GET", key="gone"),
    "MGET": op("MGET", keys=["a", "k"]),
    "MGET of nothing": op("MGET", keys=["a", "gone"]),
    "SCAN": op("SCAN"),
    "COUNT": op("COUNT"),
    "INFO": op("INFO"),
    "TXN": op("TXN", ops=[op("GET", key="k")]),
    "CONFLICT": op("PUT", key="k", value=1, if_rev=0),
    "NOT_FOUND": op("DELETE", key="gone"),
    "WRONG_TYPE": op("INCR", key="k"),
    "condition": op("TXN", **{"if": [["k", 0]]}, ops=[]),
    "nothing to do": op("MDELETE", keys=["gone"]),
}


@pytest.mark.parametrize("reader", READERS)
def test_nobody_is_told_what_a_crash_could_take_back(
    durable_store: DurableStore, reader: str
) -> None:
    store = durable_store
    store.ok("MPUT", items={"a": 1, "gone": 1})
    writer, worker = store.workers
    writer.send(request("TXN", ops=[op("PUT", key="k", value="new"), op("DELETE", key="gone")]))

    (answer,) = worker.send(request(**READERS[reader]))
    (unconcerned,) = worker.send(request("GET", key="a"))
    assert unconcerned.left
    assert not answer.left
    writer.settle()
    (again,) = worker.send(request(**READERS[reader]))
    assert again.left


EXPIRY_READERS: dict[str, dict[str, Any]] = {
    "GET": op("GET", key="k"),
    "MGET": op("MGET", keys=["k"]),
    "SCAN": op("SCAN", prefix="k"),
    "COUNT": op("COUNT", prefix="k"),
    "TXN": op("TXN", ops=[op("GET", key="k")]),
    "CONFLICT": op("PUT", key="k", value=1, if_rev=1),
    "NOT_FOUND": op("TOUCH", key="k", ttl=None),
    "condition": op("TXN", **{"if": [["k", 1]]}, ops=[]),
    "nothing to do": op("MDELETE", keys=["k"]),
}


@pytest.mark.parametrize("removed", [False, True], ids=["to be removed", "removed"])
@pytest.mark.parametrize("reader", EXPIRY_READERS)
def test_nobody_is_told_of_an_expiry_that_a_crash_could_take_back(
    durable_store: DurableStore, reader: str, removed: bool
) -> None:
    """A key that has died of a time to live is there again if the crash takes that back."""
    store = durable_store
    store.ok("MPUT", items={"a": 1, "k": 1})
    writer, worker = store.workers
    writer.send(request("TOUCH", key="k", ttl=1))
    store.clock.advance(1_000)
    if removed:
        store.engine.keyspace.expire(1)

    (answer,) = worker.send(request(**EXPIRY_READERS[reader]))
    (unconcerned,) = worker.send(request("MGET", keys=["a"]))
    assert unconcerned.left
    assert not answer.left
    writer.settle()
    if removed:
        worker.settle()
    (again,) = worker.send(request(**EXPIRY_READERS[reader]))
    assert again.left


def test_changes_are_told_once_they_are_on_disk(durable_store: DurableStore) -> None:
    store = durable_store
    store.put("a")
    store.workers[0].send(request("PUT", key="b", value=1))

    (answer,) = store.workers[1].send(request("CHANGES", since=0))
    assert answer.read() == {"ok": True, "changes": [[1, "PUT", "a", 0]], "next": 1, "rev": 1}
    store.workers[0].settle()
    assert store.ok("CHANGES", since=1)["changes"] == [[2, "PUT", "b", 1]]


def test_what_was_not_on_disk_is_gone_after_a_crash_and_can_be_done_again(
    durable_store: DurableStore,
) -> None:
    store = durable_store
    store.ok("INCR", key="k", session="s", seq=1)
    answers = store.workers[0].send(request("INCR", key="k", session="s", seq=2))
    store.crash()

    assert not any(answer.left for answer in answers)
    assert (store.rev, store.ok("GET", key="k")["value"]) == (1, 1)
    assert store.ok("INCR", key="k", session="s", seq=1)["replayed"] is True
    reply = store.ok("INCR", key="k", session="s", seq=2)
    assert (reply["value"], reply["rev"], "replayed" in reply) == (2, 2, False)


class Watched(deque[Any]):
    """The log's queue, and what another thread may do while something is put into it."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self._meanwhile = meanwhile

    def append(self, item: Any) -> None:
        self._meanwhile()
        super().append(item)
        self._meanwhile()


def test_who_waits_for_the_newest_commit_finds_it_queued(durable_store: DurableStore) -> None:
    """A worker whose writes are on disk asks for the newest number while others write."""
    wal = durable_store.engine.wal
    with mock.patch.object(wal, "_queue", Watched(lambda: wal.commit(wal.last_lsn, durable=True))):
        assert durable_store.put("k") == 1
    durable_store.crash()
    assert durable_store.ok("GET", key="k")["rev"] == 1


def test_what_is_queued_in_one_step_is_seen_whole(durable_store: DurableStore) -> None:
    """Also by what the garbage collector calls, and by who runs while that waits."""
    wal = durable_store.engine.wal
    commits = [Commit(rev, 0, (KeyChange("DELETE", "k"),)).pack() for rev in range(1, 100)]
    seen = set()

    def look(*_: object) -> None:
        seen.add(sum(len(commits) for _, commits in wal._queue))

    usual = gc.get_threshold()
    gc.callbacks.append(look)
    gc.set_threshold(1)
    try:
        wal.extend(commits)
    finally:
        gc.set_threshold(*usual)
        gc.callbacks.remove(look)
    look()
    assert seen <= {0, len(commits)}


@pytest.mark.usefixtures("impatient_log")
@pytest.mark.parametrize("lost", ["write", "read"])
def test_a_write_is_not_taken_for_another_one_that_got_its_revision(
    durable_store: DurableStore, lost: str
) -> None:
    """While a batch is being answered the disk refuses its write, and takes another one."""
    store = durable_store
    store.put("k", "old")
    worker, other = store.workers
    finish = Caller.finish

    def finish_slowly(caller: Caller, *arguments: Any) -> bytes:
        patch.stop()
        store.disk.full = True
        with pytest.raises(ReadOnly):
            store.engine.wal.flush()
        store.disk.full = False
        assert other.exchange(request("PUT", key="other", value=1))
        return finish(caller, *arguments)

    patch = mock.patch.object(Caller, "finish", finish_slowly)
    last = op("INCR", key="n", deadline=MAX_INT64) if lost == "write" else op("SCAN")
    writes = [request("PUT", key="k", value="new")] if lost == "read" else []
    patch.start()
    *_, answer = worker.send(*writes, request("PING"), request(**last))
    worker.settle()

    if lost == "write":
        assert (answer.read()["code"], answer.read()["applied"]) == ("READ_ONLY", None)
    else:
        assert answer.read()["items"] == [["k", "old", 1], ["other", 1, 2]]
    assert store.call("GET", key="n")["code"] == "NOT_FOUND"


@pytest.mark.parametrize("write", WRITES)
def test_durable_asks_for_the_disk_whatever_the_policy(write: str) -> None:
    with contextlib.closing(DurableStore(FakeClock(), fsync="never")) as store:
        fill_for_once(store)
        plain = store.call(**ONCE[write])
        syncs = store.disk.syncs
        if plain["ok"]:
            assert plain["durable"] is False
        assert syncs == 1, "that of the segment's header"

    with contextlib.closing(DurableStore(FakeClock(), fsync="never")) as store:
        fill_for_once(store)
        (answer,) = store.workers[0].send(request(**ONCE[write], durable=True))
        if answer.left:
            assert answer.read()["ok"] is False
            return
        store.workers[0].settle()
        assert store.disk.syncs == 2
        assert answer.read().get("durable", True) is True
        assert store.engine.durable_rev == store.rev
