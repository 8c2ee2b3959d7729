"""Quotas: a write that lets what is under the user's prefixes grow beyond its bytes is `FULL`."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Raw

from tests.requests.contract_stores import DurableStore, Store, op, request
from zkv.users.rights import User


def ann(max_bytes: int, *write: str) -> User:
    """A user with a quota for ``q/``, or for other prefixes."""
    return User("ann", read=[""], write=write or ["q/"], max_bytes=max_bytes)


def value(size: int) -> Raw:
    """A value that takes so many bytes as it is packed."""
    return Raw(b"\xc4" + bytes([size - 2]) + bytes(size - 2))


@pytest.fixture
def full(store: Store) -> Store:
    """A store whose user has 40 of 50 bytes under `q/`, in four entries."""
    store.ok("MPUT", items={f"q/{name}": value(7) for name in "abcd"} | {"other": value(100)})
    store.serve(ann(50))
    return store


GROWING = {
    "PUT of a new key": op("PUT", key="q/new", value=value(6)),
    "PUT of a larger value": op("PUT", key="q/a", value=value(18)),
    "PUT with a ttl": op("PUT", key="q/new", value=value(6), ttl=1),
    "INCR": op("INCR", key="q/" + "n" * 8),
    "MPUT": op("MPUT", items={"q/a": value(8), "q/new": value(5)}),
    "TXN": op("TXN", ops=[op("PUT", key="q/a", value=value(8)), op("INCR", key="q/counter")]),
    "TXN, removing too little": op(
        "TXN", ops=[op("DELETE", key="q/a"), op("PUT", key="q/new", value=value(16))]
    ),
}
"""Each has one byte too many."""


@pytest.mark.parametrize("once", [{}, {"session": "s", "seq": 1}], ids=["plain", "once"])
@pytest.mark.parametrize("write", GROWING)
def test_a_write_beyond_the_quota_is_refused_whole(
    full: Store, write: str, once: dict[str, Any]
) -> None:
    before = full.items()
    reply = full.refused("FULL", **(GROWING[write] | once))
    assert "takes 40 bytes and would take 51; max_bytes is 50" in reply["message"]
    assert "index" not in reply
    assert full.items() == before
    full.serve(ann(51))
    assert "replayed" not in full.ok(**(GROWING[write] | once))


FITTING = {
    "to the last byte": op("PUT", key="q/new", value=value(5)),
    "a TXN that makes room first": op(
        "TXN", ops=[op("DELETE", key="q/a"), op("PUT", key="q/new", value=value(15))]
    ),
    "a TXN that makes room at its end": op(
        "TXN", ops=[op("PUT", key="q/new", value=value(15)), op("DELETE", key="q/a")]
    ),
    "a TXN that takes back what it has put": op(
        "TXN", ops=[op("PUT", key="q/a", value=value(99)), op("PUT", key="q/a", value=value(9))]
    ),
    "an MPUT in which one shrinks": op("MPUT", items={"q/a": value(2), "q/new": value(10)}),
}


@pytest.mark.parametrize("write", FITTING)
def test_a_write_within_the_quota_is_done(full: Store, write: str) -> None:
    full.ok(**FITTING[write])


HARMLESS = {
    "PUT of the same size": op("PUT", key="q/a", value=value(7)),
    "PUT of a smaller value": op("PUT", key="q/a", value=value(6)),
    "TOUCH": op("TOUCH", key="q/a", ttl=60),
    "DELETE": op("DELETE", key="q/a"),
    "MDELETE": op("MDELETE", keys=["q/a", "q/x"]),
    "MPUT": op("MPUT", items={"q/a": value(8), "q/b": value(6)}),
    "TXN": op("TXN", ops=[op("DELETE", key="q/a"), op("PUT", key="q/new", value=value(5))]),
    "TXN of reads": op("TXN", ops=[op("GET", key="q/a")]),
    "NOT_FOUND": op("DELETE", key="q/x", session="s", seq=1),
}


@pytest.mark.parametrize("write", HARMLESS)
def test_what_does_not_grow_is_done_even_beyond_the_quota(full: Store, write: str) -> None:
    full.serve(ann(10))
    full.refused("FULL", "PUT", key="q/a", value=value(8))
    reply = full.call(**HARMLESS[write])
    assert reply["ok"] or reply["code"] == "NOT_FOUND"


def test_what_others_write_counts_and_they_are_not_refused(full: Store) -> None:
    full.serve(User("ben", write=[""]))
    full.ok("PUT", key="q/new", value=value(95))
    full.ok("PUT", key="elsewhere", value=value(99))
    full.serve(ann(150))
    reply = full.refused("FULL", "PUT", key="q/more", value=value(5))
    assert "takes 140 bytes and would take 151;" in reply["message"]


def test_entries_count_by_their_prefixes_in_bytes(store: Store) -> None:
    """An entry under two of them counts once, and one under none not at all."""
    store.ok("MPUT", items={"é/": 1, "é/é": "é", "é/x/y": 1, "é": 1, "z": 1, "zz": 1, "y": 1})
    held = (3 + 1) + (5 + 3) + (6 + 1) + (1 + 1) + (2 + 1)
    for prefixes, more in ((["é/", "z", "é/x/", "zz", "é/"], 0), (["", "z"], (2 + 1) + (1 + 1))):
        store.serve(ann(1, *prefixes))
        reply = store.refused("FULL", "PUT", key="z/", value=1)
        assert f"takes {held + more} bytes and would take {held + more + 3};" in reply["message"]
    store.serve(ann(0, "z"))
    store.ok("PUT", key="z/", value=1)


def test_full_is_not_remembered(full: Store) -> None:
    """A repeat runs, and what has run is answered again, also once there is no room."""
    once = op("PUT", key="q/new", value=value(6), session="s", seq=1)
    for _ in range(2):
        full.refused("FULL", **once)
    full.ok("DELETE", key="q/a")
    rev = full.ok(**once)["rev"]
    full.serve(ann(1))
    again = full.ok(**once)
    assert (again["rev"], again["replayed"]) == (rev, True)
    full.refused("FULL", "PUT", key="q/more", value=1, session="s", seq=2)


def test_what_has_expired_counts_until_it_is_removed(full: Store) -> None:
    full.ok("TOUCH", key="q/a", ttl=1)
    full.clock.advance(1_000)
    full.refused("FULL", "PUT", key="q/new", value=value(6))
    full.ok("PUT", key="q/a", value=value(7), ttl=1)
    full.clock.advance(1_000)
    full.remove_expired()
    full.ok("PUT", key="q/new", value=value(6))


def test_full_is_told_once_nothing_that_it_tells_can_be_lost(durable_store: DurableStore) -> None:
    store = durable_store
    store.serve(ann(10))
    grown, more = (request("PUT", key="q/a", value=value(size)) for size in (7, 8))
    one, other = store.workers
    (first,) = one.send(grown)
    (refused,) = other.send(more)
    assert not first.left
    assert not refused.left, "a crash could take back what takes the room"
    other.settle()
    assert refused.read()["code"] == "FULL"


def test_full_is_answered_read_only_if_what_takes_the_room_is_rolled_back(
    durable_store: DurableStore,
) -> None:
    store = durable_store
    store.serve(ann(10))
    grown, more = (request("PUT", key="q/a", value=value(size)) for size in (7, 8))
    one, other = store.workers
    one.send(grown)
    (refused,) = other.send(more)
    store.disk.full = True
    other.settle()
    assert refused.read()["code"] == "READ_ONLY"
    assert store.engine.keyspace.entries.bytes_under(("q/",)) == 0
