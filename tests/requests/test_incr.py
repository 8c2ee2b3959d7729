"""INCR: whole numbers of 64 bits, in every width that msgpack has for them."""

from __future__ import annotations

import pytest
from msgspec import Raw

from tests.requests.contract_stores import (
    HOUR,
    MAX_INT64,
    MIN_INT64,
    Store,
    on_two_stores,
    request,
)
from tests.support import raw_fields


@on_two_stores
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


@on_two_stores
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


@on_two_stores
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


@on_two_stores
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
