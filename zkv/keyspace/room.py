"""The check that a write stays within the quota of its user.

Counting by prefix, and not by who wrote an entry, needs nothing in the files, and can be derived
from the entries alone: so it is exact after a restart. Entries count for as long as they are in the
table, also those that have expired and are still to be removed.

The lane checks its requests by the same rules (`has_room` in zkv/compiled/lane.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zkv.errors import Full
from zkv.keyspace.entry import entry_bytes

if TYPE_CHECKING:
    from zkv.keyspace.table import Table
    from zkv.keyspace.transaction import StagedWrite


def require_room(table: Table, transaction: StagedWrite) -> None:
    """Raise Full if a transaction would exceed its quota and makes what is there grow.

    While what is there has not been counted, there is no quota.
    """
    quota = transaction.quota
    held = None if quota is None else table.bytes_under(quota.prefixes)
    if quota is None or held is None:
        return
    growth = sum([
        entry_bytes(key, entry) - entry_bytes(key, table.get(key))
        for key, entry in transaction.staged.items()
        if key.startswith(quota.prefixes)
    ])  # fmt: skip
    if growth > 0 and held + growth > quota.max_bytes:
        raise Full(
            f"what is under your write prefixes takes {held} bytes and would take "
            f"{held + growth}; max_bytes is {quota.max_bytes}: remove something first",
            seen_rev=transaction.rev - 1,
        )
