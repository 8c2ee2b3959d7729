"""A large file is synced while it is written, so that nobody else waits long for the disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.conftest import Connect
from tests.support import Raw, ServerInProcess
from zkv.broker.upstream import Upstream
from zkv.durability import backup, files
from zkv.durability.files import Files
from zkv.replication.copying import copy_from
from zkv.replication.place import StandbyDirectory

MIB = 2**20
VALUES = 24
SYNC_BYTES = 2 * MIB


class Counting(Files):
    """Counts what was written to each file since its last sync."""

    def __init__(self) -> None:
        self.unsynced: dict[str, int] = {}
        self.beyond = 0
        """The most that any file of several writes had, without the last of them."""
        self.written = 0

    def write(self, file: BinaryIO, data: bytes) -> None:
        """Count it."""
        before = self.unsynced.get(file.name, 0)
        self.beyond = max(self.beyond, before)
        self.unsynced[file.name] = before + len(data)
        self.written += len(data)
        super().write(file, data)

    def sync(self, file: BinaryIO) -> None:
        """Begin anew."""
        self.unsynced[file.name] = 0
        super().sync(file)


def write_snapshot(counting: Files, source: Path, target: Path) -> None:
    with ServerInProcess(source, files=counting) as server, Raw(server.endpoint) as client:
        client.ok(op="PUT", key="one more", value=1)
        client.ok(op="SNAPSHOT")


def copy_directory(counting: Files, source: Path, target: Path) -> None:
    backup.create(counting, source, target)


def copy_of_a_server(counting: Files, source: Path, target: Path) -> None:
    with (
        ServerInProcess(source) as server,
        contextlib.closing(Upstream([server.endpoint])) as upstream,
    ):
        copy_from(counting, upstream, "copy", target)


def begin_standby(counting: Files, source: Path, target: Path) -> None:
    place = StandbyDirectory(counting, target)
    with (
        ServerInProcess(source) as server,
        contextlib.closing(Upstream([server.endpoint])) as upstream,
        place.lock(),
    ):
        place.fetch(upstream.ask, place.prepare([server.endpoint]), lambda _: None)


@pytest.mark.parametrize("write", [write_snapshot, copy_directory, copy_of_a_server, begin_standby])
def test_little_is_left_for_the_sync_at_the_end(
    tmp_path: Path,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Files, Path, Path], None],
) -> None:
    source = tmp_path / "source"
    with ServerInProcess(source) as server:
        client = connect(server.endpoint)
        for number in range(VALUES):
            assert client.ok(op="PUT", key=f"k{number}", value=bytes(MIB))
        client.ok(op="SNAPSHOT")
    monkeypatch.setattr(files, "SYNC_BYTES", SYNC_BYTES)
    counting = Counting()
    write(counting, source, tmp_path / "target")
    assert counting.written > VALUES * MIB
    assert counting.beyond < SYNC_BYTES
