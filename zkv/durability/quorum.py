"""Commits that other servers have to confirm: what ``replication.sync`` does.

A commit is *safe* at such a server once so many standbys have it on their disks, as they say when
they ask for more (`zkv.replication.source`). Until then it is *kept*: it is on this server's disk,
it goes to the standbys, and no rollback undoes it, but nothing reveals it. So after a restart
nothing is safe before the standbys have come back and confirmed it.

While too few standbys are there, or too much waits for them, writes are refused as `READ_ONLY`: the
server never becomes asynchronous by itself. A standby is there if it has asked within
`LOST_SECONDS`. A commit that is not confirmed within `CONFIRM_SECONDS` is answered `READ_ONLY` with
``applied`` nil: it may still become safe.

With ``needed`` confirmations, ``needed`` + 1 servers have a commit on disk when it is acknowledged:
any ``needed`` of them may be lost, and one that is left has it.

Locks: `Quorum._lock` guards the table. `Wal._io` guards what is safe, as in `zkv.durability.wal`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from zkv.durability.wal import Wal
from zkv.errors import ReadOnly

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zkv.durability.files import Files
    from zkv.durability.segment import SegmentEnd

LOST_SECONDS: Final = 5.0
"""A standby that has not asked for so long does not count."""
CONFIRM_SECONDS: Final = 5.0
"""How long a commit waits for confirmations."""
UNCONFIRMED_BYTES: Final = 32 * 1024 * 1024
"""Bytes of commits that may wait for confirmations before no more are taken."""
MOST_STANDBYS: Final = 64
"""Standbys that are known at a time; the one that has not asked for longest is forgotten first."""


class Quorum:
    """The standbys that confirm commits.

    Args:
        needed: how many have to have a commit on disk.
    """

    def __init__(self, needed: int) -> None:
        self.needed = needed
        self.active = False
        """True if commits have to be confirmed: see `ConfirmedWal.begin_to_lead`."""
        self.on_change: Callable[[], None] = lambda: None
        """Called, in any thread, after `confirmed` or `is_met` may have changed."""
        self._lock = threading.Lock()
        # What is on disk there, and when it last asked; who asked last is the last one.
        self._standbys: dict[str, tuple[int, float]] = {}
        self._confirmed = 0
        self.refuses = False
        """True while writes are refused: any request of a standby may change that."""

    @property
    def confirmed(self) -> int:
        """The newest log number that enough standbys have on disk."""
        return self._confirmed

    @property
    def is_met(self) -> bool:
        """True if enough standbys are there."""
        oldest = time.monotonic() - LOST_SECONDS
        with self._lock:
            return sum(seen > oldest for _, seen in self._standbys.values()) >= self.needed

    def confirm(self, standby: str, lsn: int) -> None:
        """Note that a standby has asked, and what it has on disk."""
        with self._lock:
            self._standbys.pop(standby, None)
            self._standbys[standby] = lsn, time.monotonic()
            if len(self._standbys) > MOST_STANDBYS:  # What it has confirmed stays confirmed.
                del self._standbys[next(iter(self._standbys))]
            numbers = sorted((number for number, _ in self._standbys.values()), reverse=True)
            newest = numbers[self.needed - 1] if len(numbers) >= self.needed else 0
            more = newest > self._confirmed
            self._confirmed = max(self._confirmed, newest)
        if more or self.refuses:
            self.on_change()


class ConfirmedWal(Wal):
    """A log of which commits are safe once other servers have confirmed them.

    Args: see `Wal`, which is used with the policy ``always``.
        quorum: the servers.
    """

    awaits_standbys = True

    def __init__(
        self,
        files: Files,
        directory: Path,
        rev: int,
        lsn: int,
        end: SegmentEnd | None,
        segment_bytes: int,
        quorum: Quorum,
    ) -> None:
        self._quorum = quorum
        self._unconfirmed: deque[tuple[int, int, int]] = deque()
        self._confirmed = threading.Condition()
        self._withheld: str | None = None
        super().__init__(files, directory, rev, lsn, end, segment_bytes, sync_each=True)
        quorum.on_change = self._note_confirmed

    @property
    def needs_confirmation(self) -> bool:
        """See `Wal.needs_confirmation`: not before this server leads."""
        return self._quorum.active

    def confirm(self, standby: str, lsn: int) -> None:
        """See `Wal.confirm`."""
        self._quorum.confirm(standby, lsn)

    def begin_to_lead(self, starts: bool) -> None:
        """Have commits wait for confirmations from now on.

        Args:
            starts: nothing is safe yet, as the server only starts; else all that is kept is.
        """
        with self._io:
            if starts:
                self._unconfirmed.append((self.kept_lsn, self.kept_rev, self.kept_bytes))
                self.safe_lsn = self.safe_rev = 0
            self._quorum.active = True
            self._note_safe()

    def commit(self, lsn: int, durable: bool, patient: bool = True) -> bool:
        """See `Wal.commit`. It also waits for confirmations, up to `CONFIRM_SECONDS`.

        Raises ReadOnly, also if there are not enough in time; then nothing is rolled back.
        """
        if not super().commit(lsn, True, patient):
            return False
        if lsn <= self.safe_lsn or not self._quorum.active:
            return True
        if patient:
            self._await_confirmation(lsn)
        return patient

    def _await_confirmation(self, lsn: int) -> None:
        epoch = self.epoch
        with self._confirmed:
            if not self._confirmed.wait_for(
                lambda: lsn <= self.safe_lsn or self.epoch != epoch, CONFIRM_SECONDS
            ):
                raise ReadOnly(
                    f"not confirmed by {self._quorum.needed} standbys within "
                    f"{CONFIRM_SECONDS:g} s (replication.sync)",
                    applied=None,
                )

    def _note_confirmed(self) -> None:
        """Update what is safe, after a confirmation. Any thread."""
        with self._io:
            self._note_safe()
        self.on_safe()

    def _note_safe(self) -> None:
        safe = self.safe_lsn, self.safe_rev, self.safe_bytes
        super()._note_safe()
        if not self._quorum.active:
            return
        newest = self.kept_lsn, self.kept_rev, self.kept_bytes
        waiting = self._unconfirmed
        if newest[0] > (waiting[-1][0] if waiting else safe[0]):
            waiting.append(newest)
        while waiting and waiting[0][0] <= self._quorum.confirmed:
            safe = max(safe, waiting.popleft())
        self.safe_lsn, self.safe_rev, self.safe_bytes = safe
        self._withhold()
        with self._confirmed:
            self._confirmed.notify_all()

    def _withhold(self) -> None:
        """Refuse writes while they could not be confirmed. `_io` held."""
        quorum, reason = self._quorum, None
        if not quorum.is_met:
            reason = f"fewer than {quorum.needed} standbys are there (replication.sync)"
        elif self.kept_bytes - self.safe_bytes > UNCONFIRMED_BYTES:
            reason = "the standbys do not keep up (replication.sync)"
        if reason == self._withheld:
            return
        self._withheld = reason
        quorum.refuses = reason is not None
        if reason is None:
            if not self._broken:
                self._resume("the standbys confirm commits again")
            return
        with self._keyspace_lock:
            self._begin_refusal(ReadOnly(reason))
        self._report(reason)

    def _still_refuses(self, refusal: ReadOnly, removes: bool) -> bool:
        return self._withheld is not None or super()._still_refuses(refusal, removes)

    def _resume(self, why: str = "the log can be written again") -> None:
        if self._withheld is None:
            super()._resume(why)

    def try_again(self) -> None:
        """See `Wal.try_again`. It also looks if enough standbys are there."""
        self._note_confirmed()
        if self._withheld is None:
            super().try_again()
