"""Locks on files, limits of open files, and calls at a fork, where the system has them.

The server needs Linux. The clients, and the commands for data and for people, also work where
these are missing: what is asked for is then left out, or refused with an OSError as by a file
system that cannot do it. Only the modules of the server may import ``fcntl`` and ``resource``
themselves.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Final


def optional(name: str) -> Any:
    """Return a module of Python's that some systems lack; None there."""
    try:
        return import_module(name)
    except ImportError:
        return None


fcntl: Final = optional("fcntl")
resource: Final = optional("resource")


def lacking_for_server() -> str:
    """Name what this system lacks of what a server needs; empty if it has all."""
    needed = {
        "fcntl": fcntl is not None,
        "resource": resource is not None,
        "epoll": hasattr(select, "epoll"),
        "fork": hasattr(os, "register_at_fork"),
    }
    return ", ".join(name for name, is_there in needed.items() if not is_there)


# --- Files -----------------------------------------------------------------------------------


def lock(file: int | BinaryIO, *, shared: bool = False, wait: bool = False) -> None:
    """Lock an open file or directory, until it is closed.

    Args:
        file: the file, or its descriptor.
        shared: others may have a shared lock at the same time.
        wait: wait for it.

    Raises:
        BlockingIOError: another one holds it.
        OSError: the system or the file system has no such locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "this system has no locks on files")
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    fcntl.flock(file, how)


def unlock(descriptor: int) -> None:
    """Release a lock. Raises OSError."""
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def only_append(file: BinaryIO) -> None:
    """Make every write to ``file`` append at its end, where the system can do that.

    If somebody else truncates the file, a write then leaves no hole in it, and the file's size
    reveals the change.
    """
    if fcntl is not None:
        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_APPEND)


_NOT_FOR_THIS_FILE: Final = frozenset({errno.ENOTSUP, errno.EINVAL, errno.ENOTTY})


def sync(descriptor: int) -> None:
    """Wait until the content of an open file is on disk. Raises OSError.

    On macOS, fsync leaves data in the cache of the drive; F_FULLFSYNC does not (its fsync(2)).
    File systems without that are left with fsync.
    """
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        try:
            fcntl.fcntl(descriptor, full)
        except OSError as error:
            if error.errno not in _NOT_FOR_THIS_FILE:
                raise  # The disk has failed. A second attempt might not tell.
        else:
            return
    _sync(descriptor)


_sync: Final[Callable[[int], None]] = getattr(os, "fdatasync", os.fsync)


def write_back(path: Path) -> None:
    """Have the system write a file's content to the disk by now. This promises nothing.

    An error is not told here, and remains for `sync`: Linux tells it once through each opening of
    a file (errseq_t, since 4.13). Others might tell it only once, so there this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            _sync(descriptor)
        finally:
            os.close(descriptor)


# --- Processes -------------------------------------------------------------------------------


def file_limits() -> tuple[int, int] | None:
    """Return how many files this process may open, now and at most; None: the system has no limit.

    Both count sockets, too.
    """
    return None if resource is None else resource.getrlimit(resource.RLIMIT_NOFILE)


def raise_file_limit() -> None:
    """Let this process open as many files as the system allows."""
    if (limits := file_limits()) is not None and limits[0] != limits[1]:
        with contextlib.suppress(ValueError, OSError):  # Some systems refuse their own hard limit.
            resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))


def after_fork(call: Callable[[], None]) -> None:
    """Have ``call`` called in each child that is made by fork; nothing where there is no fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)
