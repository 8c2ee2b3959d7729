"""The members compare their states: one that differs stops, and the leader if it is the one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.etcd.fake import FakeEtcd
from tests.support import eventually
from zkv.cluster.records import FORMAT, Fence, LogHead, MemberRecord, StateRecord, StoreRecord
from zkv.cluster.shared_log import SharedLog
from zkv.cluster.state_check import PATIENCE_SECONDS, StateCheck, state_hash
from zkv.errors import DamageError
from zkv.keyspace import History, Keyspace, Sessions
from zkv.keyspace.entry import StoredEntry

NAMES = ["a", "b", "c"]
entries = st.dictionaries(
    st.text(min_size=1, max_size=5),
    st.builds(
        StoredEntry,
        st.binary(max_size=5),
        st.integers(1, 2**62),
        st.none() | st.integers(1, 2**63 - 1),
    ),
    max_size=6,
)


@given(entries, st.randoms(use_true_random=False))
def test_the_hash_does_not_depend_on_the_order(
    these: dict[str, StoredEntry], chance: random.Random
) -> None:
    mixed = list(these.items())
    chance.shuffle(mixed)
    assert state_hash(mixed) == state_hash(these.items())


@given(entries, entries)
def test_different_entries_have_different_hashes(
    one: dict[str, StoredEntry], other: dict[str, StoredEntry]
) -> None:
    assert (state_hash(one.items()) == state_hash(other.items())) == (one == other)


class Members:
    """The checks of three members over one fake etcd, by one clock."""

    def __init__(self) -> None:
        etcd = FakeEtcd(1)
        self.now = 0.0
        self.log = SharedLog(etcd.client(), "store", 1.0)
        store = StoreRecord(format=FORMAT, store="s", limits={}, first_lsn=1)
        assert self.log.found(store, Fence(0, "", ""), LogHead(0, 0, 0, 0))
        self.keyspaces = {name: _keyspace() for name in NAMES}
        self.checks = {
            name: StateCheck(keyspace, self.log, name, lambda: self.now)
            for name, keyspace in self.keyspaces.items()
        }
        for name in NAMES:
            self.log.declare(MemberRecord(name=name, endpoints=[], applied=0, time=0))

    def put(self, name: str, key: str, value: bytes) -> None:
        keyspace = self.keyspaces[name]
        with keyspace.lock:
            staged = keyspace.begin()
            staged.put(key, value, None)
            keyspace.commit(staged)

    def tell(self, *names: str) -> None:
        """Have members hash their states, and put the hashes into etcd."""
        for name in names:
            self.checks[name].begin(self.keyspaces[name].view())
            eventually(self._has_told(name), f"the hash of {name}")

    def _has_told(self, name: str) -> Callable[[], bool]:
        return lambda: self.checks[name].is_open

    def verdict(self, name: str, leader: str = "a") -> bool:
        """Return False if the member has to stop."""
        try:
            self.checks[name].verdict(leader)
        except DamageError:
            return False
        return True


def _keyspace() -> Keyspace:
    sessions, history = Sessions(128, 3_600_000, 100, 2**24), History(100, 2**20)
    return Keyspace(lambda: 1, sessions, history)


@pytest.fixture
def members() -> Members:
    made = Members()
    for name in NAMES:
        made.put(name, "k", b"\x01")
    return made


def test_members_that_agree_go_on(members: Members) -> None:
    members.tell(*NAMES)
    assert [members.verdict(name) for name in NAMES] == [True] * 3
    assert not any(check.is_open for check in members.checks.values())


@pytest.mark.parametrize("wrong", NAMES)
def test_the_one_that_differs_stops_also_if_it_leads(members: Members, wrong: str) -> None:
    members.put(wrong, "other", b"\x01")
    for name in NAMES:
        if name != wrong:
            members.put(name, "other", b"\x02")
    members.tell(*NAMES)
    assert [members.verdict(name) for name in NAMES] == [name != wrong for name in NAMES]


def test_of_two_the_follower_stops(members: Members) -> None:
    assert members.log.remove_member("c")
    members.put("a", "other", b"\x01")
    members.put("b", "other", b"\x02")
    members.tell("a", "b")
    assert members.verdict("a")
    assert not members.verdict("b")


def test_nobody_stops_before_all_have_told_their_hash(members: Members) -> None:
    members.put("a", "other", b"\x01")
    members.put("b", "other", b"\x02")
    members.put("c", "other", b"\x02")
    members.tell("a", "b")
    assert members.verdict("a")
    assert members.verdict("b")
    members.tell("c")
    assert members.verdict("b")
    assert members.verdict("c")
    assert not members.verdict("a")


def test_one_that_is_silent_is_waited_for_no_longer_than_a_while(members: Members) -> None:
    members.put("a", "other", b"\x01")
    members.put("b", "other", b"\x02")
    members.tell("a", "b")
    assert members.verdict("b")
    members.now += PATIENCE_SECONDS
    assert not members.verdict("b"), "it differs from the leader, and no majority agrees with it"


def test_hashes_of_other_log_numbers_are_not_compared(members: Members) -> None:
    members.tell("a")
    members.put("b", "other", b"\x02")
    members.tell("b")
    members.now += PATIENCE_SECONDS
    assert members.verdict("a")
    assert members.verdict("b")


def test_a_view_that_was_rolled_back_is_not_told(members: Members) -> None:
    keyspace = members.keyspaces["a"]
    view = keyspace.view()
    view.lost = True
    members.checks["a"].begin(view)
    eventually(_closed(keyspace), "the end of the view")
    assert members.log.states() == []


def test_a_view_that_was_rolled_back_later_is_judged_by_nobody(members: Members) -> None:
    """The next leader has another commit at the same log number, and both are right."""
    members.put("a", "mine", b"\x01")  # Which etcd never gets: `a` is deposed.
    for name in "bc":
        members.put(name, "other", b"\x02")
    members.tell("b", "a")
    members.checks["a"].forget()
    members.now += PATIENCE_SECONDS
    assert members.verdict("a", leader="b")
    assert members.verdict("b", leader="b")


def test_nor_is_one_whose_hash_is_under_way(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = members.checks["a"]
    tell = members.log.tell_state

    def rolled_back(record: StateRecord) -> None:
        check.forget()
        tell(record)

    monkeypatch.setattr(members.log, "tell_state", rolled_back)
    check.begin(members.keyspaces["a"].view())
    eventually(lambda: bool(members.log.states()), "the hash")
    thread = check._thread
    assert thread is not None
    thread.join()
    assert not check.is_open


def _closed(keyspace: Keyspace) -> Callable[[], bool]:
    return lambda: not keyspace._watchers
