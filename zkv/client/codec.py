"""Values of types that msgpack does not know.

What msgpack knows goes through as it is, and without a codec that is all that may be stored:
``None``, ``bool``, ``int`` of 64 bits, ``float``, ``str``, ``bytes``, ``list``, ``dict``,
``msgpack.ExtType`` and ``msgpack.Timestamp``. A tuple comes back as a list, and as a tuple where it
is a key of a dict; a ``bytearray`` or ``memoryview`` comes back as bytes. A subclass of these types
(``IntEnum``, a named tuple, ``OrderedDict``) is packed as that type, and comes back as that type.
Anything else is a TypeError before something is sent.

A codec adds types, wherever in a value they occur, also subclasses of those above. Each travels as
a msgpack ext of a type code of its own, so that clients in other languages can tell it, and clients
without the codec get a ``msgpack.ExtType``.
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
        code: of the msgpack ext, 0 to 127; the same for all who share the store.
        type: values of it, and of its subclasses, are packed by this. None that msgpack packs
            itself, such as ``dict``; a subclass of one, such as an ``IntEnum``, is.
        pack: value -> bytes.
        unpack: these bytes -> value.
    """

    code: int
    type: type
    pack: Callable[[Any], bytes]
    unpack: Callable[[bytes], Any]


class Inexact(Exception):
    """A value holds an object that msgpack packs as one of another type: a tuple, a subclass."""


class IntTooLargeError(OverflowError, ValueError):
    """An int has more than 64 bits."""


class Codec:
    """Types that may be stored beside those of msgpack.

    An error of ``pack`` or ``unpack``, whatever it is, is raised as a `BadValueError` with it as
    its cause, where the value was to be written or read.

    Args:
        *types: each with a code of its own.

    Raises:
        ValueError: a code is out of range, or there twice, or msgpack packs a type itself.
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

    @property
    def has_types(self) -> bool:
        """Whether it adds any."""
        return bool(self._by_type)

    def exact(self, value: Any) -> ExtType:
        """What is packed in the place of ``value``, which msgpack does not pack by its exact type.

        Raises:
            Inexact: msgpack packs it as another type.
            TypeError, IntTooLargeError, BadValueError: as `default` does.
        """
        known = self._known(value)
        if known is not None:
            return _ext(known, value)
        if issubclass(type(value), NATIVE) and type(value) is not int:
            raise Inexact
        raise _unknown(value)

    def default(self, value: Any) -> Any:
        """What is packed in the place of ``value``: an ext, or the value as a type of msgpack's.

        Raises:
            TypeError: no type fits.
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
        """The value that an ext stands for. Raises BadValueError where ``unpack`` fails."""
        known = self._by_code.get(code)
        if known is None:
            return any_ext(code, data)
        try:
            return known.unpack(data)
        except Exception as error:
            reason = f"the codec's unpack for {known.type.__qualname__} raised {described(error)}"
            raise BadValueError(reason, packed=data) from error

    def _known(self, value: Any) -> ValueType | None:
        """The type of the codec's that a value is of; the nearest to its own."""
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
"""How a subclass becomes the type of msgpack's, whatever methods it has of its own."""


def any_ext(code: int, data: bytes) -> ExtType:
    """An ext, also of a code below 0, which values may have, and the class itself refuses."""
    return tuple.__new__(ExtType, (code, data))


def described(error: Exception) -> str:
    """An error in one line, also where it has no words for itself."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def _check(value_type: object) -> None:
    """Raise TypeError or ValueError unless a `ValueType` may be one of a codec's."""
    given = checks.instance("type", value_type, ValueType)
    checks.integer("code", given.code, 0, 127)
    kind = checks.instance("type", given.type, type)
    if kind in NATIVE or kind is object:
        name = kind.__qualname__
        raise ValueError(f"type {name}: msgpack packs it itself; a subclass of it is possible")
    checks.function("pack", given.pack)
    checks.function("unpack", given.unpack)


def _ext(known: ValueType, value: Any) -> ExtType:
    """A value as the ext that stands for it."""
    name = known.type.__qualname__
    try:
        data = known.pack(value)
    except Exception as error:
        raise BadValueError(f"the codec's pack for {name} raised {described(error)}") from error
    if not issubclass(type(data), bytes):
        kind = type(data).__qualname__
        raise BadValueError(f"the codec's pack for {name} returned a {kind}, and no bytes")
    return ExtType(known.code, data)


def _unknown(value: Any) -> Exception:
    if isinstance(value, int):
        return IntTooLargeError("an int has more than 64 bits")
    return TypeError(f"cannot store a {type(value).__qualname__}: msgpack has no type for it")


PLAIN: Final = Codec()
"""The types of msgpack, and no other."""


class Packed(bytes):
    """A value that stays packed: the msgpack bytes that the server holds. See `PACKED`."""


PACKED: Final = Codec()
"""Values pass through a client as they are packed, byte for byte, and so without loss.

For tools that copy or show whatever a store holds, not for programs::

    with Client(endpoint, codec=PACKED) as kv:
        packed = kv.get("a")          # a `Packed`, which is bytes
        kv.put("b", packed)           # the same bytes are stored
        kv.put("c", Packed(b"\\xc0"))  # nil

All that reads values gives each as a `Packed`: `get`, `get_entry`, `get_many`, `scan`, `changes`,
watches, mirrors, pipelines and so on; None stands where there is no value: the default for an
absent key, a change that removes, a scan without values. `incr` gives an int. All that writes takes
a `Packed`, and other values, which are packed as without a codec. A `Packed` that is not one whole
value of msgpack is a ValueError. Recipes (locks, queues, caches) do not work with it.
"""
