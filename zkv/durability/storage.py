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
from zkv.errors import DataDirError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zkv.durability.files import Files
    from zkv.durability.recovery import Recovered, TornTail
    from zkv.keyspace import SnapshotView

_log = logging.getLogger("zkv.durability")


class Storage:
    """The data directory, for one thread at a time.

    Args:
        directory: where data is kept; made if it is not there.
        files: the door to the file system.
        now: the clock, in seconds of Unix time.

    Raises:
        LockedError: another server holds the directory.
        DataDirError: the directory cannot be made, read or written.
    """

    def __init__(self, directory: Path, files: Files, now: Callable[[], float] = time.time) -> None:
        self._files = files
        self._now = now
        self._snapshots = directory / "snapshot"
        self.wal_directory = directory / "wal"
        self._lock: BinaryIO | None = None
        try:
            if files.make_directory(directory):
                files.sync_directory(directory.parent)
            self._lock = files.lock(directory / "LOCK")
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

    def load(self) -> Recovered:
        """Everything the directory holds; a torn tail is cut, and a copy of it kept.

        Raises:
            DamageError: something is damaged. It is never passed over in silence.
            DataDirError: something cannot be read or written.
        """
        started = time.perf_counter()
        recovered = recovery.recover(self._files, self._snapshots, self.wal_directory)
        if recovered.torn is not None:
            self._cut(recovered.torn, recovered.rev)
        _log.info(
            "recovered revision %d: %d entries; snapshot at %d, %d commits replayed, %.2f s",
            recovered.rev, len(recovered.entries), recovered.snapshot_rev, recovered.replayed,
            time.perf_counter() - started,
        )  # fmt: skip
        return recovered

    def save(self, view: SnapshotView, before_publishing: Callable[[], None]) -> Path:
        """Write ``view`` as a snapshot; return its path once it is on disk.

        Args:
            view: what to write.
            before_publishing: called once all is written, before the file gets its name; what it
                raises ends the matter.

        Raises:
            OSError: it cannot be written.
        """
        created = int(self._now() * 1000)
        with snapshot.Writer(self._files, self._snapshots, view.rev, created) as writer:
            for chunk in view.chunks():
                writer.add(chunk)
            before_publishing()
            path = writer.finish()
        self._drop_covered()
        return path

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
