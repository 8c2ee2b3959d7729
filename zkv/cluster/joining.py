"""How a server becomes a member: what it has to know before it opens its data directory.

The settings on which the store's state depends are those of the store, and not of this server: two
members that remember differently many sessions would become two stores. Whoever begins a store
decides them, and the bounds of caches with them: after a fail-over the new leader has to evict as
the former one did.

A directory that has been a member's is opened even if etcd does not answer: it can answer reads
that allow it. An empty one needs etcd, and waits for it.

Where the log in etcd does not reach back to what a directory holds, it gets a snapshot of another
member first. In order: the member says that its disk holds nothing; places a pin, which holds the
log from its beginning on; fetches the snapshot, and moves the pin up to it; has it take the place
of what was there; and reads on. The pin stays until the member has caught up (`Joining.pin`). A
kill at any step leaves a directory with which the next start begins again. A snapshot has its name
only once etcd has confirmed its position (`Snapshotter`), so it is always in the history.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import msgspec

from zkv.cluster.lease import Lease
from zkv.cluster.pins import Pin
from zkv.cluster.place import MemberDirectory, MemberFile
from zkv.cluster.records import FORMAT, CacheTable, Fence, LogHead, MemberRecord, StoreRecord
from zkv.cluster.role import MemberRole
from zkv.cluster.shared_log import SharedLog
from zkv.cluster.wal import ReplicatedWal
from zkv.config import CacheSettings
from zkv.endpoint import split_store_url
from zkv.errors import ConfigError, DataDirError
from zkv.etcd import EtcdSecurity, connect
from zkv.etcd.errors import EtcdError
from zkv.keyspace.lineage import NO_LINEAGE
from zkv.replication.incoming import attempt, keep_diverged
from zkv.replication.place import new_member
from zkv.replication.standby import Primary
from zkv.replication.stream import StreamError

if TYPE_CHECKING:
    from zkv.cluster.shared_log import Seen
    from zkv.config import LimitSettings, Settings
    from zkv.durability.files import Files
    from zkv.durability.segment import SegmentEnd
    from zkv.etcd.interface import Etcd
    from zkv.keyspace import Commit
    from zkv.replication.incoming import BeginAnew
    from zkv.replication.stream import FetchedSnapshot, SnapshotPart

_log = logging.getLogger("zkv.cluster")

SHARED_LIMITS: Final = ("session_window", "session_ttl", "max_sessions", "session_bytes")
"""The settings in the table [limits] on which the state depends."""
LONGEST_TIMEOUT: Final = 1.5
"""Seconds that etcd has for an answer, at most."""
RETRY_SECONDS: Final = 0.5
"""Pause before etcd, or the other members, are asked again at a start."""

_Answer = TypeVar("_Answer")

ToLine = Callable[["Commit"], str]
"""Returns the text of a commit, for what is kept of a history that is given up."""


class MemberSource(Primary, Protocol):
    """The connection to the members that may have a snapshot."""

    def close(self) -> None:
        """Close it."""


Connect = Callable[[list[str]], MemberSource]
"""Connects to the members at these endpoints. Raises ConfigError."""


class Joining:
    """A server that becomes a member.

    Args:
        log: the log in etcd.
        file: what the data directory says.
        settings: those of this server.

    Attributes:
        wal: the log in the directory, once that is open.
        pin: holds the log in etcd until this member has caught up; None = it has fetched nothing.
    """

    wal: ReplicatedWal

    def __init__(self, log: SharedLog, file: MemberFile, settings: Settings) -> None:
        self.log = log
        self.file = file
        self.store = settings.store
        self.lease = Lease(settings.store.lease)
        self._confirms = settings.store.reads == "confirm"
        self.role = MemberRole(self.lease)
        self.pin: Pin | None = None
        self._report_differences(settings)

    def limits(self, own: LimitSettings) -> LimitSettings:
        """Return the limits of this server, with those that the store decides."""
        return msgspec.structs.replace(own, **self.file.limits)

    @property
    def caches(self) -> list[CacheSettings]:
        """The tables [[cache]] of the store."""
        return msgspec.convert(msgspec.to_builtins(self.file.caches), list[CacheSettings])

    def close(self) -> None:
        """Remove the pin, if etcd answers, and close the connection to etcd."""
        if self.pin is not None:
            self.pin.release()
        self.log.etcd.close()

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

    def _report_differences(self, settings: Settings) -> None:
        """Say which settings of this server do not count, as the store has others."""
        for name, value in self.file.limits.items():
            own = getattr(settings.limits, name)
            if own != value:
                _log.warning(
                    "limits.%s is %s in this store, as it was begun with that; %s does not count",
                    name, value, own,
                )  # fmt: skip
        if _tables(settings.cache) != self.file.caches:
            _log.warning(
                "the tables [[cache]] of this store are those with which it was begun: %s; those "
                "of this server do not count",
                ", ".join(f"{it.prefix} {it.max_bytes} {it.policy}" for it in self.file.caches)
                or "none",
            )


def shared_log(settings: Settings) -> SharedLog:
    """Return the log in etcd that settings name. Does not connect. Raises ConfigError."""
    place = split_store_url(settings.store.url)
    return SharedLog(_client(settings, place.endpoints), place.prefix, _timeout(settings))


def join(
    settings: Settings,
    files: Files,
    connect: Connect,
    anew: BeginAnew | None = None,
    to_line: ToLine = repr,
) -> Joining:
    """Make a directory that of a member, and return what the member has to know.

    It waits for etcd if the directory is empty, and for another member if it needs a snapshot.

    Args:
        settings: the settings.
        files: the file operations.
        connect: connects to other members.
        anew: why the member has to begin anew; None = it has not.
        to_line: see `ToLine`.

    Raises ConfigError, DamageError, DataDirError, LockedError.
    """
    log = shared_log(settings)
    directory = MemberDirectory(files, Path(settings.durability.data_dir or ""))
    joined = False
    try:
        with directory.lock():
            file = _declare_directory(directory, log, settings)
            joining = Joining(log, file, settings)
            if anew is not None or directory.is_empty:
                _Fetch(joining, files, directory, connect, anew, to_line).run()
            joined = True
            return joining
    except OSError as error:
        place = error.filename or directory.layout.directory
        raise DataDirError(f"{place}: {error.strerror or error}") from error
    finally:
        if not joined:
            log.etcd.close()


def _declare_directory(
    directory: MemberDirectory, log: SharedLog, settings: Settings
) -> MemberFile:
    """Return what a directory says; a new one says it from now on.

    Raises ConfigError, DamageError, DataDirError, OSError.
    """
    named, place = settings.store.member, directory.layout.directory
    file = directory.read()
    if file is not None:
        if named not in {"", file.member}:
            raise ConfigError(
                f"store.member: {place} is that of member {file.member}, not of {named}"
            )
        return file
    if not directory.is_empty and directory.found().lsn:
        raise DataDirError(
            f"{place}: holds a store of its own: a new member begins in an empty directory; "
            f"`zkv store found --from` begins a replicated store with what a directory holds"
        )
    seen = _first_look(log)
    store = seen.store
    name = named or new_member()
    file = MemberFile(store.store, name, seen.cluster, store.limits, store.caches)
    directory.write(file)
    return file


class _Fetch:
    """Fetches a snapshot of another member, if the log in etcd does not reach back far enough.

    Args: see `join`.
    """

    def __init__(
        self,
        joining: Joining,
        files: Files,
        directory: MemberDirectory,
        connect: Connect,
        anew: BeginAnew | None,
        to_line: ToLine,
    ) -> None:
        self._joining = joining
        self._files = files
        self._directory = directory
        self._connect = connect
        self._anew = anew
        self._to_line = to_line
        self._pin = Pin(joining.log, joining.file.member)
        self._said = False

    def run(self) -> None:
        """Fetch it; try until that has succeeded. Raises DataDirError, OSError."""
        seen = _first_look(self._joining.log)
        self._require_store(seen)
        try:
            self._claim_nothing()
            while seen.first.lsn > 1 and not self._try(seen):
                threading.Event().wait(RETRY_SECONDS)
                seen = _first_look(self._joining.log)
        except BaseException:
            self._pin.release()
            raise

    def _require_store(self, seen: Seen) -> None:
        file = self._joining.file
        if (seen.store.store, seen.cluster) != (file.store, file.cluster):
            raise DataDirError(
                f"{self._directory.layout.directory}: that of a member of store {file.store} in "
                f"etcd cluster {file.cluster:x}; this is store {seen.store.store} in cluster "
                f"{seen.cluster:x}"
            )

    def _claim_nothing(self) -> None:
        """Say that this disk holds no snapshot, before anything else: an earlier one may have."""
        name = self._joining.file.member
        record = MemberRecord(name=name, endpoints=[], applied=0, time=0)
        _until_answered(lambda: self._joining.log.declare(record))

    def _try(self, seen: Seen) -> bool:
        """Try each place once; return True if there is a snapshot."""
        file, log = self._joining.file, self._joining.log
        if not _until_answered(partial(self._pin.place, seen)):
            return False  # Trimmed in between: look again.
        leader = seen.leader
        leads = leader is not None and not leader.released and leader.member != file.member
        endpoints = list(leader.endpoints) if leader is not None and leads else []
        for each in _until_answered(log.members):
            if each.name != file.member:
                endpoints += [it for it in each.endpoints if it not in endpoints]
        if not endpoints:
            self._say(f"the log in etcd begins at {seen.first.lsn}, and no member is known")
            return False
        source = self._connect(endpoints)
        try:
            return any(self._fetched(source, seen) for _ in range(source.places))
        finally:
            source.close()

    def _fetched(self, source: MemberSource, seen: Seen) -> bool:
        def accept(part: SnapshotPart) -> None:
            if part.lsn + 1 < seen.first.lsn:
                raise StreamError(
                    f"{source.endpoint} has a snapshot at log number {part.lsn} only, and the log "
                    f"in etcd begins at {seen.first.lsn}"
                )
            self._pin.move_to(part.lsn + 1)

        def fetch() -> None:
            file = self._joining.file
            rev = self._directory.fetch(source.ask, file, self._keep, accept)
            _log.info("fetched a snapshot of %s at revision %d", source.endpoint, rev)
            self._joining.pin = self._pin

        return attempt(source, fetch)

    def _keep(self, fetched: FetchedSnapshot) -> None:
        """Write into a file what only the history here has. Raises OSError, DataDirError."""
        anew = self._anew
        if anew is None:
            return
        common = anew.lineage.common(fetched.lineage, fetched.lsn, anew.lsn)
        if anew.lineage.store and common < anew.lsn:
            keep_diverged(self._files, self._directory.layout, common, self._to_line)

    def _say(self, what: str) -> None:
        if not self._said:
            _log.warning("%s: waiting for one that has a snapshot", what)
        self._said = True


def found(log: SharedLog, limits: LimitSettings, caches: Sequence[CacheSettings] = ()) -> str:
    """Begin an empty store; return its identity. Raises DataDirError, EtcdError."""
    record = store_record(NO_LINEAGE.next_start().store, limits, caches, 1)
    now = round(time.time() * 1000)  # The only time at which the system's clock counts.
    if not log.found(record, Fence(0, "", ""), LogHead(0, 0, 0, now)):
        raise store_exists(log)
    return record.store


def store_record(
    store: str, limits: LimitSettings, caches: Sequence[CacheSettings], first_lsn: int
) -> StoreRecord:
    """Return the record of a store that is begun with these settings."""
    shared = {name: getattr(limits, name) for name in SHARED_LIMITS}
    tables = _tables(caches)
    return StoreRecord(
        format=FORMAT, store=store, limits=shared, first_lsn=first_lsn, caches=tables
    )


def store_exists(log: SharedLog) -> DataDirError:
    """Return the error for a store that is there already."""
    return DataDirError(f"there is a store at {log.keys.prefix.decode()} already")


def _tables(caches: Sequence[CacheSettings]) -> list[CacheTable]:
    return [CacheTable(each.prefix, each.max_bytes, each.policy) for each in caches]


def _first_look(log: SharedLog) -> Seen:
    """Return what is in etcd once it answers. Raises NoStoreError, DamageError."""
    return _until_answered(log.look)


def _until_answered(ask: Callable[[], _Answer]) -> _Answer:
    """Ask etcd until it answers; what it is asked may be done twice."""
    said = False
    while True:
        try:
            return ask()
        except EtcdError as error:
            if not said:
                _log.warning("%s; waiting for etcd", error)
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
