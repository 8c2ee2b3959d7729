"""How a server becomes a member: what it has to know before it opens its data directory.

The settings on which the store's state depends are those of the store, and not of this server: two
members that remember differently many sessions would become two stores. Whoever begins a store
decides them.

A directory that has been a member's is opened even if etcd does not answer: it can answer reads
that allow it. A new one needs etcd, and waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from zkv.cluster.lease import Lease
from zkv.cluster.place import MemberFile, new_name, read_member, write_member
from zkv.cluster.records import FORMAT, Fence, LogHead, StoreRecord
from zkv.cluster.role import MemberRole
from zkv.cluster.shared_log import SharedLog
from zkv.cluster.wal import ReplicatedWal
from zkv.endpoint import split_store_url
from zkv.errors import ConfigError, DataDirError
from zkv.etcd import EtcdSecurity, connect
from zkv.etcd.errors import EtcdError
from zkv.keyspace.lineage import NO_LINEAGE

if TYPE_CHECKING:
    from zkv.cluster.shared_log import Seen
    from zkv.config import LimitSettings, Settings, StoreSettings
    from zkv.durability.files import Files
    from zkv.durability.segment import SegmentEnd
    from zkv.etcd.interface import Etcd

_log = logging.getLogger("zkv.cluster")

SHARED_LIMITS: Final = ("session_window", "session_ttl", "max_sessions", "session_bytes")
"""The settings in the table [limits] on which the state depends."""
LONGEST_TIMEOUT: Final = 1.5
"""Seconds that etcd has for an answer, at most."""
RETRY_SECONDS: Final = 0.5
"""Pause before etcd is asked again at a start."""


class Joining:
    """A server that becomes a member.

    Args:
        log: the log in etcd.
        file: what the data directory says, or will say.
        is_new: it does not say so yet.
        settings: of the store.

    Attributes:
        wal: the log in the directory, once that is open.
    """

    wal: ReplicatedWal

    def __init__(
        self, log: SharedLog, file: MemberFile, is_new: bool, settings: StoreSettings
    ) -> None:
        self.log = log
        self.file = file
        self.lease = Lease(settings.lease)
        self._confirms = settings.reads == "confirm"
        self.role = MemberRole(self.lease)
        self._is_new = is_new

    def limits(self, own: LimitSettings) -> LimitSettings:
        """Return the limits of this server, with those that the store decides."""
        return msgspec.structs.replace(own, **self.file.limits)

    def open_log(
        self,
        files: Files,
        directory: Path,
        rev: int,
        lsn: int,
        end: SegmentEnd | None,
        segment_bytes: int,
    ) -> ReplicatedWal:
        """Open the log in the directory; see `Wal`. Raises OSError."""
        self.wal = ReplicatedWal(
            files, directory, rev, lsn, end, segment_bytes, self.lease, self._confirms
        )
        return self.wal

    def take_directory(self, files: Files, directory: Path) -> None:
        """Note in an open directory that it is that of a member. Raises DataDirError."""
        if not self._is_new:
            return
        if self.wal.last_lsn:
            raise DataDirError(
                f"{directory}: holds a store of its own: a new member begins in an empty directory"
            )
        try:
            write_member(files, directory, self.file)
        except OSError as error:
            raise DataDirError(f"{directory}: {error.strerror or error}") from error


def shared_log(settings: Settings) -> SharedLog:
    """Return the log in etcd that settings name. Does not connect. Raises ConfigError."""
    place = split_store_url(settings.store.url)
    return SharedLog(_client(settings, place.endpoints), place.prefix, _timeout(settings))


def join(settings: Settings, files: Files) -> Joining:
    """Return what a member has to know; waits for etcd if its directory is new.

    Raises ConfigError, DamageError, DataDirError.
    """
    directory = Path(settings.durability.data_dir or "")
    log = shared_log(settings)
    file = read_member(files, directory) if directory.exists() else None
    store, named = settings.store, settings.store.member
    if file is not None:
        if named not in {"", file.member}:
            raise ConfigError(
                f"store.member: {directory} is that of member {file.member}, not of {named}"
            )
        return Joining(log, file, False, store)
    seen = _first_look(log)
    new = MemberFile(seen.store.store, named or new_name(), seen.cluster, seen.store.limits)
    return Joining(log, new, True, store)


def found(log: SharedLog, limits: LimitSettings) -> str:
    """Begin an empty store; return its identity. Raises DataDirError, EtcdError."""
    store = NO_LINEAGE.next_start().store
    shared = {name: getattr(limits, name) for name in SHARED_LIMITS}
    record = StoreRecord(format=FORMAT, store=store, limits=shared, first_lsn=1)
    if not log.found(record, Fence(0, "", ""), LogHead(0, 0, 0, time.time_ns() // 1_000_000)):
        raise DataDirError(f"there is a store at {log.keys.prefix.decode()} already")
    return store


def _first_look(log: SharedLog) -> Seen:
    """Return what is in etcd once it answers. Raises NoStoreError, DamageError."""
    said = False
    while True:
        try:
            return log.look()
        except EtcdError as error:
            if not said:
                _log.warning("%s; a new member waits for it", error)
            said = True
            threading.Event().wait(RETRY_SECONDS)


def _timeout(settings: Settings) -> float:
    return min(LONGEST_TIMEOUT, settings.store.lease / 3)


def _client(settings: Settings, endpoints: list[str]) -> Etcd:
    """Return a client. Raises ConfigError if it is not installed, or its files are not good."""
    named = settings.store.etcd
    return connect(
        endpoints,
        security=EtcdSecurity(
            ca=named.ca or None,
            cert=named.cert or None,
            key=named.key or None,
            user=named.user,
            password_file=named.password_file or None,
        ),
    )
