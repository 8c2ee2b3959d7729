"""The table of entries: a mapping from key to `StoredEntry`, protected by the keyspace's lock.

It is a `dict` in pure Python. In C it keeps an entry in one piece of memory instead of five
objects, and the lane finds entries without running any Python.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING

from zkv import compiled
from zkv.keyspace.entry import StoredEntry


class Table(MutableMapping[str, StoredEntry]):
    """The interface of both."""

    __slots__ = ()

    def pairs(self, keys: Sequence[str]) -> list[tuple[str, StoredEntry]]:
        """Return each of ``keys``, a list, with its entry. Raises KeyError."""
        return [(key, self[key]) for key in keys]


class PythonTable(dict[str, StoredEntry], Table):
    """The table in pure Python."""

    __slots__ = ()


if TYPE_CHECKING or compiled.COMPILED:

    class CompiledTable(compiled.store.Table, Table):
        """The table in C. `MutableMapping` adds methods that C lacks, such as `items`."""

        __slots__ = ()


def new_table() -> Table:
    """Return an empty table."""
    return CompiledTable(StoredEntry, os.urandom(16)) if compiled.COMPILED else PythonTable()


def is_compiled(table: Table) -> bool:
    """Return True if a lane can use the table."""
    return compiled.COMPILED and isinstance(table, compiled.store.Table)
