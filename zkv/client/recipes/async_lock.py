"""A lock for programs on many machines: who holds it has a lease, and renews it while it lives.

The lock is an entry with a time to live, made only where there is none. So it comes free by itself
when its holder crashes. Something in the background of the holder gives it a longer life again and
again.

No lease can keep a holder from acting after it has lost the lock: it may be stopped for a while
between looking and acting (Kleppmann, "How to do distributed locking", 2016). What helps is a check
where the action happens. For data in the same store that is `AsyncLock.txn`, which commits only
while the lock is held. For anything else it is the fencing token `AsyncLock.rev`: it grows from
holder to holder, so that a resource that remembers the largest one can refuse a former holder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final, Self

from zkv import checks
from zkv.client.errors import (
    ClientError,
    ConflictError,
    LockLostError,
    NoReplyError,
    NotFoundError,
    RefusedError,
)
from zkv.client.follower import RESET
from zkv.client.tasks import AsyncBackground, AsyncCondition, AsyncMutex, complete

if TYPE_CHECKING:
    from zkv.checks import Seconds
    from zkv.client.async_namespace import AsyncKeyOps
    from zkv.client.async_pipeline import AsyncTransaction

_log = logging.getLogger("zkv.client")

RENEWALS: Final = 4
"""Attempts to renew within one time to live."""
GONE: Final = frozenset({"DELETE", "EXPIRE"})


class AsyncLock:
    """Mutual exclusion by one key; made by `AsyncClient.lock`. Use as a context manager.

    Not reentrant. One object stands for one holder at a time; tasks that exclude each other need
    an object each.

    Args:
        keyspace: where the key is.
        key: of the lock.
        ttl: seconds after which a holder that has crashed loses it; above 0, up to 10^10, or a
            `timedelta`.
        owner: who holds it, for people to read; None = the machine's name and the process's id.
    """

    def __init__(
        self, keyspace: AsyncKeyOps, key: str, ttl: Seconds, owner: str | None = None
    ) -> None:
        checks.key(keyspace._prefix, key)
        self._keyspace = keyspace
        self._key = key
        self._ttl = checks.lease("ttl", ttl)
        checks.text_or_none("owner", owner)
        self._owner = f"{socket.gethostname()}:{os.getpid()}" if owner is None else owner
        self._value = {"owner": self._owner, "token": secrets.token_hex(8)}
        self._lease = AsyncMutex()  # Guards the three below: nobody renews meanwhile.
        self._lease_rev = 0  # Of the entry, since it was renewed last.
        self._in_doubt = False  # Whether it has been renewed since, and nobody knows.
        self._until = 0.0
        self._released = False
        self._changed = AsyncCondition()
        self._renewer: AsyncBackground | None = None
        self._rev = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._key!r}{' held' if self.held else ''}>"

    @property
    def rev(self) -> int:
        """The fencing token: a revision that is larger with each holder. 0: never held."""
        return self._rev

    @property
    def held(self) -> bool:
        """Whether the lease is known to run still."""
        return self._renewer is not None and time.monotonic() < self._until

    async def acquire(self, timeout: Seconds | None = None) -> bool:  # noqa: ASYNC109
        """Take the lock, or wait for it.

        Args:
            timeout: seconds to wait while somebody else holds it, up to a year, or a `timedelta`;
                None = as long as it takes, 0 = not at all.

        Returns:
            Whether it is held now.

        Raises:
            RuntimeError: it has been acquired already.
            ClientError: the server cannot be asked. If it had taken the lock, that runs out.
        """
        wait = checks.wait(timeout)
        if self._renewer is not None:
            raise RuntimeError(f"the lock {self._key!r} has been acquired already")
        end = None if wait is None else time.monotonic() + wait
        while True:
            began = time.monotonic()
            try:
                rev = await complete(self._put, self._withdraw)
            except ConflictError as conflict:
                if not await self._wait(conflict.rev, end):
                    return False
            else:
                self._hold(rev, began)
                return True

    async def release(self) -> None:
        """Let it go.

        Raises:
            LockLostError: it had been lost before; somebody else may have held it meanwhile.
            RuntimeError: it has not been acquired.
        """
        if self._renewer is None:
            raise RuntimeError(f"the lock {self._key!r} has not been acquired")
        await complete(self._release)

    def check(self) -> None:
        """Raise LockLostError unless the lease is known to run still."""
        if not self.held:
            raise self._lost()

    @contextlib.asynccontextmanager
    async def txn(self) -> AsyncIterator[AsyncTransaction]:
        """A transaction that is committed only while the lock is held: the server checks it.

        Like this::

            async with kv.lock("report") as lock:
                report = await make_report()
                async with lock.txn() as txn:
                    txn.put("report/today", report)

        Keep the block short: the lease is not renewed meanwhile.

        Raises:
            LockLostError: it is not held any more; nothing has been written.
        """
        async with self._lease:
            await self._settle_doubt()
            txn = self._keyspace.txn()
            txn.check(self._key, self._lease_rev)
            try:
                async with txn:
                    yield txn
            except ConflictError as conflict:
                if conflict.key == self._keyspace._prefix + self._key:
                    raise self._lost() from conflict
                raise

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self, _kind: object, error: BaseException | None, _traceback: object
    ) -> None:
        try:
            await self.release()
        except ClientError as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # What went wrong first matters more.

    async def _put(self) -> int:
        return await self._keyspace.put(self._key, self._value, ttl=self._ttl, create=True)

    async def _withdraw(self) -> None:
        """Remove the entry if it was made for somebody who does not wait for it any more."""
        try:
            entry = await self._keyspace.get_entry(self._key)
            if entry.value == self._value and self._renewer is None:
                await self._keyspace.delete(self._key, if_rev=entry.rev)
        except (NotFoundError, ConflictError):
            pass  # It is gone.

    async def _release(self) -> None:
        renewer, self._renewer = self._renewer, None
        if renewer is None:
            return  # Somebody else has been quicker.
        self._released = True
        self._changed.wake()
        await renewer.join()
        try:
            await self._settle_doubt()
            await self._keyspace.delete(self._key, if_rev=self._lease_rev)
        except ConflictError:
            raise self._lost() from None

    async def _wait(self, since: int, end: float | None) -> bool:
        """Wait until the entry at revision ``since`` is gone; False = not in time."""
        if end is not None and time.monotonic() >= end:
            return False
        async with self._keyspace.watch(self._key, since=since) as watch:
            while (
                change := await watch.next(None if end is None else max(0, end - time.monotonic()))
            ) is not None:
                if change.op == RESET or (change.key == self._key and change.op in GONE):
                    return True
        return False

    def _hold(self, rev: int, began: float) -> None:
        self._rev = self._lease_rev = rev
        self._in_doubt = False
        self._until = began + self._ttl
        self._released = False
        self._renewer = AsyncBackground(self._renew_it, "zkv-lock")

    async def _renew_it(self) -> None:
        while not await self._changed.wait_for(lambda: self._released, self._ttl / RENEWALS):
            try:
                await self._renew()
            except NoReplyError:
                continue  # There may be time for another try.
            except ClientError as error:
                if isinstance(error, RefusedError) and error.retry:
                    continue
                self._until = 0.0
                _log.warning("the lock %r is lost: %s", self._key, error)
                return

    async def _renew(self) -> None:
        async with self._lease:
            began = time.monotonic()
            await self._settle_doubt()
            txn = self._keyspace.txn()
            txn.check(self._key, self._lease_rev)
            txn.touch(self._key, self._ttl)
            self._in_doubt = True
            await txn.commit()
            self._in_doubt = False
            self._lease_rev = txn.rev
            self._until = began + self._ttl

    async def _settle_doubt(self) -> None:
        """If nobody knows what was carried out last, look. Raises ClientError."""
        if self._in_doubt:
            try:
                entry = await self._keyspace.get_entry(self._key)
            except NotFoundError:
                pass
            else:
                if entry.value == self._value:
                    self._lease_rev = entry.rev
            self._in_doubt = False

    def _lost(self) -> LockLostError:
        return LockLostError(f"the lock {self._key!r} is not held any more", applied=False)
