"""When a request is sent again, and when it is given up.

Strategy: within one deadline, whatever is known to be safe to repeat is repeated. A reply that does
not come is waited for longer each time; after a refusal that invites it, the pause grows, with
jitter, so that many clients do not come back at once (Brooker, "Exponential Backoff and Jitter",
2015). Only a write without session, and what ends the server, is sent once.

No clock, no randomness and no socket of its own: they are passed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from zkv.client.errors import NoReplyError, UnavailableError
from zkv.client.messages import lost, refusal

DEFINITE: Final = frozenset({"NOT_FOUND", "CONFLICT", "WRONG_TYPE", "BAD_REQUEST", "UNKNOWN_OP"})
"""Refusals of a repeat that tell of the first attempt, too: the server remembers them, or they do
not depend on what is stored."""


def random_fraction() -> float:
    """A random number from 0 to 1."""
    from random import random  # Rarely needed, and slow to import.

    return random()  # noqa: S311  it spreads load, and guards nothing


class RetryPolicy(NamedTuple):
    """How patient a client is. All times are in seconds.

    Args:
        patience: for the first reply; doubled with each further attempt.
        pause: after the first refusal; doubled with each further one.
        longest_pause: where that ends.
        repeat_for: how long a write is repeated at most: a server forgets a session after an hour
            of silence, and would then run the write again.
        now: the clock.
        jitter: random numbers from 0 to 1.
    """

    patience: float = 1.0
    pause: float = 0.02
    longest_pause: float = 1.0
    repeat_for: float = 1_800.0
    now: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random_fraction


DEFAULT_POLICY: Final = RetryPolicy()


class Attempts:
    """The attempts at one request.

    Args:
        policy: how patient to be.
        op: what is attempted.
        repeatable: whether it may be sent again where a reply is lost.
        timeout: seconds for all attempts together.
    """

    __slots__ = ("_began", "_in_doubt", "_lost", "_op", "_policy", "_refused", "end", "repeatable")

    def __init__(self, policy: RetryPolicy, op: str, repeatable: bool, timeout: float) -> None:
        self._policy = policy
        self._op = op
        self.repeatable = repeatable
        self._began = policy.now()
        self._lost = 0
        self._refused = 0
        self._in_doubt = False
        self.end = self._began + timeout

    def left(self) -> float:
        """Seconds until the request is given up; 0 or below: it is time."""
        return self.end - self._policy.now()

    def patience(self) -> float:
        """Seconds to wait for the reply to the next attempt."""
        if not self.repeatable:
            return self.left()
        return min(self.left(), self._policy.patience * 2.0 ** min(self._lost, 10))

    def no_reply(self, endpoint: str, connected: bool) -> None:
        """An attempt went without a reply. Returns where the request is to be sent again.

        Args:
            endpoint: that it was sent to.
            connected: whether there may have been a connection that took it.

        Raises:
            NoReplyError: it is to be given up.
        """
        self._lost += 1
        self._in_doubt |= connected
        if self.repeatable and self.left() > 0 and self._may_repeat():
            return
        raise self.give_up(endpoint)

    def give_up(self, endpoint: str) -> NoReplyError:
        """The error that tells that there was no reply in time."""
        seconds = f"{self._policy.now() - self._began:.3g} s"
        if not self._in_doubt:
            return UnavailableError(f"no connection to {endpoint} within {seconds}", False)
        return NoReplyError(f"no reply from {endpoint} within {seconds}", lost(self._op))

    def refused(self, reply: Mapping[str, Any]) -> float:
        """The server refused. Returns the seconds after which the request is to be sent again.

        Raises:
            RefusedError: it is to be given up.
        """
        error = refusal(self._op, reply)
        if self._in_doubt and error.code not in DEFINITE:
            error = error.but(lost(self._op))  # It speaks of this attempt, not of earlier ones.
        policy = self._policy
        pause = min(policy.longest_pause, policy.pause * 2.0 ** min(self._refused, 30))
        pause *= (1 + policy.jitter()) / 2
        if not (error.retry and self.repeatable and pause < self.left() and self._may_repeat()):
            raise error
        self._refused += 1
        return pause

    def applied(self) -> bool | None:
        """What is known of the request having been applied."""
        return lost(self._op) if self._in_doubt else False

    def _may_repeat(self) -> bool:
        return self._policy.now() - self._began < self._policy.repeat_for
