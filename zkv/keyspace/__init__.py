"""The keyspace: entries in memory, under one lock. See `zkv.keyspace.store`."""

from zkv.keyspace.change import DELETE, EXPIRE, PUT, TOUCH, Commit, KeyChange, Once, PackedCommit
from zkv.keyspace.entry import ABSENT, StoredEntry
from zkv.keyspace.eviction import CacheBound
from zkv.keyspace.expirer import Expirer
from zkv.keyspace.history import Cursor, History
from zkv.keyspace.log import CommitLog, MemoryLog
from zkv.keyspace.sessions import Remembered, Sessions
from zkv.keyspace.store import Keyspace
from zkv.keyspace.transaction import StagedWrite
from zkv.keyspace.view import SnapshotView

__all__ = [
    "ABSENT",
    "DELETE",
    "EXPIRE",
    "PUT",
    "TOUCH",
    "CacheBound",
    "Commit",
    "CommitLog",
    "Cursor",
    "Expirer",
    "History",
    "KeyChange",
    "Keyspace",
    "MemoryLog",
    "Once",
    "PackedCommit",
    "Remembered",
    "Sessions",
    "SnapshotView",
    "StagedWrite",
    "StoredEntry",
]
