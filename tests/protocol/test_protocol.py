"""The codec without any socket: bytes in, typed requests out; replies in, bytes out."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw

from tests.support import pack, unpack
from zkv import compiled, nesting
from zkv.errors import (
    BadRequest,
    Full,
    Internal,
    NotFound,
    ReadOnly,
    RequestError,
    ShuttingDown,
    TooLarge,
    UnknownOp,
)
from zkv.protocol import replies, requests
from zkv.protocol.codec import KeyLimits, decode, encode_reply, pack_array

NOT_UTF8 = b"\xa3a\xffb"
"""A packed str that is no UTF-8."""
DEEP = b"\x91" * 100_000 + b"\xc0"
"""100,000 arrays in each other."""


def packed_map(fields: dict[str, bytes]) -> bytes:
    """A map of packed values."""
    return packed_pairs((pack(name), value) for name, value in fields.items())


def packed_pairs(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A map of packed names and values, in the widest form of its header."""
    pairs = list(pairs)
    return b"\xdf" + struct.pack(">I", len(pairs)) + b"".join(a + b for a, b in pairs)


# --- What each op takes ----------------------------------------------------------------------

VALUE = b"\xca\x3f\x80\x00\x00"  # A float32: it survives only where nobody unpacks it.

Fields = dict[str, bytes]

WHOLE: list[tuple[str, Fields, requests.Request]] = [
    ("PING", {}, requests.Ping()),
    ("GET", {"key": pack("k")}, requests.Get(key="k")),
    ("PUT", {"key": pack("k"), "value": VALUE}, requests.Put(key="k", value=Raw(VALUE))),
    ("DELETE", {"key": pack("k")}, requests.Delete(key="k")),
    ("MGET", {"keys": pack(["b", "a", "b"])}, requests.MGet(keys=["b", "a", "b"])),
    ("MGET", {"keys": pack([])}, requests.MGet(keys=[])),
    (
        "MPUT",
        {"items": packed_map({"b": VALUE, "a": b"\xc0"})},
        requests.MPut(items={"b": Raw(VALUE), "a": Raw(b"\xc0")}),
    ),
    ("MPUT", {"items": pack({})}, requests.MPut(items={})),
    ("MDELETE", {"keys": pack(["a"])}, requests.MDelete(keys=["a"])),
    ("INFO", {}, requests.Info()),
    ("SLOW", {}, requests.Slow()),
    ("REPLICATE", {"member": pack("m")}, requests.Replicate(member="m")),
    ("SNAPSHOT", {}, requests.Snapshot()),
    ("PROMOTE", {}, requests.Promote()),
    ("END", {}, requests.End()),
]
"""Each op with all that it requires, packed, and the request that it is."""

OPTIONAL = [
    ("PUT", "prev", True),
    ("PUT", "prev", False),
    ("DELETE", "prev", True),
    ("DELETE", "prev", False),
]

WRONG: dict[str, list[Any]] = {
    "key": [None, True, 7, 1.5, [], ["k"], {}, {"k": 1}, msgpack.ExtType(5, b"k")],
    "keys": [None, True, 7, "k", b"k", {"k": 1}, [7], ["k", None], [["k"]], [{}]],
    "items": [None, True, 7, "k", b"k", ["k"], {7: 1}, {None: 1}, {1.5: 1}],
    "prev": [None, 0, 1, "true", b"true", [], {}],
}
WRONG_PACKED: dict[str, list[bytes]] = {
    "key": [NOT_UTF8, b"\xc4\x03a\xffb", DEEP],
    "keys": [b"\x91" + NOT_UTF8, b"\x91\xc4\x03a\xffb", DEEP],
    "items": [b"\x81" + NOT_UTF8 + b"\x01", b"\x81\xc4\x03a\xffb\x01", b"\x81\x91\x01\x01", DEEP],
    "prev": [NOT_UTF8, DEEP],
}


def request(op: str, fields: Fields, **more: bytes) -> bytes:
    """A request body of packed fields."""
    return packed_map({"op": pack(op)} | fields | more)


def refusal(body: bytes) -> RequestError:
    """What ``body`` is refused with."""
    with pytest.raises(RequestError) as caught:
        decode(body)
    error = caught.value
    assert error.applied is False
    assert error.message
    assert "\n" not in error.message
    assert len(error.message) < 300
    return error


def test_the_table_has_every_op() -> None:
    assert {op for op, _, _ in WHOLE} >= {
        "PING", "GET", "PUT", "DELETE", "MGET", "MPUT", "MDELETE", "INFO", "SNAPSHOT", "END",
    }  # fmt: skip


@pytest.mark.parametrize(("op", "fields", "expected"), WHOLE)
def test_whole(op: str, fields: Fields, expected: requests.Request) -> None:
    decoded = decode(request(op, fields))
    assert type(decoded) is type(expected)
    assert decoded == expected


@pytest.mark.parametrize(("op", "fields", "expected"), WHOLE)
def test_fields_in_any_order(op: str, fields: Fields, expected: requests.Request) -> None:
    body = packed_map(dict(reversed(({"op": pack(op)} | fields).items())))
    assert decode(body) == expected


@pytest.mark.parametrize(("op", "name", "value"), OPTIONAL)
def test_optional_fields(op: str, name: str, value: Any) -> None:
    fields = next(fields for each, fields, _ in WHOLE if each == op)
    assert getattr(decode(request(op, fields, **{name: pack(value)})), name) is value
    assert getattr(decode(request(op, fields)), name) is False


@pytest.mark.parametrize(
    ("op", "fields", "missing"),
    [(op, fields, name) for op, fields, _ in WHOLE for name in fields],
)
def test_missing_field(op: str, fields: Fields, missing: str) -> None:
    rest = {name: value for name, value in fields.items() if name != missing}
    error = refusal(request(op, rest, id=pack(8)))
    assert isinstance(error, BadRequest)
    assert f"`{missing}`" in error.message
    assert "missing" in error.message
    assert error.request_id == 8


@pytest.mark.parametrize(("op", "fields", "_request"), WHOLE)
@pytest.mark.parametrize("name", ["colour", "Key", "", "keys ", "ID"])
def test_unknown_field(op: str, fields: Fields, _request: object, name: str) -> None:
    error = refusal(request(op, fields | {name: pack(1)}, id=pack("x")))
    assert isinstance(error, BadRequest)
    assert f"`{name}`" in error.message
    assert error.request_id == "x"


@pytest.mark.parametrize(
    ("op", "field"),
    [("PING", "key"), ("GET", "value"), ("GET", "keys"), ("MGET", "key"), ("END", "value")],
)
def test_field_of_another_op(op: str, field: str) -> None:
    fields = next(fields for each, fields, _ in WHOLE if each == op)
    good = {"key": pack("k"), "value": pack(1), "keys": pack(["k"])}[field]
    error = refusal(request(op, fields | {field: good}))
    assert isinstance(error, BadRequest)
    assert f"`{field}`" in error.message


def wrong_fields() -> Iterable[tuple[str, Fields, str, bytes]]:
    takes = {op: fields for op, fields, _ in WHOLE}
    with_prev = {op: fields | {"prev": pack(True)} for op, fields in takes.items()}
    for op, fields in takes.items():
        known = with_prev[op] if op in {"PUT", "DELETE"} else fields
        for name in known:
            for value in WRONG.get(name, []):
                yield op, known, name, pack(value)
            for packed in WRONG_PACKED.get(name, []):
                yield op, known, name, packed


@pytest.mark.parametrize(
    ("op", "fields", "name", "wrong"),
    [
        pytest.param(op, fields, name, wrong, id=f"{op}-{name}-{wrong[:12].hex()}")
        for op, fields, name, wrong in wrong_fields()
    ],
)
def test_wrong_type(op: str, fields: Fields, name: str, wrong: bytes) -> None:
    error = refusal(packed_map({"op": pack(op), "id": pack(3)} | fields | {name: wrong}))
    assert isinstance(error, BadRequest)
    assert f"`{name}" in error.message
    assert error.request_id == 3


@pytest.mark.parametrize(
    "op",
    ["get", "Get", "PINGX", "PIN", "", " PING", "PING ", "DROP", "__class__", "__init__", "decode",
     "Ping", "PUT\0", "\N{SNOWMAN}", "A" * 5_000],
)  # fmt: skip
def test_unknown_op(op: str) -> None:
    error = refusal(request(op, {"key": pack("k")}, id=pack(5)))
    assert isinstance(error, UnknownOp)
    assert error.request_id == 5


def test_unknown_op_in_another_case_is_told_the_right_one() -> None:
    assert "GET" in refusal(request("get", {"key": pack("k")})).message


@pytest.mark.parametrize("op", [None, True, 1, 1.0, [], ["GET"], {}, msgpack.ExtType(1, b"GET")])
def test_op_of_wrong_type(op: Any) -> None:
    error = refusal(packed_map({"op": pack(op), "key": pack("k"), "id": pack(5)}))
    assert isinstance(error, BadRequest)
    assert "`op`" in error.message
    assert error.request_id == 5


def test_missing_op() -> None:
    error = refusal(packed_map({"key": pack("k"), "id": pack(5)}))
    assert isinstance(error, BadRequest)
    assert "`op`" in error.message
    assert error.request_id == 5


# --- Bodies that are no whole map ------------------------------------------------------------

GET = request("GET", {"key": pack("k")})

NO_MAP = {
    "nothing": b"",
    "nil": b"\xc0",
    "int": b"\x01",
    "str": pack("GET"),
    "array": pack(["op", "GET", "key", "k"]),
    "array of pairs": pack([["op", "GET"]]),
    "ext": pack(msgpack.ExtType(5, GET)),
    "never used": b"\xc1",
    "not msgpack": b"GET k\r\n",
    "JSON": b'{"op": "GET", "key": "k"}',
    "two maps": GET + GET,
    "a byte too much": GET + b"\0",
    "deep": DEEP,
    "deep maps": b"\x81\xa1a" * 50_000 + b"\xc0",
    "4 billion array": b"\xdd\xff\xff\xff\xff",
    "4 billion map": b"\xdf\xff\xff\xff\xff",
    "4 billion str": b"\xdb\xff\xff\xff\xff",
    "4 billion bin": b"\xc6\xff\xff\xff\xff",
    "4 billion ext": b"\xc9\xff\xff\xff\xff\x01",
    "4 billion fields": b"\xdf\xff\xff\xff\xff" + pack("op") + pack("PING"),
    "int as field name": b"\x82" + pack("op") + pack("PING") + b"\x01\x01",
    "nil as field name": b"\x82" + pack("op") + pack("PING") + b"\xc0\x01",
    "array as field name": b"\x82" + pack("op") + pack("PING") + b"\x91\x01\x01",
    "map as field name": b"\x82" + pack("op") + pack("PING") + b"\x81\x91\x01\x01\x01",
    "field name not UTF-8": b"\x82" + pack("op") + pack("PING") + NOT_UTF8 + b"\x01",
    "bin field name not UTF-8": b"\x82" + pack("op") + pack("PING") + b"\xc4\x01\xff\x01",
}


@pytest.mark.parametrize("body", NO_MAP.values(), ids=NO_MAP)
def test_body_that_is_no_map_of_fields(body: bytes) -> None:
    error = refusal(body)
    assert isinstance(error, BadRequest)
    assert error.request_id is None


@pytest.mark.parametrize("length", range(len(GET)))
def test_body_that_ends_too_early(length: int) -> None:
    assert isinstance(refusal(GET[:length]), BadRequest)


@pytest.mark.parametrize("kind", [b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"])
@pytest.mark.parametrize(
    ("op", "name"), [("PUT", "value"), ("GET", "key"), ("MGET", "keys"), ("MPUT", "items")]
)
def test_field_that_claims_4_billion_items(kind: bytes, op: str, name: str) -> None:
    claim = kind + b"\xff\xff\xff\xff"
    others = {"key": pack("k")} if op == "PUT" else {}
    error = refusal(packed_map({"op": pack(op), "id": pack(1)} | others | {name: claim}))
    assert isinstance(error, BadRequest)
    assert error.request_id == 1


def test_body_over_100_megabytes() -> None:
    """Not msgpack's own limit counts, but the one that is set for messages."""
    body = b"\x82" + pack("id") + pack(1) + pack("x") + b"\xc6" + struct.pack(">I", 101 << 20)
    assert isinstance(refusal(body + bytes(100 << 20)), BadRequest)


# --- The id ----------------------------------------------------------------------------------

IDS: list[tuple[bytes, int | str]] = [
    (b"\x07", 7),
    (b"\xcc\x07", 7),
    (b"\xcd\x00\x07", 7),
    (b"\xce\x00\x00\x00\x07", 7),
    (b"\xcf\x00\x00\x00\x00\x00\x00\x00\x07", 7),
    (b"\xd0\x07", 7),
    (b"\xd1\x00\x07", 7),
    (b"\xd2\x00\x00\x00\x07", 7),
    (b"\xd3\x00\x00\x00\x00\x00\x00\x00\x07", 7),
    (b"\xe0", -32),
    (b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00", -(2**63)),
    (b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", 2**64 - 1),
    (b"\x00", 0),
    (pack(""), ""),
    (pack("req-1"), "req-1"),
    (b"\xd9\x01x", "x"),
    (b"\xdb\x00\x00\x00\x01x", "x"),
    (pack("é\0\n"), "é\0\n"),
    (pack(b"bin"), "bin"),
    (pack("é".encode()), "é"),
]


@pytest.mark.parametrize(("packed", "expected"), IDS)
def test_id_is_taken_and_echoed(packed: bytes, expected: int | str) -> None:
    good = decode(request("GET", {"key": pack("k")}, id=packed))
    assert good.id == expected
    assert type(good.id) is type(expected)
    after_the_fault = refusal(request("NOPE", {}, id=packed))
    assert after_the_fault.request_id == expected
    for broken in (b"\xff\xc1", b"\x01\x01", DEEP, b"", NOT_UTF8 + b"\x01", b"\x81\x91\x01\x01"):
        before_the_fault = refusal(b"\x82" + pack("id") + packed + broken)
        assert before_the_fault.request_id == expected
    assert refusal(request("PING", {}, id=packed) + b"trailing").request_id == expected


@pytest.mark.parametrize(
    "packed",
    [b"\xc0", b"\xc2", b"\xc3", pack(1.0), pack([]), pack({}), pack([1]), NOT_UTF8,
     b"\xc4\x01\xff", pack(msgpack.ExtType(1, b"x")), b"\xd6\xff\x00\x00\x00\x00", DEEP,
     b"\x81\x91\x01\x01", b"\x81\x91\x01", b"\x91\x81\x90\x01"],
    ids=lambda packed: packed[:12].hex(),
)  # fmt: skip
def test_id_that_is_no_int_or_text_is_not_echoed(packed: bytes) -> None:
    for body in (
        packed_map({"op": pack("NOPE"), "id": packed}),
        packed_map({"id": packed, "op": pack("GET")}),
        b"\x83" + pack("id") + packed,
        b"\x83" + pack("id") + packed + pack("op") + b"\xc1",
    ):
        assert refusal(body).request_id is None


@pytest.mark.parametrize("packed", [b"\xc3", pack(1.0), pack([1]), pack({}), NOT_UTF8])
def test_id_of_wrong_type_is_refused(packed: bytes) -> None:
    error = refusal(request("PING", {}, id=packed))
    assert isinstance(error, BadRequest)
    assert "`id`" in error.message


@pytest.mark.parametrize("name", [b"\x81\x91\x01\x01", b"\x91\x81\x90\x01", b"\x81\xc0\xc0"])
def test_strange_field_name_before_the_id(name: bytes) -> None:
    error = refusal(packed_pairs([(name, b"\x01"), (pack("id"), b"\x07")]))
    assert isinstance(error, BadRequest)
    assert error.request_id in {None, 7}


def test_field_twice_is_one_of_the_two() -> None:
    body = packed_pairs(
        [(pack("op"), pack("GET")), (pack("key"), pack("a")), (pack("key"), pack("b"))]
    )
    assert decode(body) in (requests.Get(key="a"), requests.Get(key="b"))


@pytest.mark.parametrize("first", ["GET", "PING"])
def test_op_twice_never_escapes_the_schema(first: str) -> None:
    second = "PING" if first == "GET" else "GET"
    body = packed_pairs([(pack("op"), pack(first)), (pack("op"), pack(second))])
    try:
        assert decode(body) == requests.Ping()
    except BadRequest:
        pass  # A GET without a key.


# --- What other languages pack otherwise: the second look ------------------------------------

keys = st.text(st.characters(codec="utf-8"), max_size=8)
ids = st.one_of(st.none(), st.integers(-(2**63), 2**64 - 1), keys)


def as_bin(text: bytes) -> bytes:
    """A packed str as a packed bin, of any width that its length allows."""
    return pack(str(unpack(text)).encode())


CONSTANTS = [b"\xc0", b"\xc2", b"\xc3", b"\x00", b"\x7f", b"\xe0", b"\xff"]
NUMBERS = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8, 0xCA: 4, 0xCB: 8}
TEXTS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I", 0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
EXTS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}
FIXED_EXTS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}

blobs = st.binary(max_size=20)  # Often no UTF-8, also where it stands for a str.
ext_types = st.integers(-128, 127).map(lambda number: struct.pack("b", number))


@st.composite
def packed_scalars(draw: st.DrawFn) -> bytes:
    """Any msgpack value that holds no other, in any of its packed forms."""
    match draw(st.sampled_from(["constant", "number", "short text", "text", "ext", "fixed ext"])):
        case "constant":
            return draw(st.sampled_from(CONSTANTS))
        case "number":
            mark, size = draw(st.sampled_from(sorted(NUMBERS.items())))
            return bytes([mark]) + draw(st.binary(min_size=size, max_size=size))
        case "short text":
            blob = draw(blobs)
            return bytes([0xA0 + len(blob)]) + blob
        case "text":
            (mark, width), blob = draw(st.sampled_from(sorted(TEXTS.items()))), draw(blobs)
            return bytes([mark]) + struct.pack(width, len(blob)) + blob
        case "ext":
            (mark, width), blob = draw(st.sampled_from(sorted(EXTS.items()))), draw(blobs)
            return bytes([mark]) + struct.pack(width, len(blob)) + draw(ext_types) + blob
        case _:
            mark, size = draw(st.sampled_from(sorted(FIXED_EXTS.items())))
            blob = draw(st.binary(min_size=size, max_size=size))
            return bytes([mark]) + draw(ext_types) + blob


@st.composite
def packed_containers(draw: st.DrawFn, inner: st.SearchStrategy[bytes]) -> bytes:
    """Any array or map, in any of its packed forms; a map's keys may be anything, and double."""
    is_map = draw(st.booleans())
    length = draw(st.integers(0, 4))
    parts = [draw(inner) for _ in range(2 * length if is_map else length)]
    heads = [
        bytes([(0x80 if is_map else 0x90) + length]),
        bytes([0xDE if is_map else 0xDC]) + struct.pack(">H", length),
        bytes([0xDF if is_map else 0xDD]) + struct.pack(">I", length),
    ]
    return draw(st.sampled_from(heads)) + b"".join(parts)


packed_values = st.recursive(packed_scalars(), packed_containers, max_leaves=12)
"""Any msgpack value, also in forms that no packer would choose."""


@given(value=packed_values)
def test_any_value_stays_byte_for_byte(value: bytes) -> None:
    put = decode(request("PUT", {"key": pack("k"), "value": value}))
    assert isinstance(put, requests.Put)
    assert bytes(put.value) == value
    mput = decode(request("MPUT", {"items": packed_map({"a": value, "b": value})}))
    assert isinstance(mput, requests.MPut)
    assert {key: bytes(raw) for key, raw in mput.items.items()} == {"a": value, "b": value}
    reply = encode_reply(replies.GetReply(value=Raw(value), rev=1))
    assert reply.count(value) >= 1
    assert value in encode_reply(replies.MGetReply(values=pack_array([value]), revs=[1]))


@pytest.mark.parametrize("size", [0, 1, 15, 16, 65_535, 65_536])
def test_array_of_packed_values(size: int) -> None:
    assert unpack(bytes(pack_array([b"\x07"] * size))) == [7] * size


@given(value=packed_values)
def test_any_value_stays_byte_for_byte_through_the_second_look(value: bytes) -> None:
    fields = [(b"\xc4\x02op", b"\xc4\x03PUT"), (pack(b"key"), pack(b"k")), (pack(b"value"), value)]
    put = decode(packed_pairs(fields))
    assert isinstance(put, requests.Put)
    assert bytes(put.value) == value
    items = packed_pairs([(pack(b"a"), value), (pack("b"), value)])
    mput = decode(request("MPUT", {"items": items}))
    assert isinstance(mput, requests.MPut)
    assert {key: bytes(raw) for key, raw in mput.items.items()} == {"a": value, "b": value}


@st.composite
def good_requests(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """The fields of a request that is in order; values are `Raw`."""
    value = packed_values.map(Raw)
    op = draw(st.sampled_from(sorted({op for op, _, _ in WHOLE})))
    fields: dict[str, Any] = {"op": op}
    if (request_id := draw(ids)) is not None:
        fields["id"] = request_id
    if op in {"GET", "PUT", "DELETE"}:
        fields["key"] = draw(keys)
    if op == "PUT":
        fields["value"] = draw(value)
    if op in {"PUT", "DELETE"} and draw(st.booleans()):
        fields["prev"] = draw(st.booleans())
    if op == "REPLICATE":
        fields["member"] = draw(st.text(min_size=1, max_size=64))
    if op in {"MGET", "MDELETE"}:
        fields["keys"] = draw(st.lists(keys, max_size=4))
    if op == "MPUT":
        fields["items"] = draw(st.dictionaries(keys, value, max_size=4))
    return draw(st.permutations(list(fields.items())))


def packed(thing: Any, text: type) -> bytes:
    """``thing`` packed, each text in it as ``text``: str or bytes."""
    match thing:
        case Raw():
            return bytes(thing)
        case str():
            return pack(thing if text is str else thing.encode())
        case list():
            return (
                b"\xdd"
                + struct.pack(">I", len(thing))
                + b"".join(packed(item, text) for item in thing)
            )
        case dict():
            return packed_pairs((packed(k, text), packed(v, text)) for k, v in thing.items())
        case _:
            return pack(thing)


def packed_request(fields: list[tuple[str, Any]], text: type) -> bytes:
    return packed_pairs((packed(name, text), packed(value, text)) for name, value in fields)


@given(fields=good_requests())
@example(fields=[("op", "MGET"), ("keys", ["", "é", "\0"]), ("id", "")])
@example(fields=[("op", "PING"), ("id", 2**64 - 1)])
def test_both_looks_see_the_same_request(fields: list[tuple[str, Any]]) -> None:
    first = decode(packed_request(fields, str))
    second = decode(packed_request(fields, bytes))
    assert type(first) is type(second)
    assert first == second
    given_id = dict(fields).get("id")
    assert first.id == second.id == given_id
    mixed = packed_pairs((packed(name, str), packed(value, bytes)) for name, value in fields)
    assert decode(mixed) == first


@pytest.mark.parametrize(("op", "fields", "expected"), WHOLE)
def test_bin_for_one_text_at_a_time(op: str, fields: Fields, expected: requests.Request) -> None:
    pairs = [(pack(name), value) for name, value in ({"op": pack(op)} | fields).items()]
    for place, (name, value) in enumerate(pairs):
        changed = list(pairs)
        changed[place] = (as_bin(name), value)
        assert decode(packed_pairs(changed)) == expected
        if unpack(name) in {"op", "key"}:
            changed[place] = (name, as_bin(value))
            assert decode(packed_pairs(changed)) == expected


def test_bin_in_the_middle_of_keys() -> None:
    assert decode(request("MGET", {"keys": pack(["a", b"b", "c"])})) == requests.MGet(
        keys=["a", "b", "c"]
    )


# --- Nothing but RequestError, whatever the bytes --------------------------------------------


def decode_or_refuse(body: bytes) -> None:
    try:
        decoded = decode(body)
    except RequestError as error:
        reply = unpack(encode_reply(replies.failure(error, None)))
        assert reply["applied"] is False
    else:
        assert type(decoded) in requests.OP_NAMES
        decoded.subject()


@given(body=st.binary(max_size=200))
@example(body=b"\x82\xa2id\x81\x91\x01\x01")
@example(body=b"\x82\x81\x91\x01\x01\x01")
@example(body=b"\x82\xa2id\xc7\x0c\xff" + b"\xff" * 12)
def test_arbitrary_bytes(body: bytes) -> None:
    decode_or_refuse(body)


@given(value=packed_values)
def test_arbitrary_msgpack(value: bytes) -> None:
    decode_or_refuse(value)


@given(
    pairs=st.lists(
        st.tuples(
            st.one_of(
                st.sampled_from(["op", "id", "key", "value", "keys", "items", "prev"]).map(pack),
                packed_values,
            ),
            st.one_of(st.sampled_from(sorted(requests.REQUEST_TYPES)).map(pack), packed_values),
        ),
        max_size=5,
    )
)
def test_arbitrary_fields(pairs: list[tuple[bytes, bytes]]) -> None:
    decode_or_refuse(packed_pairs(pairs))


@given(fields=good_requests(), data=st.data())
def test_mutated_requests(fields: list[tuple[str, Any]], data: st.DataObject) -> None:
    body = bytearray(packed_request(fields, data.draw(st.sampled_from([str, bytes]))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body)))
        match data.draw(st.sampled_from(["replace", "insert", "delete", "cut", "double"])):
            case "replace":
                body[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "insert":
                body[place:place] = data.draw(st.one_of(st.binary(max_size=4), packed_values))
            case "delete":
                del body[place : place + data.draw(st.integers(1, 4))]
            case "cut":
                del body[place:]
            case _:
                body += body[place:]
    decode_or_refuse(bytes(body))


WRAPS = {
    "array": b"\x91", "array of more": b"\x92\x01", "long array": b"\xdc\x00\x01",
    "map": b"\x81\xa1a", "map behind nil": b"\x81\xc0", "long map": b"\xdf\x00\x00\x00\x01\x01",
}  # fmt: skip
HOLDING: dict[str, Callable[[bytes], tuple[str, Fields]]] = {
    "PUT": lambda value: ("value", {"key": pack("k"), "value": value}),
    "MPUT": lambda value: ("items", {"items": packed_map({"a": pack(1), "k": value})}),
    "TXN": lambda value: ("ops", {"ops": b"\x92" + 2 * request("PUT", HOLDING["PUT"](value)[1])}),
}
"""How a value is sent: op -> the field that it is in, and all fields."""


@pytest.fixture(params=[True, False], ids=["compiled", "plain"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether nesting is measured in C."""
    if request.param and not compiled.COMPILED:
        pytest.skip("zkv was installed without a C compiler")
    monkeypatch.setattr(compiled, "COMPILED", request.param)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("end", [b"\xc0", b"\x90", b"\x80"], ids=["nil", "array", "map"])
@pytest.mark.parametrize("op", HOLDING)
def test_a_value_may_have_500_levels_and_not_501(op: str, wrap: bytes, end: bytes) -> None:
    def body(levels: int) -> tuple[str, bytes]:
        name, fields = HOLDING[op](wrap * (levels - (end != b"\xc0")) + end)
        return name, packed_map({"op": pack(op)} | fields | {"id": pack(7)})

    assert decode(body(500)[1]).id == 7
    for levels in (501, 502, 503, 504, 505, 1_023, 1_024, 1_025, 5_000):
        name, refused = body(levels)
        error = refusal(refused)
        assert isinstance(error, BadRequest)
        assert error.message == f"field `{name}` is nested deeper than 500 levels"
        assert error.request_id == 7


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("name", ["key", "keys", "id", "prev", "op", "session", "colour", "if"])
@pytest.mark.parametrize("packed_name", [pack, lambda name: pack(name.encode())])
def test_a_deep_field_is_named_whatever_it_should_be(
    name: str, packed_name: Callable[[str], bytes]
) -> None:
    others = [(pack("op"), pack("PUT")), (pack("value"), pack(1)), (pack("key"), pack("k"))]
    for levels in (501, 20_000):
        deep = (packed_name(name), b"\x91" * levels + b"\xc0")
        for pairs in ([deep, *others], [*others, deep]):
            error = refusal(packed_pairs(pairs))
            assert isinstance(error, BadRequest)
            assert error.message == f"field `{name}` is nested deeper than 500 levels"


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("levels", [501, 20_000, 200_000])  # 3.14 decodes 170,000.
def test_what_is_nested_deeply_where_no_field_is(levels: int) -> None:
    deep = b"\x91" * levels + b"\xc0"
    keyed = b"\x81" * (levels + 1) + b"\x01" * (levels + 2)
    for body, message in (
        (deep, "the body is not a msgpack map"),
        (keyed, "a field is nested deeper than 500 levels"),
        (b"\x82" + pack("id") + pack(1) + deep + b"\x01", "a field is nested deeper"),
        (b"\x81" + deep[:-1], "a field is nested deeper"),
        (b"\x81" + pack("value") + deep[:-1], "field `value` is nested deeper"),
        (b"\x81" + pack("value") + deep[:-1] + b"\xc1", "field `value` is nested deeper"),
    ):
        error = refusal(body)
        assert isinstance(error, BadRequest)
        assert message in error.message


@pytest.mark.usefixtures("both_ways")
def test_the_key_of_a_map_counts_as_its_values_do() -> None:
    def put(levels: int) -> bytes:
        keyed = b"\x82\x01\x02" + b"\x91" * (levels - 1) + b"\xc0\x03"
        return request("PUT", {"key": pack("k"), "value": keyed})

    assert isinstance(decode(put(500)), requests.Put)
    assert "`value`" in refusal(put(501)).message


@pytest.mark.usefixtures("both_ways")
def test_what_looks_like_levels_and_is_none() -> None:
    bytes_of_arrays = b"\x91" * 3_000
    for value in (
        pack(bytes_of_arrays),
        pack(msgpack.ExtType(5, bytes_of_arrays)),
        pack([bytes_of_arrays, 0x9191919191919191, "x" * 600]),
        pack([[[]]] * 2_000),
        pack({str(number): {"a": [number]} for number in range(600)}),
        b"\x93\xdb" + struct.pack(">I", 3_000) + bytes_of_arrays + b"\x90\x90",
    ):
        assert isinstance(decode(request("PUT", {"key": pack("k"), "value": value})), requests.Put)


@given(data=st.data())
def test_nesting_is_measured_alike(data: st.DataObject) -> None:
    if not compiled.COMPILED:
        pytest.skip("zkv was installed without a C compiler")
    packed = data.draw(st.binary(max_size=30) | packed_values)
    packed = data.draw(st.sampled_from([b"", *WRAPS.values()])) * data.draw(deep_counts) + packed
    at = data.draw(st.integers(0, len(packed)))
    found = nesting.measure(packed, at)
    with mock.patch("zkv.compiled.COMPILED", False):
        assert nesting.measure(packed, at) == found
        assert nesting.may_be_deep(packed) == (nesting.measure(packed, 0)[1] > 501)


deep_counts = st.sampled_from([1, 2, 500, 501, 502, 503, 504, 505, 1_024, 1_025])


# --- Keys and values that settings bound -----------------------------------------------------

MOST = 20
limits = KeyLimits(max_key_bytes=MOST, max_value_bytes=10, max_batch=3)


@pytest.mark.parametrize(
    "key", ["k", "\x01", "a" * MOST, "é" * (MOST // 2), "\U0001f600" * (MOST // 4), "a\0b", "\x7f"]
)
def test_good_keys(key: str) -> None:
    limits.check_key(key)
    limits.check_keys([key])
    limits.check_keys({key: Raw(b"\xc0")})


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("", BadRequest),
        ("\0", BadRequest),
        ("\0x", BadRequest),
        ("a" * (MOST + 1), TooLarge),
        ("é" * (MOST // 2) + "a", TooLarge),
        ("\U0001f600" * (MOST // 4) + "a", TooLarge),
    ],
)
def test_bad_keys(key: str, error: type[RequestError]) -> None:
    with pytest.raises(error):
        limits.check_key(key)
    for keys_ in ([key], ["good", key], [key, "good"]):
        with pytest.raises(error):
            limits.check_keys(keys_)
        with pytest.raises(error):
            limits.check_keys(dict.fromkeys(keys_, Raw(b"\xc0")))


@given(key=st.text(st.characters(codec="utf-8"), max_size=12), most=st.integers(1, 12))
def test_key_limit_counts_bytes(key: str, most: int) -> None:
    good = bool(key) and key[0] != "\0" and len(key.encode()) <= most
    try:
        KeyLimits(most, 10, 10).check_key(key)
    except RequestError:
        assert not good
    else:
        assert good


def test_batch_limit() -> None:
    limits.check_keys([])
    limits.check_keys(["a", "b", "c"])
    with pytest.raises(TooLarge, match="max_batch"):
        limits.check_keys(["a", "a", "a", "a"])


def test_value_limit() -> None:
    assert limits.value("k", Raw(bytes(10))) == bytes(10)
    with pytest.raises(TooLarge, match="max_value_bytes"):
        limits.value("k", Raw(bytes(11)))


# --- Replies ---------------------------------------------------------------------------------

NIL, ONE = Raw(b"\xc0"), Raw(b"\x01")

REPLIES: list[tuple[replies.Reply, dict[str, Any]]] = [
    (
        replies.PingReply(protocol=1, version="1.2", time=3),
        {"protocol": 1, "version": "1.2", "time": 3},
    ),
    (replies.GetReply(value=ONE, rev=7), {"value": 1, "rev": 7}),
    (replies.WriteReply(rev=7, durable=True), {"rev": 7, "durable": True}),
    (
        replies.WriteReply(rev=7, durable=True, prev=NIL, prev_rev=0),
        {"rev": 7, "durable": True, "prev": None, "prev_rev": 0},
    ),
    (
        replies.MGetReply(values=pack_array([b"\x01", b"\xc0"]), revs=[7, 0]),
        {"values": [1, None], "revs": [7, 0]},
    ),
    (
        replies.MDeleteReply(deleted=2, rev=9, durable=True),
        {"deleted": 2, "rev": 9, "durable": True},
    ),
    (replies.RevisionReply(rev=9), {"rev": 9}),
]


@pytest.mark.parametrize(("reply", "expected"), REPLIES)
def test_replies(reply: replies.Reply, expected: dict[str, Any]) -> None:
    assert unpack(encode_reply(reply)) == {"ok": True} | expected


@pytest.mark.parametrize(
    ("kind", "code", "retry"),
    [
        (BadRequest, "BAD_REQUEST", False),
        (UnknownOp, "UNKNOWN_OP", False),
        (NotFound, "NOT_FOUND", False),
        (TooLarge, "TOO_LARGE", False),
        (Full, "FULL", True),
        (ReadOnly, "READ_ONLY", True),
        (ShuttingDown, "SHUTTING_DOWN", True),
        (Internal, "INTERNAL", False),
    ],
)
@pytest.mark.parametrize("request_id", [None, 0, 7, "", "x"])
@pytest.mark.parametrize("applied", [False, None])
def test_failures(
    kind: type[RequestError],
    code: str,
    retry: bool,
    request_id: int | str | None,
    applied: bool | None,
) -> None:
    expected = {"ok": False, "code": code, "message": "m", "retry": retry, "applied": applied}
    if request_id is not None:
        expected["id"] = request_id
    known_to_the_caller = replies.failure(kind("m", applied=applied), request_id)
    assert unpack(encode_reply(known_to_the_caller)) == expected
    found_by_the_decoder = kind("m", applied=applied, request_id=request_id)
    assert unpack(encode_reply(replies.failure(found_by_the_decoder, None))) == expected
