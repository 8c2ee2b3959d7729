"""The client for Python. It imports nothing of the server.

- `Client`: for threads; `AsyncClient`: for asyncio. Each is also the namespace of all keys.
- `Namespace` and `AsyncNamespace`: the keys under one prefix.
- `Entry` and `Change`: what reads tell.
- `Codec` and `ValueType`: values of types that msgpack does not know.
- `RetryPolicy`: how patient a client is.
- `ClientError` and its kinds: a request that was not answered with success.

Modules, from the wire up: ``messages`` packs and reads bodies, ``session`` numbers writes,
``retry`` decides what is sent again, ``connection`` holds sockets; ``operations`` describes every
op and ``pipeline`` packs many, without I/O; ``namespace``, ``sync`` and ``aio`` are what users
call.
"""

from __future__ import annotations

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
    from zkv.client.aio import AsyncClient, AsyncNamespace

__all__ = [
    "AsyncClient",
    "AsyncNamespace",
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
    "WrongTypeError",
]


def __getattr__(name: str) -> Any:
    """Import what needs asyncio when it is first asked for: `Client` starts quicker without."""
    if name not in {"AsyncClient", "AsyncNamespace"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from zkv.client import aio

    return getattr(aio, name)
