"""Compares the states of all members: a fault that makes them differ must not stay unnoticed.

Once a minute the leader takes a view of the entries, and notes its log number in the next batch.
Each follower takes a view at the same log number, so all of them look at the same state while
writes go on. Each hashes its view in a thread of its own, and puts the hash into etcd.

A member of which the hash differs from the leader's stops, as nobody knows which of its answers are
right. If most members agree with each other and not with the leader, the leader is the one to stop.
So one that is asked for its verdict waits until all have told their hash, or for a while.

The hash is a sum, modulo 2^64, of a BLAKE2b digest for each entry (key, value, revision, expiry),
so it does not depend on the order in which a view yields them. Sessions are not in it: a view reads
them as they are later.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from zkv.cluster.records import StateRecord
from zkv.errors import DamageError
from zkv.etcd.errors import EtcdError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from zkv.cluster.shared_log import SharedLog
    from zkv.keyspace import Keyspace, SnapshotView
    from zkv.keyspace.entry import StoredEntry

_log = logging.getLogger("zkv.cluster")

CHECK_SECONDS: Final = 60.0
"""How often the states are compared."""
PATIENCE_SECONDS: Final = 30.0
"""How long a member waits for the hashes of others."""
_NUMBERS: Final = struct.Struct("<QQQ")
_MODULUS: Final = 2**64
_NEVER: Final = 2**63  # No expiry is so late.


class _Told(NamedTuple):
    """A hash that this member has put into etcd.

    Args:
        at: when, by the clock.
    """

    record: StateRecord
    at: float


class StateCheck:
    """The comparison, as one member takes part in it.

    `begin_at` and `verdict` are called by one thread.

    Args:
        keyspace: of this member.
        log: the log in etcd.
        member: the name of this member.
        clock: returns seconds.
    """

    def __init__(
        self, keyspace: Keyspace, log: SharedLog, member: str, clock: Callable[[], float]
    ) -> None:
        self._keyspace = keyspace
        self._shared = log
        self._member = member
        self._clock = clock
        self._began_at = clock()
        self._told: _Told | None = None  # And not judged yet.
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # Protects `_told`, and the following number.
        self._forgotten = 0  # How often `forget` was called.

    @property
    def is_due(self) -> bool:
        """True if it is time that the leader begins a comparison."""
        return self._clock() - self._began_at >= CHECK_SECONDS

    @property
    def is_open(self) -> bool:
        """True if `verdict` has something to say soon."""
        return self._told is not None

    def begin(self, view: SnapshotView) -> None:
        """Hash a view, and put the hash into etcd, in a thread; the view is closed then.

        While the one before is still under way, this one is left out.
        """
        self._began_at = self._clock()
        if self._thread is not None and self._thread.is_alive():
            view.close()
            return
        self._thread = threading.Thread(
            target=self._tell, args=(view, self._forgotten), name="zkv-state-check", daemon=True
        )
        self._thread.start()

    def forget(self) -> None:
        """Judge nothing by what this member has told so far.

        Call this after a rollback. A leader tells the hash of a state that etcd may not have yet.
        The next leader may reach the same log number with another state, and both are right.
        """
        with self._lock:
            self._forgotten += 1
            self._told = None

    def verdict(self, leader: str) -> None:
        """Compare the hashes that all have told for the same log number.

        Args:
            leader: the name of the leader.

        Raises EtcdError, and DamageError if this member is the one that has to stop.
        """
        told = self._told
        if told is None:
            return
        names = {each.name for each in self._shared.members()}
        lsn = told.record.lsn
        found = {each.member: each.hash for each in self._shared.states() if each.lsn == lsn}
        waits = self._clock() - told.at < PATIENCE_SECONDS
        if waits and (leader not in found or names - found.keys()):
            return
        self._told = None
        own, leaders = told.record.hash, found.get(leader)
        if leaders is None:
            return
        ((common, votes),) = Counter(found.values()).most_common(1)
        right = common if 2 * votes > len(names) else leaders
        if len(set(found.values())) > 1:
            _log.error("the states of the members differ at log number %d: %s", lsn, found)
        if own != right:
            raise DamageError(
                f"the state of this member at log number {lsn} is not that of the others: its data "
                f"cannot be trusted; remove its directory, and start it again as a new member"
            )

    def _tell(self, view: SnapshotView, forgotten: int) -> None:
        try:
            total = state_hash(pair for chunk in view.chunks() for pair in chunk)
        finally:
            view.close()
        if view.lost:
            return
        record = StateRecord(member=self._member, lsn=view.lsn, hash=total)
        try:
            self._shared.tell_state(record)
        except EtcdError as error:
            _log.debug("the hash of the state was not told: %s", error)
            return
        with self._lock:
            if forgotten == self._forgotten:
                self._told = _Told(record, self._clock())


def state_hash(entries: Iterable[tuple[str, StoredEntry]]) -> int:
    """Return the hash of entries, in whatever order they come."""
    total = 0
    for key, entry in entries:
        name = key.encode("utf-8", "surrogatepass")
        expires = _NEVER if entry.expires is None else entry.expires
        digest = hashlib.blake2b(name, digest_size=8)
        digest.update(_NUMBERS.pack(len(name), entry.rev, expires))
        digest.update(entry.value)
        total += int.from_bytes(digest.digest(), "little")
    return total % _MODULUS
