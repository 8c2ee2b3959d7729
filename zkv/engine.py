"""The engine: a store that outlives its process, without any socket.

Opening it takes the data directory's lock and recovers what is there; closing it saves everything.
In between it is the one place that knows when a revision may be told to a client (`safe_rev`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zkv.clock import Clock
from zkv.durability.committer import CommitGroup, Committer, settle
from zkv.durability.files import Files
from zkv.durability.persistence import Persistence
from zkv.durability.storage import Storage
from zkv.durability.wal import Wal
from zkv.errors import DataDirError
from zkv.keyspace import Expirer, History, Keyspace, Sessions

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from zkv.config import DurabilitySettings, LimitSettings


class Safe(NamedTuple):
    """Up to where what happened may be told, and will not be rolled back.

    Args:
        rev: the newest revision.
        lsn: the log's number of the newest commit.
    """

    rev: int
    lsn: int


class Engine:
    """A keyspace and what makes it last.

    Args:
        settings: where and how data is kept.
        limits: how much is remembered of sessions and changes.
        files: the door to the file system.

    Raises:
        LockedError: another server holds the data directory.
        DamageError: what is there is damaged.
        DataDirError: the directory cannot be used.
    """

    def __init__(
        self, settings: DurabilitySettings, limits: LimitSettings, files: Files | None = None
    ) -> None:
        self.settings = settings
        self._started = False
        self._syncs_each = settings.fsync == "always"
        self._files = files or Files()
        self._storage = Storage(Path(settings.data_dir), self._files)
        try:
            self._open(limits)
        except BaseException:
            self._storage.close()
            raise

    def _open(self, limits: LimitSettings) -> None:
        settings = self.settings
        sessions = Sessions(
            limits.session_window, int(limits.session_ttl * 1000), limits.max_sessions
        )
        history = History(limits.history, limits.history_bytes)
        recovered = self._storage.load(sessions, history)
        try:
            self._wal = Wal(
                self._files,
                self._storage.wal_directory,
                recovered.rev,
                recovered.end,
                settings.segment_bytes,
                self._syncs_each,
            )
        except OSError as error:
            place = error.filename or self._storage.wal_directory
            raise DataDirError(f"{place}: {error.strerror or error}") from error
        self.keyspace = Keyspace(
            Clock(recovered.time), sessions, history, recovered.entries, recovered.rev, self._wal
        )
        self._wal.attach(self.keyspace.lock, self.keyspace.roll_back)
        self._expirer = Expirer(self.keyspace, self._secure_removals)
        self._committer = Committer(
            self._wal, settings.fsync_interval if settings.fsync == "interval" else None
        )
        self._persistence = Persistence(
            self.keyspace,
            self._storage,
            self._wal,
            recovered.snapshot_rev,
            settings.snapshot_interval,
        )

    def start(self) -> None:
        """Start the threads."""
        self._started = True
        self._committer.start()
        self._persistence.start()
        self._expirer.start()

    @property
    def safe(self) -> Safe:
        """Up to where what happened may be told to a client."""
        return Safe(self._wal.safe_rev, self._wal.safe_lsn)

    @property
    def last_lsn(self) -> int:
        """The log's number of the newest commit."""
        return self._wal.last_lsn

    @property
    def durable_rev(self) -> int:
        """The newest revision that is on disk."""
        return self._wal.durable_rev

    def new_group(self) -> CommitGroup:
        """A group for replies of requests that are about to run."""
        return CommitGroup(self._wal.epoch)

    def secure(self) -> None:
        """Make all commits safe where that takes no waiting for the disk; else do nothing.

        Raises ReadOnlyError where it cannot be: every commit that is not safe is rolled back.
        """
        if not self._syncs_each:
            self._wal.commit(self._wal.last_lsn, durable=False)

    def is_current(self, group: CommitGroup) -> bool:
        """Whether nothing was rolled back since ``group`` was made."""
        return group.epoch == self._wal.epoch

    def submit(self, group: CommitGroup) -> None:
        """Have ``group`` completed once its revision is on disk, by a thread of its own."""
        self._committer.submit(group)

    def settle(self, group: CommitGroup) -> None:
        """Complete ``group`` in this thread, which waits for the disk."""
        settle(self._wal, [group])

    def _secure_removals(self) -> None:
        """Have commits that no client waits for become safe, too. Raises ReadOnlyError."""
        group = self.new_group()
        self.secure()
        if self._wal.safe_lsn < self._wal.last_lsn:
            group.lsn = self._wal.last_lsn
            self.submit(group)

    def when_safe(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called, in any thread, whenever commits have become safe."""
        self._wal.on_safe = callback

    def snapshot(self) -> Future[int]:
        """Have a snapshot on disk of everything committed so far; gives its revision."""
        return self._persistence.snapshot()

    def save(self) -> int:
        """Refuse writes from now on and write the final snapshot; returns the last revision.

        Raises ReadOnlyError where not everything could be saved.
        """
        self.keyspace.seal()
        self._expirer.close()
        return self._persistence.close()

    def close(self) -> None:
        """Let go of the directory. Nobody may use the engine any more."""
        if self._started:
            self._committer.close()
        self._wal.close()
        self._storage.close()

    def statistics(self) -> dict[str, int | float]:
        """Counters and gauges of log and snapshots, for INFO."""
        log = {"log_bytes": self._wal.bytes_written, "syncs": self._wal.syncs}
        return log | self._persistence.statistics()
