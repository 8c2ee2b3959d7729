"""zkv: a durable key-value store that speaks msgpack over ZeroMQ.

Every acknowledged write is on disk as its fsync policy says, every change has a revision, and all
changes can be followed as a feed. The parts, from the outside in:

- ``zkv.cli``: the commands ``zkv`` and ``zkv-cli``.
- ``zkv.client``: the client for Python. It imports nothing of the server. Its public names, which
  it lists, are those of this package, too: ``from zkv import Client``.
- ``zkv.Server``, in ``zkv.embed``: a server inside a program; ``zkv.testing``: fixtures for pytest.
- ``zkv.server``: builds a server from its configuration, starts it and stops it.
- ``zkv.broker``: the sockets and the threads that use them.
- ``zkv.protocol``: request and reply classes, and their encoding.
- ``zkv.keyspace``: keys, values and revisions in memory, without I/O.
- ``zkv.durability``: the write-ahead log, snapshots and recovery.

``pyproject.toml`` says which part may import which, and ``make lint`` checks it.
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
"""Where a public name comes from; ``zkv.client`` has the rest. It is imported when one of them is
asked for: ``import zkv`` alone is quick."""


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
