"""The Python client. It imports nothing of the server.

- `Client` is for threads, `AsyncClient` for asyncio. Each is also the namespace of all keys. The
  objects that an `AsyncClient` makes have the same names with ``Async`` in front.
- `Namespace`: the keys under one prefix. `Transaction`, `Pipeline`: many ops in few messages.
- `Entry` and `Change`: the results of reads.
- `Watch`: changes as they are made; `Mirror`: a live copy.
- `Lock`, `Election`, `Cache`, `RateLimiter`, `Queue`: recipes built on the store.
- `Codec` and `ValueType`: values of types that msgpack does not know.
- `RetryPolicy`: when requests are repeated.
- `ClientError` and its subclasses: a request did not succeed.

Modules, from the wire up: ``messages`` packs and reads bodies, ``session`` numbers writes,
``retry`` decides when requests are repeated, ``tracing`` makes spans of them. ``curve`` holds keys,
``connection`` sockets; ``endpoints`` chooses among servers, and ``trouble`` finds out why there is
no connection. ``operations`` describes
each op, ``packing`` packs many ops (``steps``), and ``follower`` decides how to follow changes;
these do no I/O. The modules with I/O are written for asyncio, in ``async_namespace``,
``async_pipeline``, ``async_watch``, ``async_mirror`` and ``recipes/async_*``; the modules without
``async_`` are generated from them. Two pairs are written by hand: ``aio`` and ``sync`` send and
receive, ``tasks`` and ``threads`` wait and wake.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zkv.client.codec import Codec, ValueType
from zkv.client.errors import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    BadValueError,
    BehindError,
    BusyError,
    ClientError,
    ClosedError,
    CompactedError,
    ConflictError,
    DeadlineError,
    DeniedError,
    FullError,
    InternalError,
    LockLostError,
    MisuseError,
    NoReplyError,
    NotFoundError,
    NotLeaderError,
    ReadOnlyError,
    RefusedError,
    ShuttingDownError,
    StaleSeqError,
    TooLargeError,
    UnavailableError,
    UnknownHostError,
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
    from zkv.client.async_pipeline import AsyncPipeline, AsyncTransaction
    from zkv.client.async_watch import AsyncWatch
    from zkv.client.mirror import Mirror
    from zkv.client.pipeline import Pipeline, Transaction
    from zkv.client.recipes.async_cache import AsyncCache, AsyncCachedFunction
    from zkv.client.recipes.async_election import AsyncElection
    from zkv.client.recipes.async_limiter import AsyncRateLimiter
    from zkv.client.recipes.async_lock import AsyncLock
    from zkv.client.recipes.async_queue import AsyncJob, AsyncQueue
    from zkv.client.recipes.cache import Cache, CachedFunction
    from zkv.client.recipes.election import Election
    from zkv.client.recipes.limiter import RateLimiter
    from zkv.client.recipes.lock import Lock
    from zkv.client.recipes.queue import Job, Queue
    from zkv.client.recipes.verdict import Verdict
    from zkv.client.watch import Watch

__all__ = [
    "AsyncCache",
    "AsyncCachedFunction",
    "AsyncClient",
    "AsyncElection",
    "AsyncJob",
    "AsyncLock",
    "AsyncMirror",
    "AsyncNamespace",
    "AsyncPipeline",
    "AsyncQueue",
    "AsyncRateLimiter",
    "AsyncTransaction",
    "AsyncWatch",
    "AuthenticationError",
    "BadReplyError",
    "BadRequestError",
    "BadValueError",
    "BehindError",
    "BusyError",
    "Cache",
    "CachedFunction",
    "Change",
    "Client",
    "ClientError",
    "ClosedError",
    "Codec",
    "CompactedError",
    "ConflictError",
    "DeadlineError",
    "DeniedError",
    "Election",
    "Entry",
    "FullError",
    "InternalError",
    "Job",
    "Lock",
    "LockLostError",
    "Mirror",
    "MisuseError",
    "Namespace",
    "NoReplyError",
    "NotFoundError",
    "NotLeaderError",
    "Pipeline",
    "Queue",
    "RateLimiter",
    "ReadOnlyError",
    "RefusedError",
    "RetryPolicy",
    "ShuttingDownError",
    "StaleSeqError",
    "TooLargeError",
    "Transaction",
    "UnavailableError",
    "UnknownHostError",
    "UnknownOpError",
    "ValueType",
    "Verdict",
    "Watch",
    "WrongTypeError",
]

_HOMES = {
    "AsyncCache": "zkv.client.recipes.async_cache",
    "AsyncCachedFunction": "zkv.client.recipes.async_cache",
    "AsyncClient": "zkv.client.aio",
    "AsyncElection": "zkv.client.recipes.async_election",
    "AsyncJob": "zkv.client.recipes.async_queue",
    "AsyncLock": "zkv.client.recipes.async_lock",
    "AsyncMirror": "zkv.client.async_mirror",
    "AsyncNamespace": "zkv.client.async_namespace",
    "AsyncPipeline": "zkv.client.async_pipeline",
    "AsyncQueue": "zkv.client.recipes.async_queue",
    "AsyncRateLimiter": "zkv.client.recipes.async_limiter",
    "AsyncTransaction": "zkv.client.async_pipeline",
    "AsyncWatch": "zkv.client.async_watch",
    "Cache": "zkv.client.recipes.cache",
    "CachedFunction": "zkv.client.recipes.cache",
    "Election": "zkv.client.recipes.election",
    "Job": "zkv.client.recipes.queue",
    "Lock": "zkv.client.recipes.lock",
    "Mirror": "zkv.client.mirror",
    "Pipeline": "zkv.client.pipeline",
    "Queue": "zkv.client.recipes.queue",
    "RateLimiter": "zkv.client.recipes.limiter",
    "Transaction": "zkv.client.pipeline",
    "Verdict": "zkv.client.recipes.verdict",
    "Watch": "zkv.client.watch",
}
"""The modules of names that are imported at their first use, since many programs need none."""


def __getattr__(name: str) -> Any:
    """Import a name of `_HOMES`. Without them `Client` starts faster."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
