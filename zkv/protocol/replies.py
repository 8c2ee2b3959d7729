"""One class per kind of reply. Fields are packed in the order of their declaration.

A reply has an ``id`` only if the request had one. Values are ``Raw``: they are packed already.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import UNSET, Raw, Struct, UnsetType

from zkv.errors import RequestError, RequestId

NIL = Raw(b"\xc0")
"""msgpack nil, the value of an absent key."""


class Reply(Struct, kw_only=True):
    """The fields of every successful reply."""

    ok: bool = True
    id: RequestId | UnsetType = UNSET


class PingReply(Reply, kw_only=True):
    """Reply to PING; ``time`` is Unix time in milliseconds."""

    protocol: int
    version: str
    time: int


class GetReply(Reply, kw_only=True):
    """Reply to GET: the packed value, the revision that wrote it, the remaining seconds to live."""

    value: Raw
    rev: int
    ttl: float | UnsetType = UNSET


class CommitReply(Reply, kw_only=True):
    """The fields of every reply to a write. ``durable``: it was on disk when this was packed."""

    rev: int
    durable: bool = False

    def set_durable(self, durable_rev: int) -> None:
        """Set ``durable``, given the newest revision on disk."""
        self.durable = self.rev <= durable_rev


class WriteReply(CommitReply, kw_only=True):
    """Reply to a write; ``prev`` and ``prev_rev`` only if the request asked for them."""

    prev: Raw | UnsetType = UNSET
    prev_rev: int | UnsetType = UNSET


class MGetReply(Reply, kw_only=True):
    """Reply to MGET. ``values`` is a packed array; absent keys have value nil and revision 0."""

    values: Raw
    revs: list[int]


class IncrReply(CommitReply, kw_only=True):
    """Reply to INCR: the sum."""

    value: int


class TxnReply(CommitReply, kw_only=True):
    """Reply to TXN: the reply of each op."""

    results: list[Reply]

    def set_durable(self, durable_rev: int) -> None:
        """Set ``durable`` in this reply and in the reply of each write in it."""
        super().set_durable(durable_rev)
        for result in self.results:
            if isinstance(result, CommitReply):
                result.durable = self.durable


class ScanReply(Reply, kw_only=True):
    """Reply to SCAN. ``items``: [key, value, rev] each; ``next``: ``after`` of the next page."""

    items: list[tuple[str, Raw, int]]
    next: str | None
    rev: int


class CountReply(Reply, kw_only=True):
    """Reply to COUNT: the number of keys."""

    count: int


class ChangesReply(Reply, kw_only=True):
    """Reply to CHANGES. ``changes``: [rev, op, key, value] each; ``next``: the next ``since``."""

    changes: list[tuple[int, str, str, Raw]]
    next: int
    rev: int


class MDeleteReply(CommitReply, kw_only=True):
    """Reply to MDELETE: the number of keys that were removed."""

    deleted: int


class SlowReply(Reply, kw_only=True):
    """Reply to SLOW: maps with the fields of `SlowEntry` and `SlowMinute`, the newest first."""

    entries: list[Any]
    minutes: list[Any]


class PositionReply(Reply, kw_only=True):
    """The fields of every reply to REPLICATE.

    Attributes:
        store: the identity of the store.
        terms: [number, first log number, tag] each, the oldest first.
        lsn: a log number: of the newest safe commit, or of the snapshot.
    """

    store: str
    terms: list[tuple[int, int, str]]
    lsn: int


class CommitsReply(PositionReply, kw_only=True):
    """Reply to REPLICATE: commits as in the log.

    Attributes:
        commits: their payloads.
        crc: the CRC-32 of all of them, one after the other.
        rev: the newest safe revision.
        time: Unix time in milliseconds.
        age: milliseconds since a primary was heard of; 0 from a primary.
    """

    commits: list[bytes]
    crc: int
    rev: int
    time: int
    age: int


class SnapshotPartReply(PositionReply, kw_only=True):
    """Reply to REPLICATE with ``snapshot``: bytes of a snapshot file.

    Attributes:
        snapshot: the revision of the snapshot.
        size: bytes of the whole file.
        offset: the place of the part.
        data: the part.
        crc: its CRC-32.
    """

    snapshot: int
    size: int
    offset: int
    data: bytes
    crc: int


class RevisionReply(Reply, kw_only=True):
    """Reply to SNAPSHOT and END: the revision that was saved."""

    rev: int


class HandedOverReply(Reply, kw_only=True):
    """Reply to a REPLICATE with ``supersede``: the last log number and revision, on disk."""

    lsn: int
    rev: int


class PromoteReply(Reply, kw_only=True):
    """Reply to PROMOTE: the revision and the term with which the server begins to lead."""

    rev: int
    term: int


class InfoReply(Reply, kw_only=True):
    """Reply to INFO; ``limits``, ``durability``, ``stats`` are maps; ``user`` only with users."""

    version: str
    protocol: int
    features: tuple[str, ...]
    rev: int
    durable_rev: int | UnsetType
    keys: int | UnsetType
    uptime: float | UnsetType
    endpoints: list[str] | UnsetType
    feed: str | None
    limits: dict[str, Any]
    durability: dict[str, Any] | UnsetType
    stats: dict[str, Any] | UnsetType
    user: str | UnsetType = UNSET


class ReplicatedInfoReply(InfoReply, kw_only=True):
    """Reply to INFO of a server that is part of a replication.

    A class of its own: with one field more, msgspec packs the map of each INFO with a longer head.
    """

    replication: dict[str, Any]


MONITORED: Final = ("durable_rev", "keys", "uptime", "endpoints", "durability", "stats")
"""The fields of INFO that need the right to monitor."""


OPEN_REPLICATION: Final = ("role", "store", "term", "leader")
"""The fields of its ``replication`` that do not."""


class Failure(Struct, kw_only=True, omit_defaults=False):
    """Reply to a request that was refused or that failed."""

    ok: bool = False
    id: RequestId | UnsetType = UNSET
    code: str
    message: str
    retry: bool
    applied: bool | None
    key: str | UnsetType = UNSET
    rev: int | UnsetType = UNSET
    index: int | UnsetType = UNSET
    field: str | UnsetType = UNSET
    oldest: int | UnsetType = UNSET
    retry_after: int | UnsetType = UNSET
    common: int | UnsetType = UNSET
    term: int | UnsetType = UNSET
    leader: list[str] | UnsetType | None = UNSET


def failure(error: RequestError, request_id: RequestId | None) -> Failure:
    """Return the reply for ``error``."""
    echoed = error.request_id if request_id is None else request_id
    return Failure(
        id=UNSET if echoed is None else echoed,
        code=error.code,
        message=error.message,
        retry=error.retry,
        applied=error.applied,
        **error.details,  # type: ignore[arg-type]
    )
