"""The interface to etcd: what is asked, what is answered, and `Etcd`, which a client offers.

Keys and values are bytes. A range is all keys from ``begin`` on and before ``end``; without ``end``
it is the key ``begin`` alone. `with_prefix` gives the range of all keys with a prefix. No key is
empty.

A revision counts etcd's writes: of all its users, and not of zkv. A time is in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

from zkv.etcd.errors import EtcdError

NO_END: Final = b"\0"
"""As the ``end`` of a range: it has all keys from ``begin`` on."""


class Compare(NamedTuple):
    """A condition of a transaction.

    An absent key has version, create and mod 0. A comparison of its value never holds.

    Args:
        key: the key.
        target: of the key: how many times it was put since it was made (``"version"``), the
            revision in which it was made (``"create"``) or last put (``"mod"``), or its value.
        op: how both compare.
        value: the other side: bytes for ``"value"``, else an int.
    """

    key: bytes
    target: Literal["version", "create", "mod", "value"]
    op: Literal["=", "!=", "<", ">"]
    value: int | bytes


class PutOp(NamedTuple):
    """Puts a value. No key may be put twice, nor put and deleted, in one transaction."""

    key: bytes
    value: bytes


class ReadOp(NamedTuple):
    """Reads a range, and sees what operations before it did.

    Args:
        begin: the first key.
        end: the first key beyond; None for ``begin`` alone.
        limit: how many items at most; 0 for all.
        keys_only: leave the values out.
    """

    begin: bytes
    end: bytes | None = None
    limit: int = 0
    keys_only: bool = False


class DeleteOp(NamedTuple):
    """Deletes a range.

    Args:
        begin: the first key.
        end: the first key beyond; None for ``begin`` alone.
    """

    begin: bytes
    end: bytes | None = None


Op = PutOp | ReadOp | DeleteOp
"""An operation of a transaction."""


class Item(NamedTuple):
    """A key with its value.

    Args:
        key: the key.
        value: its value.
        create_revision: the one that made it.
        mod_revision: the one that put it last.
        version: how many times it was put since it was made.
        lease: the lease with which it ends; 0 without one.
    """

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class TxnResult(NamedTuple):
    """The answer to a transaction.

    Args:
        succeeded: True if all conditions held.
        revision: that of its writes; etcd's newest if it wrote nothing.
        cluster_id: of the cluster that answered.
        reads: the items of each `ReadOp` that was executed, in their order.
    """

    succeeded: bool
    revision: int
    cluster_id: int
    reads: list[list[Item]]


@dataclass(frozen=True, slots=True)  # A named tuple has a method `count`.
class ReadResult:
    """The answer to a read.

    Args:
        revision: the newest of the node that answered, also if an older one was asked for.
        cluster_id: of the cluster that answered.
        items: in the order of their keys.
        more: True if ``limit`` cut items off.
        count: how many the range has, whatever ``limit`` is.
    """

    revision: int
    cluster_id: int
    items: list[Item]
    more: bool
    count: int


class ItemEvent(NamedTuple):
    """A change that a watch sees.

    Args:
        deleted: True if the key was deleted; then the item has only ``key`` and ``mod_revision``.
        item: the key's new state.
    """

    deleted: bool
    item: Item


class NodeStatus(NamedTuple):
    """The state of one node.

    Args:
        endpoint: host and port.
        error: why the rest is not known; None if it is.
        cluster_id: of its cluster.
        member_id: its own.
        leader: the id of the leader that it follows; 0 without one.
        revision: its newest.
        raft_term: its term.
        version: of its program.
        db_size: bytes of the database's file.
        db_size_in_use: bytes of it that are used, as far as the node knows.
        db_quota: bytes that the file may have; 0 where etcd does not say (before 3.6).
        errors: what it says of itself, such as alarms.
    """

    endpoint: str
    error: EtcdError | None = None
    cluster_id: int = 0
    member_id: int = 0
    leader: int = 0
    revision: int = 0
    raft_term: int = 0
    version: str = ""
    db_size: int = 0
    db_size_in_use: int = 0
    db_quota: int = 0
    errors: tuple[str, ...] = ()


class Alarm(NamedTuple):
    """An alarm that etcd raised.

    Args:
        member_id: of the node.
        kind: ``"NOSPACE"``, ``"CORRUPT"``, or the number of one that is not known here.
    """

    member_id: int
    kind: str


OnEvents = Callable[[int, list[ItemEvent]], None]
"""Takes a revision, and all events of the range after those before, up to that revision."""
OnEnd = Callable[[EtcdError], None]
"""Takes the reason for which a watch ended."""


class EtcdWatch(Protocol):
    """A watch that is under way."""

    def close(self) -> None:
        """End it, without waiting. A callback that runs meanwhile ends; no other one begins."""

    def join(self, timeout: float) -> bool:
        """Wait until its thread has ended; returns False if it has not in time."""


class Etcd(Protocol):
    """A client of etcd. Any thread may call each method.

    Each raises an `EtcdError`; `zkv.etcd.errors` says which, and when. A ``timeout`` is for the
    whole call.
    """

    def transact(
        self,
        compares: Sequence[Compare],
        then: Sequence[Op],
        otherwise: Sequence[Op] = (),
        *,
        timeout: float,
    ) -> TxnResult:
        """Execute ``then`` if all conditions hold, else ``otherwise``, as one step.

        It is sent once. Only where a node refused it for its token, it is sent again.

        Raises:
            UnknownOutcomeError: it may have been executed, or be executed later.
            NoSpaceError: it writes, and the quota is used up.
            RequestTooLargeError: it has more than 1.5 MiB, or what etcd is configured for.
            InvalidCallError: a key is put twice, or there are more than 128 operations.
            AccessError: the user may not do this.
        """

    def read(
        self,
        begin: bytes,
        end: bytes | None = None,
        *,
        limit: int = 0,
        serializable: bool = False,
        revision: int = 0,
        keys_only: bool = False,
        timeout: float,
    ) -> ReadResult:
        """Read a range. A node that does not answer is followed by the next one, in time.

        Args:
            begin: the first key.
            end: the first key beyond; None for ``begin`` alone.
            limit: how many items at most; 0 for all.
            serializable: take what the node has, old as it may be, also without a leader.
            revision: the state to read; 0 for the newest.
            keys_only: leave the values out.
            timeout: seconds.

        Raises:
            UnknownOutcomeError: no answer came in time.
            CompactedRevisionError: ``revision`` is not kept any more.
            FutureRevisionError: ``revision`` has not come.
            AccessError: the user may not read this.
        """

    def watch(
        self,
        begin: bytes,
        end: bytes | None,
        from_revision: int,
        on_events: OnEvents,
        on_end: OnEnd,
    ) -> EtcdWatch:
        """Follow a range. Returns at once; the callbacks are called in a thread of the watch.

        The watch does not connect again: once it has ended, for whatever reason but `close`,
        ``on_end`` is called once, with `CompactedRevisionError`, `WatchLostError`, `AccessError` or
        `EtcdClosedError`.

        Args:
            begin: the first key.
            end: the first key beyond; None for ``begin`` alone.
            from_revision: the first one of interest; 0 for those that come after the start.
            on_events: is called with a revision, and the events up to that one. The events of one
                revision come together.
            on_end: is called with the reason.
        """

    def lease_time_to_live(self, lease: int, timeout: float) -> int | None:
        """Return the seconds that a lease has left, rounded by etcd; None if it has ended.

        Raises:
            UnknownOutcomeError: no answer came in time.
            AccessError: the user may not read a key of the lease.
        """

    def status(self, timeout: float) -> list[NodeStatus]:
        """Ask each node for its state; one that does not answer has an ``error``."""

    def alarms(self, timeout: float) -> list[Alarm]:
        """Return the alarms that are raised.

        Raises:
            UnknownOutcomeError: no answer came in time.
        """

    def compact(self, revision: int, timeout: float) -> None:
        """Forget all states before a revision.

        Raises:
            UnknownOutcomeError: it may have been executed, or be executed later.
            CompactedRevisionError: that has been done before.
            FutureRevisionError: etcd has not got to the revision.
        """

    def close(self) -> None:
        """End all calls and watches, without waiting for etcd. May be called again.

        Calls under way fail with `UnknownOutcomeError`, later ones with `EtcdClosedError`.
        """


def with_prefix(prefix: bytes) -> tuple[bytes, bytes]:
    """Return the ``begin`` and ``end`` of all keys with a prefix; of all keys if it is empty."""
    stem = prefix.rstrip(b"\xff")
    return prefix or b"\0", stem[:-1] + bytes([stem[-1] + 1]) if stem else NO_END
