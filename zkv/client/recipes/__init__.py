"""What programs often build on a store: small, made of its ops alone, and made by a client.

- `lock`: mutual exclusion with a lease, and writes that only its holder can make.
- `election`: one leader among candidates, who is replaced when it is gone.
- `cache`: a decorator that has a function run once per arguments, for all programs together.
- `limiter`: so many per minute, for all programs together.
- `queue`: jobs that are each done at least once, also when a worker crashes.

A counter needs no recipe: `Client.incr` adds exactly once, also when its reply is lost.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """The classes of the recipes, by the names that `zkv.client` lists."""
    if not name[:1].isupper():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("zkv.client"), name)
