"""The protocol as data: sequences of requests, and the replies that they get.

``cases/*.toml`` are written by hand, in the notation of `notation`; ``vectors.json`` is made of
them, for those who test a server or a client with other means. `README.md` tells its format.
"""

from __future__ import annotations

import functools
import json
import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.conformance.notation import Node, depth, encode, mapping, parse, render, squeeze

HERE: Final = Path(__file__).resolve().parent
GENERATED: Final = HERE / "vectors.json"

LARGE: Final = 200_000
HUGE: Final = 4_000_000
"""Bytes: more than a slow client is given, and more than any."""
MOST_NS: Final = 999_999_999
LAST: Final = "end"
"""The sequence that ends the server."""


class Case(NamedTuple):
    """A request and its reply.

    Attributes:
        name: what it shows.
        request, reply: what is sent, and what the reply is compared with.
        direct: whether only raw bytes can say it: a client would not send it as it stands.
        until: whether to ask again until the reply is this one, because time has to pass.
        needs: what a language's library has to be capable of to carry it: see `needs_of`.
    """

    name: str
    request: Node
    reply: Node
    direct: bool = False
    until: bool = False
    needs: frozenset[str] = frozenset()


class Sequence(NamedTuple):
    """Cases that lean on each other. Its keys are its own: they begin with its name."""

    name: str
    about: str
    cases: list[Case]


@functools.cache  # Three modules of tests want them, and it takes a second.
def load() -> list[Sequence]:
    """All sequences, in the order in which they are to run. Not to be changed."""
    sequences = [_sequence(path) for path in sorted((HERE / "cases").glob("*.toml"))]
    return sorted(sequences, key=lambda sequence: sequence.name == LAST)


def _sequence(path: Path) -> Sequence:
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    values = [
        case
        for number, value in enumerate(document.get("value", ()), 1)
        for case in _value_cases(f"{path.stem}/{number}", number, **value)
    ]
    return Sequence(path.stem, document["about"], values + _cases(document.get("case", [])))


def _cases(tables: list[dict[str, Any]]) -> list[Case]:
    return [_case(**table) for table in tables]


def _value_cases(key: str, number: int, name: str, value: str) -> list[Case]:
    """A value is stored and read back: it must be the same."""
    put = f'{{"op": "PUT", "key": "{key}", "value": {value}}}'
    get = f'{{"op": "GET", "key": "{key}"}}'
    found = f'success({{"value": {value}, "rev": rev({number})}})'
    return [_case(f"store {name}", put, f"written({number})"), _case(f"read {name}", get, found)]


def _case(name: str, request: str, reply: str, direct: bool = False, until: bool = False) -> Case:
    try:
        sent, expected = parse(request), parse(reply)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    direct = direct or _only_direct(sent)
    return Case(name, sent, expected, direct, until, needs_of(sent, expected))


# --- What a client can say -------------------------------------------------------------------


def _only_direct(request: Node) -> bool:
    """Whether ``call(op, fields)`` of a client cannot mean this request."""
    if request.kind != "map" or any(key.kind != "str" for key, _ in request.value):
        return True
    names = [key.value for key, _ in request.value]
    if len(set(names)) < len(names) or "raw" in _kinds(request):
        return True
    fields = {name: value for (_, value), name in zip(request.value, names, strict=True)}
    op, own_id = fields.get(b"op"), fields.get(b"id")
    return (
        op is None
        or op.kind != "str"
        or (own_id is not None and own_id.kind not in ("int", "str"))
        or (b"session" in fields) != (b"seq" in fields)
        or any(fields.get(name, op).kind == "nil" for name in (b"session", b"seq"))
        or len(encode(request)) > HUGE
    )


def _kinds(node: Node) -> set[str]:
    return {part.kind for part in walk(node)}


def walk(node: Node) -> Iterator[Node]:
    """A node and all that stand in it."""
    waiting = [node]
    while waiting:
        part = waiting.pop()
        yield part
        if part.kind == "array":
            waiting += part.value
        elif part.kind == "map":
            waiting += [item for pair in part.value for item in pair]


def needs_of(*nodes: Node) -> frozenset[str]:
    """What a language's library has to be capable of: words of ``lacks`` in a client.toml."""
    found = set()
    for node in nodes:
        found |= {word for part in walk(node) for word in _needed_for(part)}
        if depth(node) > 100:
            found.add("deep")
        if len(encode(node)) > LARGE:
            found.add("large")
    return frozenset(found)


def _needed_for(part: Node) -> Iterator[str]:  # noqa: PLR0912  one branch for each kind
    match part.kind, part.value:
        case "bin", _:
            yield "bin"
        case "str", value:
            try:
                value.decode()
            except UnicodeDecodeError:
                yield "utf8"
        case "int", value:
            if abs(value) > 2**53:
                yield "int64"
            if value >= 2**63:
                yield "uint64"
        case "float", value:
            if part.width:
                yield "float32"
            if not math.isfinite(value):
                yield "nan"
            elif value == int(value):
                yield "whole_float"
        case "array", value:
            if any(item.kind == "nil" for item in value):
                yield "nil"
            if not value:
                yield "empty_map"
        case "map", value:
            if any(item.kind == "nil" for _, item in value):
                yield "nil"
            keys = [key for key, _ in value]
            if any(key.kind != "str" for key in keys):
                yield "map_keys"
            if any(key.kind == "array" for key in keys):
                yield "array_keys"
            if any(inner.kind == "map" for key in keys for inner in walk(key)):
                yield "map_in_key"
            if len({_as_python_compares(key) for key in keys}) < len(keys):
                yield "duplicate_keys"
            if not value:
                yield "empty_map"
        case "ext", (-1, data):
            yield "timestamp" if _is_timestamp(data) else "bad_timestamp"
        case "ext", (kind, _):
            yield "ext" if kind >= 0 else "reserved_ext"


def _as_python_compares(key: Node) -> object:
    """Something that is equal for two keys that are equal in Python, as 1, 1.0 and true are."""
    return key.value if key.kind in ("bool", "int", "float") else encode(key)


def _is_timestamp(data: bytes) -> bool:
    """Whether the data of an ext of type -1 has one of the three forms, and a second's ns."""
    if len(data) == 8:
        return int.from_bytes(data) >> 34 <= MOST_NS
    return len(data) == 4 or (len(data) == 12 and int.from_bytes(data[:4]) <= MOST_NS)


# --- What is generated -----------------------------------------------------------------------


def generated() -> str:
    """The text of ``vectors.json``."""
    document = {
        "about": "Made from cases/*.toml by `python -m tests.conformance --update`. See README.md.",
        "protocol": 1,
        "sequences": [
            {
                "name": sequence.name,
                "about": sequence.about,
                "cases": [_exported(case) for case in sequence.cases],
            }
            for sequence in load()
        ],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _exported(case: Case) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": case.name}
    for flag in ("direct", "until"):
        if getattr(case, flag):
            fields[flag] = True
    for side in ("request", "reply"):
        node = getattr(case, side)
        fields[side] = render(node)
        fields[f"{side}_hex"] = squeeze(encode(node))
    return fields


def without_id(reply: Node) -> Node:
    """A reply without the id that a client has added to the request."""
    return Node("map", tuple(pair for pair in reply.value if pair[0].value != b"id"))


INFO: Final = encode(mapping({"op": Node("str", b"INFO")}))
