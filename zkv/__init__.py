"""zkv: a durable key-value store that speaks msgpack over ZeroMQ.

A client works like a dict that all programs share. With a server that runs (``zkv serve``)::

    >>> import zkv
    >>> kv = zkv.Client()               # or zkv.Client("tcp://HOST:PORT"), or set ZKV_ENDPOINT
    >>> kv["greeting"] = "hello"
    >>> kv["greeting"], "parting" in kv, kv.get("parting", "bye")
    ('hello', False, 'bye')
    >>> dict(kv)
    {'greeting': 'hello'}
    >>> kv.close()                      # in programs: with zkv.Client() as kv: ...

``help(zkv.Client)`` has all that it can do. By kind:

- `Client`: for threads; `AsyncClient`: for asyncio. `Namespace`: the keys under one prefix.
- `Transaction`, `Pipeline`: many ops as a whole; many ops in few messages.
- `Watch`: changes as they come; `Mirror`: a live copy.
- `Lock`, `Election`, `Queue`, `RateLimiter`, `Cache`: what programs often build on a store.
- `Entry`, `Change`, `Verdict`: what calls return. `Codec`, `ValueType`: values of more types.
- `ClientError`: the base of all that can go wrong with a request. An argument that is not allowed
  is a TypeError or a ValueError, before anything is sent.
- `Server`: a server inside this program; ``zkv.testing``: fixtures for pytest.

A client makes most of these, such as ``kv.lock("report")``. What an `AsyncClient` makes is called
the same, but for ``Async``: `AsyncLock`. The names are there to be used in annotations.

ARCHITECTURE.md describes the packages below.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zkv.client import *  # noqa: F403  all that is public there
    from zkv.embed import Server as Server
    from zkv.errors import ServerFailedError as ServerFailedError
    from zkv.errors import ZkvError as ZkvError

__version__ = "0.2.0.dev0"

_HOMES = {
    "Server": "zkv.embed",
    "ServerFailedError": "zkv.errors",
    "ZkvError": "zkv.errors",
}
"""The modules of public names; all others are in ``zkv.client``. A module is imported when one of
its names is used, so that ``import zkv`` alone is quick."""


def __getattr__(name: str) -> Any:
    if name == "__all__":
        value: Any = sorted([*import_module("zkv.client").__all__, *_HOMES, "__version__"])
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name[:1].isupper() and name in (client := import_module("zkv.client")).__all__:
        value = getattr(client, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names alone."""
    return list(__getattr__("__all__"))
