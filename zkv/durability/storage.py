"""A data directory held by this process: its lock, what it holds, and what is written to it next.

Layout below the data directory::

    LOCK                                    held as long as a server runs
    snapshot/<revision>.snapshot            the newest two, see `zkv.durability.snapshot`
    wal/<first revision>.wal                the log, see `zkv.durability.segment`
    wal/<first revision>.wal.torn-<offset>  what was cut off a segment as its torn tail

Invariant: the newest snapshot and the segments behind it give the exact state; so do the snapshot
before it and the segments behind that. A segment goes only when neither needs it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import time
from typing import TYPE_CHECKING, BinaryIO

from zkv.durability import recovery, segment, snapshot
from zkv.durability.layout import Layout, explain
from zkv.errors import DataDirError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zkv.durability.files import Files
    from zkv.durability.lock import DirectoryLock
    from zkv.durability.recovery import Recovered, TornTail
    from zkv.durability.segment import SegmentEnd
    from zkv.keyspace import History, Sessions, SnapshotView

_log = logging.getLogger("zkv.durability")


class Storage:
    """The data directory, for one thread at a time.

    Args:
        directory: where data is kept; made if it is not there.
        files: the door to the file system.

    Raises:
        LockedError: another server holds the directory.
        DataDirError: the directory cannot be made, read or written.
    """

    def __init__(self, directory: Path, files: Files) -> None:
        self._files = files
        self._layout = layout = Layout(directory)
        self._snapshots = layout.snapshots
        self.wal_directory = layout.wal
        self._lock: DirectoryLock | None = None
        self._sizes: dict[Path, int] = {}  # Files that are to stay, as they were when first seen.
        try:
            self._make_directory(directory)
            self._lock = files.lock(layout.lock)
            self._make_inner()
            for inner in (self._snapshots, self.wal_directory):
                self._remove_unfinished(inner)
                files.sync_directory(inner)
            files.sync_directory(directory)
        except OSError as error:
            self.close()
            raise DataDirError(explain(error, directory)) from error

    def close(self) -> None:
        """Let go of the directory. May be called again."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def load(self, sessions: Sessions, history: History) -> Recovered:
        """Everything the directory holds; a torn tail is cut off, and kept as a file of its own.

        All of it is on disk then: after a kill, what was read may have been in the cache only.

        Args:
            sessions: empty; takes what exactly-once requests were answered.
            history: empty; takes the newest commits.

        Raises:
            DamageError: something is damaged. It is never passed over in silence.
            DataDirError: something cannot be read or written.
        """
        started = time.perf_counter()
        recovered = recovery.recover(
            self._files, self._snapshots, self.wal_directory, sessions, history
        )
        if recovered.end is not None:
            self._settle_end(recovered.end, recovered.torn, recovered.rev)
        self.disorder()  # What is there now is to stay.
        _log.info(
            "recovered revision %d: %d entries; snapshot at %d, %d commits replayed, %.2f s",
            recovered.rev, len(recovered.entries), recovered.snapshot_rev, recovered.replayed,
            time.perf_counter() - started,
        )  # fmt: skip
        return recovered

    def save(
        self, view: SnapshotView, logged: bool, before_publishing: Callable[[], None]
    ) -> tuple[Path, int]:
        """Write ``view`` as a snapshot; return its path and size once it is on disk.

        Args:
            view: what to write.
            logged: whether the log is on disk up to its revision once the next has been called.
            before_publishing: called once all is written, before the file gets its name; what it
                raises ends the matter.

        Raises:
            OSError: it cannot be written.
        """
        directory = self._snapshots
        self.require_place()
        with snapshot.Writer(self._files, directory, view.rev, view.time, logged) as writer:
            for chunk in view.chunks():
                writer.add(chunk)
            for sessions in view.sessions():
                writer.add_sessions(sessions)
            before_publishing()
            self.require_place()
            self._sizes.pop(self._layout.snapshot(view.rev), None)
            path = writer.finish()
        self.expect(path, writer.size)
        try:
            self._drop_covered(snapshot.KEPT_SNAPSHOTS, view.rev)
        except OSError as error:  # The snapshot stands: what is too much costs only space.
            _log.warning("cannot remove what is no longer needed: %s", error)
        return path, writer.size

    def require_place(self) -> None:
        """Raise OSError where another directory, or none, has the name of this one."""
        lost = self._lock and self._lock.lost_directory()
        if lost:
            raise FileNotFoundError(errno.ENOENT, lost)

    def disorder(self) -> str | None:
        """What others have done to the directory while it is held, in words; None = nothing.

        The newest segment may grow, and is left to whoever writes it.
        """
        if self._lock is None:
            return None
        lost = self._lock.lost_directory() or self._lock.lost_file()
        if lost:
            return lost
        # Before the directory is read: what the log closes meanwhile may or may not be in it.
        expected = dict(self._sizes)
        try:
            found = self._closed_files()
        except OSError as error:
            return explain(error, self._layout.directory)
        for path, size in expected.items():
            if path not in found:
                return f"{path} was removed or renamed"
            if found[path] != size:
                return f"{path} was changed: it has {found[path]} bytes instead of {size}"
        for path, size in found.items():
            self.expect(path, size)
        return None

    def expect(self, path: Path, size: int) -> None:
        """Take note of a file that is to stay as it is. Any thread."""
        self._sizes[path] = size

    def put_in_order(self) -> None:
        """Make anew what may be made anew. What is in the files, a new snapshot has to say.

        Raises OSError, LockedError where the directory cannot be gone on with.
        """
        self.require_place()
        if self._lock is not None and self._lock.lost_file():
            self._lock.renew()
        self._make_inner()
        self._files.sync_directory(self._layout.directory)
        self._sizes.clear()

    def _closed_files(self) -> dict[Path, int]:
        """Snapshots, and segments but for the newest, with their sizes."""
        paths = [
            self._layout.snapshot(rev) for rev in recovery.snapshots(self._files, self._snapshots)
        ]
        firsts = recovery.segments(self._files, self.wal_directory)[:-1]
        paths += map(self._layout.segment, firsts)
        return {path: os.stat(path).st_size for path in paths}

    def make_room(self, saved_rev: int) -> bool:
        """Give up what only the snapshot before the newest needs; whether that was anything.

        For when the disk is full: a log that has filled it by itself would otherwise keep out the
        very snapshot that lets go of it. A snapshot gives room for about one of its size.

        Args:
            saved_rev: of the newest snapshot that is known to be on disk.
        """
        try:
            dropped = self._drop_covered(kept=1, saved_rev=saved_rev)
        except OSError as error:
            _log.warning("the disk is full, and cannot be made room on: %s", error)
            return False
        if dropped:
            _log.warning(
                "the disk is full: gave up what only the way back behind the newest snapshot "
                "needs: %d files", len(dropped),
            )  # fmt: skip
        return bool(dropped)

    def _drop_covered(self, kept: int, saved_rev: int) -> list[Path]:
        """Remove what the newest ``kept`` snapshots do not need; returns what was removed."""
        found = recovery.snapshots(self._files, self._snapshots)
        revisions = [rev for rev in found if rev <= saved_rev]
        covered = [self._snapshots / snapshot.file_name(rev) for rev in revisions[:-kept]]
        needed_from = revisions[-kept] if len(revisions) >= kept else 0
        firsts = recovery.segments(self._files, self.wal_directory)
        covered += [
            self.wal_directory / segment.file_name(first)
            for first, successor in itertools.pairwise(firsts)
            if successor <= needed_from  # The answers at that very revision count, too.
        ]
        for path in covered:
            self._files.remove(path)
            self._sizes.pop(path, None)
        return covered

    def _make_inner(self) -> None:
        for inner in (self._snapshots, self.wal_directory):
            self._files.make_directory(inner)

    def _make_directory(self, directory: Path) -> None:
        """Make the directory and what it stands in, and have their names on disk.

        Who came before may have made them and been killed; its lock file came after that.
        """
        ways = [*reversed(directory.parents), directory]
        made = [path for path in ways if self._files.make_directory(path)]
        if made or self._layout.lock.name not in self._files.names(directory):
            for path in directory.parents:
                with contextlib.suppress(PermissionError):  # Then it is none that zkv has made.
                    self._files.sync_directory(path)

    def _settle_end(self, end: SegmentEnd, torn: TornTail | None, rev: int) -> None:
        """Have the newest segment end with its last good frame, on disk.

        What is behind ``end.synced`` may be in the system's cache only, even if an fdatasync says
        that it is not: one that had failed may have left it there as clean. So it is written again.
        """
        path = self._layout.segment(end.first_rev)
        try:
            file, _ = self._files.open_append(path)
            with file:
                if torn is not None:
                    self._cut(file, torn, rev)
                self._files.rewrite(file, end.synced)
                self._files.sync(file)
        except OSError as error:
            raise DataDirError(f"{path}: {error.strerror or error}") from error

    def _cut(self, file: BinaryIO, torn: TornTail, rev: int) -> None:
        """Cut a torn tail off the segment in ``file``, once a copy of it is on disk.

        A full disk has no room for the copy, and is no reason not to start.
        """
        copy = torn.path.with_name(f"{torn.path.name}.torn-{torn.offset}")
        file.seek(torn.offset)
        tail = file.read()
        what_became_of_it = f"what was there is kept as {copy.name}"
        try:
            self._keep_tail(copy, tail)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            with contextlib.suppress(OSError):
                self._files.remove(copy)
            what_became_of_it = "the disk is full, and no copy of it is kept"
        self._files.truncate(file, torn.offset)
        _log.warning(
            "%s: cut %d bytes at offset %d that a crash left half written (%s); "
            "the log is whole up to revision %d; %s",
            torn.path, len(tail), torn.offset, torn.reason, rev, what_became_of_it,
        )  # fmt: skip

    def _keep_tail(self, copy: Path, tail: bytes) -> None:
        """Have ``tail`` on disk as a file of its own. Raises OSError."""
        with self._files.create(copy) as kept:
            self._files.write(kept, tail)
            self._files.sync(kept)
        self._files.sync_directory(self.wal_directory)

    def _remove_unfinished(self, directory: Path) -> None:
        for name in self._files.names(directory):
            if name.endswith(snapshot.UNFINISHED):
                with contextlib.suppress(FileNotFoundError):
                    self._files.remove(directory / name)
