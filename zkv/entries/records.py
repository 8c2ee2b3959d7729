r"""Entries in a file, as ``zkv-cli export`` writes and ``zkv-cli import`` reads them.

Two formats, with the same fields:

    json      one object per line: {"key": "a", "value": [1, {"$bin": "AP8="}], "rev": 7}
    msgpack   one map after the other, with nothing between them

``key`` is text, ``value`` any value. ``rev`` is written and not read. An entry that expires has
``expires``, Unix time in milliseconds, which is what is written, or ``ttl``, seconds from when it
is stored. In JSON a value has the text form of `zkv.entries.value_writer`; in msgpack it is as the
server holds it, byte for byte. ``zkv dump`` prints the same lines.

Invariant: reading takes bounded memory, whatever a file holds. A record that is longer than any
that the server takes is refused as soon as that is known.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import IO, Any, Final, NamedTuple

import msgpack
import msgspec

from zkv.client.codec import Packed
from zkv.defaults import TOO_DEEP
from zkv.entries.text import to_json
from zkv.entries.value_reader import pack_parsed, parse
from zkv.entries.value_writer import head_at, write
from zkv.reading import BadTextError, decode

FIELDS: Final = frozenset({"key", "value", "rev", "expires", "ttl"})
LATEST: Final = 2**63 - 1
CHUNK: Final = 256 * 1024
"""Bytes of a msgpack stream that are read at once."""


class Record(NamedTuple):
    """One entry in a file.

    Args:
        key: its key.
        value: its value.
        rev: its revision; None if the file does not have it.
        expires: Unix time in milliseconds; None = it does not expire, unless there is a ``ttl``.
        ttl: seconds from the moment at which it is stored; None likewise.
    """

    key: str
    value: Packed
    rev: int | None = None
    expires: int | None = None
    ttl: float | None = None


class BadRecordError(Exception):
    """Something in a file is not an entry: says why."""


class CutOffError(BadRecordError):
    """The file ends within a record."""


class Place(NamedTuple):
    """A record, and where it is.

    Args:
        number: of the line, or of the map in a msgpack stream, from 1.
        end: the offset of the byte after it.
        record: the record; None for an empty line.
    """

    number: int
    end: int
    record: Record | None


def written(record: Record, packed: bool) -> bytes:
    """A record as it is in a file; it has a ``rev``, and no ``ttl``."""
    key, value, rev, expires, _ = record
    if packed:
        first = b"\x83\xa3key" if expires is None else b"\x84\xa3key"
        last = b"" if expires is None else b"\xa7expires" + _pack(expires)
        return b"".join((first, _pack(key), b"\xa5value", value, b"\xa3rev", _pack(rev), last))
    last_text = "" if expires is None else f', "expires": {expires}'
    return f'{{"key": {to_json(key)}, "value": {write(value)}, "rev": {rev}{last_text}}}\n'.encode()


_pack: Final = msgpack.Packer().pack


def read(
    file: IO[bytes], packed: bool, longest: int, number: int = 0, offset: int = 0
) -> Iterator[Place]:
    """The records of a file, as long as they can be read.

    Args:
        file: open at ``offset``.
        packed: whether it is a msgpack stream.
        longest: bytes of the longest record.
        number: how many records are before that.
        offset: how many bytes they take.

    Raises:
        BadRecordError: one cannot be read; it is the one after the last that was returned.
        OSError: the file cannot be read.
    """
    records = _read_packed if packed else _read_lines
    return records(file, longest, number, offset)


def _read_lines(file: IO[bytes], longest: int, number: int, offset: int) -> Iterator[Place]:
    while line := file.readline(longest + 1):
        if len(line) > longest:
            raise BadRecordError(f"it has more than {longest} bytes")
        number, offset = number + 1, offset + len(line)
        yield Place(number, offset, _from_line(line) if line.strip() else None)


def _from_line(line: bytes) -> Record:
    try:
        text = decode(line)
        fields = parse(text)
        if isinstance(fields, dict) and "value" in fields:
            fields["value"] = Packed(pack_parsed(fields["value"], text, "value"))
    except BadTextError as error:
        raise BadRecordError(str(error)) from None
    return _record(fields)


def _read_packed(file: IO[bytes], longest: int, number: int, offset: int) -> Iterator[Place]:
    kept = bytearray()
    """The bytes read that belong to no record yet; ``offset`` is where they begin."""
    for end in _ends(file, kept, longest, offset):
        record = bytes(kept[: end - offset])
        del kept[: end - offset]
        number, offset = number + 1, end
        yield Place(number, offset, _from_map(record))
    if kept:
        raise CutOffError("it is cut off: the file ends within it")


def _ends(file: IO[bytes], kept: bytearray, longest: int, offset: int) -> Iterator[int]:
    """Where each msgpack value in a file ends. Its bytes are added to ``kept`` before that."""
    reader = msgpack.Unpacker(max_buffer_size=longest + CHUNK)
    while chunk := file.read1(CHUNK) if hasattr(file, "read1") else file.read(CHUNK):
        kept += chunk
        try:
            reader.feed(chunk)
            while True:
                reader.skip()
                yield offset + reader.tell()
        except msgpack.OutOfData:
            pass
        except msgpack.BufferFull:
            raise BadRecordError(f"it has more than {longest} bytes") from None
        except msgpack.StackError:
            raise BadRecordError(f"it {TOO_DEEP}") from None
        except ValueError:
            raise BadRecordError("it is no msgpack: no value begins with its byte") from None


def _from_map(record: bytes) -> Record:
    try:
        fields = {name: _field(name, packed) for name, packed in _decode(record).items()}
    except RecursionError:
        raise BadRecordError(f"it {TOO_DEEP}") from None
    except (ValueError, TypeError):
        is_map = head_at(record, 0).kind == "map"
        why = "has a field that cannot be read" if is_map else "is no map with key and value"
        raise BadRecordError(f"it {why}") from None
    return _record(fields)


_decode: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_decode_field: Final = msgspec.msgpack.Decoder().decode


def _field(name: str, packed: msgspec.Raw) -> Any:
    return Packed(packed) if name == "value" else _decode_field(packed)


def _record(fields: Any) -> Record:
    """The record in a map, of which the value is packed. Raises BadRecordError."""
    if not isinstance(fields, dict):
        raise BadRecordError("it is no map with key and value")
    if unknown := fields.keys() - FIELDS:
        raise BadRecordError(f"it has a field that is not known: {min(map(str, unknown))!r}")
    if "value" not in fields:
        raise BadRecordError("it has no value")
    key, expires, ttl = fields.get("key"), fields.get("expires"), fields.get("ttl")
    if not isinstance(key, str):
        raise BadRecordError("it has no key that is text")
    if expires is not None and not (type(expires) is int and abs(expires) <= LATEST):
        raise BadRecordError(f"expires is Unix time in milliseconds, an int up to {LATEST}")
    if ttl is not None and not (type(ttl) in {int, float} and 0 < ttl <= sys.float_info.max):
        raise BadRecordError("ttl is a number of seconds above 0")
    if expires is not None and ttl is not None:
        raise BadRecordError("it has both expires and ttl")
    return Record(key, fields["value"], fields.get("rev"), expires, ttl)


def last_key(
    file: IO[bytes], packed: bool, longest: int, prefix: str, after: str | None
) -> tuple[str | None, int]:
    """Where an unfinished export ends.

    Args:
        file: at its beginning.
        packed: whether it is a msgpack stream.
        longest: bytes of the longest record.
        prefix: with which all keys have to begin.
        after: a key that all of them have to follow; None = none.

    Returns:
        The key of the last complete record, None if there is none; and the offset after it.

    Raises:
        BadRecordError: it is not an export of such keys.
        OSError: it cannot be read.
    """
    whole = file.seek(0, 2) if packed else _whole_lines(file)
    file.seek(0)
    key, end = None, 0
    try:
        for place in read(file, packed, longest):
            if place.end > whole:
                break
            if place.record is None:
                raise BadRecordError(f"line {place.number} is empty")
            before = after if key is None else key
            key, end = place.record.key, place.end
            if not key.startswith(prefix) or (before is not None and key <= before):
                raise BadRecordError(f"the key {key!r:.80} has no place where it stands")
    except CutOffError:
        pass
    except BadRecordError:
        if packed or file.tell() <= whole:
            raise
    return key, end


def _whole_lines(file: IO[bytes]) -> int:
    """The offset after the last complete line."""
    begin = file.seek(0, 2)
    while begin > 0:
        at = max(0, begin - CHUNK)
        file.seek(at)
        found = file.read(begin - at).rfind(b"\n")
        if found >= 0:
            return at + found + 1
        begin = at
    return 0
