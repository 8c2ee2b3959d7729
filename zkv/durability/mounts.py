"""Tells what kind of file system a directory is on, and which of them data should not be on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

MOUNTS: Final = Path("/proc/self/mounts")
"""The system's table: see proc_mounts(5)."""

VOLATILE: Final = frozenset({"tmpfs", "ramfs"})
REMOTE: Final = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "beegfs", "gpfs",
    "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.rclone", "fuse.s3fs", "fuse.gcsfuse",
    "fuse.davfs", "davfs",
})  # fmt: skip
"""Those that other machines serve. What fsync, rename and locks promise there depends on both
machines, on the mount's options, and on who else has the directory mounted."""

_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


def file_system(directory: Path) -> str:
    """Return the type of the file system of a directory; empty if it cannot be known here.

    Args:
        directory: it need not exist yet.
    """
    try:
        table = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        real = directory.resolve()
    except (OSError, RuntimeError):  # The latter: links in a circle.
        return ""
    found = ("", "")
    for line in table.splitlines():
        _, place, kind, *_ = line.split(" ")
        place = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), place)
        # Of two at the same place, the later one hides the earlier.
        if f"{real}/".startswith(f"{place.rstrip('/')}/") and len(place) >= len(found[0]):
            found = place, kind
    return found[1]
