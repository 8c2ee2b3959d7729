"""The write-ahead log: commits go in in revision order, and are on disk before anyone is told.

Strategy: `append` is called under the keyspace's lock and only puts a commit into a queue, so log
order is revision order; each commit gets the next log number (LSN), which starts at 1 in each run
of the server and, unlike the revision, also counts commits that change nothing. `commit` is called
outside that lock: whoever gets the file first takes all that is queued, writes it with one system
call and, where asked, makes it durable with one fdatasync; whoever waited for the file finds its
own revision already done (group commit, as in DeWitt et al., "Implementation Techniques for Main
Memory Database Systems", SIGMOD 1984).

When a write fails (disk full, I/O error), nothing of it was acknowledged: the file is cut back to
where it was good, the keyspace is rolled back to what is safe, and writes are refused; after a
moment the next write tries again. When an fdatasync fails, nobody knows what is on disk, and asking
again would not tell (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC
2020): the log takes no more writes until a snapshot holds all that it held (`restart`), or the
server has been restarted, has read it back and has written it once more. The same is done where
somebody else has removed or changed what it had written (`distrust`).

At a start the newest segment is gone on with. A new one is begun when that is full, and when a
snapshot is about to be taken: the snapshot covers the old one, which goes as soon as nothing needs
it. So the log is as long as what was written since the snapshot before the last.

Locks: `_io` guards the file, the offsets and the revisions written; it is taken before the
keyspace's lock, never under it. What refuses appends (`_refusal`) changes under the keyspace's
lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, BinaryIO, Final

from zkv.durability import segment
from zkv.durability.lock import changed
from zkv.errors import ReadOnly
from zkv.keyspace.log import NOTHING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zkv.durability.files import Files
    from zkv.keyspace import Packed

_log = logging.getLogger("zkv.durability")

LEAST_SHARE: Final = 2
"""A segment that has this share of its full size is worth being dropped with the next snapshot."""
QUICK_SYNC_SECONDS: Final = 0.001
"""What a sync may take for a thread to wait for it that others wait for."""
EPOCHS_KNOWN: Final = 100
"""Of so many of the last epochs it is known what was left when they ended."""
RETRY_SECONDS: Final = 0.5
"""How long writes are refused after the disk refused one, before another may try."""


class Wal:
    """The log of one running server.

    Args:
        files: the door to the file system.
        directory: where segments live; there is nothing newer than ``rev`` in it.
        rev: the revision of what has been recovered; all of it is on disk.
        end: where the newest segment is gone on with; None = a new one is begun.
        segment_bytes: size at which a new segment is begun.
        sync_each: whether a revision is safe only once it is durable (policy ``always``), and not
            as soon as it is written.

    Raises:
        OSError: the segment cannot be opened or created.
    """

    def __init__(
        self,
        files: Files,
        directory: Path,
        rev: int,
        end: segment.SegmentEnd | None,
        segment_bytes: int,
        sync_each: bool,
    ) -> None:
        self._files = files
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._sync_each = sync_each
        self._queue: deque[tuple[int, list[Packed]]] = deque()
        self._io = threading.Lock()
        self._refusal: ReadOnly | None = None
        self._retry_at = 0.0
        self._broken = False
        self._told: str | None = None
        self._roll_back: Callable[[int], None] = lambda lsn: None
        self.require_place: Callable[[], None] = lambda: None
        """Raises OSError where ``directory`` is not what it was, and no file may be made in it."""
        self.on_closed: Callable[[Path, int], None] = lambda path, size: None
        """Called with each segment that is full, and the bytes that it is to keep."""
        self.on_safe: Callable[[], None] = lambda: None
        """Called, in any thread, when commits have become safe."""
        self._keyspace_lock: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        self.last_lsn = 0
        """Number of the commit appended last; changes under the keyspace's lock."""
        self.written_lsn = 0
        self.durable_lsn = 0
        self.written_rev = rev
        self.durable_rev = rev
        self.safe_lsn = 0
        """The newest commit, by its number, that will not be rolled back."""
        self.safe_rev = rev
        """The newest revision that may be told to anyone, and will not be rolled back."""
        self.epoch = 0
        """How often commits have been rolled back."""
        self._survived: dict[int, tuple[int, int]] = {}
        self.bytes_written = 0
        self.syncs = 0
        self._sync_seconds = 0.0  # Of a recent one: the slower, the longer it is remembered.
        self._offset = 0
        self._synced = 0
        self._first_rev = 0
        self._salt = 0
        self._file = self._begin_segment(rev + 1) if end is None else self._open_segment(end)

    def attach(
        self,
        keyspace_lock: contextlib.AbstractContextManager[object],
        roll_back: Callable[[int], None],
    ) -> None:
        """Say what the log belongs to.

        Args:
            keyspace_lock: the lock under which commits are appended.
            roll_back: ``roll_back(lsn)`` undoes every commit after ``lsn``; called with that lock.
        """
        self._keyspace_lock = keyspace_lock
        self._roll_back = roll_back

    @property
    def broken(self) -> bool:
        """Whether an fdatasync failed: no write is taken before `restart`."""
        return self._broken

    @property
    def refusal(self) -> str | None:
        """Why writes are refused; None = they are taken, as far as is known."""
        refusal = self._refusal
        return None if refusal is None else refusal.message

    @property
    def syncs_quickly(self) -> bool:
        """Whether recent syncs took next to no time. That is no promise for the next one."""
        return self._sync_seconds < QUICK_SYNC_SECONDS

    def survived(self, epoch: int) -> tuple[int, int]:
        """The newest revision, and the newest number, that were left when ``epoch`` ended.

        `NOTHING` if that is not known, or it has not ended.
        """
        return self._survived.get(epoch, NOTHING)

    def append(self, commit: Packed) -> int:
        """Queue a commit; returns its number. Call with the keyspace's lock held.

        Raises:
            ReadOnly: the log cannot be written now; nothing was queued.
        """
        if self._refusal is not None and (self._broken or time.monotonic() < self._retry_at):
            raise ReadOnly(self._refusal.message)
        return self.extend([commit])

    @property
    def takes_commits(self) -> bool:
        """Whether nothing is wrong, and commits are taken. Call with the keyspace's lock held."""
        return self._refusal is None

    def extend(self, commits: list[Packed]) -> int:
        """Queue commits in one step, so that one write takes all; the number of the last one.

        Call with the keyspace's lock held, and where commits are taken.
        """
        # All of them at once, for whoever writes takes what is there. And then the number, for who
        # waits for it takes an empty queue for a rollback.
        lsn = self.last_lsn + len(commits)
        self._queue.append((lsn, commits))
        self.last_lsn = lsn
        return lsn

    def commit(self, lsn: int, durable: bool, patient: bool = True) -> bool:
        """Return once every commit up to ``lsn`` is written and, if ``durable``, on disk.

        Args:
            lsn: number of the newest commit that it is about.
            durable: whether it has to be on disk.
            patient: whether it waits for others who have the file, for the beginning of a segment,
                and for a disk that is known to be slow. Else it waits for one write and one sync of
                its own, and `QUICK_SYNC_SECONDS` for the file.

        Returns:
            Whether that is so. Always, where it is patient; else nothing may have been done.

        Raises:
            ReadOnly: it cannot be; every commit that is not safe has been rolled back, and
                ``applied`` says whether it may be on disk all the same.
        """
        if lsn <= (self.durable_lsn if durable else self.written_lsn):
            return True
        if not self._io.acquire(timeout=-1 if patient else QUICK_SYNC_SECONDS):
            return False
        try:
            # Looked up with the file in hand: others may have filled the segment meanwhile.
            if not (patient or self._is_quick(lsn, durable)):
                return False
            if lsn > self.written_lsn:
                self._write_queued()
            if durable and lsn > self.durable_lsn:
                self._sync()
        finally:
            self._io.release()
        self.on_safe()
        return True

    def flush(self) -> None:
        """Return once everything that was appended, and not rolled back, is on disk.

        Raises ReadOnly where it cannot be.
        """
        with self._io:
            if self._queue:
                self._write_queued()
            if self.durable_lsn < self.written_lsn:
                self._sync()
        self.on_safe()

    def begin_snapshot(self) -> None:
        """Begin a new segment, so that a snapshot can let go of the old one, if that is worth it.

        Raises ReadOnly where the old one cannot be made durable.
        """
        with self._io:
            worth_it = self._offset >= self._segment_bytes // LEAST_SHARE
            if self._broken or not worth_it or self.written_rev < self._first_rev:
                return
            try:
                self._rotate(self.written_rev + 1)
            except OSError as error:
                if self._broken:
                    raise self._refuse(_cannot_write(error), None) from error
                # A full disk: the old segment is as good as before, and the snapshot may make room.

    def restart(self, rev: int) -> None:
        """Begin anew behind a snapshot at ``rev``, after which no write was taken.

        This is the way out after a failed fdatasync: nothing is assumed of the old segment, since
        the snapshot holds all that it held.

        Raises:
            OSError: no new segment can be begun either; the log stays as it is.
        """
        with self._io:
            old = self._file
            self._file = self._begin_segment(rev + 1)
            old.close()
            self.written_rev = self.durable_rev = rev
            self.written_lsn = self.durable_lsn = self.last_lsn
            self._note_safe()
            self._broken = False
            self._resume()

    def disorder(self) -> str | None:
        """What others have done to the newest segment, in words; None = nothing."""
        with self._io:
            return None if self._broken else changed(self._path, self._file, self._offset)

    def distrust(self, reason: str) -> None:
        """Take no more writes before `restart`: what was written may not be there any more."""
        with self._io:
            self._broken = True
            self._refuse(reason, None)

    def close(self) -> None:
        """Close the file; what is queued is lost."""
        with self._io:
            self._file.close()

    def _write_queued(self) -> None:
        """Write all that is queued with one call."""
        queue = self._queue
        try:
            runs = [queue.popleft() for _ in range(len(queue))]
            if not runs:
                # Somebody rolled it back; where a sync failed, it may be on disk all the same.
                raise self._refused()
            if self._segment_is_full():
                self._rotate(self.written_rev + 1)
            synced, salt = self._synced, self._salt
            payloads = [commit.payload for _, commits in runs for commit in commits]
            data = segment.pack_frames(payloads, synced, salt)
            self._files.write(self._file, data)
        except ReadOnly:
            raise  # All has been rolled back.
        except Exception as error:
            # What has left the queue is written or rolled back, whatever happens: else the log
            # would have a gap.
            if not isinstance(error, OSError | MemoryError):
                _log.error("this is a bug in zkv", exc_info=error)
            raise self._write_failed(error) from error
        self._offset += len(data)
        self.bytes_written += len(data)
        self.written_lsn, newest = runs[-1]
        self.written_rev = newest[-1].rev
        self._note_safe()
        if self._refusal is not None:
            self._resume()

    @property
    def _path(self) -> Path:
        """Of the newest segment."""
        return self._directory / segment.file_name(self._first_rev)

    def _is_quick(self, lsn: int, durable: bool) -> bool:
        """Whether a `commit` needs no more than one write, and a sync only of a quick disk."""
        begins_segment = lsn > self.written_lsn and self._segment_is_full()
        return not begins_segment and (self.syncs_quickly or not durable)

    def _segment_is_full(self) -> bool:
        """Whether the next write begins a new segment, once the old one is on disk."""
        return self._offset >= self._segment_bytes and self.written_rev >= self._first_rev

    def _sync(self) -> None:
        if self._broken:  # Asked again, the system may well say that all is on disk.
            raise self._refused()
        lsn, rev, offset = self.written_lsn, self.written_rev, self._offset
        began = time.monotonic()
        try:
            self._files.sync(self._file)
        except Exception as error:
            if not isinstance(error, OSError):
                _log.error("this is a bug in zkv", exc_info=error)
            raise self._sync_failed(error) from error
        self._sync_seconds = max(time.monotonic() - began, 0.9 * self._sync_seconds)
        self.syncs += 1
        self._synced = offset
        self.durable_rev = rev
        self.durable_lsn = lsn
        self._note_safe()

    def _note_safe(self) -> None:
        """What is written or on disk has changed, and so may be what is safe."""
        self.safe_lsn = self.durable_lsn if self._sync_each else self.written_lsn
        self.safe_rev = self.durable_rev if self._sync_each else self.written_rev

    def _rotate(self, first_rev: int) -> None:
        """Begin a new segment. The old one is on disk whole before the new one exists."""
        self._sync()
        old, path, size = self._file, self._path, self._offset
        lost = changed(path, old, size)
        if lost is not None:
            self._broken = True
            raise OSError(errno.EIO, lost)
        self._file = self._begin_segment(first_rev)
        self.on_closed(path, size)
        old.close()

    def _open_segment(self, end: segment.SegmentEnd) -> BinaryIO:
        """Go on with a segment: that takes no space, and so is done even where the disk is full."""
        name = segment.file_name(end.first_rev)
        file, self._offset = self._files.open_append(self._directory / name)
        _only_append(file)
        self._synced = self._offset
        self._first_rev, self._salt = end.first_rev, end.salt
        return file

    def _begin_segment(self, first_rev: int) -> BinaryIO:
        self.require_place()
        path = self._directory / segment.file_name(first_rev)
        beside = path.with_name(path.name + ".tmp")
        salt = segment.new_salt()
        file = self._files.create(beside)
        _only_append(file)
        try:
            self._files.write(file, segment.pack_header(first_rev, salt))
            self._files.sync(file)
            self._files.rename(beside, path)
            self._files.sync_directory(self._directory)
        except BaseException:
            file.close()
            self._remove_failed(beside)
            self._remove_failed(path)
            raise
        self._offset = self._synced = segment.HEADER_BYTES
        self._first_rev, self._salt = first_rev, salt
        return file

    def _remove_failed(self, path: Path) -> None:
        """Remove what a failed beginning left, for good.

        A segment that stays, or comes back after a power cut, would end the old one for recovery.
        """
        try:
            self._files.remove(path)
            self._files.sync_directory(self._directory)
        except FileNotFoundError:
            return
        except OSError:
            self._broken = True

    def _write_failed(self, error: Exception) -> ReadOnly:
        """Cut the file back to its good part, undo what was not written, and refuse for a while."""
        applied: bool | None = False
        try:
            self._files.truncate(self._file, self._offset)
            # Whole frames may have stood there, and would after a power cut, which are refused now.
            self._files.sync(self._file)
        except Exception:
            self._broken = True  # Half a frame may stand there: nothing can be written behind it.
            applied = None
        return self._refuse(_cannot_write(error), applied)

    def _sync_failed(self, error: Exception) -> ReadOnly:
        self._broken = True
        return self._refuse(f"the log could not be made durable: {_reason(error)}", None)

    def _refuse(self, reason: str, applied: bool | None) -> ReadOnly:
        with self._keyspace_lock:
            self._refusal = ReadOnly(reason)
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._queue.clear()
            self._survived[self.epoch] = self.safe_rev, self.safe_lsn
            self._survived.pop(self.epoch - EPOCHS_KNOWN, None)
            self.epoch += 1
            self._roll_back(self.safe_lsn)
            if self._sync_each:
                self.written_rev = self.durable_rev
                self.written_lsn = self.durable_lsn
        if reason != self._told:  # Said once, not for each request.
            self._told = reason
            _log.error("%s; writes are refused, reads go on", reason)
        return ReadOnly(reason, applied=applied)

    def _refused(self) -> ReadOnly:
        """What becomes of a commit that was taken before the log failed."""
        reason = self._refusal.message if self._refusal else "the log cannot be written"
        return ReadOnly(reason, applied=None if self._broken else False)

    def _resume(self) -> None:
        with self._keyspace_lock:
            self._refusal = None
        self._told = None
        _log.warning("the log can be written again")


def _only_append(file: BinaryIO) -> None:
    """Have whatever is written go to the end of ``file``.

    So one that somebody else has cut gets no hole instead, and is told by its size.
    """
    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_APPEND)


def _cannot_write(error: Exception) -> str:
    return f"the log cannot be written: {_reason(error)}"


def _reason(error: Exception) -> str:
    reason = "out of memory" if isinstance(error, MemoryError) else str(error)
    if isinstance(error, OSError):
        reason = error.strerror or reason
        if error.filename is not None:
            reason = f"{error.filename}: {reason}"
    return reason
