"""Caches: what is evicted, when, and that nothing else ever is. Over both tables."""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.keyspace.test_keyspace import FakeLog, under
from tests.requests.stores import Store
from zkv.bounds import Range
from zkv.errors import Full, NotFound
from zkv.keyspace import EXPIRE, CacheBound, PackedCommit, StoredEntry, eviction
from zkv.keyspace.change import REMOVALS
from zkv.keyspace.table import PythonTable, Table, is_compiled, new_table
from zkv.users.quota import Quota

TABLES = [PythonTable] if isinstance(new_table(), PythonTable) else [new_table, PythonTable]
ENTRY = 10
"""Bytes of each entry of `name` and `VALUE`."""
VALUE = b"\xa2ab"


@pytest.fixture(params=TABLES, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Callable[[], Table]:
    chosen: Callable[[], Table] = request.param
    return chosen


def name(number: int) -> str:
    return f"c/{number:05}"


def packed(size: int) -> bytes:
    """A value of so many bytes."""
    return b"\x00" if size == 1 else b"\xc5" + (size - 3).to_bytes(2, "big") + bytes(size - 3)


def cached(
    kind: Callable[[], Table] = new_table, entries: int = 9, policy: str = "lru", **more: object
) -> Store:
    """A store with a cache for so many entries."""
    keyspace = Store(kind=kind, **more)  # type: ignore[arg-type]
    keyspace.set_caches([CacheBound("c/", entries * ENTRY, policy)])  # type: ignore[arg-type]
    return keyspace


def kept(keyspace: Store) -> set[int]:
    """The numbers of the names that are there."""
    return {int(key[2:]) for key in keyspace.entries if key.startswith("c/")}


def for_lane(keyspace: Store) -> bool:
    """True if its lane may write."""
    with keyspace.lock:
        return keyspace.takes_runs


def commits(keyspace: Store, since: int = 0) -> list[PackedCommit]:
    return keyspace.changes_since(since, 10_000)[0]


# --- What goes -------------------------------------------------------------------------------


def test_what_has_not_been_used_for_longest_goes(kind: Callable[[], Table]) -> None:
    """A small cache is looked at as a whole: it is exact."""
    keyspace = cached(kind)
    for number in range(9):
        keyspace.put(name(number), VALUE)
    keyspace.get(name(0))
    keyspace.get_many([name(1), name(2)])
    keyspace.put(name(3), VALUE)
    for number in range(9, 13):
        keyspace.put(name(number), VALUE)
    assert kept(keyspace) == {0, 1, 2, 3, 8, 9, 10, 11, 12}
    assert keyspace.evicted == 4


def test_what_expires_first_goes(kind: Callable[[], Table]) -> None:
    """Then what never expires, the oldest first."""
    keyspace = cached(kind, policy="ttl")

    def put(number: int, ttl: int | None) -> None:
        with keyspace.lock:
            transaction = keyspace.begin()
            transaction.put(name(number), VALUE, None if ttl is None else keyspace.time + ttl)
            keyspace.commit(transaction)

    for number, ttl in enumerate([None, 50, 40, None, 60, None, None, None, None]):
        put(number, ttl)
    for number, gone in zip(range(10, 15), [2, 1, 4, 0, 3], strict=True):
        before = kept(keyspace)
        keyspace.get(name(gone))
        put(number, None)
        assert before - kept(keyspace) == {gone}


def test_a_scan_is_no_use(kind: Callable[[], Table]) -> None:
    keyspace = cached(kind)
    for number in range(9):
        keyspace.put(name(number), VALUE)
    keyspace.scan(Range("c/", name(3)), 100, False)
    keyspace.put(name(9), VALUE)
    assert kept(keyspace) == set(range(1, 10))


def hits(keyspace: Store, requests: list[int]) -> int:
    """Of a client that puts what it has not found."""
    found = 0
    for number in requests:
        try:
            keyspace.get(name(number))
            found += 1
        except NotFound:
            keyspace.put(name(number), VALUE)
    return found


def hits_of_lru(entries: int, requests: list[int]) -> int:
    """Of an exact LRU of so many entries."""
    there: OrderedDict[int, None] = OrderedDict()
    found = 0
    for number in requests:
        if number in there:
            there.move_to_end(number)
            found += 1
        else:
            there[number] = None
            if len(there) > entries:
                there.popitem(last=False)
    return found


def zipf(keys: int, chance: random.Random) -> list[int]:
    """20 requests for each key, with a scan of cold keys between."""
    weights = list(itertools.accumulate(rank**-0.99 for rank in range(1, keys + 1)))
    some = chance.choices(range(keys), cum_weights=weights, k=20 * keys)
    return some[: 10 * keys] + list(range(keys, keys + keys // 4)) + some[10 * keys :]


@pytest.mark.parametrize("share", [0.01, 0.1])
def test_nearly_as_many_hits_as_exact_lru(kind: Callable[[], Table], share: float) -> None:
    """Random eviction would have 0.92 and 0.96 of its hits."""
    keys = 5_000 if is_compiled(kind()) else 2_000
    requests = zipf(keys, random.Random(1))
    entries = int(keys * share)
    assert hits(cached(kind, entries), requests) >= 0.98 * hits_of_lru(entries, requests)


def test_after_a_restart_the_oldest_writes_go_first(kind: Callable[[], Table]) -> None:
    """Until entries are used again: clocks are not saved."""
    entries = {name(number): StoredEntry(VALUE, 9 - number) for number in range(9)}
    keyspace = Store(entries, 9, kind=kind)
    keyspace.set_caches([CacheBound("c/", 9 * ENTRY)])
    keyspace.get(name(8))
    keyspace.put(name(9), VALUE)
    keyspace.put(name(10), VALUE)
    assert kept(keyspace) == {*range(6), 8, 9, 10}


# --- When and how ----------------------------------------------------------------------------


def test_an_eviction_is_a_commit_of_its_own(kind: Callable[[], Table]) -> None:
    keyspace = cached(kind)
    keyspace.put_many({name(number): VALUE for number in range(9)})
    assert keyspace.put(name(9), VALUE)[0] == 2
    put, evict = commits(keyspace, 1)
    assert (put.rev, put.evicts) == (2, False)
    assert (evict.rev, evict.evicts) == (3, True)
    (change,) = evict.changes
    assert (change.op, bytes(change.value), change.expires) == (EXPIRE, b"\xc0", None)
    with pytest.raises(NotFound) as absent:
        keyspace.get(change.key)
    assert absent.value.seen_rev == 3


def test_up_to_100_are_evicted_in_one_commit(kind: Callable[[], Table]) -> None:
    """And as many as have been written, and 100, before the next request."""
    keyspace = cached(kind, 1_000)
    keyspace.put_many({name(number): VALUE for number in range(1_000)})
    keyspace.put_many({name(number): VALUE for number in range(1_000, 1_250)})
    assert [commit.count for commit in commits(keyspace, 2)] == [1, 100, 100, 49]
    assert len(keyspace.entries) == 1_000
    keyspace.put(name(2_000), packed(9_000))
    assert len(keyspace.entries) == 1_000 + 1 - 101
    assert keyspace.owed == 0


def test_what_a_long_write_evicts_is_evicted_in_steps(kind: Callable[[], Table]) -> None:
    """Since everyone waits for the lock meanwhile."""
    keyspace = cached(kind, 1_000)
    keyspace.put_many({name(number): VALUE for number in range(1_800)})
    assert len(keyspace.entries) == 1_800 - 500
    assert keyspace.owed == 1_800 + 100 - 500
    steps = 1
    while keyspace.owed and keyspace.evict():
        steps += 1
    assert steps == 3
    assert len(keyspace.entries) == 1_000
    assert keyspace.owed == 0


def test_the_thread_evicts_the_rest(kind: Callable[[], Table]) -> None:
    keyspace = cached(kind, 1_000)
    alarms: list[bool] = []
    keyspace.alarm = lambda: alarms.append(True)
    keyspace.put_many({name(number): VALUE for number in range(1_000)})
    assert not keyspace.evict()
    assert not alarms
    keyspace.put(name(1_000), packed(5_000))
    assert alarms
    steps = 1
    while keyspace.evict():
        steps += 1
    assert steps == 4
    assert under(keyspace, "c/") <= 10_000
    assert len(keyspace.entries) == 1_001 - 501
    assert 1_000 in kept(keyspace)


def test_a_cache_that_is_far_beyond_its_bound_takes_no_more(kind: Callable[[], Table]) -> None:
    """Until evictions have caught up. What does not let it grow is done, and all elsewhere."""
    keyspace = cached(kind, 1_000)
    keyspace.put_many({name(number): VALUE for number in range(1_000)})
    assert for_lane(keyspace)
    keyspace.put(name(1_000), packed(5_000))
    assert not for_lane(keyspace)
    assert keyspace.takes_writes
    over = under(keyspace, "c/") - 10_000
    assert over > 10_000 // 20
    with pytest.raises(Full, match=rf"the cache 'c/' takes {over} bytes more than its max_bytes"):
        keyspace.put(name(1_001), VALUE)
    assert under(keyspace, "c/") == over + 10_000, "it is refused before anything is evicted"
    keyspace.put("d", packed(100))
    keyspace.delete(name(1_000))
    keyspace.put(name(1_001), VALUE)
    assert for_lane(keyspace)


def test_a_refusal_wakes_the_thread(kind: Callable[[], Table]) -> None:
    """It has given up while the log refused writes, and nobody else may write."""
    keyspace = cached(kind, 1_000, log=(log := FakeLog(0)))
    keyspace.put_many({name(number): VALUE for number in range(1_000)})
    keyspace.put(name(1_000), packed(5_000))
    log.broken = True
    assert not keyspace.evict()
    log.broken = False
    alarms: list[bool] = []
    keyspace.alarm = lambda: alarms.append(True)
    with pytest.raises(Full):
        keyspace.put(name(1_001), VALUE)
    assert alarms
    while keyspace.evict():
        pass
    keyspace.put(name(1_001), VALUE)


def test_a_large_write_is_taken_and_goes(kind: Callable[[], Table]) -> None:
    """Larger than the cache: nothing is left."""
    keyspace = cached(kind, 5)
    keyspace.put_many({name(number): VALUE for number in range(60)})
    assert len(kept(keyspace)) == 5
    keyspace.put(name(99), packed(51))
    assert kept(keyspace) == set()


def test_nothing_is_evicted_while_writes_are_refused(kind: Callable[[], Table]) -> None:
    keyspace = cached(kind)
    keyspace.put_many({name(number): VALUE for number in range(9)})
    keyspace.end()
    assert not keyspace.evict()
    assert len(keyspace.entries) == 9


def test_what_is_there_at_the_start_is_evicted_down_to_the_bound(kind: Callable[[], Table]) -> None:
    keyspace = Store({name(number): StoredEntry(VALUE, 1) for number in range(500)}, 1, kind=kind)
    keyspace.set_caches([CacheBound("c/", 100 * ENTRY)])
    while keyspace.evict():
        pass
    assert len(keyspace.entries) == 100


def test_quotas_come_and_go_and_caches_stay(kind: Callable[[], Table]) -> None:
    """Both are counted by one mechanism."""
    keyspace = cached(kind)
    for quotas in ([Quota(("c/", "q/"), 10)], [Quota(("c",), 10)], []):
        keyspace.set_quotas(quotas)
        keyspace.put_many({name(number): VALUE for number in range(20)})
        assert len(kept(keyspace)) == 9


# --- Anything --------------------------------------------------------------------------------

keys = st.text("cd/é", min_size=1, max_size=4)
sizes = st.sampled_from([1, 3, 4, 9, 30])


class EvictionMachine(RuleBasedStateMachine):
    """Random writes, rollbacks and evictions; a copy is made of what the history tells."""

    kind: Callable[[], Table] = PythonTable

    @initialize(most=st.integers(20, 80), policy=st.sampled_from(["lru", "ttl"]))
    def begin(self, most: int, policy: str) -> None:
        self.log = FakeLog(0)
        self.keyspace = Store(log=self.log, history=1_000_000, kind=type(self).kind)
        self.most = {"c/": most, "d": most // 2}
        self.keyspace.set_caches([
            CacheBound(prefix, most, policy)  # type: ignore[arg-type]
            for prefix, most in self.most.items()
        ])  # fmt: skip
        self.model: dict[str, int] = {}

    def follow(self, since: int) -> None:
        """Apply what was evicted after a revision to the model."""
        for payload in self.keyspace.history.since(since, 1_000):
            if payload.evicts:
                assert payload.count <= eviction.MOST_EVICTED
                for change in payload.changes:
                    assert change.op == EXPIRE
                    assert change.key.startswith(tuple(self.most))
                    del self.model[change.key]

    @rule(items=st.dictionaries(keys, sizes, min_size=1, max_size=8))
    def put(self, items: dict[str, int]) -> None:
        rev = self.keyspace.rev
        self.keyspace.put_many({key: packed(size) for key, size in items.items()})
        self.model |= items
        self.follow(rev)

    @rule(key=keys)
    def get(self, key: str) -> None:
        if key in self.model:
            assert len(self.keyspace.get(key).value) == self.model[key]

    @rule(key=keys, size=sizes, ttl=st.integers(1, 9))
    def put_for_a_while(self, key: str, size: int, ttl: int) -> None:
        rev = self.keyspace.rev
        with self.keyspace.lock:
            transaction = self.keyspace.begin()
            transaction.put(key, packed(size), self.keyspace.time + ttl)
            self.keyspace.commit(transaction)
        self.model[key] = size
        self.follow(rev)

    @rule(keys=st.lists(keys))
    def delete(self, keys: list[str]) -> None:
        self.keyspace.delete_many(keys)
        for key in keys:
            self.model.pop(key, None)

    @rule()
    def expire(self) -> None:
        self.keyspace.time += 3
        rev = self.keyspace.rev
        while self.keyspace.expire(5) == 0:
            pass
        for payload in self.keyspace.history.since(rev, 1_000):
            assert not payload.evicts
            for change in payload.changes:
                del self.model[change.key]

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        """To any revision, also to one between a write and its evictions."""
        rev = data.draw(st.integers(0, self.keyspace.rev))
        with self.keyspace.lock:
            self.log.roll_back(self.keyspace, rev)
        while self.keyspace.expire(5) == 0 or self.keyspace.evict():
            pass
        self.model = {}
        for commit in self.keyspace.history.since(0, 1_000_000):
            for change in commit.changes:
                self.model[change.key] = len(bytes(change.value))
                if change.op in REMOVALS:
                    del self.model[change.key]

    @invariant()
    def same_as_the_model(self) -> None:
        assert {key: len(entry.value) for key, entry in self.keyspace.entries.items()} == self.model
        for prefix, most in self.most.items():
            assert under(self.keyspace, prefix) <= most


def machine(kind: Callable[[], Table]) -> Any:
    case = type("Machine", (EvictionMachine,), {"kind": staticmethod(kind)}).TestCase  # type: ignore[attr-defined]
    case.settings = settings(max_examples=30, stateful_step_count=25)
    return case


TestEvictionMachine = machine(PythonTable)
if len(TABLES) > 1:
    TestEvictionMachineInC = machine(new_table)
