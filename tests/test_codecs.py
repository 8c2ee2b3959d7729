"""`zkv.codecs`: values of more types, in a real store."""

from __future__ import annotations

import dataclasses
import datetime as dt
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import msgspec
import numpy
import pytest
from hypothesis import given, strategies
from msgpack import ExtType

import zkv
from zkv import codecs
from zkv.client.values import pack, unpack

STANDARD = codecs.standard()


@dataclasses.dataclass
class Reading:
    at: dt.datetime
    values: list[Decimal]
    count: int = dataclasses.field(default=0, init=False)


class Point(msgspec.Struct):
    x: int
    y: float = 0.5


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with zkv.Server() as server:
        yield server.endpoint


@given(
    strategies.recursive(
        strategies.datetimes(timezones=strategies.none() | strategies.just(dt.UTC))
        | strategies.dates()
        | strategies.times()
        | strategies.timedeltas()
        | strategies.decimals(allow_nan=False)
        | strategies.uuids(),
        lambda inner: strategies.lists(inner, max_size=3),
        max_leaves=5,
    )
)
def test_standard_types_come_back_equal(value: Any) -> None:
    read = unpack(pack(value, STANDARD), STANDARD)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "array",
    [
        numpy.arange(12, dtype=">i2").reshape(3, 4), numpy.zeros((0, 3)), numpy.array(1 + 2j),
        numpy.array(["2026-01-01"], "M8[D]"), numpy.array([(1, 2.5)], "i4,f8"),
        numpy.asfortranarray(numpy.eye(3)), numpy.float32(0.1), numpy.int64(7), numpy.bool_(True),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)  # fmt: skip
def test_arrays_and_numbers_of_numpy_come_back(array: Any) -> None:
    read = unpack(pack({"a": array}, STANDARD), STANDARD)["a"]
    assert type(read) is type(array)
    assert read.dtype == array.dtype
    assert read.shape == array.shape
    assert read.tobytes() == array.tobytes()


def test_objects_in_arrays_are_refused_and_never_unpickled() -> None:
    with pytest.raises(zkv.BadValueError, match="pickle"):
        pack(numpy.array([object()]), STANDARD)
    numpy.save(file := __import__("io").BytesIO(), numpy.array([{}]), allow_pickle=True)
    with pytest.raises(zkv.BadValueError, match="pickle"):
        unpack(pack(ExtType(7, file.getvalue())), STANDARD)


def test_types_of_ones_own(endpoint: str) -> None:
    codec = codecs.standard(codecs.dataclass(20, Reading, STANDARD), codecs.struct(21, Point))
    reading = Reading(dt.datetime(2026, 2, 28, tzinfo=dt.UTC), [Decimal("1.10")])
    with zkv.Client(endpoint, codec=codec) as kv, zkv.Client(endpoint) as plain:
        kv["own"] = [reading, Point(1), {"id": uuid.UUID(int=5)}]
        assert kv["own"] == [reading, Point(1), {"id": uuid.UUID(int=5)}]
        stored = plain["own"]
        assert [each.code for each in stored[:2]] == [20, 21]
        assert plain["own"][2] == {"id": ExtType(6, uuid.UUID(int=5).bytes)}
        assert unpack(stored[1].data) == {"x": 1, "y": 0.5}
        plain["own"] = ExtType(21, pack({"x": "text"}))
        with pytest.raises(zkv.BadValueError, match="Expected `int`"):
            kv["own"]
        plain["own"] = ExtType(20, pack({"unknown": 1}))
        with pytest.raises(zkv.BadValueError, match="unknown"):
            kv["own"]
    with pytest.raises(TypeError, match="not a dataclass"):
        codecs.dataclass(20, int)
    with pytest.raises(ValueError, match="own code"):
        codecs.standard(codecs.struct(5, Point))
