"""Log segments: the file format of the write-ahead log, and how it is read.

A segment is ``wal/<first revision, 20 digits>.wal``::

    header   "zkv-wal" | version: 1 | first revision: 8 | first log number: 8 | salt: 4 | check: 4
    frame    length: 4 | crc: 4 | synced: 8 | payload: length bytes             any number of these

Integers are unsigned and big-endian. The header has 32 bytes, in every later version, too: so each
version tells a newer file from a damaged one. In version 1 the first log number is absent, and the
log number of a commit is its revision (`zkv.keyspace.change`). ``salt`` is random and differs in
each segment. ``check`` is the CRC-32 of the bytes before the salt, XORed with the salt, so the salt
can be computed from either field if the other is damaged. A frame's ``crc`` is the CRC-32 of its
length, synced and payload, with the salt as the initial CRC: no value that a client sends can pass
for a frame. ``synced`` is the offset in this file up to which everything was known to be on disk
when the frame was written: the frame proves that the bytes before that offset had reached the disk.
A payload is one commit, see `zkv.keyspace.change`.

Log numbers increase by one from frame to frame, and so do revisions, but for a payload without
changes, which only remembers the reply to an exactly-once request that was refused: it repeats the
revision before it. One that begins a term may raise it further. A segment is completely synced
before the next is created, and the next one's name and header say where it ended. So only the
newest segment can have a torn tail.

How a bad frame is judged (`SegmentScan`): the frames before it are good. If any frame found after
it says that the file was synced beyond the beginning of the bad frame, the bad frame had been on
disk and may have been acknowledged: that is damage. Otherwise it is a torn tail: bytes that did not
reach the disk before a crash, and that nobody was told of. A good frame with another revision or
log number than the next counts as found after the fault, since the frames before it are missing.
"""

from __future__ import annotations

import secrets
import struct
import zlib
from collections.abc import Callable
from os import SEEK_END
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from zkv import compiled
from zkv.durability import formats
from zkv.errors import DamageError
from zkv.keyspace.change import (
    CHANGES_AT,
    LEAST_PAYLOAD_BYTES,
    PAYLOAD_MARKS,
    begins_term,
    changes_something,
    is_old,
    misplacement,
    number_in,
    revision_in,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zkv.durability.files import Files
    from zkv.durability.snapshot import Loaded
    from zkv.keyspace.change import Commit

SUFFIX: Final = ".wal"
MAGIC: Final = b"zkv-wal"
_HEADER: Final = struct.Struct(">7sBQQII")
_OLD_HEADER: Final = struct.Struct(">7sBQII")
HEADER_BYTES: Final = _HEADER.size
"""Bytes of the longest header."""
_HEAD: Final = struct.Struct(">IIQ")
_CHECKED: Final = struct.Struct(">IQ")
FRAME_HEAD_BYTES: Final = _HEAD.size
"""Bytes of a frame in addition to its payload."""
LEAST_FRAME_BYTES: Final = FRAME_HEAD_BYTES + LEAST_PAYLOAD_BYTES
_NO_HEADER: Final = "the header is not that of this segment"
_SEARCH_BYTES: Final = 1 << 20
_PIECE_BYTES: Final = 1 << 20
"""Frames are read so many bytes at a time for a `Take`."""


class Taken(NamedTuple):
    """The frames that a `Take` has taken."""

    end: int
    """The offset in the bytes up to which it has taken the frames."""
    next_rev: int
    next_lsn: int
    synced: int
    """The largest ``synced`` of these frames."""


Take = Callable[[bytes, int, int, int, int], Taken]
"""Takes good frames in C: it gets bytes, the offset of a frame in them, the segment's salt, the
next revision and the next log number. It may stop before any frame, and must before one that is not
good."""


class SegmentHeader(NamedTuple):
    """The header of a segment."""

    version: int
    first_rev: int
    first_lsn: int
    salt: int

    @property
    def size(self) -> int:
        """Its bytes in the file."""
        return _OLD_HEADER.size if self.version == formats.FIRST else _HEADER.size

    def pack(self) -> bytes:
        """The first bytes of the segment."""
        return self._checked() + struct.pack(">II", self.salt, self.salt ^ self.mask())

    def mask(self) -> int:
        """The XOR of the fields ``salt`` and ``check``."""
        return zlib.crc32(self._checked())

    def _checked(self) -> bytes:
        """The fields before the salt."""
        if self.version == formats.FIRST:
            return _OLD_HEADER.pack(MAGIC, self.version, self.first_rev, 0, 0)[:-8]
        return _HEADER.pack(MAGIC, self.version, self.first_rev, self.first_lsn, 0, 0)[:-8]


class Frame(NamedTuple):
    """A good frame, and its place in the file."""

    offset: int
    end: int
    synced: int
    payload: bytes


class Run(NamedTuple):
    """Good frames that are contiguous, in the file and in their revisions.

    A commit that begins a term may leave out revisions.
    """

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
    version: int


class Successor(NamedTuple):
    """The place where the next segment takes precedence."""

    rev: int
    """Its first revision."""
    lsn: int | None
    """Its first log number; None if its header is damaged, which is found when it is read."""

    def replaces(self, commit: Commit) -> bool:
        """True if a commit of the segment before does not count."""
        return commit.rev >= self.rev or (self.lsn is not None and commit.lsn >= self.lsn)

    def follows(self, scan: SegmentScan) -> bool:
        """True if nothing is missing between the segment before and this place."""
        return scan.next_rev >= self.rev and (self.lsn is None or scan.next_lsn >= self.lsn)

    def needs_those_before(self, start: Loaded) -> bool:
        """True if a snapshot does not cover all commits before this place."""
        if self.lsn is None:
            return self.rev > start.rev + 1
        return self.lsn > start.lsn + 1


def file_name(first_rev: int) -> str:
    """The name of the segment that begins with ``first_rev``; names sort like revisions."""
    return f"{first_rev:020d}{SUFFIX}"


def first_revision(name: str) -> int | None:
    """The revision in a segment's file name; None for any other name."""
    stem = name.removesuffix(SUFFIX)
    is_one = stem != name and len(stem) == 20 and stem.isascii() and stem.isdigit()
    return int(stem) if is_one else None


def new_salt() -> int:
    """An unpredictable salt."""
    return secrets.randbits(32)


def new_header(first_rev: int, first_lsn: int) -> SegmentHeader:
    """The header of a new segment."""
    return SegmentHeader(formats.CURRENT, first_rev, first_lsn, new_salt())


def read_header(files: Files, path: Path) -> SegmentHeader | None:
    """The header of a segment; None if it is not good. Raises FormatError, OSError."""
    with files.open_read(path) as file:
        return _header_in(path, file.read(HEADER_BYTES))


def successor(files: Files, path: Path) -> Successor:
    """The place where the segment ``path`` takes precedence. Raises FormatError, OSError."""
    header = read_header(files, path)
    return Successor(first_revision(path.name) or 0, None if header is None else header.first_lsn)


def _header_in(path: Path, data: bytes) -> SegmentHeader | None:
    """The header in the first bytes of a segment. Raises FormatError."""
    for found in _claimed(data):
        if data.startswith(found.pack()) and found.first_rev == first_revision(path.name):
            formats.require_known(path, found.version)
            return found
    return None


def _claimed(data: bytes) -> list[SegmentHeader]:
    """The headers, of either size, that the first bytes of a segment may be; the likelier first."""
    found = []
    if len(data) >= _HEADER.size:
        _, version, first_rev, first_lsn, salt, _ = _HEADER.unpack_from(data)
        found.append(SegmentHeader(max(version, formats.FIRST + 1), first_rev, first_lsn, salt))
    if len(data) >= _OLD_HEADER.size:
        _, version, first_rev, salt, _ = _OLD_HEADER.unpack_from(data)
        found.insert(
            version != formats.FIRST, SegmentHeader(formats.FIRST, first_rev, first_rev, salt)
        )
    return found


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


class Unpacked(NamedTuple):
    """The payloads of some frames."""

    payloads: list[bytes]
    end: int
    """The offset after the last frame that was taken, or passed over."""
    next_lsn: int


def unpack_frames(
    frames: bytes, at: int, salt: int, next_lsn: int, first: int, last: int, most: int
) -> Unpacked:
    """Take the payloads of good frames, up to the first that is not good, or not all there.

    Args:
        frames: bytes of a segment.
        at: the offset of a frame in them.
        salt: the segment's salt.
        next_lsn: the log number of that frame's commit.
        first: the log number of the first commit that is asked for. Frames before it are passed
            over, unchecked.
        last: that of the last one.
        most: bytes of payloads to take; if the first one is larger, it is taken alone.
    """
    if compiled.COMPILED:
        return Unpacked(
            *compiled.store.unpack_frames(frames, at, salt, next_lsn, first, last, most)
        )
    while next_lsn < first and next_lsn <= last and _is_whole(frames, at):
        at += _HEAD.size + _length_at(frames, at)
        next_lsn += 1
    payloads: list[bytes] = []
    while first <= next_lsn <= last and _is_whole(frames, at):
        length, crc, synced = _HEAD.unpack_from(frames, at)
        payload = frames[at + _HEAD.size : at + _HEAD.size + length]
        good = _checksum(length, synced, payload, salt) == crc and length >= CHANGES_AT
        if not good or is_old(payload) or number_in(payload) != next_lsn:
            break
        if length > most and payloads:
            break
        payloads.append(payload)
        most -= length
        at += _HEAD.size + length
        next_lsn += 1
    return Unpacked(payloads, at, next_lsn)


def bytes_of_frame(data: bytes, at: int) -> int:
    """The bytes of the frame at an offset; those of its head if that is not all there."""
    return _HEAD.size + _length_at(data, at)


def _checksum(length: int, synced: int, payload: bytes, salt: int) -> int:
    return zlib.crc32(payload, zlib.crc32(_CHECKED.pack(length, synced), salt))


class SegmentScan:
    """Reads one segment from its beginning, and judges its end.

    Iterate over `commits` first. Then `end` is the offset after the last good frame, `next_rev` and
    `next_lsn` the revision and the log number that would come next, and `fault` the reason why
    reading stopped, or None.

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
        self.header: SegmentHeader | None = None
        """The header; None if it is not good."""
        self.next_lsn = 0
        self.salt = 0
        self.synced = 0
        """The largest offset that a good frame before the fault proves to have been on disk."""
        self.fault: str | None = None
        self.vouched = 0
        """The largest offset that a good frame after the fault proves to have been on disk."""
        self.vouched_rev = 0
        """The newest revision in a good frame after the fault; 0 if there is none."""
        self.vouched_lsn = 0
        """The newest log number, likewise."""
        self.behind: list[Run] = []
        """The good frames that were found after the fault."""
        self._file = files.open_read(path)
        self._piece = b""
        self._piece_begin = 0

    def commits(self, take: Take | None = None) -> Iterator[Commit]:
        """Every commit up to the end or the first fault, except for those that ``take`` takes.

        Raises FormatError, OSError.
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
                last_lsn = (commit.lsn if self._lacks_numbers else self.next_lsn) - 1
                self.fault = misplacement(commit, self.next_rev - 1, last_lsn)
                if self.fault is not None:
                    break
                yield commit
                self.next_rev, self.next_lsn = commit.rev + 1, commit.lsn + 1
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
        data = file.read(HEADER_BYTES)
        self.next_rev = self.next_lsn = first_revision(self.path.name) or 0
        self.header = header = _header_in(self.path, data)
        if header is None:
            self._guess_salt(file, data)
            ends = len(data) < HEADER_BYTES
            return "the file ends within its header" if ends else _NO_HEADER
        self.next_lsn, self.salt = header.first_lsn, header.salt
        self.end = self.synced = header.size
        file.seek(self.end)
        return None

    @property
    def _lacks_numbers(self) -> bool:
        return self.header is not None and self.header.version == formats.FIRST

    def _guess_salt(self, file: BinaryIO, data: bytes) -> None:
        """Use the salt that fits the first frame: either copy of it may be damaged."""
        for claimed in _claimed(data):
            header = claimed._replace(first_rev=self.next_rev)
            (check,) = struct.unpack_from(">I", data, header.size - 4)
            self.salt = self.salt or header.salt
            for salt in (header.salt, check ^ header.mask()):
                file.seek(header.size)
                if isinstance(_frame_at(file, header.size, self.size, salt), Frame):
                    self.salt = salt
                    return

    def _offer(self, file: BinaryIO, take: Take) -> bool:
        """Offer the frames from `end` on to ``take``. If it takes none, leave the file there."""
        at = self.end - self._piece_begin
        if not _is_whole(self._piece, at):
            file.seek(self.end)
            self._piece = file.read(_PIECE_BYTES)
            self._piece_begin, at = self.end, 0
            if not _is_whole(self._piece, at):
                self._piece += file.read(_length_at(self._piece, at))
        taken = take(self._piece, at, self.salt, self.next_rev, self.next_lsn)
        self.end = self._piece_begin + taken.end
        self.next_rev, self.next_lsn = taken.next_rev, taken.next_lsn
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
                self.vouched_lsn = max(self.vouched_lsn, number_in(frame.payload))
                self._note_behind(frame)
                position = frame.end

    def _note_behind(self, frame: Frame) -> None:
        rev = revision_in(frame.payload)
        # A commit that changes nothing repeats the revision before it, which it does not contain.
        first = rev if changes_something(frame.payload) else rev + 1
        run = self.behind[-1] if self.behind else None
        follows = run is not None and (first == run.last_rev + 1 or begins_term(frame.payload))
        if run is not None and follows and run.end == frame.offset:
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
