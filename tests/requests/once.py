"""Writes of every op, for tests that repeat each of them."""

from __future__ import annotations

from typing import Any

from tests.requests.contract_stores import MAX_INT64, Store, op


def fill_for_once(store: Store) -> None:
    """What `ONCE` needs to be there."""
    store.ok("MPUT", items={"a": 1, "b": 2})


ONCE: dict[str, dict[str, Any]] = {
    "PUT": op("PUT", key="a", value="v", prev=True),
    "DELETE": op("DELETE", key="a", prev=True),
    "TOUCH": op("TOUCH", key="a", ttl=5),
    "INCR": op("INCR", key="a", by=2),
    "MPUT": op("MPUT", items={"a": 5, "c": 6}, ttl=60),
    "MDELETE": op("MDELETE", keys=["a", "b", "x"]),
    "TXN": op("TXN", ops=[op("INCR", key="a"), op("GET", key="b"), op("DELETE", key="b")]),
    "nothing to do": op("MDELETE", keys=["x"]),
    "NOT_FOUND": op("DELETE", key="x"),
    "NOT_FOUND, TOUCH": op("TOUCH", key="x", ttl=1),
    "CONFLICT": op("PUT", key="a", value=1, if_rev=0),
    "WRONG_TYPE": op("INCR", key="a", by=MAX_INT64),
    "CONFLICT in a TXN": op("TXN", **{"if": [["b", 1], ["a", 0]]}, ops=[]),
    "NOT_FOUND in a TXN": op("TXN", ops=[op("INCR", key="a"), op("DELETE", key="x")]),
}
"""A name, and a write of that op or with that outcome, in a store that is filled."""
