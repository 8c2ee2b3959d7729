"""A lock for programs on many machines. Its holder has a lease, and renews it while it runs.

The lock is an entry with a time to live, which is created only if the key is absent. So the lock
becomes free by itself if its holder crashes. In the background, the holder extends the time to live
again and again.

A lease alone cannot stop a holder from acting after it has lost the lock: the holder may be paused
between its check and its action (Kleppmann, "How to do distributed locking", 2016). The check must
be made where the action happens. For data in the same store, use `AsyncLock.txn`, which commits
only while the lock is held. For anything else, use the fencing token `AsyncLock.rev`: it grows with
each holder, so a resource that remembers the largest token can refuse former holders.

The holder is the object that acquired the lock, in the process in which it did. A forked child has
a copy of the object, but does not hold the lock: releasing or writing there raises a `MisuseError`.

Each renewal changes the revision of the entry, and its reply may be lost. So each request that
requires the lock is sent on the condition that the entry has the last known revision. If the
revision is another one, the holder reads the entry; if the entry is still its own, it sends the
request again with the new revision. So no request waits for a renewal, and no lock is held in this
process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from zkv import checks
from zkv.client.async_pipeline import AsyncTransaction  # Not at first use, as in a handler.
from zkv.client.connection import refuse_to_pickle
from zkv.client.errors import (
    ClientError,
    ConflictError,
    LockLostError,
    MisuseError,
    NotFoundError,
    RefusedError,
)
from zkv.client.follower import RESET
from zkv.client.process import generation, is_foreign
from zkv.client.tasks import AsyncBackground, AsyncCondition, complete

if TYPE_CHECKING:
    from zkv.checks import Seconds
    from zkv.client.async_namespace import AsyncKeyOps
    from zkv.client.operations import Operation

T = TypeVar("T")

_log = logging.getLogger("zkv.client")

RENEWALS: Final = 4
"""Number of attempts to renew within one time to live."""
GONE: Final = frozenset({"DELETE", "EXPIRE"})


class _Hold:
    """One time of holding a lock, from `AsyncLock.acquire` to `AsyncLock.release`.

    Attributes:
        value: of the entry, unique to this hold.
        rev: the fencing token.
        lease_rev: the last known revision of the entry; each renewal changes it.
        until: when the lease expires, by the monotonic clock.
        over: True once the lock has been released.
        made_in: the generation of the process that holds it.
        renewer: the background work that renews it.
    """

    renewer: AsyncBackground

    def __init__(self, value: dict[str, str], rev: int, until: float) -> None:
        self.value = value
        self.rev = self.lease_rev = rev
        self.until = until
        self.over = False
        self.made_in = generation()

    @property
    def is_foreign(self) -> bool:
        """True if the lock was acquired in a process that this one was forked from."""
        return is_foreign(self.made_in)


class AsyncLock:
    """Mutual exclusion by one key; made by `AsyncClient.lock`. Use as a context manager.

    It is not reentrant. One object is one holder at a time; each task that competes for the lock
    needs its own object.

    Args:
        keyspace: the client or namespace with the key.
        key: of the lock.
        ttl: seconds after which a holder that has crashed loses the lock; above 0, up to 10^10, or
            a `timedelta`.
        owner: the holder's name, for people to read; None = host name and process id.
    """

    def __init__(
        self, keyspace: AsyncKeyOps, key: str, ttl: Seconds, owner: str | None = None
    ) -> None:
        checks.key(keyspace._prefix, key)
        self._keyspace = keyspace
        self._key = key
        self._ttl = checks.lease("ttl", ttl)
        self._owner = checks.text_or_none("owner", owner)
        self._hold: _Hold | None = None
        self._acquiring: int | None = None  # The generation of the process that acquires it now.
        self._changed = AsyncCondition()
        self._rev = 0

    __reduce__ = refuse_to_pickle

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._key!r}{' held' if self.held else ''}>"

    @property
    def rev(self) -> int:
        """The fencing token: a revision that grows with each holder; 0 = never held."""
        return self._rev

    @property
    def held(self) -> bool:
        """True if the lease has certainly not expired."""
        hold = self._hold
        return hold is not None and not hold.is_foreign and time.monotonic() < hold.until

    async def acquire(self, timeout: Seconds | None = None) -> bool:  # noqa: ASYNC109
        """Acquire the lock; wait for it if another holder has it.

        Args:
            timeout: seconds to wait, up to a year, or a `timedelta`; None = no limit, 0 = do not
                wait.

        Returns:
            True if the lock was acquired, False if the time is up.

        Raises:
            MisuseError: this object has acquired the lock already, or is acquiring it now.
            ClientError: a request failed. If it had acquired the lock, its lease expires.
        """
        wait = checks.wait(timeout)
        if self._acquiring == generation():
            raise MisuseError(f"this object is already acquiring the lock {self._key!r}", False)
        self._acquiring = generation()
        try:
            return await self._acquire(None if wait is None else time.monotonic() + wait)
        finally:
            self._acquiring = None

    async def release(self) -> None:
        """Release the lock.

        Raises:
            LockLostError: the lock had been lost; another holder may have had it meanwhile.
            MisuseError: the lock has not been acquired, or the parent process acquired it before
                a fork.
        """
        self._held_here()
        await complete(self._release)

    def check(self) -> None:
        """Raise LockLostError unless the lease has certainly not expired."""
        if not self.held:
            raise self._lost()

    def txn(self) -> AsyncTransaction:
        """Return a transaction that commits only while the lock is held: the server checks it.

        Example::

            async with kv.lock("report") as lock:
                report = await make_report()
                async with lock.txn() as txn:
                    txn.put("report/today", report)

        The end of its block, or ``commit``, raises a `LockLostError` if the lock is no longer held;
        then nothing has been written. Your own conditions have the indexes from 1 on.

        Raises:
            MisuseError: the lock has not been acquired, or the parent process acquired it before
                a fork.
        """
        hold = self._held_here()
        return AsyncTransaction(self._keyspace._prefix, partial(self._commit, hold))

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
            error.add_note(str(failure))  # The first error matters more.

    def _held_here(self) -> _Hold:
        """Return the hold. Raises MisuseError unless the lock was acquired in this process."""
        hold = self._hold
        if hold is None:
            raise MisuseError(f"the lock {self._key!r} has not been acquired", applied=False)
        if hold.is_foreign:
            text = "was acquired, and is held, by the process from which this one was forked"
            raise MisuseError(f"the lock {self._key!r} {text}", applied=False)
        return hold

    # --- Acquiring and releasing

    async def _acquire(self, end: float | None) -> bool:
        while True:
            if self._hold is not None and not self._hold.is_foreign:
                raise MisuseError(f"this object has already acquired the lock {self._key!r}", False)
            name = self._owner
            if name is None:
                name = f"{socket.gethostname()}:{os.getpid()}"
            value = {"owner": name, "token": secrets.token_hex(8)}
            try:
                await complete(partial(self._take, value), partial(self._withdraw, value))
            except ConflictError as conflict:
                if not await self._wait(conflict.rev, end):
                    return False
            else:
                return True

    async def _take(self, value: dict[str, str]) -> None:
        began = time.monotonic()
        rev = await self._keyspace.put(self._key, value, ttl=self._ttl, create=True)
        hold = _Hold(value, rev, began + self._ttl)
        hold.renewer = AsyncBackground(partial(self._keep_renewing, hold), "zkv-lock")
        self._hold, self._rev = hold, rev

    async def _withdraw(self, value: dict[str, str]) -> None:
        """Remove the entry if it was made for a call that has been cancelled or interrupted."""
        hold = self._hold
        if hold is not None and hold.value == value:
            await self._release()
            return
        with contextlib.suppress(NotFoundError, ConflictError):  # It is gone.
            entry = await self._keyspace.get_entry(self._key)
            if entry.value == value:
                await self._keyspace.delete(self._key, if_rev=entry.rev)

    async def _release(self) -> None:
        hold, self._hold = self._hold, None
        if hold is None:
            return  # Another call has released it.
        hold.over = True
        self._changed.wake()
        await self._while_held(hold, self._remove)
        await hold.renewer.join()

    async def _remove(self, rev: int) -> bool:
        return await self._keyspace.delete(self._key, if_rev=rev)

    async def _wait(self, since: int, end: float | None) -> bool:
        """Wait until the entry of revision ``since`` is removed. Returns False if time is up."""
        if end is not None and time.monotonic() >= end:
            return False
        async with self._keyspace.watch(self._key, since=since) as watch:
            while (
                change := await watch.next(None if end is None else max(0, end - time.monotonic()))
            ) is not None:
                if change.op == RESET or (change.key == self._key and change.op in GONE):
                    return True
        return False

    # --- While the lock is held

    async def _keep_renewing(self, hold: _Hold) -> None:
        while not await self._changed.wait_for(lambda: hold.over, self._ttl / RENEWALS):
            try:
                await self._renew(hold)
            except OSError:  # No reply, or too many open files: there may be time to try again.
                continue
            except ClientError as error:
                if isinstance(error, RefusedError) and error.retry:
                    continue
                hold.until = 0.0
                if not hold.over:
                    _log.warning("the lock %r is lost: %s", self._key, error)
                return

    async def _renew(self, hold: _Hold) -> None:
        began = time.monotonic()
        hold.lease_rev = await self._while_held(hold, self._touch)
        hold.until = began + self._ttl

    async def _touch(self, rev: int) -> int:
        txn = self._keyspace.txn()
        txn.check(self._key, rev)
        txn.touch(self._key, self._ttl)
        await txn.commit()
        return txn.rev

    async def _commit(self, hold: _Hold, message: Operation[list[Any]]) -> list[Any]:
        """Run a transaction on the further condition that the lock is held."""
        if hold.over or hold.is_foreign:
            raise self._lost()
        conditions = message.fields.get("if", [])
        key = self._keyspace._prefix + self._key

        async def run(rev: int) -> list[Any]:
            message.fields["if"] = [(key, rev), *conditions]
            return await self._keyspace._run(message)

        return await self._while_held(hold, run)

    async def _while_held(self, hold: _Hold, work: Callable[[int], Awaitable[T]]) -> T:
        """Run ``work``, a request on the condition that the entry has the given revision.

        Raises:
            LockLostError: the entry is no longer that of this holder.
        """
        while True:
            try:
                return await work(hold.lease_rev)
            except ConflictError as conflict:
                if conflict.key != self._keyspace._prefix + self._key:
                    raise
                hold.lease_rev = await self._current_rev(hold)

    async def _current_rev(self, hold: _Hold) -> int:
        """Read the entry's revision. Raises LockLostError if the entry is not this holder's."""
        with contextlib.suppress(NotFoundError):
            entry = await self._keyspace.get_entry(self._key)
            if entry.value == hold.value:
                return entry.rev
        raise self._lost()

    def _lost(self) -> LockLostError:
        return LockLostError(f"the lock {self._key!r} is no longer held", applied=False)
