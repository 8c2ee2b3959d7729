"""Requests for a lane and the commands to agree on: good ones, odd ones, and ones that were spoilt.

Three of four are good: any two stores refuse a mess, and what is to be compared is what they do.
Good ones meet in a few keys and sessions, so that they see each other's effects.
"""

from __future__ import annotations

from typing import Any, Final

from hypothesis import strategies as st
from msgspec import Raw
from msgspec.msgpack import Ext, encode

from zkv.users.rights import User


def ann_with(max_bytes: int) -> User:
    """A user who may write what these requests write, up to a quota."""
    return User("ann", write=[""], max_bytes=max_bytes)


LIMITS: Final[dict[str, Any]] = {
    "max_key_bytes": 12,
    "max_value_bytes": 2_000,
    "max_batch": 6,
    "max_reply_bytes": 3_100,
    "session_window": 3,
    "max_sessions": 2,
    "session_ttl": 1.5,
}
"""Limits that these requests come up to, and pass."""

users = st.sampled_from([None, None, *[ann_with(size) for size in (8, 30, 2_050)]])
"""Whose requests they are."""

Fields = dict[str, Any]
Values = st.SearchStrategy[Any]


def nested(levels: int) -> Raw:
    """Arrays within each other."""
    return Raw(b"\x91" * levels + b"\x01")


def items_twice(*keys: str) -> Raw:
    """Items with such keys, in this order, and 0, 1, 2 ... as their values."""
    packed = b"".join(encode(part) for item in enumerate(keys) for part in reversed(item))
    return Raw(b"\xdf" + len(keys).to_bytes(4) + packed)


# --- What stands in the fields

KEYS = ["a", "b", "ab", "", "\0", "\x01", "k" * 12, "k" * 13, "é", "é" * 6, "\U0010ffff"]
VALUES: list[Any] = [None, True, 0, -1, 2**40, 1.5, "text", b"\xff", [], [1, [2]], {"a": {"b": 1}}]
VALUES += [{1: 2}, "x" * 1_990, "x" * 1_999, "x" * 2_000, [0] * 600, nested(200), nested(3_000)]
VALUES += [nested(500), nested(501), [0] * 700 + [nested(499)], {"a": nested(500)}]
VALUES += [Ext(1, b"12"), Ext(5, b"1" * 300)]
EDGES = [0, 5, 6, 7, 8, 15, 16, 31, 32, 63]
INTS: list[Any] = [number for bits in EDGES for number in (2**bits, 2**bits - 1, -(2**bits))]
INTS += [-(2**bits) - 1 for bits in EDGES if bits < 63]
INTS += [Raw(bytes([0xD0 + power]) + b"\x81" * 2**power) for power in range(4)]
INTS += [Raw(bytes([0xCC + power]) + b"\x01" * 2**power) for power in range(4)]

keys = st.sampled_from(["a", "b", "é", "\U0010ffff"])
odd_keys = keys | st.sampled_from(KEYS)
ints: Values = st.integers(-300, 300)
ends: Values = st.sampled_from([2**63 - 1, -(2**63)])
odd_ints: Values = ints | ends | st.sampled_from(INTS)
odd_values: Values = odd_ints | st.sampled_from(VALUES)
ids = st.sampled_from([None, 0, -1, 2**63, 2**64 - 1, -(2**63), "id", "é", ""])
odd_ids = ids | st.sampled_from([b"id", 1.5, [1], True])
sessions = st.sampled_from(["s", "s", "é" * 32])
odd_sessions = sessions | st.sampled_from(["x" * 65, "", b"s", None])
seqs = st.sampled_from([1, 2, 3, 4, 5, 300])
odd_seqs = seqs | st.sampled_from([2**62, 2**63, 0, -1, None])
told: Values = st.sampled_from([
    {}, {}, {}, {"timing": True}, {"timing": False}, {"trace": "t"},
    {"timing": True, "trace": "é" * 32},
])  # fmt: skip
odd_told: Values = told | st.sampled_from([
    {"timing": 1}, {"timing": None}, {"trace": None}, {"trace": ""}, {"trace": "x" * 65},
    {"trace": b"t"}, {"trace": "é" * 33}, {"trace": 1},
])  # fmt: skip
names = st.sampled_from(
    ["op", "key", "keys", "value", "by", "items", "ops", "if", "id", "ttl", "prev", "session"]
)
conditions = st.tuples(keys, st.sampled_from([0, 0, 0, 1, 2]))
odd_conditions = conditions | st.sampled_from(
    [(), ("a",), ("a", 0, 0), ("b", -1), ("b", 2**63), (b"a", 0), ("", 0), "a", None]
)


# --- Requests, as maps


def maps(keys: Values, values: Values, least: int, most: int) -> Values:
    """Maps in which a key may stand many times."""
    return st.lists(st.tuples(keys, values), min_size=least, max_size=most).map(_packed_map)


def _packed_map(pairs: list[tuple[Any, Any]]) -> Raw:
    return Raw(
        bytes([0x80 + len(pairs)]) + b"".join(encode(part) for pair in pairs for part in pair)
    )


def fields(op: str, optional: dict[str, Values] | None = None, **needed: Values) -> Values:
    """Requests of one op."""
    all_needed: dict[str, Values] = {"op": st.just(op)} | needed
    return st.fixed_dictionaries(all_needed, optional=optional or {})


def one_of_ops(keys: Values, values: Values, by: Values) -> Values:
    """GET, PUT and INCR: alone, or in a TXN."""
    return st.one_of(
        fields("GET", key=keys),
        fields("PUT", key=keys, value=values),
        fields("INCR", {"by": by}, key=keys),
    )


ops = one_of_ops(keys, ints | ends, ints | odd_ints)
any_ops = one_of_ops(odd_keys, odd_values, odd_values)
odd_ops = st.one_of(
    any_ops,
    fields("DELETE", key=keys),
    fields("TOUCH", key=keys, ttl=st.just(1)),
    fields(
        "PUT", {name: st.just(1) for name in ("ttl", "if_rev", "prev", "id")}, key=keys, value=ints
    ),
    fields("MGET", keys=st.lists(keys)),
    st.dictionaries(names, odd_keys | odd_values, max_size=3),
)


def txns(ops: Values, conditions: Values, most: int = 6) -> Values:
    """TXNs of such ops, half of them with conditions."""
    listed = st.lists(ops, min_size=1, max_size=most)
    return fields("TXN", {"if": st.lists(conditions, max_size=most // 3)}, ops=listed)


good: list[Values] = [
    *[any_ops, ops, ops, txns(ops, conditions), txns(ops, conditions)],
    fields("MGET", keys=st.lists(keys, min_size=1, max_size=6)),
    fields("MPUT", items=maps(keys, odd_ints, 1, 6)),
    fields("DELETE", key=keys),
    fields("PUT", key=keys, value=odd_ints, ttl=st.just(2)),
]
odd: list[Values] = [
    odd_ops,
    txns(odd_ops, odd_conditions, 7),
    fields("TXN", ops=st.just([])) | fields("TXN", ops=odd_values),
    fields("MGET", keys=st.lists(odd_keys, max_size=7)),
    fields("MPUT", items=maps(odd_keys, odd_values, 0, 7)),
]


# --- Requests, as bodies


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """The body of a request with its fields in any order."""
    if draw(st.sampled_from([True, True, True, False])):
        request = draw(draw(st.sampled_from(good)))
        request = {**_complete(draw, request, ids, sessions, seqs), **draw(told)}
        return encode(_in_any_order(draw, request))
    request = draw(draw(st.sampled_from(odd + good)))
    request = {**_complete(draw, request, odd_ids, odd_sessions, odd_seqs), **draw(odd_told)}
    return _spoilt(draw, encode(_in_any_order(draw, request)))


def _complete(draw: st.DrawFn, request: Fields, ids: Values, names: Values, seqs: Values) -> Fields:
    """With what any request may have."""
    number = draw(ids)
    request = dict(request) if number is None else request | {"id": number}
    reads = request.get("op") in ("GET", "MGET")  # An odd one has no hash.
    if draw(st.integers(0, 9)) < (1 if reads else 5):
        request |= {"session": draw(names), "seq": draw(seqs)}
    return request


def _in_any_order(draw: st.DrawFn, request: Fields) -> Fields:
    return dict(draw(st.permutations(list(request.items()))))


def _spoilt(draw: st.DrawFn, body: bytes) -> bytes:
    how = draw(st.sampled_from(["no", "cut", "flip", "flip", "more", "twice"]))
    place = draw(st.integers(0, len(body) - 1))
    if how == "cut":
        return body[:place]
    if how == "flip":
        return body[:place] + bytes([draw(st.integers(0, 255))]) + body[place + 1 :]
    if how == "more":
        return body + b"\xc0"
    if how == "twice" and body[0] in range(0x81, 0x8F):  # One more field, maybe once more.
        return bytes([body[0] + 1]) + body[1:] + encode(draw(names)) + encode("a")
    return body
