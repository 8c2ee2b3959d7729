"""A client for each user, with what all tabs of the user share.

The client has the key of the user, so the server knows whose request it is and enforces the rights.
Everything here belongs to one event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from zkv.client import AsyncClient, operations
from zkv.client.operations import Reply
from zkv.errors import ConfigError
from zkv.web.answers import HttpFailure
from zkv.web.recent import Recents
from zkv.web.sampler import Sampler

_log = logging.getLogger("zkv.web")

Connect = Callable[[str], AsyncClient]
"""Makes the client for a key file."""


class WebAccount:
    """One user of the console.

    Args:
        client: with the user's key, and the codec `PACKED`.

    Attributes:
        sampler: the figures of the last hour.
        recents: recent changes.
        streams: how many answers without an end are open.
        body_bytes: bytes of the bodies of the requests that are being answered.
    """

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.sampler = Sampler(self.ask, lambda: client.endpoint)
        self.recents = Recents(self.ask, self.sampler.time_of)
        self.streams = 0
        self.body_bytes = 0

    async def ask(self, op: str, **fields: Any) -> Reply:
        """Send a request; fields that are None are left out.

        The client repeats it within its timeout, writes under a session: so none runs twice.

        Raises:
            ClientError: it failed.
        """
        given = {name: field for name, field in fields.items() if field is not None}
        reply = await self.client._run(operations.plain(op, given))
        return {name: field for name, field in reply.items() if name not in {"ok", "id"}}

    async def aclose(self) -> None:
        """End what runs, and the client."""
        await self.sampler.aclose()
        await self.recents.aclose()
        await self.client.aclose()


class WebAccounts:
    """The users that have been here.

    Args:
        connect: makes a client.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._accounts: dict[str, WebAccount] = {}

    def get(self, key_file: str) -> WebAccount:
        """Return the account of a key file. Raises HttpFailure if that cannot be used."""
        found = self._accounts.get(key_file)
        if found is None:
            try:
                client = self._connect(key_file)
            except (ConfigError, ValueError) as error:
                _log.error("a token's key file cannot be used: %s", error)
                text = "the key file of this token cannot be used: the console's log says why"
                raise HttpFailure("HANDSHAKE_FAILED", text) from None
            found = self._accounts[key_file] = WebAccount(client)
            found.sampler.start()
        return found

    async def aclose(self) -> None:
        """Close all."""
        while self._accounts:
            await self._accounts.popitem()[1].aclose()
