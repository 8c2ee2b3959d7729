"""The lock on a data directory: an OS lock on its file ``LOCK`` and on the directory itself.

``LOCK`` contains the process id of the holder. Because the directory is locked as well, a second
server stays out even if somebody removes ``LOCK``. The open descriptor of the directory also shows
if another directory has taken its name.

A child made by fork closes both descriptors at once. Otherwise it would hold the lock, too, for as
long as it lived.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, BinaryIO, Final
from weakref import WeakSet

from zkv import system
from zkv.errors import LockedError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self


class DirectoryLock:
    """An exclusive OS lock, held until `close` or until the process ends for any reason.

    A context manager.

    Args:
        path: the lock file; it is created if needed. Its directory is locked, too.

    Raises:
        LockedError: another process (or this one) holds the lock.
        OSError: the file cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._lock_directory()
            self._file = self._take()
        except BaseException:
            os.close(self._directory)
            raise
        self._closed = False
        _held.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock. May be called again."""
        if self._closed:
            return
        self._closed = True
        for descriptor in (self._file.fileno(), self._directory):
            # Explicitly, since the lock would otherwise remain while a child has the file open.
            with contextlib.suppress(OSError):
                system.unlock(descriptor)
        self._close_files()

    def forget(self) -> None:
        """Close the files without unlocking them: in a child, the lock belongs to the parent."""
        if not self._closed:
            self._closed = True
            self._close_files()

    def lost_directory(self) -> str | None:
        """Describe what has happened to the directory; None = it is in its place."""
        directory = self._path.parent
        try:
            there = os.stat(directory)
        except FileNotFoundError:
            gone = os.fstat(self._directory).st_nlink == 0
            return f"{directory}: the data directory was {'removed' if gone else 'moved away'}"
        except OSError as error:
            return f"{directory}: the data directory cannot be reached: {error.strerror}"
        if not os.path.samestat(there, os.fstat(self._directory)):
            return f"{directory}: the data directory was replaced by something else"
        return None

    def lost_file(self) -> str | None:
        """Describe what has happened to the file; None = it is in its place."""
        return changed(self._path, self._file)

    def renew(self) -> None:
        """Lock the file that has the name now; it is created if needed.

        Raises LockedError, OSError; then the lock stays as it was.
        """
        old, self._file = self._file, self._take()
        old.close()

    def _close_files(self) -> None:
        self._file.close()
        os.close(self._directory)

    def _lock_directory(self) -> None:
        try:
            system.lock(self._directory)
        except BlockingIOError:
            with contextlib.suppress(OSError), open(self._path, "rb") as file:
                raise self._refused(file) from None
            raise self._refused(None) from None
        except OSError:
            pass  # Some file systems can only lock files. Then the lock on the file must suffice.

    def _take(self) -> BinaryIO:
        file = open(self._path, "a+b", buffering=0)  # noqa: SIM115  open as long as it is held
        try:
            system.lock(file)
        except BlockingIOError:
            with file:
                raise self._refused(file) from None
        with contextlib.suppress(OSError):  # The process id is only information: ignore errors.
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
        return file

    def _refused(self, file: BinaryIO | None) -> LockedError:
        holder = "" if file is None else _pid_in(file)
        by = f" (process {holder})" if holder else ""
        return LockedError(f"{self._path.parent}: another server{by} holds this data directory")


_held: Final[WeakSet[DirectoryLock]] = WeakSet()


def _forget_in_child() -> None:
    for lock in list(_held):
        lock.forget()


system.after_fork(_forget_in_child)


def holder(path: Path) -> str | None:
    """The process id of the lock's holder, "" if it is unknown; None = the lock is free.

    Nothing is written or created. The check takes a shared lock for a moment; if another process
    creates a `DirectoryLock` at that very moment, it is refused. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        if _is_locked(file.fileno()):
            return _pid_in(file)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return "" if _is_locked(descriptor) else None
    finally:
        os.close(descriptor)


def changed(path: Path, file: BinaryIO, size: int | None = None) -> str | None:
    """Describe what others have done to the file at ``path``; None = nothing.

    Args:
        path: where the file should be.
        file: the file, open.
        size: the number of bytes that it should have; None = any.
    """
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return f"{path} was removed or renamed"
    except OSError as error:
        return f"{path} cannot be reached: {error.strerror}"
    if not os.path.samestat(there, os.fstat(file.fileno())):
        return f"{path} was replaced by another file"
    if size is not None and there.st_size != size:
        return f"{path} was changed: it has {there.st_size} bytes instead of {size}"
    return None


def _is_locked(descriptor: int) -> bool:
    try:
        system.lock(descriptor, shared=True)
    except BlockingIOError:
        return True
    except OSError:
        return False  # This file system, or the whole system, cannot lock it.
    return False


def _pid_in(file: BinaryIO) -> str:
    file.seek(0)
    return file.read(32).decode("ascii", "replace").strip()
