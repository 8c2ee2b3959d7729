"""A pin: holds the log in etcd for a member that fetches a snapshot, until it has caught up.

The leader does not trim beyond a pin that is moved. A thread moves it every `MOVE_SECONDS`, until
it is released. If the process is killed, it is moved no more, and lapses: the leader measures with
its own clock how long it has seen the pin unchanged (`zkv.cluster.trimming`), so no two clocks are
compared.

A pin is placed at the beginning of the log, under the condition that the log still begins there.
Once it is known which snapshot comes, it is moved up to that.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from typing import TYPE_CHECKING, Final

from zkv.cluster.records import PinRecord
from zkv.etcd.errors import EtcdError

if TYPE_CHECKING:
    from zkv.cluster.shared_log import Seen, SharedLog

_log = logging.getLogger("zkv.cluster")

MOVE_SECONDS: Final = 10.0
"""How often a pin is moved."""


class Pin:
    """A pin of this process. One thread places and releases it.

    Args:
        log: the log in etcd.
        member: the member that needs the log.
    """

    def __init__(self, log: SharedLog, member: str) -> None:
        self._log = log
        self._member = member
        self._nonce = secrets.token_hex(8)
        self._lock = threading.Lock()  # Protects the attributes below.
        self._lsn = 0
        self._moves = 0
        self._revision: int | None = None
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    def place(self, seen: Seen) -> bool:
        """Have the log stay from its beginning on; return False if it begins later by now.

        Raises EtcdError.
        """
        with self._lock:
            self._lsn = seen.first.lsn
            self._revision = self._log.pin(self._record(), seen)
            placed = self._revision is not None
        if placed and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="zkv-pin", daemon=True)
            self._thread.start()
        return placed

    def move_to(self, lsn: int) -> None:
        """Have the log stay from a later commit on. Etcd hears of it when the pin is moved next."""
        with self._lock:
            self._lsn = max(self._lsn, lsn)

    def release(self) -> None:
        """Remove it, if etcd answers. May be called again."""
        if self._released.is_set():
            return
        self._released.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock, contextlib.suppress(EtcdError):
            if self._revision is not None:
                self._log.unpin(self._member, self._revision)
            self._revision = None

    def _run(self) -> None:
        while not self._released.wait(MOVE_SECONDS):
            with self._lock:
                self._move()

    def _move(self) -> None:
        if self._revision is None:
            return
        self._moves += 1
        try:
            self._revision = self._log.move_pin(self._record(), self._revision)
        except EtcdError as error:
            _log.warning("the pin of the log was not moved: %s", error)
            self._revision = None
        if self._revision is None:
            self._find()
        if self._revision is None:
            _log.warning("the pin of the log has lapsed: the log may be trimmed")

    def _find(self) -> None:
        """Find out at which revision the pin is: it may have been moved."""
        with contextlib.suppress(EtcdError):
            pins = self._log.pins()
            mine = [each.revision for each in pins if each.record.nonce == self._nonce]
            self._revision = mine[0] if mine else None

    def _record(self) -> PinRecord:
        return PinRecord(self._member, self._lsn, self._nonce, self._moves)
