"""The file in a data directory that says of which store it is a member, and under which name.

The file ``member.json`` is written before anything of the store is. A directory that has it is
opened as a member of that store alone: on its own, or in another store, it would get a history that
is not that of the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from zkv.cluster.records import CacheTable
from zkv.durability import recovery
from zkv.durability.frozen_view import FrozenView
from zkv.durability.record_file import find_record, write_record
from zkv.errors import DataDirError
from zkv.replication.incoming import HistoryDirectory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zkv.durability.files import Files
    from zkv.durability.recovery import Recovered
    from zkv.replication.incoming import Keep
    from zkv.replication.stream import Ask, SnapshotPart

FILE: Final = "member.json"


class MemberFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The content of the file.

    Args:
        store: the identity of the store.
        member: the member's name.
        cluster: the identity of the etcd cluster; another one may have another history.
        limits: the settings on which the store's state depends.
        caches: the tables [[cache]] of the store.
        exchange: the history in ``incoming`` is complete, and takes the place of this one: see
            `zkv.replication.incoming`.
    """

    store: str
    member: str
    cluster: int
    limits: dict[str, int | float]
    caches: list[CacheTable] = []
    exchange: bool = False


class MemberDirectory(HistoryDirectory):
    """The data directory of a member, while no server uses it. Hold its `lock` to change it."""

    def read(self) -> MemberFile | None:
        """Return what it says, after an exchange that was decided is complete.

        Raises DamageError, DataDirError, OSError.
        """
        directory = self.layout.directory
        file = read_member(self.files, directory)
        if file is not None and file.exchange:
            self.complete()
            file = msgspec.structs.replace(file, exchange=False)
            write_member(self.files, directory, file)
        self.drop_incoming()
        return file

    def write(self, file: MemberFile) -> None:
        """Have it say something. Raises OSError."""
        write_member(self.files, self.layout.directory, file)

    def fetch(
        self, ask: Ask, file: MemberFile, keep: Keep, accept: Callable[[SnapshotPart], None]
    ) -> int:
        """Fetch the newest snapshot of another member, in place of the history that is here.

        Args:
            ask: asks the member.
            file: what the directory says.
            keep: called, after the new history is on disk, before the old one is given up.
            accept: gets the first part of the snapshot.

        Returns its revision. Raises what the functions do, StreamError, OSError.
        """

        def decide(exchange: bool) -> None:
            self.write(msgspec.structs.replace(file, exchange=exchange))

        return self.replace(ask, file.member, keep, decide, file.store, accept).rev

    def found(self) -> Recovered:
        """Return what it holds. Raises DamageError, DataDirError."""
        with FrozenView(self.files, self.layout.directory) as view:
            return recovery.recover(view, view.layout.snapshots, view.layout.wal)


def read_member(files: Files, directory: Path) -> MemberFile | None:
    """Return what a data directory says; None if it is not that of a member.

    Raises DamageError, DataDirError.
    """
    return find_record(files, directory / FILE, MemberFile)


def remove_member(files: Files, directory: Path) -> None:
    """Remove the file: the directory is no member's any more. Raises DataDirError."""
    path = directory / FILE
    try:
        files.remove(path)
        files.sync_directory(directory)
    except OSError as error:
        raise DataDirError(f"{path}: {error.strerror or error}") from error


def write_member(files: Files, directory: Path, record: MemberFile) -> None:
    """Write the file. Raises OSError."""
    write_record(files, directory / FILE, record)
