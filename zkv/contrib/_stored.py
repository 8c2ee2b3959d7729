"""Dicts and lists that `zkv.contrib.nested` reads: each change of one is made in the store.

They are as they were when they were read, and know their path: the key of the entry, and the way
from there. A change reads the entry, makes the change there, and writes the entry on the condition
that nobody has written it in between; else it begins anew.

The place of a dict or list is its path. If that leads through a list, whose indexes may have moved,
a change is made only if what is there is still what was read.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, ValuesView
from typing import Any

from zkv.client import MisuseError, Namespace
from zkv.contrib._requests import until_alone


def plain(value: Any) -> Any:
    """Return a copy of dicts and lists in which changes are not stored."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | Iterator | ItemsView | ValuesView):
        return [plain(each) for each in value]
    return tuple(map(plain, value)) if type(value) is tuple else value


class _Stored:
    """The common part of `StoredDict` and `StoredList`, which only `NestedDict` makes."""

    _keys: Namespace
    _path: tuple[Any, ...]

    @until_alone
    def _change(self, change: Callable[[Any], Any]) -> Any:
        """Make a change in the store, and show what is there then."""
        key, *below = self._path
        entry = self._keys.get_entry(key)
        place, is_in_list = entry.value, False
        for name in below:
            is_in_list |= isinstance(place, list)
            place = place[name]
        if not isinstance(self, type(place)) or (is_in_list and place != self):
            text = f"{self._path!r} is no longer what was read: read it again"
            raise MisuseError(text, applied=False)
        result = change(place)
        self._keys.put(key, entry.value, ttl=entry.ttl, if_rev=entry.rev)
        self._show(place)
        return self if result is place else result  # `|=`, `+=` and `*=` return what they change.

    def _show(self, value: Any) -> None:
        """Take over what was read."""
        raise NotImplementedError

    def _below(self, name: Any, value: Any) -> Any:
        """Return a value at ``name`` so that changes of it are stored."""
        return stored(self._keys, (*self._path, name), value)

    def copy(self) -> Any:
        """Return plain dicts and lists, in which changes are not stored."""
        return plain(self)

    def __deepcopy__(self, _: object) -> Any:
        return plain(self)

    def __reduce__(self) -> Any:
        return plain, (plain(self),)


class StoredDict(_Stored, dict[Any, Any]):
    """A dict below a key of a `NestedDict`."""

    def _show(self, value: dict[Any, Any]) -> None:
        dict.clear(self)
        dict.update(self, {name: self._below(name, each) for name, each in value.items()})

    def setdefault(self, name: Any, default: Any = None) -> Any:
        self._change(lambda place: place.setdefault(name, plain(default)))
        return self[name]


class StoredList(_Stored, list[Any]):
    """A list below a key of a `NestedDict`."""

    def _show(self, value: list[Any]) -> None:
        list.clear(self)
        list.extend(self, (self._below(index, each) for index, each in enumerate(value)))


def stored(keys: Namespace, path: tuple[Any, ...], value: Any) -> Any:
    """Return a value that was read at a path so that changes of it are stored."""
    if type(value) not in {dict, list}:
        return value
    made: StoredDict | StoredList = StoredDict() if type(value) is dict else StoredList()
    made._keys, made._path = keys, path
    made._show(value)
    return made


def _storing(kind: type, name: str) -> Callable[..., Any]:
    """Return a method of dict or list as one that makes its change in the store."""
    method = getattr(kind, name)

    def change(self: _Stored, *arguments: Any, **keywords: Any) -> Any:
        given, named = [plain(each) for each in arguments], plain(keywords)
        return self._change(lambda place: method(place, *given, **named))

    return change


for _kind, _names in {
    StoredDict: "__delitem__ __ior__ __setitem__ clear pop popitem update",
    StoredList: "__delitem__ __iadd__ __imul__ __setitem__ append clear extend insert pop remove"
    " reverse sort",
}.items():
    for _name in _names.split():
        setattr(_kind, _name, _storing(_kind.__mro__[2], _name))
