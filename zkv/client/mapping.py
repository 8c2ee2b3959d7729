"""What a namespace does as a mapping of all its keys: the part that only threads have.

It behaves as a dict whose keys are text and stand in order. What is one op of the protocol is
atomic: ``[]``, ``in``, ``len``, ``del``, `pop`, `update` within the server's limits. `setdefault`
and `popitem` are made atomic by conditions. Iterating reads page after page: an entry that is there
all the time comes once, others may. ``dict(kv.items())`` reads pages, too, where ``dict(kv)`` would
ask for each key.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import (
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    ValuesView,
)
from itertools import islice
from typing import Any, Self, TypeVar

from zkv.client import operations
from zkv.client.errors import BadValueError, ConflictError, TooLargeError
from zkv.client.operations import RAISE, Entry, Operation, ScanPages, scan_fields

T = TypeVar("T")


class Dictionary(MutableMapping[str, Any]):
    """What `KeyOps` is as a mapping."""

    _prefix: str

    @abstractmethod
    def _run(self, operation: Operation[T]) -> T:
        """Carry out an operation, with retries."""

    @abstractmethod
    def _pages(self, scan: ScanPages) -> Iterator[list[Entry]]:
        """The pages of a scan."""

    def _entries(
        self, limit: int | None = None, *, values: bool = True, reverse: bool = False
    ) -> Iterator[Entry]:
        fields = scan_fields(self._prefix, values=values, reverse=reverse)
        for page in self._pages(ScanPages(self._prefix, fields, limit)):
            yield from page

    def __getitem__(self, key: str) -> Any:
        return self._run(operations.get(self._prefix + key, RAISE))

    def __setitem__(self, key: str, value: Any) -> None:
        self._run(operations.put(self._prefix + key, value, None, None, False))

    def __delitem__(self, key: str) -> None:
        self._run(operations.remove(self._prefix + key))

    def __len__(self) -> int:
        return self._run(operations.count(self._prefix))

    def __iter__(self) -> Iterator[str]:
        return (entry.key for entry in self._entries(values=False))

    def __reversed__(self) -> Iterator[str]:
        return (entry.key for entry in self._entries(values=False, reverse=True))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Mapping):
            return NotImplemented
        return dict(self.items()) == dict(other.items())

    __hash__ = None  # type: ignore[assignment]  # as for any mutable mapping

    def __ior__(self, other: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Self:
        self.update(other)
        return self

    def keys(self) -> KeysInOrder:
        """The keys in order, as a view that reads them when it is asked."""
        return KeysInOrder(self)

    def values(self) -> ValuesInOrder:
        """The values in the order of their keys, as a view that reads them when it is asked."""
        return ValuesInOrder(self)

    def items(self) -> ItemsInOrder:
        """Keys and values in the order of the keys, as a view that reads them when it is asked."""
        return ItemsInOrder(self)

    def popitem(self) -> tuple[str, Any]:
        """Remove the last key in order, and return it with its value.

        Raises:
            KeyError: there is none.
            BadValueError: its value cannot be decoded; it stays.
        """
        while True:
            entry = next(self._entries(1, reverse=True), None)
            if entry is None:
                raise KeyError("popitem(): there are no keys")
            if isinstance(entry.value, BadValueError):
                raise entry.value
            try:
                self._run(operations.delete(self._prefix + entry.key, entry.rev))
                return entry.key, entry.value
            except ConflictError:
                continue

    def update(  # type: ignore[override]  # the overloads of MutableMapping in one signature
        self, other: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **more: Any
    ) -> None:
        """Write many values: at one moment, unless they are more than the server takes at once."""
        items = dict(other, **more)
        if items:
            self._update(items)

    def _update(self, items: dict[str, Any]) -> None:
        try:
            self._run(operations.put_many(self._prefix, items, None))
        except TooLargeError:
            if len(items) == 1:
                raise
            half = iter(items.items())
            self._update(dict(islice(half, len(items) // 2)))
            self._update(dict(half))


class KeysInOrder(KeysView[str]):
    """The keys of a namespace."""

    _mapping: Dictionary

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._mapping)


class ValuesInOrder(ValuesView[Any]):
    """The values of a namespace."""

    _mapping: Dictionary

    def __iter__(self) -> Iterator[Any]:
        return (entry.value for entry in self._mapping._entries())

    def __reversed__(self) -> Iterator[Any]:
        return (entry.value for entry in self._mapping._entries(reverse=True))

    def __contains__(self, value: object) -> bool:
        return any(each is value or each == value for each in self)


class ItemsInOrder(ItemsView[str, Any]):
    """The keys and values of a namespace."""

    _mapping: Dictionary

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((entry.key, entry.value) for entry in self._mapping._entries())

    def __reversed__(self) -> Iterator[tuple[str, Any]]:
        return ((entry.key, entry.value) for entry in self._mapping._entries(reverse=True))
