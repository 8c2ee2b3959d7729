"""The engine: a store that outlives its process, without any socket.

Opening it takes the data directory's lock and recovers what is there; closing it saves everything.
In between it is the one place that knows when a revision may be told to a client (`safe_rev`).

`MemoryEngine` has the same face, and keeps nothing: whatever is committed is safe at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zkv.clock import Clock
from zkv.durability.committer import CommitGroup, Committer, settle
from zkv.durability.files import Files
from zkv.durability.persistence import Persistence
from zkv.durability.storage import Storage
from zkv.durability.wal import NOTHING, Wal
from zkv.errors import BadRequest, DataDirError
from zkv.keyspace import Expirer, History, Keyspace, NoLog, Sessions

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from zkv.config import DurabilitySettings, LimitSettings
    from zkv.keyspace import Packed


class Engine:
    """A keyspace and what makes it last.

    Args:
        settings: where and how data is kept; with a ``data_dir``.
        limits: how much is remembered of sessions and changes.
        files: the door to the file system.

    Raises:
        LockedError: another server holds the data directory.
        DamageError: what is there is damaged.
        DataDirError: the directory cannot be used.
    """

    lasting: Final = True
    """Whether a write can be on disk."""

    def __init__(
        self, settings: DurabilitySettings, limits: LimitSettings, files: Files | None = None
    ) -> None:
        if settings.data_dir is None:
            raise ValueError("no data_dir: that is a MemoryEngine")
        self.settings = settings
        self._started = False
        self.syncs_each = settings.fsync == "always"
        """Whether what is safe is on disk."""
        self._files = files or Files()
        self._storage = Storage(_absolute(settings.data_dir), self._files)
        try:
            self._open(limits)
        except BaseException:
            self._storage.close()
            raise

    def _open(self, limits: LimitSettings) -> None:
        settings = self.settings
        sessions, history = _remembering(limits)
        recovered = self._storage.load(sessions, history)
        try:
            self._wal = Wal(
                self._files,
                self._storage.wal_directory,
                recovered.rev,
                recovered.end,
                settings.segment_bytes,
                self.syncs_each,
            )
        except OSError as error:
            place = error.filename or self._storage.wal_directory
            raise DataDirError(f"{place}: {error.strerror or error}") from error
        self.keyspace = Keyspace(
            Clock(recovered.time), sessions, history, recovered.entries, recovered.rev, self._wal
        )
        self._wal.attach(self.keyspace.lock, self.keyspace.roll_back)
        self._wal.require_place = self._storage.require_place
        self._wal.on_closed = self._storage.expect
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
    def safe_rev(self) -> int:
        """The newest revision that may be told to a client, and will not be rolled back."""
        return self._wal.safe_rev

    @property
    def safe_lsn(self) -> int:
        """The log's number of the newest commit that will not be rolled back."""
        return self._wal.safe_lsn

    @property
    def last_lsn(self) -> int:
        """The log's number of the newest commit."""
        return self._wal.last_lsn

    @property
    def durable_rev(self) -> int:
        """The newest revision that is on disk."""
        return self._wal.durable_rev

    @property
    def epoch(self) -> int:
        """How often something has been rolled back."""
        return self._wal.epoch

    def survived(self, epoch: int) -> tuple[int, int]:
        """What was not rolled back when ``epoch`` ended: see `Wal.survived`."""
        return self._wal.survived(epoch)

    @property
    def syncs_quickly(self) -> bool:
        """Whether a sync may well take next to no time: recent ones did, and the disk is free."""
        return self._wal.syncs_quickly and not self._persistence.writing

    def secure(self, patient: bool = True) -> None:
        """Make all commits safe where that takes no sync; else do nothing.

        Args:
            patient: whether it waits for others, who may be waiting for the disk: see `Wal.commit`.

        Raises ReadOnly where it cannot be: every commit that is not safe is rolled back.
        """
        if not self.syncs_each:
            self._wal.commit(self._wal.last_lsn, durable=False, patient=patient)

    def submit(self, group: CommitGroup) -> None:
        """Have ``group`` completed once its revision is on disk, or safe, by another thread."""
        self._committer.submit(group)

    def settle(self, group: CommitGroup, patient: bool = True) -> bool:
        """Complete ``group`` in this thread, which waits for the disk; whether it is completed.

        Args:
            group: what waits.
            patient: whether others are waited for, too. It is always completed then.
        """
        return settle(self._wal, [group], patient)

    def _secure_removals(self) -> None:
        """Have commits that no client waits for become safe, too. Raises ReadOnly."""
        group = CommitGroup(self.epoch)
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

        Raises ReadOnly where not everything could be saved.
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

    def statistics(self) -> dict[str, Any]:
        """Settings, and counters and gauges of log and snapshots, for INFO."""
        settings: dict[str, Any] = msgspec.to_builtins(self.settings)
        log = {
            "log_bytes": self._wal.bytes_written,
            "syncs": self._wal.syncs,
            "refusal": self._wal.refusal,
        }
        return settings | log | self._persistence.statistics()


class MemoryEngine:
    """A keyspace that is gone with its process; no file is touched.

    No request ever waits here: its methods about commit groups are there for the type's sake.

    Args:
        limits: how much is remembered of sessions and changes.
        now: the clock, Unix time in ms.
    """

    lasting: Final = False
    syncs_each: Final = False
    syncs_quickly: Final = True
    safe_rev: Final = 2**63
    safe_lsn: Final = 2**63
    epoch: Final = 0
    last_lsn: Final = 0
    durable_rev: Final = 0

    def __init__(self, limits: LimitSettings, now: Callable[[], int] | None = None) -> None:
        sessions, history = _remembering(limits)
        self._log = _MemoryLog()
        self.keyspace = Keyspace(now or Clock(), sessions, history, log=self._log)
        self._expirer = Expirer(self.keyspace, lambda: None)

    def start(self) -> None:
        """Start the thread that removes what has expired."""
        self._expirer.start()

    def survived(self, epoch: int) -> tuple[int, int]:
        """No epoch ends."""
        return NOTHING

    def secure(self, patient: bool = True) -> None:
        """All commits are safe."""

    def submit(self, group: CommitGroup) -> None:
        """Complete ``group``."""
        group.complete(None)

    def settle(self, group: CommitGroup, patient: bool = True) -> bool:
        """Complete ``group``."""
        group.complete(None)
        return True

    def when_safe(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called, in any thread, whenever there are commits."""
        self._log.on_commit = callback

    def snapshot(self) -> Future[int]:
        """Raises BadRequest: there is nowhere to write one to."""
        raise BadRequest("this server keeps its data in memory alone: it has no snapshots")

    def save(self) -> int:
        """Refuse writes from now on; returns the last revision."""
        rev = self.keyspace.seal()
        self._expirer.close()
        return rev

    def close(self) -> None:
        """Nothing is held."""

    def statistics(self) -> dict[str, Any]:
        """That there is no directory, for INFO."""
        return {"data_dir": None}


class _MemoryLog(NoLog):
    """Tells that there are commits, and forgets them."""

    def __init__(self) -> None:
        self.on_commit: Callable[[], None] = lambda: None

    def append(self, commit: Packed) -> int:
        """Ring. Whoever hears it waits for the keyspace's lock, and so finds the commit applied."""
        return self.extend([commit])

    def extend(self, commits: list[Packed]) -> int:
        """Ring, likewise."""
        self.on_commit()
        return super().extend(commits)


AnyEngine = Engine | MemoryEngine


def open_engine(
    settings: DurabilitySettings, limits: LimitSettings, files: Files | None = None
) -> AnyEngine:
    """The engine that these settings ask for. Raises DataDirError, as `Engine` does."""
    return MemoryEngine(limits) if settings.data_dir is None else Engine(settings, limits, files)


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
