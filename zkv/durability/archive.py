"""An archive: the log of a store over a long time, and snapshots of it.

Layout of the archive::

    archive.lock            locked while an archiver runs
    archive.json            see `ArchiveRecord`
    part-000001/            each part is laid out like a data directory
    part-000001/part.json   see `PartRecord`
    part-000002/
    incoming/               a snapshot that is being fetched

Invariant: in a part, the log goes on without a gap from the oldest snapshot to the end. So it has
every moment in between: each snapshot only makes a restore quicker. Between two parts commits are
missing, or the later part is of another history: then both are kept apart. An archive begins a part
only where it cannot go on.

Every file of a part has the format that it has in a data directory, so all tools read a part.

Order on disk: a snapshot gets into a part once all of it is checked, and the log up to its log
number is on disk. A part is complete under a temporary name before it gets its own, and gets a
temporary name again before it is removed. When something is pruned, snapshots go first, and then
the segments that only they needed; in each case the oldest first. So a crash leaves a part that is
whole at any moment.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec
from msgspec import Struct

from zkv.durability import recovery, segment, snapshot
from zkv.durability.backup import begin_log, make_directories, remove_tree
from zkv.durability.layout import Layout, explain
from zkv.durability.log_writer import SEGMENT_BYTES, LogPlace, LogWriter
from zkv.durability.record_file import read_record, write_record
from zkv.errors import DamageError, DataDirError, LockedError

if TYPE_CHECKING:
    from pathlib import Path

    from zkv.durability.files import Files
    from zkv.durability.segment import SegmentEnd
    from zkv.durability.snapshot import Loaded

_log = logging.getLogger("zkv.durability")

FILE: Final = "archive.json"
LOCK: Final = "archive.lock"
PART_FILE: Final = "part.json"
INCOMING: Final = "incoming"
FORMAT: Final = "zkv-archive"
VERSION: Final = 1
_PART: Final = re.compile(r"part-\d{6,}")

Why = Literal["begun", "gap", "diverged", "damaged"]
"""Why a part was begun: it is the first; commits before it are missing; it is another history than
the part before; the part before was damaged."""


class PartRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """The facts of a part that its files do not tell.

    Args:
        why: it was begun.
        store: the identity of the store.
        until: it has all that was answered up to then, Unix time in ms.
    """

    why: Why
    store: str
    until: int = 0


class ArchiveRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """The parts of an archive, as far as they are known.

    Args:
        member: the name by which servers know the archiver.
        format: of the archive.
        version: of the format.
    """

    member: str
    format: Literal["zkv-archive"] = FORMAT
    version: Literal[1] = VERSION


class PartHead(NamedTuple):
    """A snapshot of a part."""

    rev: int
    lsn: int
    created: int
    size: int


def is_archive(files: Files, directory: Path) -> bool:
    """Return True if a directory is an archive. Raises OSError."""
    return directory.is_dir() and FILE in files.names(directory)


def part_names(files: Files, directory: Path) -> list[str]:
    """Return the names of the parts of an archive, the oldest first. Raises OSError."""
    return [name for name in files.names(directory) if _PART.fullmatch(name)]


def read_part(files: Files, part: Path) -> PartRecord:
    """Return what is known of a part. Raises DamageError, OSError."""
    return read_record(files, part / PART_FILE, PartRecord)


def holder(files: Files, directory: Path) -> str | None:
    """Return the process that uses an archive: see `zkv.durability.lock`. Raises OSError."""
    return files.lock_holder(directory / LOCK)


class Archive:
    """An archive that is being written. One thread.

    Args:
        files: the file operations.
        directory: the archive; absent or empty if it is a new one.
        member: the name of the archiver, if it is a new one.

    Raises:
        LockedError: another archiver uses it.
        DamageError: the record is damaged.
        DataDirError: it is something else, or cannot be used.
    """

    def __init__(self, files: Files, directory: Path, member: str) -> None:
        self._files = files
        self.directory = directory
        try:
            make_directories(files, directory)
            names = files.names(directory)
            if FILE not in names and set(names) - {LOCK, FILE + snapshot.UNFINISHED}:
                raise DataDirError(f"{directory}: neither empty nor an archive")
            self._lock = files.lock(directory / LOCK)
        except LockedError:
            process = files.lock_holder(directory / LOCK)
            by = f" (process {process})" if process else ""
            raise LockedError(f"{directory}: another archiver{by} uses this archive") from None
        except OSError as error:
            raise DataDirError(explain(error, directory)) from error
        try:
            self.member = self._open(member)
            """The name by which servers know the archiver."""
        except OSError as error:
            self.close()
            raise DataDirError(explain(error, directory)) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the archive."""
        self._lock.close()

    @property
    def incoming(self) -> Path:
        """The directory for a snapshot that is being fetched."""
        return self.directory / INCOMING

    def open_part(self, segment_bytes: int = SEGMENT_BYTES) -> Part | None:
        """Return the newest part, to go on there; None if there is none.

        Raises DamageError, FormatError, OSError.
        """
        names = part_names(self._files, self.directory)
        if not names:
            return None
        return Part(self._files, Layout(self.directory / names[-1]), segment_bytes)

    @property
    def store(self) -> str:
        """The identity of the store; empty if it is not known. Raises OSError."""
        for name in reversed(part_names(self._files, self.directory)):
            with contextlib.suppress(DamageError):  # Then an earlier part says so.
                return read_part(self._files, self.directory / name).store
        return ""

    def prepare_part(self) -> Layout:
        """Make the directory of the next part, which `add_part` adds. Raises OSError."""
        layout = Layout(self.directory / (self._next_name() + snapshot.UNFINISHED))
        remove_tree(self._files, layout.directory)
        for inner in (layout.snapshots, layout.wal):
            make_directories(self._files, inner)
        return layout

    def add_part(self, prepared: Layout, rev: int, lsn: int, record: PartRecord) -> None:
        """Add a part that has a snapshot. Raises OSError.

        Args:
            prepared: what `prepare_part` has returned.
            rev: the revision of the snapshot.
            lsn: its log number.
            record: the facts about it.
        """
        begin_log(self._files, prepared, rev + 1, lsn + 1)
        write_record(self._files, prepared.directory / PART_FILE, record)
        self._files.rename(prepared.directory, self.directory / self._next_name())
        self._files.sync_directory(self.directory)

    def clear_incoming(self) -> Path:
        """Make the directory for a snapshot, empty, and return it. Raises OSError."""
        remove_tree(self._files, self.incoming)
        make_directories(self._files, self.incoming)
        return self.incoming

    def prune(self, before: int, newest: Part) -> None:
        """Remove what is not needed to restore to any moment from a time on.

        Args:
            before: that time, Unix time in ms.
            newest: the newest part.

        Raises DamageError, OSError.
        """
        for name in part_names(self._files, self.directory)[:-1]:
            part = self.directory / name
            if read_part(self._files, part).until < before:
                beside = part.with_name(name + snapshot.UNFINISHED)
                self._files.rename(part, beside)
                remove_tree(self._files, beside)
                _log.info("removed %s, which ended before what is kept", name)
        newest.prune(before)

    def _open(self, member: str) -> str:
        files, directory = self._files, self.directory
        names = files.names(directory)
        if FILE in names:
            member = read_record(files, directory / FILE, ArchiveRecord).member
        else:
            write_record(files, directory / FILE, ArchiveRecord(member))
        for name in names:
            if name == INCOMING or (
                name.startswith("part-") and name.endswith(snapshot.UNFINISHED)
            ):
                remove_tree(self._files, directory / name)
        return member

    def _next_name(self) -> str:
        names = part_names(self._files, self.directory)
        return f"part-{int(names[-1].removeprefix('part-')) + 1 if names else 1:06d}"


class Part:
    """The newest part of an archive, which goes on. One thread.

    Args:
        files: the file operations.
        layout: its paths.
        segment_bytes: the size at which the next segment is begun.

    Raises:
        DamageError: its end cannot be read, so it cannot go on.
        OSError: a file cannot be read or written.
    """

    def __init__(self, files: Files, layout: Layout, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._files = files
        self.layout = layout
        for inner in (layout.snapshots, layout.wal):
            for name in files.names(inner):
                if name.endswith(snapshot.UNFINISHED):
                    files.remove(inner / name)
        self.snapshots = [self._head(rev) for rev in recovery.snapshots(files, layout.snapshots)]
        """The oldest first."""
        if not self.snapshots:
            raise DamageError(f"{layout.snapshots}: there is no snapshot")
        place, end = self._read()
        self.log = LogWriter(files, layout, place, end, segment_bytes)
        """Its log."""
        self._logged_before = self.log.bytes_written - self._size_after(self.snapshots[-1])
        self._record = read_part(files, layout.directory)

    @property
    def bytes_since_snapshot(self) -> int:
        """About the size of the log since the newest snapshot."""
        return self.log.bytes_written - self._logged_before

    def close(self) -> None:
        """Close its log, without a sync."""
        self.log.close()

    def sync(self, until: int) -> None:
        """Put all on disk, and note that it has all that was answered up to a time.

        Args:
            until: that time, Unix time in ms.

        Raises OSError.
        """
        self.log.sync()
        if until > self._record.until:
            self._record = msgspec.structs.replace(self._record, until=until)
            write_record(self._files, self.layout.directory / PART_FILE, self._record)

    def add_snapshot(self, path: Path, loaded: Loaded, logged_before: int) -> None:
        """Add a snapshot that is on disk, and has been checked.

        Args:
            path: where it is.
            loaded: the snapshot, without its contents. It is not beyond the log.
            logged_before: ``log.bytes_written`` when it was fetched.

        Raises:
            DamageError: it is of another history than the log.
            OSError: it cannot be added.
        """
        place = self.log.place
        terms = tuple(term for term in place.lineage.terms if term.first_lsn <= loaded.lsn)
        if loaded.lineage != place.lineage._replace(terms=terms):
            raise DamageError(f"{path}: its terms are not those of the log")
        self.log.sync()  # A log that ends before a snapshot counts as damaged.
        self._files.rename(path, self.layout.snapshot(loaded.rev))
        self._files.sync_directory(self.layout.snapshots)
        self.snapshots.append(self._head(loaded.rev))
        self._logged_before = logged_before

    def prune(self, before: int) -> None:
        """Remove what only moments before a time need, Unix time in ms. Raises OSError."""
        files, layout = self._files, self.layout
        bases = [head for head in self.snapshots if head.created <= before]
        if len(bases) < snapshot.KEPT_SNAPSHOTS:
            return
        base = bases[-snapshot.KEPT_SNAPSHOTS]  # The one after it suffices, unless it is damaged.
        while self.snapshots[0].rev < base.rev:
            files.remove(layout.snapshot(self.snapshots[0].rev))
            del self.snapshots[0]
        files.sync_directory(layout.snapshots)
        start = snapshot.Loaded(rev=base.rev, lsn=base.lsn)
        firsts = recovery.segments(files, layout.wal)
        for first, follower in itertools.pairwise(firsts):
            place = segment.successor(files, layout.segment(follower))
            if place.lsn is None or place.needs_those_before(start):
                break
            files.remove(layout.segment(first))
        files.sync_directory(layout.wal)

    def _head(self, rev: int) -> PartHead:
        """Raises DamageError, FormatError, OSError."""
        path = self.layout.snapshot(rev)
        head = snapshot.read_head(self._files, path)
        return PartHead(rev, head.lsn, head.created, path.stat().st_size)

    def _read(self) -> tuple[LogPlace, SegmentEnd]:
        """Read the log after the newest snapshot. Raises DamageError, FormatError, OSError."""
        layout = self.layout
        newest = snapshot.read_head(self._files, layout.snapshot(self.snapshots[-1].rev))
        lineage, rev = newest.lineage, newest.rev
        reader = recovery.LogReader(self._files, layout.wal, newest)
        for commit in reader.commits():
            rev = max(rev, commit.rev)
            if commit.begins is not None and not newest.covers(commit):
                with contextlib.suppress(ValueError):  # Then a restore says so.
                    lineage = lineage.begin(commit.begins, commit.lsn)
        if reader.end is None:
            raise DamageError(f"{layout.wal}: there is no segment that goes on")
        return LogPlace(rev, max(reader.lsn, newest.lsn), lineage), reader.end

    def _size_after(self, head: PartHead) -> int:
        firsts = recovery.segments(self._files, self.layout.wal)
        return sum(
            self.layout.segment(first).stat().st_size for first in firsts if first > head.rev
        )
