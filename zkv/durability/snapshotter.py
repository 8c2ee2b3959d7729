"""The persistence thread: writes snapshots, so that no request waits for one it did not ask for.

A snapshot is written when something changed since the last one and the interval has passed, when
SNAPSHOT asks, and at the end. Its cost is bounded: after one that took t seconds the next periodic
one waits for ten times t, and for a hundred times t as long as little has been logged since,
compared with the snapshot's size. So saving takes a tenth of the time at most, and what a restart
must replay stays in proportion to what it must load.

A few times in each interval, or every few seconds, it also looks whether the data directory still
is as this server left it. If somebody has removed, replaced or changed something, the log takes no
more writes; an interval later, when whoever did that may be done, all is written anew: a snapshot,
and a log behind it. Where the directory itself is gone there is nowhere to write that to, unless
it comes back.

Other threads talk to this one through its inbox only, and hear back through futures.
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

    from zkv.durability.storage import Storage
    from zkv.durability.wal import Wal
    from zkv.keyspace import Keyspace, SnapshotView

_log = logging.getLogger("zkv.durability")

REST_FACTOR: Final = 10
"""After a snapshot that took t seconds, the next periodic one waits at least this many times t."""
IDLE_FACTOR: Final = 10
"""And this many times longer as long as the log since then is small beside the snapshot."""
LOOK_SECONDS: Final = 2.0
"""The data directory is looked at so often, and at least with each periodic snapshot."""
SMALL_SHARE: Final = 0.1
"""The log is small while it has less than this share of the snapshot's bytes."""


class Snapshotter:
    """Saves a keyspace into a storage from a thread of its own.

    Args:
        keyspace: what to save.
        storage: where to; used by the thread alone between `start` and `close`.
        wal: the log of the same keyspace.
        saved_rev: the revision of the newest snapshot.
        interval: seconds between snapshots, while there are changes.
    """

    def __init__(
        self, keyspace: Keyspace, storage: Storage, wal: Wal, saved_rev: int, interval: float
    ) -> None:
        self._keyspace = keyspace
        self._storage = storage
        self._wal = wal
        self._interval = interval
        self._due_at = time.monotonic() + interval
        self._inbox: SimpleQueue[Future[int] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="zkv-snapshotter")
        self._final: Future[int] = Future()
        self._closing = (
            threading.Lock()
        )  # Guards `_closed`: after it nothing is put into the inbox.
        self._closed = False
        self._saved_rev = saved_rev
        self._saved_at = time.monotonic()
        self._logged_before = 0  # Bytes of log when the last snapshot was begun.
        self._size = 0
        self._took = 0.0
        self._failing = False
        self._found: str | None = None  # What is not in its place.
        self._written = 0
        self.writing = False
        """Whether a snapshot is being written, and so the disk busy."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def snapshot(self) -> Future[int]:
        """Have a snapshot on disk of everything committed so far; the future gives its revision.

        The future fails with ReadOnly where it cannot be written. Raises ShuttingDown.
        """
        future: Future[int] = Future()
        with self._closing:
            if self._closed:
                raise ShuttingDown("the server is stopping")
            self._inbox.put(future)
        return future

    def close(self) -> int:
        """Write the final snapshot, end the thread and return the revision that is saved.

        The keyspace must be sealed before. Raises ReadOnly where it cannot be written.
        """
        self._inbox.put(None)
        self._thread.join()
        return self._final.result()

    def statistics(self) -> dict[str, int | float]:
        """Snapshots written, revision of the last, seconds that it took, and its bytes."""
        return {
            "snapshots": self._written,
            "snapshot_rev": self._saved_rev,
            "snapshot_seconds": round(self._took, 3),
            "snapshot_bytes": self._size,
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
            except BaseException:  # A bug; the thread goes on.
                _log.critical("the snapshot failed", exc_info=True)
                outcome = ReadOnly("the snapshot failed; the server's log says why")
            for future in asked:
                _settle(self._final if future is None else future, outcome)
        self._refuse_the_rest()

    def _wait(self) -> list[Future[int] | None]:
        """What other threads have asked for; empty once it is time to look around."""
        asked: list[Future[int] | None] = []
        left = max(0.0, self._due_at - time.monotonic())
        with contextlib.suppress(Empty):
            asked.append(self._inbox.get(timeout=min(left, LOOK_SECONDS)))
            while True:
                asked.append(self._inbox.get_nowait())
        return asked

    def _is_time(self, asked: bool) -> bool:
        """Whether a snapshot is to be written now: because it was asked for, or by itself."""
        news = self._look()
        due = time.monotonic() >= self._due_at
        if asked or news or due:
            self._due_at = time.monotonic() + self._interval
        return asked or (due and not news and self._has_rested())

    def _has_rested(self) -> bool:
        """Whether a periodic snapshot would not take too much of the time."""
        if self._wal.broken:
            return True
        rest = REST_FACTOR * self._took
        if self._wal.bytes_written - self._logged_before < SMALL_SHARE * self._size:
            rest *= IDLE_FACTOR
        return time.monotonic() - self._saved_at >= rest

    def _look(self) -> bool:
        """Look whether all is in its place; whether something is not, and that is news."""
        found = self._storage.disorder() or self._wal.disorder()
        news = found is not None and found != self._found
        self._found = found
        if found is not None and (news or not self._wal.broken):
            self._wal.distrust(found)
        return news

    def _save_changes(self) -> int | ReadOnly:
        """Save if anything changed; the revision saved, or why it could not be."""
        try:
            if self._wal.broken:
                self._storage.put_in_order()
            if self._keyspace.rev == self._saved_rev and not self._wal.broken:
                self._wal.flush()  # Answers that changed nothing may be in it.
                return self._saved_rev
            try:
                self._save()
            except OSError as error:
                if error.errno != errno.ENOSPC or not self._storage.make_room(self._saved_rev):
                    raise
                self._save()  # At once, before the log takes the room.
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
        self.writing = True
        try:
            path, self._size, rev, count = self._write()
        finally:
            self.writing = False
            self._saved_at = time.monotonic()
            self._took = self._saved_at - started
        self._saved_rev = rev
        self._logged_before = bytes_before
        self._written += 1
        _log.info("wrote %s: %d entries in %.2f s", path, count, self._took)

    def _write(self) -> tuple[Path, int, int, int]:
        """The same; its path, bytes, revision, and how many entries it has."""
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
        """Have the log on disk up to ``view``, so that a snapshot vouches for what is in the log.

        One that was not ``whole`` before the view was taken cannot be waited for, and need not be:
        what it may have lost was rolled back or is in the snapshot, which says so.
        """
        if whole:
            self._wal.flush()
        if view.lost:
            raise ReadOnly("commits in it have been rolled back")

    def _failed(self, why: str) -> ReadOnly:
        reason = f"the snapshot cannot be written: {why}"
        told, self._failing = self._failing, True
        if not told and self._found is None:  # Said once, not at every try.
            _log.error("%s; trying again every %g s", reason, self._interval)
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
