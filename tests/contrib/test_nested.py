"""`zkv.contrib.nested`: dicts and lists at any depth that are stored when they are changed."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import zkv
from zkv.contrib._stored import StoredDict, StoredList
from zkv.contrib.nested import NestedDict


@pytest.fixture
def kv() -> Iterator[zkv.Client]:
    with zkv.Server() as server, zkv.Client(server.endpoint) as client:
        yield client


@pytest.fixture
def md(kv: zkv.Client) -> NestedDict:
    return NestedDict(kv, "md/")


def test_changes_at_any_depth_are_stored(kv: zkv.Client, md: NestedDict) -> None:
    md["a"] = {}
    md["a"]["b"] = 1
    md["a"]["list"] = []
    md["a"]["list"].append(2)
    md["a"]["list"].append({"deep": [[]]})
    md["a"]["list"][1]["deep"][0].extend(n for n in (3, 4))
    md["a"]["list"] += [5]
    md["a"] |= {"c": (1, [2])}
    del md["a"]["b"]
    stored = {"list": [2, {"deep": [[3, 4]]}, 5], "c": [1, [2]]}
    assert kv["md/a"] == stored
    assert NestedDict(kv, "md/") == md == {"a": stored}
    assert dict(md) == md.copy() == copy.deepcopy(md) == {"a": stored}
    assert list(kv) == ["md/a"]


def test_what_is_read_is_a_real_dict_or_list(md: NestedDict) -> None:
    md["a"] = value = {"b": [{"c": 1}]}
    read = md["a"]
    assert isinstance(read, dict)
    assert isinstance(read["b"], list)
    assert json.loads(json.dumps(read)) == value
    for plain in (read.copy(), copy.deepcopy(read), pickle.loads(pickle.dumps(read))):
        assert type(plain) is dict
        assert type(plain["b"]) is list
        assert type(plain["b"][0]) is dict
        plain["b"].append(2)
    assert md["a"] == value


def test_what_has_been_read_shows_its_own_changes(md: NestedDict) -> None:
    md["a"] = {"b": 1}
    mine, other = md["a"], md["a"]
    other["c"] = 2
    assert mine.setdefault("list", []) == []
    mine["list"].append(7)
    assert mine == md["a"] == {"b": 1, "c": 2, "list": [7]}
    assert (mine.pop("list"), mine.pop("absent", 3), other) == ([7], 3, {"b": 1, "c": 2})
    with pytest.raises(KeyError):
        mine.pop("absent")


def test_stored_values_can_be_given_to_another_place(kv: zkv.Client, md: NestedDict) -> None:
    md["a"] = {"b": {"c": []}}
    md["x"] = md["a"]["b"]
    md["a"].update([("d", md["a"]["b"])], e=md["a"]["b"])
    md["a"]["d"]["c"].append(1)
    md["a"]["e"]["c"].append(2)
    md["x"]["c"].append(3)
    assert kv["md/a"] == {"b": {"c": []}, "d": {"c": [1]}, "e": {"c": [2]}}
    assert kv["md/x"] == {"c": [3]}
    md["y"] = {}
    mine = md["y"]
    mine.update(md["a"].items())
    mine["list"] = []
    mine["list"].extend(md["a"].values())
    mine["b"]["c"].append(4)
    mine["list"][0]["c"].append(5)
    assert kv["md/y"]["b"] == {"c": [4]}
    assert kv["md/y"]["list"][0] == {"c": [5]}
    assert kv["md/a"] == {"b": {"c": []}, "d": {"c": [1]}, "e": {"c": [2]}}


def test_an_index_that_has_moved_changes_nothing(kv: zkv.Client, md: NestedDict) -> None:
    md["a"] = [{"n": 1}, {"n": 2}]
    second = md["a"][1]
    md["a"].pop(0)
    with pytest.raises(IndexError):
        second["n"] = 3
    md["a"].append({"n": 4})
    with pytest.raises(zkv.MisuseError, match="read it again"):
        second["n"] = 3
    assert kv["md/a"] == [{"n": 2}, {"n": 4}]
    md["a"] = "text"
    with pytest.raises((TypeError, zkv.MisuseError)):
        second["n"] = 3
    del md["a"]
    with pytest.raises(KeyError):
        second["n"] = 3


def test_no_change_of_another_program_is_lost(kv: zkv.Client, md: NestedDict) -> None:
    kv.put("md/a", {"list": [], "by": {}}, ttl=1000)

    def work(name: int) -> None:
        mine = NestedDict(kv, "md/")["a"]
        for n in range(20):
            mine["list"].append(n)
            mine["by"][f"{name}.{n}"] = n

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(md["a"]["list"]) == sorted([*range(20)] * 4)
    assert len(md["a"]["by"]) == 80
    assert kv.get_entry("md/a").ttl is not None


def test_the_mapping_itself(kv: zkv.Client, md: NestedDict) -> None:
    kv["other"] = 1
    md.update({"a": [1]}, b={})
    md.setdefault("a", []).append(2)
    md.setdefault("c", []).append(3)
    assert (len(md), "a" in md, "z" in md, list(md)) == (3, True, False, ["a", "b", "c"])
    assert md.pop("a") == [1, 2]
    assert type(md.popitem()[1]) is list
    with pytest.raises(KeyError):
        md["a"]
    md.clear()
    assert dict(kv) == {"other": 1}


def test_a_client_for_asyncio_is_refused() -> None:
    client: Any = zkv.AsyncClient()
    with pytest.raises(TypeError, match="client"):
        NestedDict(client)


def test_a_server_that_is_gone_leaves_all_as_it_was() -> None:
    with zkv.Server("tcp://127.0.0.1:*", data_dir=None) as server:
        client = zkv.Client(server.endpoint, timeout=0.5)
        read = NestedDict(client)
        read["a"] = {"b": [1]}
        seen = read["a"]
        server.stop()
        for change in (seen.clear, lambda: seen["b"].append(2)):
            with pytest.raises(zkv.ClientError):
                change()
        assert seen == {"b": [1]}
        client.close()


VALUES = strategies.recursive(
    strategies.integers(-5, 5) | strategies.text(max_size=2),
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(strategies.sampled_from("xyz"), inner, max_size=3)
    ),
    max_leaves=6,
)
METHODS: dict[type, list[tuple[str, tuple[Any, ...]]]] = {
    StoredDict: [
        ("__setitem__", ("x", VALUES)), ("update", (strategies.just({"y": [1]}),)), ("clear", ()),
        ("__delitem__", ("x",)), ("pop", ("y",)), ("setdefault", ("z", VALUES)), ("popitem", ()),
    ],
    StoredList: [
        ("append", (VALUES,)), ("extend", (strategies.just([{}, []]),)), ("insert", (0, VALUES)),
        ("pop", ()), ("__setitem__", (0, VALUES)), ("__delitem__", (-1,)), ("reverse", ()),
        ("clear", ()), ("remove", (VALUES,)), ("__imul__", (2,)), ("__iadd__", (VALUES,)),
        ("sort", ()), ("__setitem__", (slice(0, 2), strategies.just([{"x": 1}]))),
    ],
}  # fmt: skip


def test_it_behaves_as_a_dict_of_dicts(kv: zkv.Client) -> None:
    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            kv.clear()
            self.md = NestedDict(kv, "m/")
            self.model: dict[str, Any] = {}

        @rule(key=strategies.sampled_from("ab"), value=VALUES)
        def put(self, key: str, value: Any) -> None:
            self.md[key] = value
            self.model[key] = copy.deepcopy(value)

        @rule(data=strategies.data())
        def change(self, data: strategies.DataObject) -> None:
            mine: Any = self.md
            model: Any = self.model
            while True:
                names = list(model) if isinstance(model, dict) else list(range(len(model)))
                inner = [name for name in names if isinstance(model[name], dict | list)]
                if not inner or (model is not self.model and data.draw(strategies.booleans())):
                    break
                name = data.draw(strategies.sampled_from(inner))
                mine, model = mine[name], model[name]
            if model is self.model:
                return
            name, arguments = data.draw(strategies.sampled_from(METHODS[type(mine)]))
            given = [
                data.draw(each) if isinstance(each, strategies.SearchStrategy) else each
                for each in arguments
            ]
            outcomes = []
            before = copy.deepcopy(model)
            for target in (model, mine):
                try:
                    outcomes.append(getattr(target, name)(*copy.deepcopy(given)))
                except (LookupError, TypeError, ValueError) as error:
                    outcomes.append(type(error))
                    if name == "sort":  # A list that cannot be sorted is left half sorted.
                        model[:] = before
            assert outcomes[0] == outcomes[1]
            assert model == mine
            # In Python, `*=` puts one object into several places; stored places are separate.
            self.model = json.loads(json.dumps(self.model))

        @invariant()
        def the_store_is_as_the_model(self) -> None:
            assert dict(kv.namespace("m/")) == self.model

    run_state_machine_as_test(
        Machine, settings=hypothesis.settings(max_examples=25, stateful_step_count=15)
    )
