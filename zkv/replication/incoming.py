"""How a data directory gets another history: that of a snapshot that another server hands out.

It is fetched into ``incoming``, which is laid out like a data directory, and then takes the place
of the old one. A file of the directory's owner (`zkv.replication.place`, `zkv.cluster.place`) says
when that has been decided. So a crash before leaves the old history, and one after it the new one:
the next start completes the exchange.

Order on disk: all of ``incoming`` is synced before that file has the mark; it loses the mark only
after the exchange is synced.

What only the old history had, in contrast to the new one, is written into a file before the old one
is given up.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from zkv.durability import dump, snapshot
from zkv.durability.backup import begin_log, make_directories, remove_tree
from zkv.durability.frozen_view import FrozenView
from zkv.durability.layout import Layout
from zkv.errors import DamageError
from zkv.replication.stream import (
    Asker,
    FetchedSnapshot,
    StreamError,
    StreamRefusedError,
    fetch_snapshot,
)

if TYPE_CHECKING:
    from pathlib import Path

    from zkv.durability.files import Files
    from zkv.durability.lock import DirectoryLock
    from zkv.keyspace import Commit
    from zkv.keyspace.lineage import Lineage
    from zkv.replication.standby import Primary
    from zkv.replication.stream import Ask, SnapshotPart

_log = logging.getLogger("zkv.replication")

INCOMING: Final = "incoming"

Keep = Callable[[FetchedSnapshot], None]
"""Called, after a new history is on disk, before the old one is given up; may raise StreamError."""


class BeginAnew(NamedTuple):
    """Why a server cannot go on from its own log.

    Args:
        reason: for people.
        diverged: there are commits here that are not in the history of the others.
        common: the last log number that both have, as far as the other one knows.
        lineage: of the store here.
        lsn: the newest log number here.
    """

    reason: str
    diverged: bool
    common: int
    lineage: Lineage
    lsn: int


class HistoryDirectory:
    """A data directory, while no server uses it. Hold its `lock` to change it.

    Args:
        files: the file operations.
        directory: the data directory.
    """

    def __init__(self, files: Files, directory: Path) -> None:
        self.files = files
        self.layout = Layout(directory)

    def lock(self) -> DirectoryLock:
        """Keep others off the directory, which is created if needed.

        Raises LockedError, OSError.
        """
        make_directories(self.files, self.layout.directory)
        return self.files.lock(self.layout.lock)

    @property
    def is_empty(self) -> bool:
        """True if there is no history in it yet. Raises OSError."""
        names = self.files.names(self.layout.directory)
        inner = [each for each in (self.layout.snapshots, self.layout.wal) if each.name in names]
        return not any(map(self.files.names, inner))

    def complete(self) -> None:
        """Put what is in ``incoming`` in the place of the history that is here.

        Call it only if that has been decided, here or by an earlier process. Raises OSError.
        """
        files, incoming = self.files, self._incoming
        there = files.names(self.layout.directory)
        left = files.names(incoming.directory) if INCOMING in there else []
        for new, old in (
            (incoming.wal, self.layout.wal),
            (incoming.snapshots, self.layout.snapshots),
        ):
            if new.name in left:
                self._remove(old)
                files.rename(new, old)
                files.sync_directory(self.layout.directory)
        self._remove(incoming.directory)

    def drop_incoming(self) -> None:
        """Remove what an attempt has left that was not decided. Raises OSError."""
        self._remove(self._incoming.directory)

    def replace(
        self,
        ask: Ask,
        member: str,
        keep: Keep,
        decide: Callable[[bool], None],
        store: str = "",
        accept: Callable[[SnapshotPart], None] = lambda part: None,
    ) -> FetchedSnapshot:
        """Fetch the newest snapshot of a server, in place of the history that is here.

        Args:
            ask: asks the server.
            member: the asker's name.
            keep: called, after the new history is on disk, before the old one is given up.
            decide: ``decide(True)`` notes on disk that the exchange is decided, ``decide(False)``
                that it is complete.
            store: the store that the snapshot must be of; empty = any.
            accept: gets the first part; may raise StreamError.

        Raises what the functions do, StreamError, OSError.
        """
        files, incoming = self.files, self._incoming
        self._remove(incoming.directory)
        for each in (incoming.snapshots, incoming.wal):
            make_directories(files, each)
        beside = incoming.snapshots / f"fetched{snapshot.UNFINISHED}"
        with files.create(beside) as file:
            fetched = fetch_snapshot(Asker(ask), member, files, file, store, accept=accept)
            files.sync(file)
        path = incoming.snapshot(fetched.rev)
        files.rename(beside, path)
        files.sync_directory(incoming.snapshots)
        try:  # All of it is checked before anything is given up for it.
            snapshot.read(files, path)
        except DamageError as error:
            raise StreamError(f"a damaged snapshot was sent: {error}") from None
        begin_log(files, incoming, fetched.rev + 1, fetched.lsn + 1)
        keep(fetched)
        decide(True)
        self.complete()
        decide(False)
        return fetched

    @property
    def _incoming(self) -> Layout:
        return self.layout.beside(INCOMING)

    def _remove(self, directory: Path) -> None:
        if remove_tree(self.files, directory):
            self.files.sync_directory(directory.parent)


def attempt(source: Primary, fetch: Callable[[], None]) -> bool:
    """Try to fetch a snapshot; say why if that fails, and go on to the next place.

    Args:
        source: the connection to those that may have one.
        fetch: fetches it.

    Returns False if it has failed. Raises OSError, DataDirError.
    """
    try:
        fetch()
    except StreamRefusedError as error:
        _log.warning("no snapshot from %s: %s", source.endpoint, error)
    except StreamError as error:
        _log.warning("no snapshot: %s; trying again", error)
    else:
        return True
    source.go_on()
    return False


def keep_diverged(
    files: Files, layout: Layout, after: int, to_line: Callable[[Commit], str]
) -> None:
    """Write the commits after a log number into a file, which is whole and on disk then.

    Args:
        files: the file operations.
        layout: the data directory, whose history is about to be given up.
        after: the last log number that the new history has, too.
        to_line: returns the text of a commit.

    Raises OSError, DamageError, DataDirError.
    """
    path = _free(files, layout.directory, f"diverged-after-{after}")
    beside = layout.directory / f"diverged{snapshot.UNFINISHED}"
    count, first = 0, 0
    with FrozenView(files, layout.directory) as view, files.create(beside) as file:
        for commit in dump.log(view, None):
            first = first or commit.lsn
            if commit.lsn > after:
                files.write(file, to_line(commit).encode() + b"\n")
                count += 1
        files.sync(file)
    files.rename(beside, path)
    files.sync_directory(layout.directory)
    _log.warning(
        "%d commits after log number %d are not in the history of the primary; %s has them",
        count, after, path,
    )  # fmt: skip
    if first > after + 1:
        _log.warning("those from %d to %d are in no file", after + 1, first - 1)


def _free(files: Files, directory: Path, stem: str) -> Path:
    """Return a name for a file that is not there yet: what was kept before stays. Raises OSError.

    The same place may be diverged from more than once.
    """
    there = files.names(directory)
    ends = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    names = (f"{stem}{end}.jsonl" for end in ends)
    return directory / next(name for name in names if name not in there)
