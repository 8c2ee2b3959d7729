"""The server side of REPLICATE: hands out commits after a position, and snapshots in parts.

Strategy: everything is read from the files in the data directory, without the keyspace's lock and
without a copy in memory. The next request of a member goes on with its cursor (`LogTail`), so it
costs as much as there is new. A member sends the log number that it has reached, so the server
keeps nothing that would be missed after a restart.

Only commits that are on this server's disk are handed out, whatever the policy: one that a power
cut may take back must never be at another server. Their payloads stay as they are in the log.

A position is a log number and the term of that commit (`zkv.keyspace.lineage`). One that is not in
this store's history is refused, and so is one beyond what is on disk here.

Snapshots are the files themselves. One that is being handed out stays open, and the log after it
stays in the directory, until `KEPT_SECONDS` after the last part: else a large store could never be
handed out beside many writes, since its log would be gone once the other server has loaded it. If
the newest file is not followed by the log, a new one is ordered; nobody waits for it in a worker.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import zlib
from concurrent.futures import Future
from typing import TYPE_CHECKING, BinaryIO, Final

from zkv.durability import recovery, snapshot
from zkv.durability.tail import LogTail, TailCursor
from zkv.errors import BadRequest, Behind, Compacted, DamageError, Diverged, FormatError, ReadOnly
from zkv.keyspace.lineage import Lineage
from zkv.protocol.replies import CommitsReply, SnapshotPartReply
from zkv.replication.members import Members

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zkv.durability.snapshot import Loaded
    from zkv.engine import Engine, OnDisk
    from zkv.protocol.replies import Reply
    from zkv.protocol.requests import Replicate
    from zkv.replication.role import Role

_log = logging.getLogger("zkv.replication")

KEPT_SECONDS: Final = 60.0
"""Seconds for which a snapshot stays open, and the log after it is kept, after its last part; and a
cursor after a member's last request."""
MOST_OPEN: Final = 4
"""Snapshots that are open at a time; beyond that, the least recently asked for is closed."""


class _OpenSnapshot:
    """A snapshot that is being handed out.

    Args:
        file: its file.
        head: what it says of itself.
    """

    def __init__(self, file: BinaryIO, head: Loaded) -> None:
        self.file = file
        self.rev = head.rev
        self.lsn = head.lsn
        self.size = os.fstat(file.fileno()).st_size
        self.until = time.monotonic() + KEPT_SECONDS


class _Kept:
    """A member's cursor between two requests."""

    def __init__(self, cursor: TailCursor) -> None:
        self.cursor = cursor
        self.until = time.monotonic() + KEPT_SECONDS


class ReplicationSource:
    """The log and the snapshots, as other servers get them. Any thread.

    Args:
        engine: the engine.
        disk: what it has in its data directory.
        role: of this server.
        later: ``later(seconds, action)`` has ``action`` called after so many seconds.
    """

    def __init__(
        self,
        engine: Engine,
        disk: OnDisk,
        role: Role,
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._engine = engine
        self._disk = disk
        self._role = role
        self._later = later
        self.members = Members()
        """Who has asked."""
        self._lock = threading.Lock()  # Protects the attributes below.
        self._tail: LogTail | None = None
        self._cursors: dict[str, _Kept] = {}
        self._open: dict[int, _OpenSnapshot] = {}
        self._tidies = False
        disk.storage.pinned = self._pinned

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for kept in self._cursors.values():
                kept.cursor.close()
            for opened in self._open.values():
                opened.file.close()
            self._cursors.clear()
            self._open.clear()

    def admit(self, request: Replicate) -> None:
        """Take up a request: check it, note the member, give the store an identity if it has none.

        Raises:
            BadRequest: its fields do not fit.
            Behind: its position is not in this standby's log yet.
            Diverged: its position is not in this store's history.
            NotLeader: the store has no identity, and this server may not give it one.
            ReadOnly: it has none, and none can be written.
        """
        _check(request)
        if not self._engine.keyspace.lineage.terms:
            self._role.require_lead("gives a store its identity")
        self._engine.identify()
        self._require_position(request)
        self.members.note(request)
        if request.sync and request.snapshot is None:
            self._engine.confirm(request.member, request.durable)

    # --- Commits

    def pull(self, request: Replicate) -> CommitsReply | None:
        """Return the commits after a position; None if no further one is on disk.

        Raises:
            Compacted: the log does not reach back to it.
            ReadOnly: the log cannot be read.
        """
        if self._engine.durable_lsn <= request.after:
            return None
        try:
            cursor = self._cursor(request.member, request.after)
            try:
                commits = cursor.read(request.limit)
            except BaseException:
                cursor.close()
                raise
        except OSError as error:
            raise _unreadable("log", error) from error
        self._keep(request.member, cursor)
        return self.answer(commits) if commits else None

    def answer(self, commits: list[bytes]) -> CommitsReply:
        """Return the reply with these commits; with none, it tells how far this server is."""
        lineage = self._lineage()
        engine = self._engine
        return CommitsReply(
            store=lineage.store,
            terms=_plain(lineage),
            lsn=engine.safe_lsn,
            rev=engine.safe_rev,
            time=engine.keyspace.now(),
            age=round(1000 * self._role.age()),
            commits=commits,
            crc=zlib.crc32(b"".join(commits)),
        )

    def _lineage(self) -> Lineage:
        """Return the lineage as far as it is on disk."""
        durable = self._engine.durable_lsn  # Read first: its terms are in the lineage then.
        lineage = self._engine.keyspace.lineage
        terms = tuple(term for term in lineage.terms if term.first_lsn <= durable)
        return lineage._replace(terms=terms)

    def _require_position(self, request: Replicate) -> None:
        """Raise Diverged if a position is not in this store's history, or Behind if it may be."""
        lineage, after = self._lineage(), request.after
        if request.store not in {"", lineage.store}:
            raise Diverged(
                f"field `store`: this is store {lineage.store}, not {request.store}", common=0
            )
        if request.snapshot is not None or after == 0:
            return
        durable = self._engine.durable_lsn
        here, asked = lineage.at(after), (request.term, request.tag)
        if after <= durable and asked == ((0, "") if here is None else (here.number, here.tag)):
            return
        shared = next((each for each in lineage.terms if (each.number, each.tag) == asked), None)
        if shared is not None and shared == lineage.terms[-1] and not self._role.leads:
            raise Behind(
                f"this server is a standby, too, and has not got further than commit {durable}",
                rev=self._engine.durable_rev,
            )
        common = 0
        if shared is not None and after >= shared.first_lsn:
            common = min(after, lineage.end_of(shared, durable))
        raise Diverged(
            f"commit {after} of term {request.term} is not in the history of this store, which is "
            f"at commit {durable} in term {lineage.term}; common: {common}",
            common=common,
            term=lineage.term,
        )

    def _log_tail(self) -> LogTail:
        """Return the log's files. Raises OSError."""
        with self._lock:
            if self._tail is None:
                storage = self._disk.storage
                self._tail = LogTail(self._disk.files, storage.wal_directory, self._disk.wal)
            return self._tail

    def _cursor(self, member: str, after: int) -> TailCursor:
        """Return a member's cursor, or another one at this place, which nobody else has."""
        with self._lock:
            kept = self._cursors.pop(member, None)
        if kept is not None:
            if kept.cursor.next_lsn == after + 1:
                return kept.cursor
            kept.cursor.close()
        return TailCursor(self._log_tail(), after)

    def _keep(self, member: str, cursor: TailCursor) -> None:
        with self._lock:
            other = self._cursors.pop(member, None)
            self._cursors[member] = _Kept(cursor)
        if other is not None:  # Of a second request at the same time.
            other.cursor.close()
        self._tidy_later()

    # --- Snapshots

    def part(self, request: Replicate) -> SnapshotPartReply | Future[Reply]:
        """Return a part of a snapshot, or a future of it if one has to be written first.

        Raises:
            BadRequest: the place is not in the snapshot.
            Compacted: that snapshot is not open any more.
            ReadOnly: none can be read.
            ShuttingDown: one would have to be written.
        """
        number = request.snapshot or 0
        if number or request.offset:  # That of an empty store has revision 0.
            with self._lock:
                opened = self._open.get(number)
                if opened is not None:
                    return self._part_of(opened, request)
            oldest = self._oldest()
            raise Compacted(
                f"snapshot {number} is not kept open any more: begin with the newest one",
                oldest=oldest,
            )
        part = self._newest_part(request)
        return self._ordered(request) if part is None else part

    def _ordered(self, request: Replicate) -> Future[Reply]:
        """Order a snapshot; the future gives its first part."""
        part: Future[Reply] = Future()

        def settle(done: Future[int]) -> None:
            try:
                done.result()
                first = self._newest_part(request)
                if first is None:
                    raise ReadOnly("the log does not go on from the newest snapshot: try again")
            except BaseException as error:
                part.set_exception(error)
            else:
                part.set_result(first)

        self._engine.snapshot(anew=True).add_done_callback(settle)
        return part

    def _newest_part(self, request: Replicate) -> SnapshotPartReply | None:
        """Return the first part of the newest snapshot; None if the log does not go on from it."""
        try:
            tail = self._log_tail()
            with self._lock:
                opened = self._newest(tail)
                if opened is None:
                    return None
                part = self._part_of(opened, request)
        except OSError as error:
            raise _unreadable("snapshot", error) from error
        self._tidy_later()
        return part

    def _newest(self, tail: LogTail) -> _OpenSnapshot | None:
        directory = self._disk.storage.snapshot_directory
        revisions = recovery.snapshots(self._disk.files, directory)
        if not revisions:
            return None
        path = directory / snapshot.file_name(revisions[-1])
        try:
            file = self._disk.files.open_read(path)
        except FileNotFoundError:  # Two newer ones have been written since.
            return None
        head = _head_of(file, path)
        if head is None or not tail.goes_on_from(head.lsn):
            file.close()
            return None
        opened = self._open.get(head.rev)
        if opened is not None and opened.lsn == head.lsn:
            file.close()
            return opened
        if opened is not None:
            opened.file.close()
        self._open[head.rev] = opened = _OpenSnapshot(file, head)
        if len(self._open) > MOST_OPEN:
            least = min(self._open.values(), key=lambda each: each.until)
            self._open.pop(least.rev).file.close()
        return opened

    def _part_of(self, opened: _OpenSnapshot, request: Replicate) -> SnapshotPartReply:
        """Return a part of an open snapshot. `_lock` held."""
        offset = request.offset or 0
        if offset > opened.size:
            raise BadRequest(
                f"field `offset`: {offset} is beyond the end of the snapshot, {opened.size}"
            )
        try:
            data = os.pread(opened.file.fileno(), request.limit, offset)
        except OSError as error:
            raise _unreadable("snapshot", error) from error
        opened.until = time.monotonic() + KEPT_SECONDS
        lineage = self._lineage()
        return SnapshotPartReply(
            store=lineage.store,
            terms=_plain(lineage),
            snapshot=opened.rev,
            lsn=opened.lsn,
            size=opened.size,
            offset=offset,
            data=data,
            crc=zlib.crc32(data),
        )

    def _oldest(self) -> int:
        try:
            return self._log_tail().oldest()
        except OSError as error:
            raise _unreadable("log", error) from error

    def _pinned(self) -> int | None:
        """Return the oldest revision after which somebody still needs the log."""
        now = time.monotonic()
        with self._lock:
            needed = [each.rev for each in self._open.values() if each.until > now]
        return min(needed, default=None)

    def _tidy_later(self) -> None:
        with self._lock:
            if self._tidies or not (self._open or self._cursors):
                return
            self._tidies = True
        self._later(KEPT_SECONDS, self._tidy)

    def _tidy(self) -> None:
        """Close what nobody has asked for in the meantime."""
        now = time.monotonic()
        with self._lock:
            self._tidies = False
            for rev in [each.rev for each in self._open.values() if each.until <= now]:
                self._open.pop(rev).file.close()
            for name in [name for name, each in self._cursors.items() if each.until <= now]:
                self._cursors.pop(name).cursor.close()
        self._tidy_later()


def _check(request: Replicate) -> None:
    """Raise BadRequest if the fields of a request do not fit together."""
    if request.offset is not None and request.snapshot is None:
        raise BadRequest("field `offset` belongs to `snapshot`, which is missing")
    if request.snapshot is None and request.durable > request.after:
        raise BadRequest(f"field `durable`: {request.durable} is beyond `after`, {request.after}")


def _plain(lineage: Lineage) -> list[tuple[int, int, str]]:
    return [(term.number, term.first_lsn, term.tag) for term in lineage.terms]


def _head_of(file: BinaryIO, path: Path) -> Loaded | None:
    """Return what a snapshot says of itself; None if it cannot be handed out."""
    try:
        head = snapshot.head_of(file, path)
    except (DamageError, FormatError) as error:
        _log.error("%s; it is not sent to other servers", error)
        return None
    return head if head.numbered else None


def _unreadable(what: str, error: OSError) -> ReadOnly:
    return ReadOnly(f"the {what} cannot be read: {error.strerror or error}")
