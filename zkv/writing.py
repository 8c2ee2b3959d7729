"""Files that are written for a user, wherever the name that the user gives leads.

What is no regular file (a device, a pipe, a descriptor such as ``/dev/stdout``) is written straight
through. A symbolic link is followed, also one to what is not there yet. A regular file is replaced
as a whole, once all is on disk: until then, and where it fails, the old one is what it was. Its
mode, owner and extended attributes stay. Where another file cannot take its place without a loss
(it has more than one name, its directory is not ours to write in, its owner is not ours to give, it
is a mount point), the bytes are written into it, but not before there are all of them.
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

MOST_LINKS: Final = 40
DESCRIPTORS: Final = re.compile(r"/dev/fd|/proc/(\d+)(?:/task/\d+)?/fd")
"""Directories whose names are open files of a process: no other file can take their place."""
NOT_BESIDE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG})
"""Why there may be no file beside one that can be written."""
NOT_REPLACED: Final = frozenset({errno.EBUSY, errno.EXDEV, *NOT_BESIDE})


class Target:
    """Where something is to be written. Nothing is opened, made or changed yet.

    Args:
        name: as the user gives it.

    Raises:
        OSError: it cannot be written; ``filename`` says which.
    """

    def __init__(self, name: str | Path) -> None:
        self.name = str(name)
        if "\0" in self.name:
            raise OSError(errno.EINVAL, "the name holds a NUL character", self.name)
        if not self.name:  # The system says so, too, but not where it leads: to where we are.
            raise FileNotFoundError(errno.ENOENT, "the name is empty", "''")
        self._descriptor, is_opened = _descriptor(self.name)
        self._status = self._look()
        is_file = self._status is None or stat.S_ISREG(self._status.st_mode)
        self.is_file = is_file and not is_opened
        """Whether it is a regular file, or is going to be one."""
        self.path = Path(os.path.realpath(self.name)) if self.is_file else Path(self.name)
        """Where the links lead."""
        self._check()

    def _look(self) -> os.stat_result | None:
        """What is there now."""
        try:
            return os.stat(self.name if self._descriptor is None else self._descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from None

    def _check(self) -> None:
        """See that it can be written, before any work is done for it."""
        status = self._status
        if self.name.endswith("/") or (status is not None and stat.S_ISDIR(status.st_mode)):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.name)
        if status is not None and self.is_file:
            os.close(os.open(self.path, os.O_WRONLY))

    def require_directory(self) -> None:
        """Raise OSError where the file is not there, and no file could be made."""
        if self._status is None:
            parent = self.path.parent
            os.stat(parent)
            if not os.access(parent, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(parent))

    @contextmanager
    def open(self, part: str | None = None, resume: bool = False) -> Iterator[BinaryIO]:
        """A file to write; what is written counts once the block ends well.

        Args:
            part: the name, beside the target, of what is not whole yet. It stays where the block
                fails, and where it is there already that is an error. None = any, and it goes.
            resume: whether to go on with the part that is there.

        Raises:
            FileExistsError: the part is there.
            FileNotFoundError: it is not there, and ``resume`` wants it.
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
                os.fsync(file.fileno())
                self._put(file, beside)
            except BaseException:
                if part is None and beside is not None:
                    with suppress(OSError):
                        beside.unlink()
                raise

    @contextmanager
    def append(self) -> Iterator[BinaryIO]:
        """A file to write at its end; a regular one is what it was where the block fails."""
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
        """Whether there is nothing in it yet, as far as that can be said."""
        return self._status is None or self._status.st_size == 0

    def _open_through(self) -> BinaryIO:
        """What is no regular file: opened, or where the process has it open, that."""
        if self._descriptor is not None:
            return os.fdopen(os.dup(self._descriptor), "wb")
        return os.fdopen(os.open(self.path, os.O_WRONLY | os.O_TRUNC | os.O_NOCTTY), "wb")

    def _open_part(self, name: str | None, resume: bool) -> tuple[BinaryIO, Path | None]:
        """What is not whole yet, and where it is; None where it has no name."""
        beside = self.path.with_name(name or f".zkv-{secrets.token_hex(8)}")
        if resume:
            if not stat.S_ISREG(os.lstat(beside).st_mode):
                raise OSError(errno.EINVAL, "this is no regular file", str(beside))
            return os.fdopen(os.open(beside, os.O_RDWR | os.O_NOFOLLOW), "r+b"), beside
        # Whoever may not read the old file may not read the new one either, at no moment.
        mode = 0o666 if self._status is None else 0o600
        try:
            opened = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        except OSError as error:
            if self._status is None or error.errno not in NOT_BESIDE:
                raise
            return tempfile.TemporaryFile(), None
        return os.fdopen(opened, "w+b"), beside

    def _put(self, file: BinaryIO, beside: Path | None) -> None:
        """Have the target hold what is in ``file``."""
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
            os.fsync(target.fileno())
        if beside is not None:
            beside.unlink()

    def _may_be_replaced(self, file: BinaryIO) -> bool:
        """Give ``file`` what the old one has; whether all of it could be given."""
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
    """Extended attributes, access lists among them. Raises OSError."""
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
    """The descriptor of this process that a name stands for; and whether it is one of any."""
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
