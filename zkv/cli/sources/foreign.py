"""Another system as a source of ``zkv-cli import``: its entries become records.

An import from there has no state: run again, it reads all entries again, and writes those that the
store does not have already. That holds for every system, whether or not it has an order in which
one could continue; and a second run shows that all has come over.

Invariant: every key that is read is stored, or counted as expired, or named and counted as left
out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Self

from zkv.cli.exporting import Limits, ServerClock
from zkv.cli.output import note
from zkv.cli.sources import AT_ONCE, BYTES_AT_ONCE, Convert, Entries, Found, ImportBatch
from zkv.client.codec import Packed
from zkv.entries.records import Place, Record

SHOWN: Final = 200
"""Characters of a key that is named."""


class ForeignSource:
    """The entries of another system as an `ImportSource`. Use as a context manager.

    Args:
        entries: where they come from.
        convert: makes a value of bytes.
        clock: of the store to which they are imported.
        limits: likewise.
    """

    unit = "key"

    def __init__(
        self, entries: Entries, convert: Convert, clock: ServerClock, limits: Limits
    ) -> None:
        self._entries = entries
        self._convert = convert
        self._clock = clock
        self._limits = limits
        self.size = entries.count
        self.left_out = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._entries.close()

    def batches(self) -> Iterator[ImportBatch]:
        """See `ImportSource.batches`."""
        places: list[Place] = []
        size = number = 0
        for found in self._entries:
            number += 1
            places.append(Place(number, number, self._record(found)))
            size += len(found.key) + len(found.value)
            if len(places) >= AT_ONCE or size >= BYTES_AT_ONCE:
                yield ImportBatch(places, size, number)
                places, size = [], 0
        if places:
            yield ImportBatch(places, size, number)

    def keep(self, batch: ImportBatch, rev: int) -> None:
        """See `ImportSource.keep`: the store itself shows what is stored."""

    def leave_out(self, place: Place, error: Exception) -> None:
        """See `ImportSource.leave_out`."""
        assert place.record is not None  # noqa: S101  there is nothing to refuse without one
        self._name(place.record.key.encode(), str(error))

    def reached(self, number: int) -> str:
        """See `ImportSource.reached`."""
        keys = f"{number} {'key' if number == 1 else 'keys'}" if number else "nothing"
        return f"imported {keys} from {self._entries.name}; the same command, run again, goes on"

    def end(self) -> None:
        """See `ImportSource.end`."""

    def _record(self, found: Found) -> Record | None:
        """The record of an entry; None if it is left out."""
        try:
            if found.fault:
                raise ValueError(found.fault)
            key = _text_of(found.key)
            value = found.value
            packed = value if isinstance(value, Packed) else self._convert(value)
            _check(len(found.key), self._limits.key, "key")
            _check(len(packed), self._limits.value, "value")
        except ValueError as error:
            self._name(found.key, str(error))
            return None
        expires = None
        if found.ttl is not None:
            expires = round((self._clock.now() + found.ttl) * 1000)
        return Record(key, packed, expires=expires)

    def _name(self, key: bytes, why: str) -> None:
        self.left_out += 1
        note(f"left out {_shown(key)}: {why}")


def _text_of(key: bytes) -> str:
    if not key:
        raise ValueError("its key is empty")
    if key.startswith(b"\0"):
        raise ValueError("its key begins with U+0000, which is reserved")
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise ValueError("its key is not UTF-8") from None


def _check(size: int, most: int, what: str) -> None:
    if size > most:
        raise ValueError(f"its {what} has {size} bytes, over limits.max_{what}_bytes, {most}")


def _shown(key: bytes) -> str:
    """A key, as messages show it."""
    try:
        text = repr(key.decode())
    except UnicodeDecodeError:
        text = repr(key)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
