"""The data directory of this process: locks it, loads it, and saves snapshots to it.

Layout of the data directory::

    LOCK                                    locked while a server runs
    snapshot/<revision>.snapshot            the newest two, see `zkv.durability.snapshot`
    wal/<first revision>.wal                the log, see `zkv.durability.segment`
    wal/<first revision>.wal.torn-<offset>  the torn tail that was cut off a segment
    before-<version>/                       what an earlier version wrote, see
                                            `zkv.durability.upgrade`

Invariant: the newest snapshot and the segments after it give the exact state. So do the older
snapshot and the segments after that one. A segment is removed only when neither snapshot needs it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import time
from typing import TYPE_CHECKING, BinaryIO

from zkv.durability import formats, recovery, segment, snapshot, upgrade
from zkv.durability.layout import Layout, explain
from zkv.durability.mounts import REMOTE
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
    """The data directory. Only one thread at a time may use it, except for `expect`.

    Args:
        directory: the data directory; it is created if needed.
        files: the file operations.

    Raises:
        LockedError: another server uses the directory.
        DataDirError: the directory cannot be created, read or written.
    """

    def __init__(self, directory: Path, files: Files) -> None:
        self._files = files
        self.directory = directory
        self._layout = layout = Layout(directory)
        self.snapshot_directory = layout.snapshots
        self.wal_directory = layout.wal
        self._lock: DirectoryLock | None = None
        self.pinned: Callable[[], int | None] = lambda: None
        """Returns a revision after which the log has to be kept for another server, if any."""
        self._sizes: dict[Path, int] = {}  # Complete files, which must keep these sizes.
        try:
            self._make_directory(directory)
            self._lock = files.lock(layout.lock)
            self._make_inner()
            for inner in (self.snapshot_directory, self.wal_directory):
                self._remove_unfinished(inner)
                files.sync_directory(inner)
            files.sync_directory(directory)
            self._warn_of_network(directory)
        except OSError as error:
            self.close()
            raise DataDirError(explain(error, directory)) from error

    def _warn_of_network(self, directory: Path) -> None:
        kind = self._files.file_system(directory)
        if kind in REMOTE:
            _log.warning(
                "%s is on a network file system (%s): it may lose what it has confirmed, and let "
                "two servers in at once; set durability.data_dir to a directory on a local disk",
                directory, kind,
            )  # fmt: skip

    def close(self) -> None:
        """Release the directory. May be called again."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def load(self, sessions: Sessions, history: History) -> Recovered:
        """Load everything in the directory. A torn tail is cut off and kept in a file of its own.

        Afterwards all of it is on disk. Before, it may be only in the system's cache, if the server
        was killed. What an earlier version has written is in the current format then.

        Args:
            sessions: empty; is filled with the replies to exactly-once requests.
            history: empty; is filled with the newest commits.

        Raises:
            DamageError: something is damaged. Damage is never ignored silently.
            FormatError: a newer version has written something.
            DataDirError: something cannot be read or written.
        """
        started = time.perf_counter()
        recovered = recovery.recover(
            self._files, self.snapshot_directory, self.wal_directory, sessions, history
        )
        if recovered.end is not None:
            self._settle_end(recovered.end, recovered.torn, recovered.rev)
        recovered = self._in_current_format(recovered, sessions)
        self.disorder()  # Notes which files are there now, and their sizes.
        _log.info(
            "recovered revision %d: %d entries; snapshot at %d, %d commits replayed, %.2f s",
            recovered.rev, len(recovered.entries), recovered.snapshot_rev, recovered.replayed,
            time.perf_counter() - started,
        )  # fmt: skip
        return recovered

    def save(
        self, view: SnapshotView, logged: bool, before_publishing: Callable[[], None]
    ) -> tuple[Path, int]:
        """Write ``view`` as a snapshot; returns its path and size once it is on disk.

        Args:
            view: the state to write.
            logged: True if the log is on disk up to the view's log number once
                ``before_publishing`` has returned.
            before_publishing: called after everything is written, before the file gets its name. If
                it raises, the file is removed.

        Raises:
            OSError: the snapshot cannot be written.
        """
        directory = self.snapshot_directory
        self.require_place()
        with snapshot.Writer(
            self._files, directory, view.rev, view.lsn, view.time, logged, view.lineage
        ) as writer:
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
            self._drop_covered(snapshot.KEPT_SNAPSHOTS, view.rev, self.pinned())
        except OSError as error:  # The snapshot is good; files that remain only take space.
            _log.warning("cannot remove files that are no longer needed: %s", error)
        return path, writer.size

    def require_place(self) -> None:
        """Raise OSError if the directory was removed, renamed or replaced."""
        lost = self._lock and self._lock.lost_directory()
        if lost:
            raise FileNotFoundError(errno.ENOENT, lost)

    def disorder(self) -> str | None:
        """Describe what others have done to the directory while it was in use; None = nothing.

        The newest segment, which may grow, is not checked: `Wal.disorder` does that.
        """
        if self._lock is None:
            return None
        lost = self._lock.lost_directory() or self._lock.lost_file()
        if lost:
            return lost
        # Copied before the directory is read: the log may close a segment in between.
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
        """Note a complete file and its size, which must not change. Any thread."""
        self._sizes[path] = size

    def closed_log_size(self) -> int:
        """Return the size of all segments except the newest. Any thread."""
        sizes = dict(self._sizes).items()  # A copy, made in one step.
        return sum(size for path, size in sizes if path.parent == self.wal_directory)

    def snapshot_time(self, rev: int) -> float | None:
        """Return the Unix time at which a snapshot was written; None if it is not there."""
        try:
            return os.stat(self._layout.snapshot(rev)).st_mtime
        except OSError:
            return None

    def put_in_order(self) -> None:
        """Recreate the lock file and the subdirectories, and accept the files as they are now.

        The caller then writes a new snapshot, since files may be missing. Raises OSError,
        LockedError if the directory cannot be used.
        """
        self.require_place()
        if self._lock is not None and self._lock.lost_file():
            self._lock.renew()
        self._make_inner()
        self._files.sync_directory(self._layout.directory)
        self._sizes.clear()

    def _closed_files(self) -> dict[Path, int]:
        """The sizes of all snapshots, and of all segments except the newest."""
        paths = [
            self._layout.snapshot(rev)
            for rev in recovery.snapshots(self._files, self.snapshot_directory)
        ]
        firsts = recovery.segments(self._files, self.wal_directory)[:-1]
        paths += map(self._layout.segment, firsts)
        return {path: os.stat(path).st_size for path in paths}

    def make_room(self, saved_rev: int) -> bool:
        """Remove the older snapshot and the segments that only it needs; returns True if any.

        This is for a full disk. If the log has filled it, there would be no space for the snapshot
        that allows the log to be removed. Removing the older snapshot makes space for about one new
        snapshot.

        Args:
            saved_rev: the revision of the newest snapshot that is known to be on disk.
        """
        try:
            dropped = self._drop_covered(kept=1, saved_rev=saved_rev)
        except OSError as error:
            _log.warning("the disk is full, and removing old files failed: %s", error)
            return False
        if dropped:
            _log.warning(
                "the disk is full: removed %d files that only the older snapshot needed",
                len(dropped),
            )  # fmt: skip
        return bool(dropped)

    def _drop_covered(self, kept: int, saved_rev: int, pinned: int | None = None) -> list[Path]:
        """Remove the files that the newest ``kept`` snapshots do not need; returns their paths.

        The log after the revision ``pinned`` stays, too.
        """
        found = recovery.snapshots(self._files, self.snapshot_directory)
        revisions = [rev for rev in found if rev <= saved_rev]
        covered = [self.snapshot_directory / snapshot.file_name(rev) for rev in revisions[:-kept]]
        needed_from = revisions[-kept] if len(revisions) >= kept else 0
        needed_from = needed_from if pinned is None else min(needed_from, pinned)
        firsts = recovery.segments(self._files, self.wal_directory)
        covered += [
            self.wal_directory / segment.file_name(first)
            for first, successor in itertools.pairwise(firsts)
            # The segment that ends at `needed_from` stays: it may have replies to later requests
            # that changed nothing, and so have that revision.
            if successor <= needed_from
        ]
        for path in covered:
            self._files.remove(path)
            self._sizes.pop(path, None)
        return covered

    def _make_inner(self) -> None:
        for inner in (self.snapshot_directory, self.wal_directory):
            self._files.make_directory(inner)

    def _make_directory(self, directory: Path) -> None:
        """Create the directory and its parents, and sync their names.

        If there is no lock file yet, the names are synced even if all directories exist: an earlier
        process may have created them and been killed before it synced them.
        """
        ways = [*reversed(directory.parents), directory]
        made = [path for path in ways if self._files.make_directory(path)]
        if made or self._layout.lock.name not in self._files.names(directory):
            for path in directory.parents:
                with contextlib.suppress(PermissionError):  # Then zkv has not created this one.
                    self._files.sync_directory(path)

    def _in_current_format(self, found: Recovered, sessions: Sessions) -> Recovered:
        """Upgrade the directory if an earlier version has written it. Raises DataDirError."""
        try:
            upgrade.keep_copy(self._files, self._layout)
            if found.end is None or found.end.version == formats.CURRENT:
                return found
            return upgrade.renew(self._files, self._layout, found, sessions)
        except OSError as error:
            what = explain(error, self._layout.directory)
            raise DataDirError(f"cannot be upgraded to format {formats.CURRENT}: {what}") from error

    def _settle_end(self, end: SegmentEnd, torn: TornTail | None, rev: int) -> None:
        """Cut off the torn tail of the newest segment, and put the rest on disk.

        The bytes after ``end.synced`` may be only in the system's cache. An fdatasync alone might
        not write them, since an earlier one that failed may have marked them as clean. So they are
        written again.
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
        """Cut a torn tail off the segment in ``file``, after a copy of it is on disk.

        If the disk is full, there is no copy: a full disk must not keep the server from starting.
        """
        copy = torn.path.with_name(f"{torn.path.name}.torn-{torn.offset}")
        file.seek(torn.offset)
        tail = file.read()
        what_became_of_it = f"a copy of them is in {copy.name}"
        try:
            self._keep_tail(copy, tail)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            with contextlib.suppress(OSError):
                self._files.remove(copy)
            what_became_of_it = "the disk is full, so there is no copy"
        self._files.truncate(file, torn.offset)
        _log.warning(
            "%s: cut off %d bytes at offset %d, an incomplete write before a crash (%s); "
            "the log is complete up to revision %d; %s",
            torn.path, len(tail), torn.offset, torn.reason, rev, what_became_of_it,
        )  # fmt: skip

    def _keep_tail(self, copy: Path, tail: bytes) -> None:
        """Write ``tail`` to a file of its own, on disk. Raises OSError."""
        with self._files.create(copy) as kept:
            self._files.write(kept, tail)
            self._files.sync(kept)
        self._files.sync_directory(self.wal_directory)

    def _remove_unfinished(self, directory: Path) -> None:
        for name in self._files.names(directory):
            if name.endswith(snapshot.UNFINISHED):
                with contextlib.suppress(FileNotFoundError):
                    self._files.remove(directory / name)
