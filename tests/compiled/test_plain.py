"""C packs and unpacks for the client as Python does, and leaves nothing usual to it."""

from __future__ import annotations

from typing import Any, Final

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zkv import compiled
from zkv.client.errors import BadValueError
from zkv.client.messages import pack_request
from zkv.client.values import pack, unpack

pytestmark = pytest.mark.skipif(
    not compiled.COMPILED, reason="zkv was installed without a C compiler"
)

NUMBERS: Final = [0, 1, 127, 128, 255, 256, 2**16, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
NUMBERS_BELOW: Final = [-1, -32, -33, -128, -129, -(2**15) - 1, -(2**31), -(2**31) - 1, -(2**63)]
SIZES: Final = [0, 1, 15, 16, 24, 25, 31, 32, 255, 256, 1_023, 1_024, 65_535, 65_536]

FLAT: Final = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary()
)  # fmt: skip
USUAL: Final = st.recursive(
    FLAT,
    lambda inside: st.lists(inside) | st.dictionaries(FLAT, inside),
    max_leaves=20,
)


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def is_same(packed: bytes) -> bool:
    """True if C unpacks the bytes, and to what Python does; False if it leaves them to Python."""
    found = compiled.store.unpack_plain(packed)
    if found is None:
        return False
    assert repr(found) == repr(unpack(packed))  # The repr tells 1 from True, and 0.0 from -0.0.
    return True


@given(USUAL)
def test_usual_values_take_the_way_through_c_and_back(value: Any) -> None:
    packed = compiled.store.pack_plain("PUT", 7, {"key": "k", "value": value})
    assert packed == pack_request("PUT", 7, {"key": "k", "value": value})
    assert value is None or is_same(pack(value))
    assert is_same(packed)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_takes_that_way(size: int) -> None:
    each = [
        "x" * size,
        "é" * size,
        b"\xff" * size,
        list(range(size)),
        {str(i): i for i in range(size)},
    ]
    for value in [*each, {"k" * size: 1}, each]:
        assert compiled.store.pack_plain("PUT", 7, {"value": value}) is not None
        assert is_same(pack(value))


@pytest.mark.parametrize("number", NUMBERS + NUMBERS_BELOW)
def test_every_number_takes_that_way(number: int) -> None:
    packed = compiled.store.pack_plain("INCR", number, {})
    assert packed == pack_request("INCR", number, {})
    assert is_same(packed)


@pytest.mark.parametrize(
    "packed",
    [
        b"\x82\x01\xa1a\xc3\xa1b",  # 1 and True are equal in Python.
        b"\x82\xa1a\x01\xa1a\x01",
        b"\x81\x90\x01",
        b"\x81\x80\x01",
        b"\x91\xa1\xff",
        b"\x81\xa1\xff\x01",
        b"\xd4\x05x",
        b"\xd6\xff\0\0\0\x05",
        b"\xc1",
        b"\x01\x01",
        b"",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        pack(nested(65)),
    ],
)
def test_what_c_does_not_know_is_left_to_python(packed: bytes) -> None:
    assert not is_same(packed)


@pytest.mark.parametrize(
    "value",
    [(1,), {(1,): 1}, {"a": bytearray(b"x")}, 2**64, -(2**63) - 1, "\udcff", {"\ud800": 1},
     msgpack.ExtType(5, b""), [msgpack.Timestamp(1)], nested(65), type("Sub", (str,), {})("a"),
     {type("Sub", (int,), {})(1): 1}, {1, 2}, object()],
)  # fmt: skip
def test_values_that_c_does_not_know_are_left_to_python(value: Any) -> None:
    assert compiled.store.pack_plain("PUT", 7, {"value": value}) is None
    assert compiled.store.pack_plain("PUT", 7, {"value": [1, {"a": value}]}) is None


@example(b"\xd9", 0)
@given(USUAL.map(pack) | st.binary(), st.integers(0))
def test_whatever_is_received_is_unpacked_as_by_python_or_left_to_it(body: bytes, at: int) -> None:
    """Also if a byte is another one, or the end is missing."""
    place = at % (len(body) + 1)
    for packed in (body, body[:place], body[:place] + bytes([at % 256]) + body[place + 1 :]):
        try:
            unpack(packed)
        except BadValueError:
            assert not is_same(packed)
        else:
            is_same(packed)


def test_texts_are_told_from_all_else() -> None:
    assert compiled.store.are_texts(["a", "\udcff"])
    assert compiled.store.are_texts([])
    for other in (b"a", None, type("Sub", (str,), {})("a")):
        assert not compiled.store.are_texts(["a", other])
