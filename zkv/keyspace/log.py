"""The face of a log of commits: where they go before they are applied, and when they are safe.

Strategy: `append` and `extend` are called under the store's lock and only queue, so the order of
the log is that of the revisions. `commit` is called outside of it, and is where a thread waits. So
a log decides by itself what it takes to make a commit last: `zkv.durability.wal.Wal` writes files,
`MemoryLog` does nothing.

`tests/keyspace/test_commit_log.py` holds every log to these invariants: numbers go up by one, from
1; what is safe never goes back within an epoch; what a rollback left is told by `survived`;
`on_safe` is called, in any thread, once there are commits that have become safe.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.keyspace.change import Packed

NOTHING: Final = (-1, -1)
"""Older than any commit: a revision, and a number in the log."""


class ChangeLog(Protocol):
    """What the store asks of a log. Each commit gets a log sequence number, 1, 2, 3 ..."""

    @property
    def safe_lsn(self) -> int:
        """The newest commit, by its number, that will not be rolled back."""

    @property
    def safe_rev(self) -> int:
        """The newest revision that may be told to anyone, and will not be rolled back."""

    @property
    def last_lsn(self) -> int:
        """The number of the newest commit. Changes under the store's lock."""

    @property
    def takes_commits(self) -> bool:
        """Whether nothing is wrong: commits would be taken. Store's lock held."""

    def append(self, commit: Packed) -> int:
        """Take a commit, store's lock held; returns its number.

        Raises ReadOnly where it is not taken.
        """

    def extend(self, commits: list[Packed]) -> int:
        """Take commits in one step; the number of the last one.

        Store's lock held, and while commits are taken.
        """


class CommitLog(ChangeLog, Protocol):
    """What the engine asks of a log, besides.

    Attributes:
        on_safe: called, in any thread, when commits have become safe.
    """

    on_safe: Callable[[], None]

    @property
    def durable_rev(self) -> int:
        """The newest revision that is on disk."""

    @property
    def epoch(self) -> int:
        """How often commits have been rolled back."""

    @property
    def syncs_quickly(self) -> bool:
        """Whether a thread for which others wait may wait for a commit to last."""

    def attach(
        self, lock: AbstractContextManager[object], roll_back: Callable[[int], None], /
    ) -> None:
        """Say what the log belongs to.

        Args:
            lock: the store's, under which commits are appended.
            roll_back: ``roll_back(lsn)`` undoes every commit after ``lsn``; called with that lock.
        """

    def commit(self, lsn: int, durable: bool, patient: bool = True) -> bool:
        """Return once every commit up to ``lsn`` is written and, if ``durable``, lasts.

        Args:
            lsn: number of the newest commit that it is about.
            durable: whether it has to last whatever happens to the machine.
            patient: whether others are waited for; see `zkv.durability.wal.Wal.commit`.

        Returns:
            Whether that is so. Always, where it is patient.

        Raises:
            ReadOnly: it cannot be; what is not safe has been rolled back.
        """

    def survived(self, epoch: int) -> tuple[int, int]:
        """The newest revision, and the newest number, that were left when ``epoch`` ended.

        `NOTHING` if that is not known, or it has not ended.
        """

    def close(self) -> None:
        """Let go of everything; what is queued is lost."""


class MemoryLog:
    """The log of a store that is gone with its process: it forgets commits, and all are safe."""

    safe_lsn: Final = 2**63
    safe_rev: Final = 2**63
    durable_rev: Final = 0
    epoch: Final = 0
    takes_commits: Final = True
    syncs_quickly: Final = True

    def __init__(self) -> None:
        self.last_lsn = 0
        self.on_safe: Callable[[], None] = lambda: None

    def attach(
        self, lock: AbstractContextManager[object], roll_back: Callable[[int], None], /
    ) -> None:
        """Nothing is ever rolled back."""

    def append(self, commit: Packed) -> int:
        """Forget the commit; returns its number."""
        return self.extend([commit])

    def extend(self, commits: list[Packed]) -> int:
        """Forget the commits; the number of the last one.

        Whoever is told of it waits for the store's lock, and so finds them applied.
        """
        self.last_lsn += len(commits)
        self.on_safe()
        return self.last_lsn

    def commit(self, lsn: int, durable: bool, patient: bool = True) -> bool:
        """There is nothing to wait for."""
        return True

    def survived(self, epoch: int) -> tuple[int, int]:
        """No epoch ends."""
        return NOTHING

    def close(self) -> None:
        """Nothing is held."""
