"""How ``zkv`` tells what came of a command: exit statuses, and the line that says it is ready."""

from __future__ import annotations

import os
import sys
from typing import Final

FAILED: Final = 1
NOT_STARTED: Final = 2
LEADER: Final = "leader"
"""With ``--wait``: the server is ready once it knows who leads."""


def announce(line: str) -> None:
    """Write to standard output, unless it was closed from the start. Raises OSError."""
    if line and sys.stdout is not None:
        os.write(sys.stdout.fileno(), line.encode())
