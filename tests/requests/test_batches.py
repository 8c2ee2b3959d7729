"""MGET, MPUT and MDELETE."""

from __future__ import annotations

import pytest

from tests.requests.contract_stores import (
    HOUR,
    Store,
    on_two_stores,
    op,
)


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


@on_two_stores
@pytest.mark.parametrize("bad", ["", "\0", "k" * 1_025])
def test_one_bad_key_spoils_the_whole_batch(store: Store, bad: str) -> None:
    store.put("a", 1)
    code = "TOO_LARGE" if len(bad) > 1 else "BAD_REQUEST"
    store.refused(code, "MPUT", items={"a": 2, "b": 2, bad: 2})
    store.refused(code, "MDELETE", keys=["a", bad])
    store.refused(code, "TXN", ops=[op("DELETE", key="a"), op("PUT", key=bad, value=1)])
    assert store.items() == [["a", 1, 1]]
