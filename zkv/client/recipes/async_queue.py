"""A queue of jobs. Each job is done at least once, even if workers crash.

A job is an entry under ``jobs/`` whose key is a growing number. A worker that takes a job holds a
lock under ``taken/`` with the same number, and renews its lease while it runs. `AsyncJob.done`
removes the job in a transaction that requires the lock, so a worker that has lost its lease cannot
finish the job a second time. If a worker crashes, its job is free again once the lease has expired.

`AsyncQueue.take` looks at the jobs in order, so it is slower the more jobs are taken at a time:
this queue is meant for dozens of workers, not for thousands.

A job whose value cannot be decoded stays in the queue and stays free. Each queue object that meets
it raises the error once, and then skips it: another worker may have the codec for it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final, Self

from zkv import checks
from zkv.client.connection import refuse_to_pickle
from zkv.client.errors import BadValueError, ClientError, LockLostError, NotFoundError
from zkv.client.follower import RESET
from zkv.client.recipes.async_lock import AsyncLock

if TYPE_CHECKING:
    from zkv.checks import Seconds
    from zkv.client.async_namespace import AsyncKeyOps

NUMBER: Final = "jobs/{:020d}"
"""Zero-padded, so that keys are in the order of the numbers."""


class AsyncJob:
    """A job that this worker has taken.

    As a context manager it calls `done` at the end of the block, or `release` if an error was
    raised; neither if the block has called one of them itself.

    Attributes:
        value: the value passed to `AsyncQueue.put`.
    """

    def __init__(self, value: Any, key: str, lock: AsyncLock) -> None:
        self.value = value
        self._key = key
        self._lock = lock

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._key!r} {checks.shown(self.value)}>"

    __reduce__ = refuse_to_pickle

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._lock._hold is None:
            return
        if error is None:
            await self.done()
        else:
            await self._lock.__aexit__(kind, error, traceback)

    async def done(self) -> None:
        """Remove the job from the queue: it is done.

        Raises:
            LockLostError: the lease had expired; another worker may do the job, or has done it.
            MisuseError: `done` or `release` has been called already, or the parent process took
                the job before a fork.
        """
        txn = self._lock.txn()
        txn.delete(self._key)
        try:
            await txn.commit()
        finally:
            await self.release()

    async def release(self) -> None:
        """Return the job to the queue. Raises MisuseError as `done` does."""
        try:
            await self._lock.release()
        except LockLostError:
            pass  # The job is free already.


class AsyncQueue:
    """Gives out jobs in the order in which they were put; made by `AsyncClient.queue`.

    Args:
        keyspace: the client or namespace that keeps the jobs.
        prefix: of their keys.
        lease: seconds after which a job is free again if its worker has crashed; above 0, up to
            10^10, or a `timedelta`.
    """

    def __init__(self, keyspace: AsyncKeyOps, prefix: str, lease: Seconds) -> None:
        self._kept = keyspace.namespace(f"{checks.text('prefix', prefix)}/")
        self._lease = checks.lease("lease", lease)
        self._undecodable = set[str]()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._kept._prefix!r}>"

    async def count(self) -> int:  # sync: def __len__(self) -> int:
        """Return the number of jobs that are not done."""
        return await self._kept.count("jobs/")

    async def put(self, value: Any) -> None:
        """Add a job at the end."""
        number = await self._kept.incr("last")
        await self._kept.put(NUMBER.format(number), value)

    async def take(self, timeout: Seconds | None = None) -> AsyncJob | None:  # noqa: ASYNC109
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
            since: int = (await self._kept._client.info())["rev"]
            async for key in self._free():
                job = await self._try(key)
                if job is not None:
                    return job
            if not await self._wait(since, end):
                return None

    async def _free(self) -> AsyncIterator[str]:
        """Iterate over the keys of jobs that seem free and may be decoded."""
        taken = {
            entry.key.removeprefix("taken/")
            async for entry in self._kept.scan("taken/", values=False)
        }
        async for entry in self._kept.scan("jobs/", values=False):
            if entry.key not in taken and entry.key not in self._undecodable:
                yield entry.key

    async def _try(self, key: str) -> AsyncJob | None:
        lock = AsyncLock(self._kept, f"taken/{key}", self._lease)
        if not await lock.acquire(0):
            return None
        try:
            value = (await self._kept.get_entry(key)).value
        except NotFoundError:  # Another worker has done it meanwhile.
            await lock.release()
            return None
        except BaseException as error:
            if isinstance(error, BadValueError):
                self._undecodable.add(key)
            with contextlib.suppress(ClientError):  # The first error matters more.
                await lock.release()
            raise
        return AsyncJob(value, key, lock)

    async def _wait(self, since: int, end: float | None) -> bool:
        """Wait until another job may be free than at ``since``. Returns False if time is up."""
        if end is not None and time.monotonic() >= end:
            return False
        async with self._kept.watch(since=since) as watch:
            while (
                change := await watch.next(None if end is None else max(0, end - time.monotonic()))
            ) is not None:
                added = change.op == "PUT" and change.key.startswith("jobs/")
                freed = change.op in {"DELETE", "EXPIRE"} and change.key.startswith("taken/")
                if added or freed or change.op == RESET:
                    return True
        return False
