"""Writes a log of commits that another server has made, without a keyspace.

Strategy: commits keep their bytes, and each is checked to follow on the one before as recovery will
check it. So nothing gets into the file that could not be read back. After a failed write or sync
the writer must not be used any more: what is on disk is read back instead, as after a crash
(Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020).

A segment is completely on disk before the next one is begun. One thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from zkv.durability import segment
from zkv.durability.backup import begin_log
from zkv.errors import DamageError
from zkv.keyspace.change import misplacement

if TYPE_CHECKING:
    from zkv.durability.files import Files
    from zkv.durability.layout import Layout
    from zkv.durability.segment import SegmentEnd
    from zkv.keyspace import Commit
    from zkv.keyspace.lineage import Lineage

SEGMENT_BYTES: Final = 64 * 1024 * 1024
"""The size at which the next segment is begun."""


class LogPlace(NamedTuple):
    """A place in a log: after a commit."""

    rev: int
    lsn: int
    lineage: Lineage


class LogWriter:
    """Continues a log.

    Args:
        files: the file operations.
        layout: the data directory.
        place: after its newest commit.
        end: where its newest segment goes on.
        segment_bytes: the size at which the next segment is begun.

    Raises:
        OSError: the segment cannot be opened, or its end not be put on disk.
    """

    def __init__(
        self,
        files: Files,
        layout: Layout,
        place: LogPlace,
        end: SegmentEnd,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._files = files
        self._layout = layout
        self._segment_bytes = segment_bytes
        self.place = place
        """After the newest commit."""
        self.on_disk = place
        """After the newest commit that is on disk."""
        self.bytes_written = 0
        self._first_rev, self._salt = end.first_rev, end.salt
        self._file, size = files.open_append(layout.segment(end.first_rev))
        try:
            if size > end.offset:
                files.truncate(self._file, end.offset)
            # An earlier sync that failed may have marked as clean what is not on disk.
            files.rewrite(self._file, end.synced)
            files.sync(self._file)
        except BaseException:
            self._file.close()
            raise
        self._offset = self._synced = end.offset

    def append(self, commits: list[Commit]) -> None:
        """Write commits at the end. They are on disk after `sync`.

        Raises:
            DamageError: one does not follow; nothing was written.
            OSError: they cannot be written.
        """
        place = self.place
        for commit in commits:
            place = _after(place, commit)
        if self._offset >= self._segment_bytes and self.place.rev >= self._first_rev:
            self._begin_segment()
        payloads = [commit.payload for commit in commits]
        data = segment.pack_frames(payloads, self._synced, self._salt)
        self._files.write(self._file, data)
        self._offset += len(data)
        self.bytes_written += len(data)
        self.place = place

    def sync(self) -> None:
        """Put everything on disk. Raises OSError."""
        if self._synced < self._offset:
            self._files.sync(self._file)
            self._synced, self.on_disk = self._offset, self.place

    def close(self) -> None:
        """Close the file, without a sync."""
        self._file.close()

    def _begin_segment(self) -> None:
        self.sync()
        end = begin_log(self._files, self._layout, self.place.rev + 1, self.place.lsn + 1)
        file, _ = self._files.open_append(self._layout.segment(end.first_rev))
        self._file.close()
        self._file = file
        self._first_rev, self._salt = end.first_rev, end.salt
        self._offset = self._synced = end.offset


def _after(place: LogPlace, commit: Commit) -> LogPlace:
    """Return the place after a commit. Raises DamageError if it does not follow."""
    if (why := misplacement(commit, place.rev, place.lsn)) is not None:
        raise DamageError(why)
    if commit.begins is None:
        return LogPlace(commit.rev, commit.lsn, place.lineage)
    try:
        lineage = place.lineage.begin(commit.begins, commit.lsn)
    except ValueError as error:
        raise DamageError(f"log number {commit.lsn}: {error}") from None
    return LogPlace(commit.rev, commit.lsn, lineage)
