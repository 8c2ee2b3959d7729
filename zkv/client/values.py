"""Packs values as msgpack, and refuses values that could not be read back.

msgpack first packs a value with exact types, which costs nothing extra. If the value contains
anything else (a tuple, a subclass of one of msgpack's types), it is packed again as msgpack's types
and then checked: when it is read back, different keys of a dict could have become equal, or a key
could be one that no dict can have.

Unpacking makes each dict here, from pairs: arrays that are keys become tuples. A map that no dict
can hold, since two keys are equal in Python, or a key is a map, raises an error.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import msgpack

from zkv.client.codec import PLAIN, Codec, Inexact, described
from zkv.client.errors import BadValueError
from zkv.defaults import MAX_LEVELS, TOO_DEEP

STR_ERRORS: Final = "surrogateescape"

FLAT: Final = frozenset({type(None), bool, int, float, str, bytes})
"""Types that contain no other values."""


def pack(value: Any, codec: Codec = PLAIN) -> bytes:
    """Pack a value.

    Raises:
        TypeError: it contains an object that neither msgpack nor the codec has a type for, or that
            Python could not read back.
        ValueError: a str holds a surrogate, an int needs more than 64 bits, or the value is nested
            more deeply than msgpack packs.
        BadValueError: a function of the codec failed.
    """
    packed: bytes
    try:
        packed = msgpack.Packer(default=codec.exact, strict_types=True).pack(value)
    except Inexact:
        packed = _pack_inexact(value, codec)
    except UnicodeEncodeError:  # Allowing surrogates takes twice the time for every str.
        packed = _pack_surrogates(value, codec)
    except ValueError as error:
        raise explained(error) from None
    except BufferError as error:
        raise _unpackable(error) from None
    return packed


def _pack_inexact(value: Any, codec: Codec, unicode_errors: str = "strict") -> bytes:
    """Pack a value with tuples or subclasses, and check that its maps can be read back."""
    try:
        packed: bytes = msgpack.packb(
            value,
            default=codec.default,
            strict_types=codec.has_types,
            unicode_errors=unicode_errors,
        )
    except UnicodeEncodeError:
        if unicode_errors == STR_ERRORS:
            raise
        return _pack_surrogates(value, codec)
    except ValueError as error:
        raise explained(error) from None
    except BufferError as error:
        raise _unpackable(error) from None
    try:
        _unpack(packed, PLAIN)
    except _CannotHold as error:
        raise TypeError(f"cannot store a value that could not be read back: {error}") from None
    return packed


def _unpackable(error: BufferError) -> TypeError:
    """Return the error for an object whose bytes do not lie behind each other in memory."""
    return TypeError(f"cannot store an object whose memory has gaps: store bytes() of it; {error}")


def _pack_surrogates(value: Any, codec: Codec) -> bytes:
    """Pack a value with surrogates that stand for bytes. Raises ValueError for others."""
    try:
        return _pack_inexact(value, codec, STR_ERRORS)
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise ValueError(
            f"a str holds U+{code:04X}: surrogates are not characters, and cannot be stored"
        ) from None


def refuse_ext(code: int, _data: Any) -> Any:
    """Raise ValueError, as the ``ext_hook`` of a decoder that must not meet an ext."""
    raise ValueError(f"ext {code}")


decode_fast: Final = partial(msgpack.unpackb, strict_map_key=False, ext_hook=refuse_ext)
"""Decodes what `unpack` decodes, but loses a key of a map that equals another one in Python.

Raises an error for an ext, and for a str that is not UTF-8.
"""


def gives_bytes(value: Any, packed: bytes) -> bool:
    """Return True if a value packs to the same bytes. False for types that msgpack converts."""
    return bool(msgpack.Packer(strict_types=True).pack(value) == packed)


def check_levels(packed: bytes, above: int) -> None:
    """Raise ValueError if a value is nested more deeply than the server accepts.

    Args:
        packed: a request, or an array of the value.
        above: levels of arrays and maps around the value; 1 or more.
    """
    if len(packed) <= MAX_LEVELS:  # Each level takes at least a byte.
        return
    from zkv.nesting import may_be_deep, measure  # Rarely needed.

    if may_be_deep(packed) and measure(packed, 0)[1] > MAX_LEVELS + above:
        raise ValueError(f"a value {TOO_DEEP}")


def explained(error: ValueError) -> ValueError:
    """Convert an error of msgpack's packer to one about a value."""
    return ValueError(f"a value {TOO_DEEP}") if "recursion limit" in str(error) else error


def unpack(packed: bytes, codec: Codec = PLAIN) -> Any:
    """Unpack a value. Arrays that are keys of maps become tuples.

    Raises:
        BadValueError: Python cannot hold the value, or a function of the codec failed.
    """
    try:
        return _unpack(packed, codec)
    except _CannotHold as error:
        reason, cause = str(error), None
    except BadValueError as error:
        reason, cause = error.reason, error.__cause__
    except Exception as error:  # Of msgpack, or of hashing a value of the codec as a key.
        reason, cause = described(error), error
    raise BadValueError(reason, packed=bytes(packed)) from cause


class _CannotHold(Exception):
    """A map that no dict can hold."""


def _unpack(packed: bytes, codec: Codec) -> Any:
    return msgpack.unpackb(
        packed,
        strict_map_key=False,
        unicode_errors=STR_ERRORS,
        ext_hook=codec.ext_hook,
        object_pairs_hook=_as_dict,
    )


def _as_dict(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Convert a map to a dict. Raises _CannotHold if the dict would lose an item."""
    if type(pairs) is not list:  # The pure Python msgpack passes an iterator.
        pairs = list(pairs)
    try:
        made = dict(pairs)
    except TypeError:  # A key is an array or a map.
        made = _with_tuples(pairs)
    if len(made) < len(pairs):
        raise _CannotHold(f"two keys of a map are equal in Python: {_repeated(pairs)}")
    return made


def _with_tuples(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    try:
        return {_as_key(key): value for key, value in pairs}
    except TypeError as error:
        raise _CannotHold(f"a key of a map cannot be a key of a dict: {error}") from None


def _as_key(key: Any) -> Any:
    return tuple(map(_as_key, key)) if type(key) is list else key


def _repeated(pairs: list[tuple[Any, Any]]) -> str:
    """Return the second of two equal keys, for a message."""
    seen = set()
    for key in [_as_key(key) for key, _ in pairs]:
        if key in seen:
            break
        seen.add(key)
    return f"{key!r:.60}"
