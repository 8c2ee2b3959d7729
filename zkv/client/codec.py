"""Values of types that msgpack does not know.

What msgpack knows goes through as it is, and without a codec that is all that may be stored:
``None``, ``bool``, ``int`` of 64 bits, ``float``, ``str``, ``bytes``, ``list`` (a tuple comes back
as one), ``dict``, ``msgpack.ExtType`` and ``msgpack.Timestamp``. Anything else is a TypeError
before something is sent: what cannot come back as it was is not stored.

A codec adds types, wherever in a value they occur. Each travels as a msgpack ext of a type code of
its own, so that clients in other languages can tell it, and clients without the codec get a
``msgpack.ExtType``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from msgpack import ExtType

from zkv import checks


class ValueType(NamedTuple):
    """How one type is stored.

    Args:
        code: of the msgpack ext, 0 to 127; the same for all who share the store.
        type: values of it, and of its subclasses, are packed by this.
        pack: value -> bytes.
        unpack: these bytes -> value.
    """

    code: int
    type: type
    pack: Callable[[Any], bytes]
    unpack: Callable[[bytes], Any]


class IntTooLargeError(OverflowError, ValueError):
    """An int has more than 64 bits."""


class Codec:
    """Types that may be stored beside those of msgpack.

    Args:
        *types: each with a code of its own.

    Raises:
        ValueError: a code is out of range, or there twice.
        TypeError: a type is no `ValueType`, or one of its fields is of another type.

    Example:
        >>> from datetime import datetime
        >>> codec = Codec(ValueType(
        ...     1, datetime,
        ...     lambda time: time.isoformat().encode(),
        ...     lambda data: datetime.fromisoformat(data.decode()),
        ... ))
        >>> codec.ext_hook(1, b"2024-02-29T12:00:00")
        datetime.datetime(2024, 2, 29, 12, 0)
    """

    def __init__(self, *types: ValueType) -> None:
        for each in types:
            _check(each)
        self._by_code = {each.code: each for each in types}
        self._by_type = {each.type: each for each in types}
        if len(self._by_code) < len(types) or len(self._by_type) < len(types):
            raise ValueError("each type needs a code of its own")

    def __repr__(self) -> str:
        types = [f"{each.code}: {each.type.__qualname__}" for each in self._by_code.values()]
        return f"<Codec of {', '.join(types)}>" if types else "<Codec of msgpack's own types>"

    def default(self, value: Any) -> ExtType:
        """What is packed in the place of ``value``.

        Raises:
            TypeError: no type fits.
            IntTooLargeError: it is an int of more than 64 bits.
        """
        for cls in type(value).__mro__:
            known = self._by_type.get(cls)
            if known is not None:
                return ExtType(known.code, known.pack(value))
        if isinstance(value, int):
            raise IntTooLargeError("an int has more than 64 bits")
        raise TypeError(f"cannot store a {type(value).__qualname__}: msgpack has no type for it")

    def ext_hook(self, code: int, data: bytes) -> Any:
        """The value that an ext stands for."""
        known = self._by_code.get(code)
        return ExtType(code, data) if known is None else known.unpack(data)


def _check(value_type: object) -> None:
    """See that a `ValueType` is one. Raises TypeError and ValueError."""
    given = checks.instance("type", value_type, ValueType)
    checks.integer("code", given.code, 0, 127)
    checks.instance("type", given.type, type)
    checks.function("pack", given.pack)
    checks.function("unpack", given.unpack)


PLAIN = Codec()
"""The types of msgpack, and no other."""
