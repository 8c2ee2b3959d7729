"""Codecs for types that programs often store: pass them to a client, and nothing else is needed.

Example::

    kv = zkv.Client(codec=zkv.codecs.standard())
    kv["run"] = {"at": datetime.now(UTC), "cost": Decimal("1.10"), "image": numpy.zeros((4, 4))}

Each is a `ValueType`, so choose among them, and add your own::

    codec = zkv.Codec(zkv.codecs.DATETIME, zkv.codecs.UUID, zkv.codecs.dataclass(20, Reading))

A value is an ext of msgpack, with a code from 1 to 19 for those here. Nothing is pickled, and
reading never runs code. Programs that share a store need the same codes. The bytes of an ext, for
other languages:

- 1, `datetime.datetime`; 2, `datetime.date`; 3, `datetime.time`: text as in ISO 8601.
- 4, `datetime.timedelta`: an array of msgpack, of days, seconds and microseconds.
- 5, `decimal.Decimal`: its digits as text.
- 6, `uuid.UUID`: its 16 bytes.
- 7, ``numpy.ndarray``; 8, ``numpy.generic``, a number of numpy: the format of ``numpy.save``.

A dataclass or a Struct of msgspec is packed as a map of its fields, and a value of a field may be
any of the codec's types.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import io
import uuid
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgpack
import msgspec

from zkv.client.codec import Codec, ValueType
from zkv.client.values import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy

T = TypeVar("T")


def _as_text(code: int, kind: type, write: Callable[[Any], str], read: Callable[[str], Any]) -> Any:
    return ValueType(code, kind, lambda value: write(value).encode(), lambda b: read(b.decode()))


def _pack_duration(value: datetime.timedelta) -> bytes:
    packed: bytes = msgpack.packb([value.days, value.seconds, value.microseconds])
    return packed


DATETIME: Final[ValueType] = _as_text(
    1, datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat
)
"""A moment, with its offset to UTC if it has one; a time zone's name is lost."""
DATE: Final[ValueType] = _as_text(
    2, datetime.date, datetime.date.isoformat, datetime.date.fromisoformat
)
TIME: Final[ValueType] = _as_text(
    3, datetime.time, datetime.time.isoformat, datetime.time.fromisoformat
)
TIMEDELTA: Final = ValueType(
    4, datetime.timedelta, _pack_duration, lambda b: datetime.timedelta(*msgpack.unpackb(b))
)
DECIMAL: Final[ValueType] = _as_text(5, decimal.Decimal, str, decimal.Decimal)
UUID: Final = ValueType(6, uuid.UUID, lambda value: value.bytes, lambda b: uuid.UUID(bytes=b))


def numpy_types() -> tuple[ValueType, ValueType]:
    """Return the types for arrays and numbers of numpy, which has to be installed.

    Arrays keep dtype, shape and order; those of Python objects are refused.
    """
    import numpy

    def write(value: numpy.ndarray | numpy.generic) -> bytes:
        file = io.BytesIO()
        numpy.save(file, value, allow_pickle=False)
        return file.getvalue()

    def read(data: bytes) -> Any:
        return numpy.load(io.BytesIO(data), allow_pickle=False)

    return (
        ValueType(7, numpy.ndarray, write, read),
        ValueType(8, numpy.generic, write, lambda data: read(data)[()]),
    )


def dataclass(code: int, kind: type, codec: Codec | None = None) -> ValueType:
    """Return the type for a dataclass. Fields are given to its constructor when it is read.

    Args:
        code: of the ext, 20 to 127 for types of your own.
        kind: the dataclass.
        codec: for the values of its fields; None = msgpack's types.

    Raises:
        TypeError: it is not a dataclass.
    """
    if not dataclasses.is_dataclass(kind):
        raise TypeError(f"{kind!r} is not a dataclass")
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    inner = codec or Codec()
    return ValueType(
        code,
        kind,
        lambda value: pack({name: getattr(value, name) for name in names}, inner),
        lambda data: kind(**unpack(data, inner)),
    )


def struct(code: int, kind: type[msgspec.Struct]) -> ValueType:
    """Return the type for a Struct of msgspec, with msgspec's own conversions and checks.

    Args:
        code: of the ext, 20 to 127 for types of your own.
        kind: the Struct.
    """
    return ValueType(code, kind, msgspec.msgpack.encode, msgspec.msgpack.Decoder(kind).decode)


def standard(*more: ValueType) -> Codec:
    """Return a codec of all types here, those of numpy if it is installed, and of ``more``."""
    try:
        arrays = numpy_types()
    except ImportError:
        arrays = ()  # type: ignore[assignment]
    return Codec(DATETIME, DATE, TIME, TIMEDELTA, DECIMAL, UUID, *arrays, *more)
