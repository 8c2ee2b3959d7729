"""The role of a server as its data directory tells it, and how that gets another history.

The file ``replication.json`` says that the directory is that of a standby, or of a primary that
another server has superseded. Without it, the server that uses the directory leads.

A standby that cannot go on from its own log gets a new history (`zkv.replication.incoming`). The
file says when that has been decided.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from msgspec import Struct

from zkv.durability.record_file import find_record, write_record
from zkv.replication.incoming import HistoryDirectory

if TYPE_CHECKING:
    from pathlib import Path

    from zkv.durability.files import Files
    from zkv.replication.incoming import Keep
    from zkv.replication.stream import Ask

FILE: Final = "replication.json"
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
    """Return a name for a standby, or a member of a store in etcd, that has none yet."""
    host = "".join(
        each if each.isalnum() or each in "-._" else "-" for each in socket.gethostname()
    )
    return f"{host[:MOST_NAME]}-{secrets.token_hex(4)}"


def read_role(files: Files, directory: Path) -> RoleRecord | None:
    """Return what a data directory says; None if its server leads.

    Raises DamageError, DataDirError.
    """
    return find_record(files, directory / FILE, RoleRecord)


def write_role(files: Files, directory: Path, record: RoleRecord | None) -> None:
    """Write the file, or remove it: None = the server leads. Raises OSError."""
    path = directory / FILE
    if record is not None:
        write_record(files, path, record)
        return
    with contextlib.suppress(FileNotFoundError):
        files.remove(path)
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


class StandbyDirectory(HistoryDirectory):
    """The data directory of a standby, while no server uses it. Hold its `lock` to change it."""

    def prepare(self, leader: list[str]) -> RoleRecord:
        """Make it the directory of a standby of this primary, and complete an exchange.

        Returns what it says then. Raises DamageError, DataDirError, OSError.
        """
        record = read_role(self.files, self.layout.directory)
        if record is not None and record.exchange:
            self.complete()
        # A superseded primary has noted the name of the one that took over.
        is_standby = record is not None and record.role == "standby" and record.member
        member = record.member if record is not None and is_standby else new_member()
        promises = [] if record is None else record.promises
        made = RoleRecord("standby", leader, member, promises=promises)
        write_role(self.files, self.layout.directory, made)
        self.drop_incoming()
        return made

    def fetch(self, ask: Ask, record: RoleRecord, keep: Keep) -> int:
        """Fetch the newest snapshot of the primary, in place of the history that is here.

        Args:
            ask: asks the primary.
            record: what the directory says.
            keep: called, after the new history is on disk, before the old one is given up.

        Returns its revision. Raises what `keep` does, StreamError, OSError.
        """

        def decide(exchange: bool) -> None:
            decided = msgspec.structs.replace(record, exchange=exchange)
            write_role(self.files, self.layout.directory, decided)

        return self.replace(ask, record.member, keep, decide).rev
