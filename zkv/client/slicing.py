"""Where the values of entries stand in a reply or a message of the feed, each cut out.

A body is read field by field; `VALUES` tells which fields hold values, and how. So a value that
cannot be decoded does not stop those beside it, and one that need not be decoded stays packed. This
is slower than decoding a body as a whole, and done where that has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgpack

from zkv.client.errors import BadValueError

Reader = Callable[["Slicer"], Any]
"""Reads one field of a body."""

GONE: Final = frozenset({"DELETE", "EXPIRE"})
"""Changes that have no value, for which there is a nil in its place."""


class Slicer:
    """Reads a body from its start to its end.

    Args:
        body: a reply, or a message of the feed.
        make: what becomes of the bytes of each value.

    Raises:
        ValueError: of every method, where the body is not as the protocol says.
        msgpack.OutOfData: likewise, where it ends too soon.
    """

    def __init__(self, body: bytes, make: Callable[[bytes], Any]) -> None:
        self._body = body
        self._make = make
        self._reader = msgpack.Unpacker(
            strict_map_key=False, unicode_errors="surrogateescape", max_buffer_size=len(body) or 1
        )
        self._reader.feed(body)

    def fields(self, op: str) -> dict[str, Any]:
        """All fields of the body, those that hold values with what has become of these."""
        readers = {} if op == "INCR" else VALUES  # The value of INCR is no value but a sum.
        return self._map(readers)

    def end(self) -> None:
        """Raise ValueError unless this is the end of the body."""
        if self._reader.tell() != len(self._body):
            raise ValueError("there are bytes behind it")

    def other(self) -> Any:
        """What is no value of an entry."""
        return self._reader.unpack()

    def value(self) -> Any:
        """One value."""
        start = self._reader.tell()
        self._reader.skip()
        return self._make(self._body[start : self._reader.tell()])

    def values(self) -> list[Any]:
        """An array of them, as in the reply to MGET."""
        return [self.value() for _ in range(self._reader.read_array_header())]

    def items(self) -> list[list[Any]]:
        """Arrays of key, value and revision, as in the reply to SCAN."""
        return [self._array(1) for _ in range(self._reader.read_array_header())]

    def changes(self) -> list[list[Any]]:
        """Arrays of revision, op, key and value, as in the reply to CHANGES."""
        changes = [self._array(3) for _ in range(self._reader.read_array_header())]
        for change in changes:
            if change[1] in GONE:
                change[3] = None
        return changes

    def results(self) -> list[dict[str, Any]]:
        """What the ops of a TXN gave."""
        return [self._map(VALUES) for _ in range(self._reader.read_array_header())]

    def _map(self, readers: dict[str, Reader]) -> dict[str, Any]:
        read = {}
        for _ in range(self._reader.read_map_header()):
            name = self._reader.unpack()
            if type(name) is not str:
                raise ValueError("the name of a field is no str")
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
"""The fields that hold values of entries, by name: a name has one meaning in all ops."""


class Sliced(dict[str, Any]):
    """A reply, or a message of the feed, whose values have been cut out one by one."""


def sliced(op: str, body: bytes, make: Callable[[bytes], Any]) -> Sliced:
    """The fields of a body.

    Args:
        op: of the request; ``feed`` for a message of the feed.
        body: as it was received.
        make: what becomes of the bytes of each value.

    Raises:
        ValueError, TypeError: it is no map, or not as the protocol says.
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
    """A value; where it is an error, one that tells of the key, to be kept for long."""
    if not isinstance(value, BadValueError):
        return value
    error = value.of(key, applied)
    if error.__cause__ is not None:  # Its traceback would keep the whole body.
        error.__cause__ = error.__cause__.with_traceback(None)
    return error


def _key_of(step: Any) -> str:
    """The key of an op of a TXN: a map, or a `zkv.client.steps.Step`."""
    key: str = step["key"] if isinstance(step, dict) else step.key
    return key


def is_one_value(packed: bytes) -> bool:
    """Whether these bytes are one value of msgpack, and nothing else."""
    reader = msgpack.Unpacker(max_buffer_size=len(packed) or 1)
    reader.feed(packed)
    try:
        reader.skip()
    except (ValueError, msgpack.OutOfData):
        return False
    return bool(reader.tell() == len(packed))
