"""Copies a data directory, also beside a running server: what `zkv backup` and `zkv restore` do.

The copy holds the newest snapshot and the segments behind it, the last as far as it is whole. So it
gives the state at one revision, which no write that was acknowledged before the copy began is
missing from.

The file on which all else depends (the snapshot; the first segment where there is none) is put in
last. Until then an empty file has its name, which is damage to whoever looks: a copy that was
interrupted is refused, and never taken for an older or an empty store.
"""

from __future__ import annotations

import contextlib
import itertools
from os import SEEK_END
from typing import TYPE_CHECKING, Final

from zkv.durability import recovery, snapshot
from zkv.durability.check import survey
from zkv.durability.layout import Layout
from zkv.durability.picture import Picture
from zkv.durability.segment import Scan
from zkv.errors import DamageError, DataDirError

if TYPE_CHECKING:
    from pathlib import Path

    from zkv.durability.check import Finding, Survey
    from zkv.durability.files import Files
    from zkv.durability.lock import Lock

_COPY_BYTES: Final = 1 << 20


def copy(files: Files, source: Path, target: Path) -> Survey:
    """Copy the state in ``source``; returns what was found in the copy, once it is on disk.

    Args:
        files: the door to the file system.
        source: a data directory. A server may go on with it.
        target: where to; absent or empty. Where the copy fails, it is left as it was.

    Raises:
        DamageError: the source is damaged.
        DataDirError: something cannot be read or written, or ``target`` is not empty.
        LockedError: somebody else has just begun to use ``target``.
    """
    with Picture(files, source) as picture, _Copy(files, picture, target) as made:
        made.write()
        with Picture(files, target) as written:
            found = survey(written)
        if found.faults:
            raise _why(picture, found)
        made.keep()
    return found


def require_whole(picture: Picture) -> None:
    """Raise DamageError where anything in ``picture`` is damaged."""
    _refuse(survey(picture).faults)


def _refuse(faults: list[Finding]) -> None:
    if faults:
        raise DamageError(f"{faults[0].path}: {faults[0].text}; see `zkv check` and `zkv repair`")


def _why(picture: Picture, found: Survey) -> DataDirError:
    """The error of a copy that is not whole: as a rule, the source is not either."""
    path, text = found.faults[0].path, found.faults[0].text
    _refuse([fault for fault in survey(picture).faults if fault.path.name == path.name])
    return DataDirError(f"{path}: not as it has been written: {text}")


class _Copy:
    """A copy in the making; what was made is removed at the end, unless it is to be kept."""

    def __init__(self, files: Files, picture: Picture, target: Path) -> None:
        self._files = files
        self._picture = picture
        self._layout = Layout(target)
        self._lock: Lock | None = None
        self._made: list[Path] = []
        self._directories: list[Path] = []

    def __enter__(self) -> _Copy:
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()
        if self._lock is not None:
            self._lock.close()

    def keep(self) -> None:
        """What was made stays."""
        self._made.clear()
        self._directories.clear()

    def write(self) -> None:
        """Copy everything. Raises DataDirError, LockedError."""
        try:
            self._take_target()
            self._copy_all()
        except OSError as error:
            place = error.filename or self._layout.directory
            raise DataDirError(f"{place}: {error.strerror or error}") from error

    def _take_target(self) -> None:
        """Make the target and lock it. Raises OSError, DataDirError, LockedError."""
        files, layout = self._files, self._layout
        self._directories += make_directories(files, layout.directory)
        self._require_empty([])
        self._lock = files.lock(layout.lock)
        self._made.append(layout.lock)
        self._require_empty([layout.lock.name])
        for inner in (layout.snapshots, layout.wal):
            self._directories += make_directories(files, inner)

    def _require_empty(self, but_for: list[str]) -> None:
        if self._files.names(self._layout.directory) != but_for:
            raise DataDirError(f"{self._layout.directory}: not empty; nothing has been copied")

    def _copy_all(self) -> None:
        files, sources = self._files, _needed(self._picture)
        if not sources:
            return
        key = self._target(sources[0])
        self._made.append(key)
        files.create(key).close()
        files.sync_directory(key.parent)
        for source in sources[1:]:
            self._copy_to(source, self._target(source))
        for inner in (self._layout.wal, self._layout.snapshots):
            files.sync_directory(inner)
        beside = key.with_name(key.name + snapshot.UNFINISHED)
        self._copy_to(sources[0], beside)
        files.rename(beside, key)
        files.sync_directory(key.parent)

    def _target(self, source: Path) -> Path:
        return self._layout.directory / source.relative_to(self._picture.layout.directory)

    def _copy_to(self, source: Path, target: Path) -> None:
        self._made.append(target)
        newest = self._picture.segments and self._picture.layout.segment(self._picture.segments[-1])
        end = _whole_end(self._picture, source) if source == newest else None
        copy_file(self._picture, source, self._files, target, end)

    def _remove(self) -> None:
        """Remove what was made, that which makes it count as damaged last."""
        for path in reversed(self._made):
            with contextlib.suppress(OSError):
                self._files.remove(path)
        for path in reversed(self._directories):
            with contextlib.suppress(OSError):
                self._files.remove_directory(path)


def _needed(picture: Picture) -> list[Path]:
    """The files that give the newest state; on the first all others depend."""
    newest = picture.snapshots[-1:]
    rev = newest[0] if newest else 0
    firsts = picture.segments
    return [picture.layout.snapshot(rev) for rev in newest] + [
        picture.layout.segment(first)
        for first, successor in itertools.zip_longest(firsts, firsts[1:])
        if successor is None or successor > rev  # The answers at the very revision count, too.
    ]


def _whole_end(picture: Picture, path: Path) -> int | None:
    """Where the newest segment's torn tail begins; None where it has none, or is damaged."""
    scan = Scan(picture, path)
    for _ in scan.commits():
        pass
    return None if scan.damaged or scan.end == 0 else scan.end


def copy_file(source: Files, path: Path, files: Files, target: Path, end: int | None) -> None:
    """Copy a file, or its first ``end`` bytes; its bytes are on disk then, its name may not be.

    Args:
        source: the door through which to read.
        path: what to copy.
        files: the door through which to write.
        target: what the copy is called.
        end: how much to copy; None = all there is now.

    Raises:
        OSError: it cannot be read or written.
    """
    progress = recovery.Progress(f"copying {path}")
    with source.open_read(path) as reader, files.create(target) as writer:
        rest = total = reader.seek(0, SEEK_END) if end is None else end
        reader.seek(0)
        while rest and (data := reader.read(min(rest, _COPY_BYTES))):
            files.write(writer, data)
            rest -= len(data)
            progress.report(total - rest, total)
        files.sync(writer)


def make_directories(files: Files, path: Path) -> list[Path]:
    """Make ``path`` and what it stands in, each on disk; returns those that were not there.

    Raises OSError.
    """
    made = []
    for directory in [*reversed(path.parents), path]:
        if files.make_directory(directory):
            files.sync_directory(directory.parent)
            made.append(directory)
    return made
