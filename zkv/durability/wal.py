"""The write-ahead log: commits go in in revision order, and are on disk before anyone is told.

Strategy: `append` is called under the keyspace's lock and only puts a commit into a queue, so log
order is revision order. `commit` is called outside that lock: whoever gets the file first takes
all that is queued, writes it with one system call and, where asked, makes it durable with one
fdatasync; whoever waited for the file finds its own revision already done (group commit, as in
DeWitt et al., "Implementation Techniques for Main Memory Database Systems", SIGMOD 1984).

When a write fails (disk full, I/O error), nothing of it was acknowledged: the file is cut back to
where it was good, the keyspace is rolled back to what is safe, and writes are refused; after a
moment the next write tries again. When an fdatasync fails, nobody knows what is on disk, and asking
again would not tell (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC
2020): the log takes no more writes until the server is restarted and has read it back.

Locks: `_io` guards the file, the offsets and the revisions written; it is taken before the
keyspace's lock, never under it. What refuses appends (`_refusal`) changes under the keyspace's
lock.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, BinaryIO, Final

from zkv.durability import segment
from zkv.durability.segment import Commit
from zkv.errors import ReadOnlyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from zkv.durability.files import Files
    from zkv.keyspace import Change

_log = logging.getLogger("zkv.durability")

RETRY_SECONDS: Final = 0.5
"""How long writes are refused after the disk refused one, before another may try."""


class Wal:
    """The log of one running server; it begins a segment of its own.

    Args:
        files: the door to the file system.
        directory: where segments live; there is nothing newer than ``rev`` in it.
        rev: the revision of what has been recovered.
        segment_bytes: size at which a new segment is begun.
        sync_each: whether a revision is safe only once it is durable (policy ``always``), and not
            as soon as it is written.
        now: the clock, in seconds of Unix time.

    Raises:
        OSError: the segment cannot be created.
    """

    def __init__(
        self,
        files: Files,
        directory: Path,
        rev: int,
        segment_bytes: int,
        sync_each: bool,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._files = files
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._sync_each = sync_each
        self._now = now
        self._queue: deque[Commit] = deque()
        self._io = threading.Lock()
        self._refusal: ReadOnlyError | None = None
        self._retry_at = 0.0
        self._broken = False
        self._roll_back: Callable[[int], None] = lambda rev: None
        self._keyspace_lock: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        self.written_rev = rev
        self.durable_rev = rev
        self.epoch = 0
        """How often commits have been rolled back."""
        self.bytes_written = 0
        self.syncs = 0
        self._offset = 0
        self._synced = 0
        self._file = self._begin_segment(rev + 1)

    def attach(
        self,
        keyspace_lock: contextlib.AbstractContextManager[object],
        roll_back: Callable[[int], None],
    ) -> None:
        """Say how to undo commits that could not be written: ``roll_back(rev)``, lock held."""
        self._keyspace_lock = keyspace_lock
        self._roll_back = roll_back

    @property
    def safe_rev(self) -> int:
        """The newest revision that may be told to anyone, and will not be rolled back."""
        return self.durable_rev if self._sync_each else self.written_rev

    @property
    def broken(self) -> bool:
        """Whether an fdatasync failed: no write is taken before a restart."""
        return self._broken

    def append(self, rev: int, changes: Sequence[Change]) -> None:
        """Queue a commit. Call with the keyspace's lock held, before it is applied.

        Raises:
            ReadOnlyError: the log cannot be written now; nothing was queued.
        """
        if self._refusal is not None and (self._broken or time.monotonic() < self._retry_at):
            raise ReadOnlyError(self._refusal.message)
        self._queue.append(Commit(rev, int(self._now() * 1000), tuple(changes)))

    def commit(self, rev: int, durable: bool) -> None:
        """Return once every commit up to ``rev`` is written and, if ``durable``, on disk.

        Raises:
            ReadOnlyError: it cannot be; every commit that is not safe has been rolled back, and
                ``applied`` says whether it may be on disk all the same.
        """
        if rev <= (self.durable_rev if durable else self.written_rev):
            return
        with self._io:
            if rev > self.written_rev:
                self._write_queued()
            if durable and rev > self.durable_rev:
                self._sync()

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
            self._broken = False
            self._resume()

    def close(self) -> None:
        """Close the file; what is queued is lost."""
        with self._io:
            self._file.close()

    def _write_queued(self) -> None:
        """Write all that is queued with one call."""
        queue = self._queue
        commits = [queue.popleft() for _ in range(len(queue))]
        if not commits:
            # Somebody rolled this revision back.
            raise self._refusal or ReadOnlyError("the log cannot be written")
        try:
            if self._offset >= self._segment_bytes:
                self._rotate(commits[0].rev)
            data = b"".join([segment.pack_frame(commit, self._synced) for commit in commits])
            self._files.write(self._file, data)
        except OSError as error:
            raise self._write_failed(error) from error
        self._offset += len(data)
        self.bytes_written += len(data)
        self.written_rev = commits[-1].rev
        if self._refusal is not None:
            self._resume()

    def _sync(self) -> None:
        rev, offset = self.written_rev, self._offset
        try:
            self._files.sync(self._file)
        except OSError as error:
            raise self._sync_failed(error) from error
        self.syncs += 1
        self._synced = offset
        self.durable_rev = rev

    def _rotate(self, first_rev: int) -> None:
        """Begin a new segment. The old one is on disk whole before the new one exists."""
        self._sync()
        old = self._file
        self._file = self._begin_segment(first_rev)
        old.close()

    def _begin_segment(self, first_rev: int) -> BinaryIO:
        path = self._directory / segment.file_name(first_rev)
        beside = path.with_name(path.name + ".tmp")
        file = self._files.create(beside)
        try:
            self._files.write(file, segment.pack_header(first_rev))
            self._files.sync(file)
            self._files.rename(beside, path)
            self._files.sync_directory(self._directory)
        except BaseException:
            file.close()
            self._remove_failed(beside, path)
            raise
        self._offset = self._synced = segment.HEADER_BYTES
        return file

    def _remove_failed(self, *paths: Path) -> None:
        """Remove what a failed beginning left; a segment that stays would overlap the old one."""
        for path in paths:
            try:
                self._files.remove(path)
            except FileNotFoundError:
                continue
            except OSError:
                self._broken = True

    def _write_failed(self, error: OSError) -> ReadOnlyError:
        """Cut the file back to its good part, undo what was not written, and refuse for a while."""
        applied: bool | None = False
        try:
            self._files.truncate(self._file, self._offset)
        except OSError:
            self._broken = True  # Half a frame may stand there: nothing can be written behind it.
            applied = None
        return self._refuse(f"the log cannot be written: {error.strerror or error}", applied)

    def _sync_failed(self, error: OSError) -> ReadOnlyError:
        self._broken = True
        reason = f"the log could not be made durable: {error.strerror or error}; restart the server"
        return self._refuse(reason, None)

    def _refuse(self, reason: str, applied: bool | None) -> ReadOnlyError:
        first = self._refusal is None
        with self._keyspace_lock:
            self._refusal = ReadOnlyError(reason)
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._queue.clear()
            self.epoch += 1
            self._roll_back(self.safe_rev)
            if self._sync_each:
                self.written_rev = self.durable_rev
        if first or self._broken:
            _log.error("%s; writes are refused, reads go on", reason)
        return ReadOnlyError(reason, applied=applied)

    def _resume(self) -> None:
        with self._keyspace_lock:
            self._refusal = None
        _log.warning("the log can be written again")
