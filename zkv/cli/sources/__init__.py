"""Where ``zkv-cli import`` gets entries from.

A `ImportSource` hands out batches of records, and is told of each that is stored. `FileSource`
(`zkv.cli.file_source`) reads what ``export`` wrote. `ForeignSource` (`zkv.cli.sources.foreign`)
reads from another system, by `Entries`: one module here for each system, which knows nothing of
zkv. They are imported when they are needed, as are the packages that they need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Protocol, Self

from zkv.client.codec import Packed
from zkv.entries.records import Place

AT_ONCE: Final = 1_000
BYTES_AT_ONCE: Final = 1024 * 1024
"""Bytes of a source after which a batch is sent; one record may have more."""


class ImportBatch(NamedTuple):
    """Records that are stored together.

    Args:
        places: of the records; at least one.
        size: about how many bytes keys and values have.
        done: how much of the source's ``size`` is done after it.
    """

    places: list[Place]
    size: int
    done: int


class ImportSource(Protocol):
    """The origin of an import. A context manager."""

    unit: str
    """The name of one record."""
    size: int | None
    """How much there is, for the progress: in bytes or records; None = unknown."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def batches(self) -> Iterator[ImportBatch]:
        """Hand out all records. Raises CommandError if the source cannot be read."""

    def keep(self, batch: ImportBatch, rev: int) -> None:
        """Note that a batch is stored, and that the store has revision ``rev``."""

    def leave_out(self, place: Place, error: Exception) -> None:
        """Note that the store does not take a record. Raises CommandError to end the import."""

    def reached(self, number: int) -> str:
        """Say how far an import came that failed.

        Args:
            number: of the last record before which all are stored; 0 = none.
        """

    def end(self) -> None:
        """Note that all is stored."""


class Found(NamedTuple):
    """An entry of another system.

    Args:
        key: its key.
        value: its value; a `Packed` is stored as it is.
        ttl: seconds that it has left; None = it does not expire.
        fault: why it cannot be taken; empty = it can.
    """

    key: bytes
    value: bytes
    ttl: float | None = None
    fault: str = ""


Convert = Callable[[bytes], Packed]
"""Makes a value of bytes. Raises ValueError, which says why it cannot."""


class Entries(Protocol):
    """The entries of another system."""

    name: str
    """How messages call it; without passwords."""
    count: int | None
    """About how many there are; None = unknown."""

    def __iter__(self) -> Iterator[Found]:
        """Read all entries. Raises CommandError if the system fails."""

    def close(self) -> None:
        """Close the connection, or the file."""
