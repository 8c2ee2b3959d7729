"""Log segments: the file format of the write-ahead log, and how it is read.

A segment is ``wal/<first revision, 20 digits>.wal``::

    header   "zkv-wal" 0x01 | first revision: 8 | salt: 4 | check: 4             24 bytes
    frame    length: 4 | crc: 4 | synced: 8 | payload: length bytes             any number of these

Integers are unsigned and big-endian. ``salt`` is random and differs in each segment. ``check`` is
the CRC-32 of the 16 bytes before the salt, XORed with the salt, so the salt can be computed from
either field if the other is damaged. A frame's ``crc`` is the CRC-32 of its length, synced and
payload, with the salt as the initial CRC: no value that a client sends can pass for a frame.
``synced`` is the offset in this file up to which everything was known to be on disk when the frame
was written: the frame proves that the bytes before that offset had reached the disk. A payload is
one commit, see `zkv.keyspace.change`.

Revisions in a segment increase by one from frame to frame. A payload without changes, which only
remembers the reply to an exactly-once request that was refused, repeats the revision before it. A
segment is completely synced before the next is created, and the next one's name says where it
ended. So only the newest segment can have a torn tail.

How a bad frame is judged (`SegmentScan`): the frames before it are good. If any frame found after
it says that the file was synced beyond the beginning of the bad frame, the bad frame had been on
disk and may have been acknowledged: that is damage. Otherwise it is a torn tail: bytes that did not
reach the disk before a crash, and that nobody was told of. A good frame with another revision than
the next counts as found after the fault, since the frames before it are missing.
"""

from __future__ import annotations

import secrets
import struct
import zlib
from collections.abc import Callable
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
_PIECE_BYTES: Final = 1 << 20
"""Frames are read so many bytes at a time for a `Take`."""


class Taken(NamedTuple):
    """The frames that a `Take` has taken."""

    end: int
    """The offset in the bytes up to which it has taken the frames."""
    next_rev: int
    synced: int
    """The largest ``synced`` of these frames."""


Take = Callable[[bytes, int, int, int], Taken]
"""Takes good frames in C: it gets bytes, the offset of a frame in them, the segment's salt and the
next revision. It may stop before any frame, and must before one that is not good."""


class Frame(NamedTuple):
    """A good frame, and its place in the file."""

    offset: int
    end: int
    synced: int
    payload: bytes


class Run(NamedTuple):
    """Good frames that are contiguous, in the file and in their revisions."""

    first_rev: int
    """The revision of the first commit that changes something; ``last_rev`` + 1 if none does."""
    last_rev: int
    offset: int
    end: int
    salt: int


class SegmentEnd(NamedTuple):
    """The place where a segment can be continued: after its last good frame."""

    first_rev: int
    offset: int
    synced: int
    """The offset up to which the file is known to be on disk, not only in the system's cache."""
    salt: int


def file_name(first_rev: int) -> str:
    """The name of the segment that begins with ``first_rev``; names sort like revisions."""
    return f"{first_rev:020d}{SUFFIX}"


def first_revision(name: str) -> int | None:
    """The revision in a segment's file name; None for any other name."""
    stem = name.removesuffix(SUFFIX)
    is_one = stem != name and len(stem) == 20 and stem.isascii() and stem.isdigit()
    return int(stem) if is_one else None


def new_salt() -> int:
    """An unpredictable salt for `pack_header`."""
    return secrets.randbits(32)


def pack_header(first_rev: int, salt: int) -> bytes:
    """The first bytes of a segment."""
    return _HEADER.pack(MAGIC, first_rev, salt, salt ^ _mask(first_rev))


def _mask(first_rev: int) -> int:
    """The XOR of a header's ``salt`` and ``check``."""
    return zlib.crc32(_HEADER.pack(MAGIC, first_rev, 0, 0)[:-8])


def pack_frames(payloads: list[bytes], synced: int, salt: int) -> bytes:
    """The frames for commits that are written while the file is on disk up to ``synced``."""
    if compiled.COMPILED:
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
    """Reads one segment from its beginning, and judges its end.

    Iterate over `commits` first. Then `end` is the offset after the last good frame, `next_rev` the
    revision that would come next, and `fault` the reason why reading stopped, or None.

    Args:
        files: the file operations.
        path: the segment.

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
        """The largest offset that a good frame before the fault proves to have been on disk."""
        self.fault: str | None = None
        self.vouched = 0
        """The largest offset that a good frame after the fault proves to have been on disk."""
        self.vouched_rev = 0
        """The newest revision in a good frame after the fault; 0 if there is none."""
        self.behind: list[Run] = []
        """The good frames that were found after the fault."""
        self._file = files.open_read(path)
        self._piece = b""
        self._piece_begin = 0

    def commits(self, take: Take | None = None) -> Iterator[Commit]:
        """Every commit up to the end or the first fault, except for those that ``take`` takes.

        Raises OSError.
        """
        with self._file as file:
            self.size = file.seek(0, SEEK_END)
            file.seek(0)
            self.fault = self._read_header(file)
            while self.fault is None and self.end < self.size:
                if take is not None and self._offer(file, take):
                    continue
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
        """True if the fault is damage to data that had been on disk, False if it is a torn tail."""
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
            # Either copy of the salt may be damaged: use the one that fits the first frame.
            other = check ^ _mask(self.next_rev)
            if isinstance(_frame_at(file, HEADER_BYTES, self.size, other), Frame):
                self.salt = other
            return "the header is not that of this segment"
        self.end = self.synced = HEADER_BYTES
        return None

    def _offer(self, file: BinaryIO, take: Take) -> bool:
        """Offer the frames from `end` on to ``take``. If it takes none, leave the file there."""
        at = self.end - self._piece_begin
        if not _is_whole(self._piece, at):
            file.seek(self.end)
            self._piece = file.read(_PIECE_BYTES)
            self._piece_begin, at = self.end, 0
            if not _is_whole(self._piece, at):
                self._piece += file.read(_length_at(self._piece, at))
        taken = take(self._piece, at, self.salt, self.next_rev)
        self.end = self._piece_begin + taken.end
        self.next_rev = taken.next_rev
        self.synced = max(self.synced, taken.synced)
        if taken.end == at:
            file.seek(self.end)
        return taken.end > at

    def _read_frame(self, file: BinaryIO) -> Frame | None:
        """The frame at `end`. If there is no good one, set `fault` and return None."""
        frame = _frame_at(file, self.end, self.size, self.salt)
        if isinstance(frame, str):
            self.fault = frame
            return None
        return frame

    def _search_evidence(self, file: BinaryIO) -> None:
        """Look for good frames after the fault, and for what they prove to have been on disk.

        A good frame at the fault itself, which is not the next one, proves as much.
        """
        position = self.end
        while (found := _find_payload(file, position)) is not None:
            offset = found - _HEAD.size
            position = found + 1
            if offset < self.end:
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
        # A commit that changes nothing repeats the revision before it, which it does not contain.
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
    """The largest number of frames that may have been from ``offset`` to the end, all unreadable.

    It is exact if only payloads are damaged: then the lengths lead to the end. Raises OSError.
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
    """The good frame at ``offset``, the file's position, or a text that says what is wrong."""
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


def _length_at(data: bytes, offset: int) -> int:
    """The payload length in the frame at ``offset``; 0 if its head is not complete."""
    return _HEAD.unpack_from(data, offset)[0] if offset + _HEAD.size <= len(data) else 0


def _is_whole(data: bytes, offset: int) -> bool:
    """True if ``data`` has all of the frame at ``offset``."""
    return offset + _HEAD.size + _length_at(data, offset) <= len(data)


def _find_payload(file: BinaryIO, position: int) -> int | None:
    """The offset of the next possible beginning of a payload, from ``position`` on."""
    while True:
        file.seek(position)
        data = file.read(_SEARCH_BYTES)
        found = [index for mark in PAYLOAD_MARKS if (index := data.find(mark)) >= 0]
        if found:
            return position + min(found)
        if len(data) < _SEARCH_BYTES:
            return None
        position += len(data) - 1  # A mark may begin with the last byte.
