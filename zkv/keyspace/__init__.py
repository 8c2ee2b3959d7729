"""The store: entries under one lock, in pure memory. See `zkv.keyspace.store`."""

from zkv.keyspace.entry import Entry
from zkv.keyspace.store import Keyspace, Written
from zkv.keyspace.view import SnapshotView

__all__ = ["Entry", "Keyspace", "SnapshotView", "Written"]
