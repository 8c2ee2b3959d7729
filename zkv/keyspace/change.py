"""Commits and their changes: the unit of the log, of replay, of the history and of the feed.

Each commit is packed once, when it is made. Its payload is a msgpack array, which the log's frames
hold (`zkv.durability.segment`) and the history keeps::

    [rev: uint64, time: uint64, lsn: uint64, changes: [[op, key, value, expires], ...]]

``rev``, ``time`` (Unix time in milliseconds) and ``lsn`` (the log number) are packed in their
widest form, so every payload begins with the same two bytes: after damage, later frames can be
found by them. Log numbers count all commits of a store, one by one; unlike revisions, they also
count those that change nothing. Payloads of format 1 (`zkv.durability.formats`) have no ``lsn``:
there a commit's number is its revision, and one that changes nothing shares that of the commit
before it.

``op`` is "PUT", "TOUCH", "DELETE" or "EXPIRE". The value is nil if the key is removed; ``expires``
is nil if the entry never expires. Values are absolute, so a commit may be applied more than once.
The payload of an exactly-once request has further elements, from which a repeat is answered:
``session, seq, digest, reply`` (str, int, bin, bin).

A commit that begins a term (`zkv.keyspace.lineage`) has no changes, and one further element::

    {"store": str, "term": int, "tag": str}

Its ``rev`` is the revision of the store from then on. That may be above the next one: a server that
is promoted may not know all revisions that its predecessor has given, and must not give any again.

The digest distinguishes a request from another one with the same sequence number. It has 8 bytes
and is made with BLAKE2b of that digest size (RFC 7693), without a key. H(x) is the digest of x as
a little-endian number; ``+`` concatenates:

- PUT without fields other than key and value: H("PUT" + key + value).
- MPUT without fields other than items: the sum of H("MPUT" + key + value) over the items, modulo
  2^64, so that their order does not matter.
- Any other: H(fields), where fields is a msgpack map of ``op`` and the fields that say what to do,
  in the order of the classes in `zkv.protocol.requests`. Fields with their default value are left
  out, and the items of an MPUT are sorted by key. Fields that say how to do it are left out:
  ``id``, ``session``, ``seq``, ``deadline``, ``durable``, ``timing``, ``trace``.

Keys and texts are packed as msgpack str with the shortest head, numbers likewise; values are those
that the client has packed. `zkv.protocol.codec.digest` and zkv/compiled/request.c compute it.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Raw, Struct

from zkv.errors import TooLarge
from zkv.keyspace.entry import StoredEntry
from zkv.keyspace.lineage import TermStart
from zkv.nesting import parts

PUT: Final = "PUT"
DELETE: Final = "DELETE"
TOUCH: Final = "TOUCH"
EXPIRE: Final = "EXPIRE"

OPS: Final = frozenset({PUT, DELETE, TOUCH, EXPIRE})
REMOVALS: Final = frozenset({DELETE, EXPIRE})
"""Ops that remove the key."""

_HEAD: Final = struct.Struct(">BBQBQBQ")
_ARRAY4, _ARRAY5, _ARRAY8, _UINT64 = 0x94, 0x95, 0x98, 0xCF
_OLD_ARRAYS: Final = (b"\x93", b"\x97")
"""A payload of format 1 begins with one of these."""
_OLD_HEAD_BYTES: Final = _HEAD.size - 9
CHANGES_AT: Final = _HEAD.size
"""Place of the array of changes in a payload: a short one's head has its number of items."""
ARRAY16: Final = 0xDC
"""The head of a longer array."""
_NO_CHANGES: Final = b"\x90"
PAYLOAD_MARKS: Final = tuple(
    array + bytes((_UINT64,)) for array in (*_OLD_ARRAYS, b"\x94", b"\x95", b"\x98")
)
"""Every payload begins with one of these."""
LEAST_PAYLOAD_BYTES: Final = _OLD_HEAD_BYTES + 1

MOST_PAYLOAD_BYTES: Final = 2**32 - 1
"""Bytes of the largest commit, which is the largest frame of the log."""

GONE: Final = Raw(b"\xc0")
"""The value of a removed key: msgpack nil."""


Expiry = Annotated[int, Meta(ge=1, le=2**63 - 1)]
"""Unix time in ms. What is read from a file has to be in this range."""


class KeyChange(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """The new state of one key. It is absolute: to apply it twice does no harm.

    It is packed as an array, so that the log and the feed pack many without a Python step for each.
    The garbage collector ignores it, since the history holds a great number of them.

    Args:
        op: `PUT` (also for INCR), `DELETE`, `TOUCH` or `EXPIRE`.
        key: the key.
        value: the packed value; `GONE` if the key is removed.
        expires: expiry time, Unix time in ms; None = never.
    """

    op: str
    key: str
    value: Raw = GONE
    expires: Expiry | None = None


def entry_after(change: KeyChange, rev: int) -> StoredEntry | None:
    """Return the entry of a key after a change of revision ``rev``; None if it is removed."""
    if change.op in REMOVALS:
        return None
    return StoredEntry(bytes(change.value), rev, change.expires)


class Once(NamedTuple):
    """One remembered exactly-once request.

    Args:
        session: the session's name, which the client chose at random.
        seq: its sequence number.
        digest: its digest, to detect another request with the same number.
        reply: the packed reply.
    """

    session: str
    seq: int
    digest: bytes
    reply: bytes


class Commit(Struct, frozen=True, gc=False):
    """The effect of one write request, as it is logged.

    Args:
        rev: its revision; the store's current revision if it changes nothing.
        time: Unix time in ms.
        lsn: its log number.
        changes: in the order of the request; empty if only a reply is remembered.
        once: the exactly-once request to remember, if it is one.
        payload: the packed commit, if it came from a log.
        begins: the term that it begins, if it does.
    """

    rev: int
    time: int
    lsn: int
    changes: tuple[KeyChange, ...]
    once: Once | None = None
    payload: bytes = b""
    begins: TermStart | None = None

    def pack(self) -> bytes:
        """Return the payload. Raises TooLarge."""
        array = _ARRAY4 if self.once is None else _ARRAY8
        if self.begins is not None:
            array = _ARRAY5
        head = _HEAD.pack(array, _UINT64, self.rev, _UINT64, self.time, _UINT64, self.lsn)
        payload = head + _encode(self.changes)
        if self.once is not None:
            payload += b"".join([_encode(part) for part in self.once])
        if self.begins is not None:
            payload += _encode(self.begins)
        require_size(len(payload))
        return payload


def misplacement(commit: Commit, rev: int, lsn: int) -> str | None:
    """Return why a commit cannot follow the one of ``rev`` and ``lsn``; None if it can."""
    expected = rev + 1 if commit.changes else rev
    if commit.rev < expected or (commit.rev > expected and commit.begins is None):
        return f"revision {commit.rev} where {expected} should be"
    if commit.lsn != lsn + 1:
        return f"log number {commit.lsn} where {lsn + 1} should be"
    return None


def require_size(size: int) -> None:
    """Raise TooLarge if a commit of ``size`` bytes does not fit into the log."""
    if size > MOST_PAYLOAD_BYTES:
        raise TooLarge(
            f"the commit would take {size} bytes or more; the log takes {MOST_PAYLOAD_BYTES} at "
            f"most: write less in one request"
        )


class EvictionPayload(bytes):
    """The payload of an eviction.

    In files it is like that of entries that have expired. In memory its class tells the feed why
    they are gone.
    """

    __slots__ = ()


class PackedCommit(Struct, frozen=True, gc=False):
    """A commit of the history, for those who read it.

    Args:
        payload: the bytes that `unpack` reads.
    """

    payload: bytes

    @property
    def rev(self) -> int:
        """Its revision."""
        return revision_in(self.payload)

    @property
    def count(self) -> int:
        """Its number of changes."""
        return count_in(self.payload)

    @property
    def evicts(self) -> bool:
        """True if it evicts what it removes. Not known any more after a restart."""
        return isinstance(self.payload, EvictionPayload)

    @property
    def changes(self) -> tuple[KeyChange, ...]:
        """Its changes, unpacked."""
        return _decode(self.payload).changes


class _Payload(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    rev: int
    time: int
    lsn: int
    changes: tuple[KeyChange, ...]
    session: str | None = None
    seq: int = 0
    digest: bytes = b""
    reply: bytes = b""


class _TermPayload(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    rev: int
    time: int
    lsn: int
    changes: tuple[()]
    begins: TermStart


_encode = msgspec.msgpack.encode
_decode_term = msgspec.msgpack.Decoder(_TermPayload).decode
_decode_quickly = msgspec.msgpack.Decoder(_Payload).decode
_decode_change = msgspec.msgpack.Decoder(KeyChange).decode


def _decode(payload: bytes) -> _Payload:
    """Decode a payload. Raises msgspec's errors, and ValueError."""
    try:
        return _decode_quickly(payload)
    except RecursionError:  # A value with more levels than this Python decodes.
        rev, time, lsn, changes, *once = parts(payload)
        packed = _decode_quickly(b"".join([payload[:1], rev, time, lsn, _NO_CHANGES, *once]))
        return msgspec.structs.replace(packed, changes=tuple(map(_deep_change, parts(changes))))


def _deep_change(packed: bytes) -> KeyChange:
    op, key, value, *expires = parts(packed)
    change = _decode_change(b"".join([packed[:1], op, key, b"\xc0", *expires]))
    return msgspec.structs.replace(change, value=Raw(value))


def unpack(payload: bytes) -> Commit:
    """Return the commit in a payload of any format. Raises ValueError if it is not a commit."""
    payload = _renewed(payload) if is_old(payload) else payload
    try:
        if begins_term(payload):
            term = _decode_term(payload)
            return Commit(term.rev, term.time, term.lsn, (), None, payload, term.begins)
        packed = _decode(payload)
    except ValueError as error:
        raise ValueError(f"not a commit: {error}") from None
    if not OPS.issuperset([change.op for change in packed.changes]):
        raise ValueError("unknown op in a commit")
    once = None
    if packed.session is not None:
        once = Once(packed.session, packed.seq, packed.digest, packed.reply)
    return Commit(packed.rev, packed.time, packed.lsn, packed.changes, once, payload)


def is_old(payload: bytes) -> bool:
    """Return True if a payload has format 1."""
    return payload[:1] in _OLD_ARRAYS


def _renewed(payload: bytes) -> bytes:
    """Return a payload of format 1 as it is today."""
    head, rest = payload[1:_OLD_HEAD_BYTES], payload[_OLD_HEAD_BYTES:]
    number = payload[1:10]  # Its revision, packed.
    return b"".join([bytes([payload[0] + 1]), head, number, rest])


def revision_in(payload: bytes) -> int:
    """Return the revision in a payload of any format, without decoding the rest."""
    return int.from_bytes(payload[2:10], "big")


def count_in(payload: bytes) -> int:
    """Return the number of changes in a payload, without decoding them."""
    head = payload[CHANGES_AT]
    if head < ARRAY16:
        return head & 0x0F
    size = 2 if head == ARRAY16 else 4
    return int.from_bytes(payload[CHANGES_AT + 1 : CHANGES_AT + 1 + size], "big")


def number_in(payload: bytes) -> int:
    """Return the log number in a payload of any format, without decoding the rest."""
    if is_old(payload):
        return revision_in(payload)
    return int.from_bytes(payload[CHANGES_AT - 8 : CHANGES_AT], "big")


def changes_something(payload: bytes) -> bool:
    """Return True if a payload of any format has changes; False if it only remembers a reply."""
    at = _OLD_HEAD_BYTES if is_old(payload) else CHANGES_AT
    return payload[at : at + 1] != _NO_CHANGES


def begins_term(payload: bytes) -> bool:
    """Return True if a payload of any format begins a term."""
    return payload[0] == _ARRAY5
