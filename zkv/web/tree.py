"""One level of the tree of keys: folders, with the number of keys in each, and keys.

Strategy: SCAN from where the level goes on, without values. Once a page shows a key in a folder, go
on behind the folder: its other keys are skipped, and COUNT tells their number without reading them.
So a level costs about one small request per folder, however many keys are in it.

Keys are ordered by their UTF-8 bytes, which is the order of their code points.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from zkv.bounds import after_prefix
from zkv.web import MOST
from zkv.web.sampler import Ask

FEWEST: Final = 4
"""Keys that a page has at least, so that a level of many single keys soon gets full pages."""


async def level(
    ask: Ask, prefix: str, separator: str, start: str | None, limit: int
) -> dict[str, Any]:
    """Return the items of one level, and where the next page of it starts.

    Args:
        ask: sends a request.
        prefix: of the level.
        separator: ends a folder; empty = there are none.
        start: where to begin, from the ``next`` of the last page; None = at the beginning.
        limit: items at most; no more than `MOST`.

    Returns:
        ``folders``, each with its full ``name`` and its ``count``; ``keys``, each with its full
        ``name`` and its ``rev``; both in the order of the keys. ``next``: the ``start`` of the
        next page; None = this is the last one.
    """
    walk = _Walk(prefix, separator, limit)
    asked = limit
    while True:
        page = await ask("SCAN", prefix=prefix, start=start, limit=asked, values=False)
        before = walk.number
        start = walk.take(page["items"], page["next"])
        if start is None or walk.is_full:
            break
        asked = min(MOST, max(FEWEST, 4 * (walk.number - before)))
    counts = await asyncio.gather(*[ask("COUNT", prefix=name) for name in walk.folders])
    folders = [
        {"name": name, "count": reply["count"]}
        for name, reply in zip(walk.folders, counts, strict=True)
    ]
    return {"folders": folders, "keys": walk.keys, "next": start}


class _Walk:
    """Sorts the keys of pages into folders and keys, until there are enough."""

    def __init__(self, prefix: str, separator: str, limit: int) -> None:
        self._prefix = prefix
        self._separator = separator
        self._limit = limit
        self.folders: list[str] = []
        self.keys: list[dict[str, Any]] = []

    @property
    def number(self) -> int:
        """How many items there are."""
        return len(self.folders) + len(self.keys)

    @property
    def is_full(self) -> bool:
        """True if there are as many as were wanted."""
        return self.number >= self._limit

    def take(self, items: list[list[Any]], following: str | None) -> str | None:
        """Take a page; return where to go on, None = the level ends."""
        folder = None
        for key, _, rev in items:
            if folder is not None and key.startswith(folder):
                continue
            if self.is_full:
                return str(key)
            folder = folder_of(key, self._prefix, self._separator)
            if folder is None:
                self.keys.append({"name": key, "rev": rev})
            else:
                self.folders.append(folder)
        if following is None:
            return None
        if folder is not None:
            return after_prefix(folder)
        return following + "\0"  # The first key after it.


def folder_of(key: str, prefix: str, separator: str) -> str | None:
    """Return the folder in which a key is, on the level of a prefix; None = in none."""
    at = key.find(separator, len(prefix)) if separator else -1
    return None if at < 0 else key[: at + len(separator)]
