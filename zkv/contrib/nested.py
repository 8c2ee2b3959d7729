"""A dict of dicts and lists in which changes at any depth are stored.

A client is a flat mapping: ``kv["a"]["b"] = 1`` changes a copy, and nothing is stored. Here it is::

    md = NestedDict(kv, "experiment/")
    md["sample"] = {"name": "Fe3O4", "runs": []}
    md["sample"]["runs"].append(7)

Each top-level key is one entry, with all that is below it as its value. What is read from it is a
real dict or list that stores its changes, as `zkv.contrib._stored` says; so programs that share a
`NestedDict` lose no change of each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from zkv.client import Client, Namespace
from zkv.client.namespace import KeyOps
from zkv.contrib._stored import plain, stored


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
        return stored(self._keys, (key,), self._keys[key])

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
        return stored(self._keys, (key,), self._keys.setdefault(key, plain(default)))

    def update(self, other: Mapping[str, Any] | Iterable[Any] = (), /, **more: Any) -> None:  # type: ignore[override]
        self._keys.update(plain(dict(other, **more)))

    def clear(self) -> None:
        self._keys.clear()

    def copy(self) -> dict[str, Any]:
        """Return a plain dict, in which changes are not stored."""
        return dict(self._keys.items())

    def __deepcopy__(self, _: object) -> dict[str, Any]:
        return self.copy()
