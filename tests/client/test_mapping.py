"""The store as a mapping: it does what a dict does, with text as keys, and in order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import ServerInProcess
from zkv import Client, Namespace, NotFoundError


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


def outcome(mapping: MutableMapping[str, Any], name: str, arguments: tuple[Any, ...]) -> Any:
    """What a method returns, or the kind of error that it raises."""
    try:
        result = getattr(mapping, name)(*arguments)
    except KeyError:
        return KeyError
    return "itself" if result is mapping else result


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
    mapping: Any = kv
    for use in (mapping.__getitem__, mapping.__delitem__, mapping.pop, mapping.get):
        with pytest.raises(TypeError):
            use(1)
    with pytest.raises(TypeError):
        mapping[b"k"] = 1
    assert 1 not in mapping
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
