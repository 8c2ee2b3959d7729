"""The client for asyncio."""

from __future__ import annotations

from zkv.client.namespace import Keyspace


class AsyncNamespace(Keyspace):
    """The keys under one prefix."""


class AsyncClient(AsyncNamespace):
    """A client of a server, for one event loop."""
