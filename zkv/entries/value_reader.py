"""Converts text to packed values. `zkv.entries.value_writer` describes the text form.

Strategy: most text has no tag, so the C code of json and msgpack parses and packs it. Otherwise, or
if that code refuses a value, a loop packs the parsed JSON value by value. Only the loop knows the
place of a value, which its errors name.
"""

from __future__ import annotations

import json
import math
import re
from binascii import a2b_base64
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import msgpack

from zkv.client.slicing import is_one_value
from zkv.client.values import pack
from zkv.defaults import TOO_DEEP
from zkv.entries.value_writer import EPOCH, MAX_JSON_LEVELS, encode
from zkv.reading import BadTextError, parse_json


def read(text: str) -> bytes:
    """Return the packed value of a text. Raises BadTextError if the text is wrong."""
    return pack_parsed(parse(text), text)


def parse(text: str) -> Any:
    """Parse JSON; tags stay JSON objects. Raises BadTextError if it is malformed."""
    return parse_json(text, _decode)


def _finite(number: str) -> float:
    """Convert a JSON number. Raises BadTextError if a float cannot hold it, and for NaN."""
    value = float(number)
    if not math.isfinite(value):
        hint = f'; as a value it is {{"$float": "{number}"}}' if number in FLOATS else ""
        raise BadTextError(f"it holds {number[:40]}, which is not a finite number{hint}")
    return value


_decode: Final = json.JSONDecoder(parse_float=_finite, parse_constant=_finite).decode


def pack_parsed(value: Any, text: str, *place: str) -> bytes:
    """Pack a part of what `parse` returned.

    Args:
        value: the part.
        text: the whole JSON.
        *place: the names that lead to the part.

    Raises:
        BadTextError: for instance, a tag has wrong content, or an int has more than 64 bits.
    """
    if not _LOOKS_TAGGED(text):
        try:
            return _packer.pack(value)
        except (ValueError, OverflowError):
            pass  # The packer below finds the place.
    return _Packer(place).packed(value)


_LOOKS_TAGGED: Final = re.compile(r'\{\s*"(?:\$|\\u0024)').search
"""Finds an object whose first name begins with a dollar sign, such as each tag."""


class _Packer:
    """Packs one parsed value in one pass, with a stack of the containers around it.

    Args:
        place: of the value.
    """

    def __init__(self, place: tuple[str, ...]) -> None:
        self._out: list[bytes] = []
        self._place: list[Place] = [*place]
        self._open: list[Iterator[tuple[Place, Any]]] = []
        """The items of each container that are still to be packed, with their places in it."""

    def packed(self, value: Any) -> bytes:
        """Return the packed value. Raises BadTextError if a part is wrong."""
        self._begin(value)
        while self._open:
            place, item = next(self._open[-1], (None, _END))
            if item is _END:
                self._open.pop()
                self._place.pop()
            else:
                self._place[-1] = place
                self._begin(item)
        return b"".join(self._out)

    def _begin(self, value: Any) -> None:
        """Pack a scalar, or begin a container."""
        if type(value) is list:
            self._out.append(_packer.pack_array_header(len(value)))
            self._go_into(enumerate(value))
        elif type(value) is not dict:
            self._out.append(self._scalar(value))
        elif not _is_tag(value):
            self._out.append(_packer.pack_map_header(len(value)))
            self._go_into(self._entries(value))
        else:
            ((name, content),) = value.items()
            self._begin_tag(name, content)

    def _go_into(self, items: Iterator[tuple[Place, Any]]) -> None:
        if len(self._open) == MAX_JSON_LEVELS:
            raise BadTextError(f"it {TOO_DEEP}")
        self._open.append(items)
        self._place.append(None)

    def _entries(self, value: dict[str, Any]) -> Iterator[tuple[Place, Any]]:
        for name, item in value.items():
            self._place[-1] = name
            self._out.append(self._scalar(name))
            yield name, item

    def _begin_tag(self, name: str, content: Any) -> None:
        tag = TAGS.get(name)
        if tag is None:
            raise self._error(
                f'{{"{name[:40]}": ...}} is not a tag, which are {", ".join(TAGS)}; '
                f'a map with this one key is {{"$map": [["{name[:40]}", ...]]}}'
            )
        try:
            self._out.append(tag.pack(content))
        except (ValueError, TypeError, KeyError):
            raise self._error(f'{{"{name}": ...}} takes {tag.takes}') from None
        if name == "$map":
            self._go_into(_keys_and_values(content))

    def _scalar(self, value: Any) -> bytes:
        try:
            return pack(value)
        except (ValueError, OverflowError) as error:
            raise self._error(str(error)) from None

    def _error(self, message: str) -> BadTextError:
        """Make an error with the place of the value that is being packed, as a path for jq."""
        steps = [step for place in self._place for step in _steps(place)]
        where = "".join(map(_step, steps))
        return BadTextError(f"at {where}: {message}" if where else message)


_packer: Final = msgpack.Packer()
_END: Final = object()


def _is_tag(value: dict[str, Any]) -> bool:
    return len(value) == 1 and next(iter(value)).startswith("$")


def _keys_and_values(pairs: list[list[Any]]) -> Iterator[tuple[Place, Any]]:
    for index, (key, value) in enumerate(pairs):
        yield ("$map", index, 0), key
        yield ("$map", index, 1), value


Place = str | int | tuple[str, int, int] | None
"""The place of an item in a container: its name, its index, or several of these, or None."""


def _steps(place: Place) -> tuple[str | int, ...]:
    if place is None:
        return ()
    return place if isinstance(place, tuple) else (place,)


def _step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step if step.isidentifier() else encode(step[:40])}"


class Tag(NamedTuple):
    """One of the tags.

    Args:
        takes: the content that it must have, for messages.
        pack: packs the content; for `$map`, only the head. Raises ValueError, TypeError or
            KeyError if the content is wrong.
    """

    takes: str
    pack: Callable[[Any], bytes]


def _read_ext(content: list[Any]) -> bytes:
    code, data = content
    if type(code) is not int or not -128 <= code <= 127:
        raise ValueError("not an ext type")
    return _pack_ext(code, a2b_base64(data, strict_mode=True))


def _read_time(text: str) -> bytes:
    if found := _SECONDS.fullmatch(text):
        return _pack_time(int(found[1]), int(found[2]))
    found = _DATE.fullmatch(text)
    if found is None:
        raise ValueError("not a time")
    whole = datetime.fromisoformat(f"{found[1].zfill(19)}+00:00")
    return _pack_time((whole - EPOCH) // timedelta(seconds=1), int((found[2] or "").ljust(9, "0")))


_SECONDS: Final = re.compile(r"@(-?\d{1,19})\.(\d{9})", re.ASCII)
_DATE: Final = re.compile(r"(\d{1,4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z", re.ASCII)


def _pack_time(seconds: int, nanoseconds: int) -> bytes:
    """A timestamp in the shortest of its three forms. Raises ValueError beyond 64 bits."""
    if not -(2**63) <= seconds < 2**63:
        raise ValueError("more than 64 bits of seconds")
    if seconds >> 34:
        data = nanoseconds.to_bytes(4) + seconds.to_bytes(8, signed=True)
    else:
        both = nanoseconds << 34 | seconds
        data = both.to_bytes(8 if both >> 32 else 4)
    return _pack_ext(-1, data)


def _pack_ext(code: int, data: bytes) -> bytes:
    """An ext. msgpack packs no type below 0 but that of timestamps that are well-formed."""
    packed = bytearray(pack(msgpack.ExtType(0, data)))
    packed[-len(data) - 1] = code & 0xFF
    return bytes(packed)


def _read_map(pairs: list[Any]) -> bytes:
    if type(pairs) is not list or any(type(pair) is not list or len(pair) != 2 for pair in pairs):
        raise ValueError("not a list of pairs")
    return _packer.pack_map_header(len(pairs))


def _read_packed(text: str) -> bytes:
    packed = a2b_base64(text, strict_mode=True)
    if not is_one_value(packed):
        raise ValueError("not one value")
    return packed


FLOATS: Final = {name: pack(float(name)) for name in ("NaN", "Infinity", "-Infinity")}

TAGS: Final = {
    "$bin": Tag("base64", lambda text: pack(a2b_base64(text, strict_mode=True))),
    "$ext": Tag("[TYPE, BASE64], with a type from -128 to 127", _read_ext),
    "$time": Tag('"2026-01-31T12:00:00.000000000Z", or "@SECONDS.NANOSECONDS"', _read_time),
    "$float": Tag('"NaN", "Infinity" or "-Infinity"', FLOATS.__getitem__),
    "$map": Tag("[[KEY, VALUE], ...]", _read_map),
    "$msgpack": Tag("base64 of one msgpack value", _read_packed),
}
"""The tags, by name."""
