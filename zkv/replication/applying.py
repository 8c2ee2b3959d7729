"""Applies commits that another server has made, in small steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zkv.engine import Engine
    from zkv.keyspace import Commit

CHANGES_AT_ONCE: Final = 100
"""Changes applied in one hold of the lock: about 0.5 ms."""


def apply_commits(engine: Engine, commits: Sequence[Commit]) -> None:
    """Log and apply commits that follow the newest one here, some in each hold of the lock.

    Raises:
        ValueError: one does not follow; those before it are applied.
        ReadOnly: the log refuses commits; likewise.
    """
    first = 0
    while first < len(commits):
        end, changes = first, 0
        while end < len(commits) and changes < CHANGES_AT_ONCE:
            changes += len(commits[end].changes) or 1
            end += 1
        with engine.keyspace.lock:
            engine.keyspace.apply(commits[first:end])
        first = end
