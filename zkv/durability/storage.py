"""A data directory held by this process: its lock, what it holds, and what is written to it next.

Layout below the data directory::

    LOCK                                    held as long as a server runs
    snapshot/<revision>.snapshot            the newest two, see `zkv.durability.snapshot`
    wal/<first revision>.wal                the log, see `zkv.durability.segment`
    wal/<first revision>.wal.torn-<offset>  a copy of a segment before its torn tail was cut

Invariant: the newest snapshot and the segments behind it give the exact state; so do the snapshot
before it and the segments behind that. A segment goes only when neither needs it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from typing import TYPE_CHECKING, BinaryIO

from zkv.durability import recovery, segment, snapshot
from zkv.durability.layout import Layout
from zkv.errors import DataDirError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zkv.durability.files import Files
    from zkv.durability.recovery import Recovered, TornTail
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
        layout = Layout(directory)
        self._snapshots = layout.snapshots
        self.wal_directory = layout.wal
        self._lock: BinaryIO | None = None
        try:
            if files.make_directory(directory):
                files.sync_directory(directory.parent)
            self._lock = files.lock(layout.lock)
            for inner in (self._snapshots, self.wal_directory):
                if files.make_directory(inner):
                    files.sync_directory(directory)
                self._remove_unfinished(inner)
        except OSError as error:
            self.close()
            place = error.filename or directory
            raise DataDirError(f"{place}: {error.strerror or error}") from error

    def close(self) -> None:
        """Let go of the directory. May be called again."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def load(self, sessions: Sessions, history: History) -> Recovered:
        """Everything the directory holds; a torn tail is cut, and a copy of it kept.

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
        if recovered.torn is not None:
            self._cut(recovered.torn, recovered.rev)
        self._sync_newest_segment()
        _log.info(
            "recovered revision %d: %d entries; snapshot at %d, %d commits replayed, %.2f s",
            recovered.rev, len(recovered.entries), recovered.snapshot_rev, recovered.replayed,
            time.perf_counter() - started,
        )  # fmt: skip
        return recovered

    def save(self, view: SnapshotView, before_publishing: Callable[[], None]) -> tuple[Path, int]:
        """Write ``view`` as a snapshot; return its path and size once it is on disk.

        Args:
            view: what to write.
            before_publishing: called once all is written, before the file gets its name; what it
                raises ends the matter.

        Raises:
            OSError: it cannot be written.
        """
        with snapshot.Writer(self._files, self._snapshots, view.rev, view.time) as writer:
            for chunk in view.chunks():
                writer.add(chunk)
            for sessions in view.sessions():
                writer.add_sessions(sessions)
            before_publishing()
            path = writer.finish()
        try:
            self._drop_covered()
        except OSError as error:  # The snapshot stands: what is too much costs only space.
            _log.warning("cannot remove what is no longer needed: %s", error)
        return path, writer.size

    def _drop_covered(self) -> None:
        """Remove the snapshots and segments that no way back needs."""
        revisions = recovery.snapshots(self._files, self._snapshots)
        for rev in revisions[: -snapshot.KEPT_SNAPSHOTS]:
            self._files.remove(self._snapshots / snapshot.file_name(rev))
        needed_from = revisions[-snapshot.KEPT_SNAPSHOTS :][0]
        if len(revisions) < snapshot.KEPT_SNAPSHOTS:
            needed_from = 0
        firsts = recovery.segments(self._files, self.wal_directory)
        for first, successor in itertools.pairwise(firsts):
            if successor <= needed_from + 1:
                self._files.remove(self.wal_directory / segment.file_name(first))

    def _sync_newest_segment(self) -> None:
        """Have on disk what has been read: after a kill, the newest segment may be only cached.

        From now on its commits count as durable, and the next segment will vouch for them.
        """
        firsts = recovery.segments(self._files, self.wal_directory)
        if firsts:
            path = self.wal_directory / segment.file_name(firsts[-1])
            try:
                self._files.sync_path(path)
                self._files.sync_directory(self.wal_directory)
            except OSError as error:
                raise DataDirError(f"{path}: {error.strerror or error}") from error

    def _cut(self, torn: TornTail, rev: int) -> None:
        copy = torn.path.with_name(f"{torn.path.name}.torn-{torn.offset}")
        try:
            self._files.cut(torn.path, torn.offset, copy)
            self._files.sync_directory(self.wal_directory)
        except OSError as error:
            raise DataDirError(f"{torn.path}: {error.strerror or error}") from error
        _log.warning(
            "%s: cut %d bytes at offset %d that a crash left half written (%s); "
            "the log is whole up to revision %d; what was there is kept as %s",
            torn.path, torn.size - torn.offset, torn.offset, torn.reason, rev, copy.name,
        )  # fmt: skip

    def _remove_unfinished(self, directory: Path) -> None:
        for name in self._files.names(directory):
            if name.endswith(snapshot.UNFINISHED):
                with contextlib.suppress(FileNotFoundError):
                    self._files.remove(directory / name)
