"""Requests of adapters that take several: many keys, directories, changes on a condition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from zkv.client import ConflictError, TooLargeError

if TYPE_CHECKING:
    from zkv.client import Namespace

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

BATCH: Final = 1_000
"""Keys in one request."""
PAGE: Final = 500
"""Keys that listing a directory reads at a time."""


def in_parts(run: Callable[[list[T]], R], items: Iterable[T], most: int = BATCH) -> Iterator[R]:
    """Call ``run`` with parts of ``items``, smaller ones where a limit of the server requires it.

    Raises:
        TooLargeError: a single item exceeds a limit.
    """
    rest = list(items)
    for place in range(0, len(rest), most):
        part = rest[place : place + most]
        try:
            yield run(part)
        except TooLargeError:
            if len(part) == 1:
                raise
            yield from in_parts(run, part, len(part) // 2)


def get_all(keys: Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return the values of any number of keys, without the absent ones."""
    found: dict[str, Any] = {}
    for part in in_parts(keys.get_many, names):
        found |= part
    return found


def put_all(keys: Namespace, items: Mapping[str, Any], ttl: float | None) -> None:
    """Write any number of values."""
    for _ in in_parts(lambda part: keys.put_many(dict(part), ttl=ttl), items.items()):
        pass


def delete_all(keys: Namespace, names: Iterable[str]) -> None:
    """Remove any number of keys."""
    for _ in in_parts(keys.delete_many, names):
        pass


def names_in(keys: Namespace, directory: str) -> Iterator[str]:
    """Iterate over the names in a directory, each once, without reading all that lies below them.

    Args:
        keys: the namespace.
        directory: a prefix of keys that ends with ``/``; empty = the namespace itself.
    """
    start = directory
    told = set[str]()
    while page := list(keys.scan(directory, start=start, limit=PAGE, values=False)):
        for key in (entry.key for entry in page):
            name, slash, _ = key.removeprefix(directory).partition("/")
            if key >= start and name not in told:
                told.add(name)
                yield name
            # "0" follows "/": the next start lies behind all keys of a directory.
            start = max(start, f"{directory}{name}0" if slash else key + "\0")


def until_alone(change: Callable[P, R]) -> Callable[P, R]:
    """Make a function that reads and then writes on a condition begin anew after a conflict.

    So a change is made of what is there, and none that others make meanwhile is lost.
    """

    @wraps(change)
    def run(*arguments: P.args, **keywords: P.kwargs) -> R:
        while True:
            try:
                return change(*arguments, **keywords)
            except ConflictError:
                continue

    return run
