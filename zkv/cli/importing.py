"""``zkv-cli import``: the entries of a file, stored in batches.

A batch is one request, and so all of it or nothing is stored; batches follow each other in the
order of the file, so that of two records with one key the later counts. Memory is bounded by one
batch. Storing an entry twice is the same as storing it once: so what was interrupted may simply be
done again, or, with ``--resume``, gone on with behind the last batch that was answered.

What the server refuses is tried again in halves, until the one record is known that is to blame:
all before it is stored, its number and the reason are told, and nothing behind it is looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import msgpack

from zkv.cli.asking import Session, failure, reading
from zkv.cli.exporting import ServerClock, is_packed, limits_of
from zkv.cli.output import FAILED, CommandError, note, print_result
from zkv.cli.progress import TransferProgress
from zkv.cli.records import BadRecordError, Place, Record, read
from zkv.cli.values import STR_ERRORS, to_json

if TYPE_CHECKING:
    from zkv.client import Client

AT_ONCE: Final = 1_000
BYTES_AT_ONCE: Final = 1024 * 1024
"""Bytes of the file, after which a batch is sent; one record may have more."""
GROWTH: Final = 3
"""More than a byte of a file becomes in a request: ``1e9,``, four bytes, is a float of nine."""
REQUEST_OVERHEAD: Final = 256
"""More than a request has beside its fields, with its envelope."""


def run(session: Session, options: argparse.Namespace) -> int:
    """Store the entries, and say how many there were."""
    client = session.client(options)
    began = time.monotonic()
    limits = limits_of(client)
    source = _Source(options, limits.record)
    state = _State(options.resume, source.name)
    writer = _Writer(client, source.unit, limits.message)
    with source as file:
        try:
            with TransferProgress("import", f"{source.unit}s", source.size) as progress:
                _skip(file, state.offset)
                for batch in _batches(source, state):
                    writer.store(batch, batch[-1].end - state.offset)
                    state.keep(batch[-1])
                    progress.show(batch[-1].number, batch[-1].end)
        except (CommandError, KeyboardInterrupt):
            reached = writer.reached or state.number
            note(f"stored is {f'all up to {source.unit} {reached}' if reached else 'nothing'}")
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
    """What is imported. Use as a context manager."""

    def __init__(self, options: argparse.Namespace, longest: int) -> None:
        self.name = "standard input" if options.file == "-" else options.file
        self.packed = is_packed(options)
        self.unit = "record" if self.packed else "line"
        self.longest = longest
        self.file: IO[bytes] = self._open(options.file)
        self.size = os.fstat(self.file.fileno()).st_size if self.file.seekable() else None

    def __enter__(self) -> IO[bytes]:
        return self.file

    def __exit__(self, *_: object) -> None:
        if self.file is not sys.stdin.buffer:
            self.file.close()

    def _open(self, name: str) -> IO[bytes]:
        if name == "-":
            if sys.stdin is None:
                raise CommandError(FAILED, "standard input is closed")
            return sys.stdin.buffer
        try:
            return open(name, "rb")
        except OSError as error:
            raise CommandError(FAILED, f"{name}: {error.strerror}") from error


def _skip(file: IO[bytes], offset: int) -> None:
    """Go on behind so many bytes; what cannot seek is read up to there."""
    if file.seekable():
        file.seek(offset, os.SEEK_CUR)
        return
    left = offset
    while left and (chunk := file.read(min(left, BYTES_AT_ONCE))):
        left -= len(chunk)


def _batches(source: _Source, state: _State) -> Iterator[list[Place]]:
    """The records of the source behind the state, as many together as are sent together.

    Raises CommandError where one cannot be read, after those before it have been given.
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
        most: bytes that a request may have; a larger one would get no reply.
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
        """Number of the last record that is stored, with all before it."""

    def store(self, batch: list[Place], size: int) -> None:
        """Store a batch.

        Args:
            batch: the records.
            size: bytes that they have in the file.

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
        """Send a batch; what is wrong with it, if anything is."""
        from zkv.client import ClientError, RefusedError

        op, fields = _request(entries)
        try:
            if size * GROWTH > self._most:
                _check_size(fields, self._most)
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


def _check_size(fields: dict[str, Any], most: int) -> None:
    """Raise ValueError where a request of these fields would have more than ``most`` bytes."""
    taken = len(msgpack.packb(fields, unicode_errors=STR_ERRORS)) + REQUEST_OVERHEAD
    if taken > most:
        raise ValueError(f"it takes {taken} bytes to send; max_message_bytes is {most}")


def _lasting(record: Record, now: float) -> Record:
    """``record`` with a ``ttl`` where it has an end."""
    if record.expires is None:
        return record
    return record._replace(ttl=record.expires / 1000 - now)


def _request(entries: list[Record]) -> tuple[str, dict[str, Any]]:
    """The op and the fields that store entries: MPUT, or, since that has one ttl for all, TXN."""
    if all(entry.ttl is None for entry in entries):
        return "MPUT", {"items": {entry.key: entry.value for entry in entries}}
    puts = [
        {"op": "PUT", "key": entry.key, "value": entry.value, "ttl": entry.ttl} for entry in entries
    ]
    return "TXN", {"ops": puts}


class _State:
    """How far an import has got, in a file of its own, so that it outlives even a power cut.

    Args:
        name: of the file; None = it is kept nowhere.
        source: what is imported; a state of something else is refused.
    """

    def __init__(self, name: str | None, source: str) -> None:
        self._path = None if name is None else Path(name)
        self._source = source
        self.number = 0
        self.offset = 0
        if self._path is not None:
            self._read(self._path)

    def keep(self, place: Place) -> None:
        """Everything up to ``place`` is stored."""
        self.number, self.offset = place.number, place.end
        if self._path is None:
            return
        fields = {"source": self._source, "number": self.number, "offset": self.offset}
        beside = self._path.with_name(f"{self._path.name}.new")
        try:
            beside.write_text(json.dumps(fields) + "\n")
            beside.replace(self._path)
        except OSError as error:
            raise CommandError(FAILED, f"{self._path}: {error.strerror}") from error

    def remove(self) -> None:
        """All is done: the next import begins anew."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _read(self, path: Path) -> None:
        try:
            found = json.loads(path.read_text())
            source, self.number, self.offset = found["source"], found["number"], found["offset"]
        except FileNotFoundError:
            return
        except OSError as error:
            raise CommandError(FAILED, f"{path}: {error.strerror}") from error
        except (ValueError, TypeError, KeyError):
            raise CommandError(FAILED, f"{path} does not say how far an import has got") from None
        if source != self._source:
            raise CommandError(FAILED, f"{path} says how far another import has got: of {source}")
