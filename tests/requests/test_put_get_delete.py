"""PUT, GET and DELETE: values, revisions and conditions, and requests that make no sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from tests.requests.contract_stores import (
    MAX_INT64,
    DurableStore,
    FakeClock,
    Store,
    on_two_stores,
    op,
    request,
)
from tests.support import Message, raw_fields


def test_every_kind_of_store_was_written_for_this_tree() -> None:
    import zkv

    assert Path(zkv.__file__).parents[1] == Path(__file__).parents[2]


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


@on_two_stores
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


@on_two_stores
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
