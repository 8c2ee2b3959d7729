"""The table of entries: a mapping from key to `StoredEntry`, guarded by the store's lock.

A `dict`, or its compiled twin, which keeps an entry in one piece of memory instead of five objects,
and in which a `Lane` finds it without a step of Python.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING

from zkv import compiled
from zkv.keyspace.entry import StoredEntry


class Table(MutableMapping[str, StoredEntry]):
    """What both have in common."""

    __slots__ = ()

    def pairs(self, keys: Sequence[str]) -> list[tuple[str, StoredEntry]]:
        """Each of ``keys``, a list, with its entry. Raises KeyError."""
        return [(key, self[key]) for key in keys]


class PlainTable(dict[str, StoredEntry], Table):
    """In Python."""

    __slots__ = ()


if TYPE_CHECKING or compiled.COMPILED:

    class CompiledTable(compiled.store.Table, Table):
        """Compiled. What is not there in C, such as `items`, is made of what is."""

        __slots__ = ()


def new_table() -> Table:
    """An empty table."""
    return CompiledTable(StoredEntry, os.urandom(16)) if compiled.COMPILED else PlainTable()


def is_compiled(table: Table) -> bool:
    """Whether a `Lane` can work on it."""
    return compiled.COMPILED and isinstance(table, compiled.store.Table)
