"""What programs often build on a store: small, made of its ops alone, and made by a client.

- `lock`: mutual exclusion with a lease, and writes that only its holder can make.
- `election`: one leader among candidates, who is replaced when it is gone.
- `cache`: a decorator that has a function run once per arguments, for all programs together.
- `limiter`: so many per minute, for all programs together.
- `queue`: jobs that are each done at least once, also when a worker crashes.

A counter needs no recipe: `Client.incr` adds exactly once, also when its reply is lost.
"""

from zkv.client.errors import LockLostError
from zkv.client.recipes.cache import Cache, CachedFunction
from zkv.client.recipes.election import Election
from zkv.client.recipes.limiter import RateLimiter
from zkv.client.recipes.lock import Lock
from zkv.client.recipes.queue import Job, Queue
from zkv.client.recipes.verdict import Verdict

__all__ = [
    "Cache",
    "CachedFunction",
    "Election",
    "Job",
    "Lock",
    "LockLostError",
    "Queue",
    "RateLimiter",
    "Verdict",
]
