"""The role of a server as its data directory tells it, and how that gets another history.

The file ``replication.json`` says that the directory is that of a standby, or of a primary that
another server has superseded. Without it, the server that uses the directory leads.

A standby that cannot go on from its own log gets a new history: it is fetched into ``incoming``,
which is laid out like a data directory, and then takes the place of the old one. The file says when
that has been decided. So a crash before leaves the old history, and one after it the new one: the
next start completes the exchange.

Order on disk: all of ``incoming`` is synced before the file says ``exchange``; the file loses that
mark only after the exchange is synced.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from msgspec import Struct

from zkv.durability import snapshot
from zkv.durability.backup import begin_log, make_directories, remove_tree
from zkv.durability.layout import Layout
from zkv.errors import DamageError, DataDirError
from zkv.replication.stream import Asker, StreamError, fetch_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zkv.durability.files import Files
    from zkv.durability.lock import DirectoryLock
    from zkv.replication.stream import Ask, FetchedSnapshot

FILE: Final = "replication.json"
INCOMING: Final = "incoming"
MOST_NAME: Final = 40
"""Characters of the host's name in the name of a member."""


class PromiseRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """A promise to a standby that is being promoted: see `zkv.replication.promises`.

    Args:
        member: the name of that standby.
        attempt: the number of its attempt; 0: nobody can withdraw it.
        term: the term that it is going to begin.
        tag: the tag of that term.
    """

    member: str
    attempt: int
    term: int
    tag: str


class RoleRecord(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The content of the file.

    Args:
        role: ``standby``, or ``superseded``: a primary until another one took over.
        leader: endpoints of the primary.
        member: the name by which the primary knows the standby, or the one that took over.
        term: the term of the server that took over; 0 for a standby.
        attempt: by which attempt it did: see `zkv.replication.handover`.
        exchange: the history in ``incoming`` is complete, and takes the place of this one.
        promises: what this server has promised, the lowest term first.
    """

    role: Literal["standby", "superseded"]
    leader: list[str]
    member: str = ""
    term: int = 0
    attempt: int = 0
    exchange: bool = False
    promises: list[PromiseRecord] = []  # msgspec copies it.


def new_member() -> str:
    """Return a name for a standby that has none yet."""
    return f"{socket.gethostname()[:MOST_NAME]}-{secrets.token_hex(4)}"


def read_role(files: Files, directory: Path) -> RoleRecord | None:
    """Return what a data directory says; None if its server leads.

    Raises DamageError, DataDirError.
    """
    path = directory / FILE
    try:
        with files.open_read(path) as file:
            return msgspec.json.decode(file.read(), type=RoleRecord)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise DamageError(f"{path}: damaged: {error}") from None
    except OSError as error:
        raise DataDirError(f"{path}: {error.strerror or error}") from error


def write_role(files: Files, directory: Path, record: RoleRecord | None) -> None:
    """Write the file, or remove it: None = the server leads. Raises OSError."""
    path = directory / FILE
    if record is None:
        with contextlib.suppress(FileNotFoundError):
            files.remove(path)
        files.sync_directory(directory)
        return
    beside = path.with_name(path.name + snapshot.UNFINISHED)
    with files.create(beside) as file:
        files.write(file, msgspec.json.format(msgspec.json.encode(record)) + b"\n")
        files.sync(file)
    files.rename(beside, path)
    files.sync_directory(directory)


class RoleFile:
    """The file of a server that runs. Any thread.

    Args:
        files: the file operations.
        directory: the data directory.
        record: what the file says.
    """

    def __init__(self, files: Files, directory: Path, record: RoleRecord | None) -> None:
        self._files = files
        self.directory = directory
        self.lock = threading.RLock()
        """Held while the file changes, and by who must see no change."""
        self.record = record
        """Its content for certain: a change that fails may be there or not."""

    def write(self, record: RoleRecord | None) -> None:
        """Write the file, or remove it: None = the server leads.

        Raises OSError. Then the file says the same as before, as far as that can be written: the
        next start must not take up another role than this one has gone on with.
        """
        with self.lock:
            try:
                write_role(self._files, self.directory, record)
            except OSError:
                with contextlib.suppress(OSError):
                    write_role(self._files, self.directory, self.record)
                raise
            self.record = record


class StandbyDirectory:
    """The data directory of a standby, while no server uses it. Hold its `lock` to change it.

    Args:
        files: the file operations.
        directory: the data directory.
    """

    def __init__(self, files: Files, directory: Path) -> None:
        self._files = files
        self.layout = Layout(directory)

    def lock(self) -> DirectoryLock:
        """Keep others off the directory, which is created if needed.

        Raises LockedError, OSError.
        """
        make_directories(self._files, self.layout.directory)
        return self._files.lock(self.layout.lock)

    def prepare(self, leader: list[str]) -> RoleRecord:
        """Make it the directory of a standby of this primary, and complete an exchange.

        Returns what it says then. Raises DamageError, DataDirError, OSError.
        """
        record = read_role(self._files, self.layout.directory)
        if record is not None and record.exchange:
            self._exchange()
        # A superseded primary has noted the name of the one that took over.
        is_standby = record is not None and record.role == "standby" and record.member
        member = record.member if record is not None and is_standby else new_member()
        promises = [] if record is None else record.promises
        made = RoleRecord("standby", leader, member, promises=promises)
        write_role(self._files, self.layout.directory, made)
        self._remove(self._incoming.directory)
        return made

    @property
    def is_empty(self) -> bool:
        """True if there is no history in it yet. Raises OSError."""
        names = self._files.names(self.layout.directory)
        inner = [each for each in (self.layout.snapshots, self.layout.wal) if each.name in names]
        return not any(map(self._files.names, inner))

    def fetch(self, ask: Ask, record: RoleRecord, keep: Callable[[FetchedSnapshot], None]) -> int:
        """Fetch the newest snapshot of the primary, in place of the history that is here.

        Args:
            ask: asks the primary.
            record: what the directory says.
            keep: called, after the new history is on disk, before the old one is given up.

        Returns its revision. Raises what `keep` does, StreamError, OSError.
        """
        files, incoming = self._files, self._incoming
        self._remove(incoming.directory)
        for each in (incoming.snapshots, incoming.wal):
            make_directories(files, each)
        beside = incoming.snapshots / f"fetched{snapshot.UNFINISHED}"
        with files.create(beside) as file:
            fetched = fetch_snapshot(Asker(ask), record.member, files, file)
            files.sync(file)
        path = incoming.snapshot(fetched.rev)
        files.rename(beside, path)
        files.sync_directory(incoming.snapshots)
        try:  # All of it is checked before anything is given up for it.
            snapshot.read(files, path)
        except DamageError as error:
            raise StreamError(f"the primary has sent a damaged snapshot: {error}") from None
        begin_log(files, incoming, fetched.rev + 1, fetched.lsn + 1)
        keep(fetched)
        directory = self.layout.directory
        write_role(files, directory, msgspec.structs.replace(record, exchange=True))
        self._exchange()
        write_role(files, directory, record)
        return fetched.rev

    @property
    def _incoming(self) -> Layout:
        return self.layout.beside(INCOMING)

    def _exchange(self) -> None:
        """Put what is in ``incoming`` in the place of the history that is here."""
        files, incoming = self._files, self._incoming
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

    def _remove(self, directory: Path) -> None:
        if remove_tree(self._files, directory):
            self._files.sync_directory(directory.parent)
