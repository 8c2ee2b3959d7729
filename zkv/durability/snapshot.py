"""Snapshot files: the whole store at one revision, in a form that any msgpack library can read.

A file is ``<revision, 20 digits>.snapshot`` and a stream of msgpack arrays, its frames::

    [kind: uint32, crc: uint32, payload: bin32]

    kind 1  header   {"format": "zkv-snapshot", "version": 1, "rev": int, "created": int}
    kind 2  entries  [[key, value, rev], ...]                         any number of these
    kind 3  footer   {"rev": int, "entries": int, "frames": int, "crc": int}

A payload is itself packed msgpack. The integers of a frame are packed in their widest form, so the
head of a frame is always 16 bytes. ``crc`` is the CRC-32 of kind, payload length (both 4 bytes, big
end first) and payload. The footer counts the entries and the frames before it, and its ``crc`` is
the CRC-32 of the ``crc`` fields (4 bytes each, big end first) of all frames before it. ``created``
is Unix time in milliseconds. Nothing follows the footer.

A reader is satisfied only if every count and checksum holds, the revision is the same in header,
footer and name, and the file ends with the footer: so one flipped bit, a missing byte or a frame
out of place is noticed, and a file that was not finished never counts.

Writing: beside (``.tmp``), synced, renamed, directory synced. A crash leaves either the whole file
or a ``.tmp`` that is not looked at, and removed at the next start.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from os import SEEK_END
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple, TypeVar

import msgspec
from msgspec import Raw, Struct

from zkv.errors import DamageError
from zkv.keyspace.entry import Entry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zkv.durability.files import Files

FORMAT: Final = "zkv-snapshot"
FORMAT_VERSION: Final = 1
SUFFIX: Final = ".snapshot"
UNFINISHED: Final = ".tmp"
KEPT_SNAPSHOTS: Final = 2
"""The newest is loaded; the one before is the way back when that is damaged."""

_HEAD: Final = struct.Struct(">BBIBIBI")
"""A frame up to its payload: array of 3, uint32 kind, uint32 crc, bin32 length."""
_ARRAY3, _UINT32, _BIN32 = 0x93, 0xCE, 0xC6
_HEADER, _ENTRIES, _FOOTER = 1, 2, 3


class Header(Struct, frozen=True, forbid_unknown_fields=True):
    """The file's first value."""

    format: str
    version: int
    rev: int
    created: int


class Footer(Struct, frozen=True, forbid_unknown_fields=True):
    """The file's last value."""

    rev: int
    entries: int
    frames: int
    crc: int


_T = TypeVar("_T")
PackedEntry = tuple[str, Raw, int]

_encode = msgspec.msgpack.encode
_decode_entries = msgspec.msgpack.Decoder(list[PackedEntry]).decode
_decode_header = msgspec.msgpack.Decoder(Header).decode
_decode_footer = msgspec.msgpack.Decoder(Footer).decode


class Loaded(NamedTuple):
    """What a snapshot held."""

    rev: int
    entries: dict[str, Entry]


def file_name(rev: int) -> str:
    """The name of the snapshot at ``rev``; names sort as revisions do."""
    return f"{rev:020d}{SUFFIX}"


def revision_of(name: str) -> int | None:
    """The revision in a snapshot's file name; None for any other name."""
    stem = name.removesuffix(SUFFIX)
    is_one = stem != name and len(stem) == 20 and stem.isascii() and stem.isdigit()
    return int(stem) if is_one else None


class Writer:
    """Writes one snapshot file, frame by frame, and gives it its name only when it is whole.

    Use as a context manager; leaving it without `finish` removes what was written. Every method
    raises OSError where the file system does.

    Args:
        files: the door to the file system.
        directory: where snapshots live.
        rev: the revision that the entries belong to.
        created: Unix time in milliseconds.
    """

    def __init__(self, files: Files, directory: Path, rev: int, created: int) -> None:
        self._files = files
        self._directory = directory
        self._rev = rev
        self._path = directory / file_name(rev)
        self._beside = self._path.with_name(self._path.name + UNFINISHED)
        self._entries = 0
        self._frames = 0
        self._crc = 0
        self.size = 0
        self._file = files.create(self._beside)
        self._frame(_HEADER, _encode(Header(FORMAT, FORMAT_VERSION, rev, created)))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._file.closed:
            self._file.close()
            with contextlib.suppress(OSError):
                self._files.remove(self._beside)

    def add(self, chunk: list[tuple[str, Entry]]) -> None:
        """Write some entries as one frame."""
        if chunk:
            packed = [(key, Raw(entry.value), entry.rev) for key, entry in chunk]
            self._frame(_ENTRIES, _encode(packed))
            self._entries += len(chunk)

    def finish(self) -> Path:
        """Make the file durable under its name, which is returned."""
        footer = Footer(self._rev, self._entries, self._frames, self._crc)
        self._frame(_FOOTER, _encode(footer))
        self._files.sync(self._file)
        self._files.rename(self._beside, self._path)
        self._file.close()
        self._files.sync_directory(self._directory)
        return self._path

    def _frame(self, kind: int, payload: bytes) -> None:
        crc = _checksum(kind, payload)
        head = _HEAD.pack(_ARRAY3, _UINT32, kind, _UINT32, crc, _BIN32, len(payload))
        self._files.write(self._file, head + payload)
        self._crc = _chain(self._crc, crc)
        self._frames += 1
        self.size += len(head) + len(payload)


def read(
    files: Files, path: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Loaded:
    """Read a snapshot file whole and check all of it.

    Args:
        files: the door to the file system.
        path: of the file.
        progress: told now and then how many bytes of how many have been read.

    Raises:
        DamageError: anything in it is not as it was written; names file, place and reason.
        OSError: the file cannot be read.
    """
    with files.open_read(path) as file:
        reader = _Reader(file, path)
        header = reader.header()
        if header.rev != revision_of(path.name):
            raise reader.damage(f"the header says revision {header.rev}, the name another")
        entries: dict[str, Entry] = {}
        while (payload := reader.next_entries()) is not None:
            for key, value, rev in reader.decode(_decode_entries, payload):
                entries[key] = Entry(bytes(value), rev)
            progress(reader.offset, reader.size)
        reader.check_end(header.rev, len(entries))
    return Loaded(header.rev, entries)


class _Reader:
    """Takes a snapshot file apart into frames, and says where one is wrong."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self.size = file.seek(0, SEEK_END)
        file.seek(0)
        self.offset = 0  # Where the frame read last begins.
        self._next = 0
        self._frames = 0
        self._crc = 0
        self._footer = b""

    def damage(self, reason: str) -> DamageError:
        return DamageError(f"{self._path}: damaged at offset {self.offset}: {reason}")

    def header(self) -> Header:
        kind, payload = self._frame()
        if kind != _HEADER:
            raise self.damage("this is no zkv snapshot")
        header = self.decode(_decode_header, payload)
        if (header.format, header.version) != (FORMAT, FORMAT_VERSION):
            raise self.damage(
                f"format {header.format!r} version {header.version}; "
                f"this zkv reads {FORMAT!r} version {FORMAT_VERSION}"
            )
        return header

    def next_entries(self) -> bytes | None:
        """The payload of the next entries frame; None when the footer has come instead."""
        crc, frames = self._crc, self._frames
        kind, payload = self._frame()
        if kind == _ENTRIES:
            return payload
        if kind != _FOOTER:
            raise self.damage(f"unknown kind of frame {kind}")
        self._crc, self._frames, self._footer = crc, frames, payload
        return None

    def check_end(self, rev: int, entries: int) -> None:
        footer = self.decode(_decode_footer, self._footer)
        if footer != Footer(rev, entries, self._frames, self._crc):
            raise self.damage("the footer does not match what stands before it")
        if self._file.read(1):
            raise self.damage("something follows the footer")

    def decode(self, decoder: Callable[[bytes], _T], payload: bytes) -> _T:
        try:
            return decoder(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self.damage(f"not what a snapshot holds: {error}") from None

    def _frame(self) -> tuple[int, bytes]:
        self.offset = self._next
        head = self._file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise self.damage("the file ends too early")
        array3, mark1, kind, mark2, crc, mark3, length = _HEAD.unpack(head)
        if (array3, mark1, mark2, mark3) != (_ARRAY3, _UINT32, _UINT32, _BIN32):
            raise self.damage("no frame begins here")
        if length > self.size - self.offset - _HEAD.size:
            raise self.damage("the file ends too early")
        payload = self._file.read(length)
        if _checksum(kind, payload) != crc:
            raise self.damage("the checksum does not match")
        self._next += len(head) + length
        self._crc = _chain(self._crc, crc)
        self._frames += 1
        return kind, payload


def _checksum(kind: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack(">II", kind, len(payload))))


def _chain(crc: int, frame_crc: int) -> int:
    return zlib.crc32(struct.pack(">I", frame_crc), crc)
