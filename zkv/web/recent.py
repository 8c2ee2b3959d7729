"""Recent changes, for all tabs that show those of one prefix.

Strategy: one loop per prefix asks CHANGES twice a second while somebody looks. A watch would have
the server send every change of a busy store, with its value, to show a few of them; this way the
page costs at most a dozen requests a second at any rate of writes (`PAGES` and an INFO in each
`PAUSE`), and each has at most `MOST` changes. What it cannot keep up with it skips, and says so:
programs that need every change use the events of the API. Values are only shown by their beginning.

The server does not tell when a change was made. For those that were there before, the time is that
of the first sample of INFO with this revision (`zkv.web.sampler`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from zkv import figures
from zkv.client import ClientError, CompactedError, RefusedError
from zkv.entries.text import to_json, type_name
from zkv.web import MOST
from zkv.web.sampler import Ask
from zkv.web.tree import folder_of

PAUSE: Final = 0.5
PAGES: Final = 5
"""Requests in a row; what is left then is skipped."""
FIRST_PAGES: Final = 50
KEPT: Final = 500
"""Changes that a tab gets when it begins to look."""
PREVIEW: Final = 120
"""Characters of a value."""
LARGEST_PREVIEWED: Final = 4_096
"""Bytes of a value up to which its text is made."""
LINGER: Final = 30.0
"""Seconds after the last tab has left, as a reload comes back."""
MOST_UNSEEN: Final = 8
"""Prefixes that are followed while no tab looks: each costs the server requests."""
FURTHEST: Final = 5_000
"""Changes that a summary looks back, about."""
MOST_CHANGES: Final = 4 * FURTHEST
LISTED: Final = 10
"""Folders or keys that a summary names."""
MOST_BYTES: Final = 16 * 1024 * 1024
"""Bytes of values that a summary reads."""

Item = dict[str, Any]


class Recents:
    """The loops of one user, by prefix.

    Args:
        ask: sends a request.
        time_of: returns about when a revision was taken.
    """

    def __init__(self, ask: Ask, time_of: Callable[[int], float | None]) -> None:
        self._ask = ask
        self._time_of = time_of
        self._by_prefix: dict[str, Recent] = {}

    def get(self, prefix: str) -> Recent:
        """Return what shows the changes of a prefix."""
        for known in [each for each, recent in self._by_prefix.items() if recent.over]:
            del self._by_prefix[known]
        if prefix not in self._by_prefix:
            unseen = [each for each, recent in self._by_prefix.items() if not recent.is_seen]
            for known in unseen[: max(0, len(unseen) - MOST_UNSEEN + 1)]:
                self._by_prefix.pop(known).cancel()
            self._by_prefix[prefix] = Recent(self._ask, self._time_of, prefix)
        return self._by_prefix[prefix]

    async def aclose(self) -> None:
        """End all."""
        while self._by_prefix:
            await self._by_prefix.popitem()[1].aclose()


class Recent:
    """The newest changes of one prefix.

    Attributes:
        over: True once it has ended, since nobody looks or the server refuses.
    """

    def __init__(self, ask: Ask, time_of: Callable[[int], float | None], prefix: str) -> None:
        self._ask = ask
        self._time_of = time_of
        self._prefix = prefix
        self._items: deque[Item] = deque(maxlen=KEPT)
        self._tabs: set[asyncio.Queue[dict[str, Any]]] = set()
        self._left_at = time.monotonic()
        self._task = asyncio.create_task(self._run())
        self.over = False

    def join(self, tab: asyncio.Queue[dict[str, Any]]) -> None:
        """Put all changes from now on into the queue of a tab, after those that are kept."""
        self._tabs.add(tab)
        self._put(tab, {"changes": list(self._items), "fresh": True})

    def leave(self, tab: asyncio.Queue[dict[str, Any]]) -> None:
        """Put no more into it."""
        self._tabs.discard(tab)
        self._left_at = time.monotonic()

    @property
    def is_seen(self) -> bool:
        """True while a tab looks."""
        return bool(self._tabs)

    def cancel(self) -> None:
        """Begin to end."""
        self._task.cancel()

    async def aclose(self) -> None:
        """End."""
        self.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        try:
            await self._follow()
        except RefusedError as error:
            self._tell({"trouble": str(error), "code": error.code, "over": True})
        finally:
            self.over = True

    async def _follow(self) -> None:
        since = None
        trouble = ""
        while self._tabs or time.monotonic() - self._left_at < LINGER:
            failed = ""
            try:
                is_first = since is None
                if since is None:
                    info = await self._ask("INFO")
                    since = max(0, info["rev"] - _revisions(info, KEPT))
                since = await self._read(since, is_first)
            except RefusedError as error:
                if not error.retry:
                    raise
                failed = str(error)
            except ClientError as error:
                failed = str(error)
            if failed != trouble:
                trouble = failed
                self._tell({"trouble": trouble})
            await asyncio.sleep(PAUSE)

    async def _read(self, since: int, is_first: bool) -> int:
        """Read and tell the changes after a revision; return up to where they are read."""
        items: list[Item] = []
        number, more = 0, True
        for _ in range(FIRST_PAGES if is_first else PAGES):
            since, page, more = await changes_after(self._ask, self._prefix, since)
            now = None if is_first else time.time()
            number += len(page)
            shown = page[-MOST:]  # A transaction is never split, and may have thousands.
            items += [_item(change, now or self._time_of(change[0])) for change in shown]
            if not more:
                break
        if more:
            newest = int((await self._ask("INFO"))["rev"])
            number += max(0, newest - MOST - since)
            since = max(since, newest - MOST)
        self._items.extend(items)
        items = items[-MOST:]
        if items:
            skipped = 0 if is_first else number - len(items)
            self._tell({"changes": items, "skipped": skipped})
        return since

    def _tell(self, message: dict[str, Any]) -> None:
        for tab in self._tabs:
            self._put(tab, message)

    def _put(self, tab: asyncio.Queue[dict[str, Any]], message: dict[str, Any]) -> None:
        """Put a message into a queue; a tab that does not read loses the oldest, and is told."""
        if tab.full():
            lost = tab.get_nowait()
            skipped = message.get("skipped", 0) + len(lost.get("changes", ()))
            message = {**message, "skipped": skipped}
        tab.put_nowait(message)


async def changes_after(ask: Ask, prefix: str, since: int) -> tuple[int, list[list[Any]], bool]:
    """Read a page of changes; return up to where, the changes, and whether there are more."""
    try:
        reply = await ask("CHANGES", since=since, prefix=prefix, limit=MOST)
    except CompactedError as error:
        reply = await ask("CHANGES", since=error.oldest - 1, prefix=prefix, limit=MOST)
    following = reply["next"]
    if reply["rev"] < since:  # Older data has taken its place.
        return reply["rev"], [], False
    return following, reply["changes"], following < reply["rev"]


def _item(change: list[Any], at: float | None) -> Item:
    rev, op, key, value = change
    item: Item = {"rev": rev, "op": op, "key": key, "time": at}
    if value is not None:
        item |= {"type": type_name(value), "size": len(value), "preview": preview(value)}
    return item


def preview(value: bytes) -> str:
    """Return the beginning of the text of a value; empty if it is large."""
    if len(value) > LARGEST_PREVIEWED:
        return ""
    text = to_json(value)
    return text if len(text) <= PREVIEW else text[: PREVIEW - 1] + "…"


class _Seen:
    """The changes of one key."""

    def __init__(self) -> None:
        self.changes = 0
        self.first: int | None = None
        self.last = 0

    def add(self, value: bytes | None) -> None:
        self.changes += 1
        self.last = 0 if value is None else len(value)
        if self.first is None:
            self.first = self.last


async def summary(
    ask: Ask, prefix: str, separator: str, time_of: Callable[[int], float | None]
) -> dict[str, Any]:
    """Count the newest changes by folder and by key: where most is written, and what has grown."""
    info = await ask("INFO")
    newest = int(info["rev"])
    begin = since = max(0, newest - _revisions(info, FURTHEST))
    keys: dict[str, _Seen] = {}
    size, number, more = 0, 0, True
    while more and since < newest and size < MOST_BYTES and number < MOST_CHANGES:
        since, page, more = await changes_after(ask, prefix, since)
        number += len(page)
        for _, _, key, value in page:
            keys.setdefault(key, _Seen()).add(value)
            size += len(value or b"")
    folders: Counter[str] = Counter()
    for key, seen in keys.items():
        folders[folder_of(key, prefix, separator) or key] += seen.changes
    growth = {key: seen.last - (seen.first or 0) for key, seen in keys.items()}
    return {
        "changes": number, "from_rev": begin, "to_rev": since,
        "from_time": time_of(begin + 1),
        "folders": folders.most_common(LISTED),
        "keys": _most((key, seen.changes, seen.last) for key, seen in keys.items()),
        "grown": _most((key, more, keys[key].last) for key, more in growth.items() if more > 0),
    }  # fmt: skip


def _revisions(info: dict[str, Any], wanted: int) -> int:
    """Return how many revisions to look back, so that they have about as many changes."""
    changes, oldest = figures.HISTORY_CHANGES.of(info), figures.HISTORY_OLDEST.of(info)
    if not changes or not oldest:
        return wanted
    return int(max(1, min(wanted, wanted * (info["rev"] - oldest + 1) // changes)))


def _most(rows: Iterable[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    return sorted(rows, key=lambda row: (-row[1], row[0]))[:LISTED]
