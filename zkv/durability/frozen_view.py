"""A data directory as it was at one moment, to be read while a server goes on with it.

A running server only appends to its newest segment, gives whole files their names, and removes
snapshots and segments that are no longer needed. So a frozen view opens every one of them at once,
and looks again whether they are still all there is: what is read later is read from the open files,
wherever their names have gone. Nothing is locked and nothing is written.

The newest segment may grow while it is read; its last frame may be in flight and look torn.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO, Final

from zkv.durability import recovery, segment, snapshot
from zkv.durability.files import Files
from zkv.durability.layout import Layout, explain
from zkv.errors import DataDirError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

MOST_TRIES: Final = 1000


class FrozenView(Files):
    """The files of a data directory, as a door through which to read them. A context manager.

    Only `names` and `open_read` show the frozen view. One file is to be read at a time.

    Args:
        files: the door to the file system.
        directory: the data directory.

    Raises:
        DataDirError: it is none, it is empty, or a file in it cannot be opened.
    """

    def __init__(self, files: Files, directory: Path) -> None:
        self._files = files
        self.layout = Layout(directory)
        self._names: dict[Path, list[str]] = {}
        self._open: dict[Path, BinaryIO] = {}
        try:
            require_data(files, self.layout)
            self.holder = files.lock_holder(self.layout.lock)
            """The process id of a server that holds the directory; None = there is none."""
            self._take()
        except OSError as error:
            self.close()
            raise DataDirError(explain(error, directory)) from error
        self.snapshots = recovery.snapshots(self, self.layout.snapshots)
        """Revisions of the snapshots, oldest first."""
        self.segments = recovery.segments(self, self.layout.wal)
        """First revisions of the segments, oldest first."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files. May be called again."""
        while self._open:
            _, file = self._open.popitem()
            file.close()

    def names(self, directory: Path) -> list[str]:
        """Names in ``directory`` when the view was taken; none where it was not there."""
        return self._names.get(directory, [])

    def open_read(self, path: Path) -> BinaryIO:
        """A snapshot or segment of the view, to read from its beginning. Raises OSError."""
        file = os.fdopen(os.dup(self._open[path].fileno()), "rb")
        file.seek(0)
        return file

    def size(self, path: Path) -> int:
        """How many bytes a snapshot or segment of the view has now. Raises OSError."""
        return os.fstat(self._open[path].fileno()).st_size

    def _take(self) -> None:
        for _ in range(MOST_TRIES):
            self._names = self._list()
            try:
                self._open_all()
            except FileNotFoundError:  # It has just been removed.
                self.close()
                continue
            if self._data_paths(self._list()) == list(self._open):
                return
            self.close()
        raise DataDirError(f"{self.layout.directory}: changes too fast to be read; try again")

    def _list(self) -> dict[Path, list[str]]:
        layout = self.layout
        names = {}
        for directory in (layout.directory, layout.snapshots, layout.wal):
            try:
                names[directory] = self._files.names(directory)
            except FileNotFoundError:
                names[directory] = []
        return names

    def _open_all(self) -> None:
        for path in self._data_paths(self._names):
            self._open[path] = self._files.open_read(path)

    def _data_paths(self, names: dict[Path, list[str]]) -> list[Path]:
        """The snapshots and segments among ``names``."""
        layout = self.layout
        return [
            layout.snapshots / name
            for name in names[layout.snapshots]
            if snapshot.revision_of(name) is not None
        ] + [
            layout.wal / name
            for name in names[layout.wal]
            if segment.first_revision(name) is not None
        ]


def require_data(files: Files, layout: Layout) -> None:
    """Raise DataDirError unless this is a data directory, OSError where it cannot be listed."""
    names = files.names(layout.directory)
    if not names:
        raise DataDirError(f"{layout.directory}: there is no data here: it is empty")
    parts = [layout.lock.name, layout.snapshots.name, layout.wal.name]
    if not set(parts) & set(names):
        raise DataDirError(
            f"{layout.directory}: no zkv data directory: neither {', '.join(parts[:-1])} nor "
            f"{parts[-1]} is in it"
        )
