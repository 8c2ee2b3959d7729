"""``zkv follow``: runs a standby, and has it begin anew where it must.

Strategy: one server at a time. If the primary cannot go on from what the standby has, its server
stops, a snapshot of the primary takes the place of its history, and another server begins there, at
the same endpoints. What only the old history had is kept in a file before it is given up. While no
server uses the directory, this process holds its lock, and the first signal ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import signal
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from zkv.broker.upstream import Upstream
from zkv.cli.data import commit_line
from zkv.cli.serving import logging_to
from zkv.cli.serving import run as run_server
from zkv.cli.settings import read_settings
from zkv.config import unadvertised
from zkv.durability import dump, recovery, snapshot
from zkv.durability.files import Files
from zkv.durability.frozen_view import FrozenView
from zkv.errors import ConfigError, DataDirError
from zkv.replication.place import StandbyDirectory, read_role
from zkv.replication.standby import begin_anew
from zkv.replication.stream import (
    Asker,
    Confirmed,
    LogPosition,
    StreamError,
    StreamRefusedError,
    pull,
)
from zkv.server import Following, ServerCore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zkv.config import Settings
    from zkv.durability.layout import Layout
    from zkv.durability.lock import DirectoryLock
    from zkv.keyspace.lineage import Lineage
    from zkv.log import Log
    from zkv.replication.place import RoleRecord
    from zkv.replication.standby import BeginAnew
    from zkv.replication.stream import FetchedSnapshot

_log = logging.getLogger("zkv.replication")

RETRY_SECONDS: Final = 1.0
"""Pause after the primary could not be asked for a snapshot."""
ASK_SECONDS: Final = 5.0
"""How long the primary may take to say which store it has."""


def run(options: argparse.Namespace) -> int:
    """Run a standby until END or a signal stops it; return the exit status. Raises StartupError."""
    merged = read_settings(options)
    settings = merged.settings
    if settings.durability.data_dir is None:
        raise ConfigError("durability.data_dir: a standby needs a data directory")
    if settings.store.url:
        raise ConfigError(
            f"{merged.places['store.url']}: store.url: a standby copies a server; a member of a "
            f"store in etcd is run by zkv serve"
        )
    for name, fault in unadvertised(settings):
        raise ConfigError(f"{merged.places[name]}: {fault}")
    with logging_to(settings) as log:
        return _Follower(options, settings, settings.durability.data_dir).run(log)


class _Follower:
    def __init__(self, options: argparse.Namespace, settings: Settings, data_dir: str) -> None:
        self._options = options
        self._settings = settings
        self._directory = StandbyDirectory(Files(), Path(data_dir))
        self._leader: list[str] = options.primary

    def run(self, log: Log) -> int:
        """Run one server after the other, until one has not to begin anew."""
        is_first, anew = True, None
        while True:
            try:
                with _ended_by_signals(), self._lock():
                    record = self._make_ready(anew)
            except _EndedError:
                _log.info("stopped before it had a snapshot of the primary")
                return 0
            source = self._source()
            try:
                following = Following(source, record.member, self._leader)
                server = ServerCore(self._settings, log.write_requests, following=following)
                status = run_server(server, self._settings, self._options, log, is_first)
            finally:
                source.close()
            anew, is_first = server.anew, False
            if status is not None or anew is None:
                return status or 0
            self._settings = _bound(self._settings, server)
            _log.warning("beginning anew from a snapshot of the primary: %s", anew.reason)

    def _lock(self) -> DirectoryLock:
        try:
            return self._directory.lock()
        except OSError as error:
            raise self._failed(error) from error

    def _make_ready(self, anew: BeginAnew | None) -> RoleRecord:
        """Make the directory ready for a server. Raises DamageError, DataDirError."""
        if anew is None:
            self._require_same_store()
        record = self._prepare()
        if anew is not None or self._directory.is_empty:
            self._fetch(record, anew)
        return record

    def _failed(self, error: OSError) -> DataDirError:
        place = error.filename or self._directory.layout.directory
        return DataDirError(f"{place}: {error.strerror or error}")

    def _source(self) -> Upstream:
        replication = self._settings.replication
        return Upstream(self._leader, replication.server_keys, replication.key_file)

    def _prepare(self) -> RoleRecord:
        try:
            return self._directory.prepare(self._leader)
        except OSError as error:
            raise self._failed(error) from error

    def _require_same_store(self) -> None:
        """Raise DataDirError if what the directory holds is no standby's, and may not become one.

        It may if it is of the same store, and has not led it after the primary did.
        """
        files, layout = Files(), self._directory.layout
        if self._directory.is_empty:
            return
        if read_role(files, layout.directory) is not None:
            return
        with FrozenView(files, layout.directory) as view:
            here = recovery.recover(view, layout.snapshots, layout.wal)
        with contextlib.closing(self._source()) as source:
            store, term = _store_of(source, here.lineage)
        if not here.lineage.store or here.lineage.store != store:
            raise self._another_store()
        self._require_term(here.lineage, here.lsn, term)

    def _another_store(self) -> DataDirError:
        return DataDirError(
            f"{self._directory.layout.directory}: holds another store than "
            f"{', '.join(self._leader)}: follow in an empty directory"
        )

    def _require_term(self, lineage: Lineage, lsn: int, term: int) -> None:
        """Raise DataDirError if this history has commits of a later term than the primary's.

        It would give up what was written after a promotion, for what was before: as if a standby
        that has taken over were started again as it used to be.
        """
        if lineage.term > term and lsn > lineage.terms[-1].first_lsn:
            raise DataDirError(
                f"{self._directory.layout.directory}: is at term {lineage.term}, and "
                f"{', '.join(self._leader)} at term {term} only: this server has led since. Start "
                f"it with `zkv serve`, and let the other one follow it; or follow in an empty "
                f"directory"
            )

    def _fetch(self, record: RoleRecord, anew: BeginAnew | None) -> None:
        """Fetch a snapshot; try until the primary has handed out one. Raises DataDirError.

        What is here is given up only for the history of a server that refuses to go on from it. The
        place that is asked first may be another one: a standby that has less, and must not be
        followed backwards. If a server can go on after all, what is here stays.
        """
        with contextlib.closing(self._source()) as source:
            while True:
                try:
                    why = None if anew is None else _refusal(source, record.member, anew)
                    if anew is not None and why is None:
                        _log.warning("%s goes on from what is here", source.endpoint)
                        return
                    rev = self._directory.fetch(source.ask, record, partial(self._keep, why))
                except StreamRefusedError as error:
                    _log.warning("no snapshot from %s: %s", source.endpoint, error)
                except StreamError as error:
                    _log.warning("no snapshot from the primary: %s; trying again", error)
                except OSError as error:
                    raise self._failed(error) from error
                else:
                    _log.info("fetched a snapshot of the primary at revision %d", rev)
                    return
                source.go_on()
                threading.Event().wait(RETRY_SECONDS)

    def _keep(self, anew: BeginAnew | None, fetched: FetchedSnapshot) -> None:
        """Write into a file what only this history has. Raises OSError, DataDirError."""
        if anew is None:
            return
        if anew.lineage.store != fetched.lineage.store:
            raise self._another_store()
        self._require_term(anew.lineage, anew.lsn, fetched.lineage.term)
        if anew.diverged:
            known = anew.lineage.common(fetched.lineage, fetched.lsn, anew.lsn)
            keep_after(Files(), self._directory.layout, max(known, anew.common))


def keep_after(files: Files, layout: Layout, common: int) -> None:
    """Write the commits after a log number into a file, which is whole and on disk then.

    Args:
        files: the file operations.
        layout: of the data directory.
        common: the last log number that the history of the primary has, too.

    Raises OSError, DamageError, DataDirError.
    """
    path = _free(files, layout.directory, f"diverged-after-{common}")
    beside = layout.directory / f"diverged{snapshot.UNFINISHED}"
    count, first = 0, 0
    with FrozenView(files, layout.directory) as view, files.create(beside) as file:
        for commit in dump.log(view, None):
            first = first or commit.lsn
            if commit.lsn > common:
                files.write(file, commit_line(commit).encode() + b"\n")
                count += 1
        files.sync(file)
    files.rename(beside, path)
    files.sync_directory(layout.directory)
    _log.warning(
        "%d commits after log number %d are not in the history of the primary; %s has them",
        count, common, path,
    )  # fmt: skip
    if first > common + 1:
        _log.warning("those from %d to %d are in no file", common + 1, first - 1)


def _refusal(source: Upstream, member: str, anew: BeginAnew) -> BeginAnew | None:
    """Ask a server to go on from what is here; return why it cannot, None if it can.

    Raises StreamRefusedError if that is no reason to begin anew, StreamError.
    """
    after = LogPosition.of(anew.lineage, anew.lsn)
    try:
        pull(Asker(source.ask), member, after, Confirmed(0, 0), 0, sync=False, insist=True)
    except StreamRefusedError as error:
        refused = begin_anew(error, anew.lineage, anew.lsn)
        if refused is None:
            raise
        return refused
    return None


class _EndedError(BaseException):
    """A signal ends the process."""


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise _EndedError within the block at SIGTERM or SIGINT. A server's handlers come later."""

    def end(_number: int, _frame: object) -> None:
        raise _EndedError

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _free(files: Files, directory: Path, stem: str) -> Path:
    """Return a name for a file that is not there yet: what was kept before stays. Raises OSError.

    The same place may be diverged from more than once.
    """
    there = files.names(directory)
    ends = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    names = (f"{stem}{end}.jsonl" for end in ends)
    return directory / next(name for name in names if name not in there)


def _store_of(source: Upstream, here: Lineage) -> tuple[str, int]:
    """Return the identity of the primary's store, and its term.

    A place may be that of a standby which has not got so far: the next one is asked, too, where the
    term is lower than the one here. Raises DataDirError if none answers.
    """
    found: tuple[str, int] | None = None
    for _ in range(source.places):
        with contextlib.suppress(StreamError):
            replication = source.ask({"op": "INFO"}, ASK_SECONDS).get("replication")
            if not isinstance(replication, dict):
                return "", 0
            answer = str(replication.get("store")), int(replication.get("term", 0))
            if answer[0] != here.store or answer[1] >= here.term:
                return answer
            found = found or answer
        source.go_on()
    if found is None:
        raise DataDirError("the primary does not answer, so nobody knows if this is its store")
    return found


def _bound(settings: Settings, server: ServerCore) -> Settings:
    """Return settings with the ports that a server had, so that the next one has them, too."""
    places = {"endpoints": server.endpoints, "feed": server.feed}
    return msgspec.structs.replace(
        settings, server=msgspec.structs.replace(settings.server, **places)
    )
