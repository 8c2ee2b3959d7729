"""Defaults that the server and its clients have in common. Imports nothing, to cost nothing."""

from __future__ import annotations

from typing import Final

DEFAULT_ENDPOINT: Final = "tcp://127.0.0.1:5555"
"""Where a server listens, and where a client looks for it, unless told otherwise."""

MAX_LEVELS: Final = 500
"""Arrays and maps that may be in each other in a value, however the value is sent."""

TOO_DEEP: Final = f"is nested deeper than {MAX_LEVELS} levels"
"""What is said of something that has more."""
