"""Where things are in a data directory. See `zkv.durability.storage` for what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zkv.durability import segment, snapshot

if TYPE_CHECKING:
    from pathlib import Path


class Layout:
    """The paths in the data directory ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lock = directory / "LOCK"
        self.snapshots = directory / "snapshot"
        self.wal = directory / "wal"

    def snapshot(self, rev: int) -> Path:
        """The snapshot at ``rev``."""
        return self.snapshots / snapshot.file_name(rev)

    def segment(self, first_rev: int) -> Path:
        """The segment that begins with ``first_rev``."""
        return self.wal / segment.file_name(first_rev)
