"""Where the values of entries stand in a reply or a message of the feed, each cut out as it is.

A body is read field by field; `VALUES` tells which fields hold values, and how. So a value that
cannot be decoded does not stop those beside it, and one that need not be decoded stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgpack

from zkv.client.codec import Packed

Reader = Callable[["Slicer"], Any]
"""Reads one field of a body."""

NIL: Final = Packed(b"\xc0")
GONE: Final = frozenset({"DELETE", "EXPIRE"})
"""Changes that have no value, for which there is a nil in its place."""


class Slicer:
    """Reads a body from its start to its end.

    Args:
        body: a reply, or a message of the feed.

    Raises:
        ValueError: of every method, where the body is not as the protocol says.
        msgpack.OutOfData: likewise, where it ends too soon.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._reader = msgpack.Unpacker(
            strict_map_key=False, unicode_errors="surrogateescape", max_buffer_size=len(body) or 1
        )
        self._reader.feed(body)

    def fields(self, op: str) -> dict[str, Any]:
        """All fields, of which those that hold values have them as `Packed`."""
        readers = {} if op == "INCR" else VALUES  # The value of INCR is no value but a sum.
        return self._map(readers)

    def end(self) -> None:
        """Raise ValueError unless this is the end of the body."""
        if self._reader.tell() != len(self._body):
            raise ValueError("there are bytes behind it")

    def other(self) -> Any:
        """What is no value of an entry."""
        return self._reader.unpack()

    def value(self) -> Packed:
        """One value, packed."""
        start = self._reader.tell()
        self._reader.skip()
        return Packed(self._body[start : self._reader.tell()])

    def values(self) -> list[Packed]:
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
    """A reply in which each value of an entry is `Packed`; in that to a TXN, sums of INCR, too."""


def sliced(op: str, body: bytes) -> Sliced:
    """A reply in which each value of an entry is `Packed`.

    Raises:
        ValueError: it is no map, or not as the protocol says.
    """
    slicer = Slicer(body)
    try:
        fields = Sliced(slicer.fields(op))
    except msgpack.OutOfData:
        raise ValueError("it ends too soon") from None
    slicer.end()
    if fields.get("op") in GONE:  # In a message of the feed.
        fields["value"] = None
    return fields


def is_one_value(packed: bytes) -> bool:
    """Whether these bytes are one value of msgpack, and nothing else."""
    reader = msgpack.Unpacker(max_buffer_size=len(packed) or 1)
    reader.feed(packed)
    try:
        reader.skip()
    except (ValueError, msgpack.OutOfData):
        return False
    return bool(reader.tell() == len(packed))
