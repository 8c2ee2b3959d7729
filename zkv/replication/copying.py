"""Copies the store of a running server into a new data directory: ``zkv backup --from``.

Strategy: the newest snapshot, and the commits after it up to the newest one that the server had on
its disk when it was asked for them, in a log that this machine writes. So the copy has every write
that was answered before the copy began. As with a copy of files (`zkv.durability.backup`), the
snapshot gets its contents last, and all is read once it is complete.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from zkv.durability import snapshot
from zkv.durability.backup import NewDirectory, begin_log
from zkv.durability.files import Files, LargeFile
from zkv.durability.log_writer import LogPlace, LogWriter
from zkv.errors import DamageError, DataDirError
from zkv.replication.stream import (
    REPLY_SECONDS,
    WAIT_MS,
    Asker,
    Confirmed,
    LogPosition,
    StreamError,
    pull,
    snapshot_parts,
)

if TYPE_CHECKING:
    from pathlib import Path

    from zkv.durability.check import Survey
    from zkv.replication.standby import Primary
    from zkv.replication.stream import SnapshotPart


def copy_from(files: Files, source: Primary, member: str, target: Path) -> Survey:
    """Copy the store of a server; returns a survey of the copy, which is on disk then.

    Args:
        files: the file operations.
        source: the connection to the server.
        member: the name of the asker.
        target: the new directory; absent or empty. If the copy fails, it is left as it was.

    Raises:
        DataDirError: the server does not give its store, or something cannot be written.
        LockedError: another process has just begun to use ``target``.
    """
    with _Fetched(files, source, member, target) as made:
        try:
            _find_place(source)
            return made.write()
        except StreamError as error:
            raise DataDirError(f"{source.endpoint}: no copy: {error}") from error


def _find_place(source: Primary) -> None:
    """Go on to a place where a server answers. Raises StreamError."""
    for _ in range(source.places - 1):
        with contextlib.suppress(StreamError):
            source.ask({"op": "PING"}, REPLY_SECONDS)
            return
        source.go_on()
    source.ask({"op": "PING"}, REPLY_SECONDS)


class _Fetched(NewDirectory):
    def __init__(self, files: Files, source: Primary, member: str, target: Path) -> None:
        super().__init__(files, target)
        self._asker = Asker(source.ask)
        self._member = member

    def _fill(self) -> None:
        files, layout = self._files, self._layout
        parts = snapshot_parts(self._asker, self._member, sync=False)
        first = next(parts)
        key = layout.snapshot(first.snapshot)
        self._begin_with(key)
        beside = key.with_name(key.name + snapshot.UNFINISHED)
        self._made.append(beside)
        with files.create(beside) as file:
            content = LargeFile(files, file)
            content.write(first.data)
            for part in parts:
                content.write(part.data)
            files.sync(file)
        self._made.append(layout.segment(first.snapshot + 1))
        self._follow(first)
        files.rename(beside, key)
        files.sync_directory(key.parent)

    def _follow(self, start: SnapshotPart) -> None:
        """Write the log after the snapshot. Raises StreamError, OSError."""
        files, layout, rev = self._files, self._layout, start.snapshot
        end = begin_log(files, layout, rev + 1, start.lsn + 1)
        log = LogWriter(files, layout, LogPlace(rev, start.lsn, start.lineage), end, 2**62)
        try:
            last, wait = start.lsn, 0
            while True:
                place = log.place
                after = LogPosition.of(place.lineage, place.lsn)
                nothing = Confirmed(0, 0)
                pulled = pull(
                    self._asker, self._member, after, nothing, wait, sync=False, insist=True
                )
                if not wait:
                    last, wait = pulled.lsn, WAIT_MS
                if pulled.commits:
                    log.append(pulled.commits)
                if log.place.lsn >= last:
                    break
            log.sync()
        except DamageError as error:
            raise StreamError(str(error)) from None
        finally:
            log.close()
