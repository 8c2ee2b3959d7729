"""Versions of the files in a data directory.

=======  ======  ==============================================================================
format   since   what is new
=======  ======  ==============================================================================
1        0.1
2        0.2     log numbers in commits (`zkv.keyspace.change`), segments and snapshots
=======  ======  ==============================================================================

Segments and snapshots have a version each, which is the same for both. Every version of zkv reads
the formats of all earlier ones, and writes only its own (`zkv.durability.upgrade`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zkv import __version__
from zkv.errors import FormatError

if TYPE_CHECKING:
    from pathlib import Path

FIRST: Final = 1
"""The format of zkv 0.1, which has no log numbers."""
CURRENT: Final = 2
"""The format that this zkv writes."""


def require_known(path: Path, version: int) -> None:
    """Raise FormatError if the file ``path`` has a version that is newer than `CURRENT`."""
    if version > CURRENT:
        raise FormatError(
            f"{path}: its format is version {version}, written by a newer zkv; this zkv "
            f"({__version__}) reads versions up to {CURRENT}"
        )
