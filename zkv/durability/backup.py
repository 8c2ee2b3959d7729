"""Makes a data directory from another: `zkv backup` copies it, `zkv restore` raises its revision.

`create` may run while a server uses the source. It copies the newest snapshot and the segments
after it, the last one up to its last good frame. So the copy has the state at one revision, with
every write that was acknowledged before the copy began.

The file on which all others depend (the snapshot, or the first segment if there is no snapshot)
gets its contents last. Until then an empty file has its name, which counts as damage. So an
interrupted copy is refused, and never mistaken for an older or an empty store.

`restore` makes one snapshot, with the entries and the remembered replies of the backup, or of the
store as it was at an earlier moment (`zkv.durability.moments`), and a revision and a log number
that are higher by `RESTORED_ABOVE`. The original store may have taken further revisions after that,
and clients may have seen them. These are lost, and must not be used again for other contents; no
store takes as many as `RESTORED_ABOVE` in between. Followers find that the changes since their last
revision are not kept, and read the store again. A store that has a lineage begins a term, with a
number above all that are known: it is another history than that of the original store.
"""

from __future__ import annotations

import abc
import contextlib
import itertools
from os import SEEK_END
from typing import TYPE_CHECKING, Final, NamedTuple

from zkv.durability import recovery, segment, snapshot
from zkv.durability.check import survey
from zkv.durability.files import Files, LargeFile
from zkv.durability.frozen_view import FrozenView
from zkv.durability.layout import Layout, explain
from zkv.durability.segment import SegmentEnd, SegmentScan
from zkv.errors import DamageError, DataDirError
from zkv.keyspace.lineage import TermStart, new_tag
from zkv.keyspace.sessions import Sessions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

    from zkv.durability.check import Finding, Survey
    from zkv.durability.lock import DirectoryLock
    from zkv.keyspace.lineage import Lineage
    from zkv.keyspace.table import Table

RESTORED_ABOVE: Final = 2**32
"""The number by which restoring raises the revision."""
MOST_REV: Final = 2**62
"""The highest revision of a restored store. As many again are left for new writes."""

_CHUNK_ENTRIES: Final = 500
_COPY_BYTES: Final = 1 << 20


def create(files: Files, source: Path, target: Path) -> Survey:
    """Copy the state in ``source``; returns a survey of the copy, which is on disk then.

    Args:
        files: the file operations.
        source: a data directory. A server may be using it.
        target: the new directory; absent or empty. If the copy fails, it is left as it was.

    Raises:
        DamageError: the source is damaged.
        DataDirError: something cannot be read or written, or ``target`` is not empty.
        LockedError: another process has just begun to use ``target``.
    """
    with FrozenView(files, source) as view, _Copy(files, view, target) as made:
        return made.write()


class State(NamedTuple):
    """A whole store at one moment."""

    entries: Table
    sessions: Sessions
    rev: int
    lsn: int
    time: int
    """The latest time in it, Unix time in ms."""
    lineage: Lineage


class Known(NamedTuple):
    """The newest revision and term that clients may have seen."""

    rev: int = 0
    term: int = 0


def restore(files: Files, source: Path, target: Path, above: int = 0) -> Survey:
    """Make a store from a backup, at a revision that no client can have seen; returns a survey.

    Args:
        files: the file operations.
        source: the backup.
        target: the new directory; absent or empty. If restoring fails, it is left as it was.
        above: the newest revision that clients may have seen, if it is above the backup's.

    Raises:
        DamageError: anything in the backup is damaged.
        DataDirError: something cannot be read or written, ``target`` is not empty, or the new
            revision would be above `MOST_REV`.
        LockedError: another process has just begun to use ``target``.
    """
    with FrozenView(files, source) as view:
        _refuse(survey(view).faults)
        return write_restored(files, source, lambda: _newest(view), target, Known(above))


def write_restored(
    files: Files, source: Path, load: Callable[[], State], target: Path, known: Known
) -> Survey:
    """Make a store from what ``load`` returns; returns a survey. Otherwise as `restore`.

    Args:
        files: the file operations.
        source: where the state comes from, for messages.
        load: reads the state, after ``target`` was taken.
        target: the new directory.
        known: what clients may have seen; the new revision and the new term are above it.
    """
    with _Restored(files, source, load, target, known) as made:
        return made.write()


def _newest(view: FrozenView) -> State:
    layout, sessions = view.layout, Sessions()
    found = recovery.recover(view, layout.snapshots, layout.wal, sessions)
    return State(found.entries, sessions, found.rev, found.lsn, found.time, found.lineage)


def _refuse(faults: list[Finding]) -> None:
    if faults:
        raise DamageError(f"{faults[0].path}: {faults[0].text}; see `zkv check` and `zkv repair`")


class NewDirectory(abc.ABC):
    """Makes a data directory. A context manager: on exit its files go, unless `write` succeeded.

    Args:
        files: the file operations.
        target: the directory; absent or empty.
    """

    def __init__(self, files: Files, target: Path) -> None:
        self._files = files
        self._layout = Layout(target)
        self._lock: DirectoryLock | None = None
        self._made: list[Path] = []
        self._directories: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()
        if self._lock is not None:
            self._lock.close()

    def write(self) -> Survey:
        """Make the directory; returns a survey of it.

        Raises DataDirError, LockedError, and what reading the source raises.
        """
        try:
            self._take_target()
            self._fill()
        except OSError as error:
            raise DataDirError(explain(error, self._layout.directory)) from error
        with FrozenView(self._files, self._layout.directory) as written:
            found = survey(written)
        if found.faults:
            raise self._why(found)
        self._made.clear()  # So that nothing is removed on exit.
        self._directories.clear()
        return found

    @abc.abstractmethod
    def _fill(self) -> None:
        """Write the files. Raises OSError."""

    def _why(self, found: Survey) -> DataDirError:
        """Return the error for a faulty directory."""
        path, text = found.faults[0].path, found.faults[0].text
        return DataDirError(f"{path}: differs from what was written to it: {text}")

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
            raise DataDirError(f"{self._layout.directory}: not empty; nothing was copied")

    def _begin_with(self, key: Path) -> None:
        """Create the file ``key``, on which all others depend, empty until all others exist."""
        self._made.append(key)
        self._files.create(key).close()
        self._files.sync_directory(key.parent)

    def _remove(self) -> None:
        """Remove what was made. The empty file that makes it count as damaged goes last."""
        for path in reversed(self._made):
            with contextlib.suppress(OSError):
                self._files.remove(path)
        for path in reversed(self._directories):
            with contextlib.suppress(OSError):
                self._files.remove_directory(path)


class _Copy(NewDirectory):
    """Makes a copy of a data directory."""

    def __init__(self, files: Files, view: FrozenView, target: Path) -> None:
        super().__init__(files, target)
        self._view = view

    def _fill(self) -> None:
        files, sources = self._files, _needed(self._view)
        if not sources:
            return
        key = self._target(sources[0])
        self._begin_with(key)
        for source in sources[1:]:
            self._copy_to(source, self._target(source))
        for inner in (self._layout.wal, self._layout.snapshots):
            files.sync_directory(inner)
        beside = key.with_name(key.name + snapshot.UNFINISHED)
        self._copy_to(sources[0], beside)
        files.rename(beside, key)
        files.sync_directory(key.parent)

    def _why(self, found: Survey) -> DataDirError:
        """Usually the source has the same fault: then that is reported."""
        name = found.faults[0].path.name
        _refuse([fault for fault in survey(self._view).faults if fault.path.name == name])
        return super()._why(found)

    def _target(self, source: Path) -> Path:
        return self._layout.directory / source.relative_to(self._view.layout.directory)

    def _copy_to(self, source: Path, target: Path) -> None:
        self._made.append(target)
        newest = self._view.segments and self._view.layout.segment(self._view.segments[-1])
        end = _whole_end(self._view, source) if source == newest else None
        copy_file(self._view, source, self._files, target, end)


class _Restored(NewDirectory):
    """Makes a restored store."""

    def __init__(
        self, files: Files, source: Path, load: Callable[[], State], target: Path, known: Known
    ) -> None:
        super().__init__(files, target)
        self._source = source
        self._load = load
        self._known = known

    def _fill(self) -> None:
        files, layout, known = self._files, self._layout, self._known
        state = self._load()
        rev = max(state.rev, known.rev) + RESTORED_ABOVE
        if rev > MOST_REV:
            raise DataDirError(
                f"{self._source}: cannot be restored: its revision would be {rev}; "
                f"the highest possible one is {MOST_REV}"
            )
        lsn = state.lsn + rev - state.rev
        self._begin_with(layout.snapshot(rev))
        self._made.append(layout.segment(rev + 1))
        begin_log(files, layout, rev + 1, lsn + 1)
        lineage = after_loss(state.lineage, lsn, known.term)
        write_state(files, layout, rev, lsn, state.time, state.entries, state.sessions, lineage)


def after_loss(lineage: Lineage, lsn: int, above: int = 0) -> Lineage:
    """Return a lineage, if it is one, with a further term from the log number ``lsn`` on.

    Args:
        lineage: the lineage.
        lsn: the first log number of the new term.
        above: the number of a term that the new one comes after, if the lineage lacks it.
    """
    if not lineage.store:
        return lineage
    number = max(lineage.term, above) + 1
    return lineage.begin(TermStart(lineage.store, number, new_tag()), lsn)


def write_state(
    files: Files,
    layout: Layout,
    rev: int,
    lsn: int,
    created: int,
    entries: Table,
    sessions: Sessions,
    lineage: Lineage,
) -> None:
    """Write a snapshot of a whole store. Raises OSError."""
    with snapshot.Writer(files, layout.snapshots, rev, lsn, created, lineage=lineage) as writer:
        items = iter(sorted(entries.items()))
        while chunk := list(itertools.islice(items, _CHUNK_ENTRIES)):
            writer.add(chunk)
        states = [sessions.state(name, lsn) for name in sessions.names()]
        writer.add_sessions([state for state in states if state is not None])
        writer.finish()


def begin_log(files: Files, layout: Layout, first_rev: int, first_lsn: int) -> SegmentEnd:
    """Write an empty segment, since a directory without a newest one is damaged.

    Returns the place where it can be continued. Raises OSError.
    """
    path = layout.segment(first_rev)
    beside = path.with_name(path.name + snapshot.UNFINISHED)
    header = segment.new_header(first_rev, first_lsn)
    with files.create(beside) as file:
        files.write(file, header.pack())
        files.sync(file)
    files.rename(beside, path)
    files.sync_directory(layout.wal)
    return SegmentEnd(first_rev, header.size, header.size, header.salt, header.version)


def _needed(view: FrozenView) -> list[Path]:
    """The files that give the newest state. All others depend on the first."""
    newest = view.snapshots[-1:]
    rev = newest[0] if newest else 0
    firsts = view.segments
    return [view.layout.snapshot(rev) for rev in newest] + [
        view.layout.segment(first)
        for first, successor in itertools.zip_longest(firsts, firsts[1:])
        # The segment that ends at `rev` is needed, too: it may have replies to later requests that
        # changed nothing, and so have revision `rev`.
        if successor is None or successor > rev
    ]


def _whole_end(view: FrozenView, path: Path) -> int | None:
    """The end of the newest segment's good frames; None if it is damaged: then copy all of it."""
    scan = SegmentScan(view, path)
    for _ in scan.commits():
        pass
    return None if scan.damaged or scan.end == 0 else scan.end


def copy_file(source: Files, path: Path, files: Files, target: Path, end: int | None) -> None:
    """Copy a file, or its first ``end`` bytes. Syncs the file, but not its directory.

    Args:
        source: the file operations for reading.
        path: the file to copy.
        files: the file operations for writing.
        target: the path of the copy.
        end: the number of bytes to copy; None = all that the file has now.

    Raises:
        OSError: a file cannot be read or written.
    """
    progress = recovery.RecoveryProgress(f"copying {path}")
    with source.open_read(path) as reader, files.create(target) as writer:
        content = LargeFile(files, writer)
        rest = total = reader.seek(0, SEEK_END) if end is None else end
        reader.seek(0)
        while rest and (data := reader.read(min(rest, _COPY_BYTES))):
            content.write(data)
            rest -= len(data)
            progress.report(total - rest, total)
        files.sync(writer)


def make_directories(files: Files, path: Path) -> list[Path]:
    """Create ``path`` and its parents, and sync their names; returns those that were created.

    Raises OSError.
    """
    made = []
    for directory in [*reversed(path.parents), path]:
        if files.make_directory(directory):
            files.sync_directory(directory.parent)
            made.append(directory)
    return made


def remove_tree(files: Files, directory: Path) -> bool:
    """Remove a directory with all in it; returns False if it is not there. Raises OSError.

    Its parent is not synced.
    """
    if not directory.is_dir():
        return False
    for path in map(directory.__truediv__, files.names(directory)):
        if path.is_dir():
            remove_tree(files, path)
        else:
            files.remove(path)
    files.remove_directory(directory)
    return True
