r"""The text form of values: JSON, and tagged objects for what JSON lacks.

Every command prints values in this form, and every command that takes JSON reads it:

    bin                                {"$bin": "<base64>"}
    ext                                {"$ext": [<type>, "<base64>"]}
    timestamp                          {"$time": "2026-01-31T12:00:00.000000000Z"}; outside the
                                       years 1 to 9999 {"$time": "@<seconds>.<nanoseconds>"}
    float that is not finite           {"$float": "NaN"}, "Infinity" or "-Infinity"
    map that is not a JSON object      {"$map": [[<key>, <value>], ...]}
    value that is nested too deeply    {"$msgpack": "<base64 of the packed value>"}

A map is not a JSON object if a key is not a str or occurs twice, or if its only key begins with a
dollar sign: such an object is a tag. A malformed timestamp is written as an ext of type -1. A byte
of a str that is not valid UTF-8 is written "\udcXX".

Strategy: text and packed msgpack are converted directly into each other, since Python objects could
not hold every value. Most values are plain JSON, which the C code of msgpack and json converts.
That code refuses all other values: a loop over the packed bytes writes them, and a loop over the
parsed JSON packs them.

Invariants:

- `write` returns one line, and `read` returns the same value for it. Widths are not part of a
  value: ints, sizes and timestamps become as short as possible, floats get 64 bits, and a NaN loses
  its sign and payload.
- Two values with the same text differ only in widths. No map has the text of a tag.
- `read` and `write` need only a few Python stack frames, however deeply a value is nested.
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
"""The maximum levels of a text. With the levels of the line around it, they are fewer than any
supported Python reads."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
SECOND_NS: Final = 1_000_000_000

encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False).encode
"""Raises TypeError or ValueError for values without JSON, such as bytes and nan."""


def write(packed: bytes) -> str:
    """Return the text of a packed value."""
    try:
        return printable(encode(plain(packed)))
    except (ValueError, TypeError, RecursionError):
        return _write_tagged(packed)


def plain(packed: bytes) -> Any:
    """Unpack a value to encode it as JSON. If it needs a tag, this or the encoder raises an error.

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
    r"""Return JSON that UTF-8 can encode: a surrogate becomes ``\udcXX``, its escape in JSON."""
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
        begin: the offset of its content.
        size: of a scalar, the bytes of its content (of an ext, including the type); of a
            container, the number of its values, including keys.
    """

    kind: str
    begin: int
    size: int


def head_at(packed: bytes, at: int) -> Head:
    """Read the head of the value at ``at``. Raises ValueError if there is no whole value."""
    kind, skipped, width, size = _HEADS.get(packed[at] if at < len(packed) else 0xC1, _NO_HEAD)
    size_at = at + skipped
    begin = size_at + width
    if width:
        size += int.from_bytes(packed[size_at:begin]) * (2 if kind == "map" else 1)
    if not kind or begin + size > len(packed):  # Each value in a container takes at least a byte.
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
"""First byte -> kind; the number of bytes in the head before the size; the number of bytes of the
size; the number to add to the size."""


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
        """Return the text. Raises ValueError unless it is one whole value that is not too deep."""
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
        """Write the scalar at ``at``, or begin the container there. Returns the next offset."""
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
        size: the number of its values.
        out: the text so far; the array's text is appended.
    """

    def __init__(self, size: int, out: list[str]) -> None:
        self.left = size
        self.levels_inside = 0
        self._separator = ""
        out.append("[")

    def before_item(self, out: list[str], _packed: bytes, _at: int) -> None:
        """Prepare to write an item."""
        self.left -= 1
        out.append(self._separator)
        self._separator = ", "

    def end(self, out: list[str]) -> int:
        """End the text of the array. Returns the number of its levels."""
        out.append("]")
        return self.levels_inside + 1


class _Map(_Array):
    """A map whose keys and values are being written.

    Its punctuation depends on its keys: they must be strs, and each different. This is known only
    at the end, so until then the text has gaps in place of the punctuation.
    """

    def __init__(self, size: int, out: list[str]) -> None:
        super().__init__(size, out)
        self._size = size
        self._names: set[bytes] = set()
        self._gaps = [len(out) - 1]
        """The places of the gaps: before the first key, then after each key and each value."""

    def before_item(self, out: list[str], packed: bytes, at: int) -> None:
        """Prepare to write a key or a value."""
        if self.left < self._size:
            self._gaps.append(len(out))
            out.append("")
        if self.left % 2 == 0:
            kind, begin, size = head_at(packed, at)
            if kind == "str":
                self._names.add(packed[begin : begin + size])
        self.left -= 1

    def end(self, out: list[str]) -> int:
        """Fill the gaps in the text. Returns the number of its levels."""
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
    """Decode the content of a str. A byte that is not UTF-8 becomes a surrogate."""
    return content.decode("utf-8", "surrogateescape")


def _write_ext(content: bytes) -> str:
    time = timestamp_of(content)
    if time is not None:
        return f'{{"$time": "{_write_time(*time)}"}}'
    code = int.from_bytes(content[:1], signed=True)
    return f'{{"$ext": [{code}, "{_base64(content[1:])}"]}}'


def timestamp_of(content: bytes) -> tuple[int, int] | None:
    """Return seconds and nanoseconds of the timestamp in an ext; None if it is not a timestamp."""
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
