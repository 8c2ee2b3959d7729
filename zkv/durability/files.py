"""File operations: all of zkv's durable writes go through this module.

An instance of `Files` is passed to whatever writes. Tests pass one that fails, records or reorders
calls. Each method makes one system call, or a short fixed sequence of them, so that a test can
inject a fault before any of them.

The methods promise what POSIX promises: data is on disk after `sync`, a name is on disk after
`sync_directory`. See Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, TypeVar
from weakref import WeakSet

from zkv import system
from zkv.durability import lock
from zkv.durability.lock import DirectoryLock
from zkv.durability.mounts import file_system

_PIECE_BYTES: Final = 1 << 20
SYNC_BYTES: Final = 8 * 1024 * 1024
"""After so many bytes a `LargeFile` is synced."""

_PATIENCE_SECONDS: Final = 1.0
"""How long a file waits for a descriptor: connections may have taken all, until they are cut off
(`zkv.broker.room`)."""
_AGAIN_SECONDS: Final = 0.002

_Opened = TypeVar("_Opened")

_written: WeakSet[BinaryIO] = WeakSet()
"""Files that are open for writing. A child made by fork closes them: while it lived, it would keep
the space of files that the parent removes."""


def _ours_alone(file: BinaryIO) -> BinaryIO:
    _written.add(file)
    return file


def _close_in_child() -> None:
    for file in list(_written):
        file.close()


system.after_fork(_close_in_child)


def _open(opener: Callable[[], _Opened]) -> _Opened:
    """Call ``opener``, and again for a while if the process has no descriptor left."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return opener()
        except OSError as error:
            if error.errno != errno.EMFILE or time.monotonic() > end:
                raise
        time.sleep(_AGAIN_SECONDS)


class Files:
    """The real file system."""

    def make_directory(self, path: Path) -> bool:
        """Make the directory ``path``; returns False if it exists already. Raises OSError."""
        try:
            path.mkdir()
        except FileExistsError:
            _require_directory(path)
            return False
        return True

    def names(self, directory: Path) -> list[str]:
        """The names in ``directory``, sorted. Raises OSError."""
        return sorted(_open(lambda: os.listdir(directory)))

    def create(self, path: Path) -> BinaryIO:
        """Create an empty file to write; an existing file is emptied. Raises OSError."""
        return _ours_alone(_open(lambda: open(path, "wb", buffering=0)))

    def open_append(self, path: Path) -> tuple[BinaryIO, int]:
        """Open a file for reading and for writing at its end; and its size. Raises OSError."""
        file = _open(lambda: open(path, "r+b", buffering=0))  # noqa: SIM115  the caller closes it
        return _ours_alone(file), file.seek(0, os.SEEK_END)

    def open_read(self, path: Path) -> BinaryIO:
        """Open a file for reading. Raises OSError."""
        return _open(lambda: open(path, "rb"))

    def write(self, file: BinaryIO, data: bytes) -> None:
        """Write all of ``data`` at the file's position. Raises OSError."""
        written = os.write(file.fileno(), data)
        while written < len(data):
            written += os.write(file.fileno(), memoryview(data)[written:])

    def sync(self, file: BinaryIO) -> None:
        """Wait until all that was written to ``file`` is on disk. Raises OSError."""
        system.sync(file.fileno())

    def write_back(self, path: Path) -> None:
        """Have the system write the file's content to the disk by now. This promises nothing."""
        system.write_back(path)

    def truncate(self, file: BinaryIO, size: int) -> None:
        """Truncate ``file`` to ``size`` bytes; the next write is there. Raises OSError."""
        os.ftruncate(file.fileno(), size)
        os.lseek(file.fileno(), size, os.SEEK_SET)

    def rewrite(self, file: BinaryIO, offset: int) -> None:
        """Read ``file`` from ``offset`` on and write the same bytes again. Raises OSError."""
        while data := os.pread(file.fileno(), _PIECE_BYTES, offset):
            os.lseek(file.fileno(), offset, os.SEEK_SET)
            self.write(file, data)
            offset += len(data)

    def rename(self, old: Path, new: Path) -> None:
        """Rename ``old`` to ``new`` atomically, replacing a file of that name. Raises OSError."""
        os.replace(old, new)

    def link(self, old: Path, new: Path) -> None:
        """Give the file ``old`` a second name. Raises OSError, also if ``new`` exists."""
        os.link(old, new)

    def remove(self, path: Path) -> None:
        """Remove a file. Raises OSError."""
        path.unlink()

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory. Raises OSError."""
        path.rmdir()

    def sync_directory(self, path: Path) -> None:
        """Wait until the names in the directory ``path`` are on disk. Raises OSError."""
        descriptor = _open(lambda: os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def file_system(self, directory: Path) -> str:
        """The type of the file system of ``directory``; empty if it cannot be known."""
        return file_system(directory)

    def lock(self, path: Path) -> DirectoryLock:
        """Lock the data directory whose lock file is ``path``. Raises LockedError, OSError."""
        return DirectoryLock(path)

    def lock_holder(self, path: Path) -> str | None:
        """The process that locks a data directory: see `zkv.durability.lock`. Raises OSError."""
        return lock.holder(path)


def _require_directory(path: Path) -> None:
    """Raise OSError if ``path`` is not a directory; the error says what it is."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        why = f"a link to {os.readlink(path)}, which does not exist"
        raise FileNotFoundError(errno.ENOENT, why, str(path)) from None
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


class LargeFile:
    """Writes a file that may be large, and syncs it now and then.

    If all were left for a sync at the end, the disk would be busy with that for long, and everybody
    else who syncs would wait, such as a server its log.

    Args:
        files: the file operations.
        file: open for writing.
    """

    def __init__(self, files: Files, file: BinaryIO) -> None:
        self._files = files
        self._file = file
        self._unsynced = 0

    def write(self, data: bytes) -> None:
        """Write all of ``data``; it is on disk only after a sync of the file. Raises OSError."""
        self._files.write(self._file, data)
        self._unsynced += len(data)
        if self._unsynced >= SYNC_BYTES:
            self._files.sync(self._file)
            self._unsynced = 0
