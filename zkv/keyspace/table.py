"""The table of entries: a mapping from key to `StoredEntry`, in the order of the keys.

In pure Python it is a `dict` with a sorted list of its keys. In C it keeps an entry in one piece of
memory instead of five objects, and the lane finds entries without running any Python.

Invariants: it is protected by the keyspace's lock. Python orders str by code point, which is also
the order of their bytes in UTF-8, and so the protocol's order.
"""

from __future__ import annotations

import math
import os
import random
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, MutableMapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from sortedcontainers import SortedDict

from zkv import compiled
from zkv.bounds import Range, after_prefix
from zkv.keyspace.entry import StoredEntry, entry_bytes

SAMPLES: Final = 10
"""Entries that `Table.pick` looks at for each one that it picks."""


class Table(MutableMapping[str, StoredEntry]):
    """The interface of both. It iterates over the keys in order."""

    __slots__ = ()

    @abstractmethod
    def pairs(
        self, keys: Range, most: int, reverse: bool = False, /
    ) -> list[tuple[str, StoredEntry]]:
        """Return the first ``most`` entries of a range; if ``reverse``, the last, backwards."""

    @abstractmethod
    def count(self, keys: Range) -> int:
        """Return the number of keys in a range."""

    @abstractmethod
    def deadlines(self) -> list[tuple[int, str]]:
        """Return expiry (Unix time in ms) and key of each entry that expires, in any order."""

    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """Return the bytes of all keys, and of all values."""

    @abstractmethod
    def count_bytes(self, prefixes: Collection[str], /) -> None:
        """Count, from now on, the bytes of the entries under these prefixes, and no others.

        Entries that are there are counted by `count_more`, except under prefixes of which the count
        is complete already.
        """

    @abstractmethod
    def count_more(self, most: int, /) -> bool:
        """Count at most so many entries that were there before; return True if some are left."""

    @abstractmethod
    def bytes_under(self, prefixes: tuple[str, ...], /) -> int | None:
        """Return the bytes of all keys and values under these prefixes.

        None of them may begin with another. The result is None if the count of one of them is not
        complete, or if it is not counted at all.
        """

    @abstractmethod
    def keep_clocks(self) -> None:
        """Note, from now on, which keys are used: read by `get` or the lane, or set."""

    @abstractmethod
    def pick(self, keys: Range, most: int, by_expiry: bool, /) -> list[tuple[str, int]]:
        """Pick at most ``most`` keys of a range to evict, and return them with their bytes.

        The first is the first to go. They are the best of a random sample: those that expire first
        or, if not ``by_expiry``, those that have not been used for longest, for which the table
        must keep clocks. Among equals, what was written first goes first.
        """


class PythonTable(SortedDict[str, StoredEntry], Table):
    """The table in pure Python. It counts what assignment, `del`, `pop` and `update` do.

    Args:
        entries: the first entries.
    """

    def __init__(self, entries: Mapping[str, StoredEntry] | None = None) -> None:
        super().__init__()
        self._key_bytes = 0
        self._value_bytes = 0
        self._bytes_under: dict[str, int] = {}
        self._lengths: list[int] = []  # Of these prefixes.
        # Those whose count is not complete; a walk is in the first.
        self._uncounted: list[str] = []
        self._reached = ""  # Its keys before this one are counted.
        self._clocks: dict[str, int] | None = None  # When each key was last used.
        self._time = 0
        self.update(entries or {})

    def __setitem__(self, key: str, entry: StoredEntry) -> None:
        """See `Table`."""
        self._count(key, -1)
        super().__setitem__(key, entry)
        self._count(key, 1)
        self._use(key)

    def __delitem__(self, key: str) -> None:
        """See `Table`."""
        self._count(key, -1)
        super().__delitem__(key)
        if self._clocks is not None:
            self._clocks.pop(key, None)

    def get(self, key: str, default: Any = None) -> Any:
        """See `Table`."""
        entry = super().get(key, default)
        if entry is not default:
            self._use(key)
        return entry

    pop = MutableMapping.pop  # type: ignore[assignment]

    def update(  # type: ignore[override]
        self, entries: Mapping[str, StoredEntry] | Iterable[tuple[str, StoredEntry]]
    ) -> None:
        """Set many entries; sorts their keys at once."""
        new = dict(entries)
        for key in new:
            self._count(key, -1)
        super().update(new)
        for key in new:
            self._count(key, 1)

    def _count(self, key: str, sign: int) -> None:
        """Add the sizes of an entry, if it is there, or subtract them."""
        entry = super().get(key)
        if entry is not None:
            self._key_bytes += sign * len(key.encode())
            self._value_bytes += sign * len(entry.value)
            self._add(key, sign * entry_bytes(key, entry))

    def _add(self, key: str, size: int) -> None:
        """Add to the counts of all prefixes that include a key."""
        for length in self._lengths:
            prefix = key[:length]
            if length <= len(key) and prefix in self._bytes_under and self._includes(prefix, key):
                self._bytes_under[prefix] += size

    def _includes(self, prefix: str, key: str) -> bool:
        if prefix not in self._uncounted:
            return True
        return prefix == self._uncounted[0] and key < self._reached

    def sizes(self) -> tuple[int, int]:
        """See `Table`."""
        return self._key_bytes, self._value_bytes

    def count_bytes(self, prefixes: Collection[str], /) -> None:
        """See `Table`."""
        complete = self._bytes_under.keys() - set(self._uncounted)
        self._uncounted = sorted(set(prefixes) - complete)
        self._bytes_under = {
            prefix: self._bytes_under[prefix] if prefix in complete else 0 for prefix in prefixes
        }
        self._lengths = sorted({len(prefix) for prefix in prefixes})
        self._reached = ""

    def count_more(self, most: int, /) -> bool:
        """See `Table`."""
        while most > 0 and self._uncounted:
            prefix = self._uncounted[0]
            there = Range(max(prefix, self._reached), after_prefix(prefix))
            found = self.pairs(there, most)
            self._bytes_under[prefix] += sum(entry_bytes(key, entry) for key, entry in found)
            if len(found) == most:
                self._reached = found[-1][0] + "\0"  # The first key that comes after it.
                break
            del self._uncounted[0]
            self._reached = ""
            most -= len(found) + 1  # To look for its first entry took time, too.
        return bool(self._uncounted)

    def bytes_under(self, prefixes: tuple[str, ...], /) -> int | None:
        """See `Table`."""
        if not all(each in self._bytes_under and each not in self._uncounted for each in prefixes):
            return None
        return sum([self._bytes_under[prefix] for prefix in prefixes])

    def _use(self, key: str) -> None:
        if self._clocks is not None:
            self._time += 1
            self._clocks[key] = self._time

    def keep_clocks(self) -> None:
        """See `Table`."""
        self._clocks = {}

    def pick(self, keys: Range, most: int, by_expiry: bool, /) -> list[tuple[str, int]]:
        """See `Table`."""
        there = self._places(keys)
        places: Iterable[int] = there
        if len(there) > most * SAMPLES:
            places = set(random.choices(there, k=most * SAMPLES))  # noqa: S311  guards nothing
        clocks = self._clocks or {}

        def rank(item: tuple[str, StoredEntry]) -> tuple[float, int]:
            key, entry = item
            if by_expiry:
                return math.inf if entry.expires is None else entry.expires, entry.rev
            return clocks.get(key, 0), entry.rev

        found = sorted(map(self.peekitem, places), key=rank)
        return [(key, entry_bytes(key, entry)) for key, entry in found[:most]]

    def pairs(
        self, keys: Range, most: int, reverse: bool = False, /
    ) -> list[tuple[str, StoredEntry]]:
        """See `Table`."""
        if keys.empty:
            return []
        included = (keys.low_included, False)
        found = self.irange(keys.low, keys.high, inclusive=included, reverse=reverse)
        return [(key, self[key]) for key in islice(found, most)]

    def count(self, keys: Range) -> int:
        """See `Table`."""
        return len(self._places(keys))

    def _places(self, keys: Range) -> range:
        """The places of the keys of a range among all keys."""
        bisect = self.bisect_left if keys.low_included else self.bisect_right
        high = len(self) if keys.high is None else self.bisect_left(keys.high)
        return range(bisect(keys.low), high)

    def deadlines(self) -> list[tuple[int, str]]:
        """See `Table`."""
        return [(entry.expires, key) for key, entry in self.items() if entry.expires is not None]


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
