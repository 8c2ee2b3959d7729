"""The parking: requests that wait for commits, outside of the threads that run requests.

A read with ``min_rev`` waits until the store has that revision, and a REPLICATE with ``wait`` until
there is a further commit on disk. Each is a future, as SNAPSHOT's is, so no worker is held. One
thread runs them again when their commits have come, or at their end. It begins with the first
request that is parked.

The log calls `Parking.commits_are_safe` whenever commits have become safe; that costs one look at
an empty dict while nobody waits, and wakes the thread only if somebody may go on.

Where safe does not mean on disk, nobody may ask for a sync for a long time. While a member waits
for commits that are written, the thread has them synced: at once, but not more often than once per
`fsync_interval`, or per second if the policy is ``never``.

Invariants: each parked request is answered once; at the end of the server all are, with
SHUTTING_DOWN. A reply leaves only if what it reveals is safe: the one that runs the request again
sees to that.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, Protocol

from zkv.durability.committer import A_BUG, CommitGroup
from zkv.errors import Behind, Busy, Internal, ReadOnly, RequestError, ShuttingDown
from zkv.protocol.replies import Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.engine import Engine

_log = logging.getLogger("zkv.requests")

MOST_READS: Final = 1_000
"""Reads that wait at a time. Beyond that they are BUSY."""
MOST_PULLS: Final = 64
"""Requests of members that wait at a time, likewise."""
RETRY_AFTER: Final = 100
"""Milliseconds after which one that is BUSY may try again."""
_NEVER: Final = 2**64
"""A number that no commit has."""


class ParkedReply(Future[Reply]):
    """The reply to a request that was parked.

    Attributes:
        resumed: when it went on, by `time.perf_counter`.
    """

    resumed = 0.0


class ParkedRequest:
    """A request that waits.

    Args:
        attempt: runs it.
        until: when it is to be answered in any case, by `time.monotonic`.
        rev: the revision that has to be safe before it can go on.
        lsn: the log number that has to be on disk; None = it waits for the revision.
    """

    def __init__(self, attempt: Attempt, until: float, rev: int, lsn: int | None) -> None:
        self.attempt = attempt
        self.until = until
        self.rev = rev
        self.lsn = lsn
        self.reply = ParkedReply()


class Attempt(Protocol):
    """Runs a parked request again, in the thread of the parking."""

    def __call__(self, parked: ParkedRequest, late: bool, /) -> Reply | None:
        """Return the reply; None if it has to wait on.

        Args:
            parked: the request; this may change what it waits for.
            late: its time is over.

        Raises RequestError, which is its reply then.
        """


class ParkedRead:
    """An attempt: a read that needs a revision.

    That has to be safe. Then the read runs; if its reply reveals later revisions, which are not
    safe yet, it waits for those, as any read does: if they cannot be made safe, it is READ_ONLY.
    After a rollback it runs again.

    Args:
        engine: the engine.
        parking: where it waits.
        min_rev: the revision.
        run: runs the read; returns its reply, or error, and the newest revision that this reveals.
    """

    def __init__(
        self,
        engine: Engine,
        parking: Parking,
        min_rev: int,
        run: Callable[[], tuple[Reply | RequestError, int]],
    ) -> None:
        self._engine = engine
        self._parking = parking
        self._min_rev = min_rev
        self._run = run
        self._until = math.inf  # When it is late, while it waits for what its reply reveals.
        self._group: CommitGroup | None = None  # What that waits for.
        self._epoch = -1  # Before it ran; -1 = it has not.
        self._outcome: Reply | RequestError
        self._seen = 0

    def __call__(self, parked: ParkedRequest, late: bool) -> Reply | None:
        """See `Attempt`. Raises Behind, ReadOnly."""
        engine = self._engine
        if self._epoch != engine.epoch:
            if self._epoch >= 0:  # What it saw was rolled back.
                self._epoch, parked.until = -1, self._until
            reached = engine.reached_rev
            if self._min_rev > reached:
                parked.rev = self._min_rev
                if late:
                    why = f"revision {self._min_rev} has not come; this is {reached}"
                    raise Behind(why, rev=reached)
                return None
            self._epoch = engine.epoch
            self._outcome, self._seen = self._run()
        safe = engine.safe_rev  # Before the epoch: see `zkv.broker.waiting`.
        if self._seen > safe or self._epoch != engine.epoch:
            self._await_disk(parked)
            return None
        if isinstance(self._outcome, RequestError):
            raise self._outcome
        return self._outcome

    def _await_disk(self, parked: ParkedRequest) -> None:
        engine, failed = self._engine, None if self._group is None else self._group.error
        if failed is not None and self._epoch == engine.epoch:
            raise ReadOnly(failed.message)
        self._until, parked.until = min(self._until, parked.until), math.inf
        parked.rev = _NEVER
        self._group = group = CommitGroup(self._epoch, engine.syncs_each)
        group.lsn = engine.last_lsn
        group.on_completion(lambda: self._parking.resume(parked))
        engine.submit(group)


class Parking:
    """The parked requests of a server.

    Args:
        engine: the engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        settings = engine.settings
        self._period = settings.fsync_interval if settings.fsync == "interval" else 1.0
        self._lock = threading.Lock()  # Protects what follows.
        self.parked: dict[ParkedRequest, None] = {}
        """Those that wait. It stays this object; whether there are any, any thread may ask."""
        self._actions: list[tuple[float, Callable[[], None]]] = []
        self._thread: threading.Thread | None = None
        self._closed = False
        self._wake = threading.Event()
        self._rev_wanted = self._lsn_wanted = _NEVER
        self._sync_at = 0.0  # The time from which on the next sync may be asked for.
        self._awaits_sync = False

    def park(
        self, attempt: Attempt, seconds: float, rev: int, lsn: int | None = None
    ) -> Future[Reply]:
        """Park a request for at most so many seconds; see `ParkedRequest` for the rest.

        Raises Busy, ShuttingDown.
        """
        parked = ParkedRequest(attempt, time.monotonic() + seconds, rev, lsn)
        pulls = lsn is not None
        most = MOST_PULLS if pulls else MOST_READS
        with self._lock:
            if sum((each.lsn is not None) == pulls for each in self.parked) >= most:
                raise Busy(f"{most} requests like this one wait already", retry_after=RETRY_AFTER)
            self._begin()
            self.parked[parked] = None
        self._wake.set()
        return parked.reply

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Have an action called in the thread after so many seconds, unless the server ends."""
        with self._lock:
            if self._closed:
                return
            self._begin()
            self._actions.append((time.monotonic() + seconds, action))
        self._wake.set()

    def resume(self, parked: ParkedRequest) -> None:
        """Have a request run again, whatever it waits for. Any thread."""
        parked.rev = 0
        self._wake.set()

    def commits_are_safe(self) -> None:
        """Note that commits have become safe. Any thread, which may hold the keyspace's lock."""
        if not self.parked:
            return
        engine, lsn = self._engine, self._lsn_wanted
        if (
            engine.safe_rev >= self._rev_wanted
            or engine.durable_lsn >= lsn
            or (not self._awaits_sync and engine.safe_lsn >= lsn)
        ):
            self._wake.set()

    def close(self) -> None:
        """Answer all requests with SHUTTING_DOWN, and end the thread."""
        with self._lock:
            self._closed = True
            thread = self._thread
        self._wake.set()
        if thread is not None:
            thread.join()

    def _begin(self) -> None:
        """Start the thread if there is none. `_lock` held. Raises ShuttingDown."""
        if self._closed:
            raise ShuttingDown("the server is stopping")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="zkv-parking")
            self._thread.start()

    def _run(self) -> None:
        timeout: float | None = 0.0
        while not self._closed:
            self._wake.wait(timeout)
            self._wake.clear()  # First: what becomes safe from now on wakes the thread again.
            try:
                self._look()
                timeout = self._plan()
            except BaseException:  # A bug, or no memory. The others must not wait for ever.
                _log.critical("the parking failed and continues", exc_info=True)
                timeout = 1.0
        for parked in list(self.parked):
            self._settle(parked, ShuttingDown("the server is stopping"))

    def _look(self) -> None:
        """Run what can go on, or must end."""
        engine, now = self._engine, time.monotonic()
        reached, durable = engine.reached_rev, engine.durable_lsn
        with self._lock:
            every = list(self.parked)
            actions = [action for at, action in self._actions if at <= now]
            self._actions = [each for each in self._actions if each[0] > now]
        for parked in every:
            may_go_on = parked.rev <= reached if parked.lsn is None else parked.lsn <= durable
            if may_go_on or parked.until <= now:
                self._try(parked, parked.until <= now)
        for action in actions:
            action()

    def _try(self, parked: ParkedRequest, late: bool) -> None:
        resumed = time.perf_counter()
        try:
            outcome: Reply | RequestError | None = parked.attempt(parked, late)
        except RequestError as error:
            outcome = error
        except BaseException as error:
            _log.error("a parked request failed: this is a bug in zkv", exc_info=error)
            outcome = Internal(A_BUG, applied=None)
        if outcome is not None:
            parked.reply.resumed = resumed
            self._settle(parked, outcome)

    def _settle(self, parked: ParkedRequest, outcome: Reply | RequestError) -> None:
        with self._lock:
            del self.parked[parked]
        reply = parked.reply
        if isinstance(outcome, RequestError):
            reply.set_exception(outcome)
        else:
            reply.set_result(outcome)

    def _plan(self) -> float | None:
        """Note what is waited for, and return the seconds until something has to be done."""
        with self._lock:
            every = list(self.parked)
            ends = [at for at, _ in self._actions]
        self._rev_wanted = min((each.rev for each in every if each.lsn is None), default=_NEVER)
        self._lsn_wanted = min((each.lsn for each in every if each.lsn is not None), default=_NEVER)
        self._awaits_sync = False
        engine = self._engine
        reached, durable = engine.reached_rev, engine.durable_lsn
        if reached >= self._rev_wanted or durable >= self._lsn_wanted:
            return 0.0  # In the meantime.
        if engine.safe_lsn >= self._lsn_wanted:
            self._awaits_sync = True
            ends.append(self._sync())
        ends += [each.until for each in every]
        left = min(ends, default=math.inf) - time.monotonic()
        return None if left == math.inf else max(0.0, left)

    def _sync(self) -> float:
        """Ask for a sync if that is allowed now; return the time from which the next one is."""
        now = time.monotonic()
        if now >= self._sync_at:
            self._sync_at = now + self._period
            group = CommitGroup(self._engine.epoch)
            group.lsn = self._engine.safe_lsn
            self._engine.submit(group)
        return self._sync_at
