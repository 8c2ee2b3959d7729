"""The thread of a standby: pulls commits from the primary's log, and applies them.

Strategy: ask for what comes after the newest commit here, apply it, put it on disk, and ask again,
which confirms it. Commits keep their bytes, so the standby's log is the primary's: its feed, its
snapshots and its own standbys need nothing else. After any failure the thread goes on from what the
log here has; if the primary cannot go on from there, the server stops, and begins anew from a
snapshot (`zkv.replication.place`).

The clock of the store is that of the primary: it comes with each answer.

A standby may follow a standby. If that has lost its primary, it answers all the same, and two that
followed each other would never look for the primary again. So each answer tells how long ago a
primary was heard of, be it by way of others. If that is too long, the thread goes on to the next
place; and at once where commits are confirmed, since only the primary counts who has them.

Promotion: between two steps the thread carries out orders to take over. In a planned promotion the
primary stops to lead first, and tells its last log number; this standby applies all up to there,
and begins a term. If anything fails before, the primary leads again. Where all machines are known,
and commits are confirmed, the others have to agree (`zkv.replication.vote`); then the primary
need not be there. An attempt that fails takes back what others have promised to it; so does the
next start after a crash in between. The revision then goes up by
`RAISED_BY`, as clients may have seen revisions that are not known here. The order of the last
steps: the term is on disk before the file that says "standby" is removed, and that before the first
write is taken.

One thread runs `_run`; other methods may be called by any. A server that was superseded has this
thread, too, without a source: it only waits for orders.
"""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import threading
import time
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec

from zkv.errors import BadRequest, ReadOnly, RequestError, ShuttingDown
from zkv.protocol.requests import Promise
from zkv.replication.applying import apply_commits
from zkv.replication.incoming import BeginAnew
from zkv.replication.stream import (
    WAIT_MS,
    Asker,
    Confirmed,
    LogPosition,
    PromiseAnswer,
    StreamError,
    StreamRefusedError,
    pull,
    reinstate,
    supersede,
)
from zkv.replication.vote import Bid, OutbidError

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.engine import Engine
    from zkv.keyspace import Commit
    from zkv.keyspace.lineage import Lineage, TermStart
    from zkv.replication.promises import Promises
    from zkv.replication.stream import Pulled
    from zkv.replication.vote import Vote

_log = logging.getLogger("zkv.replication")

RETRY_SECONDS: Final = 0.5
"""Pause after a failure, once all places have been asked."""
STALE_SECONDS: Final = 5.0
"""Where nothing has been heard of a primary for so long, another place is asked."""
RAISED_BY: Final = 2**32
"""By so much the revision goes up when a standby takes over."""
TAKE_OVER_SECONDS: Final = 10.0
"""A standby that has not caught up so long after its primary has stopped gives up."""
BID_SECONDS: Final = 15.0
"""A standby that has been outbid by others again and again for so long gives up."""
BID_PAUSE_MS: Final = 500
"""The longest pause after it has been outbid; it is chosen at random."""
ANEW: Final = frozenset({"COMPACTED", "DIVERGED"})
"""Codes after which the standby begins anew."""


class Primary(Protocol):
    """The connection to the primary, or to a server that may take its place."""

    patient: bool
    """True if requests wait on although somebody calls `hurry`."""

    @property
    def places(self) -> int:
        """The number of places to ask."""

    @property
    def endpoint(self) -> str:
        """The endpoint that was asked last."""

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Return the reply. Raises StreamError."""

    def go_on(self) -> None:
        """Ask at the next place from now on."""

    def hurry(self) -> None:
        """Have a request that waits fail, if the asker is not `patient`. Any thread."""

    def interrupt(self) -> None:
        """Have a request that waits fail, and all later ones. Any thread."""


def begin_anew(
    error: StreamRefusedError, lineage: Lineage, lsn: int, promised: int
) -> BeginAnew | None:
    """Return why a standby has to begin anew after a server has refused its position.

    Args:
        error: the refusal.
        lineage: of the standby's store.
        lsn: the newest log number there.
        promised: the highest term that was promised there; 0 = none.

    Returns None if it has not: the reason is another one, or the server is at a former term, unlike
    what the standby has. Then it led before, and another server has taken over. Only the commit
    that begins a term may be given up for it: that is all there is if a promotion has failed at the
    last moment. A term that is promised counts as well: it may have begun elsewhere.
    """
    term, common = error.reply.get("term"), error.reply.get("common")
    if error.code not in ANEW:
        return None
    written, _ = lineage.written(lsn)
    if isinstance(term, int) and term < max(0 if written is None else written.number, promised):
        return None
    common = common if isinstance(common, int) else 0
    return BeginAnew(str(error), error.code == "DIVERGED", common, lineage, lsn)


class Promoted(NamedTuple):
    """A server has begun to lead, with this revision and this term."""

    rev: int
    term: int


class _Order(NamedTuple):
    force: bool
    outcome: Future[Promoted]


class Standby:
    """Follows a primary, until it takes over.

    Args:
        engine: the engine; it does not lead.
        source: the connection to the primary; only the thread asks. None = it follows nobody.
        member: the name of this standby.
        advertised: returns the endpoints at which clients find this server.
        stop: called once if it has to begin anew; see `anew`.
        lead: called when a term has begun and is on disk: has this server lead.
        promises: what this server has promised to standbys that are being promoted.
        vote: asks the other machines; None: they are not known, or confirm nothing.
    """

    def __init__(
        self,
        engine: Engine,
        source: Primary | None,
        member: str,
        advertised: Callable[[], list[str]],
        stop: Callable[[], None],
        lead: Callable[[], None],
        promises: Promises,
        vote: Vote | None = None,
    ) -> None:
        self._engine = engine
        self._source = source
        self._asker = Asker(self._ask)
        self._member = member
        self._advertised = advertised
        self._stop = stop
        self._lead = lead
        self._promises = promises
        self._vote = vote
        self._orders: SimpleQueue[_Order | None] = SimpleQueue()
        self.anew: BeginAnew | None = None
        """Set, before `stop` is called, if the standby has to begin anew."""
        self._closing = threading.Event()
        self._failures = 0
        self._reported: str | None = None
        self._heard_at = time.monotonic()  # When something was last heard of a primary.
        self._expected_age = WAIT_MS / 1000
        self._known_lsn = 0
        self._commit_time = 0
        self._attempt = 0  # The number of the last attempt to take over.
        self._confirms = True  # As far as the log has said.
        self._thread = threading.Thread(target=self._run, name="zkv-standby")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread. What it has applied stays."""
        self._closing.set()
        self._orders.put(None)
        if (source := self._source) is not None:
            source.interrupt()
        if self._thread.ident is not None:
            self._thread.join()
        while (order := self._next_order(block=False)) is not None:
            order.outcome.set_exception(ShuttingDown("the server is stopping"))

    def promote(self, force: bool) -> Future[Promoted]:
        """Order to take over.

        Args:
            force: also if the primary does not stop in time, or does not answer.

        The future raises RequestError if that fails; then this is a standby as before.
        """
        order = _Order(force, Future())
        self._orders.put(order)
        if (source := self._source) is not None:
            source.hurry()  # The primary may be gone, and a request to it may wait for an answer.
        return order.outcome

    def lag(self) -> float | None:
        """Return by how many seconds this is behind the primary; None = it follows nobody."""
        if self._source is None:
            return None
        silent = max(0.0, self.age() - self._expected_age)
        if self._known_lsn > self._engine.last_lsn:
            return max(silent, (self._engine.clock() - self._commit_time) / 1000)
        return silent

    def age(self) -> float:
        """Return the seconds since something was heard of a primary; 0 = it follows nobody."""
        return 0.0 if self._source is None else time.monotonic() - self._heard_at

    def _run(self) -> None:
        self._clear_attempts()
        while not self._closing.is_set():
            order = self._next_order(block=self._source is None)
            if order is not None:
                self._carry_out(order)
            elif self._source is not None:
                self._follow(self._source)

    def _follow(self, source: Primary) -> None:
        try:
            self._step(source)
        except StreamRefusedError as error:
            if not self._begins_anew(error):
                self._fail(source, str(error))
        except (StreamError, ReadOnly) as error:
            self._fail(source, str(error))
        except BaseException:  # A bug, or no memory; the thread goes on.
            _log.critical("the standby failed; it goes on", exc_info=True)
            self._fail(source, "")

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        if self._source is None:
            raise StreamError("this server follows nobody")
        return self._source.ask(request, seconds)

    def _step(self, source: Primary, wait: int = WAIT_MS, most: float = math.inf) -> None:
        """Pull once; go on to another place if what is asked has no primary, or does not count.

        Args:
            source: the primary.
            wait: ms for which it waits if there is nothing new.
            most: seconds for which to wait for an answer at most.

        Raises StreamError, ReadOnly.
        """
        pulled, confirms = self._pull(wait, most)
        if not pulled.commits and source.places > 1:
            if self.age() > STALE_SECONDS:
                raise StreamError(f"{source.endpoint}: has lost its primary {self.age():.0f} s ago")
            if not (confirms and self._is_confirmed(pulled)):
                source.go_on()  # To one that leads, by what was promised.
        self._note_answer(source)

    def _pull(self, wait: int, most: float) -> tuple[Pulled, bool]:
        """Ask for what comes next, apply it, and put it on disk.

        Args: see `_step`.

        Returns the answer, and if what is on disk here was confirmed. Raises StreamError, ReadOnly.
        """
        engine = self._engine
        with engine.keyspace.lock:
            lineage, lsn = engine.keyspace.lineage, engine.last_lsn
        after = LogPosition.of(lineage, lsn)
        on_disk = Confirmed(engine.durable_lsn, engine.durable_rev)
        confirms = self._may_confirm()  # Asked last: what is promised later covers this request.
        pulled = pull(self._asker, self._member, after, on_disk, wait, confirms, most)
        self._note(pulled)
        if pulled.commits:
            self._apply(pulled.commits)
            engine.log.commit(engine.last_lsn, durable=True)
        return pulled, confirms

    def _is_confirmed(self, pulled: Pulled) -> bool:
        """Return True if what is confirmed to a server counts, or nothing is to be confirmed.

        A standby of a standby confirms to nobody: a primary that needs it would wait for ever.
        """
        return self._vote is None or pulled.age == 0

    def _may_confirm(self) -> bool:
        """Return True if this server may confirm what it has on disk; say so if that changes."""
        promised = self._promises.binding
        if self._confirms != (not promised):
            self._confirms = not promised
            if promised:
                _log.warning("confirming nothing until the log here is at term %d", promised)
            else:
                _log.warning("confirming again")
        return self._confirms

    def _note(self, pulled: Pulled) -> None:
        self._engine.clock.follow(pulled.time)
        age = pulled.age / 1000
        self._heard_at = max(self._heard_at, time.monotonic() - age)
        self._expected_age = WAIT_MS / 1000 * (2 if age else 1)  # It may wait, too.
        self._known_lsn = pulled.lsn

    def _note_answer(self, source: Primary) -> None:
        self._failures = 0
        if self._reported is not None:
            self._reported = None
            _log.warning("%s answers", source.endpoint)

    def _apply(self, commits: list[Commit]) -> None:
        """Apply commits. Raises ReadOnly, and StreamError if one does not follow."""
        try:
            apply_commits(self._engine, commits)
        except ValueError as error:
            raise StreamError(str(error)) from None
        self._commit_time = commits[-1].time

    def _fail(self, source: Primary, reason: str) -> None:
        """Say why, once, and wait if all places have been asked."""
        if self._closing.is_set() or not self._orders.empty():
            return
        source.go_on()
        if reason and self._reported is None:
            self._reported = reason
            _log.warning("cannot follow: %s; trying again", reason)
        self._failures += 1
        if self._failures % source.places == 0:
            self._closing.wait(RETRY_SECONDS)

    def _begins_anew(self, error: StreamRefusedError) -> bool:
        """Have the server begin anew, if it has to after this refusal; return True if so."""
        with self._engine.keyspace.lock:
            lineage, lsn = self._engine.keyspace.lineage, self._engine.last_lsn
        anew = begin_anew(error, lineage, lsn, self._promises.highest)
        if anew is None or self._closing.is_set():
            return False
        self.anew = anew
        self._engine.keep_log()  # What it gives up is read from there.
        self._stop()
        self._closing.set()
        return True

    def _next_order(self, block: bool) -> _Order | None:
        with contextlib.suppress(Empty):
            return self._orders.get(block)
        return None

    def _carry_out(self, order: _Order) -> None:
        try:
            if self._source is not None:
                promoted = self._take_over(self._source, order.force)
            elif order.force:
                promoted = self._begin_term(self._next_start(), held=False)
            else:
                raise BadRequest("this server follows no primary: only `force` lets it lead again")
        except RequestError as error:
            order.outcome.set_exception(error)
        except BaseException as error:  # A bug, or the disk; it stays a standby.
            _log.critical("the promotion failed", exc_info=True)
            order.outcome.set_exception(ReadOnly(f"the promotion failed: {error}"))
        else:
            order.outcome.set_result(promoted)

    def _take_over(self, source: Primary, force: bool) -> Promoted:
        """Have the primary stop to lead, and lead. Raises ReadOnly; then the primary leads on."""
        self._number_attempt()
        missing: StreamError | ReadOnly | None = None
        source.patient = True
        try:
            try:
                self._relieve(source)
            except (StreamError, ReadOnly) as error:
                if not force and (self._vote is None or isinstance(error, ReadOnly)):
                    raise
                _log.warning("taking over without the primary: %s", error)
                missing = error
            return self._lead_by_force() if force else self._lead_by_vote(missing is None)
        except Exception as error:
            refusal = f" ({missing})" if isinstance(missing, StreamRefusedError) else ""
            try:
                self._clear_attempts()
            finally:
                self._give_back(source, f"{error}{refusal}")
            raise ReadOnly(f"the primary leads on: {error}{refusal}") from error
        finally:
            source.patient = False

    def _relieve(self, source: Primary) -> None:
        """Have the primary stop to lead, and catch up with it. Raises StreamError, ReadOnly."""
        last = self._supersede(source)
        end = time.monotonic() + TAKE_OVER_SECONDS
        # At least once: it brings the time of the last read there.
        self._step(source, 0, TAKE_OVER_SECONDS)
        while self._engine.last_lsn < last:
            left = end - time.monotonic()
            if left < 0:
                raise StreamError(f"log number {last} was not reached in {TAKE_OVER_SECONDS:g} s")
            self._step(source, most=left)

    def _supersede(self, source: Primary) -> int:
        """Have the primary stop to lead; return its last log number. Raises StreamError, ReadOnly.

        What this standby follows may be another standby: then the primary is at another place.
        """
        for _ in range(source.places - 1):
            try:
                return self._supersede_here(source)
            except StreamRefusedError as error:
                if error.code != "NOT_LEADER":
                    raise
                source.go_on()
        return self._supersede_here(source)

    def _supersede_here(self, source: Primary) -> int:
        """See `_supersede`. The primary is at this place, or it refuses as NOT_LEADER."""
        pulled, _ = self._pull(0, TAKE_OVER_SECONDS)
        # It may have begun a term since it was asked last.
        term = self._next_start(pulled.lineage.term).term
        return supersede(source.ask, self._member, self._attempt, term, self._advertised())

    def _give_back(self, source: Primary, reason: str) -> None:
        """Have the primary lead on after an error. Raises ReadOnly if nobody knows if it does."""
        try:
            reinstate(source.ask, self._member, self._attempt)
        except StreamError as lost:
            if isinstance(lost, StreamRefusedError) and lost.code == "NOT_LEADER":
                raise ReadOnly(reason) from lost  # Not because of this attempt.
            raise ReadOnly(
                f"{reason}; the primary may have stopped to lead ({lost}): repeat this, or use "
                f"`force`"
            ) from lost

    # --- Promises of others

    def _lead_by_vote(self, is_planned: bool) -> Promoted:
        """Begin a term if the other machines let this one. Raises NotElectedError, RequestError.

        Without other machines that confirm commits, only the primary decides.
        """
        vote = self._vote
        if vote is None:
            return self._begin_term(self._next_start(), held=False)
        end, start = time.monotonic() + BID_SECONDS, self._next_start()
        vote.begin()
        is_outbid = False
        while True:
            try:
                vote.bid(self._bid(start), self._promise_oneself(start), is_planned)
                return self._begin_term(start, held=True)
            except OutbidError as error:
                if time.monotonic() > end or self._closing.is_set():
                    raise
                if not is_outbid:
                    _log.warning("%s; trying again", error)
                is_outbid = True
                self._clear_attempts()
                self._closing.wait(secrets.randbelow(BID_PAUSE_MS) / 1000)
                self._number_attempt()
                start = self._next_start(error.promised)

    def _lead_by_force(self) -> Promoted:
        """Begin a term that others confirm, whatever they have promised. Raises RequestError."""
        start = self._next_start()
        if self._vote is not None:
            start = self._next_start(max(start.term, self._vote.promised(self._bid(start))))
        return self._begin_term(start, held=False)

    def _number_attempt(self) -> None:
        # Above all earlier ones, also of a process before this one: they may still be on their way.
        self._attempt = max(self._attempt + 1, time.time_ns())

    def _next_start(self, above: int = 0) -> TermStart:
        """Return the start of a term above this number, and above all that are known here."""
        lineage = self._engine.keyspace.lineage
        return lineage.next_start(above=max(above, self._promises.highest))

    def _bid(self, start: TermStart) -> Bid:
        return Bid(self._member, self._attempt, start.store, start.term, start.tag)

    def _promise_oneself(self, start: TermStart) -> PromiseAnswer:
        """Promise this server's own bid, and return how far its log is. Raises RequestError."""
        wish = Promise(self._attempt, start.term, start.tag)
        reply = self._promises.answer(self._member, start.store, wish)
        return msgspec.convert(reply, PromiseAnswer, from_attributes=True)

    def _clear_attempts(self) -> None:
        """Take back what was promised to attempts of this server: all have failed."""
        store = self._engine.keyspace.lineage.store
        failed = self._promises.made_to(self._member)
        if failed and self._vote is not None:
            self._vote.withdraw([
                Bid(self._member, each.attempt, store, each.term, None) for each in failed
            ])  # fmt: skip
        for each in failed:
            with contextlib.suppress(RequestError):  # The disk; it is void all the same.
                wish = Promise(each.attempt, each.term, None)
                self._promises.answer(self._member, store, wish)

    def _begin_term(self, start: TermStart, held: bool) -> Promoted:
        """Begin a term, and lead.

        Args:
            start: the term.
            held: only if this server's own promise of it is still the newest one.

        Raises OutbidError, RequestError, OSError.
        """
        engine = self._engine
        keyspace = engine.keyspace
        with self._promises.unchanged():
            if held and not self._promises.holds(self._member, self._attempt):
                raise OutbidError("another standby is being promoted", self._promises.highest)
            with keyspace.lock:
                rev = keyspace.rev + RAISED_BY
                lsn = keyspace.begin_term(start, rev)
            engine.log.commit(lsn, durable=True)
            self._lead()
        self._source = None
        _log.warning("this server leads: term %d begins at revision %d", start.term, rev)
        return Promoted(rev, start.term)
