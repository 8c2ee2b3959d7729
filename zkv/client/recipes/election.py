# Generated from async_election.py by tools/unasync.py. Change that file, then: make generate
"""Leader election: the candidate that holds the lock of a key is the leader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from zkv import checks
from zkv.client.errors import BadValueError
from zkv.client.follower import RESET
from zkv.client.process import ReadAhead
from zkv.client.recipes.lock import Lock

if TYPE_CHECKING:
    from zkv.checks import Seconds
    from zkv.client.namespace import KeyOps


class Election(Lock):
    """A candidate for leadership; made by `Client.election`.

    `acquire`, or entering a ``with`` block, waits until this candidate is elected. `release`, or
    leaving the block, resigns. If a leader crashes, it is replaced once its ``ttl`` has expired.
    `held` is true while this candidate leads, and `txn` writes only then.

    Args:
        keyspace: the client or namespace with the key.
        key: of the election, the same for all candidates.
        candidate: the name of this candidate; None = host name and process id.
        ttl: seconds after which a leader that has crashed is replaced, as for a lock.
    """

    def __init__(self, keyspace: KeyOps, key: str, candidate: str | None, ttl: Seconds) -> None:
        checks.text_or_none("candidate", candidate)
        super().__init__(keyspace, key, ttl, candidate)

    def leader(self) -> str | None:
        """Return the name of the present leader; None = there is no leader."""
        return _name(self._keyspace.get(self._key))

    def leaders(self) -> Iterator[str | None]:
        """Iterate over the leaders: the present one, then each new one; None = no leader.

        The iterator does not end.
        """
        ahead = ReadAhead()
        last: str | None = None
        entry = next(self._keyspace.scan(self._key, limit=1), None)
        if entry is not None and entry.key == self._key:
            last = _name(entry.value)
        yield last
        ahead.check()
        since = 0 if entry is None else entry.rev
        with self._keyspace.watch(self._key, since=since) as watch:
            for change in watch:
                leads = _name(change.value) if change.key == self._key else last
                if change.op != RESET and leads != last:
                    last = leads
                    yield last


def _name(value: Any) -> str | None:
    if isinstance(value, BadValueError):
        raise value
    return None if value is None else str(value["owner"])
