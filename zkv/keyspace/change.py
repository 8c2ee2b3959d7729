"""What a commit does, key by key: the unit of the log, of replay, of history and of the feed.

Each commit is packed once, when it is made. Its payload, a msgpack array, is what the log's frames
hold (`zkv.durability.segment`), and what the history keeps::

    [rev: uint64, time: uint64, changes: [[op, key, value, expires], ...]]

``rev`` and ``time`` (Unix time in milliseconds) are packed in their widest form, so every payload
begins with the same two bytes: after damage, frames further on can be found again. ``op`` is "PUT",
"TOUCH", "DELETE" or "EXPIRE"; the value is nil where the key is gone, and ``expires`` is
nil where the entry stays. Values are absolute, so a commit may be applied
again. The payload of an exactly-once request has further elements: ``session, seq, digest, reply``
(str, int, bin, bin), what a repeat is answered from.

The digest tells a request from another one under the same number. It has 8 bytes, and is made with
BLAKE2b of that digest size (RFC 7693), without a key. H(x) is its 8 bytes over x, as a number with
the lowest byte first; ``+`` puts bytes behind each other:

- PUT with no further field than key and value: H("PUT" + key + value).
- MPUT with no further field than its items: the sum of H("MPUT" + key + value) over the items,
  modulo 2^64, so that their order does not count.
- Any other: H(fields), where fields is a msgpack map of ``op`` and what the request asks for, in
  the order of the fields in `zkv.protocol.requests`; a field that is as by default is left out, and
  the keys of an MPUT's items are in their own order. What is not asked for, but says how, is left
  out: ``id``, ``session``, ``seq``, ``deadline``, ``durable``.

Keys and texts are packed as msgpack str with the shortest head, numbers likewise; values stand as
the client has packed them. `zkv.protocol.codec.digest` and zkv/compiled/request.c make it.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw, Struct

from zkv.errors import TooLarge
from zkv.protocol.nesting import parts

PUT: Final = "PUT"
DELETE: Final = "DELETE"
TOUCH: Final = "TOUCH"
EXPIRE: Final = "EXPIRE"

OPS: Final = frozenset({PUT, DELETE, TOUCH, EXPIRE})
REMOVALS: Final = frozenset({DELETE, EXPIRE})
"""Ops after which the key is gone."""

_HEAD: Final = struct.Struct(">BBQBQ")
_ARRAY3, _ARRAY7, _UINT64 = 0x93, 0x97, 0xCF
_NO_CHANGES: Final = 0x90
PAYLOAD_MARKS: Final = (bytes((_ARRAY3, _UINT64)), bytes((_ARRAY7, _UINT64)))
"""One of these every payload begins with."""
LEAST_PAYLOAD_BYTES: Final = _HEAD.size + 1

MOST_PAYLOAD_BYTES: Final = 2**32 - 1
"""Bytes of the largest commit: a frame of the log holds no more."""

GONE: Final = Raw(b"\xc0")
"""The value where a key is gone: msgpack nil."""


class KeyChange(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
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
        payload: all of that, packed, where it has been.
    """

    rev: int
    time: int
    changes: tuple[KeyChange, ...]
    once: Once | None = None
    payload: bytes = b""

    def pack(self) -> Packed:
        """The same, packed. Raises TooLarge."""
        array = _ARRAY3 if self.once is None else _ARRAY7
        payload = _HEAD.pack(array, _UINT64, self.rev, _UINT64, self.time) + _encode(self.changes)
        if self.once is not None:
            payload += b"".join([_encode(part) for part in self.once])
        require_size(len(payload))
        return Packed(self.rev, len(self.changes), payload)


def require_size(size: int) -> None:
    """Raise TooLarge unless a commit of ``size`` bytes fits into the log."""
    if size > MOST_PAYLOAD_BYTES:
        raise TooLarge(
            f"what this would write takes {size} bytes or more; the log takes {MOST_PAYLOAD_BYTES} "
            f"at once: write less in one request"
        )


class Packed(Struct, frozen=True, gc=False):
    """A commit as it stands in the log. History and feed keep it so, too: it is packed once.

    Args:
        rev: its revision.
        count: how many changes it has.
        payload: what `unpack` reads.
    """

    rev: int
    count: int
    payload: bytes

    @property
    def changes(self) -> tuple[KeyChange, ...]:
        """What it changes."""
        return _decode(self.payload).changes


class _Payload(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    rev: int
    time: int
    changes: tuple[KeyChange, ...]
    session: str | None = None
    seq: int = 0
    digest: bytes = b""
    reply: bytes = b""


_encode = msgspec.msgpack.encode
_decode_quickly = msgspec.msgpack.Decoder(_Payload).decode
_decode_change = msgspec.msgpack.Decoder(KeyChange).decode


def _decode(payload: bytes) -> _Payload:
    """The parts of a payload. Raises what msgspec does, and ValueError."""
    try:
        return _decode_quickly(payload)
    except RecursionError:  # A value that another Python has taken.
        rev, time, changes, *once = parts(payload)
        packed = _decode_quickly(b"".join([bytes([0x93 + len(once)]), rev, time, b"\x90", *once]))
        return msgspec.structs.replace(packed, changes=tuple(map(_deep_change, parts(changes))))


def _deep_change(packed: bytes) -> KeyChange:
    op, key, value, *expires = parts(packed)
    change = _decode_change(b"".join([packed[:1], op, key, b"\xc0", *expires]))
    return msgspec.structs.replace(change, value=Raw(value))


def unpack(payload: bytes) -> Commit:
    """The commit in a payload. Raises ValueError where it is none."""
    try:
        packed = _decode(payload)
    except ValueError as error:
        raise ValueError(f"not what a log holds: {error}") from None
    if not OPS.issuperset([change.op for change in packed.changes]):
        raise ValueError("an op that no log holds")
    once = None
    if packed.session is not None:
        once = Once(packed.session, packed.seq, packed.digest, packed.reply)
    return Commit(packed.rev, packed.time, packed.changes, once, payload)


def revision_in(payload: bytes) -> int:
    """The revision of the commit in a payload."""
    return int.from_bytes(payload[2:10], "big")


def changes_something(payload: bytes) -> bool:
    """Whether the commit in a payload does more than remember a reply."""
    return payload[_HEAD.size] != _NO_CHANGES
