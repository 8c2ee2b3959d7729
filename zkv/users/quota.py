"""The quota of a user: what the entries under some prefixes may hold together."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Quota(NamedTuple):
    """A quota. It counts all entries under the prefixes, whoever has written them.

    Args:
        prefixes: the prefixes; none begins with another, so an entry counts once.
        max_bytes: the bytes of keys, as UTF-8, and of packed values, of all entries there.
    """

    prefixes: tuple[str, ...]
    max_bytes: int


def outermost(prefixes: Iterable[str]) -> tuple[str, ...]:
    """Return the prefixes, in order, without those that begin with another one."""
    outer: list[str] = []
    for prefix in sorted(prefixes):
        if not outer or not prefix.startswith(outer[-1]):
            outer.append(prefix)
    return tuple(outer)
