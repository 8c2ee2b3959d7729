"""What a commit does to one key: the unit of the log, of replay and of the change feed."""

from __future__ import annotations

from typing import Final, NamedTuple

PUT: Final = "PUT"
DELETE: Final = "DELETE"


class Change(NamedTuple):
    """One key's new state, absolute: applying it twice does no harm.

    Args:
        op: `PUT` or `DELETE`.
        key: which entry.
        value: the packed value; None where the key is gone.
    """

    op: str
    key: str
    value: bytes | None
