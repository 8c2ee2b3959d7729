"""The interface of a log: it takes commits before they are applied, and knows which are safe.

Strategy: `append` and `extend` are called under the keyspace's lock and only queue, so commits are
logged in the order of their revisions. `commit` is called without that lock, and may wait. Each log
decides what makes a commit safe: `zkv.durability.wal.Wal` writes files, `MemoryLog` does nothing.

`tests/keyspace/test_commit_log.py` tests every log for these invariants: log numbers increase by
one; after a rollback they go on after the last commit that is left; `safe_lsn` and `safe_rev` never
decrease within an epoch; `survived` tells what a rollback left; `on_safe` is called, in any thread,
after commits have become safe.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


NOTHING: Final = (-1, -1)
"""A revision and a log number, both lower than those of any commit."""


class ChangeLog(Protocol):
    """A log, as the keyspace uses it. Commits have log sequence numbers (LSN) 1, 2, 3 ...

    They count on across restarts. Each commit's payload has its number.
    """

    @property
    def safe_lsn(self) -> int:
        """The number of the newest safe commit: it will not be rolled back."""

    @property
    def safe_rev(self) -> int:
        """The newest safe revision: it may be revealed, and will not be rolled back."""

    @property
    def last_lsn(self) -> int:
        """The number of the newest commit. Changes under the keyspace's lock."""

    @property
    def takes_commits(self) -> bool:
        """True unless the log refuses commits. Keyspace's lock held."""

    def append(self, payload: bytes, removes: bool = False) -> int:
        """Queue a commit, and return its number. Keyspace's lock held.

        Args:
            payload: the commit.
            removes: True if it only removes entries.

        Raises ReadOnly if the log refuses commits.
        """

    def extend(self, payloads: list[bytes], size: int) -> int:
        """Queue commits of so many bytes in one step, and return the number of the last one.

        Keyspace's lock held, and `takes_commits` must be true.
        """


class CommitLog(ChangeLog, Protocol):
    """A log, as the engine uses it.

    Attributes:
        on_safe: called, in any thread, after commits have become safe. After those of the front
            only if it tells somebody something, and now and then.
        listeners: whom it tells something while they are true: see `Engine.when_safe`.
    """

    on_safe: Callable[[], None]
    listeners: tuple[object, ...]

    @property
    def appended_bytes(self) -> int:
        """Bytes of all commits that were queued and not rolled back, in this process."""

    @property
    def safe_bytes(self) -> int:
        """Bytes of those that are safe. What is missing is in memory until the disk has it."""

    @property
    def kept_bytes(self) -> int:
        """Bytes of those that the log itself keeps. Beyond these, some may wait for others."""

    @property
    def durable_rev(self) -> int:
        """The newest revision on disk."""

    @property
    def epoch(self) -> int:
        """The number of rollbacks so far; below 0 while this server may not lead.

        Whoever runs commands compares it before and after them: see `zkv.broker.waiting`.
        """

    @property
    def syncs_quickly(self) -> bool:
        """True if recent syncs were so quick that the front may wait for one."""

    @property
    def confirms_reads(self) -> bool:
        """True if a reply may leave only after a `commit` that began after it was made.

        Others are asked then if this server still leads: see `zkv.cluster.wal`.
        """

    def attach(
        self, lock: AbstractContextManager[object], roll_back: Callable[[int], None], /
    ) -> None:
        """Connect the log to its keyspace.

        Args:
            lock: the keyspace's lock, held during `append` and `extend`.
            roll_back: ``roll_back(lsn)`` undoes every commit after ``lsn``; called with that lock.
        """

    def commit(self, lsn: int, durable: bool, patient: bool = True) -> bool:
        """Return once every commit up to ``lsn`` is written and, if ``durable``, on disk.

        Args:
            lsn: a log number.
            durable: sync the disk, too.
            patient: wait for other threads that write; see `zkv.durability.wal.Wal.commit`.

        Returns:
            True if that is done; always if ``patient``.

        Raises:
            ReadOnly: it failed; the commits that are not safe have been rolled back.
        """

    def survived(self, epoch: int) -> tuple[int, int]:
        """Return the newest revision and log number that survived the end of ``epoch``.

        `NOTHING` if the epoch has not ended, or its end is not remembered.
        """

    def close(self) -> None:
        """Release all resources; queued commits are lost."""


class MemoryLog:
    """The log of a store without files: it discards commits, and all count as safe."""

    safe_lsn: Final = 2**63 - 1
    safe_rev: Final = 2**63 - 1
    durable_rev: Final = 0
    appended_bytes: Final = 0
    safe_bytes: Final = 0
    kept_bytes: Final = 0
    epoch: Final = 0
    takes_commits: Final = True
    syncs_quickly: Final = True
    confirms_reads: Final = False

    def __init__(self) -> None:
        self.last_lsn = 0
        self.on_safe: Callable[[], None] = lambda: None
        self.listeners: tuple[object, ...] = ()

    def attach(
        self, lock: AbstractContextManager[object], roll_back: Callable[[int], None], /
    ) -> None:
        """Do nothing: nothing is ever rolled back."""

    def append(self, payload: bytes, removes: bool = False) -> int:
        """Discard a commit, and return its number."""
        return self.extend([payload], len(payload))

    def extend(self, payloads: list[bytes], size: int) -> int:
        """Discard commits, and return the number of the last one.

        `on_safe` is called before they are applied: those who react wait for the keyspace's lock.
        """
        self.last_lsn += len(payloads)
        self.on_safe()
        return self.last_lsn

    def commit(self, lsn: int, durable: bool, patient: bool = True) -> bool:
        """Return at once: there is nothing to wait for."""
        return True

    def survived(self, epoch: int) -> tuple[int, int]:
        """Return `NOTHING`: no epoch ever ends."""
        return NOTHING

    def close(self) -> None:
        """Do nothing: there are no resources."""
