"""The judge of the crash tests is tested itself: it accepts what may be, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.durability.crash.history import Op, Promise, State, Version, load, lost, violations

ONLY_THE_DURABLE = Promise(survives=lambda op: False, reads_survive=False)

BEFORE = State(10, {"a": Version(4, "a4"), "b": Version(10, "b10")})


def op(
    name: str,
    kind: str,
    keys: str,
    value: str | None = None,
    at: tuple[int, int | None] = (0, 0),
    /,
    **reply: Any,
) -> Op:
    """An op on one-letter keys; without fields of a reply, it got none."""
    start, end = at
    if not reply:
        return Op(name, kind, tuple(keys), value, start)
    return Op(name, kind, tuple(keys), value, start, end, {"ok": True} | reply)


# A story with everything in it. Two clients, and time in the order of the lines.
STORY = [
    op("c0/1", "PUT", "a", "c0/1", (1, 2), rev=11, durable=False),
    op("c1/1", "MPUT", "bcd", "c1/1", (1, 3), rev=12, durable=False),
    op("c0/2", "MGET", "abc", None, (4, 5), revs=[11, 12, 12], values=["c0/1", "c1/1", "c1/1"]),
    op("c1/2", "DELETE", "c", None, (4, 6), rev=13, durable=False),
    op("c0/3", "GET", "c", None, (7, 8), ok=False, code="NOT_FOUND", applied=False),
    op("c1/3", "PUT", "e", "c1/3", (7, 8), ok=False, code="READ_ONLY", applied=False),
    op("c0/4", "MDELETE", "ad", None, (9, 10), rev=14, durable=False, deleted=2),
    op("c0/5", "MDELETE", "ad", None, (11, 12), rev=14, durable=False, deleted=0),
    op("c1/4", "GET", "b", None, (11, 12), rev=12, value="c1/1"),
    op("c0/6", "MPUT", "fg", "c0/6", (13, None)),
    op("c1/5", "PUT", "b", "c1/5", (13, None)),
    op("c1/6", "DELETE", "b", None, (13, None)),
]
AFTER = {"b": Version(12, "c1/1")}
NAMES = {op.name: op for op in STORY}


def but(*changed: Op, story: Iterable[Op] = STORY) -> list[Op]:
    """The story with some ops told differently, by name, or added."""
    by_name = {op.name: op for op in story} | {op.name: op for op in changed}
    return list(by_name.values())


def answered(name: str, start: int | None = None, **fields: Any) -> Op:
    """An op of the story with other fields in its reply, or sent at another time."""
    told = NAMES[name]
    assert told.reply is not None
    return replace(told, reply=told.reply | fields, start=told.start if start is None else start)


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(State(14, AFTER), id="none of the unanswered"),
        pytest.param(
            State(15, AFTER | {"f": Version(15, "c0/6"), "g": Version(15, "c0/6")}), id="the MPUT"
        ),
        pytest.param(State(15, AFTER | {"b": Version(15, "c1/5")}), id="the PUT"),
        pytest.param(State(15, {}), id="the DELETE"),
        pytest.param(State(16, {}), id="PUT, then DELETE"),
        pytest.param(State(16, {"b": Version(16, "c1/5")}), id="DELETE, then PUT"),
        pytest.param(
            State(17, {"f": Version(16, "c0/6"), "g": Version(16, "c0/6")}), id="all of them"
        ),
    ],
)
def test_whatever_may_have_become_of_unanswered_writes_is_accepted(after: State) -> None:
    assert violations(BEFORE, STORY, after) == []


@pytest.mark.parametrize(
    ("after", "complaint"),
    [
        pytest.param(State(13, AFTER), "lost: c0/4 MDELETE", id="the last write"),
        pytest.param(State(14, {}), "b is None, not", id="a write in the middle"),
        pytest.param(
            State(14, AFTER | {"d": Version(12, "c1/1")}), "d is Version", id="half an MDELETE"
        ),
        pytest.param(
            State(14, AFTER | {"a": Version(4, "a4")}), "a is Version", id="an old entry is back"
        ),
        pytest.param(
            State(14, {"b": Version(12, "c1/5")}), "b is Version(rev=12, value='c1/5')", id="value"
        ),
        pytest.param(State(15, AFTER | {"f": Version(15, "c0/6")}), "g is None", id="half an MPUT"),
        pytest.param(
            State(16, AFTER | {"f": Version(15, "c0/6"), "g": Version(16, "c0/6")}),
            "no unanswered write",
            id="an MPUT in two revisions",
        ),
        pytest.param(State(18, {}), "belong to nobody", id="revisions that nobody wrote"),
        pytest.param(State(15, AFTER), "no unanswered write", id="a revision without effect"),
        pytest.param(
            State(15, AFTER | {"e": Version(15, "c1/3")}), "no unanswered write", id="a refused PUT"
        ),
        pytest.param(State(9, {}), "went back from revision 10 to 9", id="before the start"),
    ],
)
def test_a_state_that_no_order_of_writes_gives_is_found(after: State, complaint: str) -> None:
    assert complaint in "\n".join(violations(BEFORE, STORY, after))


@pytest.mark.parametrize(
    ("story", "complaint"),
    [
        pytest.param(but(answered("c1/2", rev=12)), "given twice", id="a revision twice"),
        pytest.param(but(answered("c0/1", rev=10)), "before the start", id="one of before"),
        pytest.param(
            but(answered("c1/2", rev=14), answered("c0/4", rev=13)), "went back", id="backwards"
        ),
        pytest.param(
            but(answered("c1/4", rev=10, value="b10")), "a stale read", id="an older entry"
        ),
        pytest.param(
            but(op("c0/3", "GET", "c", None, (7, 8), rev=12, value="c1/1")),
            "a stale read",
            id="a removed one",
        ),
        pytest.param(
            but(op("c1/4", "GET", "b", None, (11, 12), ok=False, code="NOT_FOUND")),
            "nobody removed it",
            id="no entry",
        ),
        pytest.param(
            but(answered("c1/4", rev=12, value="c0/1")), "nobody wrote", id="another's value"
        ),
        pytest.param(
            but(op("c1/7", "GET", "e", None, (9, 10), rev=15, value="c1/3")),
            "nobody wrote",
            id="a refused write",
        ),
        pytest.param(
            but(op("c1/7", "GET", "f", None, (13, 14), rev=15, value="c0/6")),
            "read, and lost",
            id="one that is gone",
        ),
        pytest.param(
            but(op("c1/7", "GET", "b", None, (11, 12), rev=15, value="c1/5")),
            "written later",
            id="the future",
        ),
        pytest.param(
            but(answered("c0/2", revs=[4, 12, 0], values=["a4", "c1/1", None], start=1)),
            "no revision at which",
            id="half an MPUT",
        ),
        pytest.param(
            but(answered("c0/4", deleted=1)), "2 of the keys were there", id="a wrong count"
        ),
        pytest.param(
            but(op("c1/7", "SNAPSHOT", "", None, (11, 12), rev=13)),
            "a snapshot without",
            id="a snapshot of too little",
        ),
        pytest.param(but(answered("c1/3", code="INTERNAL")), "unexpected reply", id="a bug"),
        pytest.param(
            but(answered("c0/3", code="READ_ONLY")), "a read was refused", id="a refused read"
        ),
    ],
)
def test_an_answer_that_cannot_be_is_found(story: list[Op], complaint: str) -> None:
    assert complaint in "\n".join(violations(BEFORE, story, State(14, AFTER)))


@pytest.mark.parametrize(
    ("story", "complaint"),
    [
        pytest.param(STORY, "", id="nothing"),
        pytest.param(but(answered("c0/4", durable=True)), "lost: c0/4", id="a durable write"),
        pytest.param(
            but(op("c1/7", "INFO", "", None, (11, 12), rev=14, durable_rev=13)),
            "said to be on disk",
            id="a durable revision",
        ),
        pytest.param(
            but(op("c1/7", "SNAPSHOT", "", None, (11, 12), rev=14)),
            "said to be on disk",
            id="a snapshot",
        ),
    ],
)
def test_of_what_may_be_lost_only_what_was_promised_is_missed(
    story: list[Op], complaint: str
) -> None:
    at_12 = State(12, {key: Version(12, "c1/1") for key in "bcd"} | {"a": Version(11, "c0/1")})

    problems = "\n".join(violations(BEFORE, story, at_12, ONLY_THE_DURABLE))

    assert complaint in problems
    assert bool(complaint) == bool(problems)
    assert [op.name for op in lost(story, at_12)] == ["c1/2", "c0/4"]


def test_what_is_lost_is_the_end_and_nothing_else() -> None:
    hole = State(12, {"a": Version(11, "c0/1"), "b": Version(10, "b10"), "c": Version(12, "c1/1")})

    assert "b is Version" in "\n".join(violations(BEFORE, STORY, hole, ONLY_THE_DURABLE))


@pytest.mark.parametrize("seed", range(10))
def test_random_histories_are_accepted(seed: int) -> None:
    ops, after = _random_history(random.Random(seed), unanswered=12)

    assert violations(State(), ops, after) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_changed_entry_in_a_random_history_is_found(seed: int) -> None:
    chance = random.Random(seed)
    ops, after = _random_history(chance, unanswered=0)
    key = chance.choice(sorted(after.entries))
    rev, value = after.entries[key]
    without = {name: entry for name, entry in after.entries.items() if name != key}

    assert violations(State(), ops, after) == []
    assert violations(State(), ops, State(after.rev, without))
    assert violations(State(), ops, State(after.rev, without | {key: Version(rev - 1, value)}))
    assert violations(State(), ops, State(after.rev, without | {key: Version(rev, "other")}))
    assert violations(State(), ops, State(after.rev - 1, after.entries))
    assert violations(State(), ops, State(after.rev + 1, after.entries))


def test_a_history_is_read_from_what_clients_recorded(tmp_path: Path) -> None:
    path = tmp_path / "c0.jsonl"
    path.write_bytes(
        b'{"name": "c0/1", "op": "PUT", "start": 5, "keys": ["a"], "value": "v"}\n'
        b'{"name": "c0/2", "op": "GET", "start": 6, "keys": ["a"], "value": null}\n'
        b'{"name": "c0/1", "end": 7, "reply": {"ok": true, "rev": 1, "durable": true}}\n'
        b'{"name": "c0/2", "end": 8, "re'
    )

    assert load([path]) == [
        op("c0/1", "PUT", "a", "v", (5, 7), rev=1, durable=True),
        op("c0/2", "GET", "a", None, (6, None)),
    ]


def _random_history(chance: random.Random, unanswered: int) -> tuple[list[Op], State]:
    """What clients of a correct store see, one op each at a time; it is killed at the end."""
    clients, length = 5, 200
    entries: dict[str, Version] = {}
    rev = 0
    ops: list[Op] = []
    now = 0
    free_at = [0] * clients
    for number in range(length):
        client = chance.randrange(clients)
        now = max(now + 10, free_at[client])  # When it takes effect.
        start = max(now - chance.randint(0, 30), free_at[client])
        end = now + chance.randint(1, 30)
        free_at[client] = end + 1
        name = f"c{client}/{number}"
        kind = chance.choice(["PUT", "PUT", "MPUT", "MPUT", "DELETE", "MDELETE", "GET"])
        keys = tuple(chance.sample("abcdefgh", 1 if kind in {"PUT", "DELETE", "GET"} else 3))
        reply, value = _execute(kind, name, keys, entries, rev)
        rev = max(rev, reply.get("rev", 0))
        is_answered = number < length - unanswered
        ops.append(
            Op(name, kind, keys, value, start, end, reply)
            if is_answered
            else Op(name, kind, keys, value, start)
        )
    return ops, State(rev, entries)


def _execute(
    kind: str, name: str, keys: tuple[str, ...], entries: dict[str, Version], rev: int
) -> tuple[dict[str, Any], str | None]:
    present = [key for key in keys if key in entries]
    if kind in {"GET", "DELETE"} and not present:
        return {"ok": False, "code": "NOT_FOUND", "applied": False}, None
    if kind == "GET":
        return {"ok": True} | entries[keys[0]]._asdict(), None
    if kind in {"PUT", "MPUT"}:
        entries.update(dict.fromkeys(keys, Version(rev + 1, name)))
        return {"ok": True, "rev": rev + 1, "durable": False}, name
    for key in present:
        del entries[key]
    count = {"deleted": len(present)} if kind == "MDELETE" else {}
    return {"ok": True, "rev": rev + bool(present), "durable": False} | count, None
