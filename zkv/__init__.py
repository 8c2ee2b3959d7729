"""zkv: a durable key-value store that speaks msgpack over ZeroMQ.

Every acknowledged write is on disk as its fsync policy says, every change has a revision, and all
changes can be followed as a feed. The parts, from the outside in:

- ``zkv.cli``: the commands ``zkv`` and ``zkv-cli``.
- ``zkv.client``: the client for Python. It imports nothing of the server. Its public names are
  those of this package, too: ``from zkv import Client``.
- ``zkv.Server``, in ``zkv.embed``: a server inside a program; ``zkv.testing``: fixtures for pytest.
- ``zkv.server``: builds a server from its configuration, starts it and stops it.
- ``zkv.broker``: the sockets, and the threads that serve them.
- ``zkv.protocol``: requests and replies, and how they become bytes.
- ``zkv.keyspace``: keys, values and revisions in memory, with no I/O.
- ``zkv.durability``: the write-ahead log, snapshots and recovery.

Which part may import which is written down in ``pyproject.toml`` and checked by ``make lint``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zkv.client import (
        AsyncClient,
        AsyncMirror,
        AsyncNamespace,
        AsyncWatch,
        BadReplyError,
        BadRequestError,
        BusyError,
        Change,
        Client,
        ClientError,
        ClosedError,
        Codec,
        CompactedError,
        ConflictError,
        DeadlineError,
        DeniedError,
        Entry,
        InternalError,
        LockLostError,
        Mirror,
        Namespace,
        NoReplyError,
        NotFoundError,
        ReadOnlyError,
        RefusedError,
        RetryPolicy,
        ShuttingDownError,
        StaleSeqError,
        TooLargeError,
        UnavailableError,
        UnknownHostError,
        UnknownOpError,
        ValueType,
        Watch,
        WrongTypeError,
    )
    from zkv.embed import Server
    from zkv.errors import ServerFailedError, ZkvError

__version__ = "0.1.0"

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
    "Server",
    "ServerFailedError",
    "ShuttingDownError",
    "StaleSeqError",
    "TooLargeError",
    "UnavailableError",
    "UnknownHostError",
    "UnknownOpError",
    "ValueType",
    "Watch",
    "WrongTypeError",
    "ZkvError",
    "__version__",
]

_HOMES = {
    "Server": "zkv.embed",
    "ServerFailedError": "zkv.errors",
    "ZkvError": "zkv.errors",
}
"""Where a public name comes from; ``zkv.client`` has the rest."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: ``import zkv`` alone is quick."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "zkv.client")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
