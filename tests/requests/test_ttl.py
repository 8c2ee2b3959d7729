"""Times to live: an entry is absent from its deadline on, and is removed later."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec import Raw

from tests.requests.contract_stores import (
    HOUR,
    MakeStore,
    Store,
    on_two_stores,
    op,
    request,
)
from tests.support import raw_fields, unpack

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
    "TXN if, with ops": lambda store: (
        not store.call("TXN", if_=[["k", 0]], ops=[op("INCR", key="n")])["ok"]
    ),
    "TXN if it is the same, with ops": lambda store: store.call(
        "TXN", if_=[["k", 1]], ops=[op("INCR", key="n")]
    )["ok"],
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


@on_two_stores
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


@on_two_stores
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
