"""SCAN and COUNT, compared with a search through all keys."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.requests.contract_stores import (
    DurableStore,
    Store,
    Worker,
    opened,
    request,
)
from tests.support import unpack

LETTERS = "a\x01\x7f\x80\xe9\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff"
"""Keys of every length in UTF-8, the first and last of each, and the neighbours of surrogates."""

keys = st.text(LETTERS, min_size=1, max_size=3)
bounds = st.none() | st.text(LETTERS + "\0", max_size=3)
in_few_stores = pytest.mark.parametrize("kind", ["memory", "snapshot, reopened"])


def brute_scan(
    there: dict[str, Any],
    prefix: str | None = None,
    start: str | None = None,
    end: str | None = None,
    after: str | None = None,
    limit: int = 100,
    reverse: bool = False,
    **_: object,
) -> tuple[list[str], str | None]:
    """The keys of a page and its ``next``, found the simple way."""
    order = sorted(there, key=str.encode, reverse=reverse)
    found = [
        key
        for key in map(str.encode, order)
        if key.startswith((prefix or "").encode())
        and (start is None or key >= start.encode())
        and (end is None or key < end.encode())
        and (after is None or (key < after.encode() if reverse else key > after.encode()))
    ]
    page = [key.decode() for key in found[:limit]]
    return page, page[-1] if len(found) > limit else None


def given_fields(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Maps of these fields, any of which may be absent; a field that is None is absent, too."""
    return st.fixed_dictionaries({}, optional=strategies).map(
        lambda fields: {name: value for name, value in fields.items() if value is not None}
    )


scans = given_fields(
    prefix=bounds,
    start=bounds,
    end=bounds,
    after=bounds,
    limit=st.integers(1, 12),
    reverse=st.booleans(),
    values=st.booleans(),
)
lives = st.sampled_from([None, 1, 2])


def fill(store: Store, entries: dict[str, int | None]) -> dict[str, list[Any]]:
    """Write entries with these ttls, let a second pass; the items that are left."""
    for number, (key, ttl) in enumerate(entries.items()):
        store.put(key, number, **({} if ttl is None else {"ttl": ttl}))
    store.clock.advance(1_000)
    return {
        key: [key, number, number + 1]
        for number, (key, ttl) in enumerate(entries.items())
        if ttl != 1
    }


@in_few_stores
@given(entries=st.dictionaries(keys, lives, max_size=15), fields=scans, removed=st.booleans())
def test_scan_gives_what_a_search_through_all_gives(
    kind: str, entries: dict[str, int | None], fields: dict[str, Any], removed: bool
) -> None:
    with opened(kind) as store:
        there = fill(store, entries)
        if removed:
            store.remove_expired()
        rev = store.rev

        reply = store.ok("SCAN", **fields)

        page, following = brute_scan(there, **fields)
        items = [there[key] for key in page]
        if fields.get("values") is False:
            items = [[key, None, rev] for key, _, rev in items]
        assert reply == {"ok": True, "items": items, "next": following, "rev": rev}


@in_few_stores
@given(entries=st.dictionaries(keys, lives, max_size=15), prefix=bounds, removed=st.booleans())
def test_count_counts_what_scan_gives(
    kind: str, entries: dict[str, int | None], prefix: str | None, removed: bool
) -> None:
    with opened(kind) as store:
        there = fill(store, entries)
        if removed:
            store.remove_expired()
        fields = {} if prefix is None else {"prefix": prefix}

        page, _ = brute_scan(there, prefix)
        assert store.ok("COUNT", **fields) == {"ok": True, "count": len(page)}
        assert store.ok("INFO")["keys"] == len(there)


def test_scan_gives_100_entries_with_their_values_unless_told_otherwise(store: Store) -> None:
    store.ok("MPUT", items={f"{number:03}": number for number in range(101)})
    reply = store.ok("SCAN")
    assert reply["items"] == [[f"{number:03}", number, 1] for number in range(100)]
    assert reply["next"] == "099"
    assert store.ok("SCAN", after="099")["items"] == [["100", 100, 1]]
    assert store.ok("SCAN", limit=101)["next"] is None


def pages(store: Store, limit: int, between: Callable[[], object], **fields: Any) -> list[Any]:
    """All items of a scan, page by page."""
    items: list[Any] = []
    after: dict[str, str] = {}
    while True:
        reply = store.ok("SCAN", limit=limit, **fields, **after)
        assert len(reply["items"]) <= limit
        items += reply["items"]
        if reply["next"] is None:
            return items
        after = {"after": reply["next"]}
        between()


writes_between = st.lists(
    st.tuples(st.sampled_from(["PUT", "short", "DELETE", "expiry"]), keys), max_size=40
)


@pytest.mark.parametrize("kind", ["memory", "log, never"])
@given(
    staying=st.sets(keys, max_size=15),
    others=writes_between,
    limit=st.integers(1, 5),
    reverse=st.booleans(),
    each=st.integers(1, 6),
)
def test_a_scan_page_by_page_under_writes_gives_each_staying_key_once(
    kind: str,
    staying: set[str],
    others: list[tuple[str, str]],
    limit: int,
    reverse: bool,
    each: int,
) -> None:
    with opened(kind) as store:
        store.ok("MPUT", items=dict.fromkeys(staying, "stays"))
        writes = iter([(how, key) for how, key in others if key not in staying])

        def write(how: str, key: str) -> None:
            match how:
                case "PUT":
                    store.put(key)
                case "short":
                    store.put(key, ttl=0.002)
                case "DELETE":
                    store.call("DELETE", key=key)
                case "expiry":
                    store.clock.advance(1)
                    store.remove_expired()

        def write_some() -> None:
            for how, key in itertools.islice(writes, each):
                write(how, key)

        write_some()
        found = [key for key, _, _ in pages(store, limit, write_some, reverse=reverse)]

        assert found == sorted(set(found), key=str.encode, reverse=reverse)
        assert [key for key in found if key in staying] == sorted(staying, reverse=reverse)


def test_scans_and_counts_beside_writers_in_other_threads(durable_store: DurableStore) -> None:
    store = durable_store
    staying = [f"{number:03}" for number in range(0, 200, 2)]
    store.ok("MPUT", items=dict.fromkeys(staying, "stays"))
    done = threading.Event()
    errors: list[BaseException] = []

    def write(worker: Worker, mine: list[str]) -> None:
        # Each batch is put and taken away as a whole: whoever sees a part of it sees a torn write.
        try:
            while not done.is_set():
                for body in (
                    request("MPUT", items=dict.fromkeys(mine, "goes")),
                    request("MDELETE", keys=mine),
                ):
                    assert unpack(worker.exchange(body))["ok"]
        except BaseException as error:
            errors.append(error)

    batches = [[f"{number:03}" for number in range(first, 200, 8)] for first in (1, 3, 5)]
    threads = [
        threading.Thread(target=write, args=(store.worker(), batch), daemon=True)
        for batch in batches
    ]
    for thread in threads:
        thread.start()
    reverse = False
    for _ in range(60):
        reverse = not reverse
        found = [key for key, _, _ in pages(store, 7, lambda: None, reverse=reverse)]
        assert found == sorted(set(found), reverse=reverse)
        assert [key for key in found if key in staying] == sorted(staying, reverse=reverse)
        at_once = {key for key, _, _ in store.items()}
        for batch in batches:
            assert len(at_once & set(batch)) in {0, len(batch)}
            assert store.ok("MGET", keys=batch)["revs"].count(0) in {0, len(batch)}
        assert (store.ok("COUNT")["count"] - len(staying)) % len(batches[0]) == 0
    done.set()
    for thread in threads:
        thread.join()
    assert errors == []
