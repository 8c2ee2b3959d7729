"""The write-ahead log: takes commits in revision order, and writes them before they are revealed.

Strategy: `append` is called with the keyspace's lock held and only queues a commit, so the log's
order is the order of revisions. Each commit has the next log number (LSN) in its payload. LSNs
count on across restarts; unlike revisions, they also count commits that change nothing. `commit` is
called without that lock. The first thread that gets the file takes the whole queue, writes it with
one system call and, if asked to, makes it durable with one fdatasync. Threads that waited for the
file then find their own commits done (group commit, as in DeWitt et al., "Implementation Techniques
for Main Memory Database Systems", SIGMOD 1984).

What may be revealed, and when: a commit is first queued, then written, then durable. Under the
policy ``always`` it is *safe* once it is durable, otherwise once it is written. The keyspace
applies a commit as soon as it is queued, so later commands see it at once. Their replies, like the
reply to the write itself, must wait until `safe_rev` has reached the newest revision that they
reveal. Therefore nothing that a rollback undoes has ever been revealed.

When a write fails (disk full, I/O error), the log truncates the file behind `kept_lsn`, rolls the
keyspace back to it, and refuses writes; after `RETRY_SECONDS` the next write, or `try_again`, tries
again. When an fdatasync fails, nobody knows what is on disk, and a second fdatasync would not tell
(Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020). The log also
rolls back, and takes no write until a snapshot holds everything that the log held (`restart`), or
until a restarted server has read the log back and written its end again. The same happens if
somebody else has removed or changed the log's files (`distrust`).

If little memory is left, which the log finds out after every `LOOK_BYTES`, it refuses all writes
but removals, too. Nothing is rolled back then, since nothing has failed.

A rollback (`_refuse`) is one step under both locks. `_io` stops all writes and syncs, so `safe_lsn`
cannot move meanwhile; the keyspace's lock stops all commands. In that step the log starts to refuse
appends, empties the queue, records what survives the epoch, ends the epoch, and has the keyspace
undo every commit after `kept_lsn`, which is `safe_lsn` unless other servers have to confirm commits
(`zkv.durability.quorum`). So a command runs either before the whole rollback or after it.
Revisions and LSNs are reused afterwards: in the files neither has gaps. A later `commit` may pass
the LSN of a commit that was rolled back, and from then on `commit` succeeds for that LSN, too. So a
caller must compare `epoch` as it was before its commands ran with `epoch` as it is now. If they
differ, neither `safe_rev` nor `safe_lsn` nor a successful `commit` says anything about those
commands. `survived` says what was safe when an epoch ended, and therefore remains safe.

Where commits are not synced one by one, the system is made to write the log back after every
`WRITE_BACK_BYTES` (`write_back`), without a lock: a sync before a new segment, a snapshot or at an
interval stops all writes, and takes the longer the more is left to write. PostgreSQL
(``wal_writer_flush_after``) and RocksDB (``wal_bytes_per_sync``) do so, too.

The front's usual commits are made in C (zkv/compiled/wal.c), which leaves all others to `commit`.

At a start the log continues in the newest segment. It begins a new one when that is full, and
before a snapshot: the snapshot covers the old segment, which is removed once nothing needs it. So
the log holds about what was written since the snapshot before the last.

Locks: `_io` guards the file, the offsets and the written revisions. It is taken before the
keyspace's lock, never while holding it. `_refusal`, which makes appends fail, changes only with the
keyspace's lock held.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, BinaryIO, Final, NoReturn

from zkv import compiled
from zkv.activity import Activity
from zkv.durability import segment
from zkv.durability.files import Files
from zkv.durability.lock import changed
from zkv.errors import OutOfMemory, ReadOnly
from zkv.figures import Buckets
from zkv.keyspace import memory
from zkv.keyspace.change import revision_in
from zkv.keyspace.half_done import end_process
from zkv.keyspace.log import NOTHING
from zkv.keyspace.memory import NO_MEMORY
from zkv.system import only_append

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


_log = logging.getLogger("zkv.durability")

LEAST_SHARE: Final = 2
"""A snapshot begins a new segment if the current one has 1/LEAST_SHARE of its full size."""
SLOW_SECONDS: Final = 1.0
"""An operation of the disk that takes longer explains why threads wait: see `Wal.on_disk`."""
QUICK_SYNC_SECONDS: Final = 0.001
"""A thread that others wait for waits for a sync only if recent syncs took less than this."""
EPOCHS_KNOWN: Final = 100
"""For this many of the last epochs, `survived` knows what was safe when they ended."""
RETRY_SECONDS: Final = 0.5
"""After a failed write, writes are refused for this long; then the next one tries the disk."""
LOOK_BYTES: Final = 512 * 1024
"""Bytes of commits after which the log looks whether there is memory for more."""
WRITE_BACK_BYTES: Final = 8 * 1024 * 1024
"""After so many bytes, where commits are not synced one by one, the log is to be written back."""
PROBE: Final = "probe.tmp"
"""The file that `Wal.try_again` writes and removes. Recovery removes it, too."""
PROBE_BYTES: Final = 64 * 1024
"""Its size."""


if TYPE_CHECKING:
    _Base = object
else:  # C has most of the attributes, since it makes commits.
    _Base = compiled.store.WalBase if compiled.COMPILED else object


class Wal(_Base):
    """The log of one running server.

    Args:
        files: the door to the file system.
        directory: where segments are; it holds nothing newer than ``rev``.
        rev: the recovered revision; all of it is on disk.
        lsn: the log number of the newest commit.
        end: where to continue the newest segment; None = begin a new one.
        segment_bytes: the size at which a new segment is begun.
        sync_each: True if a revision is safe only once it is durable (policy ``always``), False if
            it is safe as soon as it is written.

    Raises:
        OSError: the segment cannot be opened or created.
    """

    confirms_reads = False
    """See `zkv.keyspace.log.CommitLog`."""
    lasts_elsewhere = False
    """True if others have what is safe on their disks, so that this one is a copy."""
    awaits_standbys = False
    """True if standbys have to confirm commits while this server leads."""

    def __init__(
        self,
        files: Files,
        directory: Path,
        rev: int,
        lsn: int,
        end: segment.SegmentEnd | None,
        segment_bytes: int,
        sync_each: bool,
    ) -> None:
        self._files = files
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._sync_each = sync_each
        self._is_usual = type(self) is Wal
        # Then zkv/compiled/wal.c calls the system itself. On macOS a sync is more than one call.
        self._is_direct = type(files) is Files and sys.platform == "linux"
        self._queue: deque[tuple[int, list[bytes], int]] = deque()
        self._io = threading.Lock()
        self._refusal: ReadOnly | None = None
        self.takes_commits = True
        """True if `extend` may be called: `_refusal` is None. Keyspace's lock held."""
        self._retry_at = 0.0
        self._unlooked = 0  # Bytes written since the last look at the memory.
        self._asked_at = 0  # `bytes_written` when `on_unsynced` was called last.
        self._broken = False
        self._reported: str | None = None
        self._roll_back: Callable[[int], None] = lambda lsn: None
        self.require_place: Callable[[], None] = lambda: None
        """Raises OSError if ``directory`` was replaced or removed: no file may be made in it."""
        self.on_closed: Callable[[Path, int], None] = lambda path, size: None
        """Called with the path of each segment that is complete, and its final size in bytes."""
        self.beginning_segment = Activity("segment")
        """Goes on while a new segment is begun."""
        self.on_disk = Activity("disk", SLOW_SECONDS)
        """Goes on while the disk is waited for; known are the times that were long. `_io` held."""
        self.on_unsynced: Callable[[], None] = lambda: None
        """Called now and then, in any thread, for `write_back` to be called in another one."""
        self.on_safe: Callable[[], None] = lambda: None
        """Called, in any thread, when commits have become safe."""
        self.listeners: tuple[object, ...] = ()
        """Whom `on_safe` tells something now is true; zkv/compiled/wal.c calls it only for these,
        and now and then."""
        self._keyspace_lock: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        self._begin_counting(rev, lsn)
        self._survived: dict[int, tuple[int, int]] = {}
        self.bytes_written = 0
        self.syncs = 0
        self.sync_times = Buckets()
        self.commits_per_sync = Buckets()
        self.refused_since: float | None = None
        """Unix time since which writes have been refused; None = they are not."""
        self.begun: list[segment.SegmentHeader] = []
        """The headers of the segments that this process has begun. Only ever grows; any thread."""
        self._doubted = False
        self.quick_sync_seconds = QUICK_SYNC_SECONDS
        """A sync that takes less is quick."""
        self._sync_seconds = 0.0  # The slowest recent sync; each later one lowers it by a tenth.
        self._offset = self._synced = self._first_rev = self._salt = 0
        self._file = self._begin_segment(rev + 1) if end is None else self._open_segment(end)

    def _begin_counting(self, rev: int, lsn: int) -> None:
        self.last_lsn = lsn
        """The LSN of the newest commit; changes with the keyspace's lock held."""
        # Of all commits that were queued and not rolled back, and of those that are safe.
        self.appended_bytes = self.safe_bytes = self._written_bytes = self._durable_bytes = 0
        self.written_lsn = self.durable_lsn = lsn
        self.written_rev = self.durable_rev = rev
        # What this log keeps, whatever fails: durable under ``always``, otherwise written.
        self.kept_lsn, self.kept_rev, self.kept_bytes = lsn, rev, 0
        self.safe_lsn = lsn
        """The LSN of the newest commit that is safe: it will not be rolled back."""
        self.safe_rev = rev
        """The newest revision that is safe: it may be revealed, and will not be rolled back."""
        self.epoch = 0
        """The number of rollbacks so far."""

    def attach(
        self,
        keyspace_lock: contextlib.AbstractContextManager[object],
        roll_back: Callable[[int], None],
    ) -> None:
        """Connect the log to its keyspace.

        Args:
            keyspace_lock: the lock that is held when commits are appended.
            roll_back: ``roll_back(lsn)`` undoes every commit after ``lsn``; called with that lock
                held.
        """
        self._keyspace_lock = keyspace_lock
        self._roll_back = roll_back

    @property
    def needs_confirmation(self) -> bool:
        """True if commits are safe only once others have confirmed them."""
        return self.lasts_elsewhere

    def begin_to_lead(self, starts: bool) -> None:
        """Note that this server leads from now on.

        Args:
            starts: it has just started; else it has followed another one so far.
        """

    def confirm(self, standby: str, lsn: int) -> None:
        """Note what a standby has on its disk. Any thread."""

    @property
    def broken(self) -> bool:
        """True if the log takes no write before `restart`: after a failed sync, or `distrust`."""
        return self._broken

    @property
    def refusal(self) -> str | None:
        """The reason why writes are refused; None = no error is known."""
        refusal = self._refusal
        return None if refusal is None else refusal.message

    @property
    def segment_size(self) -> int:
        """The size of the newest segment, in bytes."""
        return self._offset

    @property
    def syncs_quickly(self) -> bool:
        """True if recent syncs took less than `QUICK_SYNC_SECONDS`. The next may take longer."""
        return self._sync_seconds < self.quick_sync_seconds

    def survived(self, epoch: int) -> tuple[int, int]:
        """The newest revision and LSN that were safe when ``epoch`` ended; they remain safe.

        `NOTHING` if ``epoch`` has not ended, or was more than `EPOCHS_KNOWN` epochs ago.
        """
        return self._survived.get(epoch, NOTHING)

    def append(self, payload: bytes, removes: bool = False) -> int:
        """Queue a commit with the next LSN; returns that. Call with the keyspace's lock held.

        Args:
            payload: the commit.
            removes: True if it only removes entries.

        Raises:
            ReadOnly: the log cannot be written now; nothing was queued.
        """
        refusal = self._refusal
        if refusal is not None and self._still_refuses(refusal, removes):
            raise type(refusal)(refusal.message)
        return self.extend([payload], len(payload))

    def _still_refuses(self, refusal: ReadOnly, removes: bool) -> bool:
        if self._broken or not isinstance(refusal, OutOfMemory):
            return self._broken or time.monotonic() < self._retry_at
        if removes:
            return False
        if time.monotonic() >= self._retry_at and not memory.is_short():
            return False
        self._retry_at = max(self._retry_at, time.monotonic())
        return True

    def extend(self, payloads: list[bytes], size: int) -> int:
        """Queue commits of so many bytes in one step, so that one write takes them all.

        Returns the last one's LSN. Call with the keyspace's lock held, and only if `takes_commits`.
        """
        # In one step, because a writer takes whatever is queued. `last_lsn` changes afterwards: a
        # thread that sees it first and finds the queue empty would conclude that the commits have
        # been rolled back.
        lsn = self.last_lsn + len(payloads)
        self.appended_bytes += size
        self._queue.append((lsn, payloads, self.appended_bytes))
        self.last_lsn = lsn
        return lsn

    def commit(self, lsn: int, durable: bool, patient: bool = True) -> bool:
        """Write every commit up to ``lsn`` and, if ``durable``, wait until they are on disk.

        A result of True counts only if `epoch` has not changed since the commits were queued: see
        the paragraph on rollback at the top of this module.

        Args:
            lsn: the LSN of the newest commit concerned.
            durable: True to wait until the commits are on disk.
            patient: True to wait as long as needed: for another thread that has the file, for a new
                segment, for a slow disk. If False, the call waits at most `QUICK_SYNC_SECONDS` for
                the file, then for one write, and for one sync if recent ones were quick.

        Returns:
            True if it is done; always True if ``patient``. False if it would have to wait; then
            nothing was done.

        Raises:
            ReadOnly: writing failed. Every commit that is not safe has been rolled back, and
                ``applied`` says whether such a commit may be on disk nevertheless.
        """
        if lsn <= (self.durable_lsn if durable else self.written_lsn):
            return True
        acquire = self._io.acquire
        if not acquire(False) and not acquire(True, -1 if patient else QUICK_SYNC_SECONDS):
            return False
        try:
            # Checked with the lock held: before, another thread may fill the segment.
            if not (patient or self._is_quick(lsn, durable)):
                return False
            while lsn > self.written_lsn:
                self._write_queued()
            if durable and lsn > self.durable_lsn:
                self._sync()
        finally:
            self._io.release()
        self.on_safe()
        return True

    def flush(self) -> None:
        """Write and sync everything that was appended and not rolled back. Raises ReadOnly."""
        with self._io:
            while self._has_queued:
                self._write_queued()
            if self.durable_lsn < self.written_lsn:
                self._sync()
        self.on_safe()

    def write_back(self) -> None:
        """Have the system write the newest segment to the disk, while others write on to it.

        The next sync, which stops them, then has little left to do. Nothing is known to be durable
        by this, and an error is left for that sync.
        """
        if not self._sync_each:
            self._files.write_back(self._path)

    def begin_snapshot(self) -> None:
        """Begin a new segment if the current one is large enough (`LEAST_SHARE`), or doubted.

        The coming snapshot then covers the old segment, so that it can be removed. Raises ReadOnly
        if the old segment cannot be made durable.
        """
        self.write_back()
        with self._io:
            worth_it = self._doubted or self._offset >= self._segment_bytes // LEAST_SHARE
            if self._broken or not worth_it or self.written_rev < self._first_rev:
                return
            try:
                self._rotate(self.written_rev + 1)
            except Exception as error:
                if self._broken:
                    raise self._refuse(_cannot_write(error), None) from error
                # The disk is full. The old segment is still good, and the snapshot may free space.
                if not isinstance(error, OSError | MemoryError):
                    raise

    def restart(self, rev: int) -> None:
        """Begin a new segment after a snapshot at ``rev``, and take writes again.

        No write may have been taken since the snapshot. This is how the server recovers from a
        failed fdatasync: the snapshot holds everything that the old segment held, so the state of
        that segment on disk no longer matters.

        Raises:
            OSError: the segment cannot be created; the log stays as it is.
        """
        with self._io:
            old = self._file
            self._file = self._begin_segment(rev + 1)
            old.close()
            self.written_rev = self.durable_rev = rev
            self.written_lsn = self.durable_lsn = self.last_lsn
            self._written_bytes = self._durable_bytes = self.appended_bytes
            self._note_safe()
            self._broken = False
            self._resume()

    def doubt(self, salt: int) -> None:
        """Note that the segment with this salt cannot be read back. Any thread.

        If it is the newest one, the next snapshot begins another.
        """
        with self._io:
            self._doubted = self._doubted or salt == self._salt

    def disorder(self) -> str | None:
        """Describe what others have done to the newest segment's file; None = nothing."""
        with self._io:
            return None if self._broken else changed(self._path, self._file, self._offset)

    def distrust(self, reason: str) -> None:
        """Refuse writes until `restart`, because files of the log may be missing or changed."""
        with self._io:
            self._broken = True
            self._refuse(reason, None)

    def try_again(self) -> None:
        """Take writes again if they were refused and the disk has space now.

        Otherwise only the next write would find that out. It may never come: who first asks whether
        the server takes writes is told that it does not.
        """
        with self._io:
            if self._refusal is None or self._broken or time.monotonic() < self._retry_at:
                return
            if isinstance(self._refusal, OutOfMemory):
                self._look_at_memory()
                return
            probe = self._directory / PROBE
            try:
                self.require_place()
                with self.on_disk, self._files.create(probe) as file:
                    self._files.write(file, bytes(PROBE_BYTES))
                    self._files.sync(file)
                self._files.remove(probe)
            except OSError:
                with contextlib.suppress(OSError):
                    self._files.remove(probe)
                return
            self._resume()

    def close(self) -> None:
        """Close the file. Queued commits are lost."""
        with self._io:
            self._file.close()

    def sync_written(self) -> None:
        """Sync what is written. Raises ReadOnly."""
        self.commit(self.written_lsn, durable=True)

    @property
    def _has_queued(self) -> bool:
        """True if commits wait to be written."""
        return bool(self._queue)

    def _take_queued(self) -> list[tuple[int, list[bytes], int]]:
        """Take what is to be written next from the queue. `_io` held."""
        queue, runs = self._queue, []
        while queue:
            runs.append(queue.popleft())
        return runs

    def _write_queued(self) -> None:
        """Write what is queued with one system call."""
        try:
            runs = self._take_queued()
            if not runs:
                # A rollback emptied the queue. After a failed sync the commits may be on disk.
                raise self._refused()
            if runs[0][0] - len(runs[0][1]) != self.written_lsn:
                end_process("log")  # Recovery would stop at the gap, whatever came after it.
            if self._segment_is_full():
                self._rotate(self.written_rev + 1)
            synced, salt = self._synced, self._salt
            payloads = runs[0][1]
            if len(runs) > 1:
                payloads = [payload for _, run, _ in runs for payload in run]
            size = runs[-1][2] - self._written_bytes
            if size > LOOK_BYTES:
                self._require_memory(size)
            data = segment.pack_frames(payloads, synced, salt)
            with self.on_disk:
                self._files.write(self._file, data)
        except ReadOnly:
            raise  # Everything has been rolled back already.
        except Exception as error:
            self._fail_write(error)
        self._offset += len(data)
        self.bytes_written += len(data)
        self.written_lsn, newest, self._written_bytes = runs[-1]
        self.written_rev = revision_in(newest[-1])
        self._note_safe()
        self._unlooked += len(data)
        if self._unlooked >= LOOK_BYTES or self._refusal is not None:
            self._look_around()

    def _fail_write(self, error: Exception) -> NoReturn:
        """Roll back after an error. `_io` held. Raises ReadOnly.

        Commits that left the queue must be written or rolled back, whatever the error is. Otherwise
        the log would have a gap. If even that fails, as may happen without memory, the process
        ends.
        """
        try:
            if not isinstance(error, OSError | MemoryError):
                _log.error("this is a bug in zkv", exc_info=error)
            refused = self._write_failed(error)
        except Exception:
            end_process("rollback")
        raise refused from error

    @staticmethod
    def _require_memory(size: int) -> None:
        """Raise MemoryError if so many bytes cannot be written, now that a rollback still can."""
        if memory.is_short(2 * size):
            raise MemoryError

    def _look_around(self) -> None:
        """Do what is due after every `LOOK_BYTES`. `_io` held; the disk is all right."""
        self._unlooked = 0
        if not self._sync_each and self.bytes_written - self._asked_at >= WRITE_BACK_BYTES:
            self._asked_at = self.bytes_written
            self.on_unsynced()
        self._look_at_memory()

    def _look_at_memory(self) -> None:
        """Take writes, or refuse those that need memory. `_io` held; the disk is all right."""
        if memory.is_short():
            with self._keyspace_lock:
                self._begin_refusal(OutOfMemory(NO_MEMORY))
            self._report(NO_MEMORY)
        elif self._refusal is not None:
            self._resume()

    @property
    def _path(self) -> Path:
        """The path of the newest segment."""
        return self._directory / segment.file_name(self._first_rev)

    def _is_quick(self, lsn: int, durable: bool) -> bool:
        """True if `commit` needs only one write and, if ``durable``, the disk syncs quickly."""
        if durable and not self.syncs_quickly:
            return False
        return lsn <= self.written_lsn or not self._segment_is_full()

    def _segment_is_full(self) -> bool:
        """True if the next write must sync this segment and begin a new one."""
        return self._offset >= self._segment_bytes and self.written_rev >= self._first_rev

    def _sync(self) -> None:
        if self._broken:  # After a failed sync, another one may succeed although data is lost.
            raise self._refused()
        lsn, rev, offset = self.written_lsn, self.written_rev, self._offset
        size = self._written_bytes
        began = time.monotonic()
        try:
            with self.on_disk:
                self._files.sync(self._file)
        except Exception as error:
            self._fail_sync(error)
        took = time.monotonic() - began
        self._sync_seconds = max(took, 0.9 * self._sync_seconds)
        self.syncs += 1
        self.sync_times.add_time(took)
        commits = lsn - self.durable_lsn
        self.commits_per_sync.add(commits.bit_length(), commits)
        self._synced = offset
        self.durable_rev = rev
        self.durable_lsn = lsn
        self._durable_bytes = size
        self._note_safe()

    def _fail_sync(self, error: Exception) -> NoReturn:
        """Roll back after an error, as `_fail_write` does. `_io` held. Raises ReadOnly."""
        try:
            if not isinstance(error, OSError):
                _log.error("this is a bug in zkv", exc_info=error)
            refused = self._sync_failed(error)
        except Exception:
            end_process("rollback")
        raise refused from error

    def _note_safe(self) -> None:
        """Update what is kept and safe, after what is written or durable has changed."""
        if self._sync_each:
            self.kept_lsn = self.safe_lsn = self.durable_lsn
            self.kept_rev = self.safe_rev = self.durable_rev
            self.kept_bytes = self.safe_bytes = self._durable_bytes
        else:
            self.kept_lsn = self.safe_lsn = self.written_lsn
            self.kept_rev = self.safe_rev = self.written_rev
            self.kept_bytes = self.safe_bytes = self._written_bytes

    def _rotate(self, first_rev: int) -> None:
        """Begin a new segment, after the old one is completely on disk."""
        self._sync()
        old, path, size = self._file, self._path, self._offset
        lost = changed(path, old, size)
        if lost is not None:
            self._broken = True
            raise OSError(errno.EIO, lost)
        with self.beginning_segment, self.on_disk:
            self._file = self._begin_segment(first_rev)
        self.on_closed(path, size)
        old.close()

    def _open_segment(self, end: segment.SegmentEnd) -> BinaryIO:
        """Continue a segment. That takes no space, so it also succeeds on a full disk."""
        name = segment.file_name(end.first_rev)
        file, self._offset = self._files.open_append(self._directory / name)
        only_append(file)
        self._synced = self._offset
        self._first_rev, self._salt = end.first_rev, end.salt
        return file

    def _begin_segment(self, first_rev: int) -> BinaryIO:
        self.require_place()
        path = self._directory / segment.file_name(first_rev)
        beside = path.with_name(path.name + ".tmp")
        header = segment.new_header(first_rev, self.written_lsn + 1)
        file = self._files.create(beside)
        only_append(file)
        try:
            self._files.write(file, header.pack())
            self._files.sync(file)
            self._files.rename(beside, path)
            self._files.sync_directory(self._directory)
        except BaseException:
            file.close()
            self._remove_failed(beside)
            self._remove_failed(path)
            raise
        self._offset = self._synced = header.size
        self._first_rev, self._salt = first_rev, header.salt
        self._doubted = False
        self.begun.append(header)  # Last: from now on nothing is written to the one before.
        return file

    def _remove_failed(self, path: Path) -> None:
        """Remove a file that `_begin_segment` failed to complete, and sync the directory.

        If the new segment remained, or reappeared after a power cut, recovery would take its first
        revision for the end of the old segment, and ignore what is written there from now on.
        """
        try:
            self._files.remove(path)
            self._files.sync_directory(self._directory)
        except FileNotFoundError:
            return
        except OSError:
            self._broken = True

    def _write_failed(self, error: Exception) -> ReadOnly:
        """Truncate the file to what stays, roll back the rest, and refuse writes for a while."""
        applied: bool | None = False
        # As far as `_refuse` does not roll back. Frames that stayed beyond that would have the
        # revisions of later commits.
        self._offset = self._synced if self._sync_each else self._offset
        try:
            # The failed write may have put complete frames into the file. Clients are told that
            # these were not applied, so they must not reappear after a power cut: sync.
            with self.on_disk:
                self._files.truncate(self._file, self._offset)
                self._files.sync(self._file)
        except Exception:
            self._broken = True  # The file may end with half a frame: never append after that.
            applied = None
        if memory.has_run_out(error) and not self._broken:
            return self._refuse(NO_MEMORY, applied, OutOfMemory)
        return self._refuse(_cannot_write(error), applied)

    def _sync_failed(self, error: Exception) -> ReadOnly:
        self._broken = True
        return self._refuse(f"the log could not be made durable: {_reason(error)}", None)

    def _refuse(
        self, reason: str, applied: bool | None, kind: type[ReadOnly] = ReadOnly
    ) -> ReadOnly:
        """Refuse writes and roll back to what is safe; returns the error to raise. `_io` held."""
        # Commands see the steps as one, since they need the lock. But `epoch` and `survived` are
        # read without it, so what survives an epoch is recorded before the epoch ends.
        with self._keyspace_lock:
            self._begin_refusal(kind(reason))
            self._queue.clear()
            self._end_epoch()
            try:
                self._roll_back(self.kept_lsn)
            except BaseException:
                end_process("rollback")
            self.last_lsn = self.kept_lsn
            self.appended_bytes = self.kept_bytes
            if self._sync_each:
                self.written_rev = self.durable_rev
                self.written_lsn = self.durable_lsn
                self._written_bytes = self._durable_bytes
        self._report(reason)
        return kind(reason, applied=applied)

    def _end_epoch(self) -> None:
        """End the epoch, and note what survives it. Keyspace's lock held."""
        self._survived[self.epoch] = self.safe_rev, self.safe_lsn
        self._survived.pop(self.epoch - EPOCHS_KNOWN, None)
        self.epoch += 1

    def _begin_refusal(self, refusal: ReadOnly) -> None:
        """Refuse writes. Keyspace's lock held."""
        self._refusal = refusal
        self.takes_commits = False
        self.refused_since = self.refused_since or round(time.time(), 3)
        self._retry_at = time.monotonic() + RETRY_SECONDS

    def _report(self, reason: str) -> None:
        if reason != self._reported:  # Log it once, not for each request.
            self._reported = reason
            _log.error("%s; writes are refused, reads continue", reason)

    def _refused(self) -> ReadOnly:
        """The error for a commit that was queued before the log failed."""
        refusal = self._refusal or ReadOnly("the log cannot be written")
        return type(refusal)(refusal.message, applied=None if self._broken else False)

    def _resume(self, why: str = "the log can be written again") -> None:
        had_no_memory = isinstance(self._refusal, OutOfMemory)
        with self._keyspace_lock:
            self._refusal = None
            self.takes_commits = True
            self.refused_since = None
        self._reported = None
        _log.warning("there is memory again" if had_no_memory else why)


def _cannot_write(error: Exception) -> str:
    return f"the log cannot be written: {_reason(error)}"


def _reason(error: Exception) -> str:
    reason = NO_MEMORY if isinstance(error, MemoryError) else str(error)
    if isinstance(error, OSError):
        reason = error.strerror or reason
        if error.filename is not None:
            reason = f"{error.filename}: {reason}"
    return reason
