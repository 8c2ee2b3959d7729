"""What the store keeps for each key."""

from __future__ import annotations

from typing import Final

from msgspec import Struct


class StoredEntry(Struct, frozen=True, gc=False):
    """A value, and which revision wrote it. Never changed, only replaced.

    ``gc=False`` because it refers to nothing that could refer back: a store of millions of entries
    then costs the garbage collector nothing.

    Args:
        value: one msgpack value, packed as the client packed it.
        rev: the revision that wrote it (TOUCH and INCR write it, too).
        expires: Unix time in ms from which on it is gone; None = never.
    """

    value: bytes
    rev: int
    expires: int | None = None


ABSENT: Final = StoredEntry(b"\xc0", 0)
"""Stands for the entry of a key that is not there: nil, written by no revision."""
