"""The engine: a store that outlives its process, without any socket.

Opening it takes the data directory's lock and loads what is there; closing it saves everything.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zkv.durability.files import Files
from zkv.durability.persistence import Persistence
from zkv.durability.storage import Storage
from zkv.keyspace import Keyspace

if TYPE_CHECKING:
    from concurrent.futures import Future

    from zkv.config import DurabilitySettings


class Engine:
    """A keyspace and what makes it last.

    Args:
        settings: where and how data is kept.
        files: the door to the file system.

    Raises:
        LockedError: another server holds the data directory.
        DamageError: what is there is damaged.
        DataDirError: the directory cannot be used.
    """

    def __init__(self, settings: DurabilitySettings, files: Files | None = None) -> None:
        self._storage = Storage(Path(settings.data_dir), files or Files())
        try:
            loaded = self._storage.load()
        except BaseException:
            self._storage.close()
            raise
        self.settings = settings
        self.keyspace = Keyspace(loaded.entries, loaded.rev)
        self._persistence = Persistence(self.keyspace, self._storage, settings.snapshot_interval)

    def start(self) -> None:
        """Start the persistence thread."""
        self._persistence.start()

    def snapshot(self) -> Future[int]:
        """Have a snapshot on disk of everything committed so far; gives its revision."""
        return self._persistence.snapshot()

    def close(self) -> int:
        """Refuse writes, save everything, let go of the directory; returns the last revision.

        Raises ReadOnlyError where not everything could be saved.
        """
        self.keyspace.seal()
        try:
            return self._persistence.close()
        finally:
            self._storage.close()

    def abandon(self) -> None:
        """Let go of the directory without having started."""
        self._storage.close()

    @property
    def durable_rev(self) -> int:
        """The newest revision that is on disk."""
        return self._persistence.saved_rev

    def statistics(self) -> dict[str, int | float]:
        """Counters and gauges for INFO."""
        return self._persistence.statistics()
