"""The table of entries, in C and in Python: a mapping in the order of its keys."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkv.bounds import Range
from zkv.keyspace import StoredEntry
from zkv.keyspace.table import SAMPLES, PythonTable, Table, is_compiled, new_table

TABLES = [PythonTable] if isinstance(new_table(), PythonTable) else [new_table, PythonTable]

Model = dict[str, StoredEntry]

# Many keys that begin alike, and characters whose UTF-8 has one to four bytes.
keys = st.text("ab\0\x7f\x80\uffff\U00010000", max_size=4)
entries = st.builds(
    StoredEntry, st.binary(min_size=1), st.integers(0, 2**63 - 1), st.none() | st.integers(1, 99)
)
ranges = st.builds(Range, keys, st.none() | keys, st.booleans())
everything = Range("", None)


@pytest.fixture(params=TABLES, ids=lambda kind: kind.__name__)
def table(request: pytest.FixtureRequest) -> Table:
    empty: Table = request.param()
    return empty


def check(table: Table, model: Model, asked: Range, most: int) -> None:
    """A table has what a model has, in order."""
    items = sorted(model.items())
    assert list(table.items()) == items
    found = [(key, entry) for key, entry in items if asked.holds(key)]
    assert table.count(asked) == len(found)
    assert table.pairs(asked, most) == found[:most]
    assert table.pairs(asked, most, True) == found[::-1][:most]
    sizes = [(len(key.encode()), len(entry.value)) for key, entry in items]
    assert table.sizes() == (sum(size for size, _ in sizes), sum(size for _, size in sizes))
    expiring = [(entry.expires, key) for key, entry in items if entry.expires is not None]
    assert sorted(table.deadlines()) == sorted(expiring)


@pytest.mark.parametrize("kind", TABLES)
@given(steps=st.lists(st.tuples(keys, st.none() | entries)), asked=ranges, most=st.integers(0, 5))
def test_a_table_is_in_order(
    kind: type[Table], steps: list[tuple[str, StoredEntry | None]], asked: Range, most: int
) -> None:
    table, model = kind(), Model()
    for key, entry in steps:
        if entry is None:
            assert table.pop(key, None) == model.pop(key, None)
        else:
            table[key] = model[key] = entry
    check(table, model, asked, most)


prefixes = st.lists(keys, max_size=5)
counting = st.one_of(
    st.tuples(keys, st.none() | entries),
    st.builds(lambda prefixes: ("count_bytes", prefixes), prefixes),
    st.builds(lambda most: ("count_more", most), st.integers(0, 4)),
)


def check_counts(table: Table, counted: list[str], complete: bool) -> None:
    """A table tells, for each prefix alone, the bytes that are there, or that it does not know."""
    for prefix in {"", "a", "ab", *counted}:
        found = table.bytes_under((prefix,))
        if prefix not in counted:
            assert found is None
        elif complete or found is not None:
            assert found == held_under(table, prefix)


def held_under(table: Table, *prefixes: str) -> int:
    items = [(key, entry) for key, entry in table.items() if key.startswith(prefixes)]
    return sum(len(key.encode()) + len(entry.value) for key, entry in items)


@pytest.mark.parametrize("kind", TABLES)
@given(steps=st.lists(counting, max_size=30))
def test_bytes_are_counted_by_prefix(kind: type[Table], steps: list[tuple[str, Any]]) -> None:
    """Whatever is written while they are, and whichever prefixes come and go."""
    table, counted, complete = kind(), list[str](), True
    for step, more in steps:
        if step == "count_bytes":
            known = {each for each in counted if table.bytes_under((each,)) is not None}
            table.count_bytes(more)
            counted, complete = more, known.issuperset(more)
        elif step == "count_more":
            complete = not table.count_more(more)
        elif more is None:
            table.pop(step, None)
        else:
            table[step] = more
        check_counts(table, counted, complete)
    while table.count_more(1):
        pass
    check_counts(table, counted, True)


@pytest.mark.parametrize("most", [1, 63, 64, 65, 1_000, 100_000])
def test_bytes_of_many_are_counted_in_steps(table: Table, most: int) -> None:
    chance = random.Random(6)
    some = names(3_000)
    for key in chance.sample(some, 2_000):
        table[key] = StoredEntry(b"x" * chance.randrange(1, 9), 1)
    asked = ["", *[f"{number:02}" for number in range(0, 30, 2)], "000", "0999", "1"]
    table.count_bytes(asked)
    steps = 1
    while table.count_more(most):
        steps += 1
        for key in chance.sample(some, 5):
            if chance.random() < 0.5:
                table.pop(key, None)
            else:
                table[key] = StoredEntry(b"x" * chance.randrange(1, 9), 2)
    assert steps >= 2_000 // most
    check_counts(table, asked, True)
    assert table.bytes_under(("00", "02", "1")) == held_under(table, "00", "02", "1")
    table.count_bytes(["1", "00"])
    assert table.bytes_under(("1",)) == held_under(table, "1"), "it is known already"


@pytest.mark.parametrize("bad", [None, "ab", ["ab"], [1], (1,), ("\ud800",)])
def test_only_a_tuple_of_texts_is_asked_for(bad: Any) -> None:
    table: Any = new_table()
    if not is_compiled(table):
        pytest.skip("Python's table trusts its callers")
    table.count_bytes(["ab"])
    with pytest.raises((TypeError, UnicodeEncodeError, SystemError)):
        table.bytes_under(bad)


def names(count: int) -> list[str]:
    """Keys of different sizes, in order."""
    return sorted(f"{number:04}" + "x" * (number % 7) for number in range(count))


def from_both_ends(keys: list[str]) -> list[str]:
    pairs = zip(keys, keys[::-1], strict=True)
    return [key for pair in pairs for key in pair][: len(keys)]


ORDERS: dict[str, Callable[[list[str]], list[str]]] = {
    "up": list,
    "down": lambda keys: keys[::-1],
    "random": lambda keys: random.Random(1).sample(keys, len(keys)),
    "from both ends": from_both_ends,
    "every other": lambda keys: keys[::2] + keys[1::2],
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_large_table_is_in_order(table: Table, order: str) -> None:
    """It stays so while it grows, while it shrinks in any order, and when it grows again."""
    chance, model = random.Random(2), Model()
    some = names(4_000)

    def check_now_and_then(step: int) -> None:
        if step % 1_000 == 0:
            one, other = chance.sample([*some, "", "9"], 2)
            first, last = sorted([one, other])
            for asked in (Range(one, other), Range(first, last, False), everything):
                check(table, model, asked, chance.choice([1, 700, 5_000]))

    for step, key in enumerate(ORDERS[order](some)):
        table[key] = model[key] = StoredEntry(b"%d" % step, step, step % 50 or None)
        check_now_and_then(step)
    for removed in ("up", "random", "from both ends"):
        for step, key in enumerate(ORDERS[removed](some)):
            if chance.random() < 0.9:
                assert table.pop(key, None) == model.pop(key, None)
                check_now_and_then(step)
        for step, key in enumerate(ORDERS[order](some)):
            if chance.random() < 0.9:
                table[key] = model[key] = StoredEntry(b"%d" % step, step)
                check_now_and_then(step)
    check(table, model, everything, 5_000)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_walk_gives_what_stays_once_while_other_keys_come_and_go(
    table: Table, reverse: bool
) -> None:
    chance = random.Random(3)
    some = names(6_000)
    stay = set(some[::3])
    for key in chance.sample(some, 3_000) + list(stay):
        table[key] = StoredEntry(b"1", 1)
    rest, seen = everything, list[str]()
    while page := table.pairs(rest, chance.randrange(1, 90), reverse):
        seen += [key for key, _ in page]
        rest = rest.beyond(seen[-1], reverse)
        for key in chance.sample(some, 300):
            if key in stay or chance.random() < 0.5:
                table[key] = StoredEntry(b"2", 2)
            else:
                table.pop(key, None)
    assert seen == sorted(set(seen), reverse=reverse)
    assert stay <= set(seen)


def test_an_entry_keeps_its_place_whichever_value_it_gets(table: Table) -> None:
    some = names(2_000)
    table.update({key: StoredEntry(b"1", 1) for key in some})
    model = {key: StoredEntry(b"x" * size, 2, size % 3 or None) for size, key in enumerate(some)}
    for key in random.Random(4).sample(some, len(some)):
        table[key] = model[key]
    check(table, model, everything, 3_000)


@pytest.mark.parametrize("by_expiry", [False, True])
def test_what_is_picked_is_in_the_range_and_there_once(table: Table, by_expiry: bool) -> None:
    """While keys come and go; also where the range has a few keys on both sides of a boundary."""
    chance = random.Random(7)
    some = names(5_000)
    table.keep_clocks()
    for key in chance.sample(some, len(some)):
        table[key] = StoredEntry(b"x" * chance.randrange(1, 9), 1, chance.choice([None, 1, 2]))
    for _ in range(300):
        place, size = chance.randrange(5_000), chance.choice([0, 1, 9, 30, 400, 5_000])
        low, high = some[place], (some + [None] * 5_000)[place + size]
        asked, most = Range(low, high), chance.choice([0, 1, 3, 100])
        picked = table.pick(asked, most, by_expiry)
        assert len({key for key, _ in picked}) == len(picked)
        there = table.count(asked)
        assert min(most, there, 1) <= len(picked) <= min(most, there)
        assert len(picked) == most or there > most * SAMPLES or there == len(picked)
        for key, bytes_ in picked:
            assert asked.holds(key)
            assert bytes_ == len(key) + len(table[key].value)
            del table[key]
        table[chance.choice(some)] = StoredEntry(b"y", 2)


def test_what_is_used_is_picked_last(table: Table) -> None:
    table["before"] = StoredEntry(b"1", 1)
    table.keep_clocks()
    for rev, key in enumerate("abc", 2):
        table[key] = StoredEntry(b"1", rev)
    table.get("before")
    table.get("a")
    table.get("absent")
    assert table["b"].rev == 3
    assert [key for key, _ in table.pick(everything, 9, False)] == ["b", "c", "before", "a"]


@pytest.mark.parametrize("bad", [(everything, -1, False), (everything, 1, False), (everything,)])
def test_a_compiled_table_picks_only_what_it_can(bad: Any) -> None:
    table: Any = new_table()
    if not is_compiled(table):
        pytest.skip("Python's table trusts its callers")
    with pytest.raises((TypeError, ValueError)):
        table.pick(*bad)


def test_memory_is_used_again() -> None:
    """Of entries that are removed, and of the index, whose parts are split and merged."""
    table = new_table()
    if not is_compiled(table):
        pytest.skip("Python's own objects")
    chance = random.Random(5)
    some, entry = names(5_000), StoredEntry(b"x" * 40, 1, 1)

    def fill_and_empty(rounds: int) -> None:
        for _ in range(rounds):
            for key in chance.sample(some, len(some)):
                table[key] = entry
            for key in chance.sample(some, len(some)):
                del table[key]

    fill_and_empty(20)
    size = resident()
    fill_and_empty(100)
    assert resident() - size < 1_500_000
    assert table.count(everything) == 0


def resident() -> int:
    """Bytes of memory that this process takes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
