"""Any order of requests, rounds of the threads, failures and crashes, against the ledger as model.

Hypothesis looks for an order that the store gets wrong, and shrinks it to a short one. A kill loses
what was in memory; a power cut also what was not synced, or parts of it; the disk may fail at any
call, and come back or not before either.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from random import Random
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.durability.crash.disk_model import Tree, write_tree
from tests.durability.crash.driver import (
    DATA,
    FIRST_SEED,
    KEYS,
    POLICIES,
    Complaints,
    Driver,
    scratch,
)
from tests.durability.crash.faults import FOR_EVER, Fault, FaultyFiles, Killed
from tests.durability.crash.ledger import Batch, Ledger
from tests.durability.crash.work import Meanwhile, check_live, exchange
from zkv.errors import DamageError, DataDirError

keys = st.sampled_from(KEYS)
key_lists = st.lists(keys, min_size=1, max_size=3, unique=True)
values = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**64 - 1),
    st.text(max_size=10),
    st.integers(0, 500).map(bytes),
    st.lists(st.booleans(), max_size=3),
)


def _requests(op: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"op": st.just(op)} | fields)


def _writes(
    op: str, prev: bool = False, **fields: st.SearchStrategy[Any]
) -> st.SearchStrategy[dict[str, Any]]:
    optional = {"durable": st.booleans()} | ({"prev": st.booleans()} if prev else {})
    return st.fixed_dictionaries({"op": st.just(op)} | fields, optional=optional)


batches: st.SearchStrategy[Batch] = st.lists(
    st.one_of(
        _writes("PUT", prev=True, key=keys, value=values),
        _writes("MPUT", items=st.dictionaries(keys, values, min_size=1, max_size=3)),
        _writes("DELETE", prev=True, key=keys),
        _writes("MDELETE", keys=key_lists),
        _requests("GET", key=keys),
        _requests("MGET", keys=key_lists),
    ),
    min_size=1,
    max_size=4,
)
soon = st.integers(1, 8)
"""After how many calls of the file layer something happens."""


class Store(RuleBasedStateMachine):
    """One data directory, through many lives of a server."""

    def __init__(self) -> None:
        super().__init__()
        self.exit = contextlib.ExitStack()
        self.complaints = self.exit.enter_context(Complaints())

    @initialize(policy=st.sampled_from(POLICIES))
    def begin(self, policy: str) -> None:
        self.ledger = Ledger(policy)
        self._restore({})
        self._start(power_cut=False)

    def teardown(self) -> None:
        with contextlib.suppress(AttributeError):  # Where not even `begin` was run.
            self.files.abandon()
        self.exit.close()

    @rule(batch=batches)
    def call(self, batch: Batch) -> None:
        self._run(lambda: exchange(self.driver, self.ledger, batch))

    @rule(one=batches, other=batches)
    def call_together(self, one: Batch, other: Batch) -> None:
        self._run(lambda: exchange(self.driver, self.ledger, one, other))

    @rule()
    def snapshot(self) -> None:
        self._run(lambda: exchange(self.driver, self.ledger, [{"op": "SNAPSHOT"}]))

    @rule()
    def interval_passes(self) -> None:
        self._run(self.driver.sync_round)
        self._run(self.driver.let_time_pass)

    @rule()
    def snapshot_interval_passes(self) -> None:
        self._run(self.driver.snapshotter_round)
        self._run(self.driver.let_time_pass)

    @rule(seed=st.integers(0, 1000))
    def requests_come_during_snapshots(self, seed: int) -> None:
        self.files.meanwhile = Meanwhile(self.driver, self.ledger, seed)

    @rule(
        after=soon,
        error=st.sampled_from([errno.ENOSPC, errno.EIO]),
        lasts=st.sampled_from([1, 2, 5, FOR_EVER]),
        partial=st.booleans(),
    )
    def disk_will_fail(self, after: int, error: int, lasts: int, partial: bool) -> None:
        self.files.faults[self.files.calls + after] = Fault(error, lasts, partial)

    @rule()
    def disk_heals(self) -> None:
        self.files.heal()

    @rule(after=soon, partial=st.booleans())
    def process_will_be_killed(self, after: int, partial: bool) -> None:
        self.files.faults[self.files.calls + after] = Fault(None, partial=partial)

    @rule()
    def process_is_killed(self) -> None:
        self._start_again()

    @rule()
    def process_ends(self) -> None:
        self._run(lambda: exchange(self.driver, self.ledger, [{"op": "END"}]))
        self._start_again()

    @rule()
    def power_is_cut_and_nothing_unsynced_is_left(self) -> None:
        self._cut_power(self.files.disk.as_synced())

    @rule(seed=st.integers(0, 2**32))
    def power_is_cut(self, seed: int) -> None:
        self._cut_power(self.files.disk.torn(Random(seed)))

    @invariant()
    def all_can_be_read(self) -> None:
        self._run(lambda: check_live(self.driver, self.ledger))

    def _run(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Killed:
            self._start_again()

    def _cut_power(self, left: Tree) -> None:
        self.files.abandon()
        self._restore(left)
        self._start(power_cut=True)

    def _start_again(self) -> None:
        self.files.abandon()
        self._start(power_cut=False)

    def _restore(self, tree: Tree) -> None:
        root = self.exit.enter_context(scratch())
        write_tree(tree, root)
        self.files = FaultyFiles(root)

    def _start(self, power_cut: bool) -> None:
        """Start a server; if the disk is in the way, heal that first."""
        self.complaints.check_said_once()
        self.complaints.records.clear()
        try:
            self.driver = self._open()
        except DamageError:
            raise
        except (DataDirError, Killed):
            self.files.abandon()
            self.files.heal()
            self.driver = self._open()
        state = self.driver.state()
        self.ledger.check_recovered(state, power_cut)
        self.ledger.adopt(state)

    def _open(self) -> Driver:
        return Driver(self.files.root / DATA, self.files, self.ledger.policy)


def _run_model(seed: int, examples: int, steps: int) -> None:
    model = hypothesis.seed(seed)(type("Store", (Store,), {}))
    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=steps,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(model, settings=settings)


@pytest.mark.timeout(600)  # A failure is shrunk, which takes its time.
def test_model() -> None:
    _run_model(seed=1, examples=60, steps=30)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + 2))
def test_model_for_long(seed: int) -> None:
    _run_model(seed, examples=700, steps=50)
