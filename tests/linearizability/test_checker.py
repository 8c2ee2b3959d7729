"""The checker finds what was planted, and nothing in what a correct store could have answered."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.linearizability import checker
from tests.linearizability.checker import (
    NEVER,
    Operation,
    UndecidedError,
    check,
    load,
    partitions,
    save,
)

Asked = dict[str, Any]
NOBODY = -1
"""The client of a request whose reply nobody waits for any more."""


def done(
    called: int, returned: int, request: Asked, /, *, client: int = 0, **reply: Any
) -> Operation:
    """A request with its reply."""
    return Operation(client, called, returned, request, {"ok": True} | reply)


def refused(called: int, returned: int, request: Asked, /, code: str, **reply: Any) -> Operation:
    """A request that failed."""
    return Operation(0, called, returned, request, {"ok": False, "code": code} | reply)


def unknown(called: int, request: Asked, /) -> Operation:
    """A request that was not answered."""
    return Operation(0, called, NEVER, request, None)


def get(key: str = "k") -> Asked:
    return {"op": "GET", "key": key}


def put(value: Any, key: str = "k", **fields: Any) -> Asked:
    return {"op": "PUT", "key": key, "value": value} | fields


def incr(key: str = "k", by: int = 1) -> Asked:
    return {"op": "INCR", "key": key, "by": by}


def delete(key: str = "k", **fields: Any) -> Asked:
    return {"op": "DELETE", "key": key} | fields


def txn(*ops: Asked, **conditions: int) -> Asked:
    return {"op": "TXN", "ops": list(ops), "if": list(conditions.items())}


def mget(*keys: str) -> Asked:
    return {"op": "MGET", "keys": list(keys)}


GOOD: dict[str, list[Operation]] = {
    "nothing": [],
    "one after the other": [
        refused(1, 2, get(), "NOT_FOUND"),
        done(3, 4, put("a"), rev=1),
        done(5, 6, get(), value="a", rev=1),
        done(7, 8, put("b", if_rev=1), rev=2),
        refused(9, 10, put("c", if_rev=1), "CONFLICT", key="k", rev=2),
        done(11, 12, delete(if_rev=2), rev=3),
        refused(13, 14, delete(), "NOT_FOUND"),
        refused(15, 16, put("c", if_rev=2), "CONFLICT", key="k", rev=0),
        done(17, 18, incr(by=5), value=5, rev=4),
        done(19, 20, incr(by=-6), value=-1, rev=5),
    ],
    "a read beside a write sees the old": [
        done(1, 2, put("a"), rev=1),
        done(3, 10, put("b"), rev=2),
        done(4, 5, get(), value="a", rev=1),
    ],
    "a read beside a write sees the new": [
        done(1, 2, put("a"), rev=1),
        done(3, 10, put("b"), rev=2),
        done(4, 5, get(), value="b", rev=2),
        done(6, 7, get(), value="b", rev=2),
    ],
    "writes beside each other come in any order": [
        done(1, 10, put("a"), rev=2),
        done(2, 9, put("b"), rev=1),
        done(11, 12, get(), value="a", rev=2),
    ],
    "an unknown write took effect at once": [
        unknown(1, put("a")),
        done(2, 3, get(), value="a", rev=1),
        done(4, 5, put("b", if_rev=1), rev=2),
    ],
    "an unknown write took effect much later": [
        unknown(1, put("a")),
        refused(2, 3, get(), "NOT_FOUND"),
        done(4, 5, put("b"), rev=1),
        done(6, 7, get(), value="b", rev=1),
        done(8, 9, get(), value="a", rev=2),
    ],
    "an unknown write never took effect": [
        unknown(1, incr()),
        done(2, 3, incr(), value=1, rev=1),
        done(4, 5, get(), value=1, rev=1),
    ],
    "one of two unknown writes took effect": [
        unknown(1, incr(by=2)),
        unknown(1, incr(by=3)),
        done(2, 3, incr(), value=1, rev=1),
        done(4, 5, incr(), value=5, rev=3),
        done(6, 7, get(), value=5, rev=3),
    ],
    "an unknown compare-and-swap took effect": [
        done(1, 2, put("a"), rev=1),
        unknown(3, put("b", if_rev=1)),
        refused(4, 5, put("c", if_rev=1), "CONFLICT", key="k", rev=2),
        done(6, 7, get(), value="b", rev=2),
    ],
    "an unknown delete took effect": [
        done(1, 2, put("a"), rev=1),
        unknown(3, delete()),
        done(4, 5, put("b", if_rev=0), rev=3),
    ],
    "a transaction on two keys": [
        done(1, 2, txn(incr("a"), incr("b", -1), a=0, b=0), rev=1,
             results=[{"value": 1, "rev": 1}, {"value": -1, "rev": 1}]),
        done(3, 4, mget("a", "b"), values=[1, -1], revs=[1, 1]),
        refused(5, 6, txn(a=1, b=7), "CONFLICT", key="b", rev=1),
        done(7, 8, txn(get("a"), get("x")), rev=1,
             results=[{"value": 1, "rev": 1}, {"value": None, "rev": 0}]),
    ],
    "an unknown transaction on two keys took effect": [
        unknown(1, txn(put(1, "a"), put(2, "b"))),
        done(2, 3, get("b"), value=2, rev=5),
        done(4, 5, mget("a", "b"), values=[1, 2], revs=[5, 5]),
    ],
    "an op in a transaction sees the one before": [
        done(1, 2, txn(incr(), incr(), get()), rev=1,
             results=[{"value": 1, "rev": 1}, {"value": 2, "rev": 1}, {"value": 2, "rev": 1}]),
    ],
}  # fmt: skip

BAD: dict[str, list[Operation]] = {
    "a stale read": [
        done(1, 2, put("a"), rev=1),
        done(3, 4, put("b"), rev=2),
        done(5, 6, get(), value="a", rev=1),
    ],
    "a stale read of what is not there any more": [
        done(1, 2, put("a"), rev=1),
        done(3, 4, delete(), rev=2),
        done(5, 6, get(), value="a", rev=1),
    ],
    "reads that go back": [
        done(1, 2, put("a"), rev=1),
        done(3, 20, put("b"), rev=2),
        done(4, 5, get(), value="b", rev=2),
        done(6, 7, get(), value="a", rev=1),
    ],
    "a lost write": [
        done(1, 2, put("a"), rev=1),
        refused(3, 4, get(), "NOT_FOUND"),
    ],
    "a lost update": [
        done(1, 2, put("a"), rev=1),
        done(3, 9, put("b", if_rev=1), rev=2),
        done(4, 8, put("c", if_rev=1), rev=3),
    ],
    "a lost increment": [
        done(1, 9, incr(), value=1, rev=1),
        done(2, 8, incr(), value=1, rev=2),
    ],
    "a duplicate increment": [
        done(1, 2, incr(), value=1, rev=1),
        done(3, 4, incr(), value=3, rev=3),
    ],
    "a duplicate increment, seen by a read": [
        done(1, 2, incr(), value=1, rev=1),
        done(3, 4, get(), value=2, rev=2),
    ],
    "an unknown increment that counted twice": [
        unknown(1, incr()),
        done(2, 3, get(), value=1, rev=1),
        done(4, 5, get(), value=2, rev=2),
    ],
    "an unknown write that took effect twice": [
        unknown(1, put("a")),
        done(2, 3, get(), value="a", rev=1),
        done(4, 5, put("b"), rev=2),
        done(6, 7, get(), value="a", rev=3),
    ],
    "an unknown write that vanished": [
        unknown(1, put("a")),
        done(2, 3, get(), value="a", rev=1),
        refused(4, 5, get(), "NOT_FOUND"),
    ],
    "an unknown write that took effect before it was sent": [
        done(1, 2, get(), value="a", rev=1),
        unknown(3, put("a")),
    ],
    "an unknown write whose condition did not hold": [
        done(1, 2, put("a"), rev=1),
        unknown(3, put("b", if_rev=7)),
        done(4, 5, get(), value="b", rev=2),
    ],
    "half an unknown transaction": [
        unknown(1, txn(put(1, "a"), put(2, "b"))),
        done(2, 3, get("b"), value=2, rev=5),
        refused(4, 5, get("a"), "NOT_FOUND"),
    ],
    "a value out of nowhere": [
        done(1, 2, put("a"), rev=1),
        done(3, 4, get(), value="x", rev=2),
    ],
    "another value under the same revision": [
        done(1, 2, put("a"), rev=1),
        done(3, 4, get(), value="b", rev=1),
    ],
    "another type": [
        done(1, 2, put(1), rev=1),
        done(3, 4, get(), value=True, rev=1),
    ],
    "a refused write that took effect": [
        done(1, 2, put("a"), rev=1),
        refused(3, 4, put("b", if_rev=7), "CONFLICT", key="k", rev=1),
        done(5, 6, get(), value="b", rev=2),
    ],
    "a refusal without a reason": [
        done(1, 2, put("a"), rev=1),
        refused(3, 4, put("b", if_rev=1), "CONFLICT", key="k", rev=1),
    ],
    "a conflict with what was not there": [
        done(1, 2, put("a"), rev=1),
        refused(3, 4, put("b", if_rev=0), "CONFLICT", key="k", rev=3),
    ],
    "a condition that did not hold": [
        done(1, 2, put("a"), rev=1),
        done(3, 4, put("b", if_rev=0), rev=2),
    ],
    "a torn transaction": [
        done(1, 9, txn(put(1, "a"), put(1, "b")), rev=1, results=[{"rev": 1}, {"rev": 1}]),
        done(2, 3, mget("a", "b"), values=[1, None], revs=[1, 0]),
    ],
    "a transaction seen key by key in two orders": [
        done(1, 2, txn(put(0, "a"), put(0, "b")), rev=1, results=[{"rev": 1}, {"rev": 1}]),
        done(3, 30, put(1, "a"), rev=2),
        done(3, 30, put(1, "b"), rev=3),
        done(4, 5, mget("a", "b"), values=[1, 0], revs=[2, 1]),
        done(4, 5, mget("a", "b"), values=[0, 1], revs=[1, 3]),
    ],
    "a transaction whose condition did not hold": [
        done(1, 2, put(1, "a"), rev=1),
        done(3, 4, txn(put(2, "b"), a=0), rev=2, results=[{"rev": 2}]),
    ],
    "a transaction that read a stale value": [
        done(1, 2, put(1, "a"), rev=1),
        done(3, 4, txn(get("a"), put(2, "b")), rev=2, results=[{"value": 0, "rev": 1}, {"rev": 2}]),
    ],
    "a revision that two writes have": [
        done(1, 9, put("a", "x"), rev=1),
        done(2, 8, put("b", "y"), rev=1),
    ],
    "revisions against the time": [
        done(1, 2, put("a", "x"), rev=2),
        done(3, 4, put("b", "y"), rev=1),
    ],
    "revisions against the order": [
        done(1, 20, put("a"), rev=2),
        done(1, 20, put("b"), rev=1),
        done(4, 5, get(), value="a", rev=2),
        done(6, 7, get(), value="b", rev=1),
    ],
    "a refusal that no op can get": [
        refused(1, 2, incr(), "TEAPOT"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_a_store_can_answer_is_linearizable(name: str) -> None:
    assert check(GOOD[name]) is None


@pytest.mark.parametrize("name", BAD)
def test_a_planted_violation_is_found(name: str) -> None:
    violation = check(BAD[name])
    assert violation is not None
    assert violation.operations
    assert violation.reason in str(violation)


@pytest.mark.parametrize("name", BAD)
def test_a_planted_violation_is_found_among_what_is_right(name: str) -> None:
    """Behind a long history of the same keys, which the planted one has not seen."""
    last_rev = 1_000
    before = [
        done(-5_000 + 3 * step, -4_994 + 3 * step, put(step, f"other {step % 3}"), rev=step)
        for step in range(1, last_rev)
    ]
    assert check(before) is None

    def shift(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                name: _shifted(inner) if name in {"rev", "if_rev"} else shift(inner)
                for name, inner in value.items()
            }
        return [shift(inner) for inner in value] if isinstance(value, list) else value

    def _shifted(rev: int) -> int:
        return rev and rev + last_rev

    planted = [
        operation._replace(
            request=_shift_conditions(shift(operation.request), last_rev),
            reply=operation.reply and _shift_revs(shift(operation.reply), last_rev),
        )
        for operation in BAD[name]
    ]
    assert check(before + planted) is not None


def _shift_conditions(request: Asked, by: int) -> Asked:
    if "if" in request:
        request["if"] = [(key, rev and rev + by) for key, rev in request["if"]]
    return request


def _shift_revs(reply: Asked, by: int) -> Asked:
    if "revs" in reply:
        reply["revs"] = [rev and rev + by for rev in reply["revs"]]
    return reply


class Simulated:
    """A store that is right, and histories of it with clients beside each other."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.entries: dict[str, tuple[Any, int]] = {}
        self.rev = 0
        self.values = 0

    def history(self, length: int, clients: int, lost: float) -> list[Operation]:
        """Each request takes effect somewhere between its call and its return, or is lost."""
        time = 0
        idle = list(range(clients))
        waiting: list[tuple[int, int, Asked, Any]] = []  # client, called, request, reply
        history: list[Operation] = []
        while len(history) < length:
            time += 1
            what = self.random.random()
            if what < 0.4 and idle:
                client = idle.pop(self.random.randrange(len(idle)))
                waiting.append((client, time, self.request(), ...))
            elif waiting:
                index = self.random.randrange(len(waiting))
                client, called, request, reply = waiting.pop(index)
                if client == NOBODY:
                    self.answer(request)
                elif self.random.random() < lost:
                    later = reply is ... and self.random.random() < 0.5
                    history.append(
                        Operation(client, called, NEVER if later else time, request, None)
                    )
                    idle.append(client)
                    if later:
                        waiting.append((NOBODY, called, request, ...))
                elif reply is ...:
                    waiting.append((client, called, request, self.answer(request)))
                else:
                    history.append(Operation(client, called, time, request, reply))
                    idle.append(client)
        for client, called, request, _ in waiting:
            if client != NOBODY:
                history.append(Operation(client, called, NEVER, request, None))
        return history

    def request(self) -> Asked:
        """One of all kinds. Keys: two registers, two counters, and two that are tied together."""
        self.values += 1
        register, counter = self.random.choice(["r", "s"]), self.random.choice(["n", "m"])
        _, rev = self.entries.get(register, (None, 0))
        seen = max(0, rev - self.random.choice([0, 0, 0, 1]))
        requests = [
            get(register), put(self.values, register), put(self.values, register, if_rev=seen),
            delete(register), delete(register, if_rev=seen), get(counter), incr(counter),
            mget("a", "b"), txn(put(self.values, "a"), get("b")),
            txn(incr("b"), get("a"), a=self.entries.get("a", (None, 0))[1]),
        ]  # fmt: skip
        return self.random.choice(requests)

    def answer(self, request: Asked) -> Asked:
        """Do it now."""
        if request["op"] == "MGET":
            found = [self.entries.get(key, (None, 0)) for key in request["keys"]]
            return {"ok": True, "values": [v for v, _ in found], "revs": [r for _, r in found]}
        conditions = request.get("if", [])
        if "if_rev" in request:
            conditions = [(request["key"], request["if_rev"])]
        for key, rev in conditions:
            _, actual = self.entries.get(key, (None, 0))
            if actual != rev:
                return {"ok": False, "code": "CONFLICT", "key": key, "rev": actual}
        single = request["op"] != "TXN"
        if request["op"] in {"GET", "DELETE"} and request["key"] not in self.entries:
            return {"ok": False, "code": "NOT_FOUND"}
        if request["op"] != "GET":
            self.rev += 1
        results = [self.run(op) for op in ([request] if single else request["ops"])]
        reply = results[0] if single else {"rev": self.rev, "results": results}
        return {"ok": True} | reply

    def run(self, op: Asked) -> Asked:
        value, rev = self.entries.get(op["key"], (None, 0))
        match op["op"]:
            case "GET":
                return {"value": value, "rev": rev}
            case "DELETE":
                del self.entries[op["key"]]
            case "PUT":
                self.entries[op["key"]] = op["value"], self.rev
            case "INCR":
                self.entries[op["key"]] = (value or 0) + op["by"], self.rev
                return {"value": (value or 0) + op["by"], "rev": self.rev}
        return {"rev": self.rev}


@given(seed=st.integers(0, 2**32), lost=st.sampled_from([0.0, 0.03, 0.1]))
def test_histories_of_a_right_store_are_linearizable(seed: int, lost: float) -> None:
    assert check(Simulated(seed).history(120, clients=6, lost=lost)) is None


def test_a_long_history_is_checked_quickly() -> None:
    assert check(Simulated(7).history(10_000, clients=20, lost=0.003)) is None


@given(seed=st.integers(0, 2**32), data=st.data())
def test_any_wrong_reply_in_a_history_without_concurrency_is_found(
    seed: int, data: st.DataObject
) -> None:
    history = Simulated(seed).history(40, clients=1, lost=0)
    wrong = [
        (index, tampered)
        for index, operation in enumerate(history)
        for tampered in tamperings(operation)
    ]
    index, reply = data.draw(st.sampled_from(wrong))
    history[index] = history[index]._replace(reply=reply)
    assert check(history) is not None


def tamperings(operation: Operation) -> list[Asked]:
    """Replies that differ in what they tell."""
    reply = dict(operation.reply or {})
    if operation.request["op"] in {"PUT", "DELETE"} and reply["ok"]:
        return [{"ok": False, "code": "CONFLICT", "key": operation.request["key"], "rev": 10**9}]
    if operation.request["op"] == "GET" and reply["ok"]:
        return [reply | {"value": -1}, reply | {"rev": 10**9}, {"ok": False, "code": "NOT_FOUND"}]
    if operation.request["op"] == "INCR":
        return [reply | {"value": reply["value"] + 1}, reply | {"value": reply["value"] - 1}]
    if operation.request["op"] == "MGET":
        return [reply | {"revs": [rev + 10**9 for rev in reply["revs"]]}]
    if reply.get("code") == "NOT_FOUND":
        return [{"ok": True, "value": 1, "rev": 10**9}]
    return [{"ok": False, "code": "CONFLICT", "key": "a", "rev": 10**9}] if reply["ok"] else []


def test_keys_that_nothing_ties_together_are_searched_apart() -> None:
    history = [
        done(1, 2, put(1, "a"), rev=1),
        done(1, 2, put(1, "b"), rev=2),
        done(1, 2, mget("b", "c"), values=[None, None], revs=[0, 0]),
        done(1, 2, txn(get("d"), c=0), rev=0, results=[{"value": None, "rev": 0}]),
        done(1, 2, get("a"), value=1, rev=1),
    ]
    assert sorted(len(part) for part in partitions(history)) == [2, 3]


def test_a_search_that_takes_too_long_is_given_up() -> None:
    # One of many unknown increments is missing: every subset of them would have to be tried.
    history = [unknown(1, incr(by=1 << bit)) for bit in range(16)]
    history.append(done(2, 3, get(), value=-1, rev=99))
    with mock.patch.object(checker, "SEARCH_LIMIT", 1_000), pytest.raises(UndecidedError):
        check(history)


def test_a_request_without_a_reply_took_effect_before_its_server_ended_or_never() -> None:
    lost = Operation(0, 1, 5, put(1), None)
    absent = {"ok": False, "code": "NOT_FOUND"}
    before = Operation(1, 4, 6, get(), absent)
    after = Operation(1, 6, 7, get(), absent)
    seen = done(8, 9, get(), value=1, rev=1)
    assert check([lost, before, seen]) is None
    assert check([lost, after]) is None
    assert check([lost, after, seen]) is not None


def test_what_became_of_servers_that_have_ended_does_not_make_a_search_longer() -> None:
    # Two of the four increments that each server was asked for last took effect: any two.
    history: list[Operation] = []
    for server in range(200):
        begin, value = 100 * server, 2 * server
        history += [Operation(0, begin + n, begin + 50, incr(by=1), None) for n in range(4)]
        history.append(done(begin + 60, begin + 61, get(), value=value + 2, rev=10 * server + 5))
    assert check(history) is None
    history.append(done(30_000, 30_001, get(), value=0, rev=9_999))
    assert check(history) is not None


def test_a_history_can_be_kept_in_a_file(tmp_path: Path) -> None:
    history = Simulated(3).history(50, clients=3, lost=0.2)
    save(history, tmp_path / "history.jsonl")
    loaded = load(tmp_path / "history.jsonl")
    assert len(loaded) == len(history)
    assert check(loaded) is None
    planted = BAD["a torn transaction"]
    save(planted, tmp_path / "planted.jsonl")
    assert check(load(tmp_path / "planted.jsonl")) is not None
