"""Group commit off the request path: a thread that makes commits durable and tells who waits.

Who serves hands over the replies of a batch that may not leave before their revisions are on disk,
and goes on with the next batch; one who has nothing else to do may wait for the disk by itself
(`settle`). While the thread waits for one fdatasync, further groups queue up; the next fdatasync
serves them all. So the busier the server, the more commits share a sync.

With the policy ``interval`` the thread also makes durable what was written, once per interval.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

from zkv.errors import ReadOnly

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.durability.wal import Wal
    from zkv.keyspace import CommitLog

_log = logging.getLogger("zkv.durability")

A_BUG: Final = "a bug in the server; its log says more"
"""What is said of commits of which nobody knows what became, for no known reason."""


class CommitGroup:
    """Replies that wait for commits to be on disk.

    Args:
        epoch: the log's when the first of their requests began to run.
        durable: whether it has to be on disk, and not only written.
    """

    __slots__ = ("_completed", "durable", "epoch", "error", "lsn")

    def __init__(self, epoch: int, durable: bool = True) -> None:
        self.epoch = epoch
        self.durable = durable
        self.lsn: int | None = None
        """The newest commit to wait for; None as long as nothing waits."""
        self.error: ReadOnly | None = None
        """Once completed: None, or why the commits are not on disk."""
        self._completed: Callable[[], None] | None = _nothing

    def on_completion(self, completed: Callable[[], None]) -> None:
        """Have ``completed`` called. Once, and before the group is submitted."""
        self._completed = completed

    def complete(self, error: ReadOnly | None) -> None:
        """Let the replies leave, or tell why they cannot. Only the first time counts."""
        # What is called refers to this group: kept here, it would be garbage in a cycle.
        completed, self._completed = self._completed, None
        if completed is not None:
            self.error = error
            completed()


def _nothing() -> None:
    pass


class Committer:
    """The thread that commits groups.

    Args:
        wal: the log.
        interval: seconds between syncs of what has been written; None = only when groups ask.
    """

    def __init__(self, wal: Wal, interval: float | None) -> None:
        self._wal = wal
        self._interval = interval
        self._due = 0.0 if interval is None else time.monotonic() + interval
        self._inbox: SimpleQueue[CommitGroup | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="zkv-committer")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Commit what waits and end the thread."""
        self._inbox.put(None)
        self._thread.join()

    def submit(self, group: CommitGroup) -> None:
        """Have ``group`` completed by the thread."""
        self._inbox.put(group)

    def _run(self) -> None:
        groups: list[CommitGroup | None] = []
        while None not in groups:
            groups = self._wait()
            waiting = [group for group in groups if group is not None]
            try:
                settle(self._wal, waiting)
                self._sync_if_due()
            except BaseException:
                # A bug. Those who wait are not to wait for ever, nor those who come later.
                _log.critical("the committer failed, and goes on", exc_info=True)
                for group in waiting:
                    group.complete(ReadOnly(A_BUG, applied=None))

    def _sync_if_due(self) -> None:
        if self._interval is not None and time.monotonic() >= self._due:
            self._due = time.monotonic() + self._interval
            with contextlib.suppress(ReadOnly):
                self._wal.commit(self._wal.written_lsn, durable=True)

    def _wait(self) -> list[CommitGroup | None]:
        groups: list[CommitGroup | None] = []
        left = None if self._interval is None else max(0.0, self._due - time.monotonic())
        with contextlib.suppress(Empty):
            groups.append(self._inbox.get(timeout=left))
            while True:
                groups.append(self._inbox.get_nowait())
        return groups


def settle(log: CommitLog, groups: list[CommitGroup], patient: bool = True) -> bool:
    """Make ``groups`` durable, or safe, with one sync at most, and complete them.

    A group whose epoch is over is told that nobody knows: its commits may have been rolled back,
    and their revisions may by now be those of others.

    Args:
        log: what they wait for.
        groups: not completed yet.
        patient: see `CommitLog.commit`.

    Returns:
        Whether they are completed. Always, where it is patient.
    """
    epoch = log.epoch
    current = [group for group in groups if group.epoch == epoch]
    error: ReadOnly | None = None
    if current:
        try:
            lsn = max([group.lsn or 0 for group in current])
            if not log.commit(lsn, any(group.durable for group in current), patient):
                return False
        except ReadOnly as raised:
            error = raised
        else:
            error = None if log.epoch == epoch else _unknown()
    for group in groups:
        group.complete(error if group.epoch == epoch else _unknown())
    return True


def _unknown() -> ReadOnly:
    return ReadOnly("the log could not be written for a moment", applied=None)
