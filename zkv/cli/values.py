r"""Values between the command line and msgpack.

In: text, or JSON. Out: text and bin as they are, or JSON. msgpack holds more than JSON does; what
JSON lacks is shown as an object with one name that begins with a dollar sign:

    bin                                {"$bin": "<base64>"}
    ext                                {"$ext": [<type>, "<base64>"]}
    timestamp                          {"$time": "2026-01-31T12:00:00.000000000Z"}; outside of the
                                       years 1 to 9999 {"$time": "@<seconds>.<nanoseconds>"}
    float that is no finite number     {"$float": "NaN"}, "Infinity" or "-Infinity"
    map with a key that is no str, or that is there twice, or with one name only, that begins with
    a dollar sign                      {"$map": [[<key>, <value>], ...]}
    what cannot be taken apart, and what would make JSON of more than some 500 levels
                                       {"$msgpack": "<base64>"}

So no two values look the same in JSON, but for the widths of their ints and floats. A str that is
no UTF-8 has, in JSON, "\udcXX" in the place of a byte XX, and is read so too.

On the command line these forms are for reading: what comes in there is plain JSON, where such an
object is but an object. In a file that is imported they are read back (`from_json`).
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from itertools import repeat
from typing import Any, Final

import msgpack

from zkv.defaults import MAX_LEVELS
from zkv.reading import BadTextError, decode, parse_json, read_file

STR_ERRORS: Final = "surrogateescape"
"""How a str that is no UTF-8 is taken from msgpack, and packed again."""

MOST_LEVELS: Final = MAX_LEVELS + 10
"""Levels of JSON that are written: less than any Python reads. A value has no more, with what is
told around it, unless its maps take the form of several levels."""
PLAIN: Final = frozenset({str, int, bool, type(None)})
"""Types that JSON has as they are."""
NOT_FINITE: Final = {math.inf: "Infinity", -math.inf: "-Infinity"}


class Json(str):
    """A word that is JSON and not text: whoever typed it, in the shell, began it with a brace."""

    __slots__ = ()


def read_value(word: str, as_json: bool) -> Any:
    """What a VALUE on the command line stands for; ``-`` reads it from standard input, to its end.

    Text that is no UTF-8 becomes bytes. Raises ValueError for bad JSON, OSError for bad input.
    """
    if isinstance(word, Json) and not as_json:
        try:
            return _read_json(word.encode("utf-8", "surrogateescape"), "VALUE")
        except ValueError as error:
            raise ValueError(f"{error}; if it is text, put it in quotes") from None
    # Bytes that are no UTF-8 come as surrogates, whatever the locale; this gives them back.
    data = _read_input() if word == "-" else word.encode("utf-8", "surrogateescape")
    if as_json:
        return _read_json(data, "standard input" if word == "-" else "VALUE")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data


def read_json_file(name: str) -> Any:
    """The JSON value in a file; ``-`` is standard input. Raises ValueError and OSError.

    What begins with a brace is no name, but the JSON itself.
    """
    if name == "-":
        return _read_json(_read_input(), "standard input")
    if name.startswith("{"):
        return _read_json(name.encode("utf-8", "surrogateescape"), "the argument")
    try:
        data = read_file(name)
    except OSError as error:
        raise OSError(f"{name}: {error.strerror or error}") from error
    return _read_json(data, name)


def type_name(value: Any) -> str:
    """What the protocol calls the type of ``value``."""
    if isinstance(value, msgpack.Timestamp | msgpack.ExtType):  # An ExtType is a tuple.
        return "timestamp" if isinstance(value, msgpack.Timestamp) else "ext"
    return _TYPES[type(value)]


_TYPES: Final = {
    type(None): "nil", bool: "bool", int: "int", float: "float", str: "str", bytes: "bin",
    list: "array", dict: "map",
}  # fmt: skip

_encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class Pairs(list[tuple[Any, Any]]):
    """A map that a dict cannot hold: with a key that is a list or a map, or is there twice."""


def packed_to_json(packed: bytes) -> str:
    """The value that is packed in ``packed`` as JSON in one line, in the forms above."""
    try:
        return to_json(
            msgpack.unpackb(
                packed,
                strict_map_key=False,
                unicode_errors="surrogateescape",
                object_pairs_hook=_map,
            )
        )
    except (ValueError, TypeError, RecursionError):
        return json.dumps({"$msgpack": _base64(packed)})


def _map(pairs: list[tuple[Any, Any]]) -> dict[Any, Any] | Pairs:
    try:
        as_dict = dict(pairs)
    except TypeError:
        return Pairs(pairs)
    return as_dict if len(as_dict) == len(pairs) else Pairs(pairs)


def to_json(value: Any) -> str:
    """``value`` as JSON in one line, in the forms above."""
    text = _encode(_json_form(value, MOST_LEVELS))
    # What is left of surrogates cannot be printed. In JSON their escape means the same.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def from_json(text: str) -> Any:
    """The value that `to_json` wrote so. Raises BadTextError."""
    return parse_json(text, _finite, object_hook=_from_form)


def to_bytes(text: str) -> bytes:
    """A line of text as it is printed; a str that was no UTF-8 gives its bytes back."""
    return text.encode("utf-8", "surrogateescape") + b"\n"


def _read_input() -> bytes:
    if sys.stdin is None:
        raise OSError("standard input is closed")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise OSError(f"standard input: {error.strerror or error}") from error


def _read_json(data: bytes, source: str) -> Any:
    try:
        return parse_json(decode(data), _finite)
    except BadTextError as error:
        reason = str(error).removeprefix("it is no JSON: ")
        hint = ""
        if source == "VALUE" and re.fullmatch(rb"[\w .-]+", data):
            hint = f"; text in JSON has quotes: '\"{data.decode()}\"'"
        raise BadTextError(f"{source} is not JSON: {reason}{hint}") from None


def _finite(number: str) -> float:
    """``number`` as a float; one that JSON does not have, or a float cannot hold, is refused."""
    value = float(number)
    if not math.isfinite(value):
        raise BadTextError(f"it holds {number[:40]}, which is no finite number")
    return value


def _from_form(found: dict[str, Any]) -> Any:
    """What an object of JSON stands for: one of the forms above, or a map."""
    if len(found) != 1:
        return found
    ((name, content),) = found.items()
    if not name.startswith("$"):
        return found
    form = _FORMS.get(name)
    if form is None:
        raise BadTextError(
            f'{{"{name}": ...}} is none of the forms for what JSON lacks; as a map it is written '
            f'{{"$map": [["{name}", ...]]}}'
        )
    read, takes = form
    try:
        return read(content)
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError):
        raise BadTextError(f'{{"{name}": ...}} does not take that, but {takes}') from None


def _read_base64(text: str) -> bytes:
    import base64

    return base64.b64decode(text, validate=True)


def _read_packed(text: str) -> Any:
    return msgpack.unpackb(_read_base64(text), strict_map_key=False, unicode_errors=STR_ERRORS)


def _read_ext(parts: list[Any]) -> msgpack.ExtType:
    kind, data = parts
    return msgpack.ExtType(kind, _read_base64(data))


def _read_time(text: str) -> msgpack.Timestamp:
    from datetime import datetime

    second, _, nanoseconds = text.removesuffix("Z").rpartition(".")
    if text.startswith("@"):
        return msgpack.Timestamp(int(second[1:]), int(nanoseconds))
    whole = datetime.fromisoformat(f"{second}+00:00")
    return msgpack.Timestamp(round(whole.timestamp()), int(nanoseconds))


def _read_map(pairs: list[list[Any]]) -> dict[Any, Any]:
    found = dict(pairs)  # A key that is a list or a map is a TypeError.
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


_FORMS: Final[dict[str, tuple[Callable[[Any], Any], str]]] = {
    "$bin": (_read_base64, "base64"),
    "$ext": (_read_ext, "[TYPE, BASE64], the type from 0 to 127"),
    "$time": (_read_time, '"2026-01-31T12:00:00.000000000Z", or "@SECONDS.NANOSECONDS"'),
    "$float": (
        {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}.__getitem__,
        '"NaN", "Infinity" or "-Infinity"',
    ),
    "$map": (_read_map, "[[KEY, VALUE], ...], no key twice, and no list or map for a key"),
    "$msgpack": (_read_packed, "base64 of one msgpack value"),
}


def _json_form(value: Any, levels: int) -> Any:
    """``value`` with JSON's own types only, in about so many levels."""
    if type(value) in PLAIN:  # Most are, and long exports are made of them.
        return value
    match value:
        case list() | dict() if levels <= 0:
            return {"$msgpack": _base64(_pack(value))}
        case list() if type(value) is not Pairs:
            return list(map(_json_form, value, repeat(levels - 1)))
        case dict() if all(isinstance(key, str) for key in value) and not _is_form(value):
            forms = map(_json_form, value.values(), repeat(levels - 1))
            return dict(zip(value, forms, strict=True))
        case dict() | Pairs():
            pairs = value.items() if isinstance(value, dict) else value
            return {"$map": [list(map(_json_form, pair, repeat(levels - 3))) for pair in pairs]}
        case _:
            return _leaf_form(value)


def _pack(value: Any) -> bytes:
    """``value`` packed. Raises TypeError where it has maps that are no dict."""
    packed: bytes = msgpack.packb(value, strict_types=True, unicode_errors=STR_ERRORS)
    return packed


def _is_form(value: dict[str, Any]) -> bool:
    """Whether a map could be taken for one of the forms above."""
    return len(value) == 1 and next(iter(value)).startswith("$")


def _leaf_form(value: Any) -> Any:
    """`_json_form` of what holds no other values."""
    match value:
        case float() if not math.isfinite(value):
            return {"$float": NOT_FINITE.get(value, "NaN")}
        case bytes():
            return {"$bin": _base64(value)}
        case msgpack.ExtType():
            return {"$ext": [value.code, _base64(value.data)]}
        case msgpack.Timestamp():
            return {"$time": _time(value)}
        case _:
            return value


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode("ascii")


def _time(time: msgpack.Timestamp) -> str:
    from datetime import UTC, datetime, timedelta

    seconds, nanoseconds = divmod(time.to_unix_nano(), 1_000_000_000)
    try:
        second = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    except OverflowError:
        return f"@{seconds}.{nanoseconds:09}"
    return f"{second:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z"
