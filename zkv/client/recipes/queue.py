# Generated from async_queue.py by tools/unasync.py. Change that file, then: make generate
"""A queue of jobs. Each job is done at least once, even if workers crash.

A job is an entry under ``jobs/`` whose key is a growing number. A worker that takes a job holds a
lock under ``taken/`` with the same number, and renews its lease while it runs. `Job.done`
removes the job in a transaction that requires the lock, so a worker that has lost its lease cannot
finish the job a second time. If a worker crashes, its job is free again once the lease has expired.

`Queue.take` looks at the jobs in order, so it is slower the more jobs are taken at a time:
this queue is meant for dozens of workers, not for thousands.

A job whose value cannot be decoded stays in the queue and stays free. Each queue object that meets
it raises the error once, and then skips it: another worker may have the codec for it.
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
"""Zero-padded, so that keys are in the order of the numbers."""


class Job:
    """A job that this worker has taken.

    As a context manager it calls `done` at the end of the block, or `release` if an error was
    raised; neither if the block has called one of them itself.

    Attributes:
        value: the value passed to `Queue.put`.
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
        """Remove the job from the queue: it is done.

        Raises:
            LockLostError: the lease had expired; another worker may do the job, or has done it.
            MisuseError: `done` or `release` has been called already, or the parent process took
                the job before a fork.
        """
        txn = self._lock.txn()
        txn.delete(self._key)
        try:
            txn.commit()
        finally:
            self.release()

    def release(self) -> None:
        """Return the job to the queue. Raises MisuseError as `done` does."""
        try:
            self._lock.release()
        except LockLostError:
            pass  # The job is free already.


class Queue:
    """Gives out jobs in the order in which they were put; made by `Client.queue`.

    Args:
        keyspace: the client or namespace that keeps the jobs.
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
        """Return the number of jobs that are not done."""
        return self._kept.count("jobs/")

    def put(self, value: Any) -> None:
        """Add a job at the end."""
        number = self._kept.incr("last")
        self._kept.put(NUMBER.format(number), value)

    def take(self, timeout: Seconds | None = None) -> Job | None:
        """Take the first free job, or wait for one. Returns None if the time is up.

        Args:
            timeout: seconds to wait, up to a year, or a `timedelta`; None = no limit, 0 = do not
                wait.

        Raises:
            BadValueError: the value of a job cannot be decoded. The job stays in the queue, for
                workers with another codec, until you delete its ``key``; this queue object skips
                it from now on.
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
        """Iterate over the keys of jobs that seem free and may be decoded."""
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
        except NotFoundError:  # Another worker has done it meanwhile.
            lock.release()
            return None
        except BaseException as error:
            if isinstance(error, BadValueError):
                self._undecodable.add(key)
            with contextlib.suppress(ClientError):  # The first error matters more.
                lock.release()
            raise
        return Job(value, key, lock)

    def _wait(self, since: int, end: float | None) -> bool:
        """Wait until another job may be free than at ``since``. Returns False if time is up."""
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
