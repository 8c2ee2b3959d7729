"""The figures of a server for Prometheus: their text, and the HTTP endpoint that serves it."""

from typing import Final

REFUSED: Final = "writes are refused; INFO and the server's log say why"
"""Why a server that answers cannot take a write."""
