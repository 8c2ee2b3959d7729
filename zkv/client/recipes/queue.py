# Generated from async_queue.py by tools/unasync.py. Change that file, then: make generate
"""A queue of jobs: each is done at least once, also when workers crash.

A job is an entry under ``jobs/``, its key a number that grows. Who takes it holds a lock under
``taken/`` by the same number, with a lease that lives as long as the worker. Doing it removes both,
in one transaction that the lock guards: a worker that was thought dead cannot do it once more. A
job whose worker has crashed is free again when the lease runs out.

Taking looks at the jobs in order, so it costs more the more are taken at one time: this is a queue
for dozens of workers, not for thousands.

A job whose value cannot be decoded stays in the queue, and free. Each queue object that meets it
raises the error once, and passes it over from then on: another worker may have the codec for it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Self

from zkv import checks
from zkv.client.connection import refuse_to_pickle
from zkv.client.errors import BadValueError, ClientError, LockLostError, NotFoundError
from zkv.client.follower import RESET
from zkv.client.recipes.lock import Lock

if TYPE_CHECKING:
    from zkv.checks import Seconds
    from zkv.client.namespace import KeyOps

NUMBER: Final = "jobs/{:020d}"
"""Keys order as numbers do."""


class Job:
    """A job that this worker has taken.

    As a context manager it is `done` at the end, or given back by `release` if an error was raised;
    unless the block has done either already.

    Attributes:
        value: as it was put.
    """

    def __init__(self, value: Any, key: str, lock: Lock) -> None:
        self.value = value
        self._key = key
        self._lock = lock

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._key!r} {checks.shown(self.value)}>"

    __reduce__ = refuse_to_pickle

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._lock._hold is None:
            return
        if error is None:
            self.done()
        else:
            self._lock.__exit__(kind, error, traceback)

    def done(self) -> None:
        """Remove it: it need not be done again.

        Raises:
            LockLostError: the lease had run out, and others may do it, or have done it.
            MisuseError: it has been done or given back already, or the process that this one was
                forked from has taken it.
        """
        txn = self._lock.txn()
        txn.delete(self._key)
        try:
            txn.commit()
        finally:
            self.release()

    def release(self) -> None:
        """Give it back undone. Raises MisuseError as `done` does."""
        try:
            self._lock.release()
        except LockLostError:
            pass  # So others have it already.


class Queue:
    """Jobs in the order in which they were put; made by `Client.queue`.

    Args:
        keyspace: where they are kept.
        prefix: of their keys.
        lease: seconds after which a job is free again if its worker has crashed; above 0, up to
            10^10, or a `timedelta`.
    """

    def __init__(self, keyspace: KeyOps, prefix: str, lease: Seconds) -> None:
        self._kept = keyspace.namespace(f"{checks.text('prefix', prefix)}/")
        self._lease = checks.lease("lease", lease)
        self._undecodable = set[str]()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._kept._prefix!r}>"

    def __len__(self) -> int:
        """How many are not done."""
        return self._kept.count("jobs/")

    def put(self, value: Any) -> None:
        """Add a job at the end."""
        number = self._kept.incr("last")
        self._kept.put(NUMBER.format(number), value)

    def take(self, timeout: Seconds | None = None) -> Job | None:
        """The first job that nobody has taken.

        Args:
            timeout: seconds to wait for one, up to a year, or a `timedelta`; None = as long as it
                takes, 0 = not at all.

        Returns:
            None if there was none in time.

        Raises:
            BadValueError: the value of a job cannot be decoded. The job stays, for workers with
                another codec, until its ``key`` is deleted; this queue object passes it over from
                now on.
        """
        wait = checks.wait(timeout)
        end = None if wait is None else time.monotonic() + wait
        while True:
            since: int = self._kept._client.info()["rev"]
            for key in self._free():
                job = self._try(key)
                if job is not None:
                    return job
            if not self._wait(since, end):
                return None

    def _free(self) -> Iterator[str]:
        """Keys of jobs that nobody seems to have taken, and that can be."""
        taken = {
            entry.key.removeprefix("taken/") for entry in self._kept.scan("taken/", values=False)
        }
        for entry in self._kept.scan("jobs/", values=False):
            if entry.key not in taken and entry.key not in self._undecodable:
                yield entry.key

    def _try(self, key: str) -> Job | None:
        lock = Lock(self._kept, f"taken/{key}", self._lease)
        if not lock.acquire(0):
            return None
        try:
            value = (self._kept.get_entry(key)).value
        except NotFoundError:  # It was done in the meantime.
            lock.release()
            return None
        except BaseException as error:
            if isinstance(error, BadValueError):
                self._undecodable.add(key)
            with contextlib.suppress(ClientError):  # What went wrong first matters more.
                lock.release()
            raise
        return Job(value, key, lock)

    def _wait(self, since: int, end: float | None) -> bool:
        """Wait until a job may be free that was not at revision ``since``; False = not in time."""
        if end is not None and time.monotonic() >= end:
            return False
        with self._kept.watch(since=since) as watch:
            while (
                change := watch.next(None if end is None else max(0, end - time.monotonic()))
            ) is not None:
                added = change.op == "PUT" and change.key.startswith("jobs/")
                freed = change.op in {"DELETE", "EXPIRE"} and change.key.startswith("taken/")
                if added or freed or change.op == RESET:
                    return True
        return False
