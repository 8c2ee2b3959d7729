"""Writes files under names that users give, which may be links, devices or pipes.

A device, a pipe or a descriptor such as ``/dev/stdout`` is not a regular file: it is written to
directly. A symbolic link is followed, even to a file that does not exist yet. A regular file is
replaced as a whole, once the new content is on disk: until then, and if that fails, the old content
stays. Mode, owner and extended attributes are kept. If a new file cannot replace the old one
without a loss (it has several names, its directory is not writable, its owner cannot be set, it is
a mount point), the content is copied into the old file, but not before all of it is on disk.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from zkv import system

MOST_LINKS: Final = 40
DESCRIPTORS: Final = re.compile(r"/dev/fd|/proc/(\d+)(?:/task/\d+)?/fd")
"""Directories whose entries are open files of a process, which no other file can replace."""
NOT_BESIDE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG})
"""Errors that prevent a new file beside one that is writable."""
NOT_REPLACED: Final = frozenset({errno.EBUSY, errno.EXDEV, *NOT_BESIDE})
"""Errors that prevent a new file from replacing the old one."""


class Target:
    """A place to write to. The constructor only checks: it opens, creates and changes nothing.

    Args:
        name: as the user gives it.

    Raises:
        OSError: it cannot be written; ``filename`` names the cause.
    """

    def __init__(self, name: str | Path) -> None:
        self.name = str(name)
        if "\0" in self.name:
            raise OSError(errno.EINVAL, "the name holds a NUL character", self.name)
        if not self.name:  # The system's error has no name, and realpath gives the directory.
            raise FileNotFoundError(errno.ENOENT, "the name is empty", "''")
        self._descriptor, is_opened = _descriptor(self.name)
        self._status = self._look()
        is_file = self._status is None or stat.S_ISREG(self._status.st_mode)
        self.is_file = is_file and not is_opened
        """True if it is a regular file, or will be one."""
        self.path = Path(os.path.realpath(self.name)) if self.is_file else Path(self.name)
        """The path after following all links."""
        self._check()

    def _look(self) -> os.stat_result | None:
        """Return the status of what is there; None if nothing is."""
        try:
            return os.stat(self.name if self._descriptor is None else self._descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from None

    def _check(self) -> None:
        """Check that it can be written. Raises OSError."""
        status = self._status
        if self.name.endswith("/") or (status is not None and stat.S_ISDIR(status.st_mode)):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.name)
        if status is not None and self.is_file:
            os.close(os.open(self.path, os.O_WRONLY))

    def require_directory(self) -> None:
        """Raise OSError if the file does not exist and cannot be created."""
        if self._status is None:
            parent = self.path.parent
            os.stat(parent)
            if not os.access(parent, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(parent))

    @contextmanager
    def open(self, part: str | None = None, resume: bool = False) -> Iterator[BinaryIO]:
        """Open a file for writing. The target gets its content when the block ends without error.

        Args:
            part: name, beside the target, of the incomplete file. It is kept if the block fails,
                and must not exist already. None = a random name, and it is removed.
            resume: continue with the part, which must exist.

        Raises:
            FileExistsError: the part exists.
            FileNotFoundError: the part does not exist, and ``resume`` is true.
            OSError: it cannot be written.
        """
        if not self.is_file:
            with self._open_through() as file:
                yield file
            return
        file, beside = self._open_part(part, resume)
        with file:
            try:
                yield file
                file.flush()
                system.sync(file.fileno())
                self._put(file, beside)
            except BaseException:
                if part is None and beside is not None:
                    with suppress(OSError):
                        beside.unlink()
                raise

    @contextmanager
    def append(self) -> Iterator[BinaryIO]:
        """Open a file for writing at its end; a regular file is restored if the block fails."""
        if self._descriptor is not None:
            with self._open_through() as file:
                yield file
            return
        with open(self.path, "ab") as file:
            size = os.fstat(file.fileno()).st_size
            try:
                yield file
                file.flush()
            except BaseException:
                if self.is_file:
                    with suppress(OSError):
                        os.ftruncate(file.fileno(), size)
                raise

    @property
    def is_empty(self) -> bool:
        """True if the target is empty or does not exist, as far as that is known."""
        return self._status is None or self._status.st_size == 0

    def _open_through(self) -> BinaryIO:
        """Open what is not a regular file; duplicate a descriptor of this process."""
        if self._descriptor is not None:
            return os.fdopen(os.dup(self._descriptor), "wb")
        return os.fdopen(os.open(self.path, os.O_WRONLY | os.O_TRUNC | os.O_NOCTTY), "wb")

    def _open_part(self, name: str | None, resume: bool) -> tuple[BinaryIO, Path | None]:
        """Open the incomplete file; return it with its path, None if it has no name."""
        beside = self.path.with_name(name or f".zkv-{secrets.token_hex(8)}")
        if resume:
            if not stat.S_ISREG(os.lstat(beside).st_mode):
                raise OSError(errno.EINVAL, "this is no regular file", str(beside))
            return os.fdopen(os.open(beside, os.O_RDWR | os.O_NOFOLLOW), "r+b"), beside
        # Users who may not read the old file must never be able to read the new one.
        mode = 0o666 if self._status is None else 0o600
        try:
            opened = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        except OSError as error:
            if self._status is None or error.errno not in NOT_BESIDE:
                raise
            return tempfile.TemporaryFile(), None
        return os.fdopen(opened, "w+b"), beside

    def _put(self, file: BinaryIO, beside: Path | None) -> None:
        """Give the target the content of ``file``."""
        if beside is not None and self._may_be_replaced(file):
            try:
                os.replace(beside, self.path)
            except OSError as error:
                if error.errno not in NOT_REPLACED:
                    raise
            else:
                _sync_directory(self.path.parent)
                return
        with os.fdopen(os.open(self.path, os.O_WRONLY), "wb") as target:
            file.seek(0)
            shutil.copyfileobj(file, target, 1 << 20)
            target.flush()
            os.ftruncate(target.fileno(), target.tell())
            system.sync(target.fileno())
        if beside is not None:
            beside.unlink()

    def _may_be_replaced(self, file: BinaryIO) -> bool:
        """Copy the old file's owner, attributes and mode; return False if that is impossible."""
        old, new = self._status, file.fileno()
        if old is None:
            return True
        if old.st_nlink > 1:
            return False
        try:
            made = os.fstat(new)
            if (made.st_uid, made.st_gid) != (old.st_uid, old.st_gid):
                os.fchown(new, old.st_uid, old.st_gid)
            for name, value in _attributes(self.path).items():
                os.setxattr(new, name, value)
            os.fchmod(new, stat.S_IMODE(old.st_mode))
        except OSError:
            return False
        return True


def _attributes(path: Path) -> dict[str, bytes]:
    """Return the extended attributes, including access control lists. Raises OSError."""
    if not hasattr(os, "listxattr"):
        return {}
    try:
        names = os.listxattr(path)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    return {name: os.getxattr(path, name) for name in names}


def _descriptor(name: str) -> tuple[int | None, bool]:
    """Return this process's descriptor that a name means, and True if it means any process's."""
    for _ in range(MOST_LINKS):
        directory, last = os.path.split(name)
        directory = os.path.realpath(directory)
        found = DESCRIPTORS.fullmatch(directory)
        if found and last.isascii() and last.isdigit():
            is_ours = found[1] is None or int(found[1]) == os.getpid()
            return (int(last) if is_ours else None), True
        name = os.path.join(directory, last)
        if not os.path.islink(name):
            break
        name = os.path.join(directory, os.readlink(name))
    return None, False


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
