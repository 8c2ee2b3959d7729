"""Defaults that the server and its clients have in common. Imports nothing, to cost nothing."""

from __future__ import annotations

from typing import Final

DEFAULT_ENDPOINT: Final = "tcp://127.0.0.1:5555"
"""Where a server listens, and where a client looks for it, unless told otherwise."""
