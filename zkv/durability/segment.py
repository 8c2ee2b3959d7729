"""Log segments: the file format of the write-ahead log, and reading it.

A segment is ``wal/<first revision, 20 digits>.wal``::

    header   "zkv-wal" 0x01 | first revision: 8 | salt: 4 | check: 4             24 bytes
    frame    length: 4 | crc: 4 | synced: 8 | payload: length bytes             any number of these

Integers are unsigned, big end first. ``salt`` is random, another one in each segment; ``check`` is
the CRC-32 of the 16 bytes before the salt, exclusive-or the salt: so the salt can be told from
either. A frame's ``crc`` is the CRC-32 of its length, synced and payload, begun with the salt as
the CRC so far: no value that a client sends can pass for a frame. ``synced`` is the offset in this
file up to which everything was known to be on disk when the frame was written: it vouches for what
stands before that offset. A payload is one commit, see `zkv.keyspace.change`.

Revisions in a segment go up by one from frame to frame; a payload without changes, which only
remembers the reply to an exactly-once request that was refused, repeats the one before. A segment
is synced whole before the next is made, and the next one's name says where it ended: only the
newest segment can have a torn tail.

How a bad frame is judged (`SegmentScan`): everything before it stands. If any frame that can be
found behind it says that the file was synced beyond the bad frame's beginning, the bad frame had
been acknowledged: that is damage. If not, it is a torn tail: bytes that a crash kept from reaching
the disk, and that nobody was told were there.
"""

from __future__ import annotations

import secrets
import struct
import zlib
from os import SEEK_END
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from zkv import compiled
from zkv.errors import DamageError
from zkv.keyspace.change import (
    LEAST_PAYLOAD_BYTES,
    PAYLOAD_MARKS,
    changes_something,
    revision_in,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zkv.durability.files import Files
    from zkv.keyspace.change import Commit

SUFFIX: Final = ".wal"
MAGIC: Final = b"zkv-wal\x01"
_HEADER: Final = struct.Struct(">8sQII")
HEADER_BYTES: Final = _HEADER.size
_HEAD: Final = struct.Struct(">IIQ")
_CHECKED: Final = struct.Struct(">IQ")
LEAST_FRAME_BYTES: Final = _HEAD.size + LEAST_PAYLOAD_BYTES
_SEARCH_BYTES: Final = 1 << 20
LARGE_BYTES: Final = 4 << 20
"""So much is packed in Python, which lets go of its lock while it makes checksums: about 3 ms."""


class Frame(NamedTuple):
    """A frame as it stands in a file."""

    offset: int
    end: int
    synced: int
    payload: bytes


class Run(NamedTuple):
    """Good frames that follow each other in a file, as their revisions do."""

    first_rev: int
    """The revision of the first commit that changes something; ``last_rev`` + 1 if none does."""
    last_rev: int
    offset: int
    end: int
    salt: int


class SegmentEnd(NamedTuple):
    """Where a segment can be gone on with: behind its last good frame."""

    first_rev: int
    offset: int
    synced: int
    """The offset up to which it is known to be on disk, whatever the system's cache holds."""
    salt: int


def file_name(first_rev: int) -> str:
    """The name of the segment that begins with ``first_rev``; names sort as revisions do."""
    return f"{first_rev:020d}{SUFFIX}"


def first_revision(name: str) -> int | None:
    """The revision in a segment's file name; None for any other name."""
    stem = name.removesuffix(SUFFIX)
    is_one = stem != name and len(stem) == 20 and stem.isascii() and stem.isdigit()
    return int(stem) if is_one else None


def new_salt() -> int:
    """A salt that nobody can guess, for `pack_header`."""
    return secrets.randbits(32)


def pack_header(first_rev: int, salt: int) -> bytes:
    """The first bytes of a segment."""
    return _HEADER.pack(MAGIC, first_rev, salt, salt ^ _mask(first_rev))


def _mask(first_rev: int) -> int:
    """What ``salt`` and ``check`` of a header differ by."""
    return zlib.crc32(_HEADER.pack(MAGIC, first_rev, 0, 0)[:-8])


def pack_frames(payloads: list[bytes], synced: int, salt: int) -> bytes:
    """Commits as frames, written when the file was on disk up to ``synced``."""
    if compiled.COMPILED and sum(map(len, payloads)) < LARGE_BYTES:
        return compiled.store.pack_frames(payloads, synced, salt)
    frames: list[bytes] = []
    for payload in payloads:
        length = len(payload)
        crc = _checksum(length, synced, payload, salt)
        frames += _HEAD.pack(length, crc, synced), payload
    return b"".join(frames)


def _checksum(length: int, synced: int, payload: bytes, salt: int) -> int:
    return zlib.crc32(payload, zlib.crc32(_CHECKED.pack(length, synced), salt))


class SegmentScan:
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
        self.salt = 0
        self.synced = 0
        """The furthest offset that a good frame before the fault says was on disk."""
        self.fault: str | None = None
        self.vouched = 0
        """The furthest offset that a good frame behind the fault says was on disk."""
        self.vouched_rev = 0
        """The newest revision in a good frame behind the fault; 0 if there is none."""
        self.behind: list[Run] = []
        """The good frames that were found behind the fault."""
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
                    commit = unpack(frame.payload)
                except ValueError as error:
                    self.fault = str(error)
                    break
                expected = self.next_rev if commit.changes else self.next_rev - 1
                if commit.rev != expected:
                    self.fault = f"revision {commit.rev} where {expected} should be"
                    break
                yield commit
                self.next_rev = commit.rev + 1
                self.end = frame.end
                self.synced = max(self.synced, frame.synced)
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
        *_, salt, check = _HEADER.unpack(header)
        self.salt = salt
        if header != pack_header(self.next_rev, salt):
            # What is behind it is looked through with the salt that makes sense of a frame.
            other = check ^ _mask(self.next_rev)
            if isinstance(_frame_at(file, HEADER_BYTES, self.size, other), Frame):
                self.salt = other
            return "the header is not that of this segment"
        self.end = self.synced = HEADER_BYTES
        return None

    def _read_frame(self, file: BinaryIO) -> Frame | None:
        """The frame at `end`; None, and `fault` set, where there is no good one."""
        frame = _frame_at(file, self.end, self.size, self.salt)
        if isinstance(frame, str):
            self.fault = frame
            return None
        return frame

    def _search_evidence(self, file: BinaryIO) -> None:
        """Look behind the fault for good frames, and for what they vouch for."""
        position = self.end + 1
        while (found := _find_payload(file, position)) is not None:
            offset = found - _HEAD.size
            position = found + 1
            if offset <= self.end:
                continue
            file.seek(offset)
            frame = _frame_at(file, offset, self.size, self.salt)
            if isinstance(frame, Frame):
                self.vouched = max(self.vouched, frame.synced)
                self.vouched_rev = max(self.vouched_rev, revision_in(frame.payload))
                self._note_behind(frame)
                position = frame.end

    def _note_behind(self, frame: Frame) -> None:
        rev = revision_in(frame.payload)
        # A commit that changes nothing repeats the revision before it, and does not stand for it.
        first = rev if changes_something(frame.payload) else rev + 1
        run = self.behind[-1] if self.behind else None
        if run is not None and (run.end, run.last_rev + 1) == (frame.offset, first):
            self.behind[-1] = run._replace(last_rev=rev, end=frame.end)
        else:
            self.behind.append(Run(first, rev, frame.offset, frame.end, self.salt))


def read_run(files: Files, path: Path, run: Run) -> Iterator[Commit]:
    """The commits in a run of good frames. Raises DamageError, OSError."""
    with files.open_read(path) as file:
        offset = file.seek(run.offset)
        while offset < run.end:
            frame = _frame_at(file, offset, run.end, run.salt)
            if isinstance(frame, str):
                raise DamageError(f"{path}: damaged at offset {offset}: {frame}")
            try:
                yield unpack(frame.payload)
            except ValueError as error:
                raise DamageError(f"{path}: damaged at offset {offset}: {error}") from None
            offset = frame.end


def most_frames(files: Files, path: Path, offset: int) -> int:
    """How many frames there may have been from ``offset`` to the end, where none can be read.

    Exact where only payloads are damaged: the lengths then lead to the end. Raises OSError.
    """
    with files.open_read(path) as file:
        size = file.seek(0, SEEK_END)
        position, frames = offset, 0
        while position < size:
            file.seek(position)
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                break
            position += _HEAD.size + _HEAD.unpack(head)[0]
            frames += 1
    return frames if position == size else max(0, size - offset) // LEAST_FRAME_BYTES


def _frame_at(file: BinaryIO, offset: int, size: int, salt: int) -> Frame | str:
    """The good frame at ``offset``, where ``file`` stands, or what is wrong there."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return "the file ends within a frame"
    length, crc, synced = _HEAD.unpack(head)
    if length > size - offset - _HEAD.size:
        return "the file ends within a frame"
    payload = file.read(length)
    if _checksum(length, synced, payload, salt) != crc or not length:
        return "the checksum does not match"
    return Frame(offset, offset + _HEAD.size + length, synced, payload)


def _find_payload(file: BinaryIO, position: int) -> int | None:
    """The offset of the next beginning of a payload at or behind ``position``."""
    while True:
        file.seek(position)
        data = file.read(_SEARCH_BYTES)
        found = [index for mark in PAYLOAD_MARKS if (index := data.find(mark)) >= 0]
        if found:
            return position + min(found)
        if len(data) < _SEARCH_BYTES:
            return None
        position += len(data) - 1  # A mark may begin with the last byte.
