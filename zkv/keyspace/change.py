"""What a commit does, key by key: the unit of the log, of replay, of history and of the feed."""

from __future__ import annotations

from typing import Final, NamedTuple

from msgspec import Raw, Struct

PUT: Final = "PUT"
DELETE: Final = "DELETE"
TOUCH: Final = "TOUCH"
EXPIRE: Final = "EXPIRE"

OPS: Final = frozenset({PUT, DELETE, TOUCH, EXPIRE})
REMOVALS: Final = frozenset({DELETE, EXPIRE})
"""Ops after which the key is gone."""


GONE: Final = Raw(b"\xc0")
"""The value where a key is gone: msgpack nil."""


class Change(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One key's new state, absolute: applying it twice does no harm.

    A packable array, so that the log and the feed pack many without a Python step for each; and no
    object of the garbage collector's, since the history holds a great number of them.

    Args:
        op: `PUT` (INCR, too), `DELETE`, `TOUCH` or `EXPIRE`.
        key: which entry.
        value: the packed value; `GONE` where the key is gone.
        expires: when the entry expires, Unix time in ms; None = never.
    """

    op: str
    key: str
    value: Raw = GONE
    expires: int | None = None


class Once(NamedTuple):
    """What is remembered of one exactly-once request.

    Args:
        session: the client's random name for itself.
        seq: the request's number in the session.
        digest: of what was asked for, to notice another request under the same number.
        reply: the packed reply.
    """

    session: str
    seq: int
    digest: bytes
    reply: bytes


class Commit(Struct, frozen=True, gc=False):
    """One write request's effect, as it is logged.

    Args:
        rev: its revision; where it changes nothing, the revision at which it found that out.
        time: Unix time in ms.
        changes: in the order in which they were made; empty where only a reply is remembered.
        once: what is remembered of an exactly-once request.
    """

    rev: int
    time: int
    changes: tuple[Change, ...]
    once: Once | None = None
