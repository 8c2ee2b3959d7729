"""One class per kind of reply, in the order in which its fields are packed.

A reply carries ``id`` only where the request did. Values are ``Raw``: they are packed already.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Raw, Struct, UnsetType

from zkv.errors import RequestError, RequestId

NIL = Raw(b"\xc0")
"""msgpack nil: stands for the value of an absent key."""


class Reply(Struct, kw_only=True):
    """What every successful reply carries."""

    ok: bool = True
    id: RequestId | UnsetType = UNSET


class PingReply(Reply, kw_only=True):
    """``time`` is Unix time in milliseconds."""

    protocol: int
    version: str
    time: int


class GetReply(Reply, kw_only=True):
    """The value as it was packed, the revision that wrote it, and the seconds it has left."""

    value: Raw
    rev: int
    ttl: float | UnsetType = UNSET


class CommitReply(Reply, kw_only=True):
    """What every reply to a write carries; ``durable``: is it on disk now?"""

    rev: int
    durable: bool = False

    def tell_durable(self, durable_rev: int) -> None:
        """Say whether it is on disk, everything up to ``durable_rev`` being there."""
        self.durable = self.rev <= durable_rev


class WriteReply(CommitReply, kw_only=True):
    """A committed write; ``prev`` and ``prev_rev`` only where they were asked for."""

    prev: Raw | UnsetType = UNSET
    prev_rev: int | UnsetType = UNSET


class MGetReply(Reply, kw_only=True):
    """``values``: an array, packed. Nil and 0 stand where a key is absent."""

    values: Raw
    revs: list[int]


class IncrReply(CommitReply, kw_only=True):
    """The sum."""

    value: int


class TxnReply(CommitReply, kw_only=True):
    """What each op would have replied."""

    results: list[Reply]

    def tell_durable(self, durable_rev: int) -> None:
        """Say so of the whole and of each write in it."""
        super().tell_durable(durable_rev)
        for result in self.results:
            if isinstance(result, CommitReply):
                result.durable = self.durable


class ScanReply(Reply, kw_only=True):
    """``items``: [key, value, rev] each; ``next``: the ``after`` of the next page, or nil."""

    items: list[tuple[str, Raw, int]]
    next: str | None
    rev: int


class CountReply(Reply, kw_only=True):
    """How many keys."""

    count: int


class ChangesReply(Reply, kw_only=True):
    """``changes``: [rev, op, key, value] each; ``next``: the ``since`` to continue from."""

    changes: list[tuple[int, str, str, Raw]]
    next: int
    rev: int


class MDeleteReply(CommitReply, kw_only=True):
    """How many of the keys were there."""

    deleted: int


class RevisionReply(Reply, kw_only=True):
    """SNAPSHOT and END: the revision that is saved."""

    rev: int


class InfoReply(Reply, kw_only=True):
    """See the op INFO; ``limits``, ``durability`` and ``stats`` are maps."""

    version: str
    protocol: int
    rev: int
    durable_rev: int
    keys: int
    uptime: float
    endpoints: list[str]
    feed: str | None
    limits: dict[str, Any]
    durability: dict[str, Any]
    stats: dict[str, Any]


class Failure(Struct, kw_only=True, omit_defaults=False):
    """A request that was refused or failed."""

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


def failure(error: RequestError, request_id: RequestId | None) -> Failure:
    """The reply that tells ``error`` to the client."""
    echoed = error.request_id if request_id is None else request_id
    return Failure(
        id=UNSET if echoed is None else echoed,
        code=error.code,
        message=error.message,
        retry=error.retry,
        applied=error.applied,
        **error.details,  # type: ignore[arg-type]
    )
