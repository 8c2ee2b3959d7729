"""The persistence thread: writes snapshots, so that no request waits for one it did not ask for.

A snapshot is written when something changed since the last one and the interval has passed, when
SNAPSHOT asks, and at the end. A snapshot of a large store takes long; the next one then waits until
ten times as long has passed, so that saving takes about a tenth of the time at most.

Other threads talk to this one through its inbox only, and hear back through futures.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

from zkv.errors import ReadOnlyError, ShuttingDownError

if TYPE_CHECKING:
    from zkv.durability.storage import Storage
    from zkv.keyspace import Keyspace

_log = logging.getLogger("zkv.durability")

REST_FACTOR: Final = 10
"""After a snapshot that took t seconds, the next periodic one waits at least this many times t."""


class Persistence:
    """Saves a keyspace into a storage from a thread of its own.

    Args:
        keyspace: what to save; its content is taken to be on disk already at its present revision.
        storage: where to; used by the thread alone between `start` and `close`.
        interval: seconds between snapshots, while there are changes.
    """

    def __init__(self, keyspace: Keyspace, storage: Storage, interval: float) -> None:
        self._keyspace = keyspace
        self._storage = storage
        self._interval = interval
        self._inbox: SimpleQueue[Future[int] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="zkv-persistence")
        self._final: Future[int] = Future()
        self._saved_rev = keyspace.rev
        self._took = 0.0
        self._failing = False
        self._written = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def snapshot(self) -> Future[int]:
        """Have a snapshot on disk of everything committed so far; the future gives its revision.

        The future fails with ReadOnlyError where it cannot be written.
        """
        future: Future[int] = Future()
        self._inbox.put(future)
        return future

    def close(self) -> int:
        """Write the final snapshot, end the thread and return the revision that is saved.

        The keyspace must be sealed before. Raises ReadOnlyError where it cannot be written.
        """
        self._inbox.put(None)
        self._thread.join()
        return self._final.result()

    def statistics(self) -> dict[str, int | float]:
        """``snapshots`` written, revision of the last, and seconds that it took."""
        return {
            "snapshots": self._written,
            "snapshot_rev": self._saved_rev,
            "snapshot_seconds": round(self._took, 3),
        }

    @property
    def saved_rev(self) -> int:
        """The newest revision that is on disk."""
        return self._saved_rev

    def _run(self) -> None:
        asked: list[Future[int] | None] = []
        while None not in asked:
            asked = self._wait(max(self._interval, REST_FACTOR * self._took))
            outcome = self._save_changes()
            for future in asked:
                _settle(self._final if future is None else future, outcome)
        self._refuse_the_rest()

    def _wait(self, seconds: float) -> list[Future[int] | None]:
        """What other threads have asked for; empty once ``seconds`` have passed."""
        asked: list[Future[int] | None] = []
        with contextlib.suppress(Empty):
            asked.append(self._inbox.get(timeout=seconds))
            while True:
                asked.append(self._inbox.get_nowait())
        return asked

    def _save_changes(self) -> int | ReadOnlyError:
        """Save if anything changed; the revision saved, or why it could not be."""
        if self._keyspace.rev == self._saved_rev:
            return self._saved_rev
        view = self._keyspace.view()
        started = time.monotonic()
        try:
            path = self._storage.save(view)
        except OSError as error:
            return self._failed(error)
        except Exception:
            _log.exception("the snapshot failed")
            return ReadOnlyError("the snapshot failed; the server's log says why")
        finally:
            view.close()
            self._took = time.monotonic() - started
        self._saved_rev = view.rev
        self._written += 1
        if self._failing:
            self._failing = False
            _log.warning("snapshots can be written again")
        _log.info("wrote %s: %d entries in %.2f s", path, view.count, self._took)
        return view.rev

    def _failed(self, error: OSError) -> ReadOnlyError:
        reason = f"the snapshot cannot be written: {error.strerror or error}"
        if not self._failing:  # Said once, not at every try.
            self._failing = True
            _log.error("%s; trying again every %g s", reason, self._interval)
        return ReadOnlyError(reason)

    def _refuse_the_rest(self) -> None:
        for future in self._wait(0):
            if future is not None:
                _settle(future, ShuttingDownError("the server is stopping"))


def _settle(future: Future[int], outcome: int | Exception) -> None:
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
