"""A transaction: ops that see each other's effects and are committed together, or not at all.

Every write is one, even a single PUT. A transaction is made and used with the keyspace's lock held.
It changes nothing before it is committed. If an op fails it is discarded, which is the rollback.
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
    from zkv.users.quota import Quota

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.decode


class StagedWrite:
    """The staged changes of a transaction. Made by `Keyspace.begin`; lock held.

    Attributes:
        changes: the changes so far, in order.
        staged: the new entry of each changed key; None if it is removed.
        rev: the revision that the transaction will have if it changes anything.
        quota: the quota of the user that runs it; None = there is none.
        evicts: True if it evicts entries of a cache.
    """

    __slots__ = ("_size", "_store", "changes", "evicts", "quota", "rev", "staged")

    def __init__(self, store: Keyspace, rev: int, quota: Quota | None = None) -> None:
        self._store = store
        self.quota = quota
        self.evicts = False
        self._size = 0  # Bytes of single values: many TOUCHes make a large commit of a small TXN.
        self.rev = rev
        self.changes: list[KeyChange] = []
        self.staged: dict[str, StoredEntry | None] = {}

    @property
    def reply_rev(self) -> int:
        """The revision for the reply: the transaction's, or the store's if nothing changes."""
        return self.rev if self.changes else self.rev - 1

    def now(self) -> int:
        """Return the Unix time in ms."""
        return self._store.now()

    def find(self, key: str) -> StoredEntry | None:
        """Return the entry of ``key`` as this transaction sees it; None if absent."""
        if key in self.staged:
            return self.staged[key]
        return self._store.live(key)

    def get(self, key: str) -> StoredEntry:
        """Return the entry of ``key``. Raises NotFound."""
        entry = self.find(key)
        if entry is None:
            raise self._store.no_such_key(key)
        return entry

    def check(self, key: str, rev: int) -> StoredEntry | None:
        """Return the entry of ``key``, which must have revision ``rev``; 0 = must be absent.

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
        """Write an entry; ``expires`` is Unix time in ms, None = never."""
        self._stage(PUT, key, StoredEntry(value, self.rev, expires))

    def put_many(self, items: dict[str, bytes], expires: int | None = None) -> None:
        """Write many entries, in fewer steps than by `put`."""
        rev = self.rev
        for key, value in items.items():
            self.staged[key] = StoredEntry(value, rev, expires)
        self.changes += [KeyChange(PUT, key, Raw(value), expires) for key, value in items.items()]

    def remove(self, key: str, op: str = DELETE) -> None:
        """Remove an entry, which must exist."""
        self.staged[key] = None
        self.changes.append(KeyChange(op, key))

    def touch(self, key: str, expires: int | None) -> None:
        """Set the expiry of an entry. Raises NotFound."""
        self._stage(TOUCH, key, StoredEntry(self.get(key).value, self.rev, expires))

    def increment(self, key: str, by: int) -> int:
        """Add to an int64, and return the sum. An absent entry counts as 0; the expiry is kept.

        Raises WrongType if the value or the sum is not an int64.
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
        # The first byte shows the type: only an int is decoded.
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
    """Return the type of a packed value from its first byte, with an article."""
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
"""The last first byte of each type, in msgpack's order; ext is not included."""


def not_found(key: str, seen_rev: int) -> NotFound:
    """Return the error for an absent key; ``seen_rev``: the revision that its absence reveals."""
    return NotFound(f"no such key: {shorten(key)}", seen_rev=seen_rev)
