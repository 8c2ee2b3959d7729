"""The paths in a data directory. `zkv.durability.storage` describes the files."""

from __future__ import annotations

from pathlib import Path

from zkv.durability import segment, snapshot


class Layout:
    """The paths in the data directory ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lock = directory / "LOCK"
        self.snapshots = directory / "snapshot"
        self.wal = directory / "wal"

    def beside(self, name: str) -> Layout:
        """The paths of a directory ``name`` in this one that is laid out like it."""
        return Layout(self.directory / name)

    def snapshot(self, rev: int) -> Path:
        """The snapshot at ``rev``."""
        return self.snapshots / snapshot.file_name(rev)

    def segment(self, first_rev: int) -> Path:
        """The segment whose first revision is ``first_rev``."""
        return self.wal / segment.file_name(first_rev)


def explain(error: OSError, directory: Path) -> str:
    """Text for an error in a data directory, or on the path to it, that names the place once."""
    place, why = error.filename, error.strerror or str(error)
    if place is None or Path(place) == directory:
        return f"{directory}: {why}"
    if Path(place).is_relative_to(directory):
        return f"{place}: {why}"
    return f"{directory}: {why} ({place})"
