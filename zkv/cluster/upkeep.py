"""The work of a member beside following or leading: claims, trimming, compaction.

A thread of its own, as nothing of it may delay a renewal of the lease. Each round asks etcd again,
so an error costs no more than a round; it is said once.

After trimming, etcd still keeps former states of what was deleted, until it is told to forget them
up to a revision: that is compaction. Where etcd is this store's own (`store.compact`), the leader
has it done for what it has trimmed, now and then for its renewals, and while etcd is full. No read
of zkv asks for a former state, and no watch begins at one, so a compaction disturbs nobody.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

from zkv.cluster.shared_log import DeposedError
from zkv.cluster.trimming import LogTrimmer
from zkv.errors import DamageError, DataDirError
from zkv.etcd.errors import EtcdError

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.cluster.claims import Claims
    from zkv.cluster.joining import Joining
    from zkv.cluster.observer import EtcdSeen
    from zkv.cluster.shared_log import Tenure

_log = logging.getLogger("zkv.cluster")

ROUND_SECONDS: Final = 2.0
"""Pause between two rounds."""
COMPACT_SECONDS: Final = 300.0
"""How often etcd is compacted where nothing was trimmed."""


class Upkeep:
    """The thread of a member for what is not urgent.

    Args:
        joining: the member.
        claims: its claims.
        term: returns the newest term that is known.
        tenure: returns the term in which this member leads; None = it does not.
        seen: returns the state of etcd.
    """

    def __init__(
        self,
        joining: Joining,
        claims: Claims,
        term: Callable[[], int],
        tenure: Callable[[], Tenure | None],
        seen: Callable[[], EtcdSeen],
    ) -> None:
        self._log = joining.log
        self._claims = claims
        self._term = term
        self._tenure = tenure
        self._seen = seen
        self._compacts = joining.store.compact
        self._clock = joining.lease.clock
        self._trimmer = LogTrimmer(joining.log, joining.store.log_bytes, self._clock)
        self._compacted_at = self._clock()
        self._reported: str | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="zkv-upkeep")

    @property
    def obstacle(self) -> str | None:
        """Why the log was not trimmed; None = it was, as far as it may be."""
        return self._trimmer.obstacle

    def start(self) -> None:
        """Start the thread, once the member has written its first claim."""
        self._thread.start()

    def end_soon(self) -> None:
        """Have the thread end, without waiting for it."""
        self._closing.set()

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._round()
                self._reported = None
            except (EtcdError, DataDirError, DeposedError) as error:
                self._complain(error)
            except BaseException:  # A bug, or no memory; the thread goes on.
                _log.critical("the upkeep of the member failed; it goes on", exc_info=True)
            self._closing.wait(ROUND_SECONDS)

    def _round(self) -> None:
        """Do what is due. Raises EtcdError, DataDirError, DeposedError."""
        tenure = self._tenure()
        if tenure is not None:
            seen = self._seen()
            if seen.rings:  # First: where etcd refuses writes, the rest fails.
                self._compact(seen.revision)
            trimmed = self._trimmer.trim(tenure)
            due = self._clock() - self._compacted_at >= COMPACT_SECONDS
            self._compact(trimmed or (seen.revision if due else 0))
        self._claims.look(self._term())

    def _compact(self, revision: int) -> None:
        """Have etcd forget the states before a revision; 0 = nothing."""
        if not self._compacts or not revision:
            return
        self._compacted_at = self._clock()
        try:
            self._log.etcd.compact(revision, self._log.timeout)
        except EtcdError as error:  # Somebody has done it, or the next time does.
            _log.debug("not compacted: %s", error)

    def _complain(self, error: Exception) -> None:
        """Say an error once. Damage in etcd is that of those who read it: they judge it."""
        if self._reported is None and not self._closing.is_set():
            self._reported = str(error)
            _log.warning("%s%s", error, "" if isinstance(error, DamageError) else "; trying again")
