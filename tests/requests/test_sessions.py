"""Exactly-once writes: repeats, windows, and the bounds of what is remembered."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from tests.requests.contract_stores import (
    DurableStore,
    FakeClock,
    MakeStore,
    MemoryStore,
    Store,
    on_two_stores,
    op,
    opened,
)
from tests.requests.once import ONCE, fill_for_once
from tests.support import Message, traced_memory


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
    store.ok("INCR", key="n", session="s", seq=2)
    assert store.ok("INCR", key="n", session="s", seq=2, deadline=2**53)["replayed"] is True
    store.ok("DELETE", key="n")
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


@pytest.mark.parametrize("newest", [2**62 + 1, 2**63 + 1, 2**64 - 1])
def test_numbers_may_be_as_large_as_msgpack_has_them(store: Store, newest: int) -> None:
    for seq in (newest - 1, newest, newest):
        store.ok("INCR", key="k", session="s", seq=seq)
    assert store.ok("GET", key="k")["value"] == 2


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


@on_two_stores
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


def test_writes_of_one_session_forget_others_that_are_silent() -> None:
    """Also those of which each is the next of its session; INFO itself would forget them."""
    with contextlib.closing(DurableStore(FakeClock(), session_ttl=10)) as store:
        sessions = store.engine.keyspace.sessions
        store.ok("INCR", key="k", session="silent", seq=1)
        for seq in range(1, 5):
            store.ok("INCR", key="k", session="s", seq=seq)
            store.clock.advance(3_500)
        assert sessions.names() == ["s"]
        store.clock.advance(10_000)
        store.ok("INCR", key="k", session="s", seq=5)
        assert sessions.statistics()["replies"] == 1, "it has been silent itself"


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
