"""``zkv follow``: runs a standby, and has it begin anew where it must.

Strategy: one server at a time. If the primary cannot go on from what the standby has, its server
stops, a snapshot of the primary takes the place of its history, and another server begins there, at
the same endpoints. What only the old history had is kept in a file before it is given up. While no
server uses the directory, this process holds its lock, and the first signal ends it
(`zkv.cli.serving`).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zkv.broker.upstream import Upstream
from zkv.cli.dumped import commit_line
from zkv.cli.serving import prepared, run_in_turn
from zkv.cli.settings import read_settings
from zkv.config import unadvertised
from zkv.durability import recovery
from zkv.durability.files import Files
from zkv.durability.frozen_view import FrozenView
from zkv.errors import ConfigError, DataDirError
from zkv.replication.incoming import attempt, keep_diverged
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

    from zkv.cli.serving import MakeServer, Process
    from zkv.config import Settings
    from zkv.durability.lock import DirectoryLock
    from zkv.keyspace.lineage import Lineage
    from zkv.replication.incoming import BeginAnew
    from zkv.replication.place import RoleRecord
    from zkv.replication.stream import FetchedSnapshot
    from zkv.replication.vote import OtherMachine

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
    with prepared(settings) as process:
        return _Follower(options, settings, settings.durability.data_dir).run(process)


class _Follower:
    def __init__(self, options: argparse.Namespace, settings: Settings, data_dir: str) -> None:
        self._options = options
        self._settings = settings
        self._directory = StandbyDirectory(Files(), Path(data_dir))
        self._leader: list[str] = options.primary

    def run(self, process: Process) -> int:
        """Run one server after the other, until one has not to begin anew."""
        return run_in_turn(self._settings, self._options, process, self._serving)

    @contextlib.contextmanager
    def _serving(self, settings: Settings, anew: BeginAnew | None) -> Iterator[MakeServer]:
        with self._lock():
            record = self._make_ready(anew)
        with contextlib.closing(self._source()) as source:
            following = Following(source, record.member, self._leader, self._connect)
            yield lambda write_log: ServerCore(settings, write_log, following=following)

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

    def _connect(self, endpoint: str) -> list[OtherMachine]:
        """Return connections to another machine, one with each key that it may have."""
        replication = self._settings.replication
        keys = replication.server_keys if endpoint.startswith("tcp://") else []
        return [
            Upstream([endpoint], [key] if key else [], replication.key_file) for key in keys or [""]
        ]

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
        written, _ = lineage.written(lsn)
        if written is not None and written.number > term:
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
            fetch = partial(self._try_to_fetch, source, record, anew)
            try:
                while not attempt(source, fetch):
                    threading.Event().wait(RETRY_SECONDS)
            except OSError as error:
                raise self._failed(error) from error

    def _try_to_fetch(self, source: Upstream, record: RoleRecord, anew: BeginAnew | None) -> None:
        """Fetch it from the place that is asked now. Raises StreamError, OSError, DataDirError."""
        why = None if anew is None else _refusal(source, record, anew)
        if anew is not None and why is None:
            _log.warning("%s goes on from what is here", source.endpoint)
            return
        rev = self._directory.fetch(source.ask, record, partial(self._keep, why))
        _log.info("fetched a snapshot of the primary at revision %d", rev)

    def _keep(self, anew: BeginAnew | None, fetched: FetchedSnapshot) -> None:
        """Write into a file what only this history has. Raises OSError, DataDirError."""
        if anew is None:
            return
        if anew.lineage.store != fetched.lineage.store:
            raise self._another_store()
        self._require_term(anew.lineage, anew.lsn, fetched.lineage.term)
        if anew.diverged:
            known = anew.lineage.common(fetched.lineage, fetched.lsn, anew.lsn)
            common = max(known, anew.common)
            keep_diverged(Files(), self._directory.layout, common, commit_line)


def _refusal(source: Upstream, record: RoleRecord, anew: BeginAnew) -> BeginAnew | None:
    """Ask a server to go on from what is here; return why it cannot, None if it can.

    Raises StreamRefusedError if that is no reason to begin anew, StreamError.
    """
    after = LogPosition.of(anew.lineage, anew.lsn)
    try:
        pull(Asker(source.ask), record.member, after, Confirmed(0, 0), 0, sync=False, insist=True)
    except StreamRefusedError as error:
        promised = max((each.term for each in record.promises), default=0)
        refused = begin_anew(error, anew.lineage, anew.lsn, promised)
        if refused is None:
            raise
        return refused
    return None


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
