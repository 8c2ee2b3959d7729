"""A data directory held by this process: the lock, the newest snapshot, and writing the next one.

Layout below the data directory::

    LOCK                               held as long as a server runs
    snapshot/<revision>.snapshot       the newest two, see `zkv.durability.snapshot`
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, BinaryIO

from zkv.durability import snapshot
from zkv.errors import DamageError, DataDirError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zkv.durability.files import Files
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
        self.directory = directory
        self._files = files
        self._now = now
        self._snapshots = directory / "snapshot"
        self._lock: BinaryIO | None = None
        try:
            files.make_directory(directory)
            self._lock = files.lock(directory / "LOCK")
            files.make_directory(self._snapshots)
            self._remove_unfinished()
        except OSError as error:
            self.close()
            raise DataDirError(f"{directory}: {error.strerror or error}") from error

    def close(self) -> None:
        """Let go of the directory. May be called again."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def load(self) -> snapshot.Loaded:
        """The newest snapshot's content; nothing at revision 0 where there is none.

        Raises:
            DamageError: it is damaged. It is never passed over in silence.
            DataDirError: it cannot be read.
        """
        revisions = self._revisions()
        if not revisions:
            return snapshot.Loaded(0, {})
        started = time.perf_counter()
        path = self._snapshots / snapshot.file_name(revisions[-1])
        try:
            loaded = snapshot.read(self._files, path)
        except OSError as error:
            raise DataDirError(f"{path}: {error.strerror or error}") from error
        except DamageError as error:
            raise DamageError(f"{error}; {_way_back(revisions)}") from None
        _log.info(
            "loaded %s: revision %d, %d entries in %.2f s",
            path, loaded.rev, len(loaded.entries), time.perf_counter() - started,
        )  # fmt: skip
        return loaded

    def save(self, view: SnapshotView) -> Path:
        """Write ``view`` as a snapshot; return its path once it is on disk. Raises OSError."""
        created = int(self._now() * 1000)
        with snapshot.Writer(self._files, self._snapshots, view.rev, created) as writer:
            for chunk in view.chunks():
                writer.add(chunk)
            path = writer.finish()
        for rev in self._revisions()[: -snapshot.KEPT_SNAPSHOTS]:
            self._files.remove(self._snapshots / snapshot.file_name(rev))
        return path

    def _revisions(self) -> list[int]:
        names = self._files.names(self._snapshots)
        return [rev for name in names if (rev := snapshot.revision_of(name)) is not None]

    def _remove_unfinished(self) -> None:
        for name in self._files.names(self._snapshots):
            if name.endswith(snapshot.UNFINISHED):
                with contextlib.suppress(FileNotFoundError):
                    self._files.remove(self._snapshots / name)


def _way_back(revisions: list[int]) -> str:
    if len(revisions) == 1:
        return "there is no older snapshot"
    return (
        f"to go back to revision {revisions[-2]}, and lose what came after it, move this file away"
    )
