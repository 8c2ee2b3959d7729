"""Finds the memory limit that applies, and fits other limits into it.

`limits.max_memory` bounds what is counted: entries, history and sessions. A process takes more:
Python, libraries, buffers, and what malloc keeps. So of a cgroup's limit a part is left for those.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from zkv.config.schema import LEAST_MEMORY, LimitSettings
from zkv.errors import ConfigError

FROM_CGROUP: Final = -1
"""The value of ``max_memory`` that asks for the cgroup's limit."""
OUTSIDE_BYTES: Final = 192 * 1024 * 1024
"""Memory that the process takes apart from what is counted."""
COUNTED_SHARE: Final = 0.7
"""The part of the rest that the count may take."""
PARTS_SHARE: Final = 2
"""History and sessions together may take one part in this many."""


def fit_memory(limits: LimitSettings, root: Path = Path("/")) -> tuple[LimitSettings, list[str]]:
    """Return the limits with the memory limit that applies, 0 if there is none.

    Args:
        limits: as they are set.
        root: where /proc and /sys are.

    Returns:
        The limits, and a line about each that differs from its setting.

    Raises:
        ConfigError: ``max_memory`` is -1, and the cgroup allows too little.
    """
    said: list[str] = []
    most = limits.max_memory
    if most == FROM_CGROUP:
        most = _from_cgroup(root)
        said.append(
            f"limits.max_memory is {most}, from the cgroup's limit"
            if most
            else "limits.max_memory is -1, but no cgroup limits the memory: there is no limit"
        )
    parts = limits.session_bytes + limits.history_bytes
    changed = {"max_memory": most}
    if 0 < most < PARTS_SHARE * parts:
        for name in ("session_bytes", "history_bytes"):
            usual = getattr(limits, name)
            changed[name] = usual * most // (PARTS_SHARE * parts)
            said.append(
                f"limits.{name} is {changed[name]} instead of {usual}: history and sessions "
                f"together may take half of limits.max_memory ({most})"
            )
    return msgspec.structs.replace(limits, **changed), said


def _from_cgroup(root: Path) -> int:
    """Return the memory limit that follows from the cgroup's; 0 if it has none."""
    allowed = _allowed_by_cgroup(root)
    if allowed is None:
        return 0
    most = int(COUNTED_SHARE * (allowed - OUTSIDE_BYTES))
    if most < LEAST_MEMORY:
        raise ConfigError(
            f"limits.max_memory: it is -1, and the cgroup allows {allowed} bytes, of which "
            f"{OUTSIDE_BYTES} are needed for other things: raise the cgroup's limit"
        )
    return most


def _allowed_by_cgroup(root: Path) -> int | None:
    """Return the smallest limit of the process's cgroup and those around it; None without one."""
    limits: list[int] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        inner = Path(path.lstrip("/"))
        # In a container the path may be that of the host: then only the top is there.
        texts = [_text(top / each / name).strip() for each in (inner, *inner.parents)]
        limits += [int(text) for text in texts if text.isdigit()]
    known = [limit for limit in limits if limit < 2**60]  # Version 1 says so if there is none.
    return min(known, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
