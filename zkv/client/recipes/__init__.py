"""Recipes: small tools that programs often build on a store. They use only its ops.

- `lock`: mutual exclusion with a lease, and writes that only the holder can make.
- `election`: chooses one leader among candidates, and replaces a leader that has crashed.
- `cache`: a decorator; all programs together run a function once for the same arguments.
- `limiter`: a rate limit for all programs together.
- `queue`: jobs that are each done at least once, even if a worker crashes.

A counter needs no recipe: `Client.incr` adds exactly once, even if a reply is lost.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """Return a class of a recipe by its name in `zkv.client`."""
    if not name[:1].isupper():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("zkv.client"), name)
