# Generated from async_lock.py by tools/unasync.py. Change that file, then: make generate
"""A lock for programs on many machines: who holds it has a lease, and renews it while it lives.

The lock is an entry with a time to live, made only where there is none. So it comes free by itself
when its holder crashes. Something in the background of the holder gives it a longer life again and
again.

No lease can keep a holder from acting after it has lost the lock: it may be stopped for a while
between looking and acting (Kleppmann, "How to do distributed locking", 2016). What helps is a check
where the action happens. For data in the same store that is `Lock.txn`, which commits only
while the lock is held. For anything else it is the fencing token `Lock.rev`: it grows from
holder to holder, so that a resource that remembers the largest one can refuse a former holder.

Who holds it, is the object that acquired it, in the process that did. A child by fork has a copy of
the object and holds nothing: what it is asked to release or to write is a `MisuseError`.

Each renewal gives the entry another revision, and a reply to it may be lost. So whatever has to
happen while the lock is held is sent on the condition that the entry has the revision last known;
where it has another one, the entry is read, and if it is still that of this holder, the request is
sent again with its revision. So nobody waits for a renewal, and no lock is held in this process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from zkv import checks
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
from zkv.client.pipeline import Transaction  # Not at first use, as in a handler.
from zkv.client.process import generation, is_foreign
from zkv.client.threads import Background, Condition, complete

if TYPE_CHECKING:
    from zkv.checks import Seconds
    from zkv.client.namespace import KeyOps
    from zkv.client.operations import Operation

T = TypeVar("T")

_log = logging.getLogger("zkv.client")

RENEWALS: Final = 4
"""Attempts to renew within one time to live."""
GONE: Final = frozenset({"DELETE", "EXPIRE"})


class _Hold:
    """One time of holding a lock, from `Lock.acquire` to `Lock.release`.

    Attributes:
        value: of the entry; no other time of holding has the same.
        rev: the fencing token.
        lease_rev: of the entry, since it was renewed last, as far as that is known.
        until: when the lease runs out, by the monotonic clock.
        over: whether it has been released.
        made_in: the generation of the process that holds it.
        renewer: what renews it in the background.
    """

    renewer: Background

    def __init__(self, value: dict[str, str], rev: int, until: float) -> None:
        self.value = value
        self.rev = self.lease_rev = rev
        self.until = until
        self.over = False
        self.made_in = generation()

    @property
    def is_foreign(self) -> bool:
        """Whether it is the parent, or its parent, that holds the lock."""
        return is_foreign(self.made_in)


class Lock:
    """Mutual exclusion by one key; made by `Client.lock`. Use as a context manager.

    Not reentrant. One object stands for one holder at a time; threads that exclude each other need
    an object each.

    Args:
        keyspace: where the key is.
        key: of the lock.
        ttl: seconds after which a holder that has crashed loses it; above 0, up to 10^10, or a
            `timedelta`.
        owner: who holds it, for people to read; None = the machine's name and the process's id.
    """

    def __init__(self, keyspace: KeyOps, key: str, ttl: Seconds, owner: str | None = None) -> None:
        checks.key(keyspace._prefix, key)
        self._keyspace = keyspace
        self._key = key
        self._ttl = checks.lease("ttl", ttl)
        self._owner = checks.text_or_none("owner", owner)
        self._hold: _Hold | None = None
        self._acquiring: int | None = None  # The generation of the process that acquires it now.
        self._changed = Condition()
        self._rev = 0

    __reduce__ = refuse_to_pickle

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._key!r}{' held' if self.held else ''}>"

    @property
    def rev(self) -> int:
        """The fencing token: a revision that is larger with each holder. 0: never held."""
        return self._rev

    @property
    def held(self) -> bool:
        """Whether the lease is known to run still."""
        hold = self._hold
        return hold is not None and not hold.is_foreign and time.monotonic() < hold.until

    def acquire(self, timeout: Seconds | None = None) -> bool:
        """Take the lock, or wait for it.

        Args:
            timeout: seconds to wait while somebody else holds it, up to a year, or a `timedelta`;
                None = as long as it takes, 0 = not at all.

        Returns:
            Whether it is held now.

        Raises:
            MisuseError: it has been acquired already, or somebody acquires it by this object now.
            ClientError: the server cannot be asked. If it had taken the lock, that runs out.
        """
        wait = checks.wait(timeout)
        if self._acquiring == generation():
            raise MisuseError(f"the lock {self._key!r} is being acquired by this object", False)
        self._acquiring = generation()
        try:
            return self._acquire(None if wait is None else time.monotonic() + wait)
        finally:
            self._acquiring = None

    def release(self) -> None:
        """Let it go.

        Raises:
            LockLostError: it had been lost before; somebody else may have held it meanwhile.
            MisuseError: it has not been acquired, or by the process that this one was forked from.
        """
        self._held_here()
        complete(self._release)

    def check(self) -> None:
        """Raise LockLostError unless the lease is known to run still."""
        if not self.held:
            raise self._lost()

    def txn(self) -> Transaction:
        """A transaction that is committed only while the lock is held: the server checks it.

        Like this::

            with kv.lock("report") as lock:
                report = make_report()
                with lock.txn() as txn:
                    txn.put("report/today", report)

        Its end, or ``commit``, raises a `LockLostError` if the lock is not held any more; nothing
        has been written then. Conditions of the program's own count from index 1.

        Raises:
            MisuseError: it has not been acquired, or by the process that this one was forked from.
        """
        hold = self._held_here()
        return Transaction(self._keyspace._prefix, partial(self._commit, hold))

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        try:
            self.release()
        except ClientError as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # What went wrong first matters more.

    def _held_here(self) -> _Hold:
        """How it is held. Raises MisuseError where it was not acquired here, in this process."""
        hold = self._hold
        if hold is None:
            raise MisuseError(f"the lock {self._key!r} has not been acquired", applied=False)
        if hold.is_foreign:
            text = "was acquired by the process that this one was forked from"
            raise MisuseError(f"the lock {self._key!r} {text}, and is held by that", applied=False)
        return hold

    # --- Taking and leaving it

    def _acquire(self, end: float | None) -> bool:
        while True:
            if self._hold is not None and not self._hold.is_foreign:
                raise MisuseError(f"the lock {self._key!r} has been acquired already", False)
            name = self._owner
            if name is None:
                name = f"{socket.gethostname()}:{os.getpid()}"
            value = {"owner": name, "token": secrets.token_hex(8)}
            try:
                complete(partial(self._take, value), partial(self._withdraw, value))
            except ConflictError as conflict:
                if not self._wait(conflict.rev, end):
                    return False
            else:
                return True

    def _take(self, value: dict[str, str]) -> None:
        began = time.monotonic()
        rev = self._keyspace.put(self._key, value, ttl=self._ttl, create=True)
        hold = _Hold(value, rev, began + self._ttl)
        hold.renewer = Background(partial(self._keep_renewing, hold), "zkv-lock")
        self._hold, self._rev = hold, rev

    def _withdraw(self, value: dict[str, str]) -> None:
        """Remove the entry if it was made for somebody who does not wait for it any more."""
        hold = self._hold
        if hold is not None and hold.value == value:
            self._release()
            return
        with contextlib.suppress(NotFoundError, ConflictError):  # It is gone.
            entry = self._keyspace.get_entry(self._key)
            if entry.value == value:
                self._keyspace.delete(self._key, if_rev=entry.rev)

    def _release(self) -> None:
        hold, self._hold = self._hold, None
        if hold is None:
            return  # Somebody else has been quicker.
        hold.over = True
        self._changed.wake()
        self._while_held(hold, self._remove)
        hold.renewer.join()

    def _remove(self, rev: int) -> bool:
        return self._keyspace.delete(self._key, if_rev=rev)

    def _wait(self, since: int, end: float | None) -> bool:
        """Wait until the entry at revision ``since`` is gone; False = not in time."""
        if end is not None and time.monotonic() >= end:
            return False
        with self._keyspace.watch(self._key, since=since) as watch:
            while (
                change := watch.next(None if end is None else max(0, end - time.monotonic()))
            ) is not None:
                if change.op == RESET or (change.key == self._key and change.op in GONE):
                    return True
        return False

    # --- While it is held

    def _keep_renewing(self, hold: _Hold) -> None:
        while not self._changed.wait_for(lambda: hold.over, self._ttl / RENEWALS):
            try:
                self._renew(hold)
            except OSError:  # No reply, or too many open files: there may be time for another try.
                continue
            except ClientError as error:
                if isinstance(error, RefusedError) and error.retry:
                    continue
                hold.until = 0.0
                if not hold.over:
                    _log.warning("the lock %r is lost: %s", self._key, error)
                return

    def _renew(self, hold: _Hold) -> None:
        began = time.monotonic()
        hold.lease_rev = self._while_held(hold, self._touch)
        hold.until = began + self._ttl

    def _touch(self, rev: int) -> int:
        txn = self._keyspace.txn()
        txn.check(self._key, rev)
        txn.touch(self._key, self._ttl)
        txn.commit()
        return txn.rev

    def _commit(self, hold: _Hold, message: Operation[list[Any]]) -> list[Any]:
        """Run a transaction on the further condition that the lock is held."""
        if hold.over or hold.is_foreign:
            raise self._lost()
        conditions = message.fields.get("if", [])
        key = self._keyspace._prefix + self._key

        def run(rev: int) -> list[Any]:
            message.fields["if"] = [(key, rev), *conditions]
            return self._keyspace._run(message)

        return self._while_held(hold, run)

    def _while_held(self, hold: _Hold, work: Callable[[int], T]) -> T:
        """What ``work`` gives, which is a request on the condition that the entry has a revision.

        Raises:
            LockLostError: the entry is not that of this holder any more.
        """
        while True:
            try:
                return work(hold.lease_rev)
            except ConflictError as conflict:
                if conflict.key != self._keyspace._prefix + self._key:
                    raise
                hold.lease_rev = self._current_rev(hold)

    def _current_rev(self, hold: _Hold) -> int:
        """The revision of the entry. Raises LockLostError where it is not that of this holder."""
        with contextlib.suppress(NotFoundError):
            entry = self._keyspace.get_entry(self._key)
            if entry.value == hold.value:
                return entry.rev
        raise self._lost()

    def _lost(self) -> LockLostError:
        return LockLostError(f"the lock {self._key!r} is not held any more", applied=False)
