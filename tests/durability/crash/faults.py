"""File layers that record, and that fail.

`RecordingFiles` does everything for real in a directory but for syncing, and writes down what it
did, for a `tests.durability.crash.disk_model.Disk` to say what a crash would leave. `FaultyFiles`
also fails at the calls that it is told to: with an error, or with the process's death.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Final

from tests.durability.crash.disk_model import (
    Create,
    Disk,
    FailedSync,
    Link,
    MakeDirectory,
    Mark,
    Operation,
    Remove,
    RemoveDirectory,
    Rename,
    Sync,
    SyncDirectory,
    Truncate,
    Write,
    read_tree,
)
from zkv.durability.files import Files
from zkv.durability.lock import DirectoryLock

FOR_EVER: Final = sys.maxsize
READING: Final = frozenset({"names", "open_read"})
"""Calls that a lasting failure spares."""


class Killed(BaseException):
    """The process has died here: no handler runs, and nothing more is written."""


class UnsyncedFiles(Files):
    """The real file system, but for waiting until anything is on disk."""

    def sync(self, file: BinaryIO) -> None:
        pass

    def sync_directory(self, path: Path) -> None:
        assert path.is_dir()


class RecordingFiles(Files):
    """Does everything for real below ``root`` but for syncing, and writes it down.

    One instance may see several engines come and go: what the kernel knows outlives a process.

    Args:
        root: an existing directory; what is in it counts as synced.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.before = read_tree(root)
        self.operations: list[Operation] = []
        self.disk = Disk(self.before)
        self._open: dict[int, tuple[BinaryIO, int]] = {}  # id of the file object -> it, inode
        self._others: list[BinaryIO | DirectoryLock] = []

    def mark(self, *what: Any) -> None:
        """Write down something that is no file operation."""
        self._record(Mark(what))

    def abandon(self) -> None:
        """Close every file that was opened: what the kernel does when a process ends."""
        assert self.disk.as_written() == read_tree(self.root), "the record is not what was done"
        for file in [*(file for file, _ in self._open.values()), *self._others]:
            file.close()
        self._open.clear()
        self._others.clear()

    def make_directory(self, path: Path) -> bool:
        missing = [p for p in (path, *path.parents) if not p.is_dir()]
        made = super().make_directory(path)
        for directory in reversed(missing):
            self._record(MakeDirectory(self._relative(directory)))
        return made

    def create(self, path: Path) -> BinaryIO:
        file = super().create(path)
        self._open[id(file)] = (file, self._created(path))
        return file

    def open_read(self, path: Path) -> BinaryIO:
        file = super().open_read(path)
        self._others.append(file)
        return file

    def open_append(self, path: Path) -> tuple[BinaryIO, int]:
        file, size = super().open_append(path)
        self._others.append(file)
        return file, size

    def write(self, file: BinaryIO, data: bytes) -> None:
        offset = os.lseek(file.fileno(), 0, os.SEEK_CUR)
        super().write(file, data)
        self._record(Write(self._inode(file), offset, bytes(data)))

    def sync(self, file: BinaryIO) -> None:
        self._record(Sync(self._inode(file)))

    def truncate(self, file: BinaryIO, size: int) -> None:
        super().truncate(file, size)
        self._record(Truncate(self._inode(file), size))

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        self._record(Rename(self._relative(old), self._relative(new)))

    def link(self, old: Path, new: Path) -> None:
        super().link(old, new)
        self._record(Link(self._relative(old), self._relative(new)))

    def remove(self, path: Path) -> None:
        super().remove(path)
        self._record(Remove(self._relative(path)))

    def remove_directory(self, path: Path) -> None:
        super().remove_directory(path)
        self._record(RemoveDirectory(self._relative(path)))

    def sync_directory(self, path: Path) -> None:
        if self._is_inside(path):
            self._record(SyncDirectory(self._relative(path)))

    def lock(self, path: Path) -> DirectoryLock:
        file = super().lock(path)
        self._others.append(file)
        self._record(Write(self._created(path), 0, path.read_bytes()))
        return file

    def _record(self, operation: Operation) -> None:
        self.operations.append(operation)
        self.disk.apply(operation)

    def _created(self, path: Path) -> int:
        """The inode that an `open` for writing gives to ``path``: a new one, or emptied."""
        inode = self.disk.inode(self._relative(path))
        if inode is None:
            inode = len(self.operations)
            self._record(Create(self._relative(path), inode))
        else:
            self._record(Truncate(inode, 0))
        return inode

    def _inode(self, file: BinaryIO) -> int:
        if id(file) in self._open:
            return self._open[id(file)][1]
        inode = self.disk.inode(self._relative(Path(file.name)))
        assert inode is not None
        return inode

    def _is_inside(self, path: Path) -> bool:
        """What `Path.is_relative_to` says; that takes longer than many a call of the layer."""
        return f"{path}/".startswith(f"{self.root}/")

    def _relative(self, path: Path) -> PurePath:
        return PurePath(path.relative_to(self.root))


class SharedFiles(RecordingFiles):
    """A record of what several threads do: one call at a time."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.lock_of_record = threading.RLock()

    def mark(self, *what: Any) -> None:
        with self.lock_of_record:
            super().mark(*what)


def _alone(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: SharedFiles, *arguments: Any) -> Any:
        with self.lock_of_record:
            return method(self, *arguments)

    return call


for _name in dir(Files):
    if not _name.startswith("_"):
        setattr(SharedFiles, _name, _alone(getattr(RecordingFiles, _name)))


@dataclass(frozen=True)
class Fault:
    """What goes wrong at a call of the file layer.

    Args:
        error: the errno that it fails with; None = the process is killed.
        lasts: how many calls fail in this way from then on; reading is spared after the first.
        partial: whether a write gets half of its bytes written first, and whether another call is
            done before the process is killed.
    """

    error: int | None
    lasts: int = 1
    partial: bool = False

    def __str__(self) -> str:
        name = "kill" if self.error is None else errno.errorcode[self.error]
        lasts = (
            "" if self.lasts == 1 else "-for-ever" if self.lasts == FOR_EVER else f"x{self.lasts}"
        )
        return f"{name}{lasts}{'-partial' * self.partial}"


class FaultyFiles(RecordingFiles):
    """`RecordingFiles` whose calls are numbered from 1, and fail as they are told to.

    Args:
        root: as in `RecordingFiles`.
        faults: what goes wrong, by the number of the call.
    """

    def __init__(self, root: Path, faults: Mapping[int, Fault] | None = None) -> None:
        super().__init__(root)
        self.faults = dict(faults or {})
        self.calls = 0
        self.kinds: list[str] = []
        """The kinds of the calls so far; the first is call 1."""
        self.failed: list[str] = []
        """The kinds of the calls that have met a fault."""
        self.meanwhile: Callable[[Path], None] | None = None
        """Called before each call with what it is about: what other threads do at that moment."""
        self._current: Fault | None = None
        self._lasts_until = 0
        self._dead = False

    def abandon(self) -> None:
        super().abandon()
        self.meanwhile = None

    def heal(self) -> None:
        """Nothing goes wrong any more; a process that was killed may be followed by another."""
        self.faults.clear()
        self._current = None
        self._dead = False

    def write(self, file: BinaryIO, data: bytes) -> None:
        with self._call("write", Path(file.name)) as fault:
            if fault is not None and fault.partial:
                super().write(file, data[: len(data) // 2])
            else:
                super().write(file, data)

    def sync(self, file: BinaryIO) -> None:
        try:
            with self._call("sync", Path(file.name)):
                super().sync(file)
        except OSError:
            self._record(FailedSync(self._inode(file)))
            raise

    @contextlib.contextmanager
    def _call(self, kind: str, path: Path) -> Iterator[Fault | None]:
        """Run one call of the layer, or what the fault leaves of it."""
        if self._dead:
            raise Killed
        if not self._is_inside(path):  # What the test's own directory stands in.
            yield None
            return
        if self.meanwhile is not None:
            self.meanwhile(path)
        self.calls += 1
        self.kinds.append(kind)
        fault = self._due(kind)
        if fault is None:
            yield None
            return
        self.failed.append(kind)
        if fault.partial and (fault.error is None or kind == "write"):
            yield fault
        if fault.error is None:
            self._dead = True
            raise Killed
        raise OSError(fault.error, os.strerror(fault.error), str(path))

    def _due(self, kind: str) -> Fault | None:
        """The fault that this call meets."""
        if self.calls in self.faults:
            self._current = self.faults[self.calls]
            self._lasts_until = self.calls + self._current.lasts
            return self._current
        if self._current is None or self.calls >= self._lasts_until or kind in READING:
            return None
        return self._current


def _counted(method: Callable[..., Any]) -> Callable[..., Any]:
    """``method`` as a call that may meet a fault."""

    @functools.wraps(method)
    def call(self: FaultyFiles, subject: Path | BinaryIO, *arguments: Any) -> Any:
        path = subject if isinstance(subject, Path) else Path(subject.name)
        with self._call(method.__name__, path):
            return method(self, subject, *arguments)

    return call


# Every other call, too; also those that the file layer will have one day.
for _name in dir(Files):
    if not _name.startswith("_") and _name not in vars(FaultyFiles):
        setattr(FaultyFiles, _name, _counted(getattr(RecordingFiles, _name)))
