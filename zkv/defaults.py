"""Constants that the server and its clients share. Imports nothing, so that it costs nothing."""

from __future__ import annotations

from typing import Final

DEFAULT_ENDPOINT: Final = "tcp://127.0.0.1:5555"
"""The endpoint of servers and clients by default."""

LONGEST_TTL: Final = 1e10
"""Seconds for which an entry may live, at most."""

MAX_LEVELS: Final = 500
"""Levels of nested arrays and maps that a value may have, in every request."""

TOO_DEEP: Final = f"is nested deeper than {MAX_LEVELS} levels"
"""The end of the error message for a value with more levels."""
