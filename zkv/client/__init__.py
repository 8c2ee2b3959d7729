"""The client for Python. It imports nothing of the server.

- `Client`: one connection, one request at a time.
- `ClientError` and its kinds: a request that was not answered with success.
"""

from __future__ import annotations

from zkv.client.errors import BadReplyError, ClientError, NoReplyError, RefusedError
from zkv.client.sync import Client

__all__ = ["BadReplyError", "Client", "ClientError", "NoReplyError", "RefusedError"]
