"""Values of types that msgpack does not know.

Without a codec, the client stores only types that msgpack packs itself: ``None``, ``bool``, ``int``
of 64 bits, ``float``, ``str``, ``bytes``, ``list``, ``dict``, ``msgpack.ExtType`` and
``msgpack.Timestamp``. A tuple is read back as a list, or as a tuple if it is a key of a dict; a
``bytearray`` or ``memoryview`` is read back as bytes. A subclass of these types (``IntEnum``, a
named tuple, ``OrderedDict``) is packed as that type, and read back as that type. Any other type
raises a TypeError before anything is sent.

A codec adds types, at any depth in a value, including subclasses of those above. Each is packed as
a msgpack ext with its own type code. So clients in other languages can recognise it, and clients
without the codec read a ``msgpack.ExtType``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from msgpack import ExtType, Timestamp

from zkv import checks
from zkv.client.errors import BadValueError


class ValueType(NamedTuple):
    """How one type is stored.

    Args:
        code: of the msgpack ext, 0 to 127; the same in all programs that share the store.
        type: the type; values of its subclasses are packed likewise. Types that msgpack packs
            itself, such as ``dict``, are not allowed; their subclasses are, such as an ``IntEnum``.
        pack: converts a value to bytes.
        unpack: converts these bytes to a value.
    """

    code: int
    type: type
    pack: Callable[[Any], bytes]
    unpack: Callable[[bytes], Any]


class Inexact(Exception):
    """A value contains an object that msgpack packs as another type: a tuple, a subclass."""


class IntTooLargeError(OverflowError, ValueError):
    """An int has more than 64 bits."""


class Codec:
    """Types that a client can store in addition to those of msgpack.

    If ``pack`` or ``unpack`` raises any error, the call that writes or reads the value raises a
    `BadValueError` with that error as its cause.

    Args:
        *types: each with its own code.

    Raises:
        ValueError: a code is out of range or occurs twice, or msgpack packs a type itself.
        TypeError: a type is not a `ValueType`, or one of its fields has the wrong type.

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
            raise ValueError("each type needs its own code, and may occur only once")

    def __repr__(self) -> str:
        types = [f"{each.code}: {each.type.__qualname__}" for each in self._by_code.values()]
        return f"<Codec of {', '.join(types)}>" if types else "<Codec of msgpack's own types>"

    @property
    def has_types(self) -> bool:
        """True if it adds any types."""
        return bool(self._by_type)

    def exact(self, value: Any) -> ExtType:
        """Return the ext to pack for ``value``, whose exact type msgpack does not pack.

        Raises:
            Inexact: msgpack would pack it as another type.
            TypeError, IntTooLargeError, BadValueError: as `default` does.
        """
        known = self._known(value)
        if known is not None:
            return _ext(known, value)
        if issubclass(type(value), NATIVE) and type(value) is not int:
            raise Inexact
        raise _unknown(value)

    def default(self, value: Any) -> Any:
        """Return the replacement to pack for ``value``: an ext, or one of msgpack's types.

        Raises:
            TypeError: neither msgpack nor the codec has a type for it.
            IntTooLargeError: it is an int of more than 64 bits.
            BadValueError: a function of the codec failed.
        """
        known = self._known(value)
        if known is not None:
            return _ext(known, value)
        for native, converted in CONVERTED.items():
            if issubclass(type(value), native) and type(value) is not native:
                return converted(value)
        if type(value) is tuple:
            return list(value)
        raise _unknown(value)

    def ext_hook(self, code: int, data: bytes) -> Any:
        """Return the value of an ext. Raises BadValueError if ``unpack`` fails."""
        known = self._by_code.get(code)
        if known is None:
            return any_ext(code, data)
        try:
            return known.unpack(data)
        except Exception as error:
            reason = f"the codec's unpack for {known.type.__qualname__} raised {described(error)}"
            raise BadValueError(reason, packed=data) from error

    def _known(self, value: Any) -> ValueType | None:
        """Return the codec's type for a value, the nearest base class of its own type; or None."""
        for cls in type(value).__mro__:
            known = self._by_type.get(cls)
            if known is not None:
                return known
        return None


NATIVE: Final = (
    type(None), bool, int, float, str, bytes, bytearray, memoryview, ExtType, Timestamp, tuple,
    list, dict,
)  # fmt: skip
"""Types that msgpack packs itself."""

CONVERTED: Final[dict[type, Callable[[Any], Any]]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: bytes.__bytes__,
    bytearray: bytes,
    ExtType: lambda ext: any_ext(ext.code, ext.data),
    Timestamp: lambda time: Timestamp(time.seconds, time.nanoseconds),
    tuple: list,
    list: list,
    dict: lambda items: dict(items.items()),
}
"""Convert a subclass to its msgpack type, ignoring methods that the subclass overrides."""


def any_ext(code: int, data: bytes) -> ExtType:
    """Make an ext of any code. Values may have negative codes, but `ExtType` refuses them."""
    return tuple.__new__(ExtType, (code, data))


def described(error: Exception) -> str:
    """Describe an error in one line, even if its ``__str__`` fails."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def _check(value_type: object) -> None:
    """Raise TypeError or ValueError unless a codec accepts a `ValueType`."""
    given = checks.instance("type", value_type, ValueType)
    checks.integer("code", given.code, 0, 127)
    kind = checks.instance("type", given.type, type)
    if kind in NATIVE or kind is object:
        name = kind.__qualname__
        raise ValueError(f"type {name}: msgpack packs it itself; only its subclasses are allowed")
    checks.function("pack", given.pack)
    checks.function("unpack", given.unpack)


def _ext(known: ValueType, value: Any) -> ExtType:
    """Pack a value of a codec's type as an ext."""
    name = known.type.__qualname__
    try:
        data = known.pack(value)
    except Exception as error:
        raise BadValueError(f"the codec's pack for {name} raised {described(error)}") from error
    if not issubclass(type(data), bytes):
        kind = type(data).__qualname__
        raise BadValueError(f"the codec's pack for {name} returned a {kind} instead of bytes")
    return ExtType(known.code, data)


def _unknown(value: Any) -> Exception:
    if isinstance(value, int):
        return IntTooLargeError("an int has more than 64 bits")
    return TypeError(f"cannot store a {type(value).__qualname__}: msgpack has no type for it")


PLAIN: Final = Codec()
"""The types of msgpack only."""


class Packed(bytes):
    """A value that stays packed: the msgpack bytes that the server stores. See `PACKED`."""


PACKED: Final = Codec()
"""With this codec values stay packed, byte for byte, so nothing is lost.

It is meant for tools that copy or show all values of a store, not for programs::

    with Client(endpoint, codec=PACKED) as kv:
        packed = kv.get("a")          # a `Packed`, which is bytes
        kv.put("b", packed)           # the same bytes are stored
        kv.put("c", Packed(b"\\xc0"))  # nil

All reads return each value as a `Packed`: `get`, `get_entry`, `get_many`, `scan`, `changes`,
watches, mirrors, pipelines and so on. They return None if there is no value: as the default for an
absent key, in a change that removes a key, in a scan without values. `incr` returns an int. Writes
accept a `Packed`, and other values, which are packed as without a codec. A `Packed` that is not one
whole msgpack value raises a ValueError. Recipes (locks, queues, caches) do not work with it.
"""
