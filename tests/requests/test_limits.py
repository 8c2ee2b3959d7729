"""Deadlines, and limits for keys, values, batches and replies."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any
from unittest import mock

from msgspec import Raw

from tests.requests.contract_stores import (
    MakeStore,
    Store,
    on_two_stores,
    op,
)

pytestmark = on_two_stores


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
