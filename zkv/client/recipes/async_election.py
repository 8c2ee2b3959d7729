"""Leader election: among candidates for one key, whoever holds it as a lock leads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from zkv import checks
from zkv.client.errors import BadValueError
from zkv.client.follower import RESET
from zkv.client.process import ReadAhead
from zkv.client.recipes.async_lock import AsyncLock

if TYPE_CHECKING:
    from zkv.checks import Seconds
    from zkv.client.async_namespace import AsyncKeyOps


class AsyncElection(AsyncLock):
    """A candidate for leadership; made by `AsyncClient.election`.

    `acquire` campaigns until elected, `release` resigns, and so do the two ends of a ``with``
    block. A leader that is gone is replaced when its ``ttl`` has run out. While the block runs
    `held` tells whether one still leads, and `txn` writes only if so.

    Args:
        keyspace: where the key is.
        key: of the election, the same for all candidates.
        candidate: the name of this one; None = the machine's name and the process's id.
        ttl: seconds after which a leader that has crashed is replaced; as for a lock.
    """

    def __init__(
        self, keyspace: AsyncKeyOps, key: str, candidate: str | None, ttl: Seconds
    ) -> None:
        checks.text_or_none("candidate", candidate)
        super().__init__(keyspace, key, ttl, candidate)

    async def leader(self) -> str | None:
        """Who leads now; None = nobody."""
        return _name(await self._keyspace.get(self._key))

    async def leaders(self) -> AsyncIterator[str | None]:
        """Who leads, now and whenever that changes; None = nobody. Goes on for ever."""
        ahead = ReadAhead()
        last: str | None = None
        entry = await anext(self._keyspace.scan(self._key, limit=1), None)
        if entry is not None and entry.key == self._key:
            last = _name(entry.value)
        yield last
        ahead.check()
        since = 0 if entry is None else entry.rev
        async with self._keyspace.watch(self._key, since=since) as watch:
            async for change in watch:
                leads = _name(change.value) if change.key == self._key else last
                if change.op != RESET and leads != last:
                    last = leads
                    yield last


def _name(value: Any) -> str | None:
    if isinstance(value, BadValueError):
        raise value
    return None if value is None else str(value["owner"])
