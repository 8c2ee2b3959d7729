"""A transaction: ops that see each other's effects, and are then committed together or not at all.

Every write is one, also a single PUT. It is made and used with the keyspace's lock held, changes
nothing until it is committed, and is simply dropped when an op fails: that is the rollback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Raw

from zkv.errors import Conflict, NotFound, WrongType, shorten
from zkv.keyspace.change import DELETE, PUT, TOUCH, KeyChange, require_size
from zkv.keyspace.entry import StoredEntry

if TYPE_CHECKING:
    from zkv.keyspace.store import Keyspace

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.decode


class StagedWrite:
    """Made by `Keyspace.begin`, with the lock held.

    Attributes:
        changes: what has been asked for so far, in order.
        staged: the state that each changed key will have; None where it is gone.
        rev: the revision that it will have if it changes anything.
    """

    __slots__ = ("_size", "_store", "changes", "rev", "staged")

    def __init__(self, store: Keyspace, rev: int) -> None:
        self._store = store
        self._size = 0  # Of values staged one by one: TOUCHes may make a small request a large one.
        self.rev = rev
        self.changes: list[KeyChange] = []
        self.staged: dict[str, StoredEntry | None] = {}

    @property
    def reply_rev(self) -> int:
        """The revision in the reply: the transaction's, or the store's if it is empty."""
        return self.rev if self.changes else self.rev - 1

    def now(self) -> int:
        """Unix time in ms."""
        return self._store.now()

    def find(self, key: str) -> StoredEntry | None:
        """The entry of ``key`` as this transaction sees it."""
        if key in self.staged:
            return self.staged[key]
        return self._store.live(key)

    def get(self, key: str) -> StoredEntry:
        """`find`, or NotFound."""
        entry = self.find(key)
        if entry is None:
            raise self._store.no_such_key(key)
        return entry

    def check(self, key: str, rev: int) -> StoredEntry | None:
        """The entry of ``key``, whose revision must be ``rev``; 0 = it must be absent.

        Raises Conflict.
        """
        entry = self.find(key)
        actual = 0 if entry is None else entry.rev
        if actual != rev:
            raise Conflict(
                f"{shorten(key)} has revision {actual}, not {rev}",
                key=key,
                rev=actual,
                seen_rev=actual or self._store.absent_rev(key),
            )
        return entry

    def put(self, key: str, value: bytes, expires: int | None = None) -> None:
        """Write an entry; ``expires`` is Unix time in ms."""
        self._stage(PUT, key, StoredEntry(value, self.rev, expires))

    def put_many(self, items: dict[str, bytes], expires: int | None = None) -> None:
        """Write many entries: `put` for each, with as few steps as can be."""
        rev = self.rev
        for key, value in items.items():
            self.staged[key] = StoredEntry(value, rev, expires)
        self.changes += [KeyChange(PUT, key, Raw(value), expires) for key, value in items.items()]

    def remove(self, key: str, op: str = DELETE) -> None:
        """Remove an entry that is there."""
        self.staged[key] = None
        self.changes.append(KeyChange(op, key))

    def touch(self, key: str, expires: int | None) -> None:
        """Give an entry another expiry. Raises NotFound."""
        self._stage(TOUCH, key, StoredEntry(self.get(key).value, self.rev, expires))

    def increment(self, key: str, by: int) -> int:
        """Add to an int64, 0 where absent; returns the sum. The expiry stays.

        Raises WrongType: the value is no int64, or the sum would not be.
        """
        entry = self.find(key)
        total = by if entry is None else self._integer(key, entry) + by
        if not INT64_MIN <= total <= INT64_MAX:
            raise WrongType(
                f"{shorten(key)} would become {total}, which does not fit into 64 bits with sign",
                key=key,
                seen_rev=0 if entry is None else entry.rev,
            )
        expires = None if entry is None else entry.expires
        self._stage(PUT, key, StoredEntry(_encode(total), self.rev, expires))
        return total

    def _stage(self, op: str, key: str, entry: StoredEntry) -> None:
        self._size += len(entry.value)
        require_size(self._size)
        self.staged[key] = entry
        self.changes.append(KeyChange(op, key, Raw(entry.value), entry.expires))

    def _integer(self, key: str, entry: StoredEntry) -> int:
        # The first byte tells: only an int is decoded, whatever else the value is.
        if entry.value[0] < 0x80 or entry.value[0] >= 0xE0 or 0xCC <= entry.value[0] <= 0xD3:
            value = _decode(entry.value)
            if isinstance(value, int) and INT64_MIN <= value <= INT64_MAX:
                return value
        raise WrongType(
            f"the value of {shorten(key)} is {_type_of(entry.value[0])}; INCR needs an integer "
            f"(int) that fits into 64 bits with sign",
            key=key,
            seen_rev=entry.rev,
        )


def _type_of(first: int) -> str:
    """What the first byte of a packed value says of its type."""
    if 0xC7 <= first <= 0xC9 or 0xD4 <= first <= 0xD8:
        return "an ext"
    for last, name in _TYPES.items():
        if first <= last:
            return name
    return "an int"


_TYPES: Final = {
    0x7F: "an int", 0x8F: "a map", 0x9F: "an array", 0xBF: "text (str)", 0xC0: "nil",
    0xC3: "a bool", 0xC6: "binary data (bin)", 0xCB: "a float", 0xD8: "an int",
    0xDB: "text (str)", 0xDD: "an array", 0xDF: "a map",
}  # fmt: skip
"""The last byte of each range in msgpack's table of first bytes, without ext."""


def not_found(key: str, seen_rev: int) -> NotFound:
    """The error for a key that is absent as of ``seen_rev``."""
    return NotFound(f"no such key: {shorten(key)}", seen_rev=seen_rev)
