"""Is a history of concurrent requests and replies linearizable?

It is if every request can be given an instant between its call and its return, so that a store that
serves one request at a time, at those instants, gives the same replies. A request without a reply
may have taken effect at any time after its call, or up to the end of the server that it was sent to
where that is known, or never.

Strategy: that of Wing and Gong ("Testing and Verifying Concurrent Objects", JPDC 1993) with the
memory of Lowe ("Testing for Linearizability", CCPE 2017). The search puts one request after the
other: any that was called before the first return among those that are left. Where it gets stuck it
goes back; a set of placed requests with the state that they led to is never tried twice. Histories
of different keys are independent, so each is searched alone; a TXN or MGET ties its keys together.
What is understood is GET, PUT, DELETE, INCR, MGET, and TXN whose conditions all stand in `if`.

What makes the search quick is that replies tell revisions: requests are tried in the order of
theirs, and those without a reply last. A write without a reply leaves an unknown revision behind,
which the first reply that tells it fixes. And which of them took effect is forgotten once none of
them can any more: else each would double the number of ways to come to the same state.

Beside the search there is a look at revisions, across all keys: none is given twice, and they grow
from each write to those that are called after its return.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Request = Mapping[str, Any]
Reply = Mapping[str, Any]

NEVER = 2**63
"""When a request returns that gets no reply, and may take effect for ever."""

SEARCH_LIMIT = 2_000_000
"""Steps after which a search is given up: whether the history is linearizable is not known then."""


class UndecidedError(Exception):
    """The search took too long."""


class Operation(NamedTuple):
    """A request and what came of it.

    Args:
        client: who asked.
        called: when it was sent, on a clock that all clients share.
        returned: when the reply was there; where there is none, after when it cannot take effect
            any more.
        request: as it was sent.
        reply: None where nobody knows what came of it.
    """

    client: int
    called: int
    returned: int
    request: Request
    reply: Reply | None

    @property
    def keys(self) -> set[str]:
        """The keys that it is about."""
        request = self.request
        match request["op"]:
            case "TXN":
                return {op["key"] for op in request["ops"]} | {
                    key for key, _ in request.get("if", [])
                }
            case "MGET":
                return set(request["keys"])
            case _:
                return {request["key"]}


class Violation(NamedTuple):
    """Why a history is not linearizable.

    Args:
        reason: in words.
        operations: those that do not fit; where a search failed, all that could not be placed when
            it had come furthest.
        state: of the keys, then.
    """

    reason: str
    operations: list[Operation]
    state: Mapping[str, Any]

    def __str__(self) -> str:
        """For people."""
        lines = [self.reason, f"state: {dict(self.state)}"]
        for operation in self.operations[:20]:
            end = "" if operation.returned == NEVER else operation.returned
            lines.append(
                f"  [{operation.called}..{end}] client {operation.client}: "
                f"{dict(operation.request)} -> {operation.reply and dict(operation.reply)}"
            )
        return "\n".join(lines)


def check(history: Sequence[Operation]) -> Violation | None:
    """What is wrong with a history; None where it is linearizable. Raises UndecidedError."""
    return _check_revisions(history) or next(
        (found for part in partitions(history) if (found := _Search(part).run())), None
    )


def partitions(history: Iterable[Operation]) -> Iterator[list[Operation]]:
    """The history in parts that have no key in common."""
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        while leader.setdefault(key, key) != key:
            leader[key] = key = leader[leader[key]]
        return key

    operations = [operation for operation in history if operation.keys]
    for operation in operations:
        first, *others = operation.keys
        for other in others:
            leader[find(other)] = find(first)
    parts: dict[str, list[Operation]] = {}
    for operation in operations:
        parts.setdefault(find(next(iter(operation.keys))), []).append(operation)
    yield from parts.values()


# --- The model: one entry for each key --------------------------------------------------------


class Unknown(NamedTuple):
    """The revision of a write without a reply: which of them it was."""

    number: int


Entry = tuple[str, "int | Unknown"]
"""A value, in the form of `_comparable`, and the revision that wrote it."""
ABSENT: Entry = ("", 0)
State = dict[str, Entry]


class _DoesNotFitError(Exception):
    """A reply that the store would not have given."""


def _comparable(value: Any) -> str:
    """A value so that different ones differ: in Python, True == 1 == 1.0."""
    return json.dumps(value)


class _Step:
    """One request is done by a store in a certain state.

    Args:
        state: not changed.
        number: of the request.
        written: revisions that writes with a reply have: no other write can have one of them.
    """

    def __init__(self, state: State, number: int, written: set[int]) -> None:
        self.state = dict(state)
        self._before = state
        self._unknown = Unknown(number)
        self._written = written

    def run(self, request: Request, reply: Reply | None) -> State:
        """The state afterwards. Raises _DoesNotFitError."""
        if reply is None:
            self._run_unseen(request)
        elif reply["ok"]:
            self._run_seen(request, reply)
        else:
            self._run_refused(request, reply)
        return self.state

    def _run_seen(self, request: Request, reply: Reply) -> None:
        if request["op"] == "MGET":
            for key, value, rev in zip(
                request["keys"], reply["values"], reply["revs"], strict=True
            ):
                self._expect(key, value, rev)
        elif request["op"] == "TXN":
            for key, rev in request.get("if", []):
                self._expect_revision(key, rev)
            for op, result in zip(request["ops"], reply["results"], strict=True):
                self._run_one(op, result)
        else:
            self._run_one(request, reply)

    def _run_one(self, op: Request, reply: Reply) -> None:
        key = op["key"]
        if op["op"] == "GET":
            self._expect(key, reply["value"], reply["rev"])
            return
        if "if_rev" in op:
            self._expect_revision(key, op["if_rev"])
        self._apply(op, reply["rev"])
        if op["op"] == "INCR" and self.state[key][0] != _comparable(reply["value"]):
            raise _DoesNotFitError

    def _run_unseen(self, request: Request) -> None:
        """It took effect: so its conditions held."""
        for key, rev in request.get("if", []):
            self._expect_revision(key, rev)
        for op in request["ops"] if request["op"] == "TXN" else [request]:
            if "if_rev" in op:
                self._expect_revision(op["key"], op["if_rev"])
            if op["op"] not in {"GET", "MGET"}:
                self._apply(op, self._unknown)

    def _run_refused(self, request: Request, reply: Reply) -> None:
        """It had no effect; the reply tells of what is there, before any op of a TXN."""
        if reply["code"] == "NOT_FOUND":
            self._expect_revision(request["key"], 0)
        elif reply["code"] == "CONFLICT":
            asked = dict(request.get("if", [])).get(reply["key"], request.get("if_rev"))
            if reply["rev"] == asked:
                raise _DoesNotFitError
            self._expect_revision(reply["key"], reply["rev"])
        else:
            raise _DoesNotFitError

    def _apply(self, op: Request, rev: int | Unknown) -> None:
        key = op["key"]
        known = [other for _, other in self._before.values() if isinstance(other, int)]
        if isinstance(rev, int) and rev < max(known, default=0):
            raise _DoesNotFitError  # Revisions grow.
        value, _ = self.state.get(key, ABSENT)
        match op["op"]:
            case "PUT":
                self.state[key] = _comparable(op["value"]), rev
            case "INCR":
                self.state[key] = _comparable(json.loads(value or "0") + op.get("by", 1)), rev
            case "DELETE":
                if key not in self.state:
                    raise _DoesNotFitError
                del self.state[key]

    def _expect(self, key: str, value: Any, rev: int) -> None:
        self._expect_revision(key, rev)
        if rev and self.state[key][0] != _comparable(value):
            raise _DoesNotFitError

    def _expect_revision(self, key: str, rev: int) -> None:
        """That ``key`` has ``rev``; if nobody knows which it has, this is how it becomes known."""
        _, actual = self.state.get(key, ABSENT)
        taken = rev in self._written or any(other == rev for _, other in self.state.values())
        if isinstance(actual, Unknown) and rev and not taken:
            for each, (value, other) in self.state.items():
                if other == actual:
                    self.state[each] = value, rev
        elif actual != rev:
            raise _DoesNotFitError


# --- The search -------------------------------------------------------------------------------


class _Node(NamedTuple):
    """A part of the requests has been placed.

    Args:
        low: every request with a reply, up to this one, is placed.
        placed: those behind it that are, as bits: the lowest is ``low`` itself.
        unseen: those without a reply that are, as bits, or that cannot be any more.
        latest: when the last one of those that are placed was called.
        state: that led to.
        candidates: what may come next and has not been tried.
    """

    low: int
    placed: int
    unseen: int
    latest: int
    state: State
    candidates: Iterator[tuple[bool, int]]


class _Search:
    """For an order of requests about the same keys."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        order = sorted(operations, key=lambda operation: operation.called)
        self._seen = [operation for operation in order if operation.reply is not None]
        self._unseen = [operation for operation in order if operation.reply is None]
        self._called = [operation.called for operation in self._seen]
        self._written = {
            operation.reply["rev"]
            for operation in self._seen
            if operation.reply is not None and _writes(operation)
        }

    def run(self) -> Violation | None:
        """None if there is an order. Raises UndecidedError."""
        known: set[tuple[int, int, int, frozenset[tuple[str, Entry]]]] = set()
        path = [self._node(0, 0, 0, 0, {})]
        furthest, deepest = path[0], -1
        for _ in range(SEARCH_LIMIT):
            node = path[-1]
            if node.low == len(self._seen):
                return None
            if len(path) > deepest:
                furthest, deepest = node, len(path)
            following = self._next(node)
            if following is None:
                path.pop()
                if not path:
                    return self._violation(furthest)
                continue
            mark = (*following[:3], frozenset(following.state.items()))
            if mark not in known:
                known.add(mark)
                path.append(following)
        raise UndecidedError(f"{len(self._seen)} requests: no decision in {SEARCH_LIMIT} steps")

    def _next(self, node: _Node) -> _Node | None:
        """What the next candidate that fits leads to."""
        for seen, number in node.candidates:
            operation = (self._seen if seen else self._unseen)[number]
            step = _Step(node.state, number, self._written)
            try:
                state = step.run(operation.request, operation.reply)
            except _DoesNotFitError:
                continue
            latest = max(node.latest, operation.called)
            if not seen:
                return self._node(node.low, node.placed, node.unseen | 1 << number, latest, state)
            low, placed = node.low, node.placed | 1 << (number - node.low)
            while placed & 1:
                low, placed = low + 1, placed >> 1
            return self._node(low, placed, node.unseen, latest, state)
        return None

    def _node(self, low: int, placed: int, unseen: int, latest: int, state: State) -> _Node:
        for number, operation in enumerate(self._unseen):
            if operation.returned < latest:
                unseen |= 1 << number
        candidates = self._candidates(low, placed, unseen)
        return _Node(low, placed, unseen, latest, state, candidates)

    def _candidates(self, low: int, placed: int, unseen: int) -> Iterator[tuple[bool, int]]:
        """All that were called before the first return of those left; by revision, then unseen."""
        first_return = NEVER
        open_: list[int] = []
        for number in range(low, len(self._seen)):
            operation = self._seen[number]
            if operation.called > first_return:
                break
            if not placed >> (number - low) & 1:
                open_.append(number)
                first_return = min(first_return, operation.returned)
        for number in sorted(open_, key=lambda number: _told_revision(self._seen[number])):
            if self._seen[number].called <= first_return:
                yield True, number
        for number, operation in enumerate(self._unseen):
            if operation.called <= first_return and not unseen >> number & 1:
                yield False, number

    def _violation(self, node: _Node) -> Violation:
        stuck = [
            self._seen[number]
            for seen, number in self._candidates(node.low, node.placed, node.unseen)
            if seen
        ]
        reason = f"no order of {len(self._seen)} requests explains their replies"
        return Violation(reason, stuck, node.state)


def _writes(operation: Operation) -> bool:
    """Whether it has written something, and its reply tells with which revision."""
    request, reply = operation.request, operation.reply
    if reply is None or not reply["ok"] or request["op"] in {"GET", "MGET"}:
        return False
    return request["op"] != "TXN" or any(op["op"] != "GET" for op in request["ops"])


def _told_revision(operation: Operation) -> tuple[int, bool]:
    """The newest revision that its reply tells of: where in the order it may well belong.

    What read a revision comes after what wrote it.
    """
    reply = operation.reply or {}
    revs = [reply.get("rev", 0), *reply.get("revs", [])]
    return max(revs), not _writes(operation)


# --- Revisions --------------------------------------------------------------------------------


def _check_revisions(history: Sequence[Operation]) -> Violation | None:
    """That no revision is given twice, and that they go with the time."""
    writes = [operation for operation in history if _writes(operation)]
    by_rev: dict[int, Operation] = {}
    for write in writes:
        assert write.reply is not None
        other = by_rev.setdefault(write.reply["rev"], write)
        if other is not write:
            return Violation("two writes have the same revision", [other, write], {})
    by_return = sorted(writes, key=lambda operation: operation.returned)
    returns = [operation.returned for operation in by_return]
    newest = list(itertools.accumulate(by_return, _newer))
    for operation in writes:
        before = bisect.bisect_left(returns, operation.called)
        if before and _told_revision(newest[before - 1]) > _told_revision(operation):
            return Violation(
                "a write has a smaller revision than one that had returned before it was called",
                [newest[before - 1], operation],
                {},
            )
    return None


def _newer(one: Operation, other: Operation) -> Operation:
    return max(one, other, key=_told_revision)


# --- Files ------------------------------------------------------------------------------------


def save(history: Iterable[Operation], path: Path) -> None:
    """Write a history as lines of JSON, one for each operation."""
    with open(path, "w", encoding="utf-8") as file:
        for operation in history:
            file.write(json.dumps(operation) + "\n")


def load(path: Path) -> list[Operation]:
    """Read what `save` wrote."""
    with open(path, encoding="utf-8") as file:
        return [Operation(*json.loads(line)) for line in file]
