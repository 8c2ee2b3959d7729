"""A dict of dicts and lists in which changes at any depth are stored.

A client is a flat mapping: ``kv["a"]["b"] = 1`` changes a copy, and nothing is stored. Here it is::

    md = NestedDict(kv, "experiment/")
    md["sample"] = {"name": "Fe3O4", "runs": []}
    md["sample"]["runs"].append(7)

Each top-level key is one entry, with all that is below it as its value. What is read from it are
real dicts and lists, as they were at that time, that know their path. A change of one of them reads
the entry, makes the change, and writes the entry on the condition that nobody has written it in
between; else it begins anew. So programs that share a `NestedDict` lose no change of each other.

The place of a dict or list is its path. If that leads through a list, whose indexes may have moved,
a change is made only if what is there is still what was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from zkv.client import Client, ConflictError, MisuseError, Namespace
from zkv.client.namespace import KeyOps


def plain(value: Any) -> Any:
    """Return a copy of dicts and lists in which changes are not stored."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | Iterator):
        return [plain(each) for each in value]
    return tuple(map(plain, value)) if type(value) is tuple else value


class _Stored:
    """The common part of `StoredDict` and `StoredList`, which only `NestedDict` makes."""

    _keys: Namespace
    _path: tuple[Any, ...]

    def _change(self, change: Callable[[Any], Any]) -> Any:
        """Make a change in the store, and show what is there then."""
        key, *below = self._path
        while True:
            entry = self._keys.get_entry(key)
            place, is_in_list = entry.value, False
            for name in below:
                is_in_list |= isinstance(place, list)
                place = place[name]
            if not isinstance(self, type(place)) or (is_in_list and place != self):
                text = f"{self._path!r} is no longer what was read: read it again"
                raise MisuseError(text, applied=False)
            result = change(place)
            try:
                self._keys.put(key, entry.value, ttl=entry.ttl, if_rev=entry.rev)
            except ConflictError:
                continue
            self._show(place)
            return result

    def _show(self, value: Any) -> None:
        """Take over what was read."""
        raise NotImplementedError

    def _below(self, name: Any, value: Any) -> Any:
        """Return a value at ``name`` so that changes of it are stored."""
        return _stored(self._keys, (*self._path, name), value)

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

    def __ior__(self, other: Any) -> Any:  # type: ignore[misc]  # `|` returns a plain dict
        self.update(other)
        return self


class StoredList(_Stored, list[Any]):
    """A list below a key of a `NestedDict`."""

    def _show(self, value: list[Any]) -> None:
        list.clear(self)
        list.extend(self, (self._below(index, each) for index, each in enumerate(value)))

    def __iadd__(self, other: Iterable[Any]) -> Any:  # type: ignore[misc]  # `+`, a plain list
        self.extend(list(other))
        return self

    def __imul__(self, times: Any) -> Any:  # type: ignore[misc]  # `*`, a plain list
        self._change(lambda place: place.__imul__(times))
        return self


def _stored(keys: Namespace, path: tuple[Any, ...], value: Any) -> Any:
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
    StoredDict: "__delitem__ __setitem__ clear pop popitem update",
    StoredList: "__delitem__ __setitem__ append clear extend insert pop remove reverse sort",
}.items():
    for _name in _names.split():
        setattr(_kind, _name, _storing(_kind.__mro__[2], _name))


class NestedDict(MutableMapping[str, Any]):
    """A mapping in which dicts and lists at any depth are stored when they are changed.

    Args:
        client: a `zkv.Client`, or a namespace of one. The mapping does not close it. For values of
            more types than msgpack's, give it a codec, such as ``zkv.codecs.standard()``.
        prefix: of all keys.
    """

    def __init__(self, client: Client | Namespace, prefix: str = "") -> None:
        if not isinstance(client, KeyOps):
            raise TypeError(f"client must be a zkv.Client or a namespace of one, not {client!r}")
        self._keys = client.namespace(prefix)

    def __getitem__(self, key: str) -> Any:
        return _stored(self._keys, (key,), self._keys[key])

    def __setitem__(self, key: str, value: Any) -> None:
        self._keys[key] = plain(value)

    def __delitem__(self, key: str) -> None:
        del self._keys[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __repr__(self) -> str:
        return f"NestedDict({dict(self._keys.items())!r})"

    def pop(self, key: str, *default: Any) -> Any:
        return self._keys.pop(key, *default)

    def popitem(self) -> tuple[str, Any]:
        return self._keys.popitem()

    def setdefault(self, key: str, default: Any = None) -> Any:
        return _stored(self._keys, (key,), self._keys.setdefault(key, plain(default)))

    def update(self, other: Mapping[str, Any] | Iterable[Any] = (), /, **more: Any) -> None:  # type: ignore[override]
        self._keys.update(plain(dict(other, **more)))

    def clear(self) -> None:
        self._keys.clear()

    def copy(self) -> dict[str, Any]:
        """Return a plain dict, in which changes are not stored."""
        return dict(self._keys.items())

    def __deepcopy__(self, _: object) -> dict[str, Any]:
        return self.copy()
