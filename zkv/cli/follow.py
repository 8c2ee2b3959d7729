"""``zkv follow``: runs a standby, and has it begin anew where it must.

Strategy: one server at a time. If the primary cannot go on from what the standby has, its server
stops, a snapshot of the primary takes the place of its history, and another server begins there, at
the same endpoints. What only the old history had is kept in a file before it is given up.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
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
from zkv.durability import dump, recovery
from zkv.durability.files import Files
from zkv.durability.frozen_view import FrozenView
from zkv.endpoint import is_wildcard
from zkv.errors import ConfigError, DataDirError
from zkv.replication.place import StandbyDirectory, read_role
from zkv.replication.stream import RefusedError, StreamError
from zkv.server import Following, ServerCore

if TYPE_CHECKING:
    from zkv.config import Settings
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
    settings = read_settings(options).settings
    if settings.durability.data_dir is None:
        raise ConfigError("durability.data_dir: a standby needs a data directory")
    wild = next(filter(is_wildcard, settings.server.endpoints), None)
    if wild is not None and not settings.replication.advertise:
        raise ConfigError(
            f"server.endpoints: {wild} is no place where clients find this server once it leads: "
            f"set replication.advertise"
        )
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
        self._require_same_store()
        record = self._prepare()
        is_first, anew = True, None
        while True:
            if anew is not None or self._directory.is_empty:
                self._fetch(record, anew)
            source = self._source()
            try:
                following = Following(source, record.member, self._leader)
                server = ServerCore(self._settings, log.write_requests, following=following)
                status = run_server(server, self._settings, self._options, log, is_first)
            finally:
                source.close()
            if server.anew is None:
                return status
            anew, is_first = server.anew, False
            self._settings = _bound(self._settings, server)
            _log.warning("beginning anew from a snapshot of the primary: %s", anew.reason)

    def _source(self) -> Upstream:
        replication = self._settings.replication
        return Upstream(self._leader, replication.server_keys, replication.key_file)

    def _prepare(self) -> RoleRecord:
        directory = self._directory.layout.directory
        try:
            return self._directory.prepare(self._leader)
        except OSError as error:
            raise DataDirError(f"{directory}: {error.strerror or error}") from error

    def _require_same_store(self) -> None:
        """Raise DataDirError if the directory holds what is no standby's, and of another store."""
        files, layout = Files(), self._directory.layout
        if not layout.directory.is_dir() or self._directory.is_empty:
            return
        if read_role(files, layout.directory) is not None:
            return
        with FrozenView(files, layout.directory) as view:
            here = recovery.recover(view, layout.snapshots, layout.wal).lineage.store
        with contextlib.closing(self._source()) as source:
            there = _store_of(source)
        if not here or here != there:
            raise DataDirError(
                f"{layout.directory}: holds another store than {', '.join(self._leader)}: follow "
                f"in an empty directory"
            )

    def _fetch(self, record: RoleRecord, anew: BeginAnew | None) -> None:
        """Fetch a snapshot; try until the primary has handed out one. Raises DataDirError."""
        keep = partial(self._keep, anew)
        while True:
            with contextlib.closing(self._source()) as source:
                try:
                    rev = self._directory.fetch(source.ask, record, keep)
                except RefusedError as error:
                    _log.warning("%s refuses a snapshot: %s", source.endpoint, error)
                except StreamError as error:
                    _log.warning("no snapshot from the primary: %s; trying again", error)
                except OSError as error:
                    place = error.filename or self._directory.layout.directory
                    raise DataDirError(f"{place}: {error.strerror or error}") from error
                else:
                    _log.info("fetched a snapshot of the primary at revision %d", rev)
                    return
            threading.Event().wait(RETRY_SECONDS)

    def _keep(self, anew: BeginAnew | None, fetched: FetchedSnapshot) -> None:
        """Write into a file what only this history has. Raises OSError, DataDirError."""
        if anew is None:
            return
        directory = self._directory.layout.directory
        if anew.lineage.store != fetched.lineage.store:
            raise DataDirError(
                f"{directory}: holds another store than {', '.join(self._leader)}: follow in an "
                f"empty directory"
            )
        if anew.diverged:
            known = anew.lineage.common(fetched.lineage, fetched.lsn, anew.lsn)
            self._keep_after(max(known, anew.common))

    def _keep_after(self, common: int) -> None:
        files, layout = Files(), self._directory.layout
        path = layout.directory / f"diverged-after-{common}.jsonl"
        count, first = 0, 0
        with FrozenView(files, layout.directory) as view, files.create(path) as file:
            for commit in dump.log(view, None):
                first = first or commit.lsn
                if commit.lsn > common:
                    files.write(file, commit_line(commit).encode() + b"\n")
                    count += 1
            files.sync(file)
        files.sync_directory(layout.directory)
        _log.warning(
            "%d commits after log number %d are not in the history of the primary; %s has them",
            count, common, path,
        )  # fmt: skip
        if first > common + 1:
            _log.warning("those from %d to %d are in no file", common + 1, first - 1)


def _store_of(source: Upstream) -> str:
    """Return the identity of the primary's store. Raises DataDirError."""
    for _ in range(source.places):
        try:
            replication = source.ask({"op": "INFO"}, ASK_SECONDS).get("replication")
        except StreamError:
            continue
        return str(replication.get("store")) if isinstance(replication, dict) else ""
    raise DataDirError("the primary does not answer, so nobody knows if this is its store")


def _bound(settings: Settings, server: ServerCore) -> Settings:
    """Return settings with the ports that a server had, so that the next one has them, too."""
    places = {"endpoints": server.endpoints, "feed": server.feed}
    return msgspec.structs.replace(
        settings, server=msgspec.structs.replace(settings.server, **places)
    )
