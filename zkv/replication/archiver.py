"""Follows the log of a server into an archive (`zkv.durability.archive`), until it is stopped.

Strategy: like a standby, the archiver asks for what comes after its newest commit; it keeps the
commits instead of applying them, so it needs little memory whatever the size of the store. It never
confirms for `replication.sync`: what is in an archive takes a restore to serve again.

From time to time it fetches a snapshot, so that restores are quick: once the log since the newest
one takes as much as that one does. So snapshots at most double what the server sends and what the
archive takes, and a restore reads at most about twice the size of the store. Between two parts of
the snapshot the log goes on. The snapshot is the newest that the server has on its disk: no request
of an archiver has a server write one, but for the first.

Where the server cannot go on from the newest commit here, a new part is begun with a snapshot. A
standby that is behind does not count: it may catch up, or another endpoint may be asked. Of several
endpoints that of the primary is sought: a server that was superseded goes on to answer.

After any error of a file the part is opened again, as after a crash: what was not on disk is
fetched again. So a full disk costs nothing but time. One thread; `stop` may be called by any.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from zkv.durability import snapshot
from zkv.durability.archive import PartRecord
from zkv.durability.files import Files, LargeFile
from zkv.durability.log_writer import SEGMENT_BYTES
from zkv.errors import DamageError, FormatError
from zkv.replication.role import PRIMARY
from zkv.replication.standby import ANEW
from zkv.replication.stream import (
    WAIT_MS,
    Asker,
    Confirmed,
    LogPosition,
    StreamError,
    StreamRefusedError,
    fetch_snapshot,
    hold_snapshot,
    pull,
    snapshot_parts,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from zkv.durability.archive import Archive, Part, Why
    from zkv.replication.standby import Primary
    from zkv.replication.stream import FetchedSnapshot, Pulled

_log = logging.getLogger("zkv.replication")

SYNC_SECONDS: Final = 10.0
"""The archive is put on disk at least so often."""
RETRY_SECONDS: Final = 1.0
"""Pause after a failure, once all places have been asked."""
MOST_PAUSE_SECONDS: Final = 30.0
"""Longest pause after a failure of the disk; each is twice as long as the one before."""
PRUNE_SECONDS: Final = 60.0
"""Pause between two looks at what may be removed."""
LEAST_LOG_BYTES: Final = 16 * 1024 * 1024
"""No further snapshot is fetched while the log since the newest one is smaller."""
LOOK_SECONDS: Final = 60.0
"""Pause before a server is asked again that has had no newer snapshot."""
HOLD_SECONDS: Final = 20.0
"""While a snapshot is being checked, the server is asked for a part of it so often."""
ROLE_SECONDS: Final = 5.0
"""A server is asked for its role so often: it may have been superseded."""
INFO_SECONDS: Final = 5.0
"""How long it may take to say so."""


class Archiver:
    """Follows a server into an archive.

    Args:
        files: the file operations.
        archive: the archive.
        source: the connection to the server.
        keep: ms for which every moment is kept; None = for ever.
        on_ready: called once, when commits are being archived.
        segment_bytes: the size at which a segment of the log is closed.
        least_log_bytes: as `LEAST_LOG_BYTES`.
    """

    def __init__(
        self,
        files: Files,
        archive: Archive,
        source: Primary,
        keep: int | None,
        on_ready: Callable[[], None],
        segment_bytes: int = SEGMENT_BYTES,
        least_log_bytes: int = LEAST_LOG_BYTES,
    ) -> None:
        self._files = files
        self._archive = archive
        self._member = archive.member
        self._source = source
        self._asker = Asker(source.ask)
        self._keep = keep
        self._on_ready = on_ready
        self._segment_bytes = segment_bytes
        self._least_log_bytes = least_log_bytes
        self._closing = threading.Event()
        self._is_ready = False
        self._part: Part | None = None
        self._why: Why | None = None
        """Set if a new part has to be begun."""
        self._task: Iterator[None] | None = None
        """The work that is done a step at a time, beside the log."""
        self._failures = 0
        self._disk_pause = RETRY_SECONDS
        self._reported: str | None = None
        self._until = 0
        self._asked = ""
        """The endpoint that was asked last for its role."""
        now = time.monotonic()
        self._sync_at = now + SYNC_SECONDS
        self._prune_at = self._look_at = self._role_at = now

    def stop(self) -> None:
        """Have `run` end, with all on disk."""
        self._closing.set()
        self._source.interrupt()

    def run(self) -> None:
        """Archive until `stop`. Raises OSError if the end cannot be put on disk then."""
        try:
            while not self._closing.is_set():
                self._attempt()
            self._sync()
        finally:
            self._close_part()

    # --- Failures.

    def _attempt(self) -> None:
        try:
            self._step()
        except StreamRefusedError as error:
            if error.code not in ANEW or not self._must_begin_anew(error):
                self._fail(str(error))
        except StreamError as error:
            self._fail(str(error))
        except (OSError, DamageError, FormatError) as error:
            self._close_part()
            self._report(_text(error))
            self._closing.wait(self._disk_pause)
            # To open the part again, the log since the newest snapshot is read.
            self._disk_pause = min(2 * self._disk_pause, MOST_PAUSE_SECONDS)

    def _fail(self, reason: str) -> None:
        """Say why, once, and wait if all places have been asked."""
        self._report(reason)
        self._source.go_on()
        self._failures += 1
        if self._failures % self._source.places == 0:
            self._closing.wait(RETRY_SECONDS)

    def _report(self, reason: str) -> None:
        if reason != self._reported and not self._closing.is_set():
            self._reported = reason
            _log.warning("cannot archive: %s; trying again", reason)

    def _went_well(self) -> None:
        self._failures, self._disk_pause = 0, RETRY_SECONDS
        if self._reported is not None:
            self._reported = None
            _log.warning("archiving again, from %s", self._source.endpoint)

    def _must_begin_anew(self, error: StreamRefusedError) -> bool:
        """Return True if a new part has to be begun, and note why.

        A standby refuses, too, if it is only behind, or has less of the log than its primary.
        """
        part = self._part
        if part is None:
            return False
        try:
            info = self._info()
        except StreamError:
            return False
        known = part.log.place.lineage
        leads = info.get("role") == PRIMARY or info.get("term", 0) > known.term
        is_other_store = known.store not in {"", info.get("store")}
        if is_other_store or not leads:
            return False
        self._why = "gap" if error.code == "COMPACTED" else "diverged"
        _log.error(
            "%s: %s cannot go on from log number %d, revision %d: a new part begins; %s",
            part.layout.directory, self._source.endpoint, part.log.place.lsn,
            part.log.place.rev,
            "commits after that will be missing" if self._why == "gap" else
            "it has another history now, and what is here is kept apart",
        )  # fmt: skip
        return True

    def _info(self) -> dict[str, Any]:
        """Return what a server says of its role. Raises StreamError."""
        info = self._source.ask({"op": "INFO"}, INFO_SECONDS).get("replication")
        return info if isinstance(info, dict) else {}

    # --- Steps.

    def _step(self) -> None:
        """Archive what comes next. Raises StreamError, DamageError, FormatError, OSError."""
        if self._why is not None:
            self._end_part()
        part = self._part or self._open()
        place, on_disk = part.log.place, part.log.on_disk
        after = LogPosition.of(place.lineage, place.lsn)
        confirmed = Confirmed(on_disk.lsn, on_disk.rev)
        wait = 0 if self._task is not None else WAIT_MS
        pulled = pull(self._asker, self._member, after, confirmed, wait, sync=False)
        self._append(part, pulled)
        self._went_well()
        self._look_at_role(part, pulled)
        if self._task is not None:
            self._go_on_with(self._task)
        elif not self._is_ready:
            self._is_ready = True
            self._on_ready()
        self._do_what_is_due(part)

    def _append(self, part: Part, pulled: Pulled) -> None:
        if pulled.commits:
            try:
                part.log.append(pulled.commits)
            except DamageError as error:
                raise StreamError(str(error)) from None
            self._until = max(self._until, pulled.commits[-1].time)

    def _look_at_role(self, part: Part, pulled: Pulled) -> None:
        """Look for the primary, now and then. Raises StreamError.

        Only a primary can say that there was nothing more up to a time: not a standby that may be
        behind, nor a server that another one has superseded.
        """
        now, endpoint = time.monotonic(), self._source.endpoint
        if endpoint == self._asked and now < self._role_at:
            return
        self._asked, self._role_at = endpoint, now + ROLE_SECONDS
        if self._info().get("role") == PRIMARY:
            if part.log.place.lsn >= pulled.lsn:
                self._until = max(self._until, pulled.time)
        elif self._source.places > 1 and self._task is None:
            self._source.go_on()

    def _go_on_with(self, task: Iterator[None]) -> None:
        try:
            next(task)
        except StopIteration:
            self._task = None
        except StreamRefusedError as error:
            self._task = None
            _log.warning("no snapshot from %s: %s", self._source.endpoint, error)
        except BaseException:
            self._task = None
            raise

    def _do_what_is_due(self, part: Part) -> None:
        now = time.monotonic()
        if now >= self._sync_at:
            self._sync()
        if self._keep is not None and now >= self._prune_at:
            self._prune_at = now + PRUNE_SECONDS
            self._archive.prune(self._until - self._keep, part)
        size = max(part.snapshots[-1].size, self._least_log_bytes)
        if self._task is None and now >= self._look_at and part.bytes_since_snapshot >= size:
            self._look_at = now + LOOK_SECONDS
            self._task = self._take_snapshot(part)

    def _sync(self) -> None:
        self._sync_at = time.monotonic() + SYNC_SECONDS
        if self._part is not None:
            self._part.sync(self._until)

    def _open(self) -> Part:
        """Open the newest part, or begin one. Raises as `_step`."""
        part = None
        if self._why is None:
            try:
                part = self._archive.open_part(self._segment_bytes)
            except DamageError as error:
                self._why = "damaged"
                _log.error("%s; it is kept as it is, and a new part begins", error)
        if part is None:
            return self._begin_part(self._why or "begun")
        self._part = part
        _log.info(
            "%s goes on after revision %d", part.layout.directory, part.log.place.rev
        )  # fmt: skip
        return part

    def _end_part(self) -> None:
        """Put the part on disk, since another one is going to begin. Raises OSError."""
        self._sync()
        self._close_part()

    def _close_part(self) -> None:
        self._task = None
        if self._part is not None:
            self._part.close()
            self._part = None

    # --- Snapshots.

    def _begin_part(self, why: Why) -> Part:
        """Begin a part with a snapshot. Raises StreamError, DamageError, FormatError, OSError."""
        files, archive = self._files, self._archive
        prepared = archive.prepare_part()
        beside = prepared.snapshots / f"fetched{snapshot.UNFINISHED}"
        with files.create(beside) as file:
            fetched = fetch_snapshot(
                self._asker, self._member, files, file, archive.store, sync=False
            )
            files.sync(file)
        path = prepared.snapshot(fetched.rev)
        files.rename(beside, path)
        files.sync_directory(prepared.snapshots)
        self._check(path, fetched)
        record = PartRecord(why, fetched.lineage.store)
        archive.add_part(prepared, fetched.rev, fetched.lsn, record)
        self._why, self._until = None, 0
        self._part = part = archive.open_part(self._segment_bytes)
        if part is None:
            raise DamageError(f"{archive.directory}: its newest part is gone")
        _log.info("%s begins at revision %d", part.layout.directory, fetched.rev)
        return part

    def _check(self, path: Path, fetched: FetchedSnapshot) -> None:
        """Read all of a snapshot, while the server keeps the log after it.

        Raises StreamError, DamageError, FormatError, OSError.
        """
        held_at = time.monotonic()
        for _ in snapshot.chunks(self._files, path):
            if time.monotonic() > held_at + HOLD_SECONDS:
                hold_snapshot(self._source.ask, self._member, fetched)
                held_at = time.monotonic()

    def _take_snapshot(self, part: Part) -> Iterator[None]:
        """Fetch a snapshot that is newer than those of the part, check it, and add it."""
        logged = part.log.bytes_written
        try:
            path = yield from self._fetch_newer(part)
            if path is None:
                return
            loaded = snapshot.Loaded()
            for _ in snapshot.chunks(self._files, path, beside=loaded):
                yield
            while part.log.place.lsn < loaded.lsn:
                yield
            part.add_snapshot(path, loaded, logged)
        except DamageError as error:
            _log.error("%s; this snapshot is not used", error)
        else:
            _log.info("%s has a snapshot at revision %d", part.layout.directory, loaded.rev)
        finally:
            with contextlib.suppress(OSError):
                self._archive.clear_incoming()

    def _fetch_newer(self, part: Part) -> Generator[None, None, Path | None]:
        """Fetch a snapshot; return where it is, or None if the server has no newer one."""
        files, directory = self._files, self._archive.clear_incoming()
        store, newest = part.log.place.lineage.store, part.snapshots[-1]
        rev, beside = 0, directory / f"fetched{snapshot.UNFINISHED}"
        with files.create(beside) as file:
            content = LargeFile(files, file)
            for each in snapshot_parts(self._asker, self._member, store, sync=False):
                if each.lsn <= newest.lsn or each.snapshot <= newest.rev:
                    return None
                rev = each.snapshot
                content.write(each.data)
                yield
            files.sync(file)
        path = directory / snapshot.file_name(rev)
        files.rename(beside, path)
        return path


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or error}"
    return getattr(error, "strerror", None) or str(error)
