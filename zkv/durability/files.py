"""The only door through which zkv writes to the file system.

Everything durable goes through an instance of `Files`, which is passed in: tests hand over one
that fails, records or reorders. Each method is one system call or a fixed short run of them, so
that a fault can be placed before any of them.

What the methods promise is what POSIX promises: data is on disk after `sync`, a name is on disk
after `sync_directory`. See Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014).
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final
from weakref import WeakSet

from zkv.durability import lock
from zkv.durability.lock import DirectoryLock

_PIECE_BYTES: Final = 1 << 20

_written: WeakSet[BinaryIO] = WeakSet()
"""What is open for writing, or to hold a lock. A child made by fork closes it: it would hold the
lock as long as it lives, and the room of files that are removed."""


def _ours_alone(file: BinaryIO) -> BinaryIO:
    _written.add(file)
    return file


def _close_in_child() -> None:
    for file in list(_written):
        file.close()  # Without a word to the system about the lock: that is the parent's, too.


os.register_at_fork(after_in_child=_close_in_child)


class Files:
    """The real file system."""

    def make_directory(self, path: Path) -> bool:
        """Make ``path``; False if it was there. Raises OSError."""
        try:
            path.mkdir()
        except FileExistsError:
            _require_directory(path)
            return False
        return True

    def names(self, directory: Path) -> list[str]:
        """Names in ``directory``, sorted. Raises OSError."""
        return sorted(os.listdir(directory))

    def create(self, path: Path) -> BinaryIO:
        """A new empty file to write; what had the name is replaced. Raises OSError."""
        return _ours_alone(open(path, "wb", buffering=0))

    def open_append(self, path: Path) -> tuple[BinaryIO, int]:
        """A file to read, and to go on writing at its end; and its size. Raises OSError."""
        file = open(path, "r+b", buffering=0)  # noqa: SIM115  the caller closes it
        return _ours_alone(file), file.seek(0, os.SEEK_END)

    def open_read(self, path: Path) -> BinaryIO:
        """A file to read. Raises OSError."""
        return open(path, "rb")

    def write(self, file: BinaryIO, data: bytes) -> None:
        """Write all of ``data`` at the file's position. Raises OSError."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file.fileno(), rest) :]

    def sync(self, file: BinaryIO) -> None:
        """Return once what was written to ``file`` is on disk. Raises OSError."""
        os.fdatasync(file.fileno())

    def truncate(self, file: BinaryIO, size: int) -> None:
        """Cut ``file`` to ``size`` bytes and go on writing there. Raises OSError."""
        os.ftruncate(file.fileno(), size)
        os.lseek(file.fileno(), size, os.SEEK_SET)

    def rewrite(self, file: BinaryIO, offset: int) -> None:
        """Write once more, in place, what ``file`` holds from ``offset`` on. Raises OSError."""
        while data := os.pread(file.fileno(), _PIECE_BYTES, offset):
            os.lseek(file.fileno(), offset, os.SEEK_SET)
            self.write(file, data)
            offset += len(data)

    def rename(self, old: Path, new: Path) -> None:
        """Give ``old`` the name ``new``, in one step. Raises OSError."""
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        """Remove a file. Raises OSError."""
        path.unlink()

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory. Raises OSError."""
        path.rmdir()

    def sync_directory(self, path: Path) -> None:
        """Return once the names in ``path`` are on disk. Raises OSError."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def lock(self, path: Path) -> DirectoryLock:
        """Hold a data directory, whose lock file this is. Raises LockedError, OSError."""
        return DirectoryLock(path)

    def lock_holder(self, path: Path) -> str | None:
        """Who holds a data directory: see `zkv.durability.lock.holder`. Raises OSError."""
        return lock.holder(path)


def _require_directory(path: Path) -> None:
    """Raise OSError where there is something else at ``path``; it says what."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        why = f"a link to {os.readlink(path)}, which is not there"
        raise FileNotFoundError(errno.ENOENT, why, str(path)) from None
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
