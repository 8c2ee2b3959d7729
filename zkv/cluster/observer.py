"""Observes the other members and etcd.

A thread asks every few seconds: each node of etcd for its state, all of them for alarms, and the
store's keys for the members. With the same transaction it writes how far this member is, so that
the others know. Who asks for INFO gets what was seen last, and waits for nothing.

What is seen of etcd also decides if it has room for more (`zkv.cluster.space`). What is seen of the
members is for display: nobody decides by it who leads, or what may be removed.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from zkv.cluster.records import LiveRecord
from zkv.etcd.errors import EtcdError

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.cluster.records import LeaderRecord
    from zkv.cluster.shared_log import SharedLog, Sighting
    from zkv.etcd.interface import NodeStatus

_log = logging.getLogger("zkv.cluster")

OBSERVE_SECONDS: Final = 2.0
"""Interval in which a member looks, and tells how far it is."""
AWAY_SECONDS: Final = 15.0
"""A member that has told nothing for so long does not count as alive."""


class MemberSeen(NamedTuple):
    """A member, as the others see it.

    Args:
        name: its name.
        role: "leader" or "follower"; "declared" if it was never there.
        endpoints: where clients find it.
        applied: the log number up to which it had applied the log when it told so last.
        seconds: since it told so; None if it never has.
    """

    name: str
    role: str
    endpoints: list[str]
    applied: int
    seconds: float | None

    @property
    def is_alive(self) -> bool:
        """True if it has told so a moment ago."""
        return self.seconds is not None and self.seconds < AWAY_SECONDS

    def report(self) -> dict[str, Any]:
        """Return what INFO's ``replication.members`` has of it."""
        seconds = None if self.seconds is None else round(self.seconds, 3)
        return self._asdict() | {"seconds": seconds}


def seconds_by_system_clock(told_at: int) -> float:
    """Return the seconds since a Unix time in ms that another machine has written."""
    return max(0.0, time.time() - told_at / 1000)


def members_in(
    sightings: list[Sighting],
    leader: LeaderRecord | None,
    seconds: Callable[[Sighting], float | None],
) -> list[MemberSeen]:
    """Return the members, by name.

    Args:
        sightings: what etcd has of each.
        leader: the leader's record.
        seconds: returns how long ago a member has told how far it is.
    """
    leading = None if leader is None or leader.released else leader.member
    found = []
    for each in sightings:
        was_there = each.live is not None or each.record.time > 0
        role = "leader" if each.record.name == leading else "follower"
        found.append(
            MemberSeen(
                each.record.name,
                role if was_there else "declared",
                each.record.endpoints,
                each.record.applied if each.live is None else each.live.applied,
                seconds(each),
            )
        )
    return found


def seconds_told(sighting: Sighting) -> float | None:
    """Return how long ago a member has told how far it is, by the system clocks of both."""
    told_at = sighting.record.time if sighting.live is None else sighting.live.time
    return seconds_by_system_clock(told_at) if told_at else None


def _reason(node: NodeStatus) -> str:
    """Return why a node does not answer, without its endpoint."""
    return str(node.error).removeprefix(f"etcd at {node.endpoint}: ")


class EtcdSeen(NamedTuple):
    """The state of etcd."""

    nodes: list[NodeStatus]
    alarms: list[str]

    @property
    def answering(self) -> list[NodeStatus]:
        """The nodes that answer."""
        return [each for each in self.nodes if each.error is None]

    @property
    def revision(self) -> int:
        """The newest revision of etcd that is known; 0 if no node answers."""
        return max((each.revision for each in self.answering), default=0)

    @property
    def rings(self) -> bool:
        """True if it refuses all writes, since its quota is used up."""
        return "NOSPACE" in self.alarms


def quota_of(nodes: list[NodeStatus], known: int) -> int:
    """Return etcd's quota, in bytes: the least that a node tells, and ``known`` at most."""
    return min((each.db_quota for each in nodes if 0 < each.db_quota < known), default=known)


class Observer:
    """Looks at the others and at etcd, in a thread of its own. See the module.

    Args:
        log: the log in etcd.
        name: this member's.
        applied: returns the log number up to which it has applied the log.
        clock: returns seconds.
        quota_bytes: etcd's quota, as far as this server knows; etcd may tell a smaller one.
        judge: called, in the thread, with each state of etcd in which a node answers.
    """

    def __init__(
        self,
        log: SharedLog,
        name: str,
        applied: Callable[[], int],
        clock: Callable[[], float],
        quota_bytes: int,
        judge: Callable[[EtcdSeen], None],
    ) -> None:
        self._shared = log
        self._name = name
        self._applied = applied
        self._clock = clock
        self._quota_bytes = quota_bytes
        self._judge = judge
        self._closing = threading.Event()
        self._members: list[MemberSeen] = []
        self._seen_at = self._clock()
        self.seen = EtcdSeen([], [])
        """The state of etcd as it was seen last."""
        self._changes: dict[str, tuple[int, float]] = {}  # Revision of a record, and when it came.
        self._reported = False
        self._thread = threading.Thread(target=self._run, name="zkv-observer")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def end(self) -> None:
        """Have the thread end. Does not wait for etcd: close its client before `join`."""
        self._closing.set()

    def join(self) -> None:
        """Wait until the thread has ended."""
        if self._thread.ident is not None:
            self._thread.join()

    def members(self) -> list[MemberSeen]:
        """Return the members as they were seen last; the seconds since then count."""
        passed = self._clock() - self._seen_at
        return [
            each if each.seconds is None else each._replace(seconds=each.seconds + passed)
            for each in self._members
        ]

    def etcd(self) -> dict[str, Any]:
        """Return the part of INFO about etcd; empty before the first look."""
        nodes, alarms = self.seen
        if not nodes:
            return {}
        there = self.seen.answering
        facts: dict[str, Any] = {
            "nodes": len(nodes),
            "answering": len(there),
            "silent": {each.endpoint: _reason(each) for each in nodes if each.error is not None},
            "alarms": ", ".join(alarms) or None,
        }
        if not there:
            return facts
        fullest = max(there, key=lambda each: each.db_size_in_use)
        return facts | {
            "version": fullest.version,
            "db_bytes": max(each.db_size for each in there),
            "db_used_bytes": fullest.db_size_in_use,
            "quota_bytes": quota_of(there, self._quota_bytes),
        }

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._look()
                self._reported = False
            except EtcdError:
                pass  # The member's own thread says so.
            except BaseException:  # A bug, damage, or no memory.
                if not self._reported and not self._closing.is_set():
                    _log.error("the other members, or etcd, cannot be observed", exc_info=True)
                self._reported = True
            self._closing.wait(OBSERVE_SECONDS)

    def _look(self) -> None:
        """Look at everything. Raises EtcdError, DamageError."""
        etcd, timeout = self._shared.etcd, self._shared.timeout
        nodes = etcd.status(timeout)
        # If no node answers, the alarms are not known, and not worth the wait.
        self.seen = EtcdSeen(nodes, self.seen.alarms)
        if not self.seen.answering:
            return
        alarms = sorted({each.kind for each in etcd.alarms(timeout)})
        self.seen = EtcdSeen(nodes, alarms)
        self._judge(self.seen)
        own = LiveRecord(self._name, self._applied(), round(time.time() * 1000))
        sightings, leader = self._shared.tell(own)
        now = self._clock()
        self._members = members_in(sightings, leader, lambda each: self._seconds(each, now))
        self._seen_at = now

    def _seconds(self, sighting: Sighting, now: float) -> float | None:
        """Return how long ago a member has told how far it is: if it was seen, by the own clock."""
        known = self._changes.get(sighting.record.name)
        if known is None or known[0] != sighting.live_revision:
            told = seconds_told(sighting) if known is None else 0.0
            if told is None:
                return None
            self._changes[sighting.record.name] = known = sighting.live_revision, now - told
        return now - known[1]
