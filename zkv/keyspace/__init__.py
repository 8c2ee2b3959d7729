"""The store: entries under one lock, in pure memory. See `zkv.keyspace.store`."""

from zkv.keyspace.change import DELETE, PUT, Change
from zkv.keyspace.entry import Entry
from zkv.keyspace.store import Keyspace, Written
from zkv.keyspace.view import SnapshotView

__all__ = ["DELETE", "PUT", "Change", "Entry", "Keyspace", "SnapshotView", "Written"]
