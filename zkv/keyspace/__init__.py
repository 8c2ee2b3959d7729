"""The store: entries under one lock, in pure memory. See `zkv.keyspace.store`."""

from zkv.keyspace.change import DELETE, EXPIRE, PUT, TOUCH, Change, Commit, Once, Packed
from zkv.keyspace.entry import ABSENT, Entry
from zkv.keyspace.expirer import Expirer
from zkv.keyspace.history import Cursor, History
from zkv.keyspace.sessions import Remembered, Sessions
from zkv.keyspace.store import Keyspace, NoLog
from zkv.keyspace.transaction import Transaction
from zkv.keyspace.view import SnapshotView

__all__ = [
    "ABSENT",
    "DELETE",
    "EXPIRE",
    "PUT",
    "TOUCH",
    "Change",
    "Commit",
    "Cursor",
    "Entry",
    "Expirer",
    "History",
    "Keyspace",
    "NoLog",
    "Once",
    "Packed",
    "Remembered",
    "Sessions",
    "SnapshotView",
    "Transaction",
]
