"""``zkv-cli import``: stores the entries of a file, or of another system, in batches.

Strategy: an `ImportSource` hands out batches. A batch is one request, which stores all of it or
nothing; batches are sent in the order of the source. Storing an entry twice is the same as storing
it once, so an interrupted import may be repeated.

If the server refuses a batch, its halves are sent, until the record at fault is known. Of a file,
everything before that is stored, its number and the reason are printed, and nothing after it is
read (`ImportWriter`). Of another system, it is named and left out; what is in the store already is
left as it is, and at the end all has been compared with what is there (`CheckedWriter`).
"""

from __future__ import annotations

import argparse
import hashlib
import time
from typing import TYPE_CHECKING, Any, Final

import msgpack

from zkv.cli.asking import NEGATIVE, CommandSession, failure, reading
from zkv.cli.exporting import EntryReader, Limits, ServerClock, limits_of
from zkv.cli.file_source import FileSource
from zkv.cli.output import FAILED, CommandError, note, print_result
from zkv.cli.progress import TransferProgress
from zkv.cli.sources import ImportBatch, ImportSource
from zkv.cli.sources.opening import check_file_options
from zkv.client.codec import PACKED, Packed
from zkv.client.messages import pack_request
from zkv.entries.records import Place, Record
from zkv.entries.text import to_json
from zkv.errors import ZkvError

if TYPE_CHECKING:
    from zkv.cli.sources.foreign import ForeignSource
    from zkv.client import Client

GROWTH: Final = 3
"""More than a byte of a file becomes in a request: ``1e9,``, four bytes, is a float of nine."""
REQUEST_OVERHEAD: Final = 256
"""More than a request has beside its fields, with its envelope."""
SLACK: Final = 2_000
"""Milliseconds in which two ends of an entry are the same: etcd counts seconds."""


def run(session: CommandSession, options: argparse.Namespace) -> int:
    """Store the entries, and print how many there were."""
    client = session.client(options)
    began = time.monotonic()
    limits, clock = limits_of(client), ServerClock(client)
    source, writer = _open(options, client, clock, limits)
    with source:
        try:
            with TransferProgress("import", f"{source.unit}s", source.size) as progress:
                for batch in source.batches():
                    writer.store(batch)
                    source.keep(batch, writer.rev)
                    progress.show(batch.places[-1].number, batch.done)
        except (CommandError, ZkvError, KeyboardInterrupt):
            note(source.reached(writer.reached))
            raise
    source.end()
    if options.json:
        seconds = round(time.monotonic() - began, 3)
        print_result(to_json({"ok": writer.status == 0, **writer.told(), "seconds": seconds}))
    else:
        print_result(writer.told_as_text())
    return writer.status


def _open(
    options: argparse.Namespace, client: Client, clock: ServerClock, limits: Limits
) -> tuple[ImportSource, ImportWriter]:
    """The source that is asked for, and what stores its records. Raises CommandError."""
    if options.source is None:
        check_file_options(options)
        file = FileSource(options, client, limits.record)
        return file, ImportWriter(client, file, clock, limits.message)
    from zkv.cli.sources.opening import open_source

    source = open_source(options, clock, limits)
    return source, CheckedWriter(client, source, clock, limits.message)


class ImportWriter:
    """Stores batches, and counts.

    Args:
        client: of the server.
        source: where the records come from.
        clock: that of the server.
        most: bytes of the largest request; a larger one would get no reply.
    """

    def __init__(self, client: Client, source: ImportSource, clock: ServerClock, most: int) -> None:
        self._most = most
        self._client = client
        self._source = source
        self._clock = clock
        self.stored = 0
        self.expired = 0
        self.rev = 0
        self.reached = 0
        """Number of the last record of those that are stored without a gap."""

    def store(self, batch: ImportBatch) -> None:
        """Store a batch.

        Raises:
            CommandError: one of the records cannot be stored; all before it are.
        """
        self._store(batch.places, batch.size)

    def told(self) -> dict[str, Any]:
        """The result, as ``--json`` prints it."""
        return {"stored": self.stored, "expired": self.expired, "rev": self.rev}

    def told_as_text(self) -> str:
        """The result, as lines."""
        line = f"OK, {', '.join(self._counts())}"
        return f"{line}, revision {self.rev}" if self.stored else line

    @property
    def status(self) -> int:
        """The exit status."""
        return 0

    def _counts(self) -> list[str]:
        """The number of records to which each thing happened."""
        gone = [f"{self.expired} left out that have expired"] if self.expired else []
        return [f"{self.stored} stored", *gone]

    def _store(self, places: list[Place], size: int) -> None:
        """Store records, of about ``size`` bytes."""
        now = self._clock.now()
        lasting = [_lasting(place.record, now) for place in places if place.record is not None]
        entries = [entry for entry in lasting if entry.ttl is None or entry.ttl > 0]
        error = self._send(entries, size) if entries else None
        if error is None:
            self.stored += len(entries)
            self.expired += len(lasting) - len(entries)
        elif len(places) > 1:
            middle = len(places) // 2
            self._store(places[:middle], size)
            self._store(places[middle:], size)
        else:
            self._leave_out(places[0], error)
        self.reached = places[-1].number

    def _leave_out(self, place: Place, error: Exception) -> None:
        """Note that the server does not take a record."""
        self._source.leave_out(place, error)

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


class CheckedWriter(ImportWriter):
    """Stores what is not there already, and compares all with what is then in the store.

    Args:
        client: of the server.
        source: where the records come from.
        clock: that of the server.
        most: bytes of the largest request.
    """

    _source: ForeignSource

    def __init__(
        self, client: Client, source: ForeignSource, clock: ServerClock, most: int
    ) -> None:
        super().__init__(client, source, clock, most)
        self._reader = EntryReader(client, clock)
        self._refused: set[str] = set()
        self._wanted, self._found = Digest(), Digest()
        self.there = 0

    def store(self, batch: ImportBatch) -> None:
        """See `ImportWriter.store`; what the server refuses is left out."""
        now = round(self._clock.now() * 1000)
        places = self._lasting(batch.places, now)
        there = self._read(list(places))
        new = [place for key, place in places.items() if not _is_same(place, there.get(key))]
        self._refused.clear()
        if new:
            self._store(new, batch.size)
            there |= self._read([place.record.key for place in new if place.record is not None])
        self.there += len(places) - len(new)
        self._compare(places, there)
        self.reached = batch.places[-1].number

    def told(self) -> dict[str, Any]:
        """See `ImportWriter.told`."""
        checked = {
            "there": self.there,
            "left_out": self._source.left_out,
            "read": self._wanted.told(),
            "found": self._found.told(),
            "verified": self._is_verified,
        }
        return super().told() | checked

    def told_as_text(self) -> str:
        """See `ImportWriter.told_as_text`."""
        line = super().told_as_text()
        wanted, found = self._wanted, self._found
        if self._is_verified:
            return f"{line}\nverified: what was read is there, {wanted}"
        return f"{line}\nNOT VERIFIED: what was read has {wanted}; what is there has {found}"

    @property
    def status(self) -> int:
        """See `ImportWriter.status`."""
        if not self._is_verified:
            return FAILED
        return NEGATIVE if self._source.left_out else 0

    def _counts(self) -> list[str]:
        """See `ImportWriter._counts`."""
        there = [f"{self.there} there already"] if self.there else []
        left_out = self._source.left_out
        return [*super()._counts(), *there, *([f"{left_out} left out"] if left_out else [])]

    @property
    def _is_verified(self) -> bool:
        return self._wanted.told() == self._found.told()

    def _lasting(self, places: list[Place], now: int) -> dict[str, Place]:
        """The records to store, by key. Of two with one key, the later counts."""
        lasting = {}
        for place in places:
            record = place.record
            if record is None:
                continue
            if record.expires is not None and record.expires <= now:
                self.expired += 1
            else:
                lasting[record.key] = place
        return lasting

    def _read(self, keys: list[str]) -> dict[str, Record]:
        """The entries of keys in the store."""
        return {record.key: record for page in self._reader.read(keys) for record in page}

    def _leave_out(self, place: Place, error: Exception) -> None:
        super()._leave_out(place, error)
        if place.record is not None:
            self._refused.add(place.record.key)

    def _compare(self, places: dict[str, Place], there: dict[str, Record]) -> None:
        """Count what is wanted, and what is in the store."""
        now = round(self._clock.now() * 1000)
        for key, place in places.items():
            record, found = place.record, there.get(key)
            if record is None or key in self._refused:
                continue
            if found is None and record.expires is not None and record.expires <= now:
                continue  # It has been stored, and has expired since.
            self._wanted.add(record)
            if found is not None:
                self._found.add(found)
            if not _is_same(place, found):
                what = "has another value or time" if found else "is not there"
                note(f"{key!r:.200} {what} in the store: who else writes there?")


class Digest:
    """A count of entries, and a hash that does not depend on their order.

    It is the sum of the hashes of all entries, modulo 2**128: it finds what gets lost or changed by
    a fault, and not what somebody forges.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0

    def __str__(self) -> str:
        return f"count {self.count}, hash {self._sum:032x}"

    def add(self, record: Record) -> None:
        """Add key and value of an entry."""
        hashed = hashlib.blake2b(_pack(record.key) + record.value, digest_size=16).digest()
        self.count += 1
        self._sum = (self._sum + int.from_bytes(hashed)) % 2**128

    def told(self) -> dict[str, Any]:
        """Count and hash, as JSON has them."""
        return {"count": self.count, "hash": f"{self._sum:032x}"}


def _is_same(place: Place, found: Record | None) -> bool:
    """True if an entry in the store is as it was read."""
    record = place.record
    if record is None or found is None or found.value != record.value:
        return False
    if record.expires is None or found.expires is None:
        return record.expires is found.expires
    return abs(record.expires - found.expires) <= SLACK


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
