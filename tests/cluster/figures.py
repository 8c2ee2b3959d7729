"""The figures that only the members of a store in etcd have: see `tests/cluster/test_shown.py`."""

from __future__ import annotations

from typing import Final

from zkv.figures import FIGURES, Figure

_FIELDS: Final = {"declared", "alive", "leader_seconds", "lease_seconds"}


def is_of_members(figure: Figure) -> bool:
    """Whether other servers lack it."""
    _, _, field = figure.paths[0].partition("replication.")
    return field.startswith("etcd.") or field in _FIELDS


OF_MEMBERS: Final = {path for figure in FIGURES if is_of_members(figure) for path in figure.paths}
"""Their places in INFO."""
