"""Values, whatever they are: packed, decoded, and what cannot be decoded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from enum import IntEnum, StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from msgpack import ExtType, Timestamp

from tests.client.blocking import AnyClient, Kind, Loop
from tests.conformance import notation
from tests.support import LIMIT, ROOT, ServerInProcess, environment, pack
from zkv import (
    AsyncClient,
    BadValueError,
    Change,
    Client,
    ClientError,
    Codec,
    Entry,
    NotFoundError,
    ValueType,
)
from zkv.client.codec import PACKED, PLAIN, Packed
from zkv.client.messages import pack_request, unpack_reply
from zkv.client.operations import Pack, Unpack
from zkv.client.plain import pack_plain, unpack_plain
from zkv.client.quick import pack_quickly, unpack_quickly
from zkv.client.slicing import Sliced, name_errors
from zkv.client.steps import DeleteStep, GetStep, PutStep, Step, pack_steps
from zkv.client.sync import MANY
from zkv.compiled import COMPILED

# --- All values of msgpack, and what Python makes of them


def head(kinds: dict[int, int], size: int) -> st.SearchStrategy[bytes]:
    """Heads for a size, also longer ones than it takes: first byte by the width of the size."""
    fits = {first: width for width, first in kinds.items() if size < 1 << 8 * width}
    return st.sampled_from([bytes([first]) + size.to_bytes(w) for first, w in fits.items()])


STR: Final = {1: 0xD9, 2: 0xDA, 4: 0xDB}
BIN: Final = {1: 0xC4, 2: 0xC5, 4: 0xC6}
EXT: Final = {1: 0xC7, 2: 0xC8, 4: 0xC9}
ARRAY: Final = {2: 0xDC, 4: 0xDD}
MAP: Final = {2: 0xDE, 4: 0xDF}
FIXED_EXT: Final = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}
INTS: Final = [">BB", ">BH", ">BI", ">BQ", ">Bb", ">Bh", ">Bi", ">Bq"]


def sized(kinds: dict[int, int], data: bytes) -> st.SearchStrategy[bytes]:
    return head(kinds, len(data)).map(lambda first: first + data)


@st.composite
def ints(draw: Callable[..., Any]) -> bytes:
    """An int, in any of the widths that take it."""
    number = draw(st.sampled_from([0, 1, -1, 127, 128, 255, -128, 2**63, 2**64 - 1, -(2**63)]))
    packed = [bytes([number & 0xFF])] if -32 <= number < 128 else []
    for at, form in enumerate(INTS):
        with contextlib.suppress(struct.error):
            packed.append(struct.pack(form, 0xCC + at, number))
    return bytes(draw(st.sampled_from(packed)))


@st.composite
def exts(draw: Callable[..., Any]) -> bytes:
    """An ext of any type, often a timestamp, and often one that is none."""
    code = draw(st.sampled_from([-1, -1, -1, 0, 1, 127, -2, -128]))
    data = draw(
        st.sampled_from([bytes(4), bytes(8), b"\xff" * 4, b"\xff" * 8, bytes(12), b"\xff" * 12])
        | st.sampled_from([b"\x3b\x9a\xc9\xff" + bytes(8), b"\x3b\x9a\xca\x00" + bytes(8)])
        | st.binary(max_size=17)
    )
    first = draw(head(EXT, len(data)))
    if len(data) in FIXED_EXT and draw(st.booleans()):
        first = bytes([FIXED_EXT[len(data)]])
    return bytes(first + struct.pack(">b", code) + data)


@st.composite
def containers(draw: Callable[..., Any], inside: st.SearchStrategy[bytes]) -> bytes:
    """An array or a map, of which keys may be anything, and twice the same."""
    parts = draw(st.lists(inside, max_size=4))
    if draw(st.booleans()):
        first = draw(head(ARRAY, len(parts)) | st.just(bytes([0x90 | len(parts)])))
        return bytes(first + b"".join(parts))
    keys = [draw(inside | st.sampled_from(parts)) for _ in parts]
    first = draw(head(MAP, len(parts)) | st.just(bytes([0x80 | len(parts)])))
    return bytes(first + b"".join(key + part for key, part in zip(keys, parts, strict=True)))


TEXTS: Final = st.sampled_from([b"", b"a", b"b", "ü".encode(), b"\xff", b"\xc3"]) | st.binary(
    max_size=3
)
SIMPLE: Final = st.one_of(
    st.sampled_from([b"\xc0", b"\xc2", b"\xc3"]),
    ints(),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), 1.5]).map(
        lambda number: struct.pack(">Bd", 0xCB, number)
    ),
    st.sampled_from([0.0, 1.0, 0.1]).map(lambda number: struct.pack(">Bf", 0xCA, number)),
    TEXTS.flatmap(lambda data: sized(STR, data) | st.just(bytes([0xA0 | len(data)]) + data)),
    st.binary(max_size=3).flatmap(lambda data: sized(BIN, data)),
    exts(),
)
READERS: Final[list[Unpack]] = [unpack_reply, unpack_quickly, *[unpack_plain] * COMPILED]
PACKERS: Final[list[Pack]] = [pack_quickly, *[pack_plain] * COMPILED]

ANY: Final = st.recursive(SIMPLE, containers, max_leaves=12)


class Unheld(Exception):
    """Python cannot hold it."""


def held(node: notation.Node, *, as_key: bool = False) -> Any:
    """What Python makes of a value: told from the tree of another decoder."""
    match node.kind:
        case "str":
            return node.value.decode(errors="surrogateescape")
        case "array":
            items = [held(item, as_key=as_key) for item in node.value]
            return tuple(items) if as_key else items
        case "map":
            made: dict[Any, Any] = {}
            for key, value in node.value:
                name = held(key, as_key=True)
                if name in made:
                    raise Unheld
                made[name] = held(value)
            if as_key:
                raise Unheld
            return made
        case "ext" if node.value[0] == -1:
            return timestamp(node.value[1])
        case "ext":
            return tuple.__new__(ExtType, node.value)
        case _:
            return node.value


def timestamp(data: bytes) -> Timestamp:
    match len(data):
        case 4:
            nanoseconds, seconds = 0, int.from_bytes(data)
        case 8:
            nanoseconds, seconds = divmod(int.from_bytes(data), 1 << 34)
        case 12:
            nanoseconds, seconds = int.from_bytes(data[:4]), int.from_bytes(data[4:], signed=True)
        case _:
            raise Unheld
    if nanoseconds > 999_999_999:
        raise Unheld
    return Timestamp(seconds, nanoseconds)


def shown(packed: bytes) -> str:
    """What a reader is to show of a value: types and order count, and one nan is like another."""
    try:
        return repr(held(notation.decode(packed)))
    except Unheld:
        return "bad"


def seen(value: Any) -> str:
    """What a reader shows."""
    if isinstance(value, BadValueError):
        assert "cannot be decoded" in str(value)
        return "bad"
    return repr(value)


def bodies(packed: list[bytes]) -> Iterator[tuple[str, dict[str, Any], bytes, Callable[..., Any]]]:
    """Replies of every shape with these values: op, fields of the request, body, and its values."""
    keys = [f"k{at}" for at in range(len(packed))]
    entries = list(zip(keys, packed, strict=True))

    def body(name: str, field: bytes, **more: Any) -> bytes:
        rest = pack({"ok": True, "id": 1, **more})
        return bytes([rest[0] + 1]) + rest[1:] + pack(name) + field

    def array(items: list[bytes]) -> bytes:
        return b"\xdc" + len(items).to_bytes(2) + b"".join(items)

    yield "MGET", {"keys": keys}, body("values", array(packed)), lambda reply: reply["values"]
    items = array([b"\x93" + pack(key) + value + b"\x05" for key, value in entries])
    yield "SCAN", {}, body("items", items, next=None), lambda reply: [i[1] for i in reply["items"]]
    changes = array([b"\x94\x05" + pack("PUT") + pack(key) + value for key, value in entries])
    yield "CHANGES", {}, body("changes", changes), lambda reply: [c[3] for c in reply["changes"]]
    results = array([b"\x82\xa2ok\xc3\xa5value" + value for value in packed])
    ops = {"ops": [{"op": "GET", "key": key} for key in keys]}
    yield "TXN", ops, body("results", results), lambda reply: [r["value"] for r in reply["results"]]
    feed = body("value", packed[0], op="PUT", key="k0")
    yield "feed", {}, feed, lambda reply: [reply["value"]]


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ANY, min_size=1, max_size=4))
@example([b"\x82\x01\xa1a\xc3\xa1b"])
@example([b"\x82\x91\x01\xa1a\x91\xc3\xa1b", b"\x81\x92\x01\x91\x02\x03"])
@example([b"\x82\x92\x01\xc4\x01a\x01\xd4\x01a\x02"])  # An ext equals the tuple of its parts.
@example([b"\xd6\xff\x00\x00\x00\x05", b"\x81\xd6\xff\x00\x00\x00\x05\x01"])
def test_all_ways_decode_alike(packed: list[bytes]) -> None:
    expected = [shown(value) for value in packed]
    for op, fields, body, values_in in bodies(packed):
        wanted = expected if op != "feed" else expected[:1]
        for unpack in READERS:
            reply = unpack(op, body, PLAIN)
            if isinstance(reply, Sliced):
                name_errors(op, fields, reply)
            values = values_in(reply)
            assert [seen(value) for value in values] == wanted
            errors = {at: v for at, v in enumerate(values) if isinstance(v, BadValueError)}
            for at, error in errors.items():
                assert (error.key, error.packed) == (f"k{at}", packed[at])


def test_all_replies_of_the_vectors_decode_alike() -> None:
    """Values that need not be replies: of each, all ways say the same."""
    vectors = json.loads(Path("tests/conformance/vectors.json").read_text())
    number = 0
    for case in [case for sequence in vectors["sequences"] for case in sequence["cases"]]:
        for text in [case.get("request_hex"), case.get("reply_hex")]:
            body = notation.stretch(text) if text else b"\x80"
            told = []
            for unpack in READERS:
                try:
                    told.append(repr(unpack("INFO", body, PLAIN)))
                except ClientError as error:
                    told.append(str(error))
            assert len(set(told)) == 1
            number += 1
    assert number > 300


# --- What every reader gives of them


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerInProcess]:
    """A server for all tests of this module that need no store of their own."""
    with ServerInProcess(tmp_path_factory.mktemp("values")) as server:
        yield server


@pytest.fixture(autouse=True)
def _empty(server: ServerInProcess) -> None:
    """Nothing is left of earlier tests."""
    clear(server)


def clear(server: ServerInProcess) -> None:
    with Client(server.endpoint) as kv:
        kv.clear()


def put_packed(endpoint: str, entries: dict[str, bytes]) -> int:
    """Have these bytes stored."""
    with Client(endpoint, codec=PACKED) as kv:
        return kv.put_many({key: Packed(value) for key, value in entries.items()})


def got(read: Callable[[], Any]) -> str:
    """What a reader of one key gives, which raises what it cannot."""
    try:
        return seen(read())
    except BadValueError as error:
        return seen(error) if error.applied is False else "applied?"


def value_of(get_entry: Callable[[str], Entry], key: str) -> Any:
    return get_entry(key).value


def called(kv: AnyClient, key: str) -> Any:
    return kv.call("GET", key=key)["value"]


def readings(kv: AnyClient, since: int, keys: list[str]) -> Iterator[tuple[str, list[str]]]:
    """All ways to read the values of these keys, and what each gives."""
    yield "get", [got(partial(kv.get, key)) for key in keys]
    yield "get_entry", [got(partial(value_of, kv.get_entry, key)) for key in keys]
    yield "setdefault", [got(partial(kv.setdefault, key, 7)) for key in keys]
    yield "call", [got(partial(called, kv, key)) for key in keys]
    many = kv.get_many(keys)
    yield "get_many", [seen(many[key]) for key in keys]
    entries = kv.get_entries(keys)
    yield "get_entries", [seen(entries[key].value) for key in keys]
    yield "scan", [seen(entry.value) for entry in kv.scan("v")]
    yield "reverse", [seen(entry.value) for entry in kv.scan("v", reverse=True)][::-1]
    yield "changes", [seen(change.value) for change in kv.changes(since, "v")]
    with kv.watch("v", since=since) as watch:
        yield "watch", [seen(watch.next(10).value) for _ in keys]
    with kv.mirror("v") as mirror:
        yield "mirror", [got(partial(mirror.__getitem__, key)) for key in keys]
        yield "mirror.get", [got(partial(mirror.get, key)) for key in keys]
        yield "mirror.get_entry", [got(partial(value_of, mirror.get_entry, key)) for key in keys]
        yield "mirror.values", [seen(value) for value in mirror.values()]
    pipe = kv.pipeline()
    for key in keys:
        pipe.get(key)
        pipe.delete("n")
    yield "pipeline", [seen(result) for result in pipe.execute(return_exceptions=True)[::2]]
    for key in keys:
        pipe.get(key)
    yield "many", [seen(result) for result in pipe.execute(return_exceptions=True)]
    alone = []
    for key in keys:
        pipe.get(key)
        alone += pipe.execute(return_exceptions=True)
    yield "alone", [seen(result) for result in alone]
    txn = kv.txn()
    for key in keys:
        txn.get(key)
    yield "txn", [seen(result) for result in txn.commit()]


@settings(
    max_examples=5,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(packed=st.lists(ANY, min_size=12, max_size=12))
def test_every_reader_gives_the_same(server: ServerInProcess, packed: list[bytes]) -> None:
    clear(server)
    keys = [f"v{at:02}" for at in range(len(packed))]
    since = put_packed(server.endpoint, dict(zip(keys, packed, strict=True))) - 1
    expected = [shown(value) for value in packed]
    with Loop() as loop:
        for kind in (Kind(None), Kind(loop)):
            with kind(server.endpoint) as kv:
                for name, values in readings(kv, since, keys):
                    assert values == expected, name
    with Client(server.endpoint) as kv:
        assert [seen(value) for value in kv.values()] == expected
        assert [seen(value) for _, value in kv.items()] == expected
        assert [got(partial(kv.__getitem__, key)) for key in keys] == expected
        assert [got(partial(kv.pop, key)) for key in keys] == expected
        left = [key for key, value in zip(keys, expected, strict=True) if value == "bad"]
        assert [*kv] == left, "what cannot be returned is not removed"
        for key in left:
            with pytest.raises(BadValueError):
                kv.popitem()
            with pytest.raises(BadValueError):
                kv.call("GET", key=key)


BAD: Final = {
    "map as key": (b"\x81\x80\x01", "unhashable"),
    "map in an array as key": (b"\x81\x91\x80\x01", "unhashable"),
    "a key twice": (b"\x82\xa1a\x01\xa1a\x02", "'a'"),
    "1 and true": (b"\x82\x01\xa1a\xc3\xa1b", "True"),
    "1 and 1.0": (b"\x82\x01\xa1a\xcb\x3f\xf0" + bytes(6) + b"\xa1b", "1.0"),
    "0 and -0.0": (b"\x82\x00\xa1a\xcb\x80" + bytes(7) + b"\xa1b", "-0.0"),
    "false and 0": (b"\x82\xc2\xa1a\x00\xa1b", "0"),
    "[1] and [true]": (b"\x82\x91\x01\xa1a\x91\xc3\xa1b", "True"),
    "an ext and an array": (b"\x82\xd4\x05a\x01\x92\x05\xc4\x01a\x02", "'?a"),
    "deep inside": (b"\x91\x81\xa1k\x92\x01\x81\x80\x01", "unhashable"),
    "a timestamp of one byte": (b"\xd4\xff\x00", "timestamp"),
    "a timestamp of no bytes": (b"\xc7\x00\xff", "timestamp"),
    "too many ns of 30 bits": (b"\xd7\xff" + b"\xff" * 8, "nanoseconds"),
    "too many ns of 32 bits": (b"\xc7\x0c\xff\x3b\x9a\xca\x00" + bytes(8), "nanoseconds"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_value_that_cannot_be_decoded_says_why_and_of_what_key(
    kind: Kind, server: ServerInProcess, case: str
) -> None:
    packed, why = BAD[case]
    put_packed(server.endpoint, {"ns/bad": packed, "ns/good": b"\x01"})
    with kind(server.endpoint) as kv:
        space = kv.namespace("ns/")
        with pytest.raises(BadValueError, match=why) as caught:
            space.get("bad")
        in_place = {entry.key: entry.value for entry in space.scan()}["bad"]
        for error in (caught.value, in_place, pickle.loads(pickle.dumps(caught.value))):
            assert (error.key, error.packed, error.applied) == ("ns/bad", packed, False)
            assert str(error).startswith("the value of 'ns/bad' cannot be decoded: ")
            assert type(error.packed) is bytes
        assert space.get("good") == 1


GOOD: Final = {
    "array as key": (b"\x81\x92\x01\x91\x02\x03", {(1, (2,)): 3}),
    "bin as key": (b"\x81\xc4\x01a\x03", {b"a": 3}),
    "nil as key": (b"\x81\xc0\x03", {None: 3}),
    "float as key": (b"\x81\xcb" + bytes(8) + b"\x03", {0.0: 3}),
    "ext as key": (b"\x81\xd4\x05a\x03", {ExtType(5, b"a"): 3}),
    "timestamp as key": (b"\x81\xd6\xff\x00\x00\x00\x05\x03", {Timestamp(5): 3}),
    "text and bin": (b"\x82\xa1a\x01\xc4\x01a\x02", {"a": 1, b"a": 2}),
    "ext of a reserved type": (b"\xd4\xfba", tuple.__new__(ExtType, (-5, b"a"))),
    "str that is no UTF-8": (b"\xa1\xff", "\udcff"),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_value_that_python_can_hold_goes_both_ways(
    kind: Kind, server: ServerInProcess, case: str
) -> None:
    packed, value = GOOD[case]
    put_packed(server.endpoint, {"k": packed})
    with kind(server.endpoint) as kv:
        assert kv.get("k") == value
        kv.put("again", value)
        kv.put_many({"many": value})
        with kv.txn() as txn:
            txn.put("txn", value)
        with kv.pipeline() as pipe:
            pipe.put("pipe", value)
            pipe.get("k")
        assert pipe.results[1] == value
    with Client(server.endpoint, codec=PACKED) as kv:
        assert {kv[key] for key in ("again", "many", "txn", "pipe")} == {packed}


def test_two_keys_that_are_no_numbers_are_two_keys(kind: Kind, server: ServerInProcess) -> None:
    nan = struct.pack(">Bd", 0xCB, float("nan"))
    put_packed(server.endpoint, {"k": b"\x82" + nan + b"\x01" + nan + b"\x02"})
    with kind(server.endpoint) as kv:
        assert [*kv.get("k").values()] == [1, 2]


# --- What is not sent, since it would not come back


class Hashed(dict[str, int]):
    """A dict that can be the key of another one."""

    def __hash__(self) -> int:  # type: ignore[override]
        return 1


class Unequal(str):
    """A str that equals no other."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def nested(levels: int, value: Any = 1) -> Any:
    for _ in range(levels):
        value = [value]
    return value


def in_maps(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"": value}
    return value


LOOP: Final[list[Any]] = []
LOOP.append(LOOP)

REFUSED: Final = {
    "a dict as key": ({Hashed(a=1): 1}, TypeError),
    "a dict in a tuple as key": ([{(1, Hashed()): 1}], TypeError),
    "two keys that become one": ({Unequal("a"): 1, "a": 2}, TypeError),
    "bytes that are text": ({"\udcc3\udca9": 1, "é": 2}, TypeError),
    "an int of 65 bits": ({"a": [2**64]}, OverflowError),
    "an int below": (-(2**63) - 1, OverflowError),
    "an int of 65 bits as key": ({2**64: 1}, OverflowError),
    "501 levels": (nested(501), ValueError),
    "501 levels of maps": (in_maps(501), ValueError),
    "501 levels of tuples": ((nested(500),), ValueError),
    "501 levels, the last one empty": (nested(500, ()), ValueError),
    "a list in itself": (LOOP, ValueError),
    "a surrogate": ("\ud800", ValueError),
    "a set": ([{1}], TypeError),
    "an object": (object(), TypeError),
    "an error": (BadValueError("why"), TypeError),
}


def writings(kv: AnyClient, value: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "put", lambda: kv.put("k", value)
    yield "setdefault", lambda: kv.setdefault("k", value)
    yield "put_many", lambda: kv.put_many({"good": 1, "k": value})
    for name, written in (("txn", kv.txn()), ("pipeline", kv.pipeline())):
        written.put("good", 1)
        written.put("k", value, ttl=5)
        written.incr("n")
        yield name, written.commit if name == "txn" else written.execute
    yield "queue", lambda: kv.queue("jobs").put(value)


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_come_back_is_not_sent(
    kind: Kind, server: ServerInProcess, case: str
) -> None:
    value, error = REFUSED[case]
    with kind(server.endpoint) as kv:
        before = kv.info()["stats"]["requests"]
        for name, write in writings(kv, value):
            with pytest.raises(error):
                write()
            assert name
        after = kv.info()["stats"]["requests"]
        changed = {op for op in after if after[op] != before.get(op, 0)}
        assert changed <= {"INFO", "GET", "INCR"}
        assert not [entry for entry in kv.scan(values=False) if "jobs/" not in entry.key]


class Level(IntEnum):
    HIGH = 1


PYTHON: Final = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | st.text(st.characters(), max_size=3)
    | st.sampled_from(["\udcff", "\ud800", Unequal("a"), Level.HIGH, {1}, object(), Decimal(1)])
    | st.sampled_from([ExtType(5, b"x"), Timestamp(1, 2), datetime(2024, 1, 1, tzinfo=UTC)])
    | st.sampled_from(
        [b"\xff", bytearray(b"x"), Packed(b"\xc0"), Packed(b"\xc1"), Packed(b"\x90")]
    ),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.lists(inside, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from([1, True, "a", (1,), Hashed()]), inside, max_size=3)
    ),
    max_leaves=6,
)
SETS: Final = Codec(ValueType(1, set, bytes, set))


def outcome(pack: Callable[..., bytes], *arguments: Any) -> Any:
    """The bytes, or the error in words."""
    try:
        return pack(*arguments)
    except Exception as error:
        return type(error), str(error)


@settings(max_examples=300, deadline=None)
@given(st.lists(PYTHON, min_size=1, max_size=3), st.sampled_from([PLAIN, PACKED, SETS]))
def test_all_ways_pack_alike(values: list[Any], codec: Codec) -> None:
    entries = {f"k{at}": value for at, value in enumerate(values)}
    put = {"key": "k0", "value": values[0], "session": "s", "seq": 1}
    for op, fields in (("PUT", put), ("MPUT", {"items": entries}), ("INCR", {"key": "k", "by": 1})):
        expected = outcome(pack_request, op, 7, fields, codec)
        for pack_fast in PACKERS:
            assert outcome(pack_fast, op, 7, fields, codec) == expected

    puts = [PutStep(key, value) for key, value in entries.items()]
    steps: list[Step] = [*puts, GetStep("g"), DeleteStep("d")]
    maps: list[Any] = [{"op": "PUT", "key": step.key, "value": step.value} for step in puts]
    maps += [{"op": "GET", "key": "g"}, {"op": "DELETE", "key": "d"}]
    expected = outcome(pack_request, "TXN", 7, {"ops": maps}, codec)
    assert outcome(pack_steps, "TXN", 7, {"ops": steps}, codec) == expected


def test_a_key_with_surrogates_is_packed_alike() -> None:
    for key in ("\udcff", "\ud800"):
        for fields in ({"key": key}, {"keys": ["a", key]}, {"items": {key: 1}}):
            expected = outcome(pack_request, "GET", 7, fields, PLAIN)
            for pack_fast in PACKERS:
                assert outcome(pack_fast, "GET", 7, fields, PLAIN) == expected


def test_a_client_packs_and_decodes_later_requests_as_the_first(server: ServerInProcess) -> None:
    """After many requests, and after a large reply, the client for threads uses msgspec."""
    tricky = {"a": [1, 2.5, None, b"\xff"], "b": {"t": Timestamp(1, 2), "x": ExtType(5, b"")}}
    with Client(server.endpoint) as first, Client(server.endpoint) as later:
        for _ in range(MANY):
            later.ping()
        for kv, key in ((first, "first"), (later, "later")):
            kv[key] = tricky
            kv.put_many({f"{key}/1": 1, f"{key}/2": b"\xff", f"{key}/3": tricky})
            assert first[key] == later[key] == tricky
            assert [*first.namespace(key + "/").values()] == [1, b"\xff", tricky]
            assert [*later.namespace(key + "/").values()] == [1, b"\xff", tricky]


@pytest.mark.parametrize(
    ("work", "uses"),
    [
        ("kv.get('k')", False),
        ("[kv.get('k') for _ in range(MANY)]", True),
        ("kv.put('k', 'x' * 5_000); kv.get('k')", True),
    ],
)
def test_msgspec_is_imported_once_it_pays(server: ServerInProcess, work: str, uses: bool) -> None:
    code = f"""
import sys, zkv
from zkv.client.sync import MANY
with zkv.Client(sys.argv[1]) as kv:
    {work}
print("msgspec" in sys.modules)
"""
    told = subprocess.check_output(
        [sys.executable, "-c", code, server.endpoint], env=environment(), cwd=ROOT, text=True
    )
    assert told.strip() == str(uses and not COMPILED)  # C is quicker, and imported in no time.


@pytest.mark.parametrize("size", [10, 100_000])
def test_values_that_others_pack_unusually_decode_alike(size: int) -> None:
    """Floats of 32 bits, and ints in more bytes than needed: also in replies of any size."""
    values = [b"\xca\x3f\x80\x00\x00", b"\xcf" + (5).to_bytes(8), b"\xdb" + bytes(4), b"\xa1x"]
    keys = [f"k{at}" for at in range(size)]
    rest = pack({"ok": True, "id": 1, "revs": [1] * size})
    packed = b"\xdd" + size.to_bytes(4) + b"".join(values[at % 4] for at in range(size))
    body = bytes([rest[0] + 1]) + rest[1:] + pack("values") + packed
    for unpack in READERS:
        reply = unpack("MGET", body, PLAIN)
        assert not isinstance(reply, Sliced)
        assert dict(zip(keys, reply["values"], strict=True))["k4"] == 1.0
        assert reply["values"][:4] == [1.0, 5, "", "x"]


@pytest.mark.parametrize("time", [(5, 0), (5, 5_000), (2**34, 5_000)])
def test_a_timestamp_among_many_bytes_is_no_datetime(time: tuple[int, int]) -> None:
    for beside in (b"", b"\xff", b"\xff" * 200):
        values = {"a": [beside, Timestamp(*time)], "b": beside}
        body = pack({"ok": True, "id": 1, "value": values, "rev": 1})
        assert unpack_quickly("GET", body)["value"] == values


@pytest.mark.parametrize("make", [nested, in_maps, lambda levels: (nested(levels - 1),)])
def test_a_value_may_have_500_levels(
    kind: Kind, server: ServerInProcess, make: Callable[[int], Any]
) -> None:
    value = make(500)
    with kind(server.endpoint) as kv:
        kv.put("a", value)
        kv.put_many({"b": value})
        with kv.txn() as txn:
            txn.put("c", value)
            txn.get("c")
        with kv.pipeline() as pipe:
            pipe.put("d", value)
            pipe.get("d")
        wanted = value if isinstance(value, (list, dict)) else [*value]
        values = [kv.get("a"), kv.get_many("b")["b"], txn.results[1], pipe.results[1]]
        assert all(each == wanted for each in values)


# --- Subclasses


class Colour(IntEnum):
    RED = 1


class Word(StrEnum):
    YES = "yes"


class Spot(namedtuple("Spot", "x y")):
    __slots__ = ()


class Celsius(float):
    """Stands for what libraries make of a float."""

    def __float__(self) -> float:
        raise AssertionError("its number is not asked for by this")

    @classmethod
    def made(cls, data: bytes) -> Celsius:
        return cls(*struct.unpack(">d", data))


class Blob(bytes):
    """Bytes of some kind."""


class Stack(list[Any]):
    """A list of some kind."""


PLAINLY: Final = [
    (Colour.RED, 1),
    (Word.YES, "yes"),
    (Spot(1, 2), [1, 2]),
    (Celsius(1.5), 1.5),
    (Blob(b"x"), b"x"),
    (Stack([1]), [1]),
    (OrderedDict(a=1), {"a": 1}),
    (defaultdict(int, a=1), {"a": 1}),
    (bytearray(b"x"), b"x"),
    ({Colour.RED: Word.YES, Spot(1, 2): ()}, {1: "yes", (1, 2): []}),
]


def exactly(value: Any) -> tuple[type, str]:
    return type(value), repr(value)


@pytest.mark.parametrize(("value", "plain"), PLAINLY, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("codec", ["none", "of another type"])
def test_a_subclass_comes_back_as_the_type_that_msgpack_has(
    kind: Kind, server: ServerInProcess, value: Any, plain: Any, codec: str
) -> None:
    codecs = {"none": PLAIN, "of another type": Codec(ValueType(3, Point, bytes, bytes))}
    with kind(server.endpoint, codec=codecs[codec]) as kv:
        kv.put("put", value)
        kv.put_many({"many": [value]})
        with kv.txn() as txn:
            txn.put("txn", value)
            txn.get("txn")
        back = [kv.get("put"), *kv.get_many(["many"])["many"], txn.results[1]]
        assert [exactly(each) for each in back] == [exactly(plain)] * 3


class Point:
    """A type of the user's, that subclasses of msgpack's types may have as a base, too."""


class Pixel(Point, int):
    """An int that is a `Point`."""


CODEC: Final = Codec(
    ValueType(1, Colour, lambda colour: colour.name.encode(), lambda name: Colour[name.decode()]),
    ValueType(2, Word, lambda word: word.encode(), lambda word: Word(word.decode())),
    ValueType(3, Point, lambda pixel: pack(int(pixel)), lambda data: Pixel(msgpack.unpackb(data))),
    ValueType(4, Spot, lambda spot: pack([*spot]), lambda data: Spot(*msgpack.unpackb(data))),
    ValueType(5, Celsius, lambda c: struct.pack(">d", c), Celsius.made),
    ValueType(6, Blob, bytes, Blob),
    ValueType(7, Stack, lambda stack: pack([*stack]), lambda data: Stack(msgpack.unpackb(data))),
    ValueType(8, OrderedDict, lambda d: pack(dict(d)), lambda d: OrderedDict(msgpack.unpackb(d))),
)


@pytest.mark.parametrize(
    "value",
    [
        Colour.RED, Word.YES, Pixel(7), Spot(1, 2), Celsius(1.5), Blob(b"x"), Stack([1]),
        OrderedDict(a=1), {"in": [Colour.RED, {"deep": Spot(1, 2)}]},
        {Colour.RED: 1, Spot(1, 2): 2},
    ],
    ids=repr,
)  # fmt: skip
def test_a_codec_packs_subclasses_of_what_msgpack_has(
    kind: Kind, server: ServerInProcess, value: Any
) -> None:
    with kind(server.endpoint, codec=CODEC) as kv:
        kv.put(Word.YES, value)
        kv.put_many({Word.YES: 0, "k": value})
        with kv.txn() as txn:
            txn.put("txn", value)
            txn.get("txn")
        back = [kv.get("k"), kv.get_many(["k"])["k"], txn.results[1]]
        back += [entry.value for entry in kv.scan("k")]
        assert [exactly(each) for each in back] == [exactly(value)] * 4
        assert kv.get_many([Word.YES]) == {"yes": 0}


@pytest.mark.parametrize(
    "cls", [int, float, str, bytes, bytearray, list, tuple, dict, bool, type(None), object,
            ExtType, Timestamp, memoryview],
)  # fmt: skip
def test_a_codec_for_what_msgpack_packs_itself_is_refused(cls: type) -> None:
    with pytest.raises(ValueError, match=cls.__name__):
        Codec(ValueType(1, cls, bytes, bytes))


@pytest.mark.parametrize(
    "parts", [(1, "Point", bytes, bytes), (1.0, Point, bytes, bytes), (1, Point, None, bytes)]
)
def test_a_codec_of_what_is_no_class_or_function_is_refused(parts: Any) -> None:
    with pytest.raises(TypeError):
        Codec(ValueType(*parts))


# --- Codecs that fail


class Wordless(Exception):
    """An error that cannot tell itself."""

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


ERRORS: Final = [
    KeyError("x"), struct.error("short"), StopIteration(), StopAsyncIteration(), ValueError("v"),
    TypeError("t"), LookupError(), RecursionError(), MemoryError(),
    UnicodeDecodeError("a", b"", 0, 0, "b"),
    UnicodeEncodeError("a", "", 0, 0, ""), OverflowError(), EOFError(), OSError(5, "io"),
    NotFoundError("NOT_FOUND", "", False, False, {}), TimeoutError(), Wordless(),
    BadValueError("inner"),
]  # fmt: skip


class Failing:
    """Its codec raises what it is told to."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def codec(self) -> Codec:
        return Codec(ValueType(9, Failing, self.pack, self.unpack))

    def pack(self, _: Any) -> bytes:
        if self.error is not None:
            raise self.error
        return b""

    def unpack(self, _: bytes) -> Any:
        if self.error is not None:
            raise self.error
        return "well"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_of_a_codec_reaches_who_asked_and_nobody_else(
    kind: Kind, server: ServerInProcess, error: Exception
) -> None:
    failing = Failing(None)
    with kind(server.endpoint, codec=failing.codec()) as kv, kv.watch("v") as watch:
        since = kv.put_many({"v0": failing, "v1": 1}) - 1
        with kv.mirror("v") as mirror:
            failing.error = error
            for name, values in readings(kv, since, ["v0", "v1"]):
                assert values == ["bad", "1"] or name == "call", name  # Which has no codec.
            with pytest.raises(BadValueError) as caught:
                kv.get("v0")
            assert type(caught.value.__cause__) is type(error)
            assert caught.value.key == "v0"
            kv.put("v2", 2)
            told = [watch.next(10) for _ in range(3)]
            assert [seen(change.value) for change in told] == ["bad", "1", "2"]
            mirror.wait_for(kv.put("v3", 3), 10)
            assert mirror["v3"] == 3
        for name, write in writings(kv, [failing]):
            with pytest.raises(BadValueError, match="cannot be packed") as caught:
                write()
            assert type(caught.value.__cause__) is type(error), name
            assert caught.value.packed is None
            assert (caught.value.key or "").endswith("k" if name != "queue" else "1")


async def test_other_requests_of_the_client_are_answered(server: ServerInProcess) -> None:
    failing = Failing(None)
    async with AsyncClient(server.endpoint, timeout=LIMIT, codec=failing.codec()) as kv:
        await kv.put_many({"bad": failing, "good": 1})
        failing.error = KeyError("x")
        asked = [kv.get("bad" if at % 2 else "good") for at in range(100)]
        got = await asyncio.gather(*asked, return_exceptions=True)
    assert got[::2] == [1] * 50
    assert {type(each) for each in got[1::2]} == {BadValueError}


def test_what_is_no_error_passes_through(server: ServerInProcess) -> None:
    failing = Failing(None)
    with Client(server.endpoint, codec=failing.codec()) as kv:
        kv.put("k", failing)
        failing.error = KeyboardInterrupt()  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            kv.get("k")
        with pytest.raises(KeyboardInterrupt):
            kv.put("k", failing)
        failing.error = None
        assert kv.get("k") == "well"


@pytest.mark.parametrize("data", ["text", None, bytearray(b"x")])
def test_a_codec_that_packs_no_bytes_has_failed(
    kind: Kind, server: ServerInProcess, data: Any
) -> None:
    codec = Codec(ValueType(9, Point, lambda _: data, bytes))
    named = pytest.raises(BadValueError, match=type(data).__name__)
    with kind(server.endpoint, codec=codec) as kv, named:
        kv.put("k", Point())


# --- What is built on reading


def test_a_mirror_raises_for_the_key_alone(kind: Kind, server: ServerInProcess) -> None:
    put_packed(server.endpoint, {"m/bad": BAD["a key twice"][0], "m/good": b"\x01"})
    told: list[Change] = []
    with kind(server.endpoint) as kv, kv.mirror("m/") as mirror:
        for _ in range(2):
            with pytest.raises(BadValueError, match="m/bad"):
                mirror["m/bad"]
            with pytest.raises(BadValueError, match="m/bad"):
                mirror.get("m/bad", 5)
        assert mirror["m/good"] == 1
        assert [*mirror] == ["m/bad", "m/good"]
        mirror.subscribe(told.append)
        rev = put_packed(server.endpoint, {"m/new": BAD["1 and true"][0]})
        mirror.wait_for(kv.put("m/bad", 2), 10)
        assert mirror["m/bad"] == 2
        assert mirror.rev > rev
        assert [type(change.value) for change in told] == [BadValueError, int]


def test_an_error_in_a_place_holds_no_body(server: ServerInProcess) -> None:
    """A traceback would keep all that the reply held, for as long as the error is kept."""
    failing = Failing(None)
    with Client(server.endpoint, codec=failing.codec()) as kv:
        kv.put("k", failing)
        failing.error = KeyError("x")
        error = kv.get_many(["k"])["k"]
        assert error.__traceback__ is None
        assert error.__cause__.__traceback__ is None


def test_a_pipeline_raises_unless_errors_are_wanted(kind: Kind, server: ServerInProcess) -> None:
    put_packed(server.endpoint, {"bad": BAD["a key twice"][0], "good": b"\x01"})
    with kind(server.endpoint) as kv:
        for number in (1, 20):
            pipe = kv.pipeline()
            for _ in range(number):
                pipe.get("bad")
                pipe.get("good")
            pipe.put("after", number)
            with pytest.raises(BadValueError, match="'bad'"):
                pipe.execute()
            assert pipe.results[1:-1:2] == [1] * number
            assert kv.get("after") == number
        pipe = kv.pipeline()
        pipe.get("bad")
        with pytest.raises(BadValueError, match="'bad'"):
            pipe.execute()


def test_a_job_that_cannot_be_decoded_is_told_once_and_stays(
    kind: Kind, server: ServerInProcess
) -> None:
    with kind(server.endpoint) as kv:
        jobs = kv.queue("jobs")
        for value in ("first", "bad", "last"):
            jobs.put(value)
        [_, bad, _] = [entry.key for entry in kv.scan("jobs/jobs/")]
        put_packed(server.endpoint, {bad: BAD["a key twice"][0]})

        taken = [jobs.take(0).value]
        with pytest.raises(BadValueError) as caught:
            jobs.take(0)
        taken.append(jobs.take(0).value)
        assert taken == ["first", "last"]
        assert jobs.take(0) is None
        assert caught.value.key == bad
        assert bad in kv
        assert bad.replace("jobs/jobs/", "jobs/taken/jobs/") not in kv
        with kind(server.endpoint) as other:
            with pytest.raises(BadValueError):
                other.queue("jobs").take(0)
            kv.put(bad, "repaired")
            assert other.queue("jobs").take(0).value == "repaired"


def test_what_a_cache_cannot_decode_is_computed_anew(server: ServerInProcess) -> None:
    with Client(server.endpoint) as kv:
        calls = []

        @kv.cache(prefix="c/")
        def twice(number: int) -> int:
            calls.append(number)
            return 2 * number

        assert twice(4) == 8
        [key] = [*kv.namespace("c/")]
        put_packed(server.endpoint, {f"c/{key}": BAD["a key twice"][0]})
        assert (twice(4), twice(4)) == (8, 8)
        assert calls == [4, 4]


def test_a_transaction_that_reads_what_it_cannot_decode_is_committed(
    kind: Kind, server: ServerInProcess
) -> None:
    put_packed(server.endpoint, {"bad": BAD["a key twice"][0]})
    with kind(server.endpoint) as kv:
        with kv.txn() as txn:
            txn.get("bad")
            txn.put("k", 1)
        assert isinstance(txn.results[0], BadValueError)
        assert txn.results[0].applied is None
        assert kv.get("k") == 1


# --- Values that stay packed

ODD = [
    Packed(b"\x81\x92\x01\x02\x03"),  # {[1, 2]: 3}
    Packed(b"\x82\x01\xa1a\xc3\xa1b"),  # {1: "a", true: "b"}
    Packed(b"\xd4\xff\x00"),  # A timestamp of one byte.
    Packed(b"\xcd\x00\x01"),  # 1, in more bytes than it takes.
    Packed(b"\xca\x3f\x80\x00\x00"),  # A float of 32 bits.
    Packed(b"\xa1\xff"),  # A str that is no UTF-8.
    Packed(b"\xc0"),
]


def test_values_pass_through_as_they_are_packed(kind: Kind, near: ServerInProcess) -> None:
    keys = [f"k{n}" for n in range(len(ODD))]
    entries = dict(zip(keys, ODD, strict=True))
    with kind(near.endpoint, codec=PACKED) as kv, kv.watch() as watch:
        for key, value in entries.items():
            kv.put(key, value)
        kv.put_many(entries)
        with kv.pipeline() as pipe:
            for key, value in entries.items():
                pipe.put(key, value)
        with kv.txn() as txn:
            for key, value in entries.items():
                txn.put(key, value, ttl=1000)
                txn.get(key)
            txn.incr("n", 5)

        assert [kv.get(key) for key in keys] == ODD
        assert kv.get_many(keys) == entries
        assert {entry.key: entry.value for entry in kv.scan("k")} == entries
        assert {entry.value for entry in kv.scan("k", values=False)} == {None}
        assert [*txn.results[1:-1:2], txn.results[-1]] == [*ODD, 5]
        with kv.pipeline() as pipe:
            for key in keys:
                pipe.get(key)
        assert pipe.results == ODD
        with kv.mirror("k") as mirror:
            assert mirror == entries
            assert {type(value) for value in mirror.values()} == {Packed}
        assert [kv.pop(key) for key in keys] == ODD
        told = [watch.next().value for _ in range(5 * len(ODD) + 1)]
        assert told == [*ODD * 4, Packed(b"\x05"), *[None] * len(ODD)]
        assert [change.value for change in kv.changes(0)] == told
        assert kv.incr("n") == 6


def test_a_value_that_is_not_packed_is_packed(kind: Kind, near: ServerInProcess) -> None:
    with kind(near.endpoint, codec=PACKED) as kv:
        kv.put("k", [1, None])
        assert kv.get("k") == msgpack.packb([1, None])


@pytest.mark.parametrize("packed", [b"", b"\x01\x02", b"\x92\x01", b"\xc1"])
def test_what_is_no_whole_value_is_not_sent(
    kind: Kind, near: ServerInProcess, packed: bytes
) -> None:
    value: Any = Packed(packed)
    with kind(near.endpoint, codec=PACKED) as kv:
        with pytest.raises(ValueError, match="whole"):
            kv.put("k", value)
        with pytest.raises(ValueError, match="whole"):
            kv.put_many({"a": 1, "k": value})
        assert kv.count() == 0


def test_a_view_with_gaps_has_no_bytes_to_store() -> None:
    gaps = memoryview(b"abcd")[::2]
    for value in (gaps, [gaps], (1, gaps)):
        with pytest.raises(TypeError, match="gaps: store bytes"):
            pack_request("PUT", 1, {"key": "k", "value": value}, PLAIN)
