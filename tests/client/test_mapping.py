"""The store as a mapping: it does what a dict does, with text as keys, and in order."""

from __future__ import annotations

import itertools
import math
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import ServerInProcess
from zkv import Client, Namespace, NotFoundError
from zkv.client import mapping


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client whose server serves all tests of this module, each in a namespace of its own."""
    quick = {"fsync": "never", "snapshot_interval": 3600.0}
    directory = tmp_path_factory.mktemp("mapping")
    with ServerInProcess(directory, durability=quick) as server, Client(server.endpoint) as client:
        yield client


numbers = itertools.count()


@pytest.fixture
def kv(store: Client) -> Namespace:
    return store.namespace(f"{next(numbers)}/")


KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3)
FEW_KEYS = st.sampled_from(["a", "b", "ab", "ü", "z\0", "\U0001f600"])
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
ITEMS = st.dictionaries(FEW_KEYS, VALUES, max_size=4)

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("__setitem__"), FEW_KEYS, VALUES),
        st.tuples(st.just("__getitem__"), FEW_KEYS),
        st.tuples(st.just("__delitem__"), FEW_KEYS),
        st.tuples(st.just("__contains__"), FEW_KEYS | st.integers()),
        st.tuples(st.just("get"), FEW_KEYS),
        st.tuples(st.just("get"), FEW_KEYS, VALUES),
        st.tuples(st.just("pop"), FEW_KEYS),
        st.tuples(st.just("pop"), FEW_KEYS, VALUES),
        st.tuples(st.just("setdefault"), FEW_KEYS, VALUES),
        st.tuples(st.just("setdefault"), FEW_KEYS),
        st.tuples(st.just("update"), ITEMS),
        st.tuples(st.just("update"), ITEMS.map(lambda items: list(items.items()))),
        st.tuples(st.just("__ior__"), ITEMS),
        st.tuples(st.just("__eq__"), ITEMS),
        st.just(("clear",)),
        st.just(("__len__",)),
    ),
    max_size=20,
)


def outcome(store: MutableMapping[str, Any], name: str, arguments: tuple[Any, ...]) -> Any:
    """What a method returns, or the kind of error that it raises."""
    try:
        result = getattr(store, name)(*arguments)
    except KeyError:
        return KeyError
    return "itself" if result is store else result


def ordered(items: dict[str, Any]) -> list[tuple[str, Any]]:
    """The items as a store has them: in the order of their keys' UTF-8."""
    return sorted(items.items(), key=lambda item: item[0].encode())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_it_does_what_a_dict_does(store: Client, steps: list[tuple[Any, ...]]) -> None:
    mine, model = store.namespace(f"{next(numbers)}/"), dict[str, Any]()
    for name, *arguments in steps:
        assert outcome(mine, name, tuple(arguments)) == outcome(model, name, tuple(arguments))
    assert list(mine.items()) == ordered(model)
    assert list(mine) == list(mine.keys()) == [key for key, _ in ordered(model)]
    assert list(mine.values()) == [value for _, value in ordered(model)]
    assert list(reversed(mine)) == list(mine)[::-1]
    assert mine == model
    assert bool(mine) is bool(model)
    assert len(mine) == len(model)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=st.dictionaries(KEYS.filter(lambda key: key[0] != "\0"), VALUES, max_size=20))
def test_whatever_is_put_in_comes_out(store: Client, items: dict[str, Any]) -> None:
    mine = store.namespace(f"{next(numbers)}/")
    mine.update(items)

    assert dict(mine) == items
    assert list(mine.items()) == ordered(items)


def test_views_are_live(kv: Namespace) -> None:
    keys, values, items = kv.keys(), kv.values(), kv.items()
    kv.update(b=2, a=1)

    assert (list(keys), list(values), list(items)) == (["a", "b"], [1, 2], [("a", 1), ("b", 2)])
    assert (len(keys), len(values), len(items)) == (2, 2, 2)
    assert keys & {"a", "x"} == {"a"}
    assert not keys ^ {"a", "b"}
    assert "a" in keys
    assert 2 in values
    assert 3 not in values
    assert ("a", 1) in items
    assert ("a", 2) not in items
    assert ("x", 1) not in items
    assert list(reversed(keys)) == ["b", "a"]
    assert list(reversed(values)) == [2, 1]
    assert list(reversed(items)) == [("b", 2), ("a", 1)]


def test_popitem_takes_the_last_key_until_there_is_none(kv: Namespace) -> None:
    kv.update(b=2, a=1)

    assert [kv.popitem(), kv.popitem()] == [("b", 2), ("a", 1)]
    with pytest.raises(KeyError):
        kv.popitem()


def test_what_is_absent_is_a_key_error(kv: Namespace) -> None:
    with pytest.raises(KeyError):
        kv["k"]
    with pytest.raises(KeyError):
        del kv["k"]
    with pytest.raises(NotFoundError):
        kv.pop("k")


def test_keys_are_text(kv: Namespace) -> None:
    other: Any = kv
    for use in (other.__getitem__, other.__delitem__, other.pop, other.get):
        with pytest.raises(TypeError, match="key"):
            use(1)
    with pytest.raises(TypeError, match="key"):
        other[b"k"] = 1
    assert 1 not in other
    assert kv != 1


def test_a_namespace_is_not_hashable_and_equals_itself(kv: Namespace) -> None:
    kv["nan"] = math.nan
    with pytest.raises(TypeError):
        hash(kv)

    assert kv == kv  # noqa: PLR0124  without looking at a value
    assert kv == Namespace(kv, "") or math.isnan(kv["nan"])


def test_update_of_more_than_a_request_holds_is_split(tmp_path: Any) -> None:
    limits = {"max_batch": 10}
    with ServerInProcess(tmp_path, limits=limits) as server, Client(server.endpoint) as kv:
        items = {f"{number:03}": number for number in range(95)}
        kv.update(items)

        assert kv.count() == 95
        kv.clear()
        assert not kv


def test_a_prefix_may_be_any_text(store: Client) -> None:
    kv = store.namespace("ü\U0001f600/")
    kv["ü"] = 1

    assert dict(kv) == {"ü": 1}
    assert repr(kv) == "<Namespace 'ü\U0001f600/'>"


# --- dict(kv) reads pages, as dict(kv.items()) does


def requests(store: Client, copy: Callable[[], object]) -> int:
    """How many requests it takes."""
    before = sum(store.info()["stats"]["requests"].values())
    copy()
    after = sum(store.info()["stats"]["requests"].values())
    return int(after - before - 1)


def as_keywords(**keywords: Any) -> dict[str, Any]:
    return keywords


COPIES: dict[str, Callable[[Any], Any]] = {
    "dict": dict,
    "literal": lambda kv: {**kv},
    "keywords": lambda kv: as_keywords(**kv),
    "update": lambda kv: [copy := {}, copy.update(kv)][0],
    "OrderedDict": lambda kv: dict(OrderedDict(kv)),
    "map": lambda kv: next(map(dict, [kv])),
    "items": lambda kv: dict(kv.items()),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES.keys())
def test_a_copy_takes_pages(copy: Callable[[Any], Any], kv: Namespace, store: Client) -> None:
    items = {f"{number:05}": [number, None] for number in range(2_500)}
    kv.update(items)
    kv["none"] = None

    assert copy(kv) == items | {"none": None}
    assert list(copy(kv)) == sorted([*items, "none"])
    assert requests(store, lambda: copy(kv)) == 3


def test_a_loop_over_the_keys_reads_values_as_they_are_then(kv: Namespace) -> None:
    kv.update(a=1, b=2, c=3)
    seen = {}
    for key in kv.keys():  # noqa: SIM118  the view is what is tested
        kv["c"] = key
        seen[key] = kv[key]
    assert seen == {"a": 1, "b": 2, "c": "c"}
    keys = kv.keys()
    assert {key: (kv.put("b", key), kv[key])[1] for key in keys} == {"a": 1, "b": "b", "c": "c"}
    listed = list(kv.keys())
    kv["a"] = "new"
    assert list(map(kv.__getitem__, listed)) == ["new", "c", "c"]


def test_a_copy_that_is_interrupted_leaves_nothing_behind(
    kv: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    kv.update({f"{number:05}": number for number in range(1_500)})
    pages = type(kv)._pages

    def interrupted(self: Any, scan: Any) -> Any:
        yield next(pages(self, scan))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(kv), "_pages", interrupted)
        with pytest.raises(KeyboardInterrupt):
            dict(kv)
    assert not mapping._copies
    kv["00000"] = "new"
    assert kv["00000"] == "new"
    assert dict(kv)["00000"] == "new"
    assert not mapping._copies


def test_copies_of_many_threads_and_namespaces_do_not_mix(store: Client) -> None:
    spaces = [store.namespace(f"{next(numbers)}/") for _ in range(4)]
    for place, space in enumerate(spaces):
        space.update({f"{number:04}": place for number in range(1_200)})

    def copies(place: int) -> list[set[int]]:
        return [set(dict(spaces[(place + turn) % 4]).values()) for turn in range(8)]

    with ThreadPoolExecutor(4) as pool:
        for place, values in enumerate(pool.map(copies, range(4))):
            assert values == [{(place + turn) % 4} for turn in range(8)]


def test_a_copy_of_nothing_leaves_nothing_behind(kv: Namespace) -> None:
    assert dict(kv) == {}
    kv["a"] = 1
    assert OrderedDict(kv) == {"a": 1}
    assert not mapping._copies


def test_a_view_does_not_keep_its_maker_alive(kv: Namespace) -> None:
    class Local:
        pass

    def make() -> tuple[Any, weakref.ref[Local]]:
        local = Local()
        return kv.keys(), weakref.ref(local)

    keys, local = make()
    assert local() is None
    assert list(keys) == []


def test_what_is_no_item_is_not_in_the_items(kv: Namespace) -> None:
    kv["a"] = 1
    items: Any = kv.items()
    assert ("a", 1) in items
    for other in (5, None, "ab", (1, 1), ("a",), ("a", 1, 2), [["a", 1]]):
        assert other not in items


def test_there_is_no_last_item_in_nothing(kv: Namespace) -> None:
    with pytest.raises(NotFoundError):
        kv.popitem()
