"""The file that ``zkv-cli import`` reads, and how far it has come there.

An import may be continued after the last batch that was answered (``--resume``): `_State` keeps
the place in a file. Batches are in the order of the file, so that of two records with one key the
later counts. A record that cannot be read ends the import, after all before it have been stored.

Invariant: memory is bounded by one batch. Values are packed when they are read, and stay so.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from zkv.cli.exporting import is_packed, rev_of
from zkv.cli.output import FAILED, CommandError
from zkv.cli.sources import AT_ONCE, BYTES_AT_ONCE, ImportBatch
from zkv.entries.records import CHUNK, LATEST, BadRecordError, Place, read
from zkv.reading import BadTextError, decode, open_file, parse_json, read_file
from zkv.writing import Target

if TYPE_CHECKING:
    from zkv.client import Client


class FileSource:
    """A file as an `ImportSource`. Use as a context manager.

    Args:
        options: of the command.
        client: of the store to which it is imported.
        longest: bytes of the longest record.

    Raises:
        CommandError: it cannot be opened, or the state is not that of this import.
    """

    def __init__(self, options: argparse.Namespace, client: Client, longest: int) -> None:
        self._file = _OpenedFile(options, longest)
        try:
            self._state = _State(options.resume, self._file, client)
        except BaseException:
            self._file.close()
            raise
        self.unit = self._file.unit
        self.size = self._file.size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def batches(self) -> Iterator[ImportBatch]:
        """See `ImportSource.batches`."""
        self._state.go_on()
        try:
            for places in _batches(self._file, self._state):
                end = places[-1].end
                yield ImportBatch(places, end - self._state.offset, end)
        except OSError as error:
            raise CommandError(FAILED, f"{self._file.name}: {error.strerror}") from error

    def keep(self, batch: ImportBatch, rev: int) -> None:
        """See `ImportSource.keep`."""
        self._state.keep(batch.places[-1], rev)

    def leave_out(self, place: Place, error: Exception) -> None:
        """See `ImportSource.leave_out`: a record of a file is never left out."""
        text = "an int has more than 64 bits" if isinstance(error, OverflowError) else error
        raise CommandError(FAILED, f"{self.unit} {place.number}: {text}") from error

    def reached(self, number: int) -> str:
        """See `ImportSource.reached`."""
        number = number or self._state.number
        return f"imported {f'{self.unit}s 1-{number}' if number else 'nothing'}"

    def end(self) -> None:
        """See `ImportSource.end`."""
        self._state.remove()


class _OpenedFile:
    """The file to import.

    Args:
        options: of the command.
        longest: bytes of the longest record.
    """

    def __init__(self, options: argparse.Namespace, longest: int) -> None:
        self.name = "standard input" if options.file == "-" else options.file
        self.packed = is_packed(options)
        self.unit = "record" if self.packed else "line"
        self.longest = longest
        self._opened = self._open(options.file)
        self._passed = _Passed(self._opened)
        self.file: BinaryIO = self._opened
        if options.resume is not None:
            self.file = io.BufferedReader(self._passed, CHUNK)
        self.size = os.fstat(self._opened.fileno()).st_size if self._opened.seekable() else None

    def close(self) -> None:
        """Close it, unless it is standard input."""
        if sys.stdin is None or self._opened is not sys.stdin.buffer:
            self._opened.close()

    def _open(self, name: str) -> BinaryIO:
        try:
            if name != "-":
                return open_file(name)
            if sys.stdin is None:
                raise CommandError(FAILED, "standard input is closed")
            return sys.stdin.buffer
        except OSError as error:
            raise CommandError(FAILED, f"{name}: {error.strerror}") from error

    def digest(self, size: int) -> str:
        """The digest of what has been read, up to ``size`` bytes after the previous digest."""
        return self._passed.digest(size)


class _Passed(io.RawIOBase):
    """A file to read that keeps what has been read until that is part of the digest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.blake2b(digest_size=16)
        self._kept = bytearray()

    def readable(self) -> bool:
        """As of any file to read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is available: at least a byte, unless the file is at its end."""
        data = self._file.read1(len(buffer))  # type: ignore[attr-defined]
        self._kept += data
        buffer[: len(data)] = data
        return len(data)

    def digest(self, size: int) -> str:
        """See `_OpenedFile.digest`."""
        self._hash.update(self._kept[:size])
        del self._kept[:size]
        return self._hash.hexdigest()


def _batches(source: _OpenedFile, state: _State) -> Iterator[list[Place]]:
    """The records after the state, in batches.

    Raises CommandError if a record cannot be read, after all before it have been returned.
    """
    batch: list[Place] = []
    bad: BadRecordError | None = None
    number, begin = state.number, state.offset
    places = read(source.file, source.packed, source.longest, state.number, state.offset)
    while True:
        try:
            place = next(places, None)
        except BadRecordError as error:
            place, bad = None, error
        if place is not None:
            batch.append(place)
            number = place.number
        end = place is None
        if batch and (end or len(batch) >= AT_ONCE or batch[-1].end - begin >= BYTES_AT_ONCE):
            begin = batch[-1].end
            yield batch
            batch = []
        if bad is not None:
            raise CommandError(FAILED, f"{source.unit} {number + 1}: {bad}")
        if end:
            return


class _State:
    """The progress of an import, in a file that is on disk before the next batch.

    The file also identifies the source, by the size and digest of what has been imported, and the
    store: with others, an import that continues would leave entries out.

    Args:
        name: of the file; None = there is none.
        source: the file to import.
        client: of the store.
    """

    def __init__(self, name: str | None, source: _OpenedFile, client: Client) -> None:
        self._name = name
        self._source = source
        self._client = client
        self._of = {
            "source": source.name,
            "server": client.endpoint,
            "format": "msgpack" if source.packed else "json",
        }
        self._digest = ""
        self._rev = 0
        self.number = 0
        self.offset = 0
        if name is not None:
            self._read(name)

    def go_on(self) -> None:
        """Skip what is imported in the source. Raises CommandError if that is not there."""
        left = self.offset
        while left and (data := self._source.file.read(min(left, BYTES_AT_ONCE))):
            left -= len(data)
            digest = self._source.digest(len(data))
            if left == 0 and digest != self._digest:
                raise self._other(f"its first {self.offset} bytes are not those that were imported")
        if left:
            raise self._other(f"it ends before byte {self.offset}, up to which it was imported")

    def keep(self, place: Place, rev: int) -> None:
        """Record that all up to ``place`` is stored, and that the store has revision ``rev``."""
        size = place.end - self.offset
        self.number, self.offset = place.number, place.end
        if self._name is None:
            return
        self._digest, self._rev = self._source.digest(size), max(self._rev, rev)
        done = {"number": self.number, "offset": self.offset, "digest": self._digest}
        fields = self._of | done | {"rev": self._rev}
        try:
            with Target(self._name).open() as file:
                file.write(json.dumps(fields).encode() + b"\n")
        except OSError as error:
            raise CommandError(FAILED, f"{self._name}: {error.strerror}") from error

    def remove(self) -> None:
        """Remove the file: the next import begins anew."""
        if self._name is None:
            return
        with contextlib.suppress(OSError):
            target = Target(self._name)
            try:
                target.path.unlink()
            except FileNotFoundError:
                pass
            except OSError:  # The directory is read-only. An empty file means the same.
                with target.open():
                    pass

    def _read(self, name: str) -> None:
        try:
            target = Target(name)
            if not target.is_file:
                raise CommandError(FAILED, f"{name} is no file in which a state could be kept")
            target.require_directory()
            data = b"" if target.is_empty else read_file(name)
        except OSError as error:
            raise CommandError(FAILED, f"{name}: {error.strerror}") from error
        if not data:
            return
        try:
            found = parse_json(decode(data))
        except BadTextError:
            found = None
        if not isinstance(found, dict) or "source" not in found:
            raise CommandError(FAILED, f"{name} is not the state of an import")
        for field, value in self._of.items():
            if found.get(field) != value:
                was = found.get(field)
                what = "" if field == "source" else f"{field} "
                raise CommandError(
                    FAILED,
                    f"{name} is the state of another import, of {what}{was!r:.80} instead of "
                    f"{value!r:.80}; to start again, remove it",
                )
        self._take(name, found)

    def _take(self, name: str, found: dict[str, Any]) -> None:
        """Continue from the state. Raises CommandError."""
        numbers = [found.get(field) for field in ("number", "offset", "rev")]
        if not all(type(number) is int and 0 <= number <= LATEST for number in numbers):
            raise CommandError(FAILED, f"{name} is not the state of an import")
        self.number, self.offset, self._rev = found["number"], found["offset"], found["rev"]
        self._digest = str(found.get("digest"))
        if (rev := rev_of(self._client)) < self._rev:
            raise CommandError(
                FAILED,
                f"{name} is the state of an import to another store, which had revision "
                f"{self._rev}; the one at {self._client.endpoint} has {rev}; to start again, "
                f"remove it",
            )

    def _other(self, why: str) -> CommandError:
        return CommandError(
            FAILED,
            f"{self._source.name} is not the file whose import {self._name} records: {why}; "
            f"to start again, remove {self._name}",
        )
