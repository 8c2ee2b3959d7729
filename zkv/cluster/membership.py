"""The thread of a member: it follows the log in etcd, takes over, leads, and hands over.

A follower applies what the leader has appended, writes it to its disk, and watches the leader's
record. It takes over if the leader has released the record, or if it has itself seen the record
unchanged for longer than the lease: see `zkv.cluster.lease`. Taking over is one transaction, which
fails if anybody else has written either record; from then on the former leader can append nothing.
Then the new one reads the log up to its head, begins a term with a first append, and leads.

The watch on etcd only rings a bell: what counts is what `SharedLog.look` returns. So a watch that
is lost, late or wrong costs time and nothing else.

The time of the store is that of its leader. A new one goes on from the last time that it knows, by
its own uptime; if it has waited for the lease, that is a lease later at least, as so far the former
leader may have answered. No system clock counts.

A log in etcd that is older than what this member has on its disk was put back: a backup was
restored, or it is another cluster. A member writes to its disk only what etcd had confirmed, so it
never cuts that off: it stops, and names both positions.

A member for which the log in etcd has been trimmed too far cannot go on from what it has. Its
server stops, and begins anew from a snapshot of another member (`zkv.cluster.joining`).

One thread runs `_run`; other methods may be called by any.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import zlib
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from zkv.cluster.claims import Claims
from zkv.cluster.observer import Observer
from zkv.cluster.records import Fence, LeaderRecord
from zkv.cluster.shared_log import (
    LARGE_PARTS,
    DeposedError,
    NoStoreError,
    Tenure,
    parts_after,
)
from zkv.cluster.space import Space
from zkv.cluster.state_check import StateCheck
from zkv.cluster.upkeep import Upkeep
from zkv.durability import recovery, segment, snapshot
from zkv.durability.committer import CommitGroup
from zkv.errors import DamageError, DataDirError, NotLeader, ReadOnly, ZkvError
from zkv.etcd.errors import EtcdError
from zkv.keyspace.change import unpack
from zkv.keyspace.lineage import TermStart, new_tag
from zkv.replication.applying import apply_commits
from zkv.replication.incoming import BeginAnew

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.cluster.joining import Joining
    from zkv.cluster.records import LogBatch
    from zkv.cluster.shared_log import Seen
    from zkv.engine import Engine, OnDisk
    from zkv.etcd.interface import EtcdWatch, ItemEvent

_log = logging.getLogger("zkv.cluster")

RENEWALS: Final = 3
"""A leader renews its record so often in the length of the lease."""
RETRY_SECONDS: Final = 0.2
"""Pause after etcd has not answered."""


class AnotherHistoryError(DataDirError):
    """The log in etcd is not the one that this member has a copy of."""


class TrimmedError(ZkvError):
    """The log in etcd begins after what this member has."""


class _StoppedError(Exception):
    """The server is stopping, and the log is long: the next start reads the rest."""


class Membership:
    """A member of a replicated store.

    Args:
        engine: the engine; it does not lead yet.
        disk: what it has in its data directory.
        joining: the directory is open, and that of a member.
        advertised: returns the endpoints at which clients find this server.
        stop: called once if this member must not go on; see `failure` and `anew`.
    """

    def __init__(
        self,
        engine: Engine,
        disk: OnDisk,
        joining: Joining,
        advertised: Callable[[], list[str]],
        stop: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._wal = wal = joining.wal
        self._shared = joining.log
        self._file = joining.file
        self._role = role = joining.role
        self._lease = lease = joining.lease
        engine.keyspace.seal(self._not_leading)
        self._advertised = advertised
        self._stop = stop
        self.failure: DataDirError | None = None
        """Set, before `stop` is called, if this member must not go on."""
        self.anew: BeginAnew | None = None
        """Set, before `stop` is called, if it has to begin anew from a snapshot."""
        self.led: Future[None] = Future()
        """Done once this member leads, or has seen another one lead."""
        self.current: Future[None] = Future()
        """Done once this member has had all that etcd had, or has to begin anew; failed with
        `failure`."""
        self._closing = threading.Event()
        self._bell = threading.Event()
        self._tenure: Tenure | None = None
        self._attempts: dict[str, float] = {}
        """Of attempts to take over that may still succeed: when they were sent, by nonce."""
        self._deposed = ""  # The reason, if the log has found out.
        self._renewals = 0
        self._leader_revision = -1  # Not looked yet.
        self._parts = LARGE_PARTS  # To be read of the log at once.
        self._unchanged_since = 0.0
        self._last_crc = _crc_of_newest(engine)
        if self._last_crc is None:
            self._last_crc = _crc_on_disk(disk, engine.last_lsn)
        self._check = StateCheck(engine.keyspace, self._shared, self._file.member, lease.clock)
        self._watch: EtcdWatch | None = None
        self._watch_ended = threading.Event()
        self._reported: str | None = None
        self._answered_at = lease.clock()
        self._behind_since: float | None = None
        self._pin = joining.pin
        self._term = 0
        self._claims = Claims(
            joining.log, joining.file.member, engine, disk, advertised, lease.clock
        )
        self._upkeep = upkeep = Upkeep(
            joining,
            self._claims,
            lambda: self._term,
            lambda: self._tenure,
            lambda: self.observer.seen,
        )
        quota_bytes = joining.store.quota_bytes
        self.observer = Observer(
            joining.log,
            joining.file.member,
            lambda: engine.safe_lsn,
            lease.clock,
            quota_bytes,
            Space(wal, quota_bytes, lambda: upkeep.obstacle).judge,
        )
        """Sees the other members and etcd."""
        wal.now = engine.clock
        wal.on_deposed = self._note_deposed
        role.lag = self.lag
        self._thread = threading.Thread(target=self._run, name="zkv-member")

    def start(self) -> None:
        """Start the threads."""
        self._thread.start()
        self.observer.start()

    def close(self) -> None:
        """Hand over if this member leads, and end its threads.

        One may still wait for etcd: `join` it once the client of etcd is closed.
        """
        self._closing.set()
        self.observer.end()
        self._upkeep.end_soon()
        self._wal.give_up()
        self._bell.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._upkeep.close()

    def join(self) -> None:
        """Wait until no thread is left."""
        self.observer.join()

    def lag(self) -> float | None:
        """Return by how many seconds this member is behind the leader."""
        if self._role.leads:
            return 0.0
        now = self._lease.clock()
        silent = max(0.0, now - self._answered_at - self._lease.seconds / RENEWALS)
        behind = self._behind_since
        return silent if behind is None else max(silent, now - behind)

    def facts(self) -> dict[str, Any]:
        """Return what INFO tells of this member and its lease. Any thread."""
        leads, now = self._role.leads, self._lease.clock()
        silent = 0.0 if leads else now - self._unchanged_since
        return {
            "member": self._file.member,
            "leader": self._advertised() if leads else self._role.leader,
            "leader_seconds": None if self._leader_revision == -1 else round(silent, 3),
            "lease": self._lease.seconds,
            "lease_seconds": round(self._lease.left, 3),
            "answered_seconds": round(max(0.0, now - self._answered_at), 3),
        }

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._follow() if self._tenure is None else self._lead_on(self._tenure)
                self._reported = None
            except EtcdError as error:
                self._complain(str(error))
            except ReadOnly as error:
                self._step_down(error.message)
                self._complain(error.message)
            except _StoppedError:
                pass
            except TrimmedError as error:
                self._begin_anew(str(error))
            except NoStoreError as error:
                self._fail(self._lost_store(error))
            except DataDirError as error:
                self._fail(error)
            except BaseException:  # A bug, or no memory; the thread goes on.
                _log.critical("the member failed; it goes on", exc_info=True)
                self._step_down("it failed")
                self._closing.wait(RETRY_SECONDS)
        self._end_watch()
        if self._tenure is not None:
            self._hand_over(self._tenure)

    # --- Following

    def _follow(self) -> None:
        """Apply what there is, and take over if the leader is gone; then wait for more.

        Raises EtcdError, ReadOnly, DataDirError.
        """
        self._bell.clear()
        self._ensure_watch()
        seen = self._shared.look()
        now = self._lease.clock()
        self._note(seen, now)
        self._require_history(seen)
        self._claim(seen)
        self._require_log(seen)
        self._catch_up(seen.head.lsn)
        if (sent_at := self._attempts.get(seen.fence.nonce)) is not None:
            self._begin(seen, sent_at)
            return
        if not self.current.done():
            self.current.set_result(None)
        if self._pin is not None:
            self._pin.release()
            self._pin = None
        if self._check.is_open and seen.leader is not None:
            self._check.verdict(seen.leader.member)
        if self._may_take_over(seen, now):
            self._take_over(seen)
            return
        left = self._unchanged_since + self._lease.patience - now
        self._bell.wait(max(0.0, min(left, self._lease.seconds / RENEWALS)))

    def _note(self, seen: Seen, now: float) -> None:
        leader = seen.leader
        self._answered_at = now
        self._term = seen.fence.term
        self._engine.clock.follow(max(seen.head.time, 0 if leader is None else leader.time))
        if seen.leader_revision != self._leader_revision:
            is_first, own = self._leader_revision == -1, self._file.member
            self._leader_revision, self._unchanged_since = seen.leader_revision, now
            # The first look may find what a leader has left that is gone.
            if not (is_first or leader is None or leader.released or leader.member == own):
                self._note_led()
        if self._tenure is None:
            self._role.leader = None if leader is None or leader.released else leader.endpoints

    def _require_history(self, seen: Seen) -> None:
        """Raise DataDirError if the log in etcd is not the one that this member has a copy of."""
        here, head, file = self._engine.last_lsn, seen.head, self._file
        if seen.store.store != file.store:
            raise DataDirError(
                f"the store in etcd is {seen.store.store}, and this directory is a member of "
                f"{file.store}"
            )
        if seen.cluster != file.cluster:
            raise DataDirError(
                f"this is etcd cluster {seen.cluster:x}; this directory is a member of a store in "
                f"cluster {file.cluster:x}: nothing is cut off"
            )
        if here > head.lsn:
            raise self._set_back(head.lsn)
        if here == head.lsn and head.crc and self._last_crc not in {None, head.crc}:
            raise self._another_history(here, head.lsn)

    def _set_back(self, head: int) -> DataDirError:
        return AnotherHistoryError(
            f"etcd has the log up to number {head} only, and this directory up to "
            f"{self._engine.safe_lsn}: etcd has lost data, or was restored from a backup; nothing "
            f"is cut off"
        )

    def _another_history(self, lsn: int, head: int) -> DataDirError:
        return AnotherHistoryError(
            f"commit {lsn} in etcd, which has the log up to number {head}, is not the one in this "
            f"directory, which has it up to {self._engine.last_lsn}: etcd has lost data, or was "
            f"restored from a backup, and has other writes since; nothing is cut off"
        )

    def _lost_store(self, error: NoStoreError) -> DataDirError:
        file = self._file
        return DataDirError(
            f"{error}; this directory is that of member {file.member} of store {file.store}, with "
            f"the log up to number {self._engine.last_lsn}: etcd has lost it, or this is another "
            f"one; nothing is cut off"
        )

    def _claim(self, seen: Seen) -> None:
        """Say what this disk really holds, before anything else. Raises EtcdError."""
        if not self._claims.begun:
            self._claims.begin(seen.fence.term)
            self._upkeep.start()

    def _require_log(self, seen: Seen) -> None:
        """Raise TrimmedError if the log does not go on from what is here."""
        here = self._engine.last_lsn
        if here + 1 < seen.first.lsn:
            raise TrimmedError(
                f"the log in etcd begins at number {seen.first.lsn}, and this directory has it up "
                f"to {here}"
            )

    def _read(self, head: int) -> list[LogBatch]:
        """Read some of what comes next. Raises EtcdError, DamageError, TrimmedError."""
        try:
            batches = self._shared.read(self._engine.last_lsn, head, self._parts)
        except DamageError:
            self._require_log(self._shared.look())  # It may have been trimmed since.
            raise
        self._parts = parts_after(batches)
        return batches

    def _catch_up(self, head: int) -> None:
        """Apply everything up to a head that was seen. Raises _StoppedError."""
        engine = self._engine
        while engine.last_lsn < head:
            if self._closing.is_set() and not self._attempts:
                raise _StoppedError
            if self._behind_since is None:
                self._behind_since = self._lease.clock()
            for batch in self._read(head):
                if self._last_crc is not None and batch.before not in {0, self._last_crc}:
                    raise self._another_history(batch.first_lsn - 1, head)
                self._apply(batch)
                engine.log.commit(engine.last_lsn, durable=False)
                engine.clock.follow(batch.time)
                self._last_crc = batch.head.crc
        self._behind_since = None

    def _apply(self, batch: LogBatch) -> None:
        """Apply a batch; in between take a view, if the leader wants states to be compared."""
        commits, engine = batch.commits(), self._engine
        before = batch.check_at - batch.first_lsn + 1  # Commits up to the place of the view.
        try:
            if batch.check_at and batch.check_at >= engine.last_lsn:
                apply_commits(engine, commits[:before])
                self._check.begin(engine.keyspace.view())
                commits = commits[before:]
            apply_commits(engine, commits)
        except ValueError as error:
            raise DamageError(f"etcd, log number {batch.first_lsn}: {error}") from None

    def _ensure_watch(self) -> None:
        """Have the bell rung whenever the store's keys change."""
        if self._watch is not None and not self._watch_ended.is_set():
            return
        keys, over = self._shared.keys, threading.Event()

        def changed(_revision: int, _events: list[ItemEvent]) -> None:
            self._bell.set()

        def ended(_: EtcdError) -> None:
            over.set()
            self._bell.set()

        etcd, self._watch_ended = self._shared.etcd, over
        # From `fence` to `leader`, with `head` in between: without the commits, and the members.
        self._watch = etcd.watch(keys.fence, keys.leader + b"\0", 0, changed, ended)

    def _end_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    # --- Taking over

    def _may_take_over(self, seen: Seen, now: float) -> bool:
        if not self._wal.takes_commits:  # Its disk is full, or fails.
            return False
        leader = seen.leader
        if leader is None or leader.released:
            return True
        return now - self._unchanged_since >= self._lease.patience

    def _take_over(self, seen: Seen) -> None:
        """Try to take over. Raises EtcdError if nobody knows if that has succeeded."""
        engine, lease = self._engine, self._lease
        if seen.leader is not None and not seen.leader.released:
            engine.clock.follow(seen.leader.time + round(lease.seconds * 1000))
        fence = Fence(seen.fence.term + 1, self._file.member, secrets.token_hex(8))
        self._renewals = 0
        sent_at = self._attempts[fence.nonce] = lease.clock()
        if not self._shared.take_over(seen, fence, self._record(fence.term)):
            del self._attempts[fence.nonce]
            return
        seen = self._shared.look()
        if seen.fence.nonce == fence.nonce:
            self._begin(seen, sent_at)

    def _begin(self, seen: Seen, sent_at: float) -> None:
        """Begin a term, and lead: the fence is this member's.

        Args:
            seen: what is in etcd.
            sent_at: when the fence was sent there, by the lease's clock.

        Raises EtcdError; ReadOnly if it cannot lead.
        """
        engine, keyspace, lease = self._engine, self._engine.keyspace, self._lease
        self._catch_up(seen.head.lsn)
        tenure = Tenure(self._shared, seen)
        try:
            tenure.clear()
            lease.begin(sent_at)
            if not lease.held:
                self._renew(tenure)
        except DeposedError:
            self._attempts.clear()
            return
        self._end_watch()  # It would ring with each append.
        self._tenure, self._deposed = tenure, ""
        self._attempts.clear()
        self._term = tenure.term
        self._wal.lead(tenure)
        with keyspace.lock:
            start = TermStart(seen.store.store, tenure.term, new_tag())
            lsn = keyspace.begin_term(start, keyspace.rev)
        engine.log.commit(lsn, durable=True)
        engine.lead()
        keyspace.unseal()
        self._role.begin_to_lead()
        self._note_led()
        _log.warning("this member leads: term %d, after log number %d", tenure.term, seen.head.lsn)

    # --- Leading

    def _lead_on(self, tenure: Tenure) -> None:
        """Renew the record, and wait until it has to be renewed again.

        Raises EtcdError, ReadOnly.
        """
        self._bell.clear()
        if self._deposed:
            raise ReadOnly(self._deposed)
        began = self._lease.clock()
        try:
            self._renew(tenure)
        except DeposedError as error:
            raise ReadOnly(str(error)) from error
        self._send_what_waits()
        self._check.verdict(self._file.member)
        if self._check.is_due:
            self._check.begin(self._wal.view_to_compare(self._engine.keyspace.view))
        left = began + self._lease.seconds / RENEWALS - self._lease.clock()
        self._bell.wait(max(0.0, left))

    def _renew(self, tenure: Tenure) -> None:
        self._renewals += 1
        sent_at, confirmed = self._lease.clock(), tenure.head.lsn
        head = tenure.renew(self._record(tenure.term))
        if head.lsn < confirmed:
            raise self._set_back(head.lsn)
        self._lease.extend(sent_at)
        self._answered_at = sent_at

    def _send_what_waits(self) -> None:
        """Have commits sent for which nobody may wait any more, now that etcd answers."""
        engine = self._engine
        if engine.safe_lsn < engine.last_lsn:
            group = CommitGroup(engine.epoch)
            group.lsn = engine.last_lsn
            engine.submit(group)

    def _record(self, term: int, released: bool = False) -> LeaderRecord:
        return LeaderRecord(
            term=term,
            member=self._file.member,
            endpoints=self._advertised(),
            renewals=self._renewals,
            time=self._engine.clock(),
            released=released,
        )

    def _note_led(self) -> None:
        if not self.led.done():
            self.led.set_result(None)

    def _note_deposed(self, reason: str) -> None:
        self._deposed = reason
        self._bell.set()

    def _step_down(self, reason: str) -> None:
        """Lead no more, and roll back what etcd has not confirmed."""
        if self._tenure is None:  # Its disk may have failed in the middle of a batch.
            self._last_crc = _crc_of_newest(self._engine)
            return
        tenure = self._tenure
        self._yield()
        self._wal.follow(reason)
        self._check.forget()
        head = tenure.head  # That of this disk, unless the disk has failed.
        at_head = head.lsn == self._engine.last_lsn and head.crc
        self._last_crc = head.crc if at_head else _crc_of_newest(self._engine)
        self._tenure = None
        self._attempts.clear()
        _log.warning("this member leads no more: %s", reason)
        if not self._wal.takes_commits:  # Its disk fails, so nobody else has taken over.
            with contextlib.suppress(DeposedError, EtcdError, DataDirError):
                tenure.renew(self._record(tenure.term, released=True))

    def _yield(self) -> None:
        """Take no more requests that only a leader answers."""
        self._lease.end()
        self._refuse_requests()

    def _refuse_requests(self) -> None:
        self._role.yield_to([])
        self._role.lag = self.lag
        self._engine.keyspace.seal(self._not_leading)

    def _not_leading(self) -> NotLeader:
        return self._role.error("takes writes")

    def _hand_over(self, tenure: Tenure) -> None:
        """Have another member take over at once, if etcd answers; else after the lease."""
        self._refuse_requests()
        try:
            self._wal.flush()
            self._await_answers()
            self._lease.end()
            tenure.renew(self._record(tenure.term, released=True))
        except (ReadOnly, DeposedError, EtcdError, DataDirError) as error:
            self._lease.end()
            _log.warning("not handed over: %s", error)
        else:
            self._wal.follow("the server is stopping")

    def _await_answers(self) -> None:
        """Wait a moment, until those who wait for commits have been told: the epoch ends next."""
        told, group = threading.Event(), CommitGroup(self._engine.epoch)
        group.on_completion(told.set)
        self._engine.submit(group)
        told.wait(RETRY_SECONDS)

    # --- Failures

    def _complain(self, reason: str) -> None:
        """Say why, once, and wait a moment."""
        if self._reported is None and not self._closing.is_set():
            self._reported = reason
            _log.warning("%s; trying again", reason)
        self._closing.wait(RETRY_SECONDS)

    def _begin_anew(self, reason: str) -> None:
        """End this server; another one goes on from a snapshot."""
        keyspace = self._engine.keyspace
        with keyspace.lock:
            lineage, lsn = keyspace.lineage, self._engine.last_lsn
        self._yield()
        self.anew = BeginAnew(reason, False, 0, lineage, lsn)
        self._closing.set()
        if not self.current.done():
            self.current.set_result(None)
        self._stop()

    def _fail(self, error: DataDirError) -> None:
        """End this server: nothing that it could answer would be right."""
        _log.critical("%s", error)
        if isinstance(error, AnotherHistoryError):
            self._upkeep.close()  # No other thread uses the claims then.
            with contextlib.suppress(EtcdError):
                self._claims.withdraw()
        self._yield()
        with contextlib.suppress(ReadOnly):
            self._wal.follow(str(error))
        self._tenure = None
        self.failure = error
        self._closing.set()
        if not self.current.done():
            self.current.set_exception(self.failure)
        self._stop()


def _crc_on_disk(disk: OnDisk, lsn: int) -> int | None:
    """Return the checksum of a commit that may have no revision; None if it is not in the log.

    Nothing is written yet: the newest segment ends with the newest commit.
    """
    place, files, crc = disk.storage.wal_directory, disk.files, None
    try:
        first = recovery.segments(files, place)[-1]
        header = segment.read_header(files, place / segment.file_name(first))
        if header is not None:
            before = snapshot.Loaded(rev=first - 1, lsn=header.first_lsn - 1)
            for commit in recovery.LogReader(files, place, before).commits():
                crc = zlib.crc32(commit.payload) if commit.lsn == lsn else None
    except (IndexError, OSError, DamageError, DataDirError):
        return None  # Recovery has read what counts.
    return crc


def _crc_of_newest(engine: Engine) -> int | None:
    """Return the checksum of the newest commit; None if it has no revision of its own.

    Likewise if only a snapshot has it.
    """
    keyspace = engine.keyspace
    with keyspace.lock:
        newest = keyspace.history.since(keyspace.rev - 1, 1)
    if not newest or unpack(newest[0].payload).lsn != engine.last_lsn:
        return None
    return zlib.crc32(newest[0].payload)
