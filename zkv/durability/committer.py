"""Group commit outside the serving threads: makes commits durable and then completes their groups.

The front or a worker submits the replies of a batch that must wait for the disk as one group, and
continues with its next batch. If it is idle and the disk is quick, it may wait for that itself.
While the committer waits for one fdatasync, further groups queue up, and the next fdatasync covers
them all. So the busier the server, the more commits share a sync.

Under the policy ``interval`` the committer also syncs the log once per interval. It has the system
write the log back before that, and where nobody else syncs.
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

NEVER: Final = -(2**63)
"""No epoch: a group of it is completed without a look at the log."""
A_BUG: Final = "a bug in the server; see its log"
"""The message for commits whose outcome is unknown because of an unexpected error."""


class CommitGroup:
    """Replies that wait for commits to be safe or on disk.

    Args:
        epoch: the log's epoch before the first of their requests ran.
        durable: True if the commits must be on disk, False if written is enough.
    """

    __slots__ = ("_completed", "durable", "epoch", "error", "lsn")

    def __init__(self, epoch: int, durable: bool = True) -> None:
        self.epoch = epoch
        self.durable = durable
        self.lsn: int | None = None
        """The LSN of the newest commit to wait for; None while nothing waits."""
        self.error: ReadOnly | None = None
        """After completion: None, or the reason why the commits are not on disk."""
        self._completed: list[Callable[[], None]] = []

    def on_completion(self, completed: Callable[[], None]) -> None:
        """Add a callback. Call this before the group is submitted."""
        self._completed.append(completed)

    def complete(self, error: ReadOnly | None) -> None:
        """Release the replies, or report why they cannot be sent. Only the first call counts."""
        # The callbacks refer to this group. Dropping them here avoids a reference cycle.
        completed, self._completed = self._completed, []
        if completed:
            self.error = error
        for call in completed:
            call()


class Committer:
    """The thread that commits groups.

    Args:
        wal: the log.
        interval: seconds between syncs of the log; None = sync only for groups.
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
        """Commit the submitted groups and end the thread."""
        self._inbox.put(None)
        self._thread.join()

    def submit(self, group: CommitGroup) -> None:
        """Hand ``group`` to the thread, which completes it."""
        self._inbox.put(group)

    def call(self, function: Callable[[], None]) -> None:
        """Have the thread call ``function`` once it has done what was submitted before."""
        group = CommitGroup(NEVER)
        group.on_completion(function)
        self.submit(group)

    def _run(self) -> None:
        groups: list[CommitGroup | None] = []
        while None not in groups:
            groups = self._wait()
            waiting = [group for group in groups if group is not None]
            try:
                settle(self._wal, waiting)
                self._sync_if_due()
            except BaseException:
                # A bug. The waiting groups must not wait for ever, and later ones must be served.
                _log.critical("the committer failed and continues", exc_info=True)
                for group in waiting:
                    group.complete(ReadOnly(A_BUG, applied=None))

    def _sync_if_due(self) -> None:
        if self._interval is not None and time.monotonic() >= self._due:
            self._due = time.monotonic() + self._interval
            self._wal.write_back()
            with contextlib.suppress(ReadOnly):
                self._wal.sync_written()

    def _wait(self) -> list[CommitGroup | None]:
        groups: list[CommitGroup | None] = []
        left = None if self._interval is None else max(0.0, self._due - time.monotonic())
        with contextlib.suppress(Empty):
            groups.append(self._inbox.get(timeout=left))
            while True:
                groups.append(self._inbox.get_nowait())
        return groups


def settle(log: CommitLog, groups: list[CommitGroup], patient: bool = True) -> bool:
    """Make the commits of ``groups`` durable, or written, with at most one sync; complete them.

    A group from an earlier epoch is completed with ``applied`` = None: its commits may have been
    rolled back, and their revisions may belong to other commits now.

    Args:
        log: the log of the commits.
        groups: groups that are not completed yet.
        patient: see `CommitLog.commit`.

    Returns:
        True if they are completed; always True if ``patient``.
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
