r"""The text form of values: JSON, and tagged objects for what JSON lacks.

Every command prints values in this form, and every command that takes JSON reads it:

    bin                                {"$bin": "<base64>"}
    ext                                {"$ext": [<type>, "<base64>"]}
    timestamp                          {"$time": "2026-01-31T12:00:00.000000000Z"}; outside the
                                       years 1 to 9999 {"$time": "@<seconds>.<nanoseconds>"}
    float that is not finite           {"$float": "NaN"}, "Infinity" or "-Infinity"
    map that is not a JSON object      {"$map": [[<key>, <value>], ...]}
    value that is nested too deeply    {"$msgpack": "<base64 of the packed value>"}

A map is not a JSON object if a key is not a str or occurs twice, or if it has one key only and that
begins with a dollar sign: such an object is a tag. A timestamp whose bytes are malformed is an ext
of type -1. A byte of a str that is not valid UTF-8 is written "\udcXX".

Strategy: text and packed msgpack become each other without an object between them that could not
hold the value. Most values are plain JSON, and are translated by the C code of msgpack and json.
That code refuses all others: a loop over the packed bytes writes them, and a loop over the parsed
JSON packs them.

Invariants:

- `write` writes one line, and `read` returns the same value for it. Widths are not part of a value:
  ints, sizes and timestamps become as short as possible, floats get 64 bits, and a NaN loses its
  sign and payload.
- Two values with the same text differ in widths only. No map has the text of a tag.
- `read` and `write` need a few of Python's stack frames, however deep a value is.
"""

from __future__ import annotations

import json
import math
from binascii import b2a_base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Any, Final, NamedTuple

import msgpack

from zkv.defaults import MAX_LEVELS

MAX_JSON_LEVELS: Final = MAX_LEVELS + 10
"""Levels of a text: fewer than any supported Python reads, with those of the line around it."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
SECOND_NS: Final = 1_000_000_000

encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False).encode
"""Raises TypeError or ValueError for values without JSON, such as bytes and nan."""


def write(packed: bytes) -> str:
    """The text of a packed value."""
    try:
        return printable(encode(plain(packed)))
    except (ValueError, TypeError, RecursionError):
        return _write_tagged(packed)


def plain(packed: bytes) -> Any:
    """A value to be encoded as JSON. This or JSON's encoder refuses one that needs a tag.

    Raises:
        ValueError: a map looks like a tag or has a key twice, or the value cannot be unpacked.
        TypeError: the value holds an ext.
    """
    return msgpack.unpackb(packed, object_pairs_hook=_object, ext_hook=_refuse_ext)


def _object(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs) or (len(found) == 1 and pairs[0][0].startswith("$")):
        raise ValueError("this map is not a JSON object")
    return found


def _refuse_ext(code: int, _data: bytes) -> Any:
    raise TypeError(f"JSON has no ext {code}")


def printable(text: str) -> str:
    r"""JSON that UTF-8 can encode: a surrogate becomes ``\udcXX``, which JSON reads as the same."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _write_tagged(packed: bytes) -> str:
    try:
        return printable(_Writer(packed).text())
    except ValueError:
        return _tag("$msgpack", packed)


class Head(NamedTuple):
    """The first bytes of a packed value.

    Args:
        kind: its type: "nil", "false", "true", "uint", "int", "float", "str", "bin", "ext",
            "array" or "map".
        begin: where its content begins.
        size: bytes of the content of a scalar, in an ext with the type; of a container, how many
            values it has, keys included.
    """

    kind: str
    begin: int
    size: int


def head_at(packed: bytes, at: int) -> Head:
    """The head of the value at ``at``. Raises ValueError if no whole value is there."""
    kind, skipped, width, size = _HEADS.get(packed[at] if at < len(packed) else 0xC1, _NO_HEAD)
    size_at = at + skipped
    begin = size_at + width
    if width:
        size += int.from_bytes(packed[size_at:begin]) * (2 if kind == "map" else 1)
    if not kind or begin + size > len(packed):  # Each value in a container takes a byte at least.
        raise ValueError("this is not one whole msgpack value")
    return Head(kind, begin, size)


_NO_HEAD: Final = ("", 0, 0, 0)
_HEADS: Final[dict[int, tuple[str, int, int, int]]] = {
    **dict.fromkeys(range(0x80), ("uint", 0, 0, 1)),
    **{0x80 + count: ("map", 1, 0, 2 * count) for count in range(16)},
    **{0x90 + count: ("array", 1, 0, count) for count in range(16)},
    **{0xA0 + size: ("str", 1, 0, size) for size in range(32)},
    0xC0: ("nil", 1, 0, 0), 0xC2: ("false", 1, 0, 0), 0xC3: ("true", 1, 0, 0),
    **{0xC4 + n: ("bin", 1, 1 << n, 0) for n in range(3)},
    **{0xC7 + n: ("ext", 1, 1 << n, 1) for n in range(3)},
    **{0xCA + n: ("float", 1, 0, 4 << n) for n in range(2)},
    **{0xCC + n: ("uint", 1, 0, 1 << n) for n in range(4)},
    **{0xD0 + n: ("int", 1, 0, 1 << n) for n in range(4)},
    **{0xD4 + n: ("ext", 1, 0, 1 + (1 << n)) for n in range(5)},
    **{0xD9 + n: ("str", 1, 1 << n, 0) for n in range(3)},
    **{0xDC + n: ("array", 1, 2 << n, 0) for n in range(2)},
    **{0xDE + n: ("map", 1, 2 << n, 0) for n in range(2)},
    **dict.fromkeys(range(0xE0, 0x100), ("int", 0, 0, 1)),
}  # fmt: skip
"""First byte -> kind; how many bytes of the head are before the size; bytes of the size; what to
add to it."""


class _Writer:
    """Writes one value in one pass over its bytes, with a stack of the containers around it.

    Args:
        packed: the value.
    """

    def __init__(self, packed: bytes) -> None:
        self._packed = packed
        self._out: list[str] = []
        self._open: list[_Array] = []

    def text(self) -> str:
        """The text. Raises ValueError if there is not one whole value, or it is too deep."""
        at = self._begin(0)
        while self._open:
            container = self._open[-1]
            if container.left:
                container.before_item(self._out, self._packed, at)
                at = self._begin(at)
            else:
                self._end()
        if at != len(self._packed):
            raise ValueError("this is more than one msgpack value")
        return "".join(self._out)

    def _begin(self, at: int) -> int:
        """Write the scalar at ``at``, or begin the container there; returns where to go on."""
        kind, begin, size = head_at(self._packed, at)
        container = _CONTAINERS.get(kind)
        if container is None:
            end = begin + size
            self._out.append(_SCALARS[kind](self._packed[begin:end]))
            return end
        if len(self._open) == MAX_JSON_LEVELS:
            raise ValueError("the text has too many levels")
        self._open.append(container(size, self._out))
        return begin

    def _end(self) -> None:
        levels = self._open.pop().end(self._out)
        if levels > MAX_JSON_LEVELS:
            raise ValueError("the text has too many levels")
        if self._open:
            self._open[-1].levels_inside = max(self._open[-1].levels_inside, levels)


class _Array:
    """An array whose items are being written.

    Args:
        size: how many values are in it.
        out: where its text begins.
    """

    def __init__(self, size: int, out: list[str]) -> None:
        self.left = size
        self.levels_inside = 0
        self._separator = ""
        out.append("[")

    def before_item(self, out: list[str], _packed: bytes, _at: int) -> None:
        """An item is about to be written."""
        self.left -= 1
        out.append(self._separator)
        self._separator = ", "

    def end(self, out: list[str]) -> int:
        """All items are written; returns how many levels the text has."""
        out.append("]")
        return self.levels_inside + 1


class _Map(_Array):
    """A map whose keys and values are being written.

    Only at the end is it known whether its keys are different strs, and so what has to stand around
    them: until then, the text has gaps there.
    """

    def __init__(self, size: int, out: list[str]) -> None:
        super().__init__(size, out)
        self._size = size
        self._names: set[bytes] = set()
        self._gaps = [len(out) - 1]
        """Where in the text: before the first key, and then after each key and each value."""

    def before_item(self, out: list[str], packed: bytes, at: int) -> None:
        """A key or a value is about to be written."""
        if self.left < self._size:
            self._gaps.append(len(out))
            out.append("")
        if self.left % 2 == 0:
            kind, begin, size = head_at(packed, at)
            if kind == "str":
                self._names.add(packed[begin : begin + size])
        self.left -= 1

    def end(self, out: list[str]) -> int:
        """All keys and values are written; returns how many levels the text has."""
        is_object = self._is_object()
        opening, colon, comma, closing = _OBJECT if is_object else _PAIRS
        for gap in self._gaps[1::2]:
            out[gap] = colon
        for gap in self._gaps[2::2]:
            out[gap] = comma
        out[self._gaps[0]] = opening
        out.append(closing)
        return self.levels_inside + (1 if is_object else 3)

    def _is_object(self) -> bool:
        if 2 * len(self._names) != self._size:
            return False
        return self._size != 2 or not next(iter(self._names)).startswith(b"$")


_OBJECT: Final = ("{", ": ", ", ", "}")
_PAIRS: Final = ('{"$map": [[', ", ", "], [", "]]}")
_CONTAINERS: Final = {"array": _Array, "map": _Map}


def _tag(name: str, data: bytes) -> str:
    return f'{{"{name}": "{_base64(data)}"}}'


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")


def _write_float(content: bytes) -> str:
    (number,) = _FLOATS[len(content)].unpack(content)
    if math.isfinite(number):
        return float.__repr__(number)
    name = "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    return f'{{"$float": "{name}"}}'


_FLOATS: Final = {4: Struct(">f"), 8: Struct(">d")}


def text_of(content: bytes) -> str:
    """The content of a str. A byte that is not UTF-8 becomes a surrogate."""
    return content.decode("utf-8", "surrogateescape")


def _write_ext(content: bytes) -> str:
    time = timestamp_of(content)
    if time is not None:
        return f'{{"$time": "{_write_time(*time)}"}}'
    code = int.from_bytes(content[:1], signed=True)
    return f'{{"$ext": [{code}, "{_base64(content[1:])}"]}}'


def timestamp_of(content: bytes) -> tuple[int, int] | None:
    """Seconds and nanoseconds of the timestamp in an ext; None if it is not a timestamp."""
    match content[0], len(content) - 1:
        case 0xFF, 4:
            seconds, nanoseconds = int.from_bytes(content[1:]), 0
        case 0xFF, 8:
            nanoseconds, seconds = divmod(int.from_bytes(content[1:]), 1 << 34)
        case 0xFF, 12:
            nanoseconds = int.from_bytes(content[1:5])
            seconds = int.from_bytes(content[5:], signed=True)
        case _:
            return None
    return (seconds, nanoseconds) if nanoseconds < SECOND_NS else None


def _write_time(seconds: int, nanoseconds: int) -> str:
    try:
        whole = EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        return f"@{seconds}.{nanoseconds:09}"
    return f"{whole.replace(tzinfo=None).isoformat()}.{nanoseconds:09}Z"


_SCALARS: Final[dict[str, Callable[[bytes], str]]] = {
    "nil": lambda content: "null",
    "false": lambda content: "false",
    "true": lambda content: "true",
    "uint": lambda content: str(int.from_bytes(content)),
    "int": lambda content: str(int.from_bytes(content, signed=True)),
    "float": _write_float,
    "str": lambda content: encode(text_of(content)),
    "bin": lambda content: _tag("$bin", content),
    "ext": _write_ext,
}
