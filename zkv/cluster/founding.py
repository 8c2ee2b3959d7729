"""Begins a replicated store with what a data directory holds, and has a member leave one.

Either way one history becomes two: others may have what comes after this moment, and clients may
have seen it. So the store in the directory begins a term, and its revision goes up by
`RESTORED_ABOVE`, as when a backup is restored. This is done in the directory itself, in its log,
and nothing in it is given up.

Founding, in order: the new term is on disk; the directory says that it is that of a member; etcd
has the store, whose log begins after what the directory holds. So that directory is the first
member's, and all others begin with its snapshot. After a kill in between the command is repeated.

Leaving, in order: the member is removed from etcd, so its snapshots do not count any more; the new
term is on disk; the directory is no member's any more. Likewise.
"""

from __future__ import annotations

import contextlib
import zlib
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from zkv.cluster.joining import store_exists, store_record
from zkv.cluster.place import MemberDirectory, MemberFile, read_member, remove_member
from zkv.cluster.records import Fence, LogHead
from zkv.cluster.shared_log import NoStoreError
from zkv.config import fit_memory
from zkv.durability import dump
from zkv.durability.backup import MOST_REV, RESTORED_ABOVE
from zkv.durability.frozen_view import FrozenView
from zkv.engine import Engine
from zkv.errors import DataDirError, ReadOnly
from zkv.replication.place import new_member, read_role

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zkv.cluster.shared_log import Seen, SharedLog
    from zkv.config import Settings
    from zkv.durability.files import Files


class Left(NamedTuple):
    """A member that has left.

    Args:
        member: its name.
        rev: the revision of the store in its directory now.
        lsn: the newest log number that it had of the replicated store.
        head: the newest one in etcd; None = there was no store.
        others: names of the members that remain.
    """

    member: str
    rev: int
    lsn: int
    head: int | None
    others: list[str]


def found_from(files: Files, directory: Path, log: SharedLog, settings: Settings) -> MemberFile:
    """Begin a store with what a data directory holds; return what the directory says then.

    Raises DamageError, DataDirError, LockedError, ReadOnly, EtcdError.
    """
    place = MemberDirectory(files, directory)
    if (done := _founded(place, log)) is not None:
        return done
    cluster = log.cluster()
    _require_own_store(files, place)
    with _opened(files, directory, settings) as engine:
        _begin_term(engine)
    head, store = _head_of(place)
    record = store_record(store, settings.limits, settings.cache, head.lsn + 1)
    before = place.read()
    name = settings.store.member or (before.member if before is not None else new_member())
    file = MemberFile(store, name, cluster, record.limits, record.caches)
    place.write(file)
    if not log.found(record, Fence(head.term, "", ""), head):
        raise store_exists(log)
    return file


def leave(files: Files, directory: Path, log: SharedLog, settings: Settings) -> Left:
    """Have the member of a directory leave its store, which then is a store of its own.

    Raises DamageError, DataDirError, LockedError, ReadOnly, EtcdError.
    """
    file = read_member(files, directory)
    if file is None:
        raise DataDirError(f"{directory}: not the directory of a member")
    limits = msgspec.structs.replace(settings.limits, **file.limits)
    settings = msgspec.structs.replace(settings, limits=limits)
    with _opened(files, directory, settings) as engine:
        lsn = engine.last_lsn
        seen = _look(log, file)
        others = [] if seen is None else _others(log, file, seen)
        if seen is not None:
            log.remove_member(file.member)
        _begin_term(engine)
        rev = engine.keyspace.rev
    remove_member(files, directory)
    return Left(file.member, rev, lsn, None if seen is None else seen.head.lsn, others)


def _founded(place: MemberDirectory, log: SharedLog) -> MemberFile | None:
    """Return what a directory says if an earlier call has founded the store with it.

    Raises DataDirError if there is another store.
    """
    try:
        seen = log.look()
    except NoStoreError:
        return None
    file = read_member(place.files, place.layout.directory)
    if file is not None and (file.store, file.cluster) == (seen.store.store, seen.cluster):
        head, _ = _head_of(place)
        if (head.lsn, head.crc) == (seen.head.lsn, seen.head.crc):
            return file
    raise store_exists(log)


def _require_own_store(files: Files, place: MemberDirectory) -> None:
    """Raise DataDirError if a directory has no store that may become another history."""
    directory = place.layout.directory
    role = read_role(files, directory) if directory.exists() else None
    if role is not None:
        raise DataDirError(f"{directory}: that of a {role.role} server: let it lead first")
    if not directory.exists() or place.is_empty:
        raise DataDirError(f"{directory}: holds no store; without --from an empty one begins")


def _look(log: SharedLog, file: MemberFile) -> Seen | None:
    """Return what is in etcd; None if the store is not there. Raises EtcdError."""
    try:
        seen = log.look()
    except NoStoreError:
        return None
    return seen if (seen.store.store, seen.cluster) == (file.store, file.cluster) else None


def _others(log: SharedLog, file: MemberFile, seen: Seen) -> list[str]:
    """Return the names of the other members. Raises DataDirError if they need this one."""
    others = [each for each in log.members() if each.name != file.member]
    needed = seen.first.lsn > 1
    if others and needed and all(it.claim.newest + 1 < seen.first.lsn for it in others):
        raise DataDirError(
            f"no other member has a snapshot after which the log in etcd goes on, at number "
            f"{seen.first.lsn}: {file.member} is needed until one has"
        )
    return [each.name for each in others]


@contextlib.contextmanager
def _opened(files: Files, directory: Path, settings: Settings) -> Iterator[Engine]:
    """Yield an engine on a directory; at the exit all is saved. Raises ReadOnly if it is not."""
    durability = msgspec.structs.replace(
        settings.durability, data_dir=str(directory), fsync="always"
    )
    limits, _ = fit_memory(settings.limits)
    engine = Engine(durability, limits, files, leads=False)
    engine.start()
    try:
        try:
            yield engine
        finally:
            engine.save()
    finally:
        engine.close()


def _begin_term(engine: Engine) -> None:
    """Begin a term, at a revision that no client can have seen. Raises DataDirError, ReadOnly."""
    keyspace = engine.keyspace
    with keyspace.lock:
        rev = keyspace.rev + RESTORED_ABOVE
        if rev > MOST_REV:
            raise DataDirError(f"the revision would be {rev}; the highest possible is {MOST_REV}")
        lsn = keyspace.begin_term(keyspace.lineage.next_start(), rev)
    if not engine.log.commit(lsn, durable=True):
        raise ReadOnly("the log could not be written")


def _head_of(place: MemberDirectory) -> tuple[LogHead, str]:
    """Return the newest commit of a directory, and the identity of its store."""
    found = place.found()
    crc = 0
    with FrozenView(place.files, place.layout.directory) as view:
        for commit in dump.log(view, None):
            if commit.lsn == found.lsn:
                crc = zlib.crc32(commit.payload)
    lineage = found.lineage
    return LogHead(found.lsn, found.rev, lineage.term, found.time, crc), lineage.store
