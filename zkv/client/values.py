"""Values as msgpack: what is packed is what comes back, or it is refused.

Packing is done by msgpack with exact types, which costs nothing. A value that holds something else
(a tuple, a subclass of one of msgpack's types) is packed once more as these types, and then looked
at: as a dict it could have keys that are other keys, or none, when they come back.

Unpacking has each map made here, of its pairs: the arrays among its keys become tuples, and a map
that no dict can hold, since two keys are equal in Python, or one is a map, is an error.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from zkv.client.codec import PLAIN, Codec, Inexact, described
from zkv.client.errors import BadValueError
from zkv.defaults import MAX_LEVELS, TOO_DEEP

STR_ERRORS: Final = "surrogateescape"

FLAT: Final = frozenset({type(None), bool, int, float, str, bytes})
"""Types of values in which there are no others."""


def pack(value: Any, codec: Codec = PLAIN) -> bytes:
    """A value, packed.

    Raises:
        TypeError: it holds something that neither msgpack nor the codec has a type for, or that
            Python could not get back.
        ValueError: a str holds a surrogate, an int needs more than 64 bits, or it is nested deeper
            than msgpack packs.
        BadValueError: a function of the codec failed.
    """
    packed: bytes
    try:
        packed = msgpack.Packer(default=codec.exact, strict_types=True).pack(value)
    except Inexact:
        packed = _pack_inexact(value, codec)
    except UnicodeEncodeError:  # With surrogates, which takes twice the time for every str.
        packed = _pack_surrogates(value, codec)
    except ValueError as error:
        raise explained(error) from None
    return packed


def _pack_inexact(value: Any, codec: Codec, unicode_errors: str = "strict") -> bytes:
    """A value with tuples or subclasses, as which maps may have keys that cannot come back."""
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
    try:
        _unpack(packed, PLAIN)
    except _CannotHold as error:
        raise TypeError(f"cannot store a value that would not come back: {error}") from None
    return packed


def _pack_surrogates(value: Any, codec: Codec) -> bytes:
    """A value with surrogates, those of bytes that are no UTF-8. Raises ValueError for others."""
    try:
        return _pack_inexact(value, codec, STR_ERRORS)
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise ValueError(
            f"a str holds U+{code:04X}: surrogates are no characters, and cannot be stored"
        ) from None


def check_levels(packed: bytes, above: int) -> None:
    """Raise ValueError where a value is nested more deeply than the server takes.

    Args:
        packed: a request, or an array of the value.
        above: levels of arrays and maps around the value; 1 or more.
    """
    if len(packed) <= MAX_LEVELS:  # Each level takes a byte.
        return
    from zkv.nesting import may_be_deep, measure  # Rarely needed.

    if may_be_deep(packed) and measure(packed, 0)[1] > MAX_LEVELS + above:
        raise ValueError(f"a value {TOO_DEEP}")


def explained(error: ValueError) -> ValueError:
    """What msgpack raises where it packs, in the terms of a request."""
    return ValueError(f"a value {TOO_DEEP}") if "recursion limit" in str(error) else error


def unpack(packed: bytes, codec: Codec = PLAIN) -> Any:
    """The value that is packed, with tuples for the arrays that are keys of maps.

    Raises:
        BadValueError: Python cannot hold it, or a function of the codec failed.
    """
    try:
        return _unpack(packed, codec)
    except _CannotHold as error:
        reason, cause = str(error), None
    except BadValueError as error:
        reason, cause = error.reason, error.__cause__
    except Exception as error:  # Of msgpack; or of the codec's values, where they are keys.
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
    """A map as a dict. Raises BadValueError where the dict would lack something."""
    if type(pairs) is not list:  # From msgpack without C.
        pairs = list(pairs)
    try:
        made = dict(pairs)
    except TypeError:  # An array is a key, or a map.
        made = _with_tuples(pairs)
    if len(made) < len(pairs):
        raise _CannotHold(f"two keys of a map are equal in Python: {_repeated(pairs)}")
    return made


def _with_tuples(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    try:
        return {_as_key(key): value for key, value in pairs}
    except TypeError as error:
        raise _CannotHold(f"a key of a map cannot be one of a dict: {error}") from None


def _as_key(key: Any) -> Any:
    return tuple(map(_as_key, key)) if type(key) is list else key


def _repeated(pairs: list[tuple[Any, Any]]) -> str:
    """The second of two keys that are equal, for people."""
    seen = set()
    for key in [_as_key(key) for key, _ in pairs]:
        if key in seen:
            break
        seen.add(key)
    return f"{key!r:.60}"
