"""The place of a server among those with copies of one store, as INFO tells it. Does no I/O.

A server without copies says nothing of it, and leads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

LEADING: Final = frozenset({"primary", "leader"})
"""The roles in INFO of a server that answers all requests."""


class StoreTerm(NamedTuple):
    """Which history a server has.

    Args:
        store: the identity of the store.
        term: the number of the history; a promotion begins another one.
    """

    store: str
    term: int


class Standing(NamedTuple):
    """The place of a server among those with copies of one store, from INFO.

    Args:
        history: None = the store has no identity, so there are no copies.
        leads: True if the server answers all requests.
        leader: the endpoints of the leader, unchecked; None = unknown.
    """

    history: StoreTerm | None
    leads: bool
    leader: object


def history_in(fields: Mapping[str, Any]) -> StoreTerm | None:
    """Return the history that a map names by ``store`` and ``term``, if it names one."""
    store, term = fields.get("store"), fields.get("term")
    return StoreTerm(store, term) if type(store) is str and store and type(term) is int else None


def standing_in(facts: Mapping[str, Any]) -> Standing:
    """Return the standing of a server, from its reply to INFO."""
    replication = facts.get("replication")
    if not isinstance(replication, dict):
        return Standing(None, True, None)
    leads = replication.get("role") in LEADING
    return Standing(history_in(replication), leads, replication.get("leader"))
