"""What a namespace does as a mapping of all its keys: the part that only threads have.

It behaves as a dict whose keys are text and stand in order. What is one op of the protocol is
atomic: ``[]``, ``in``, ``len``, ``del``, `pop`, `update` within the server's limits. `setdefault`
and `popitem` are made atomic by conditions. Iterating reads page after page: an entry that is there
all the time comes once, others may.

``dict(kv)`` reads pages, too, as ``dict(kv.items())`` does, and so do ``{**kv}`` and ``f(**kv)``.
Python asks for the keys, and then for the value of each: a request for every entry. But it does so
in one instruction, in which no code of the program runs. So where the iterator over ``keys()`` is
made by the very instruction that called ``keys()``, it reads the values as well, and ``[]`` takes
them from there as long as the same instruction goes on. A loop of the program over ``keys()``
consists of many instructions, and reads each value when it asks for it.
"""

from __future__ import annotations

import sys
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
from threading import get_ident
from types import FrameType
from typing import Any, Final, Self, TypeVar

from zkv import checks
from zkv.client import operations
from zkv.client.connection import refuse_to_pickle
from zkv.client.errors import BadValueError, ConflictError, NotFoundError, TooLargeError
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
        if _copies and (found := _copied(self, key, _caller())) is not RAISE:
            return found
        return self._run(operations.get(checks.key(self._prefix, key), RAISE))

    def __setitem__(self, key: str, value: Any) -> None:
        self._run(operations.put(checks.key(self._prefix, key), value, None, None, False))

    def __delitem__(self, key: str) -> None:
        self._run(operations.remove(checks.key(self._prefix, key)))

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
        return KeysInOrder(self, _caller())

    def values(self) -> ValuesInOrder:
        """The values in the order of their keys, as a view that reads them when it is asked."""
        return ValuesInOrder(self)

    def items(self) -> ItemsInOrder:
        """Keys and values in the order of the keys, as a view that reads them when it is asked."""
        return ItemsInOrder(self)

    def popitem(self) -> tuple[str, Any]:
        """Remove the last key in order, and return it with its value.

        Raises:
            NotFoundError: there is none.
            BadValueError: its value cannot be decoded; it stays.
        """
        while True:
            entry = next(self._entries(1, reverse=True), None)
            if entry is None:
                raise NotFoundError("NOT_FOUND", "there are no keys", False, False, {})
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
        try:
            items = dict(other, **more)
        except (TypeError, ValueError) as error:
            raise checks.named("update: a mapping, or pairs of keys and values", error) from None
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

    def __init__(self, mapping: Dictionary, made_by: _Instruction | None = None) -> None:
        super().__init__(mapping)
        # The frame itself would live, with all that is in it, as long as the view.
        self._made_by = made_by and (id(made_by[0]), made_by[1])

    __reduce__ = refuse_to_pickle

    def __iter__(self) -> Iterator[str]:
        caller = _caller()
        if caller is not None and self._made_by == (id(caller[0]), caller[1]):
            return _Copy(self._mapping, caller).keys()
        return iter(self._mapping)

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

    def __contains__(self, item: object) -> bool:
        if not (isinstance(item, tuple) and len(item) == 2 and item[0] in self._mapping):
            return False
        return super().__contains__(item)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((entry.key, entry.value) for entry in self._mapping._entries())

    def __reversed__(self) -> Iterator[tuple[str, Any]]:
        return ((entry.key, entry.value) for entry in self._mapping._entries(reverse=True))


# --- Copies by dict(), see above

_Instruction = tuple[FrameType, int]
"""Who calls: a frame, and where in its code it is."""


def _caller() -> _Instruction | None:
    """The instruction that has called a method of a mapping or a view, maybe by way of C."""
    try:
        frame = sys._getframe(2)
    except ValueError:  # A program in C.
        return None
    return frame, frame.f_lasti


class _Copy:
    """What one instruction reads of a mapping.

    Args:
        mapping: that is copied.
        made_by: the instruction.
    """

    def __init__(self, mapping: Dictionary, made_by: _Instruction) -> None:
        self._mapping = mapping
        self._made_by = made_by
        self._values: dict[str, Any] = {}
        self._is_read = False

    def keys(self) -> Iterator[str]:
        """All keys, with their values kept for `take`."""
        _copies[get_ident()] = self
        try:
            for entry in self._mapping._entries():
                self._values[entry.key] = entry.value
                yield entry.key
        except BaseException:
            _copies.pop(get_ident(), None)
            raise
        self._is_read = True
        if not self._values:
            _copies.pop(get_ident(), None)

    def take(self, mapping: Dictionary, key: str, asked_by: _Instruction | None) -> Any:
        """A value, once; `RAISE` where it is not kept, or the instruction is over."""
        is_over = mapping is not self._mapping or asked_by != self._made_by
        value = RAISE if is_over else self._values.pop(key, RAISE)
        if is_over or (self._is_read and not self._values):
            _copies.pop(get_ident(), None)
        return value


_copies: Final[dict[int, _Copy]] = {}
"""By thread; as a rule, there are none."""


def _copied(mapping: Dictionary, key: str, asked_by: _Instruction | None) -> Any:
    copy = _copies.get(get_ident())
    return RAISE if copy is None else copy.take(mapping, key, asked_by)
