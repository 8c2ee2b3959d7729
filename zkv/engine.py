"""The engine: a store and the log that makes it last, without any socket.

Opening it takes the data directory's lock and recovers what is there; closing it saves everything.
In between it is the one place that knows when a revision may be told to a client (`safe_rev`).

There is one engine, over any log (`zkv.keyspace.log.CommitLog`). Without a data directory that is a
`MemoryLog`, and there is nothing to recover, to commit in another thread, or to take snapshots of.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from zkv.clock import Clock
from zkv.durability.committer import CommitGroup, Committer, settle
from zkv.durability.files import Files
from zkv.durability.snapshotter import Snapshotter
from zkv.durability.storage import Storage
from zkv.durability.wal import Wal
from zkv.errors import BadRequest, DataDirError
from zkv.keyspace import Expirer, History, Keyspace, MemoryLog, Sessions

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from zkv.config import DurabilitySettings, LimitSettings
    from zkv.durability.recovery import Recovered
    from zkv.keyspace import CommitLog


class _OnDisk:
    """What a data directory needs besides a log of its own: files, and threads that write them.

    Args:
        settings: where and how data is kept; with a ``data_dir``.
        files: the door to the file system.

    Raises:
        LockedError: another server holds the data directory.
        DamageError: what is there is damaged.
        DataDirError: the directory cannot be used.
    """

    def __init__(self, settings: DurabilitySettings, data_dir: str, files: Files) -> None:
        self._settings = settings
        self._files = files
        self.storage = Storage(_absolute(data_dir), files)

    def recover(self, sessions: Sessions, history: History) -> Recovered:
        """What is there; the log goes on behind it."""
        recovered = self.storage.load(sessions, history)
        settings = self._settings
        try:
            self.wal = Wal(
                self._files,
                self.storage.wal_directory,
                recovered.rev,
                recovered.end,
                settings.segment_bytes,
                settings.fsync == "always",
            )
        except OSError as error:
            place = error.filename or self.storage.wal_directory
            raise DataDirError(f"{place}: {error.strerror or error}") from error
        self.wal.require_place = self.storage.require_place
        self.wal.on_closed = self.storage.expect
        return recovered

    def prepare(self, keyspace: Keyspace, saved_rev: int) -> None:
        """Make the threads."""
        settings = self._settings
        interval = settings.fsync_interval if settings.fsync == "interval" else None
        self.committer = Committer(self.wal, interval)
        self.snapshotter = Snapshotter(
            keyspace, self.storage, self.wal, saved_rev, settings.snapshot_interval
        )


class Engine:
    """A keyspace and what makes it last.

    Args:
        settings: where and how data is kept; without a ``data_dir``, in memory alone.
        limits: how much is remembered of sessions and changes.
        files: the door to the file system.
        now: the clock, Unix time in ms; by default one that goes on where the data ends.

    Raises:
        LockedError: another server holds the data directory.
        DamageError: what is there is damaged.
        DataDirError: the directory cannot be used.
    """

    def __init__(
        self,
        settings: DurabilitySettings,
        limits: LimitSettings,
        files: Files | None = None,
        now: Callable[[], int] | None = None,
    ) -> None:
        self.settings = settings
        self._started = False
        self.lasting = settings.data_dir is not None
        """Whether a write can be on disk."""
        self.syncs_each = self.lasting and settings.fsync == "always"
        """Whether what is safe is on disk."""
        self._log: CommitLog = MemoryLog()
        self._disk: _OnDisk | None = None
        sessions, history = _remembering(limits)
        if settings.data_dir is None:
            self.keyspace = Keyspace(now or Clock(), sessions, history, log=self._log)
            self._expirer = Expirer(self.keyspace, self._secure_removals)
            return
        self._disk = _OnDisk(settings, settings.data_dir, files or Files())
        try:
            self._open(self._disk, sessions, history, now)
        except BaseException:
            self._disk.storage.close()
            raise

    def _open(
        self,
        disk: _OnDisk,
        sessions: Sessions,
        history: History,
        now: Callable[[], int] | None,
    ) -> None:
        recovered = disk.recover(sessions, history)
        self._log = log = disk.wal
        clock = now or Clock(recovered.time)
        self.keyspace = Keyspace(clock, sessions, history, recovered.entries, recovered.rev, log)
        log.attach(self.keyspace.lock, self.keyspace.roll_back)
        self._expirer = Expirer(self.keyspace, self._secure_removals)
        disk.prepare(self.keyspace, recovered.snapshot_rev)

    def start(self) -> None:
        """Start the threads."""
        self._started = True
        if self._disk is not None:
            self._disk.committer.start()
            self._disk.snapshotter.start()
        self._expirer.start()

    @property
    def safe_rev(self) -> int:
        """The newest revision that may be told to a client, and will not be rolled back."""
        return self._log.safe_rev

    @property
    def safe_lsn(self) -> int:
        """The log's number of the newest commit that will not be rolled back."""
        return self._log.safe_lsn

    @property
    def last_lsn(self) -> int:
        """The log's number of the newest commit."""
        return self._log.last_lsn

    @property
    def durable_rev(self) -> int:
        """The newest revision that is on disk."""
        return self._log.durable_rev

    @property
    def epoch(self) -> int:
        """How often something has been rolled back."""
        return self._log.epoch

    def survived(self, epoch: int) -> tuple[int, int]:
        """What was not rolled back when ``epoch`` ended: see `Wal.survived`."""
        return self._log.survived(epoch)

    @property
    def syncs_quickly(self) -> bool:
        """Whether a sync may well take next to no time: recent ones did, and the disk is free."""
        busy = self._disk is not None and self._disk.snapshotter.writing
        return self._log.syncs_quickly and not busy

    def secure(self, patient: bool = True) -> None:
        """Make all commits safe where that takes no sync; else do nothing.

        Args:
            patient: whether it waits for others, who may be waiting for the disk: see `Wal.commit`.

        Raises ReadOnly where it cannot be: every commit that is not safe is rolled back.
        """
        if not self.syncs_each:
            self._log.commit(self._log.last_lsn, durable=False, patient=patient)

    def submit(self, group: CommitGroup) -> None:
        """Have ``group`` completed once its revision is on disk, or safe, by another thread."""
        if self._disk is None:
            self.settle(group)
        else:
            self._disk.committer.submit(group)

    def settle(self, group: CommitGroup, patient: bool = True) -> bool:
        """Complete ``group`` in this thread, which waits for the disk; whether it is completed.

        Args:
            group: what waits.
            patient: whether others are waited for, too. It is always completed then.
        """
        return settle(self._log, [group], patient)

    def _secure_removals(self) -> None:
        """Have commits that no client waits for become safe, too. Raises ReadOnly."""
        group = CommitGroup(self.epoch)
        self.secure()
        if self._log.safe_lsn < self._log.last_lsn:
            group.lsn = self._log.last_lsn
            self.submit(group)

    def when_safe(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called, in any thread, whenever commits have become safe."""
        self._log.on_safe = callback

    def snapshot(self) -> Future[int]:
        """Have a snapshot on disk of everything committed so far; gives its revision.

        Raises BadRequest where there is nowhere to write one to.
        """
        if self._disk is None:
            raise BadRequest("this server keeps its data in memory alone: it has no snapshots")
        return self._disk.snapshotter.snapshot()

    def save(self) -> int:
        """Refuse writes from now on and write the final snapshot; returns the last revision.

        Raises ReadOnly where not everything could be saved.
        """
        rev = self.keyspace.seal()
        self._expirer.close()
        return rev if self._disk is None else self._disk.snapshotter.close()

    def close(self) -> None:
        """Let go of the directory. Nobody may use the engine any more."""
        if self._disk is not None and self._started:
            self._disk.committer.close()
        self._log.close()
        if self._disk is not None:
            self._disk.storage.close()

    def statistics(self) -> dict[str, Any]:
        """Settings, and counters and gauges of log and snapshots, for INFO."""
        if self._disk is None:
            return {"data_dir": None}
        settings: dict[str, Any] = msgspec.to_builtins(self.settings)
        wal = self._disk.wal
        log = {"log_bytes": wal.bytes_written, "syncs": wal.syncs, "refusal": wal.refusal}
        return settings | log | self._disk.snapshotter.statistics()


def _absolute(directory: str) -> Path:
    """The data directory, wherever the process goes. Raises DataDirError."""
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
