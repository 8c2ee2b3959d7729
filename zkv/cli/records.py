r"""Entries in a file, as ``zkv-cli export`` writes and ``zkv-cli import`` reads them.

Two formats, with the same fields:

    json      one object a line: {"key": "a", "value": [1, {"$bin": "AP8="}], "rev": 7}
    msgpack   one map behind the other, with nothing between them

``key`` is text, ``value`` anything. ``rev`` is told and not read. An entry that expires has either
``expires``, Unix time in milliseconds, which is what is written, or ``ttl``, seconds from when it
is stored. What JSON lacks has the forms of `zkv.cli.values`, which are read here, too.
``zkv dump`` prints the same lines, so a data directory can be moved entry by entry as well.

Reading takes bounded memory, whatever a file holds: a record that is longer than any that a server
takes is refused as soon as that is known.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import IO, Any, Final, NamedTuple

import msgpack

from zkv.cli.values import STR_ERRORS, from_json, to_json
from zkv.client.values import pack
from zkv.defaults import TOO_DEEP
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
        rev: its revision; None where the file does not say.
        expires: Unix time in milliseconds; None = it stays, unless there is a ``ttl``.
        ttl: seconds from the moment at which it is stored; None likewise.
    """

    key: str
    value: Any
    rev: int | None = None
    expires: int | None = None
    ttl: float | None = None


class BadRecordError(Exception):
    """What stands in a file is no entry: says why."""


class CutOffError(BadRecordError):
    """The file ends within a record."""


class Place(NamedTuple):
    """A record, and where it is.

    Args:
        number: of the line, or of the map in a msgpack stream, from 1.
        end: the byte behind it.
        record: what stands there; None in an empty line.
    """

    number: int
    end: int
    record: Record | None


def written(record: Record, packed: bool) -> bytes:
    """A record as it stands in a file. Raises ValueError where it nests too deeply for msgpack."""
    fields: dict[str, Any] = {"key": record.key, "value": record.value}
    for name, field in zip(Record._fields[2:], record[2:], strict=True):
        if field is not None:
            fields[name] = field
    return pack(fields) if packed else to_json(fields).encode() + b"\n"


def read(
    file: IO[bytes], packed: bool, longest: int, number: int = 0, offset: int = 0
) -> Iterator[Place]:
    """The records of a file, as long as they can be read.

    Args:
        file: open at ``offset``.
        packed: whether it is a msgpack stream.
        longest: bytes of the longest record.
        number: how many records stand before.
        offset: how many bytes they take.

    Raises:
        BadRecordError: one cannot be read; it is the one behind the last that was given.
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
        fields = from_json(decode(line))
    except BadTextError as error:
        raise BadRecordError(str(error)) from None
    return _record(fields)


def _read_packed(file: IO[bytes], longest: int, number: int, offset: int) -> Iterator[Place]:
    reader = msgpack.Unpacker(
        strict_map_key=False, unicode_errors=STR_ERRORS, max_buffer_size=longest + CHUNK
    )
    fed = whole = 0
    while chunk := file.read1(CHUNK) if hasattr(file, "read1") else file.read(CHUNK):
        try:
            reader.feed(chunk)
        except msgpack.BufferFull:
            raise BadRecordError(f"it has more than {longest} bytes") from None
        fed += len(chunk)
        while True:
            try:
                fields = reader.unpack()
            except msgpack.OutOfData:
                break
            except msgpack.StackError:
                raise BadRecordError(f"it {TOO_DEEP}") from None
            except (ValueError, TypeError) as error:
                raise BadRecordError(f"it is no msgpack: {_said(error)}") from None
            number, whole = number + 1, reader.tell()
            yield Place(number, offset + whole, _record(fields))
    if whole != fed:  # Not where the reader is by now: it counts what it has seen of the next one.
        raise CutOffError("it is cut off: the file ends within it")


def _said(error: Exception) -> str:
    """What msgpack has met, in our words."""
    if isinstance(error, RecursionError | msgpack.StackError):
        return f"it {TOO_DEEP}"
    if isinstance(error, msgpack.FormatError):
        return "it has a byte with which no value begins"
    if isinstance(error, TypeError):
        return "it has a map with a key that is a list or a map"
    if "exceeds" in str(error):
        return "it has a list or a map with more in it than there could be"
    return "it has an ext or a timestamp that is malformed"


def _record(fields: Any) -> Record:
    """The record that a map stands for. Raises BadRecordError."""
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
    """What stands in a file that was not written to its end.

    Args:
        file: at its beginning.
        packed: whether it is a msgpack stream.
        longest: bytes of the longest record.
        prefix: what all keys have to begin with.
        after: what they have to be behind; None = nothing.

    Returns:
        The key of its last whole record, None if there is none; and the byte behind that.

    Raises:
        BadRecordError: it holds something else.
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
    """Where the last line that is ended ends."""
    begin = file.seek(0, 2)
    while begin > 0:
        at = max(0, begin - CHUNK)
        file.seek(at)
        found = file.read(begin - at).rfind(b"\n")
        if found >= 0:
            return at + found + 1
        begin = at
    return 0
