"""The snapshotter: a thread that writes snapshots, so that only SNAPSHOT requests wait for them.

It writes a snapshot when the interval has passed and something has changed since the last one, when
a client asks for one with SNAPSHOT, and at the end. The cost is bounded: after a snapshot that took
t seconds, the next periodic one waits for at least 10 t, or for 100 t while the log since then is
small compared with the snapshot. So snapshots take at most a tenth of the time, and the log that a
restart replays stays in proportion to the snapshot that it loads.

Every `LOOK_SECONDS`, or at each periodic snapshot if that is more often, the thread also checks
that nobody else has changed the data directory, and whether a disk that was full has space again.
If somebody has removed, replaced or changed
something, the log refuses writes. One interval later, when the change is probably complete, the
thread writes a new snapshot and begins a new log. If the directory itself is gone, it cannot do
that until the directory is back.

Other threads put their requests into the inbox and wait for futures.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

from zkv.errors import LockedError, ReadOnly, ShuttingDown

if TYPE_CHECKING:
    from pathlib import Path

    from zkv.activity import Activity
    from zkv.durability.storage import Storage
    from zkv.durability.wal import Wal
    from zkv.keyspace import Keyspace, SnapshotView

_log = logging.getLogger("zkv.durability")

REST_FACTOR: Final = 10
"""After a snapshot that took t seconds, the next periodic one waits for this many times t."""
IDLE_FACTOR: Final = 10
"""It waits this many times longer while the log since then is small."""
LOOK_SECONDS: Final = 2.0
"""How often the data directory is checked, unless periodic snapshots are more frequent."""
SMALL_SHARE: Final = 0.1
"""The log is small while it has less than this share of the snapshot's bytes."""


class Snapshotter:
    """Writes snapshots of a keyspace in its own thread.

    Args:
        keyspace: the keyspace to save.
        storage: the data directory; between `start` and `close` only the thread uses it.
        wal: the log of the same keyspace.
        saved_rev: the revision of the newest snapshot.
        interval: seconds between snapshots, while there are changes.
        writing: goes on while a snapshot is being written.
    """

    def __init__(
        self,
        keyspace: Keyspace,
        storage: Storage,
        wal: Wal,
        saved_rev: int,
        interval: float,
        writing: Activity,
    ) -> None:
        self._keyspace = keyspace
        self._storage = storage
        self._wal = wal
        self._interval = interval
        self._due_at = time.monotonic() + interval
        self._inbox: SimpleQueue[Future[int] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="zkv-snapshotter")
        self._final: Future[int] = Future()
        self._closing = threading.Lock()
        """Guards `_closed`. Once that is set, nothing is put into the inbox."""
        self._closed = False
        self._anew = False  # One must be written even if nothing has changed.
        self._saved_rev = saved_rev
        self._saved_at = time.monotonic()
        self._logged_before = 0  # Bytes of log when the last snapshot was begun.
        self._size = 0
        self._took = 0.0
        self._failing = False
        self._newest_at = storage.snapshot_time(saved_rev)  # Unix time; None = there is none.
        self._failures = 0
        self._failure: tuple[float, str] | None = None  # The last one: Unix time, and reason.
        self._found: str | None = None  # The last change found in the data directory.
        self._written = 0
        self.writing = writing
        """Goes on while a snapshot is being written, which keeps the disk busy."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def snapshot(self, anew: bool = False) -> Future[int]:
        """Request a snapshot of everything committed so far; the future gives its revision.

        If nothing has changed, that is the newest one, unless ``anew`` is True. The future
        completes once the snapshot is on disk, or with ReadOnly if it cannot be written. Raises
        ShuttingDown.
        """
        future: Future[int] = Future()
        with self._closing:
            if self._closed:
                raise ShuttingDown("the server is stopping")
            self._anew = self._anew or anew
            self._inbox.put(future)
        return future

    def close(self) -> int:
        """Write the final snapshot and end the thread; returns the saved revision.

        Seal the keyspace first. Raises ReadOnly if the snapshot cannot be written.
        """
        self._inbox.put(None)
        self._thread.join()
        return self._final.result()

    def statistics(self) -> dict[str, int | float]:
        """The number of snapshots; the last one's revision, duration in seconds, and bytes."""
        return {
            "snapshots": self._written,
            "snapshot_rev": self._saved_rev,
            "snapshot_seconds": round(self._took, 3),
            "snapshot_bytes": self._size,
        }

    def condition(self) -> dict[str, float | str | None]:
        """Return INFO's ``stats.snapshot``.

        Seconds since the newest snapshot was written; failures to write one; time and reason of the
        last failure.
        """
        newest, (failed_at, failure) = self._newest_at, self._failure or (None, None)
        return {
            "age": None if newest is None else round(max(0.0, time.time() - newest), 3),
            "failures": self._failures,
            "failed_at": failed_at,
            "failure": failure,
        }

    def _run(self) -> None:
        asked: list[Future[int] | None] = []
        while None not in asked:
            asked = self._wait()
            outcome: int | ReadOnly
            try:
                if not self._is_time(bool(asked)):
                    continue
                outcome = self._save_changes()
            except BaseException:  # A bug; the thread continues.
                _log.critical("the snapshot failed", exc_info=True)
                outcome = self._count_failure("the snapshot failed; see the server's log")
            for future in asked:
                _settle(self._final if future is None else future, outcome)
        self._refuse_the_rest()

    def _wait(self) -> list[Future[int] | None]:
        """The requests of other threads; empty when it is time to check the directory."""
        asked: list[Future[int] | None] = []
        left = max(0.0, self._due_at - time.monotonic())
        with contextlib.suppress(Empty):
            asked.append(self._inbox.get(timeout=min(left, LOOK_SECONDS)))
            while True:
                asked.append(self._inbox.get_nowait())
        return asked

    def _is_time(self, asked: bool) -> bool:
        """True if a snapshot must be written now: it was asked for, or a periodic one is due."""
        news = self._look()
        due = time.monotonic() >= self._due_at
        if asked or news or due:
            self._due_at = time.monotonic() + self._interval
        return asked or (due and not news and self._has_rested())

    def _has_rested(self) -> bool:
        """True if enough time has passed since the last snapshot, given what that cost."""
        if self._wal.broken:
            return True
        rest = REST_FACTOR * self._took
        if self._wal.bytes_written - self._logged_before < SMALL_SHARE * self._size:
            rest *= IDLE_FACTOR
        return time.monotonic() - self._saved_at >= rest

    def _look(self) -> bool:
        """Check the data directory; returns True if somebody has changed it since the last look."""
        found = self._storage.disorder() or self._wal.disorder()
        news = found is not None and found != self._found
        self._found = found
        if found is not None and (news or not self._wal.broken):
            self._wal.distrust(found)
        if found is None:
            self._wal.try_again()
        return news

    def _save_changes(self) -> int | ReadOnly:
        """Save if anything changed; returns the saved revision, or the error."""
        try:
            if self._wal.broken:
                self._storage.put_in_order()
            anew, self._anew = self._anew or self._wal.broken, False
            if self._keyspace.rev == self._saved_rev and not anew:
                self._wal.flush()  # It may hold replies to requests that changed nothing.
                return self._saved_rev
            try:
                self._save()
            except OSError as error:
                if error.errno != errno.ENOSPC or not self._storage.make_room(self._saved_rev):
                    raise
                self._save()  # At once, before the log uses up the space.
        except OSError as error:
            return self._failed(error.strerror or str(error))
        except ReadOnly as error:
            return self._failed(error.message)
        except (LockedError, MemoryError) as error:
            return self._failed(str(error) or "out of memory")
        self._found = None
        if self._failing:
            self._failing = False
            _log.warning("snapshots can be written again")
        return self._saved_rev

    def _save(self) -> None:
        """Write a snapshot. Raises OSError, ReadOnly."""
        started = time.monotonic()
        bytes_before = self._wal.bytes_written
        try:
            with self.writing:
                path, self._size, rev, count = self._write()
        finally:
            self._saved_at = time.monotonic()
            self._took = self._saved_at - started
        self._saved_rev = rev
        self._logged_before = bytes_before
        self._newest_at = time.time()
        self._written += 1
        _log.info("wrote %s: %d entries in %.2f s", path, count, self._took)

    def _write(self) -> tuple[Path, int, int, int]:
        """Write it; returns its path, bytes, revision and number of entries."""
        self._wal.begin_snapshot()
        whole = not self._wal.broken
        view = self._keyspace.view()
        try:
            path, size = self._storage.save(view, whole, lambda: self._await_log(view, whole))
            if self._wal.broken and self._keyspace.rev == view.rev:
                self._wal.restart(view.rev)
        finally:
            view.close()
        return path, size, view.rev, view.count

    def _await_log(self, view: SnapshotView, whole: bool) -> None:
        """Wait until the log is on disk up to ``view``.

        Only then may the snapshot get its name, since recovery takes any part of the log up to its
        revision that is missing for damage. If the log had failed before the view was taken
        (``whole`` is False), it cannot be synced, and need not be: commits that it may have lost
        were rolled back or are in the snapshot, whose header then says ``logged``: False.
        """
        if whole:
            self._wal.flush()
        if view.lost:
            raise ReadOnly("commits in it have been rolled back")

    def _failed(self, why: str) -> ReadOnly:
        reason = f"the snapshot cannot be written: {why}"
        reported, self._failing = self._failing, True
        if not reported and self._found is None:  # Log it once, not for every attempt.
            _log.error("%s; trying again every %g s", reason, self._interval)
        return self._count_failure(reason)

    def _count_failure(self, reason: str) -> ReadOnly:
        self._failures += 1
        self._failure = round(time.time(), 3), reason
        return ReadOnly(reason)

    def _refuse_the_rest(self) -> None:
        with self._closing:
            self._closed = True
        while not self._inbox.empty():
            future = self._inbox.get()
            if future is not None:
                _settle(future, ShuttingDown("the server is stopping"))


def _settle(future: Future[int], outcome: int | Exception) -> None:
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
