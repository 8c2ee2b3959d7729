"""TXN: conditions, then ops, all of them or none."""

from __future__ import annotations

from typing import Any

import pytest

from tests.requests.contract_stores import (
    HOUR,
    MAX_INT64,
    MakeStore,
    Store,
    on_two_stores,
    op,
)


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


@on_two_stores
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


@pytest.mark.parametrize("first", [["a"], ["new"], ["a", "new", "n"]], ids=",".join)
def test_a_txn_of_plain_ops_whose_last_one_fails_leaves_nothing_behind(
    store: Store, first: list[str]
) -> None:
    """The lane begins with it, and leaves it to the commands as it was."""
    store.ok("MPUT", items={"a": 1, "n": 1, "text": "text"})
    before = store.items()

    ops = [op("INCR", key=key) for key in first]
    reply = store.refused("WRONG_TYPE", "TXN", ops=[*ops, op("INCR", key="text")])

    assert reply["index"] == len(first)
    assert store.items() == before
    assert store.ok("COUNT")["count"] == 3


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


@on_two_stores
@pytest.mark.parametrize(
    "alien",
    [
        {"id": 0},
        {"id": 1},
        {"id": "x"},
        {"session": "s", "seq": 1},
        {"session": "s"},
        {"seq": 1},
        {"deadline": 0},
        {"deadline": 2**62},
        {"durable": True},
        {"timing": True},
        {"trace": "t"},
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
