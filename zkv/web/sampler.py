"""The figures of a server over the last hour: a sample of INFO every two seconds, for all tabs.

It costs the server one INFO per interval and user, however many tabs look. The rows are numbers for
plots; the newest sample has all figures as text, too, as ``zkv-cli top`` shows them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from zkv import figures
from zkv.client import ClientError
from zkv.rates import HEADINGS, Sample, between, groups, numbers, op_rows
from zkv.web.answers import failure_of

INTERVAL: Final = 2.0
HOUR: Final = 1_800
"""Rows that are kept."""
OTHERS: Final = {
    "connections": figures.CONNECTIONS, "followers": figures.FOLLOWERS,
    "log bytes": figures.LOG_BYTES, "snapshot age": figures.SNAPSHOT_AGE, "lag s": figures.LAG,
}  # fmt: skip
STEADY: Final = ("rss MiB", "keys", "revision", "sessions")
"""The numbers that need no earlier sample."""
PARTS: Final = {f"memory {part}": part for part in figures.MEMORY.members}
COLUMNS: Final = ("time", *HEADINGS, *PARTS, *OTHERS)
"""The names of the numbers in a row; the time is Unix time in seconds."""
REV: Final = COLUMNS.index("revision")

Row = list[float | None]
Ask = Callable[..., Awaitable[dict[str, Any]]]


class Sampler:
    """Samples until it is closed.

    Args:
        ask: sends a request.
        endpoint: returns the endpoint in use.

    Attributes:
        rows: the oldest first.
        newest: all figures as text, or why there are none.
    """

    def __init__(self, ask: Ask, endpoint: Callable[[], str]) -> None:
        self._ask = ask
        self._endpoint = endpoint
        self._before: Sample | None = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self.rows: deque[Row] = deque(maxlen=HOUR)
        self.newest: dict[str, Any] = {}

    def start(self) -> None:
        """Begin to sample."""
        self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def after(self, row: Row | None) -> Row:
        """Wait for a row that is newer than ``row``, and return the newest."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.rows and self.rows[-1] is not row)
            return self.rows[-1]

    def time_of(self, rev: int) -> float | None:
        """Return about when the store took a revision, Unix time; None = before the samples."""
        found = None
        for row in reversed(self.rows):
            known = row[REV]
            if known is None:
                continue
            if known < rev:
                return found
            found = row[0]
        return None

    async def _run(self) -> None:
        # The second sample soon: one alone has no rates.
        for pause in itertools.chain((0.0, INTERVAL / 10), itertools.repeat(INTERVAL)):
            await asyncio.sleep(pause)
            try:
                row = await self._sample()
            except ClientError as error:
                self._before = None
                self.newest = {"trouble": str(error), "code": failure_of(error).code}
                row = _row({})
            async with self._changed:
                self.rows.append(row)
                self._changed.notify_all()

    async def _sample(self) -> Row:
        asked = time.monotonic()
        info = await self._ask("INFO")
        came = time.monotonic()
        self.newest = {"server": _server(info, self._endpoint())}
        if hidden := figures.hidden(info):
            self.newest["hidden"] = hidden
            return _row({"revision": info["rev"]})
        now = Sample(came, came - asked, info)
        before, self._before = self._before, now
        try:
            happened = between(before or now, now)
            known = dict(zip(HEADINGS, numbers(now, happened), strict=True))
            if before is None:  # One sample alone has no rates.
                known = {name: known[name] for name in STEADY}
            row = _row({**known, **_others(info)})
            self.newest |= {
                "ops": op_rows(happened),
                "failures": [[code, f"{rate:,.1f}"] for code, rate in happened.failures.items()],
                "groups": groups(now, happened),
            }
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            self.newest["trouble"] = f"INFO of this server cannot be read: {error!r:.200}"
            return _row({"revision": info.get("rev")})
        return row


def _row(known: Mapping[str, float | None]) -> Row:
    return [round(time.time(), 3), *(known.get(name) for name in COLUMNS[1:])]


def _others(info: dict[str, Any]) -> dict[str, float | None]:
    memory = figures.MEMORY.of(info) or {}
    found: dict[str, float | None] = {name: memory.get(part) for name, part in PARTS.items()}
    for name, figure in OTHERS.items():
        value = figure.of(info)
        found[name] = sum(value.values()) if isinstance(value, dict) else value
    return found


def _server(info: dict[str, Any], endpoint: str) -> dict[str, Any]:
    """The facts that stand above every page."""
    replication = info.get("replication") or {}
    return {
        "endpoint": endpoint, "user": info.get("user"), "role": replication.get("role"),
        "members": replication.get("members"), "read_only": figures.READ_ONLY.of(info),
    }  # fmt: skip
