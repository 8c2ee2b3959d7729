"""The memory limit: a write that lets the entries grow beyond it is `FULL`; all others go on."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from tests.requests.contract_stores import FakeClock, MakeStore, Store, on_two_stores, op, opened
from tests.support import pack

LIMITS: dict[str, Any] = {"max_memory": 2**20, "history_bytes": 2**16}
PACKED = Raw(b"\xc5\x4e\x20" + bytes(20_000))
"""A value of 20,003 bytes."""
MANY = 1_000
"""More writes than any store here takes."""
ONCE = {"session": "s", "seq": 1}


def memory(store: Store) -> dict[str, int]:
    found = store.ok("INFO")["stats"]["memory"]
    assert isinstance(found, dict)
    return found


def fill(store: Store) -> int:
    """Put entries until one does not fit; how many fitted."""
    for number in range(MANY):
        if not store.call("PUT", key=f"k{number:02}", value=PACKED)["ok"]:
            return number
    raise AssertionError("all of them fitted")


@pytest.fixture
def full(make_store: MakeStore) -> Store:
    """A store in which there is no room for another entry of `PACKED`."""
    store = make_store(**LIMITS)
    assert fill(store) > 40
    return store


GROWING = {
    "PUT of a new key": op("PUT", key="new", value=PACKED),
    "PUT with a ttl": op("PUT", key="new", value=PACKED, ttl=1),
    "PUT of a larger value": op("PUT", key="k01", value=bytes(60_000)),
    "MPUT": op("MPUT", items={"k01": PACKED, "new": PACKED}),
    "TXN": op("TXN", ops=[op("DELETE", key="k01"), op("PUT", key="n", value=bytes(50_000))]),
    "INCR of many": op("TXN", ops=[op("INCR", key=f"i{n}") for n in range(400)]),
}

GOING_ON = {
    "GET": op("GET", key="k01"),
    "SCAN": op("SCAN"),
    "PUT of the same size": op("PUT", key="k01", value=PACKED),
    "PUT of a smaller value": op("PUT", key="k01", value=1),
    "a held lock is renewed": op("TXN", if_=[["k01", 2]], ops=[op("PUT", key="k01", value=PACKED)]),
    "MPUT": op("MPUT", items={"k01": PACKED, "k02": 1}),
    "TXN": op("TXN", ops=[op("DELETE", key="k01"), op("PUT", key="new", value=1)]),
    "TOUCH": op("TOUCH", key="k01", ttl=9),
    "DELETE": op("DELETE", key="k01"),
    "MDELETE": op("MDELETE", keys=["k01", "k02"]),
}


@on_two_stores
@pytest.mark.parametrize("once", [{}, ONCE], ids=["plain", "once"])
@pytest.mark.parametrize("write", GROWING)
def test_a_write_that_grows_is_refused_whole(full: Store, write: str, once: dict[str, Any]) -> None:
    before, rev = full.items(), full.rev
    reply = full.refused("FULL", **(GROWING[write] | once))
    assert reply["retry"] is True
    assert reply["applied"] is False
    assert "limits.max_memory of the server is 1048576" in reply["message"]
    assert "index" not in reply
    assert (full.items(), full.rev) == (before, rev)

    full.ok("MDELETE", keys=[f"k{number:02}" for number in range(10, 20)])
    assert "replayed" not in full.ok(**(GROWING[write] | once)), "it clears by itself"


@on_two_stores
@pytest.mark.parametrize("write", GOING_ON)
def test_what_does_not_grow_goes_on(full: Store, write: str) -> None:
    for _ in range(3):
        reply = full.call(**GOING_ON[write])
        assert reply["ok"] or reply["code"] in {"NOT_FOUND", "CONFLICT"}


def test_a_full_store_can_be_emptied(full: Store) -> None:
    for key, *_ in full.items():
        full.ok("DELETE", key=key, session="s", seq=int(key[1:]) + 1)
    assert full.items() == []
    assert full.call("PUT", key="new", value=PACKED)["ok"]


@on_two_stores
def test_writes_that_stay_as_large_go_on_for_ever(full: Store) -> None:
    for number in range(300):
        full.ok("PUT", key=f"k{number % 40:02}", value=PACKED)
    assert memory(full)["used"] <= 1.05 * LIMITS["max_memory"]


@on_two_stores
def test_what_would_not_grow_is_refused_far_beyond_the_limit(make_store: MakeStore) -> None:
    """Sessions fill up by writes that do not grow: only those that remove something go on."""
    store = make_store(**LIMITS)
    fill(store)
    replies = (
        store.call("TOUCH", key="k01", ttl=9, session=f"s{number}", seq=1) for number in range(MANY)
    )
    assert next(reply for reply in replies if not reply["ok"])["code"] == "FULL"
    assert 1.04 * LIMITS["max_memory"] < memory(store)["used"] < 1.06 * LIMITS["max_memory"]
    store.ok("DELETE", key="k01", session="another", seq=1)


@pytest.mark.parametrize("make_store", ["memory", "memory, pure Python"], indirect=True)
def test_the_history_shrinks_before_a_write_is_refused(make_store: MakeStore) -> None:
    store = make_store(max_memory=2**20)
    for number in range(8_000):
        store.ok("PUT", key="same", value=number)
    for number in range(30):
        store.ok("PUT", key=f"k{number:02}", value=bytes(10_000))
    stats = store.ok("INFO")["stats"]
    assert 1_000 <= stats["history"]["changes"] < 7_000
    assert stats["memory"]["used"] <= 2**20


def test_the_count_is_exact(make_store: MakeStore) -> None:
    """What INFO counts is what the entries are, whatever has happened to them."""
    clock = FakeClock()
    store = make_store(clock, **LIMITS)
    store.ok("MPUT", items={f"é{number}": bytes(number) for number in range(50)})
    store.ok("PUT", key="brief", value=1, ttl=1)
    store.ok("PUT", key="for long", value=1, ttl=1_000)
    store.ok("TOUCH", key="é1", ttl=1_000)
    store.ok("TOUCH", key="for long", ttl=None)
    store.ok("INCR", key="n", by=2**40)
    store.ok("DELETE", key="é2")
    store.call("TXN", ops=[op("PUT", key="é3", value=1), op("INCR", key="for long", by=2**63 - 1)])
    clock.advance(2_000)
    store.remove_expired()

    items = store.items()
    found = memory(store)
    assert found["keys"] == sum(len(key.encode()) for key, *_ in items)
    assert found["index"] == 56 * len(items) + 200
    assert found["used"] == sum(
        found[part] for part in ("keys", "values", "index", "history", "sessions")
    )
    assert found["limit"] == LIMITS["max_memory"]


@on_two_stores
def test_without_a_limit_nothing_is_full(store: Store) -> None:
    assert memory(store)["limit"] == 0
    for number in range(100):
        store.ok("PUT", key=f"k{number}", value=PACKED)


KEYS = st.sampled_from([f"k{number}" for number in range(12)])
SIZES = st.sampled_from([1, 1_000, 30_000, 100_000, 150_000])
WRITES = st.one_of(
    st.builds(lambda key, size: op("PUT", key=key, value=bytes(size)), KEYS, SIZES),
    st.builds(lambda key, size: op("PUT", key=key, value=bytes(size), ttl=100), KEYS, SIZES),
    st.builds(lambda key: op("DELETE", key=key), KEYS),
    st.builds(lambda key: op("TOUCH", key=key, ttl=50), KEYS),
    st.builds(lambda key: op("INCR", key=key), KEYS),
    st.builds(
        lambda keys, size: op("MPUT", items=dict.fromkeys(keys, bytes(size))),
        st.lists(KEYS, max_size=4), SIZES,
    ),
    st.builds(
        lambda gone, key, size: op(
            "TXN", ops=[op("PUT", key=gone, value=1), op("DELETE", key=gone),
                        op("PUT", key=key, value=bytes(size))],
        ),
        KEYS, KEYS, SIZES,
    ),
)  # fmt: skip


@settings(max_examples=60)
@given(writes=st.lists(WRITES, min_size=5, max_size=60))
def test_a_write_is_refused_if_it_would_grow_beyond_the_limit_and_only_then(
    writes: list[dict[str, Any]],
) -> None:
    """In C and in pure Python, and by a recount of all entries after each write."""
    with contextlib.ExitStack() as stack:
        stores = [
            stack.enter_context(opened(kind, None, **LIMITS))
            for kind in ("memory", "memory, pure Python")
        ]
        sizes: dict[str, int] = {}
        for write in writes:
            rest = memory(stores[0])
            replies = [store.call(**write) for store in stores]
            assert replies[0] == replies[1]
            after = {key: len(pack(value)) for key, value, _ in stores[0].items()}
            grew = sum(after.values()) + 58 * len(after)
            before = sum(sizes.values()) + 58 * len(sizes)
            if replies[0].get("code") == "FULL":
                assert after == sizes
                assert rest["used"] > LIMITS["max_memory"] / 4
            elif grew > before:
                kept = rest["used"] - rest["history"] - rest["sessions"]
                assert kept + grew - before <= LIMITS["max_memory"]
            sizes = after
            for store in stores:
                found = memory(store)
                assert found["keys"] == sum(map(len, after))
                assert found["values"] == sum(after.values())
                assert found == memory(stores[0])
