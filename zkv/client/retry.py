"""Decides when a request is sent again, and when the client gives up.

Strategy: within one deadline, the client repeats every request that is known to be safe to repeat.
It waits longer for each further reply. After a refusal with ``retry``, it pauses, each time longer
and with jitter, so that many clients do not return at once (Brooker, "Exponential Backoff and
Jitter", 2015); and at least for as long as the server asks for (``retry_after``). Only writes
without a session, SNAPSHOT and END are sent once.

Between several endpoints the same rules hold, and each attempt may go to another one. A refusal as
NOT_LEADER sends the client to another endpoint at once; it pauses only once it has been to as many
as there are. What concerns one server alone, such as END, is never sent to another one.

Without a connection nothing has been sent, so any request may be sent again, until the time is up,
or until waiting cannot help: see `Trouble`. Wrong keys are such a case. But a server that changes
its key listens with both for a while, and the kernel chooses at random which one a connection
meets. So a handshake that fails for want of the right key is tried again `KEY_TRIES` times, which
takes about half a second: one in a million fails although the client has one of two keys.

This module has no clock, randomness or sockets: they are passed in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from zkv import checks
from zkv.client import process
from zkv.client.errors import (
    AuthenticationError,
    ClientError,
    ClosedError,
    NoReplyError,
    RefusedError,
    UnavailableError,
    UnknownHostError,
)
from zkv.client.messages import LEADER_OPS, ONE_SERVER_OPS, lost, refusal

if TYPE_CHECKING:
    from zkv.checks import Seconds
    from zkv.client.tracing import RequestSpan

DEFINITE: Final = frozenset({"NOT_FOUND", "CONFLICT", "WRONG_TYPE", "BAD_REQUEST", "UNKNOWN_OP"})
"""Refusals of a repeat that also hold for the first attempt: the server remembers them, or they do
not depend on the stored data."""


RECONNECT: Final = 0.1
"""Seconds between two attempts to connect; jitter adds up to as many."""
REASON_SECONDS: Final = 1.0
"""The interval and the timeout of checks why there is no connection."""
KEY_TRIES: Final = 20
"""Handshakes in a row that may fail before the server's key is taken to be another one."""
KEY_TRIES_AT_ONCE: Final = 5
"""So many of them follow without a pause: they suffice while a server changes its key."""
KEY_PAUSE: Final = 0.03
"""Seconds between two of the others."""
PARKED: Final = 5.0
"""Seconds for which a server keeps a read that waits for a revision."""


def random_fraction() -> float:
    """A random number from 0 to 1."""
    from random import random  # Rarely needed, and slow to import.

    return random()  # noqa: S311  it spreads load, and guards nothing


def _asked_pause(reply: Mapping[str, Any]) -> float:
    """Return the seconds for which the server asks to wait after a refusal; 0 = it does not ask."""
    milliseconds = reply.get("retry_after")
    return max(0, milliseconds) / 1000 if isinstance(milliseconds, int | float) else 0.0


class _Fields(NamedTuple):
    patience: float
    pause: float
    longest_pause: float
    repeat_for: float
    now: Callable[[], float]
    jitter: Callable[[], float]
    wait_for_start: bool


class RetryPolicy(_Fields):
    """When a client repeats requests. All times are in seconds, up to a day, or a `timedelta`.

    Args:
        patience: the wait for the first reply, from 0.001; doubled for each further attempt.
        pause: the pause after the first refusal; doubled for each further one.
        longest_pause: the limit of the pauses.
        repeat_for: the longest time for which a write is repeated: a server forgets a session after
            an hour without requests, and would then run the write again.
        now: the clock.
        jitter: returns random numbers from 0 to 1; None = those of Python.
        wait_for_start: True = a client that has not been connected yet waits for the server, up to
            the timeout; False = it fails at once if the connection is refused. Once it has been
            connected, it always waits for the server.

    Raises:
        TypeError: an argument has the wrong type.
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
        """Check the arguments, and make a policy."""
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
    def _make(cls, iterable: Iterable[Any]) -> Self:  # type: ignore[override]  # returns a subclass
        """Make a policy, for `_replace`, with all checks."""
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
        is_lasting: True if waiting cannot help, since somebody must change something; False if it
            helps to start the server.
        is_unknown_host: True if the host name cannot be resolved.
        is_refusal: True if the server does not know the client, or their keys do not match.
        tries: how often the connection must have failed in the same way before that is certain.
    """

    reason: str
    is_lasting: bool = False
    is_unknown_host: bool = False
    is_refusal: bool = False
    tries: int = 1


NO_INFO: Final = Trouble("it does not answer INFO")
"""A server that the client must ask before it may use it."""


class _Absence:
    """The knowledge that one request has of an endpoint to which there is no connection.

    Args:
        failure: how the last connection failed, as `Connection.failure`.

    Attributes:
        times: how often it failed in that way, in a row.
        asked: when the client last tried to find out why.
        trouble: what it has found out; None = nothing yet.
    """

    __slots__ = ("asked", "failure", "times", "trouble")

    def __init__(self, failure: int) -> None:
        self.failure = failure
        self.times = 0
        self.asked = -math.inf
        self.trouble: Trouble | None = None

    def is_certain(self, waits: bool) -> bool:
        """True if waiting cannot help; or, unless the client ``waits``, if nobody is there."""
        trouble = self.trouble
        return (
            trouble is not None
            and self.times >= trouble.tries
            and (trouble.is_lasting or not waits)
        )


class Attempts:
    """The attempts at one request.

    Args:
        policy: of the client.
        op: of the request.
        repeatable: True if the request may be sent again after its reply was lost.
        timeout: seconds for all attempts together.
    """

    _lost = _refused = _absent = _referred = 0
    _in_doubt = False
    _place: str | None = None  # Where a request that concerns one server goes.
    _refusal: RefusedError | None = None  # The last one that another server may not repeat.
    parked = 0.0
    """Seconds for which the server may keep the request before it answers."""
    anywhere = False
    """True if the request may also be answered by a server that does not lead."""
    added: frozenset[str] = frozenset()
    """The fields that the client has added, and may leave out if the server refuses them."""
    span: RequestSpan | None = None
    """Records the repeats; None = nobody does."""
    is_traced = False
    """True if there is a span already, or none is wanted."""

    def __init__(self, policy: RetryPolicy, op: str, repeatable: bool, timeout: float) -> None:
        self._policy = policy
        self._op = op
        self.repeatable = repeatable
        if op not in LEADER_OPS:
            self.anywhere = True
        self._began = began = policy.now()
        self.end = began + timeout
        self._absences: dict[str, _Absence] = {}
        self._made_in = process.forks

    def check_process(self) -> None:
        """Raise ClosedError in a child forked during the request, which the parent continues.

        If the child sent the request, too, both would use the same number of the same session.
        """
        if self._made_in != process.forks:
            raise ClosedError("the process was forked during the request", self.applied())

    @property
    def stays(self) -> bool:
        """True if the request concerns one server, and must not go to another one."""
        return self._op in ONE_SERVER_OPS

    def goes_to(self, endpoint: str) -> None:
        """Record where a request that must not be sent twice is about to be sent.

        Raises:
            NoReplyError: it concerns another server, from which the client has gone on.
        """
        if self.stays:
            self._place = self._place or endpoint
            if self._place != endpoint:
                raise self.give_up(self._place)

    def left(self) -> float:
        """Return the seconds until the client gives up; 0 or less = the time is up."""
        return self.end - self._policy.now()

    def patience(self) -> float:
        """Return the seconds to wait for the reply to the next attempt."""
        policy = self._policy
        left = self.end - policy.now()
        if not self.repeatable:
            return left
        patience = policy.patience * 2.0 ** min(self._lost, 10) if self._lost else policy.patience
        patience += self.parked
        return patience if patience < left else left

    def time_to_connect(self) -> float:
        """Return the seconds to wait for a connection. The rest is to find out why it fails."""
        return max(0.0, min(self.left() / 2, self._policy.patience * 2.0 ** min(self._absent, 10)))

    def no_reply(self, endpoint: str, connected: bool) -> None:
        """Record an attempt without a reply. Returns if the request is to be sent again.

        Args:
            endpoint: that it was sent to.
            connected: True if there may have been a connection that received it.

        Raises:
            NoReplyError: the client gives up.
        """
        self._lost += 1
        self._in_doubt |= connected
        if (self.repeatable or not connected) and self.left() > 0 and self._may_repeat():
            self._repeats("NoReplyError")
            return
        raise self.give_up(endpoint)

    def pause(self) -> float:
        """Return the seconds to wait after a lost connection before sending the request again."""
        return max(0.0, min(self.left(), self._backoff(self._lost - 1)))

    def asks_why(self, endpoint: str, failure: int) -> bool:
        """Record a failed connection. Returns True if it is time to find out why it failed.

        Args:
            endpoint: that could not be connected.
            failure: of the connection, as `Connection.failure`.
        """
        now = self._policy.now()
        absence = self._absences.get(endpoint)
        if absence is None or failure not in {0, absence.failure}:
            absence = self._absences[endpoint] = _Absence(failure)
        absence.times += 1
        if now - absence.asked < REASON_SECONDS:
            return False
        absence.asked = now
        return True

    def no_connection(
        self, endpoint: str, trouble: Trouble | None, endpoints: int, met: bool
    ) -> float:
        """Record why a connection failed. Returns the seconds after which to try again.

        Args:
            endpoint: that could not be connected; `asks_why` was called for it.
            trouble: the reason; None = unknown, or the same as before.
            endpoints: the number of endpoints to try.
            met: True if there has ever been a connection.

        Raises:
            UnavailableError: the client gives up.
        """
        self._absent += 1
        absences = self._absences
        absence = absences[endpoint]
        if trouble is not None and (trouble is not NO_INFO or absence.trouble is None):
            absence.trouble = trouble
        if self.left() <= 0 or (self._in_doubt and not self._may_repeat()):
            raise self.give_up(endpoint)
        if len(absences) < endpoints and not self.stays:
            self._repeats("UnavailableError")
            return 0.0
        waits = met or self._policy.wait_for_start
        if all(absence.is_certain(waits) for absence in absences.values()):
            raise self.give_up(endpoint)
        self._repeats("UnavailableError")
        return max(0.0, min(self.left(), self._until_next_try()))

    def _until_next_try(self) -> float:
        """Return the seconds until the next attempt to connect."""
        uncertain = [
            each.times for each in self._absences.values()
            if each.trouble is not None and each.times < each.trouble.tries
        ]  # fmt: skip
        if uncertain:
            return 0.0 if min(uncertain) < KEY_TRIES_AT_ONCE else KEY_PAUSE
        return RECONNECT * (1 + self._policy.jitter())

    def give_up(self, endpoint: str) -> ClientError:
        """Return the error for a missing reply or connection, with the reason.

        It is a `NoReplyError`, or a refusal by another server, if that is all that is known.
        """
        within = f" within {self._policy.now() - self._began:.3g} s" if self.left() <= 0 else ""
        absences = self._absences.items()
        known = {place: absence.trouble for place, absence in absences if absence.trouble}
        is_all = all(trouble is NO_INFO for trouble in known.values())
        if self._refusal is not None and is_all and self.applied() is False:
            return self._refusal
        reason = next((each.reason for each in known.values()), "")
        if len(known) > 1:
            reason = "; ".join(f"{place}: {each.reason}" for place, each in known.items())
        because = f": {reason}" if reason else ""
        if self._in_doubt:
            text = f"no reply from {endpoint}{within}{because}"
            return NoReplyError(text, lost(self._op))
        text = f"no connection to {endpoint}{within}{because}"
        if any(each.is_refusal for each in known.values()):
            return AuthenticationError(text, False, reason)
        unknown = bool(known) and all(each.is_unknown_host for each in known.values())
        return (UnknownHostError if unknown else UnavailableError)(text, False, reason)

    def refused(self, reply: Mapping[str, Any], endpoints: int = 1) -> float:
        """Record a refusal. Returns the seconds after which to send the request again.

        Args:
            reply: of the server.
            endpoints: the number of endpoints to choose from.

        Raises:
            RefusedError: the client gives up.
        """
        error = refusal(self._op, reply)
        last = self._refusal
        if error.code == "DEADLINE" and last is not None and last.code == "BEHIND":
            raise last  # The server had as long as it may take.
        if self._in_doubt and error.code not in DEFINITE:
            error = error.but(lost(self._op))  # The refusal says nothing about earlier attempts.
        self._in_doubt |= error.applied is None
        if error.code in {"BEHIND", "NOT_LEADER"}:
            self._refusal = error
        pause = self._pause_after(error, reply, endpoints)
        if pause is None or pause >= self.left() or not self._may_repeat():
            raise error
        self._repeats(error.code)
        return pause

    def _pause_after(
        self, error: RefusedError, reply: Mapping[str, Any], endpoints: int
    ) -> float | None:
        """Return the seconds to wait after a refusal; None = the request is not sent again."""
        if error.code == "NOT_LEADER":
            if endpoints == 1 or not (error.applied is False or self.repeatable):
                return None
            self._referred += 1
            round_trip = self._referred - endpoints
            return 0.0 if round_trip < 0 else self._backoff(round_trip)
        if not (error.retry and self.repeatable):
            return None
        self._refused += 1
        return max(self._backoff(self._refused - 1), _asked_pause(reply))

    def _repeats(self, reason: str) -> None:
        if self.span is not None:
            self.span.repeats(reason)

    def _backoff(self, times: int) -> float:
        policy = self._policy
        pause = min(policy.longest_pause, policy.pause * 2.0 ** min(times, 30))
        return pause * (1 + policy.jitter()) / 2

    def applied(self) -> bool | None:
        """Return ``applied`` for the errors of this request."""
        return lost(self._op) if self._in_doubt else False

    def _may_repeat(self) -> bool:
        return self._policy.now() - self._began < self._policy.repeat_for
