"""Gives an entry another key, in one transaction; it keeps its value and its time to live."""

from __future__ import annotations

from typing import Any


def rename_fields(found: dict[str, Any], old: str, new: str, force: bool) -> dict[str, Any]:
    """Return the fields of the TXN that renames an entry, unless it has changed.

    Args:
        found: the reply to GET of the old key, with a `Packed` value.
        old: its key.
        new: its new key.
        force: True = replace the entry that may have the new key.
    """
    put = {"op": "PUT", "key": new, "value": found["value"]}
    if "ttl" in found:
        put["ttl"] = found["ttl"]
    conditions = [[old, found["rev"]]]
    if not force:
        conditions.append([new, 0])
    return {"if": conditions, "ops": [put, {"op": "DELETE", "key": old}]}
