"""Reads the log of a running server from its segments, while they are being written.

Strategy: nothing is kept in memory for a reader. A `TailCursor` is an open segment and an offset in
it, so what is read costs as much as it is new. To begin elsewhere, the frames before it are passed
over by their lengths, which takes 0.1 s for a full segment. A cursor whose segment was removed can
read on in it, but not in the next one if that was removed, too.

What may be read: the commits up to `Wal.durable_lsn`, since a power cut may take back the others.
Those bytes of a file never change. But after a failed sync a segment may end with commits that were
rolled back, and of which the numbers are given again in the next one. So a segment ends before the
first number of its successor (`LogTail.end_of`). To know that for certain, the order of the two
facts matters: the segment is the newest before and after `durable_lsn` was read. The log keeps a
list of the segments that it has begun (`Wal.begun`), as a successor's file may be gone already.

Each frame is checked when it is read. One that is not good is damage: it is told in the server's
log, and nothing of that segment, or of those before it, counts as kept any more. Who reads has to
begin with a snapshot. If it is the newest segment, the next snapshot begins another one.

Segments of format 1 are not read: their commits have no numbers.
"""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_right
from operator import attrgetter
from typing import TYPE_CHECKING, BinaryIO, Final

from zkv.durability import formats, recovery, segment
from zkv.errors import Compacted

if TYPE_CHECKING:
    from pathlib import Path

    from zkv.durability.files import Files
    from zkv.durability.segment import SegmentHeader
    from zkv.durability.wal import Wal

_log = logging.getLogger("zkv.durability")

_FIRST_LSN: Final = attrgetter("first_lsn")
_PIECE_BYTES: Final = 1 << 20
"""Bytes that are read at a time to pass over frames."""
_SLACK: Final = 1 << 14
"""Bytes that are read beyond those asked for: the heads of frames."""


class LogTail:
    """The segments of a running log, for those who read it. Any thread.

    Args:
        files: the file operations.
        directory: where the segments are.
        wal: the log.

    Raises:
        OSError: the directory cannot be read.
    """

    def __init__(self, files: Files, directory: Path, wal: Wal) -> None:
        self.files = files
        self._directory = directory
        self._wal = wal
        self._lock = threading.Lock()  # Protects the attributes below.
        there = recovery.segments(files, directory)
        begun = list(wal.begun)  # Read last: else one begun in between would count as older.
        self._begun = len(begun)
        self._headers = [*self._older(there, begun), *begun]
        self._bad = -1  # The place of the newest segment that is damaged.

    def _older(self, there: list[int], begun: list[SegmentHeader]) -> list[SegmentHeader]:
        """The headers of the segments of former processes, back to the first that is not usable.

        Args:
            there: the first revisions of all segments.
            begun: those of this process.
        """
        found: list[SegmentHeader] = []
        for first in reversed(there):
            try:
                header = segment.read_header(self.files, self._path(first))
            except FileNotFoundError:  # It has just been removed.
                break
            if header is None or header.version == formats.FIRST:
                break
            if header not in begun:
                found.insert(0, header)
        return found

    def bounds(self) -> tuple[list[SegmentHeader], int]:
        """Return all segments, the oldest first, and the number of the newest commit on disk."""
        wal = self._wal
        while True:
            count, durable = len(wal.begun), wal.durable_lsn
            if len(wal.begun) == count:
                break
        with self._lock:
            self._headers += wal.begun[self._begun : count]
            self._begun = max(self._begun, count)
            return self._headers, durable

    def place_of(self, lsn: int) -> int:
        """Return the place of the segment that has, or will have, a commit.

        Raises Compacted if it is not kept, or damaged.
        """
        headers, _ = self.bounds()
        place = bisect_right(headers, lsn, key=_FIRST_LSN) - 1
        if place <= self._bad:
            raise self.compacted(lsn)
        return place

    def end_of(self, place: int, durable: int) -> int:
        """Return the number of the last commit that may be read in a segment."""
        headers = self._headers
        if place + 1 == len(headers):
            return durable
        return min(durable, headers[place + 1].first_lsn - 1)

    def open(self, place: int) -> tuple[SegmentHeader, BinaryIO]:
        """Open a segment. Raises Compacted, OSError."""
        header = self._headers[place]
        path = self._path(header.first_rev)
        try:
            file = self.files.open_read(path)
        except FileNotFoundError:
            raise self.compacted(header.first_lsn) from None
        if not file.read(segment.HEADER_BYTES).startswith(header.pack()):
            file.close()
            raise self.damaged(place, 0, "the header is another one")
        return header, file

    def goes_on_from(self, lsn: int) -> bool:
        """Return True if all commits after this number can be read. Raises OSError."""
        return self.oldest() <= lsn + 1

    def oldest(self) -> int:
        """Return the number from which on all commits can be read. Raises OSError."""
        headers, durable = self.bounds()
        there = set(recovery.segments(self.files, self._directory))
        oldest = durable + 1
        for header in reversed(headers[self._bad + 1 :]):
            if header.first_rev not in there:
                break
            oldest = header.first_lsn
        return oldest

    def compacted(self, lsn: int) -> Compacted:
        """Return the error for a commit that cannot be read."""
        oldest = self.oldest()
        return Compacted(
            f"the log does not have commit {lsn} any more; the oldest is {oldest}: take a snapshot",
            oldest=oldest,
        )

    def damaged(self, place: int, offset: int, reason: str) -> Compacted:
        """Note that a segment is damaged, and tell it; return the error for who reads it."""
        header = self._headers[place]
        with self._lock:
            news = place > self._bad
            self._bad = max(place, self._bad)
        if news:
            _log.error(
                "%s: damaged at offset %d: %s; it is not sent to other servers, which have to take "
                "a snapshot", self._path(header.first_rev), offset, reason,
            )  # fmt: skip
            self._wal.doubt(header.salt)
        return self.compacted(header.first_lsn)

    def _path(self, first_rev: int) -> Path:
        return self._directory / segment.file_name(first_rev)


class TailCursor:
    """A place in the log, from which commits are read one after the other. One thread at a time.

    Args:
        tail: the log.
        after: the number of the commit before.

    Raises:
        Compacted: the commits after it are not kept.
        OSError: a segment cannot be read.
    """

    def __init__(self, tail: LogTail, after: int) -> None:
        self._tail = tail
        self.next_lsn = after + 1
        """The number of the commit that is read next."""
        self._open(tail.place_of(self.next_lsn))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, most: int) -> list[bytes]:
        """Return the payloads of the next commits; nothing if no further one is on disk.

        Args:
            most: bytes to return; if the first commit is larger, it comes alone.

        Raises:
            Compacted: the log does not have the next commits any more, or they are damaged.
            OSError: a segment cannot be read.
        """
        while True:
            _, durable = self._tail.bounds()
            if self.next_lsn > durable:
                return []
            last = self._tail.end_of(self._place, durable)
            if self.next_lsn <= last:
                return self._read(last, most)
            self._file.close()
            self._open(self._tail.place_of(self.next_lsn))

    def _open(self, place: int) -> None:
        header, self._file = self._tail.open(place)
        self._place = place
        self._salt = header.salt
        self._offset = header.size
        self._at_lsn = header.first_lsn  # The number of the commit at the offset.

    def _read(self, last: int, most: int) -> list[bytes]:
        piece = _PIECE_BYTES if self._at_lsn < self.next_lsn else most + _SLACK
        while True:
            data = os.pread(self._file.fileno(), piece, self._offset)
            taken = segment.unpack_frames(
                data, 0, self._salt, self._at_lsn, self.next_lsn, last, most
            )
            self._offset += taken.end
            self._at_lsn = taken.next_lsn
            if taken.payloads:
                self.next_lsn = taken.next_lsn
                return taken.payloads
            if not taken.end:
                piece = self._larger(data, piece)

    def _larger(self, data: bytes, piece: int) -> int:
        """Return how much to read to have the next frame. Raises Compacted if it is not good."""
        needed = segment.bytes_of_frame(data, 0)
        if needed <= len(data):
            reason = "the checksum or the number does not match"
        elif self._offset + needed > os.fstat(self._file.fileno()).st_size:
            reason = "the file ends within a frame"
        else:
            return max(needed, piece)
        raise self._tail.damaged(self._place, self._offset, reason)
