"""The result of a rate limiter."""

from __future__ import annotations

from typing import NamedTuple


class Verdict(NamedTuple):
    """The result of `RateLimiter.allow`; true if allowed.

    Args:
        allowed: True if the count is within the limit.
        remaining: how many more are allowed in this window.
        retry_after: seconds until the next window if not allowed, otherwise 0.
    """

    allowed: bool
    remaining: int
    retry_after: float

    def __bool__(self) -> bool:
        return self.allowed
