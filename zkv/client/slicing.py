"""Finds the values of entries in a reply or a message of the feed, and cuts each out.

It reads a body field by field; `VALUES` says which fields hold values, and in which form. So a
value that cannot be decoded does not affect the others, and a value that need not be decoded stays
packed. This is slower than decoding the whole body at once, so it is done only if that has failed,
or if values are to stay packed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgpack

from zkv.client.errors import BadValueError

Reader = Callable[["Slicer"], Any]
"""Reads one field of a body."""

GONE: Final = frozenset({"DELETE", "EXPIRE"})
"""Changes without a value; their messages have nil in its place."""


class Slicer:
    """Reads a body from its start to its end.

    Args:
        body: a reply, or a message of the feed.
        make: converts the bytes of each value.

    Raises:
        ValueError: by every method, if the body violates the protocol.
        msgpack.OutOfData: by every method, if the body ends too soon.
    """

    def __init__(self, body: bytes, make: Callable[[bytes], Any]) -> None:
        self._body = body
        self._make = make
        self._reader = msgpack.Unpacker(
            strict_map_key=False, unicode_errors="surrogateescape", max_buffer_size=len(body) or 1
        )
        self._reader.feed(body)

    def fields(self, op: str) -> dict[str, Any]:
        """Read all fields of the body, with converted values."""
        readers = {} if op == "INCR" else VALUES  # The ``value`` of INCR is a sum.
        return self._map(readers)

    def end(self) -> None:
        """Raise ValueError unless this is the end of the body."""
        if self._reader.tell() != len(self._body):
            raise ValueError("more bytes follow it")

    def other(self) -> Any:
        """Read anything that is not a value of an entry."""
        return self._reader.unpack()

    def value(self) -> Any:
        """Read one value."""
        start = self._reader.tell()
        self._reader.skip()
        return self._make(self._body[start : self._reader.tell()])

    def values(self) -> list[Any]:
        """Read an array of values, as in the reply to MGET."""
        return [self.value() for _ in range(self._reader.read_array_header())]

    def items(self) -> list[list[Any]]:
        """Read arrays of key, value and revision, as in the reply to SCAN."""
        return [self._array(1) for _ in range(self._reader.read_array_header())]

    def changes(self) -> list[list[Any]]:
        """Read arrays of revision, op, key and value, as in the reply to CHANGES."""
        changes = [self._array(3) for _ in range(self._reader.read_array_header())]
        for change in changes:
            if change[1] in GONE:
                change[3] = None
        return changes

    def results(self) -> list[dict[str, Any]]:
        """Read the results of the ops of a TXN."""
        return [self._map(VALUES) for _ in range(self._reader.read_array_header())]

    def _map(self, readers: dict[str, Reader]) -> dict[str, Any]:
        read = {}
        for _ in range(self._reader.read_map_header()):
            name = self._reader.unpack()
            if type(name) is not str:
                raise ValueError("the name of a field is not a str")
            read[name] = readers.get(name, Slicer.other)(self)
        return read

    def _array(self, value_at: int) -> list[Any]:
        size = self._reader.read_array_header()
        return [self.value() if at == value_at else self.other() for at in range(size)]


VALUES: Final[dict[str, Reader]] = {
    "value": Slicer.value,
    "prev": Slicer.value,
    "values": Slicer.values,
    "items": Slicer.items,
    "changes": Slicer.changes,
    "results": Slicer.results,
}
"""The readers of the fields with values of entries. A name has the same meaning in all ops."""


class Sliced(dict[str, Any]):
    """A reply, or a message of the feed, whose values have been cut out one by one."""


def sliced(op: str, body: bytes, make: Callable[[bytes], Any]) -> Sliced:
    """Read the fields of a body.

    Args:
        op: of the request; ``feed`` for a message of the feed.
        body: as it was received.
        make: converts the bytes of each value.

    Raises:
        ValueError, TypeError: the body is not a map, or violates the protocol.
    """
    slicer = Slicer(body, make)
    try:
        fields = Sliced(slicer.fields(op))
    except msgpack.OutOfData:
        raise ValueError("it ends too soon") from None
    slicer.end()
    if fields.get("op") in GONE:  # In a message of the feed.
        fields["value"] = None
    return fields


def name_errors(op: str, fields: Mapping[str, Any], reply: Sliced) -> None:
    """Say of which key each value is that could not be decoded.

    Args:
        op: of the request; ``feed`` for a message of the feed.
        fields: of the request.
        reply: has a `BadValueError` in the place of each of these values; is changed.

    Raises:
        BadValueError: the reply is that of a single key.
        LookupError, TypeError, ValueError: it is not as the protocol says.
    """
    match op:
        case "MGET":
            pairs = zip(fields["keys"], reply["values"], strict=True)
            reply["values"] = [_named(value, key) for key, value in pairs]
        case "SCAN":
            reply["items"] = [[key, _named(value, key), rev] for key, value, rev in reply["items"]]
        case "CHANGES":
            reply["changes"] = [
                [rev, what, key, _named(value, key)] for rev, what, key, value in reply["changes"]
            ]
        case "TXN":
            for step, result in zip(fields["ops"], reply["results"], strict=True):
                key = _key_of(step)
                result |= {name: _named(value, key, None) for name, value in result.items()}
        case "feed":
            reply["value"] = _named(reply["value"], reply["key"])
        case _:
            for name in ("value", "prev"):
                if isinstance(error := reply.get(name), BadValueError):
                    applied = False if op == "GET" else None
                    raise error.of(fields["key"], applied) from error.__cause__


def _named(value: Any, key: str, applied: bool | None = False) -> Any:
    """Return a value; if it is an error, return one with the key that can be kept for long."""
    if not isinstance(value, BadValueError):
        return value
    error = value.of(key, applied)
    if error.__cause__ is not None:  # Its traceback would keep the whole body.
        error.__cause__ = error.__cause__.with_traceback(None)
    return error


def _key_of(step: Any) -> str:
    """Return the key of an op of a TXN: a map, or a `zkv.client.steps.Step`."""
    key: str = step["key"] if isinstance(step, dict) else step.key
    return key


def is_one_value(packed: bytes) -> bool:
    """Return True if the bytes are exactly one msgpack value."""
    reader = msgpack.Unpacker(max_buffer_size=len(packed) or 1)
    reader.feed(packed)
    try:
        reader.skip()
    except (ValueError, msgpack.OutOfData):
        return False
    return bool(reader.tell() == len(packed))
