"""``zkv-cli import``: stores the entries of a file in batches.

Strategy: a batch is one request, which stores all of it or nothing. Batches are sent in the order
of the file, so that of two records with one key the later counts. Storing an entry twice is the
same as storing it once: an interrupted import may be repeated, or continued after the last batch
that was answered (``--resume``).

If the server refuses a batch, its halves are sent, until the record at fault is known. Everything
before that is stored, its number and the reason are printed, and nothing after it is read.

Invariants: memory is bounded by one batch. Values are packed when they are read, and stay so.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

import msgpack

from zkv.cli.asking import CommandSession, failure, reading
from zkv.cli.exporting import ServerClock, is_packed, limits_of, rev_of
from zkv.cli.output import FAILED, CommandError, note, print_result
from zkv.cli.progress import TransferProgress
from zkv.client.codec import PACKED, Packed
from zkv.client.messages import pack_request
from zkv.entries.records import CHUNK, LATEST, BadRecordError, Place, Record, read
from zkv.entries.text import to_json
from zkv.reading import BadTextError, decode, open_file, parse_json, read_file
from zkv.writing import Target

if TYPE_CHECKING:
    from zkv.client import Client

AT_ONCE: Final = 1_000
BYTES_AT_ONCE: Final = 1024 * 1024
"""Bytes of the file after which a batch is sent; one record may have more."""
GROWTH: Final = 3
"""More than a byte of a file becomes in a request: ``1e9,``, four bytes, is a float of nine."""
REQUEST_OVERHEAD: Final = 256
"""More than a request has beside its fields, with its envelope."""


def run(session: CommandSession, options: argparse.Namespace) -> int:
    """Store the entries, and print how many there were."""
    client = session.client(options)
    began = time.monotonic()
    limits = limits_of(client)
    with _Source(options, limits.record) as source:
        state = _State(options.resume, source, client)
        writer = _Writer(client, source.unit, limits.message)
        try:
            with TransferProgress("import", f"{source.unit}s", source.size) as progress:
                state.go_on()
                for batch in _batches(source, state):
                    writer.store(batch, batch[-1].end - state.offset)
                    state.keep(batch[-1], writer.rev)
                    progress.show(batch[-1].number, batch[-1].end)
        except (CommandError, KeyboardInterrupt):
            reached = writer.reached or state.number
            note(f"imported {f'{source.unit}s 1-{reached}' if reached else 'nothing'}")
            raise
        except OSError as error:
            raise CommandError(FAILED, f"{source.name}: {error.strerror}") from error
    state.remove()
    _summarise(options, writer, time.monotonic() - began)
    return 0


def _summarise(options: argparse.Namespace, writer: _Writer, seconds: float) -> None:
    if options.json:
        told = {"stored": writer.stored, "expired": writer.expired, "rev": writer.rev}
        print_result(to_json({"ok": True, **told, "seconds": round(seconds, 3)}))
        return
    line = f"OK, {writer.stored} stored"
    if writer.expired:
        line += f", {writer.expired} left out that have expired"
    print_result(f"{line}, revision {writer.rev}" if writer.stored else line)


class _Source:
    """The file to import. Use as a context manager.

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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
        """See `_Source.digest`."""
        self._hash.update(self._kept[:size])
        del self._kept[:size]
        return self._hash.hexdigest()


def _batches(source: _Source, state: _State) -> Iterator[list[Place]]:
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


class _Writer:
    """Stores batches, and counts.

    Args:
        client: of the server.
        unit: what a record is called: a line, or a record.
        most: bytes of the largest request; a larger one would get no reply.
    """

    def __init__(self, client: Client, unit: str, most: int) -> None:
        self._most = most
        self._client = client
        self._unit = unit
        self._clock = ServerClock(client)
        self.stored = 0
        self.expired = 0
        self.rev = 0
        self.reached = 0
        """Number of the last record of those that are stored without a gap."""

    def store(self, batch: list[Place], size: int) -> None:
        """Store a batch.

        Args:
            batch: the records.
            size: their bytes in the file.

        Raises:
            CommandError: one of them cannot be stored; all before it are.
        """
        now = self._clock.now()
        lasting = [_lasting(place.record, now) for place in batch if place.record is not None]
        entries = [entry for entry in lasting if entry.ttl is None or entry.ttl > 0]
        error = self._send(entries, size) if entries else None
        if error is None:
            self.reached = batch[-1].number
            self.stored += len(entries)
            self.expired += len(lasting) - len(entries)
        elif len(batch) > 1:
            middle = len(batch) // 2
            self.store(batch[:middle], size)
            self.store(batch[middle:], size)
        else:
            text = "an int has more than 64 bits" if isinstance(error, OverflowError) else error
            raise CommandError(FAILED, f"{self._unit} {batch[0].number}: {text}") from error

    def _send(self, entries: list[Record], size: int) -> Exception | None:
        """Send a batch; returns the error if it is at fault itself, else None."""
        from zkv.client import ClientError, RefusedError

        op, fields = _request(entries)
        try:
            if size * GROWTH > self._most:
                _check_size(op, fields, self._most)
            reply = self._client.call(op, **fields)
        except RefusedError as error:
            if error.retry or error.code in {"INTERNAL", "DENIED"}:
                raise failure(error) from error
            return error
        except ClientError as error:
            raise failure(error) from error
        except (OverflowError, ValueError, TypeError, RecursionError) as error:
            return error
        with reading(op):
            self.rev = int(reply["rev"])
        return None


def _check_size(op: str, fields: dict[str, Any], most: int) -> None:
    """Raise ValueError if a request with these fields would have more than ``most`` bytes."""
    taken = len(pack_request(op, 0, fields, PACKED)) + REQUEST_OVERHEAD
    if taken > most:
        raise ValueError(f"it takes {taken} bytes to send; max_message_bytes is {most}")


def _lasting(record: Record, now: float) -> Record:
    """``record``, with a ``ttl`` if it expires."""
    if record.expires is None:
        return record
    return record._replace(ttl=record.expires / 1000 - now)


def _request(entries: list[Record]) -> tuple[str, dict[str, Any]]:
    """The op and the fields that store entries: MPUT, or, since that has one ttl for all, TXN."""
    if all(entry.ttl is None for entry in entries):
        items = {entry.key: entry.value for entry in entries}  # Of two with one key, the later.
        parts = [_packer.pack_map_header(len(items))]
        for key, value in items.items():
            parts += [_pack(key), value]
        return "MPUT", {"items": Packed(b"".join(parts))}
    parts = [_packer.pack_array_header(len(entries))]
    for entry in entries:
        parts += [_PUT, _pack(entry.key), _TTL, _pack(entry.ttl), _VALUE, entry.value]
    return "TXN", {"ops": Packed(b"".join(parts))}


_packer: Final = msgpack.Packer()
_pack: Final = _packer.pack
_PUT: Final = b"\x84\xa2op\xa3PUT\xa3key"
_TTL: Final = b"\xa3ttl"
_VALUE: Final = b"\xa5value"


class _State:
    """The progress of an import, in a file that is on disk before the next batch.

    The file also identifies the source, by the size and digest of what has been imported, and the
    store: with others, an import that continues would leave entries out.

    Args:
        name: of the file; None = there is none.
        source: the file to import.
        client: of the store.
    """

    def __init__(self, name: str | None, source: _Source, client: Client) -> None:
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
