"""What no commit waits for is written back early by the system, so that no sync is long."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.conftest import Connect
from tests.support import LIMIT, Raw, ServerInProcess, eventually, serve_in_python
from zkv.durability.files import Files
from zkv.durability.wal import WRITE_BACK_BYTES

MIB = 2**20
NO_SNAPSHOTS = {"snapshot_interval": 3_600.0}


class Noted(Files):
    """Notes what is written back and synced, in order; a write-back can be held."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.began = threading.Event()
        self.free = threading.Event()

    def write_back(self, path: Path) -> None:
        """Note it, and wait until it is free."""
        self.calls.append(f"write back {path.name}")
        self.began.set()
        assert self.free.wait(LIMIT)
        super().write_back(path)

    def sync(self, file: BinaryIO) -> None:
        """Note it."""
        self.calls.append("sync")
        super().sync(file)


def fill(client: Raw, size: int) -> None:
    """Write so many bytes."""
    for number in range(size // MIB + 1):
        assert client.ok(op="PUT", key=f"k{number % 4}", value=bytes(MIB))


@pytest.mark.parametrize("compiled", [True, False])
def test_writes_are_answered_while_the_system_writes_them_back(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    if not compiled:
        serve_in_python(monkeypatch)
    disk = Noted()
    durability = NO_SNAPSHOTS | {"fsync": "never"}
    with ServerInProcess(tmp_path / "data", files=disk, durability=durability) as node:
        client = connect(node.endpoint)
        begun = len(disk.calls)
        fill(client, WRITE_BACK_BYTES)
        assert disk.began.wait(LIMIT)
        (segment,) = (tmp_path / "data" / "wal").glob("*.wal")
        assert disk.calls[begun:] == [f"write back {segment.name}"]
        fill(client, 3 * WRITE_BACK_BYTES)
        assert disk.calls[begun:] == [f"write back {segment.name}"]
        disk.free.set()
    assert disk.calls[-1] == "sync"


def test_little_is_left_to_sync_at_each_interval(tmp_path: Path, connect: Connect) -> None:
    disk = Noted()
    disk.free.set()
    durability = NO_SNAPSHOTS | {"fsync": "interval", "fsync_interval": 0.05}
    with ServerInProcess(tmp_path / "data", files=disk, durability=durability) as node:
        client = connect(node.endpoint)
        begun = len(disk.calls)
        assert client.ok(op="PUT", key="k", value=1)
        eventually(lambda: "sync" in disk.calls[begun:], "a sync")
        (segment,) = (tmp_path / "data" / "wal").glob("*.wal")
        place = disk.calls.index("sync", begun)
        assert disk.calls[place - 1] == f"write back {segment.name}"


def test_a_segment_is_written_back_before_a_snapshot_closes_it(
    tmp_path: Path, connect: Connect
) -> None:
    disk = Noted()
    disk.free.set()
    durability = NO_SNAPSHOTS | {"fsync": "never", "segment_bytes": 1_024}
    with ServerInProcess(tmp_path / "data", files=disk, durability=durability) as node:
        client = connect(node.endpoint)
        assert client.ok(op="PUT", key="k", value=bytes(1_000))
        (segment,) = (tmp_path / "data" / "wal").glob("*.wal")
        begun = len(disk.calls)
        assert client.ok(op="SNAPSHOT")
        assert disk.calls[begun : begun + 2] == [f"write back {segment.name}", "sync"]


def test_what_is_synced_with_each_commit_is_not_written_back(
    tmp_path: Path, connect: Connect
) -> None:
    disk = Noted()
    with ServerInProcess(tmp_path / "data", files=disk, durability=NO_SNAPSHOTS) as node:
        client = connect(node.endpoint)
        fill(client, 2 * WRITE_BACK_BYTES)
        assert client.ok(op="SNAPSHOT")
    assert not disk.began.is_set()


def test_a_file_that_is_gone_is_not_missed(tmp_path: Path) -> None:
    Files().write_back(tmp_path / "gone")
