"""A data directory as it was at one moment, which can be read while a server uses it.

A running server only appends to its newest segment, renames complete files into place, and removes
snapshots and segments that are no longer needed. So a frozen view opens all of them, then lists
them again, and starts over if the list has changed. From then on it reads the open files, even if
they are removed meanwhile. It locks nothing and writes nothing.

The newest segment may grow while it is read; its last frame may be incomplete and look torn.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO, Final

from zkv.durability import recovery, segment, snapshot
from zkv.durability.files import Files
from zkv.durability.layout import Layout, explain
from zkv.errors import DataDirError, FormatError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

MOST_TRIES: Final = 1000


class FrozenView(Files):
    """The open files of a data directory, behind the interface of `Files`. A context manager.

    Only `names` and `open_read` show the frozen view. Read one file at a time.

    Args:
        files: the file operations.
        directory: the data directory.

    Raises:
        DataDirError: it is not a data directory, is empty, or a file in it cannot be opened.
        FormatError: a newer zkv has written a file in it.
    """

    def __init__(self, files: Files, directory: Path) -> None:
        self._files = files
        self.layout = Layout(directory)
        self._names: dict[Path, list[str]] = {}
        self._open: dict[Path, BinaryIO] = {}
        try:
            require_data(files, self.layout)
            self.holder = files.lock_holder(self.layout.lock)
            """The process id of the server that uses the directory; None = there is none."""
            self._take()
        except OSError as error:
            self.close()
            raise DataDirError(explain(error, directory)) from error
        self.snapshots = recovery.snapshots(self, self.layout.snapshots)
        """Revisions of the snapshots, oldest first."""
        self.segments = recovery.segments(self, self.layout.wal)
        """First revisions of the segments, oldest first."""
        try:
            self.versions = recovery.versions(self, self.layout.snapshots, self.layout.wal)
            """The formats of these files, but for damaged ones."""
        except FormatError:
            self.close()
            raise

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
        """The names in ``directory`` when the view was taken; empty if it did not exist."""
        return self._names.get(directory, [])

    def open_read(self, path: Path) -> BinaryIO:
        """Open a snapshot or segment of the view, at its beginning. Raises OSError."""
        file = os.fdopen(os.dup(self._open[path].fileno()), "rb")
        file.seek(0)
        return file

    def size(self, path: Path) -> int:
        """The size in bytes that a snapshot or segment of the view has now. Raises OSError."""
        return os.fstat(self._open[path].fileno()).st_size

    def _take(self) -> None:
        for _ in range(MOST_TRIES):
            self._names = self._list()
            try:
                self._open_all()
            except FileNotFoundError:  # The server has just removed a file.
                self.close()
                continue
            if self._data_paths(self._list()) == list(self._open):
                return
            self.close()
        raise DataDirError(f"{self.layout.directory}: its files change too fast; try again")

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
    """Raise DataDirError if this is not a data directory, OSError if it cannot be listed."""
    names = files.names(layout.directory)
    if not names:
        raise DataDirError(f"{layout.directory}: there is no data here: the directory is empty")
    parts = [layout.lock.name, layout.snapshots.name, layout.wal.name]
    if not set(parts) & set(names):
        raise DataDirError(
            f"{layout.directory}: not a zkv data directory: it contains neither "
            f"{', '.join(parts[:-1])} nor {parts[-1]}"
        )
