"""The engine: a keyspace, its log and its snapshots, without any socket.

Opening it locks the data directory and recovers the data; closing it saves everything. In between
it is the only place that knows which revisions are safe to reveal to clients (`safe_rev`).

The same engine works with any log (`zkv.keyspace.log.CommitLog`). Without a data directory the log
is a `MemoryLog`, and there are no recovery, no committer and no snapshots.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zkv.activity import Activities, Activity
from zkv.clock import Clock
from zkv.durability import formats
from zkv.durability.committer import CommitGroup, Committer, settle
from zkv.durability.files import Files
from zkv.durability.snapshotter import Snapshotter
from zkv.durability.storage import Storage
from zkv.durability.wal import Wal
from zkv.errors import BadRequest, DataDirError, ReadOnly
from zkv.keyspace import Expirer, History, Keyspace, MemoryLog, Sessions

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from zkv.config import DurabilitySettings, LimitSettings
    from zkv.durability.recovery import Recovered
    from zkv.durability.segment import SegmentEnd
    from zkv.keyspace import CommitLog

    OpenLog = Callable[[Files, Path, int, int, SegmentEnd | None, int], Wal]
    """Opens a log: the file operations, the directory, the recovered revision and log number, where
    the newest segment goes on, and the size of a segment."""

UNSAFE_BYTES: Final = 32 * 1024 * 1024
"""Bytes of commits that may wait for the disk before no more requests are taken up."""
KEPT_BYTES: Final = 1024 * 1024
"""Bytes of safe commits for which it is worth to take the lock and free what undoes them."""


class OnDisk:
    """The parts that a data directory needs: files, the log, and the threads that write them.

    Args:
        settings: the durability settings, with a ``data_dir``.
        data_dir: the directory.
        files: access to the file system.
        open_log: opens a log that depends on others; None = it is this server's own.

    Raises:
        LockedError: another server uses the data directory.
        DamageError: the data is damaged.
        DataDirError: the directory cannot be used.
    """

    def __init__(
        self,
        settings: DurabilitySettings,
        data_dir: str,
        files: Files,
        open_log: OpenLog | None = None,
    ) -> None:
        self._settings = settings
        self._open_log = open_log
        self.wal: Wal
        self.files = files
        self.storage = Storage(_absolute(data_dir), files)

    def recover(self, sessions: Sessions, history: History) -> Recovered:
        """Load the data, and open the log after it."""
        recovered = self.storage.load(sessions, history)
        settings = self._settings
        try:
            place = self.storage.wal_directory
            rev, lsn, end = recovered.rev, recovered.lsn, recovered.end
            size, each = settings.segment_bytes, settings.fsync == "always"
            if self._open_log is not None:
                self.wal = self._open_log(self.files, place, rev, lsn, end, size)
            else:
                self.wal = Wal(self.files, place, rev, lsn, end, size, each)
        except OSError as error:
            place = error.filename or self.storage.wal_directory
            raise DataDirError(f"{place}: {error.strerror or error}") from error
        self.wal.require_place = self.storage.require_place
        self.wal.on_closed = self.storage.expect
        return recovered

    def prepare(self, keyspace: Keyspace, saved_rev: int, activities: Activities) -> None:
        """Create the threads."""
        self.wal.beginning_segment = activities.new("segment")
        settings = self._settings
        by_time = settings.fsync == "interval" or self.wal.lasts_elsewhere
        interval = settings.fsync_interval if by_time else None
        self.committer = Committer(self.wal, interval)
        self.wal.on_unsynced = lambda: self.committer.call(self.wal.write_back)
        self.snapshotter = Snapshotter(
            keyspace,
            self.storage,
            self.wal,
            saved_rev,
            settings.snapshot_interval,
            activities.new("snapshot"),
        )


class Engine:
    """A keyspace with its log and snapshots.

    Args:
        settings: the durability settings; without a ``data_dir``, data is only in memory.
        limits: bounds of sessions and history.
        files: access to the file system.
        now: the clock, Unix time in ms; by default one that is never earlier than the data.
        activities: gets those of the log and of snapshots.
        leads: True if the server decides what expires, and when; False for a standby.
        open_log: opens a log of which others decide what is safe; None = the log is this server's
            own.

    Raises:
        LockedError: another server uses the data directory.
        DamageError: the data is damaged.
        DataDirError: the directory cannot be used.
    """

    def __init__(
        self,
        settings: DurabilitySettings,
        limits: LimitSettings,
        files: Files | None = None,
        now: Callable[[], int] | None = None,
        activities: Activities | None = None,
        leads: bool = True,
        open_log: OpenLog | None = None,
    ) -> None:
        self._leads = leads
        self.clock = Clock()
        """The clock by which entries expire, unless it was passed in."""
        self.settings = settings
        self._activities = activities or Activities()
        self._started = False
        self._forgotten = 0  # Bytes of commits that were safe when that was last forgotten.
        self.lasting = settings.data_dir is not None
        """True if there is a disk that writes can be on."""
        self.syncs_each = self.lasting and settings.fsync == "always"
        """True if commits are safe only once a disk has them: that of this server, under the policy
        `always`, or those of others."""
        self.log: CommitLog = MemoryLog()
        """The log of the commits."""
        self.disk: OnDisk | None = None
        """The parts that a data directory needs; None if there is none."""
        sessions, history = _remembering(limits)
        if settings.data_dir is None:
            self.keyspace = Keyspace(
                now or self.clock, sessions, history, log=self.log, max_memory=limits.max_memory
            )
            self._expirer = Expirer(self.keyspace, self._secure_removals)
            return
        self.disk = OnDisk(settings, settings.data_dir, files or Files(), open_log)
        try:
            self._open(self.disk, sessions, history, now, limits.max_memory)
        except BaseException:
            self.disk.storage.close()
            raise

    def _open(
        self,
        disk: OnDisk,
        sessions: Sessions,
        history: History,
        now: Callable[[], int] | None,
        max_memory: int,
    ) -> None:
        recovered = disk.recover(sessions, history)
        self.log = log = disk.wal
        self.syncs_each = self.syncs_each or log.lasts_elsewhere
        self.clock = Clock(recovered.time, follows=not self._leads)
        clock = now or self.clock
        self.keyspace = Keyspace(
            clock,
            sessions,
            history,
            recovered.entries,
            recovered.rev,
            log,
            max_memory,
            recovered.lineage,
        )
        log.attach(self.keyspace.lock, self.keyspace.roll_back)
        self._expirer = Expirer(self.keyspace, self._secure_removals)
        disk.prepare(self.keyspace, recovered.snapshot_rev, self._activities)

    def start(self) -> None:
        """Start the threads."""
        self._started = True
        if self.disk is not None:
            self.disk.committer.start()
            self.disk.snapshotter.start()
        if self._leads:
            if self.disk is not None:
                if self.disk.wal.awaits_standbys:
                    self.identify()  # Nobody can confirm anything without an identity.
                self.disk.wal.begin_to_lead(starts=True)
            if self.lasting and not self.syncs_each:
                self._begin_term_if_copied()
            self._expirer.start()

    def _begin_term_if_copied(self) -> None:
        """Begin a term if others may have copied this store: it may have lost what they have.

        Without it, commits that a power cut took from here would get their numbers again, and a
        standby would take its own for them.
        """
        with self.keyspace.lock:
            lineage = self.keyspace.lineage
            if lineage.store:
                self.keyspace.begin_term(lineage.next_start(), self.keyspace.rev)

    def lead(self) -> None:
        """Decide from now on what expires, and when."""
        self._leads = True
        if self.disk is not None:
            self.disk.wal.begin_to_lead(starts=False)
        self._expirer.start()

    @property
    def safe_rev(self) -> int:
        """The newest safe revision: it may be revealed, and will not be rolled back."""
        return self.log.safe_rev

    @property
    def reached_rev(self) -> int:
        """The newest revision that the store has and that is safe. Takes the keyspace's lock."""
        with self.keyspace.lock:
            return min(self.keyspace.rev, self.log.safe_rev)

    @property
    def safe_lsn(self) -> int:
        """The log number of the newest safe commit."""
        return self.log.safe_lsn

    @property
    def last_lsn(self) -> int:
        """The log number of the newest commit."""
        return self.log.last_lsn

    @property
    def durable_rev(self) -> int:
        """The newest revision on disk; of a log that others have: on theirs."""
        elsewhere = self.disk is not None and self.disk.wal.lasts_elsewhere
        return self.log.safe_rev if elsewhere else self.log.durable_rev

    @property
    def durable_lsn(self) -> int:
        """The log number of the newest commit on disk; of the newest safe one if there is none."""
        return self.log.safe_lsn if self.disk is None else self.disk.wal.durable_lsn

    @property
    def epoch(self) -> int:
        """The number of rollbacks so far."""
        return self.log.epoch

    def survived(self, epoch: int) -> tuple[int, int]:
        """Return the revision and log number that survived the end of ``epoch``: see `Wal`."""
        return self.log.survived(epoch)

    @property
    def takes_writes(self) -> bool:
        """True unless writes are refused, because the log cannot be written or the server stops."""
        with self.keyspace.lock:
            return self.keyspace.takes_writes

    @property
    def writing_snapshot(self) -> Activity | None:
        """Goes on while a snapshot is written; None if none ever is."""
        return None if self.disk is None else self.disk.snapshotter.writing

    @property
    def syncs_quickly(self) -> bool:
        """True if recent syncs were quick, and no snapshot is being written."""
        writing = self.writing_snapshot
        return self.log.syncs_quickly and (writing is None or writing.since is None)

    def secure(self, patient: bool = True) -> None:
        """Make all commits safe, if the policy requires no sync for that; otherwise do nothing.

        Args:
            patient: wait for other threads, which may wait for the disk: see `Wal.commit`.

        Raises ReadOnly if they cannot be made safe, and have been rolled back.
        """
        if not self.syncs_each:
            self.log.commit(self.log.last_lsn, durable=False, patient=patient)

    def sync(self) -> bool:
        """Make all commits durable, unless that takes waiting; return True if it is done.

        Raises ReadOnly if they cannot be made durable, and have been rolled back.
        """
        return self.log.commit(self.log.last_lsn, durable=True, patient=False)

    def confirm(self, standby: str, lsn: int) -> None:
        """Note what a standby has on its disk, if commits have to be confirmed. Any thread."""
        if self.disk is not None:
            self.disk.wal.confirm(standby, lsn)

    @property
    def needs_confirmation(self) -> bool:
        """True if commits are safe only once others have confirmed them: standbys, or etcd."""
        return self.disk is not None and self.disk.wal.needs_confirmation

    def flush(self) -> int:
        """Put all commits on disk, and return the newest revision. Raises ReadOnly."""
        if self.disk is not None:
            self.disk.wal.flush()
        with self.keyspace.lock:
            return self.keyspace.rev

    def submit(self, group: CommitGroup) -> None:
        """Make another thread complete ``group`` once its commits are safe, or on disk."""
        if self.disk is None:
            self.settle(group)
        else:
            self.disk.committer.submit(group)

    def settle(self, group: CommitGroup, patient: bool = True) -> bool:
        """Complete ``group`` in this thread, which may wait for the disk; return True if done.

        Args:
            group: the group.
            patient: wait for other threads that write, too; then it is always completed.
        """
        return settle(self.log, [group], patient)

    def _secure_removals(self) -> None:
        """Make commits safe that no client waits for. Raises ReadOnly."""
        group = CommitGroup(self.epoch)
        self.secure()
        if self.log.safe_lsn < self.log.last_lsn:
            group.lsn = self.log.last_lsn
            self.submit(group)

    def identify(self) -> None:
        """Give the store an identity, on disk, if it has none. Waits for the disk if so.

        Raises ReadOnly if that cannot be written.
        """
        keyspace = self.keyspace
        terms = keyspace.lineage.terms
        if terms and terms[0].first_lsn <= self.durable_lsn:
            return
        with keyspace.lock:
            if not keyspace.lineage.terms:
                keyspace.begin_term(keyspace.lineage.next_start(), keyspace.rev)
            lsn = keyspace.lineage.terms[0].first_lsn
        self.log.commit(lsn, durable=True)
        if not keyspace.lineage.terms:  # It was rolled back, and others have that number now.
            raise ReadOnly("the identity of the store could not be written")

    def when_safe(self, *callbacks: Callable[[], None], listeners: tuple[object, ...] = ()) -> None:
        """Have these called, in any thread, whenever commits have become safe.

        Args:
            callbacks: what is called.
            listeners: while none of them is true, the front's own commits need not be told.
        """
        log, history = self.log, self.keyspace.history
        has_disk = self.disk is not None  # Else nothing is to be forgotten, and the lock is held.

        def on_safe() -> None:
            if has_disk and (history.has_surplus or log.safe_bytes - self._forgotten > KEPT_BYTES):
                self._forget_safe()
            for callback in callbacks:
                callback()

        self.log.on_safe = on_safe
        self.log.listeners = listeners

    def has_much_unsafe(self) -> bool:
        """Return True if too much waits for the disk for more requests to be taken up.

        What waits is held in memory several times: in the table, the history, and with requests.
        """
        log = self.log
        return log.appended_bytes - log.kept_bytes > UNSAFE_BYTES

    def _forget_safe(self) -> None:
        """Free what was kept for a rollback. If that is little, the next commit does it."""
        self._forgotten = self.log.safe_bytes
        self.keyspace.forget_safe()

    def snapshot(self, anew: bool = False) -> Future[int]:
        """Order a snapshot of everything committed so far; the future gives its revision.

        Args:
            anew: write one even if nothing has changed since the newest.

        Raises BadRequest if there is no data directory.
        """
        if self.disk is None:
            raise BadRequest("this server keeps its data in memory alone: it has no snapshots")
        return self.disk.snapshotter.snapshot(anew)

    def keep_log(self) -> None:
        """Remove nothing more of the log, whatever snapshots are written."""
        if self.disk is not None:
            self.disk.storage.pinned = lambda: 0

    def save(self) -> int:
        """Refuse writes from now on, and write the final snapshot; return the last revision.

        Raises ReadOnly if not everything could be saved.
        """
        rev = self.keyspace.end()
        self._expirer.close()
        return rev if self.disk is None else self.disk.snapshotter.close()

    def close(self) -> None:
        """Release the data directory. The engine must not be used any more."""
        if self.disk is not None and self._started:
            self.disk.committer.close()
        self.log.close()
        if self.disk is not None:
            self.disk.storage.close()

    def statistics(self) -> dict[str, Any]:
        """Return INFO's ``durability``: settings, and figures of the log and snapshots."""
        if self.disk is None:
            return {"data_dir": None}
        settings: dict[str, Any] = msgspec.to_builtins(self.settings)
        wal = self.disk.wal
        log = {
            "format": formats.CURRENT, "log_bytes": wal.bytes_written, "syncs": wal.syncs,
            "refusal": wal.refusal,
        }  # fmt: skip
        return settings | log | self.disk.snapshotter.statistics()

    def activity(self) -> dict[str, Any]:
        """Return INFO's fields in ``stats`` about the lock, expiry, and log and snapshots."""
        activity: dict[str, Any] = {
            "lock_wait": self.keyspace.lock.waits.report(),
            "expired": self.keyspace.expired,
            "evicted": self.keyspace.evicted,
        }
        if self.disk is None:
            return activity
        wal, storage = self.disk.wal, self.disk.storage
        return activity | {
            "fsync": wal.sync_times.report(),
            "group_commits": wal.commits_per_sync.report(),
            "log_bytes": storage.closed_log_size() + wal.segment_size,
            "read_only_since": wal.refused_since,
            "snapshot": self.disk.snapshotter.condition(),
        }


def _absolute(directory: str) -> Path:
    """Make the path independent of the working directory. Raises DataDirError."""
    try:
        return Path(directory).absolute()
    except OSError as error:
        why = f"{directory}: the working directory cannot be found: {error.strerror}"
        raise DataDirError(why) from error


def _remembering(limits: LimitSettings) -> tuple[Sessions, History]:
    sessions = Sessions(
        limits.session_window,
        int(limits.session_ttl * 1000),
        limits.max_sessions,
        limits.session_bytes,
    )
    return sessions, History(limits.history, limits.history_bytes)
