"""zkv: a durable key-value store that speaks msgpack over ZeroMQ.

The server writes each change to disk according to its fsync policy, gives each change a revision,
and publishes all changes in a feed. The packages, from the outside in:

- ``zkv.cli``: the commands ``zkv`` and ``zkv-cli``.
- ``zkv.bench``: the load generator ``zkv-bench``.
- ``zkv.client``: the Python client, which is independent of the server. All its public names are
  also names of this package: ``from zkv import Client``.
- ``zkv.embed``: ``zkv.Server``, a server inside a program; ``zkv.testing``: fixtures for pytest.
- ``zkv.server``: builds a server from its settings, starts it and stops it.
- ``zkv.broker``: the server's sockets, and the threads that serve them.
- ``zkv.requests``: runs requests, from body to reply.
- ``zkv.engine``: combines keyspace, log and snapshots.
- ``zkv.durability``: the write-ahead log, snapshots, recovery and offline tools.
- ``zkv.keyspace``: keys, values and revisions in memory, without I/O.
- ``zkv.protocol``: the classes of requests and replies, and their codec.

ARCHITECTURE.md describes all of them. ``make lint`` checks which package may import which
(contracts in ``pyproject.toml``).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zkv.client import *  # noqa: F403  all that is public there
    from zkv.embed import Server as Server
    from zkv.errors import ServerFailedError as ServerFailedError
    from zkv.errors import ZkvError as ZkvError

__version__ = "0.1.0"

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
    return sorted({*globals(), *__getattr__("__all__")})
