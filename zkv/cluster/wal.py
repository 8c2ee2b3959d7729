"""The write-ahead log of a member: a copy of the log in etcd, on the member's own disk.

A member that follows writes what it has read from etcd, as a standby writes what its primary has.
A leader appends to etcd first, and writes to its disk what etcd has confirmed: so this copy never
has a commit that the log in etcd lacks. A commit is safe once it is in both; that it is in etcd is
what makes it last. The copy is synced once per interval: what a power cut takes from it comes back
from etcd.

Group commit is that of `zkv.durability.wal`: the committer takes the whole queue, and appends it in
one transaction. While that is under way, further commits queue up. An append takes as long for
fifty commits as for one, and those whom it has answered often write again at once. So before the
next one the log waits for them, for a moment (`_gather`). Else half of them would be in each
append, and each of them would wait for two.

If etcd does not answer, nobody knows if a batch is in the log. It is kept and repeated, and nothing
is rolled back. After `WAIT_SECONDS` those who wait get READ_ONLY with ``applied`` nil, and writes
are refused, until etcd answers again. If another member has taken over, everything that is not
confirmed is rolled back, and comes back from etcd if it is there.

If the disk fails, the member rolls back, and so may lose a commit that etcd has from its memory. It
must not lead on: it follows, and reads that from etcd again. So each rollback of a leader ends its
tenure (`_refuse`). From then on nothing is taken until `follow` is called: what came in between
would be on this disk and nowhere else.

With ``reads = "confirm"`` the lease does not decide who may read. A reply waits for a commit that
begins after it was made, and if that has nothing to append, it asks etcd if the fence is still this
member's. One question serves all replies that wait.

The epoch also ends when the lease does. Whoever runs commands compares the epoch before and after
them (`zkv.broker.waiting`), and here that reads the clock: so no reply leaves that was made after
the end of the lease. It costs other logs nothing. While the lease is over the epoch stays the same:
what began after that end has asked the role, and got nothing that only a leader may answer.
If the lease is held again, so is the epoch that was: no other member has led in between.

Nothing counts as having survived an epoch: a read that was made in it may have been made after the
end of the lease, even if all that it has seen is safe.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from zkv.cluster.records import LogBatch
from zkv.cluster.shared_log import DeposedError
from zkv.durability.wal import Wal
from zkv.errors import ReadOnly
from zkv.etcd.errors import EtcdError
from zkv.figures import Buckets
from zkv.keyspace.log import NOTHING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zkv.cluster.lease import Lease
    from zkv.cluster.shared_log import Tenure
    from zkv.durability.files import Files
    from zkv.durability.segment import SegmentEnd
    from zkv.keyspace import SnapshotView

    _Run = tuple[int, list[bytes], int]

_log = logging.getLogger("zkv.cluster")

WAIT_SECONDS: Final = 3.0
"""How long a commit waits for etcd before those who wait for it are told that it may be lost."""
PAUSE_SECONDS: Final = 0.05
"""Pause before a batch is repeated."""
GATHER_SHARE: Final = 0.5
"""An append waits for further commits for this part, at most, of what recent ones took."""
PAUSE_TO_GATHER_SECONDS: Final = 0.0001
"""So often it looks if they have come."""
MOST_PAUSES: Final = 3
"""It goes on earlier if no commit has come in so many pauses."""
BATCH_BYTES: Final = 4 * 1024 * 1024
"""Bytes of commits from which on a batch takes no more."""


class ReplicatedWal(Wal):
    """The log of a member.

    Args: see `Wal`.
        lease: the member's lease.
        confirms: a leader has each read confirmed.
    """

    lasts_elsewhere = True

    def __init__(
        self,
        files: Files,
        directory: Path,
        rev: int,
        lsn: int,
        end: SegmentEnd | None,
        segment_bytes: int,
        lease: Lease,
        confirms: bool,
    ) -> None:
        self._lease = lease
        self._confirms = confirms
        self._tenure: Tenure | None = None
        self._sending: LogBatch | None = None  # What etcd has not confirmed yet,
        self._sending_runs: list[_Run] = []  # and the same as it left the queue.
        self._check_at = 0
        self._held: str | None = None  # Why `hold` has writes refused.
        self._epoch = 0
        self._was_deposed = False  # That is why it rolled back last, and no failure here.
        self._rolled_back = False  # A leader that has rolled back, and does not follow yet.
        self._sender = 0  # The thread that has appended last.
        self._append_seconds = 0.0  # Of recent appends; each has a fifth of the weight.
        self._expected = 0  # Commits that the next append waits for.
        self._woken = threading.Event()
        self.append_times = Buckets()
        """How long etcd took for each batch. `sync_times` are those of the copy on the disk."""
        self.commits_per_append = Buckets()
        self._stopping = False
        self._has_given_up = False  # Since it is stopping, etcd has not answered.
        self.now: Callable[[], int] = lambda: 0
        """Returns the time of the store."""
        self.on_deposed: Callable[[str], None] = lambda reason: None
        """Called, in any thread, with the reason, if this member may lead no more."""
        super().__init__(files, directory, rev, lsn, end, segment_bytes, sync_each=False)

    @property
    def epoch(self) -> int:
        """The number of rollbacks so far; below 0, another number each, while the lease is over."""
        if self._tenure is not None and (lapse := self._lease.lapse) is not None:
            return -1 - lapse
        return self._epoch

    @epoch.setter
    def epoch(self, number: int) -> None:
        self._epoch = number

    def survived(self, epoch: int) -> tuple[int, int]:
        """Return `NOTHING`: see above."""
        return NOTHING

    @property
    def syncs_quickly(self) -> bool:
        """False: the front must not wait for etcd."""
        return False

    def lead(self, tenure: Tenure) -> None:
        """Append commits to etcd from now on. Everything that is here is there."""
        with self._io:
            if not self._stopping:
                self._woken.clear()
            self._tenure, self._held = tenure, None
            self.confirms_reads = self._confirms

    def follow(self, reason: str) -> None:
        """Append nothing to etcd from now on, and roll back what it has not confirmed.

        No client may write any more when this is called.
        """
        self._woken.set()  # Whoever waits for etcd stops.
        with self._io:
            if self._tenure is not None:
                self._step_down(reason)
            if self._rolled_back:
                self._rolled_back = False
                if self._was_deposed:
                    self._resume("this member follows")

    def give_up(self) -> None:
        """Have those who wait for etcd stop to wait, now and later: the server is stopping."""
        self._stopping = True
        self._woken.set()

    def hold(self, reason: str | None) -> None:
        """Refuse writes for a reason as long as this member leads; None = take them again.

        Nothing is rolled back. Any thread.
        """
        with self._io:
            if self._tenure is None or reason == self._held:
                return
            self._held = reason
            if reason is not None:
                with self._keyspace_lock:
                    self._begin_refusal(ReadOnly(reason))
                self._report(reason)
            elif self._sending is None:
                self._resume("there is room in etcd again")

    def view_to_compare(self, view: Callable[[], SnapshotView]) -> SnapshotView:
        """Return a view that the followers can take, too: the next batch tells its log number."""
        with self._io:
            taken = view()
            self._check_at = taken.lsn
            return taken

    def commit(self, lsn: int, durable: bool, patient: bool = True) -> bool:
        """See `Wal.commit`. What lasts is in etcd, so the copy here is not synced for it."""
        if not patient and self._tenure is not None:
            return lsn <= self.written_lsn and not self.confirms_reads
        if not self.confirms_reads:
            return super().commit(lsn, False, patient)
        own = threading.get_ident()
        if self._sender == own:
            self._sender = 0  # That was an append before this call.
        super().commit(lsn, False, patient)
        with self._io:
            if self._tenure is not None and self._sender != own:
                self._confirm(self._tenure)
        return True

    def sync_written(self) -> None:
        """See `Wal.sync_written`."""
        super().commit(self.written_lsn, durable=True)

    def try_again(self) -> None:
        """See `Wal.try_again`. It also sends again what etcd has not answered."""
        with self._io:
            if waits := self._sending is not None:
                with contextlib.suppress(ReadOnly):
                    self._write_queued()
            may_probe = not waits and not self._rolled_back and not self._is_held
        if waits:
            self.on_safe()
        elif may_probe:
            super().try_again()

    @property
    def _has_queued(self) -> bool:
        return self._sending is not None or super()._has_queued

    def _take_queued(self) -> list[_Run]:
        """See `Wal._take_queued`: take what etcd has confirmed. Raises ReadOnly."""
        if self._tenure is None:
            return super()._take_queued()
        if self._sending is None:
            self._gather()
            self._sending_runs = self._next_runs()
            if not self._sending_runs:
                return []
            payloads = [payload for _, run, _ in self._sending_runs for payload in run]
            tenure = self._tenure
            at, self._check_at = self._check_at, 0
            self._sending = LogBatch.after(tenure.head, tenure.term, payloads, self.now(), at)
        self._send(self._tenure, self._sending)
        self._sending = None
        return self._sending_runs

    def _gather(self) -> None:
        """Wait a moment for the commits of those whom the last append has answered. `_io` held.

        A lone writer never waits: nobody else was there.
        """
        deadline = time.monotonic() + GATHER_SHARE * self._append_seconds
        queued, silent = self.last_lsn - self.written_lsn, 0
        while 0 < queued < self._expected and silent < MOST_PAUSES and time.monotonic() < deadline:
            self._woken.wait(PAUSE_TO_GATHER_SECONDS)
            before, queued = queued, self.last_lsn - self.written_lsn
            silent = silent + 1 if queued == before else 0

    def _next_runs(self) -> list[_Run]:
        """Take from the queue what fits into a batch; at least one run, if there is one."""
        runs: list[_Run] = []
        size = 0
        while self._queue and size < BATCH_BYTES:
            runs.append(self._queue.popleft())
            size = runs[-1][2] - self._written_bytes
        return runs

    def _send(self, tenure: Tenure, batch: LogBatch) -> None:
        """Append a batch to etcd. Raises ReadOnly."""
        if self._has_given_up:
            raise ReadOnly("etcd does not take the log, and the server is stopping", applied=None)
        began = time.monotonic()
        # Once it was waited for in vain, nobody waits for longer than one attempt takes.
        patience = WAIT_SECONDS if self._refusal is None else 0.0

        def go_on(_: EtcdError) -> bool:
            if time.monotonic() - began >= patience:
                return False
            return not self._woken.wait(PAUSE_SECONDS)

        try:
            leads = tenure.append(batch, go_on)
        except DeposedError as error:
            raise self._step_down(str(error)) from error
        except EtcdError as error:
            raise self._wait_for_etcd(error) from error
        # If an earlier attempt has appended it, somebody else may have taken over since.
        self._sender = threading.get_ident() if leads else 0
        took = time.monotonic() - began
        self.append_times.add_time(took)
        self._append_seconds += (took - self._append_seconds) / 5
        commits = len(batch.payloads)
        self._expected = commits + self.last_lsn - batch.last_lsn
        self.commits_per_append.add(commits.bit_length(), commits)
        if self._refusal is not None:
            self._resume("etcd answers again")

    def _confirm(self, tenure: Tenure) -> None:
        """Ask etcd if this member still leads. Raises ReadOnly if not, or if no answer comes."""
        began = time.monotonic()
        while True:
            try:
                tenure.confirm()
            except DeposedError as error:
                raise self._step_down(str(error)) from error
            except EtcdError as error:
                waited = time.monotonic() - began
                if waited >= WAIT_SECONDS or self._woken.wait(PAUSE_SECONDS):
                    # What waits may have been appended by another thread: it is in the log then.
                    why = f"etcd does not confirm who leads: {error}"
                    raise ReadOnly(why, applied=None) from error
            else:
                return

    def _wait_for_etcd(self, error: EtcdError) -> ReadOnly:
        """Refuse writes until etcd answers; nothing is rolled back. `_io` held."""
        reason = f"etcd does not take the log: {error}"
        with self._keyspace_lock:
            self._begin_refusal(ReadOnly(reason))
        self._report(reason)
        self._has_given_up = self._stopping
        return ReadOnly(reason, applied=None)

    def _step_down(self, reason: str) -> ReadOnly:
        """Roll back what is not confirmed, and lead no more; return the error. `_io` held."""
        self._reported = reason  # It is no error: whoever calls says it.
        refused = self._refuse(reason, None)
        self._was_deposed = True
        return refused

    @property
    def _is_held(self) -> bool:
        return self._held is not None and self._tenure is not None

    def _refuse(
        self, reason: str, applied: bool | None, kind: type[ReadOnly] = ReadOnly
    ) -> ReadOnly:
        """See `Wal._refuse`. A leader that rolls back leads no more: etcd may have more."""
        if self._tenure is None:
            return super()._refuse(reason, applied, kind)
        self._lease.end()
        self._rolled_back, self._was_deposed, self._sending = True, False, None
        super()._refuse(reason, None)
        self.on_deposed(reason)
        return ReadOnly(reason, applied=None)

    def _refused(self) -> ReadOnly:
        """See `Wal._refused`. What was rolled back here may be in etcd."""
        refused = super()._refused()
        refused.applied = None
        return refused

    def _end_epoch(self) -> None:
        # While there is a tenure the epoch is that of the lapse: so no moment shows the old one.
        self._epoch += 1
        self._tenure, self.confirms_reads = None, False

    def _resume(self, why: str = "the log can be written again") -> None:
        if self._is_held:
            with self._keyspace_lock:
                self._begin_refusal(ReadOnly(self._held or ""))
        elif not self._rolled_back:
            super()._resume(why)

    def _still_refuses(self, refusal: ReadOnly, removes: bool) -> bool:
        if self._sending is not None or self._rolled_back or self._is_held:
            return True
        return super()._still_refuses(refusal, removes)
