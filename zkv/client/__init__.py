"""The client for Python. It imports nothing of the server.

- `Client`: for threads; `AsyncClient`: for asyncio. Each is also the namespace of all keys.
- `Namespace` and `AsyncNamespace`: the keys under one prefix.
- `Entry` and `Change`: what reads tell.
- `Watch` and `AsyncWatch`: changes as they come; `Mirror` and `AsyncMirror`: live copies.
- `Codec` and `ValueType`: values of types that msgpack does not know.
- `RetryPolicy`: how patient a client is.
- `ClientError` and its kinds: a request that was not answered with success.

Modules, from the wire up: ``messages`` packs and reads bodies, ``session`` numbers writes,
``retry`` decides what is sent again, ``connection`` holds sockets; ``operations`` describes every
op, and ``pipeline`` packs many, which are ``steps``, without I/O; ``namespace``, ``sync`` and
``aio`` are what users call. ``following`` decides how changes are followed, without I/O; ``watch``,
``mirror`` and ``async_watch`` do it. ``recipes`` stand on top of it all.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zkv.client.codec import Codec, ValueType
from zkv.client.errors import (
    BadReplyError,
    BadRequestError,
    BusyError,
    ClientError,
    ClosedError,
    CompactedError,
    ConflictError,
    DeadlineError,
    DeniedError,
    InternalError,
    LockLostError,
    NoReplyError,
    NotFoundError,
    ReadOnlyError,
    RefusedError,
    ShuttingDownError,
    StaleSeqError,
    TooLargeError,
    UnavailableError,
    UnknownOpError,
    WrongTypeError,
)
from zkv.client.namespace import Namespace
from zkv.client.operations import Change, Entry
from zkv.client.retry import RetryPolicy
from zkv.client.sync import Client

if TYPE_CHECKING:
    from zkv.client.aio import AsyncClient
    from zkv.client.async_mirror import AsyncMirror
    from zkv.client.async_namespace import AsyncNamespace
    from zkv.client.async_watch import AsyncWatch
    from zkv.client.mirror import Mirror
    from zkv.client.watch import Watch

__all__ = [
    "AsyncClient",
    "AsyncMirror",
    "AsyncNamespace",
    "AsyncWatch",
    "BadReplyError",
    "BadRequestError",
    "BusyError",
    "Change",
    "Client",
    "ClientError",
    "ClosedError",
    "Codec",
    "CompactedError",
    "ConflictError",
    "DeadlineError",
    "DeniedError",
    "Entry",
    "InternalError",
    "LockLostError",
    "Mirror",
    "Namespace",
    "NoReplyError",
    "NotFoundError",
    "ReadOnlyError",
    "RefusedError",
    "RetryPolicy",
    "ShuttingDownError",
    "StaleSeqError",
    "TooLargeError",
    "UnavailableError",
    "UnknownOpError",
    "ValueType",
    "Watch",
    "WrongTypeError",
]

_HOMES = {
    "AsyncClient": "zkv.client.aio",
    "AsyncMirror": "zkv.client.async_mirror",
    "AsyncNamespace": "zkv.client.async_namespace",
    "AsyncWatch": "zkv.client.async_watch",
    "Mirror": "zkv.client.mirror",
    "Watch": "zkv.client.watch",
}
"""Where a name comes from that is imported when it is first asked for: many programs do without."""


def __getattr__(name: str) -> Any:
    """Import a name of `_HOMES`: `Client` alone starts quicker."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
