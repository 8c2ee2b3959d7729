"""A namespace as a mapping of all its keys. Only the client for threads has this.

It behaves like a dict whose keys are text and in order. Methods that are one op of the protocol are
atomic: ``[]``, ``in``, ``len``, ``del``, and `update` within the server's limits. `pop`,
`setdefault` and `popitem` are atomic by conditions. Iteration reads page by page: it returns an
entry that exists all the time exactly once, and may or may not return others.

``dict(kv)`` also reads pages, like ``dict(kv.items())``, and so do ``{**kv}`` and ``f(**kv)``.
Python asks for the keys, and then for the value of each key, which would be a request for every
entry. But it does so in one instruction, during which no code of the program runs. So if the
instruction that called ``keys()`` also makes the iterator over them, the iterator reads the values,
too, and ``[]`` returns these as long as the same instruction runs. A loop over ``keys()`` in the
program consists of many instructions, and reads each value when the program asks for it.
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
    """The methods of a mapping, for `KeyOps`."""

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
        """Return a view of the keys in order. It reads them when it is used."""
        return KeysInOrder(self, _caller())

    def values(self) -> ValuesInOrder:
        """Return a view of the values in the order of their keys. It reads them when it is used."""
        return ValuesInOrder(self)

    def items(self) -> ItemsInOrder:
        """Return a view of keys and values in key order. It reads them when it is used."""
        return ItemsInOrder(self)

    def popitem(self) -> tuple[str, Any]:
        """Remove the last key in order, and return it with its value.

        Raises:
            NotFoundError: there are no keys.
            BadValueError: the value cannot be decoded; the entry is kept.
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
        """Write many values: as one change, or as several if a limit of the server requires it."""
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
        # A reference to the frame would keep it and its variables as long as the view.
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
"""A frame, and the place of the running instruction in its code."""


def _caller() -> _Instruction | None:
    """Return the instruction that called a method of a mapping or a view, directly or from C."""
    try:
        frame = sys._getframe(2)
    except ValueError:  # A program in C.
        return None
    return frame, frame.f_lasti


class _Copy:
    """The values of a mapping that one instruction reads.

    Args:
        mapping: the mapping that is copied.
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
        """Return a value, once; `RAISE` if it is not kept, or the instruction is over."""
        is_over = mapping is not self._mapping or asked_by != self._made_by
        value = RAISE if is_over else self._values.pop(key, RAISE)
        if is_over or (self._is_read and not self._values):
            _copies.pop(get_ident(), None)
        return value


_copies: Final[dict[int, _Copy]] = {}
"""By thread; usually empty."""


def _copied(mapping: Dictionary, key: str, asked_by: _Instruction | None) -> Any:
    copy = _copies.get(get_ident())
    return RAISE if copy is None else copy.take(mapping, key, asked_by)
