"""Log segments: the file format of the write-ahead log, and reading it.

A segment is ``wal/<first revision, 20 digits>.wal``::

    header   "zkv-wal" 0x01 | first revision: 8 bytes | crc: 4 bytes            20 bytes
    frame    length: 4 | crc: 4 | synced: 8 | payload: length bytes             any number of these

Integers are unsigned, big end first. The header's crc is the CRC-32 of the 16 bytes before it. A
frame's ``crc`` is the CRC-32 of its length, synced and payload. ``synced`` is the offset in this
file up to which everything was known to be on disk when the frame was written: it vouches for what
stands before that offset. A payload is one commit, a msgpack array::

    [rev: uint64, time: uint64, changes: [[op, key, value], ...]]

``rev`` and ``time`` (Unix time in milliseconds) are packed in their widest form, so every payload
begins with the same two bytes: after damage, frames further on can be found again. ``op`` is "PUT"
or "DELETE" (whose value is nil). Values are absolute, so a commit may be applied again.

Revisions in a segment go up by one from frame to frame. A segment is synced whole before the next
is made, and the next one's name says where it ended: only the newest segment can have a torn tail.

How a bad frame is judged (`Scan`): everything before it stands. If any frame that can be found
behind it says that the file was synced beyond the bad frame's beginning, the bad frame had been
acknowledged: that is damage. If not, it is a torn tail: bytes that a crash kept from reaching the
disk, and that nobody was told were there.
"""

from __future__ import annotations

import struct
import zlib
from os import SEEK_END
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

import msgspec
from msgspec import Raw

from zkv.errors import DamageError
from zkv.keyspace.change import Change

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zkv.durability.files import Files

SUFFIX: Final = ".wal"
MAGIC: Final = b"zkv-wal\x01"
_HEADER: Final = struct.Struct(">8sQI")
HEADER_BYTES: Final = _HEADER.size
_HEAD: Final = struct.Struct(">IIQ")
_CHECKED: Final = struct.Struct(">IQ")
_COMMIT: Final = struct.Struct(">BBQBQ")
_ARRAY3, _UINT64 = 0x93, 0xCF
PAYLOAD_MARK: Final = bytes((_ARRAY3, _UINT64))
_SEARCH_BYTES: Final = 1 << 20

_encode = msgspec.msgpack.encode
_PackedCommit = tuple[int, int, list[tuple[str, str, Raw]]]
_decode_commit = msgspec.msgpack.Decoder(_PackedCommit).decode
_NIL: Final = b"\xc0"


class Commit(NamedTuple):
    """What one write request changed: a frame's payload."""

    rev: int
    time: int
    """Unix time in milliseconds."""
    changes: tuple[Change, ...]


class Frame(NamedTuple):
    """A frame as it stands in a file."""

    offset: int
    end: int
    synced: int
    payload: bytes


def file_name(first_rev: int) -> str:
    """The name of the segment that begins with ``first_rev``; names sort as revisions do."""
    return f"{first_rev:020d}{SUFFIX}"


def first_revision(name: str) -> int | None:
    """The revision in a segment's file name; None for any other name."""
    stem = name.removesuffix(SUFFIX)
    is_one = stem != name and len(stem) == 20 and stem.isascii() and stem.isdigit()
    return int(stem) if is_one else None


def pack_header(first_rev: int) -> bytes:
    """The first bytes of a segment."""
    head = _HEADER.pack(MAGIC, first_rev, 0)[:-4]
    return head + struct.pack(">I", zlib.crc32(head))


def pack_frame(commit: Commit, synced: int) -> bytes:
    """One commit as a frame, written when the file was on disk up to ``synced``."""
    changes = [
        (op, key, Raw(_NIL if value is None else value)) for op, key, value in commit.changes
    ]
    payload = _COMMIT.pack(_ARRAY3, _UINT64, commit.rev, _UINT64, commit.time) + _encode(changes)
    length = len(payload)
    crc = zlib.crc32(payload, zlib.crc32(_CHECKED.pack(length, synced)))
    return _HEAD.pack(length, crc, synced) + payload


def unpack_commit(payload: bytes) -> Commit:
    """The commit in a frame's payload. Raises ValueError where it is none."""
    try:
        rev, time, packed = _decode_commit(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not what a log holds: {error}") from None
    changes = tuple(
        Change(op, key, None if op == "DELETE" else bytes(value)) for op, key, value in packed
    )
    return Commit(rev, time, changes)


class Scan:
    """Reads one segment from its beginning, and judges what it finds at the end.

    Iterate over `commits` first; then `end` is the offset behind the last good frame, `next_rev`
    the revision that would come next, and `fault` what stopped the reading, or None.

    Args:
        files: the door to the file system.
        path: of the segment.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, files: Files, path: Path) -> None:
        self.path = path
        self.size = 0
        self.end = 0
        self.next_rev = 0
        self.fault: str | None = None
        self.vouched = 0
        """The furthest offset that a good frame behind the fault says was on disk."""
        self.vouched_rev = 0
        """The newest revision in a good frame behind the fault; 0 if there is none."""
        self._file = files.open_read(path)

    def commits(self) -> Iterator[Commit]:
        """Every commit up to the end or the first fault. Raises OSError."""
        with self._file as file:
            self.size = file.seek(0, SEEK_END)
            file.seek(0)
            self.fault = self._read_header(file)
            while self.fault is None and self.end < self.size:
                frame = self._read_frame(file)
                if frame is None:
                    break
                try:
                    commit = unpack_commit(frame.payload)
                except ValueError as error:
                    self.fault = str(error)
                    break
                if commit.rev != self.next_rev:
                    self.fault = f"revision {commit.rev} where {self.next_rev} should be"
                    break
                yield commit
                self.next_rev += 1
                self.end = frame.end
            if self.fault is not None:
                self._search_evidence(file)

    @property
    def damaged(self) -> bool:
        """Whether the fault is damage of what had been on disk, and no torn tail."""
        return self.fault is not None and self.vouched > self.end

    def damage(self) -> DamageError:
        """The fault as an error that names file, offset and revisions."""
        last = f"to {self.vouched_rev}" if self.vouched_rev else "on"
        return DamageError(
            f"{self.path}: damaged at offset {self.end}: {self.fault}; revisions from "
            f"{self.next_rev} {last} are affected"
        )

    def _read_header(self, file: BinaryIO) -> str | None:
        header = file.read(HEADER_BYTES)
        name_rev = first_revision(self.path.name)
        self.next_rev = name_rev or 0
        if len(header) < HEADER_BYTES:
            return "the file ends within its header"
        if header != pack_header(self.next_rev):
            return "the header is not that of this segment"
        self.end = HEADER_BYTES
        return None

    def _read_frame(self, file: BinaryIO) -> Frame | None:
        """The frame at `end`; None, and `fault` set, where there is no good one."""
        frame = _frame_at(file, self.end, self.size)
        if isinstance(frame, str):
            self.fault = frame
            return None
        return frame

    def _search_evidence(self, file: BinaryIO) -> None:
        """Look behind the fault for good frames, and for what they vouch for."""
        position = self.end + 1
        while (found := _find(file, PAYLOAD_MARK, position)) is not None:
            offset = found - _HEAD.size
            position = found + 1
            if offset <= self.end:
                continue
            file.seek(offset)
            frame = _frame_at(file, offset, self.size)
            if isinstance(frame, Frame):
                self.vouched = max(self.vouched, frame.synced)
                self.vouched_rev = max(self.vouched_rev, _revision_in(frame.payload))
                position = frame.end


def _frame_at(file: BinaryIO, offset: int, size: int) -> Frame | str:
    """The good frame at ``offset``, where ``file`` stands, or what is wrong there."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return "the file ends within a frame"
    length, crc, synced = _HEAD.unpack(head)
    if length > size - offset - _HEAD.size:
        return "the file ends within a frame"
    payload = file.read(length)
    if zlib.crc32(payload, zlib.crc32(_CHECKED.pack(length, synced))) != crc or not length:
        return "the checksum does not match"
    return Frame(offset, offset + _HEAD.size + length, synced, payload)


def _find(file: BinaryIO, mark: bytes, position: int) -> int | None:
    """The offset of the next ``mark`` at or behind ``position``."""
    while True:
        file.seek(position)
        data = file.read(_SEARCH_BYTES)
        found = data.find(mark)
        if found >= 0:
            return position + found
        if len(data) < _SEARCH_BYTES:
            return None
        position += len(data) - len(mark) + 1


def _revision_in(payload: bytes) -> int:
    return int.from_bytes(payload[2:10], "big")
