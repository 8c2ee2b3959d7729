"""When a request is sent again, and when it is given up.

Strategy: within one deadline, whatever is known to be safe to repeat is repeated. A reply that does
not come is waited for longer each time; after a refusal that invites it, the pause grows, with
jitter, so that many clients do not come back at once (Brooker, "Exponential Backoff and Jitter",
2015). Only a write without session, and what ends the server, is sent once.

Where there is no connection nothing has been sent, so anything may be sent again. That ends when
the time is up, or sooner where waiting will not help: see `Trouble`.

No clock, no randomness and no socket of its own: they are passed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from zkv import checks
from zkv.client.errors import ClosedError, NoReplyError, UnavailableError, UnknownHostError
from zkv.client.messages import lost, refusal
from zkv.client.process import generation, is_foreign

if TYPE_CHECKING:
    from zkv.checks import Seconds

DEFINITE: Final = frozenset({"NOT_FOUND", "CONFLICT", "WRONG_TYPE", "BAD_REQUEST", "UNKNOWN_OP"})
"""Refusals of a repeat that tell of the first attempt, too: the server remembers them, or they do
not depend on what is stored."""


RECONNECT: Final = 0.1
"""Seconds, up to twice as many, between two attempts to connect."""
REASON_SECONDS: Final = 1.0
"""How often it is looked why there is no connection, and for how long."""


def random_fraction() -> float:
    """A random number from 0 to 1."""
    from random import random  # Rarely needed, and slow to import.

    return random()  # noqa: S311  it spreads load, and guards nothing


class _Fields(NamedTuple):
    patience: float
    pause: float
    longest_pause: float
    repeat_for: float
    now: Callable[[], float]
    jitter: Callable[[], float]
    wait_for_start: bool


class RetryPolicy(_Fields):
    """How patient a client is. All times are in seconds, up to a day, or a `timedelta`.

    Args:
        patience: for the first reply, from 0.001; doubled with each further attempt.
        pause: after the first refusal; doubled with each further one.
        longest_pause: where that ends.
        repeat_for: how long a write is repeated at most: a server forgets a session after an hour
            of silence, and would then run the write again.
        now: the clock.
        jitter: random numbers from 0 to 1; None = those of Python.
        wait_for_start: whether a server that nobody has reached yet is waited for, up to the
            timeout. Else the first request fails at once where the connection is refused. Once
            there has been a connection, a server that is away is always waited for.

    Raises:
        TypeError: an argument is of another type.
        ValueError: a time is out of range.
    """

    __slots__ = ()

    def __new__(
        cls,
        patience: Seconds = 1.0,
        pause: Seconds = 0.02,
        longest_pause: Seconds = 1.0,
        repeat_for: Seconds = 1_800.0,
        now: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] | None = None,
        wait_for_start: bool = True,
    ) -> Self:
        """Check all, and make one."""
        return super().__new__(
            cls,
            checks.seconds("patience", patience, 0.001, checks.LONGEST_TIMEOUT),
            checks.seconds("pause", pause, 0, checks.LONGEST_TIMEOUT),
            checks.seconds("longest_pause", longest_pause, 0, checks.LONGEST_TIMEOUT),
            checks.seconds("repeat_for", repeat_for, 0, checks.LONGEST_TIMEOUT),
            checks.function("now", now),
            random_fraction if jitter is None else checks.function("jitter", jitter),
            checks.flag("wait_for_start", wait_for_start),
        )

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Self:  # type: ignore[override]  # it is one
        """As `_replace` makes one."""
        return cls(*iterable)

    def __repr__(self) -> str:
        fields = zip(self._fields, self, DEFAULT_POLICY, strict=True)
        given = [f"{name}={value!r}" for name, value, usual in fields if value != usual]
        return f"RetryPolicy({', '.join(given)})"


DEFAULT_POLICY: Final = RetryPolicy()


class Trouble(NamedTuple):
    """Why there is no connection.

    Args:
        reason: a few words.
        is_lasting: whether it will be so until somebody changes something; else a server that
            starts ends it.
        is_unknown_host: whether the host's name cannot be looked up.
    """

    reason: str
    is_lasting: bool = False
    is_unknown_host: bool = False


class Attempts:
    """The attempts at one request.

    Args:
        policy: how patient to be.
        op: what is attempted.
        repeatable: whether it may be sent again where a reply is lost.
        timeout: seconds for all attempts together.
    """

    __slots__ = (
        "_absent", "_asked", "_began", "_in_doubt", "_lost", "_made_in", "_op", "_policy",
        "_refused", "_troubles", "end", "repeatable",
    )  # fmt: skip

    def __init__(self, policy: RetryPolicy, op: str, repeatable: bool, timeout: float) -> None:
        self._policy = policy
        self._op = op
        self.repeatable = repeatable
        self._began = policy.now()
        self._lost = 0
        self._refused = 0
        self._absent = 0
        self._in_doubt = False
        self._asked: dict[str, float] = {}
        self._troubles: dict[str, Trouble | None] = {}
        self._made_in = generation()
        self.end = self._began + timeout

    def check_process(self) -> None:
        """Raise ClosedError in a child that was forked since: the parent goes on with it.

        If the child sent the request, too, both would use the same number of the same session.
        """
        if is_foreign(self._made_in):
            raise ClosedError("the process was forked during the request", self.applied())

    def left(self) -> float:
        """Seconds until the request is given up; 0 or below: it is time."""
        return self.end - self._policy.now()

    def patience(self) -> float:
        """Seconds to wait for the reply to the next attempt."""
        if not self.repeatable:
            return self.left()
        return min(self.left(), self._policy.patience * 2.0 ** min(self._lost, 10))

    def time_to_connect(self) -> float:
        """Seconds to wait for a connection; leaves some to find out why there is none."""
        return max(0.0, min(self.left() / 2, self._policy.patience * 2.0 ** min(self._absent, 10)))

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
        if (self.repeatable or not connected) and self.left() > 0 and self._may_repeat():
            return
        raise self.give_up(endpoint)

    def pause(self) -> float:
        """Seconds to wait after a connection was lost, before the request is sent again."""
        return max(0.0, min(self.left(), self._backoff(self._lost - 1)))

    def asks_why(self, endpoint: str) -> bool:
        """Whether it is to be looked now why there is no connection."""
        now = self._policy.now()
        if now - self._asked.get(endpoint, -REASON_SECONDS) < REASON_SECONDS:
            return False
        self._asked[endpoint] = now
        return True

    def no_connection(
        self, endpoint: str, trouble: Trouble | None, endpoints: int, met: bool
    ) -> float:
        """There was no connection. Returns the seconds after which to try again.

        Args:
            endpoint: where there was none.
            trouble: why; None = as before, or nobody knows.
            endpoints: how many there are to try.
            met: whether there has ever been a connection.

        Raises:
            UnavailableError: it is to be given up.
        """
        self._absent += 1
        if trouble is not None or endpoint not in self._troubles:
            self._troubles[endpoint] = trouble
        if self.left() <= 0 or (self._in_doubt and not self._may_repeat()):
            raise self.give_up(endpoint)
        if len(self._troubles) < endpoints:
            return 0.0
        waits = met or self._policy.wait_for_start
        if all(each and (each.is_lasting or not waits) for each in self._troubles.values()):
            raise self.give_up(endpoint)
        return max(0.0, min(self.left(), RECONNECT * (1 + self._policy.jitter())))

    def give_up(self, endpoint: str) -> NoReplyError:
        """The error that tells that there was no reply, or no connection, and why."""
        within = f" within {self._policy.now() - self._began:.3g} s" if self.left() <= 0 else ""
        known = {place: trouble for place, trouble in self._troubles.items() if trouble}
        reason = next((each.reason for each in known.values()), "")
        if len(known) > 1:
            reason = "; ".join(f"{place}: {each.reason}" for place, each in known.items())
        because = f": {reason}" if reason else ""
        if self._in_doubt:
            text = f"no reply from {endpoint}{within}{because}"
            return NoReplyError(text, lost(self._op))
        text = f"no connection to {endpoint}{within}{because}"
        unknown = bool(known) and all(each.is_unknown_host for each in known.values())
        return (UnknownHostError if unknown else UnavailableError)(text, False, reason)

    def refused(self, reply: Mapping[str, Any]) -> float:
        """The server refused. Returns the seconds after which the request is to be sent again.

        Raises:
            RefusedError: it is to be given up.
        """
        error = refusal(self._op, reply)
        if self._in_doubt and error.code not in DEFINITE:
            error = error.but(lost(self._op))  # It speaks of this attempt, not of earlier ones.
        pause = self._backoff(self._refused)
        if not (error.retry and self.repeatable and pause < self.left() and self._may_repeat()):
            raise error
        self._refused += 1
        return pause

    def _backoff(self, times: int) -> float:
        policy = self._policy
        pause = min(policy.longest_pause, policy.pause * 2.0 ** min(times, 30))
        return pause * (1 + policy.jitter()) / 2

    def applied(self) -> bool | None:
        """What is known of the request having been applied."""
        return lost(self._op) if self._in_doubt else False

    def _may_repeat(self) -> bool:
        return self._policy.now() - self._began < self._policy.repeat_for
