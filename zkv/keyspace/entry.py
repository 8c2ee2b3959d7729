"""The entry that the keyspace stores for each key."""

from __future__ import annotations

from typing import Final

from msgspec import Struct


class StoredEntry(Struct, frozen=True, gc=False):
    """A value and the revision that wrote it. Never changed, only replaced.

    ``gc=False`` because it refers to nothing that could refer back: a store of millions of entries
    then costs the garbage collector nothing.

    Args:
        value: one msgpack value, packed by the client.
        rev: the revision that wrote it, also by TOUCH or INCR.
        expires: expiry time, Unix time in ms; None = never.
    """

    value: bytes
    rev: int
    expires: int | None = None


def entry_bytes(key: str, entry: StoredEntry | None) -> int:
    """Return the bytes that a quota counts: of the key as UTF-8, and of the packed value."""
    return 0 if entry is None else len(key.encode()) + len(entry.value)


ABSENT: Final = StoredEntry(b"\xc0", 0)
"""The entry of an absent key: nil, at revision 0."""
