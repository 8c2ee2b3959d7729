"""Judges how full etcd is: refuses writes before etcd does, and says what to do if that is late.

Once etcd's quota is used up it refuses all writes, until somebody has given three commands (its
alarm NOSPACE). So the leader refuses the writes of clients when `MOST_USED` of the quota are in
use, and takes them again below: what the log lets go, by trimming and compaction, becomes free by
itself. In use is what etcd says so; the file does not shrink before it is defragmented.

If the alarm rings nevertheless, for instance since others use the same etcd, nothing can be
appended or renewed. The log says the commands; members try on, and go on when the alarm is gone.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from zkv.cluster.observer import quota_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.cluster.observer import EtcdSeen
    from zkv.cluster.wal import ReplicatedWal

_log = logging.getLogger("zkv.cluster")

MOST_USED: Final = 0.8
"""The part of the quota that may be in use."""


class Space:
    """Judges how full etcd is. One thread.

    Args:
        wal: the log of this member: refuses writes.
        quota_bytes: etcd's quota, unless it tells that by itself.
        obstacle: returns why the log was not trimmed; None = it was, as far as it may be.
    """

    def __init__(
        self, wal: ReplicatedWal, quota_bytes: int, obstacle: Callable[[], str | None]
    ) -> None:
        self._wal = wal
        self._quota_bytes = quota_bytes
        self._obstacle = obstacle
        self._rings = False

    def judge(self, seen: EtcdSeen) -> None:
        """Have the log refuse writes, or take them again.

        Args:
            seen: the state of etcd; a node answers.
        """
        if seen.rings != self._rings:
            self._say(seen)
        self._rings = seen.rings
        full = "etcd is full: its alarm NOSPACE rings"
        self._wal.hold(full if seen.rings else self._why(seen))

    def _why(self, seen: EtcdSeen) -> str | None:
        """Return why writes are refused; None = there is room."""
        used = max(each.db_size_in_use for each in seen.answering)
        quota = quota_of(seen.answering, self._quota_bytes)
        if used < MOST_USED * quota:
            return None
        obstacle = self._obstacle()
        return (
            f"etcd is nearly full: {MOST_USED:.0%} of its quota of {quota} bytes "
            f"(store.quota_bytes) are in use"
            + (f"; the log cannot be trimmed: {obstacle}" if obstacle else "")
        )

    def _say(self, seen: EtcdSeen) -> None:
        if not seen.rings:
            _log.warning("etcd's alarm NOSPACE is gone")
            return
        ctl = f"etcdctl --endpoints={','.join(each.endpoint for each in seen.answering)}"
        _log.error(
            "etcd is full: its alarm NOSPACE rings, and it refuses all writes. Delete what is not "
            "this store's, or raise its --quota-backend-bytes, and give these commands (the newest "
            "revision is %d now); all goes on by itself then: %s compact REVISION; %s defrag; "
            "%s alarm disarm", seen.revision, ctl, ctl, ctl,
        )  # fmt: skip
