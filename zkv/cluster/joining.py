"""How a server becomes a member: what it has to know before it opens its data directory.

The settings on which the store's state depends are those of the store, and not of this server: two
members that remember differently many sessions would become two stores. Whoever begins a store
decides them.

A directory that has been a member's is opened even if etcd does not answer: it can answer reads that
allow it. A new one needs etcd, and waits for it.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from zkv.cluster.lease import Lease
from zkv.cluster.place import MemberFile, new_name, read_member
from zkv.cluster.records import FORMAT, Fence, Head, StoreRecord
from zkv.cluster.shared_log import SharedLog
from zkv.endpoint import split_store_url
from zkv.errors import ConfigError, DataDirError
from zkv.etcd.errors import EtcdError
from zkv.keyspace.lineage import NO_LINEAGE

if TYPE_CHECKING:
    from zkv.cluster.shared_log import Seen
    from zkv.config import LimitSettings, Settings
    from zkv.durability.files import Files
    from zkv.etcd.interface import Etcd

_log = logging.getLogger("zkv.cluster")

SHARED_LIMITS: Final = ("session_window", "session_ttl", "max_sessions", "session_bytes")
"""The settings in the table [limits] on which the state depends."""
LONGEST_TIMEOUT: Final = 1.5
"""Seconds that etcd has for an answer, at most."""
RETRY_SECONDS: Final = 0.5
"""Pause before etcd is asked again at a start."""


class Joined(NamedTuple):
    """A member that is about to open its directory.

    Args:
        log: the log in etcd.
        file: what the directory says, or will say.
        is_new: it does not say so yet.
        lease: the member's lease.
    """

    log: SharedLog
    file: MemberFile
    is_new: bool
    lease: Lease

    def limits(self, own: LimitSettings) -> LimitSettings:
        """Return the limits of this server, with those that the store decides."""
        return msgspec.structs.replace(own, **self.file.limits)


def shared_log(settings: Settings) -> SharedLog:
    """Return the log in etcd that settings name. Does not connect. Raises ConfigError."""
    place = split_store_url(settings.store.url)
    return SharedLog(_client(settings, place.endpoints), place.prefix, _timeout(settings))


def join(settings: Settings, files: Files) -> Joined:
    """Return what a member has to know; waits for etcd if its directory is new.

    Raises ConfigError, DamageError, DataDirError.
    """
    directory = Path(settings.durability.data_dir or "")
    log = shared_log(settings)
    file = read_member(files, directory) if directory.exists() else None
    lease = Lease(settings.store.lease)
    named = settings.store.member
    if file is not None:
        if named not in {"", file.member}:
            raise ConfigError(
                f"store.member: {directory} is that of member {file.member}, not of {named}"
            )
        return Joined(log, file, False, lease)
    seen = _first_look(log)
    new = MemberFile(seen.store.store, named or new_name(), seen.cluster, seen.store.limits)
    return Joined(log, new, True, lease)


def found(log: SharedLog, limits: LimitSettings) -> str:
    """Begin an empty store; return its identity. Raises DataDirError, EtcdError."""
    store = NO_LINEAGE.next_start().store
    shared = {name: getattr(limits, name) for name in SHARED_LIMITS}
    record = StoreRecord(format=FORMAT, store=store, limits=shared, first_lsn=1)
    if not log.found(record, Fence(0, "", ""), Head(0, 0, 0, 0)):
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
    from zkv.etcd.client import EtcdClient  # Late: only those who have a store in etcd need it.

    raise NotImplementedError(settings, endpoints, EtcdClient)
