"""CHANGES: the history, its pages and its bounds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.requests.contract_stores import (
    MakeStore,
    op,
    opened,
)


def test_changes_tell_what_became_of_each_key(remembering: MakeStore) -> None:
    store = remembering()
    store.put("a", [1], ttl=60)
    store.ok("INCR", key="n", by=3)
    store.ok("TOUCH", key="a", ttl=None)
    store.ok("MPUT", items={"b": 1, "c": 2}, ttl=1)
    store.ok("TXN", ops=[op("PUT", key="d", value=1), op("INCR", key="d"), op("DELETE", key="a")])
    store.ok("MDELETE", keys=["n", "x", "b"])
    store.clock.advance(1_000)
    store.remove_expired()
    store.ok("DELETE", key="d")

    everything: list[list[Any]] = [
        [1, "PUT", "a", [1]],
        [2, "PUT", "n", 3],
        [3, "TOUCH", "a", [1]],
        [4, "PUT", "b", 1],
        [4, "PUT", "c", 2],
        [5, "PUT", "d", 1],
        [5, "PUT", "d", 2],
        [5, "DELETE", "a", None],
        [6, "DELETE", "n", None],
        [6, "DELETE", "b", None],
        [7, "EXPIRE", "c", None],
        [8, "DELETE", "d", None],
    ]
    assert store.ok("CHANGES", since=0) == {
        "ok": True, "changes": everything, "next": 8, "rev": 8,
    }  # fmt: skip
    for since in range(9):
        assert store.ok("CHANGES", since=since)["changes"] == [
            change for change in everything if change[0] > since
        ]


def test_what_changes_nothing_is_no_change(remembering: MakeStore) -> None:
    store = remembering()
    store.put("a")
    store.call("DELETE", key="x", session="s", seq=1)
    store.call("PUT", key="a", value=1, if_rev=0)
    store.ok("MDELETE", keys=["x"], session="s", seq=2)
    store.ok("TXN", ops=[op("GET", key="a")], session="s", seq=3)
    assert store.ok("CHANGES", since=0) == {
        "ok": True, "changes": [[1, "PUT", "a", 0]], "next": 1, "rev": 1,
    }  # fmt: skip
    assert store.ok("CHANGES", since=1) == {"ok": True, "changes": [], "next": 1, "rev": 1}


@pytest.mark.parametrize("kind", ["memory", "log, reopened"])
@given(
    sizes=st.lists(st.integers(1, 6), max_size=12),
    limit=st.integers(1, 9),
    prefix=st.sampled_from(["", "a", "b", "x"]),
)
def test_a_page_of_changes_ends_with_a_whole_revision(
    kind: str, sizes: list[int], limit: int, prefix: str
) -> None:
    with opened(kind) as store:
        everything: list[list[Any]] = []
        for rev, size in enumerate(sizes, 1):
            items = {f"{'ab'[rev % 2]}{number}": rev for number in range(size)}
            store.ok("MPUT", items=items)
            everything += [[rev, "PUT", key, rev] for key in items]

        found: list[list[Any]] = []
        since = 0
        while since < len(sizes):
            reply = store.ok("CHANGES", since=since, limit=limit, prefix=prefix)
            page = reply["changes"]
            assert reply["rev"] == len(sizes)
            assert reply["next"] > since, "it goes on"
            since = reply["next"]
            before_last = [change for change in page if change[0] < max(page)[0]]
            assert len(before_last) < limit, "it ends as soon as there are enough"
            found += page
        assert found == [change for change in everything if change[2].startswith(prefix)]
        assert since == len(sizes)


def test_a_page_of_changes_has_1000_unless_told_otherwise(remembering: MakeStore) -> None:
    store = remembering()
    for batch in range(3):
        store.ok("MPUT", items={f"{batch}-{number}": 0 for number in range(600)})
    reply = store.ok("CHANGES", since=0)
    assert (len(reply["changes"]), reply["next"], reply["rev"]) == (1_200, 2, 3)


@pytest.mark.parametrize("limits", [{"history": 5}, {"history_bytes": 165}], ids=repr)
def test_changes_that_are_not_kept_are_compacted(
    remembering: MakeStore, limits: dict[str, int]
) -> None:
    store = remembering(**limits)
    for number in range(4):
        store.put("k", number)  # 38 bytes each, as they stand in the log
    assert len(store.ok("CHANGES", since=0)["changes"]) == 4
    store.ok("MPUT", items={"k": 4, "j": 4})
    store.put("k", 5)

    # 7 changes in 6 revisions; 5 changes or 165 bytes, in whole revisions, are kept.
    for since in (0, 1):
        assert store.refused("COMPACTED", "CHANGES", since=since)["oldest"] == 3
    assert [change[0] for change in store.ok("CHANGES", since=2)["changes"]] == [3, 4, 5, 5, 6]


def test_a_revision_larger_than_the_history_is_kept_until_the_next(
    remembering: MakeStore,
) -> None:
    store = remembering(history=2)
    store.put("k")
    store.ok("MPUT", items={"a": 1, "b": 2, "c": 3})
    assert store.refused("COMPACTED", "CHANGES", since=0)["oldest"] == 2
    assert len(store.ok("CHANGES", since=1)["changes"]) == 3
    store.put("k")
    assert store.refused("COMPACTED", "CHANGES", since=1)["oldest"] == 3
    assert store.ok("CHANGES", since=2)["changes"] == [[3, "PUT", "k", 0]]


def test_without_history_only_the_newest_revision_is_kept(remembering: MakeStore) -> None:
    store = remembering(history=0)
    store.put("k")
    store.put("l")
    assert store.refused("COMPACTED", "CHANGES", since=0)["oldest"] == 2
    assert store.ok("CHANGES", since=1)["changes"] == [[2, "PUT", "l", 0]]
