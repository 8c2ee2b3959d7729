"""Prepares a data directory of an earlier version for the first write in the current format.

Before anything is written that an earlier version could not read, the directory's files get second
names, as hard links, in ``before-<version>/``, which is laid out like a data directory. That takes
no space at first: files are never changed once they are complete, and the newest segment, which is
not complete, is not continued.

A server then saves what it has recovered as a snapshot in the current format, and begins a new
segment after it. So from the first write on, log numbers say what every snapshot covers.

Order on disk: all links are there before the snapshot, and the snapshot before the segment. A crash
in between leaves a directory that the next start upgrades again. As soon as it has one file of the
current format, it is not copied again: the copy is complete.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING, Final

from zkv import __version__
from zkv.durability import formats, recovery
from zkv.durability.backup import begin_log, copy_file, write_state

if TYPE_CHECKING:
    from pathlib import Path

    from zkv.durability.files import Files
    from zkv.durability.layout import Layout
    from zkv.durability.recovery import Recovered
    from zkv.keyspace import Sessions

_log = logging.getLogger("zkv.durability")

BEFORE: Final = "before-" + ".".join(__version__.split(".")[:2])
"""The name of the directory for the files as they were before this version."""
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS})


def keep_copy(files: Files, layout: Layout) -> None:
    """Copy a directory that only earlier versions have written, by hard links.

    Raises FormatError, OSError.
    """
    found = recovery.versions(files, layout.snapshots, layout.wal)
    if not found or formats.CURRENT in found:
        return
    copy = _copy_to(files, layout)
    for inner in (copy.directory, copy.snapshots, copy.wal):
        files.make_directory(inner)
    for source, target in ((layout.snapshots, copy.snapshots), (layout.wal, copy.wal)):
        for name in _missing(files, source, target):
            _link(files, source / name, target / name)
        files.sync_directory(target)
    files.sync_directory(copy.directory)
    files.sync_directory(layout.directory)
    _log.warning(
        "%s: written by an earlier version, in format %d; it is kept in %s, for that version, and "
        "written in format %d from now on",
        layout.directory, max(found), copy.directory, formats.CURRENT,
    )  # fmt: skip


def _copy_to(files: Files, layout: Layout) -> Layout:
    """The directory for the copy: a new one, or one that an interrupted upgrade has begun."""
    names = files.names(layout.directory)
    number, name = 1, BEFORE
    while name in names and not _is_begun(files, layout, layout.beside(name)):
        number += 1
        name = f"{BEFORE}-{number}"
    return layout.beside(name)


def _is_begun(files: Files, layout: Layout, copy: Layout) -> bool:
    """True if all files in ``copy`` are files of ``layout``."""
    inner = files.names(copy.directory)
    return all(
        os.path.exists(source / name) and os.path.samefile(source / name, target / name)
        for source, target in ((layout.snapshots, copy.snapshots), (layout.wal, copy.wal))
        if target.name in inner
        for name in files.names(target)
    )


def _missing(files: Files, source: Path, target: Path) -> list[str]:
    there = set(files.names(target))
    names = [name for name in files.names(source) if name not in there]
    return [name for name in names if os.path.isfile(source / name)]


def _link(files: Files, source: Path, target: Path) -> None:
    try:
        files.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        copy_file(files, source, files, target, None)  # The file system has no hard links.


def renew(files: Files, layout: Layout, found: Recovered, sessions: Sessions) -> Recovered:
    """Save a recovered state in the current format, and begin the log after it. Raises OSError."""
    write_state(
        files, layout, found.rev, found.lsn, found.time, found.entries, sessions, found.lineage
    )
    end = begin_log(files, layout, found.rev + 1, found.lsn + 1)
    return found._replace(snapshot_rev=found.rev, end=end)
