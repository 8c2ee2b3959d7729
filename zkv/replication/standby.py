"""The thread of a standby: pulls commits from the primary's log, and applies them.

Strategy: ask for what comes after the newest commit here, apply it, put it on disk, and ask again,
which confirms it. Commits keep their bytes, so the standby's log is the primary's: its feed, its
snapshots and its own standbys need nothing else. After any failure the thread goes on from what the
log here has; if the primary cannot go on from there, the server stops, and begins anew from a
snapshot (`zkv.replication.place`).

The clock of the store is that of the primary: it comes with each answer.

One thread runs `_run`. `statistics` may be called by any.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from zkv.clock import Clock
from zkv.errors import ReadOnly, ShuttingDown
from zkv.replication.stream import WAIT_MS, Confirmed, Position, RefusedError, StreamError, pull

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.engine import Engine
    from zkv.keyspace import Commit
    from zkv.replication.stream import Pulled

_log = logging.getLogger("zkv.replication")

RETRY_SECONDS: Final = 0.5
"""Pause after a failure, once all places have been asked."""
CHANGES_AT_ONCE: Final = 100
"""Changes applied in one hold of the lock: about 0.5 ms."""
ANEW: Final = frozenset({"COMPACTED", "DIVERGED"})
"""Codes after which the standby begins anew."""


class Source(Protocol):
    """The connection to the primary, or to a server that may take its place."""

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

    def interrupt(self) -> None:
        """Have a request that waits fail, and all later ones. Any thread."""


class BeginAnew(NamedTuple):
    """Why the standby cannot go on from its own log.

    Args:
        reason: for people.
        store: the identity of the primary's store; empty = not known.
        common: the last log number that both have; None = the primary has it no more.
    """

    reason: str
    store: str
    common: int | None


class Standby:
    """Follows a primary.

    Args:
        engine: the engine; it does not lead.
        clock: its clock.
        source: the connection to the primary; only the thread asks.
        member: the name of this standby.
        stop: called once if it has to begin anew; see `anew`.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        source: Source,
        member: str,
        stop: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._source = source
        self._member = member
        self._stop = stop
        self.anew: BeginAnew | None = None
        """Set, before `stop` is called, if the standby has to begin anew."""
        self._closing = threading.Event()
        self._failures = 0
        self._reported: str | None = None
        self._answered_at = time.monotonic()
        self._known_lsn = 0
        self._commit_time = 0
        self._thread = threading.Thread(target=self._run, name="zkv-standby")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread. What it has applied stays."""
        self._closing.set()
        self._source.interrupt()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def lag_seconds(self) -> float:
        """How far what is here is behind the primary, in seconds, as far as is known."""
        silent = max(0.0, time.monotonic() - self._answered_at - WAIT_MS / 1000)
        if self._known_lsn > self._engine.last_lsn:
            return max(silent, (self._clock() - self._commit_time) / 1000)
        return silent

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._step()
            except RefusedError as error:
                if error.code in ANEW and not self._closing.is_set():
                    self._begin_anew(error)
                    return
                self._source.go_on()
                self._fail(str(error))
            except (StreamError, ReadOnly, ShuttingDown) as error:
                self._fail(str(error))
            except BaseException:  # A bug, or no memory; the thread goes on.
                _log.critical("the standby failed; it goes on", exc_info=True)
                self._fail("")

    def _step(self) -> None:
        """Pull once, apply what comes, and put it on disk."""
        engine = self._engine
        with engine.keyspace.lock:
            lineage, lsn = engine.keyspace.lineage, engine.last_lsn
        after = Position(lineage.store, lineage.at(lsn), lsn)
        on_disk = Confirmed(*engine.on_disk)
        pulled = pull(self._source.ask, self._member, after, on_disk)
        self._note(pulled)
        if pulled.commits:
            self._apply(pulled.commits)
            engine.log.commit(engine.last_lsn, durable=True)

    def _note(self, pulled: Pulled) -> None:
        self._clock.follow(pulled.time)
        self._answered_at = time.monotonic()
        self._known_lsn = pulled.lsn
        self._failures = 0
        if self._reported is not None:
            self._reported = None
            _log.warning("%s answers", self._source.endpoint)

    def _apply(self, commits: list[Commit]) -> None:
        """Apply commits, some in each hold of the lock.

        Raises ReadOnly, and StreamError if one does not follow.
        """
        keyspace = self._engine.keyspace
        first = 0
        while first < len(commits):
            end, changes = first, 0
            while end < len(commits) and changes < CHANGES_AT_ONCE:
                changes += len(commits[end].changes) or 1
                end += 1
            with keyspace.lock:
                try:
                    keyspace.apply(commits[first:end])
                except ValueError as error:
                    raise StreamError(str(error)) from None
            self._commit_time = commits[end - 1].time
            first = end

    def _fail(self, reason: str) -> None:
        """Say why, once, and wait if all places have been asked."""
        if self._closing.is_set():
            return
        if reason and self._reported is None:
            self._reported = reason
            _log.warning("cannot follow: %s; trying again", reason)
        self._failures += 1
        if self._failures % self._source.places == 0:
            self._closing.wait(RETRY_SECONDS)

    def _begin_anew(self, error: RefusedError) -> None:
        common = error.reply.get("common") if error.code == "DIVERGED" else None
        try:
            info = self._source.ask({"op": "INFO"}, RETRY_SECONDS * 10)
            store = str(info["replication"]["store"])
        except (StreamError, KeyError, TypeError):
            store = ""
        self.anew = BeginAnew(str(error), store, common if isinstance(common, int) else None)
        self._stop()
