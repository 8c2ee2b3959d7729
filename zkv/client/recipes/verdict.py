"""What a rate limiter says."""

from __future__ import annotations

from typing import NamedTuple


class Verdict(NamedTuple):
    """What a `RateLimiter` says. True where it is allowed.

    Args:
        allowed: whether it may be done.
        remaining: how often more in this window.
        retry_after: seconds until the next window, if it is not allowed; else 0.
    """

    allowed: bool
    remaining: int
    retry_after: float

    def __bool__(self) -> bool:
        return self.allowed
