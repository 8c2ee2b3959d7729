"""A turn in C takes the usual way of the front, and leaves to Python what is not usual.

What the front answers is compared with Python's commands by all tests in tests/requests.
"""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from tests.compiled.slices import batch_of
from tests.requests import contract_stores
from tests.requests.contract_stores import DurableStore, FakeClock
from tests.requests.roads import SteppedEngine
from tests.support import LIMIT
from zkv import compiled
from zkv.broker.front import FrontHandler
from zkv.broker.waiting import Answered
from zkv.errors import ReadOnly
from zkv.replication.role import Role
from zkv.requests.account import Account
from zkv.requests.batch import Batch
from zkv.requests.lane import open_lane
from zkv.requests.stopping import Stopping

pytestmark = pytest.mark.skipif(not compiled.COMPILED, reason="zkv was installed without C")


class Front:
    """The front's handler, and what a turn has left to Python."""

    def __init__(self, store: DurableStore, **other: Any) -> None:
        node = dataclasses.replace(store.node, **other)
        self.engine: SteppedEngine = store.engine
        self.role = node.role
        self.account = Account()
        self.left: list[tuple[bool, object]] = []
        lane = open_lane(
            node.engine.keyspace, node.limits, node.max_reply_bytes, node.engine.syncs_each
        )
        front = self

        class Observed(FrontHandler):
            """Notes what is left."""

            def _finish(
                self, batch: Batch, run: Any, epoch: int, executed: float, secured: Any
            ) -> Answered | None:
                front.left.append((run is not None, secured))
                return super()._finish(batch, run, epoch, executed, secured)

        self.handler = Observed(node, lane, self.account)
        self.stopping = node.stopping

    def answer(self, *bodies: bytes) -> Answered | None:
        """Answer a batch."""
        self.left.clear()
        self.batch = batch_of(*bodies)
        return self.handler.answer(self.batch)


GET, PUT = contract_stores.request("GET", key="k"), contract_stores.request("PUT", key="k", value=1)
PING = contract_stores.request("PING")


@pytest.fixture(params=["never", "always"])
def store(request: pytest.FixtureRequest) -> Iterator[DurableStore]:
    """A store of each policy."""
    store = DurableStore(FakeClock(), fsync=request.param)
    yield store
    store.close()


@pytest.fixture
def front(store: DurableStore) -> Front:
    """The front of a store with one key."""
    store.put("k", 1)
    return Front(store)


def test_what_is_usual_takes_no_python(front: Front, store: DurableStore) -> None:
    assert front.answer(GET, GET) is None
    assert front.left == []
    front.engine.wal.quick_sync_seconds = LIMIT
    assert front.answer(PUT, GET) is None
    assert front.left == []
    front.engine.wal.quick_sync_seconds = 0.0
    waits = front.answer(PUT, GET) is not None
    assert waits is front.engine.syncs_each
    assert front.left == ([(True, None)] if waits else []), "the front waits for no slow disk"


@pytest.mark.parametrize("store", ["always"], indirect=True)
def test_the_front_does_not_sync_while_others_wait_or_a_snapshot_is_written(front: Front) -> None:
    front.engine.wal.quick_sync_seconds = LIMIT
    front.answer(PUT)
    assert front.answer(contract_stores.request("GET", key="j", id=1), PUT) is not None
    assert front.left[0] == (True, None), "a request of the batch is left"
    with front.engine.snapshotter.writing:
        assert front.answer(PUT) is not None
    assert front.left == [(True, None)]


@pytest.mark.parametrize("store", ["never"], indirect=True)
def test_what_cannot_be_written_now_is_left_with_the_reason(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = ReadOnly("the disk is full")

    def refuse(*_: object) -> bool:
        raise refusal

    monkeypatch.setattr(front.engine.log, "_is_usual", False)
    monkeypatch.setattr(front.engine.log, "commit", lambda *_: False)
    answered = front.answer(PUT)
    assert front.left == [(True, False)], "another thread has the file"
    assert answered is not None
    assert answered.group is not None
    assert answered.refusal is None
    monkeypatch.setattr(front.engine.log, "commit", refuse)
    answered = front.answer(PUT)
    assert front.left == [(True, refusal)]
    assert answered is not None
    assert answered.refusal is refusal


@pytest.mark.parametrize("store", ["never"], indirect=True)
def test_a_bug_of_the_log_is_passed_on(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bool:
        raise KeyError("a bug")

    monkeypatch.setattr(front.engine.log, "_is_usual", False)
    monkeypatch.setattr(front.engine.log, "commit", fail)
    with pytest.raises(KeyError, match="a bug"):
        front.answer(PUT)
    assert not front.engine.keyspace.lock.locked()


def test_nothing_runs_while_the_lock_is_held_or_others_lead(front: Front) -> None:
    front.role.leads = False
    answered = front.answer(GET)
    assert (front.left, answered and answered.left) == ([(False, None)], [0])
    front.role.leads = front.stopping.begun = True
    answered = front.answer(GET)
    assert (front.left, answered and answered.left) == ([(False, None)], [0])


class Held(Role):
    """A role that has to be asked, as that of a member with a lease."""

    held = True

    @property
    def leads(self) -> bool:
        return self.held

    @leads.setter
    def leads(self, leads: bool) -> None:
        pass


def test_a_role_that_has_to_be_asked_is_asked_in_each_turn(store: DurableStore) -> None:
    role = Held()
    front = Front(store, role=role)
    store.call("PUT", key="k", value=1)
    assert (front.answer(GET), front.left) == (None, [])
    role.held = False
    answered = front.answer(GET)
    assert (front.left, answered and answered.left) == ([(False, None)], [0])
    role.held = True
    assert (front.answer(GET), front.left) == (None, [])


class Begun(Stopping):
    """A stop that has a property in place of the attribute."""

    begun = property(lambda self: True, lambda self, begun: None)


def test_a_turn_is_not_made_of_what_is_not_in_c(store: DurableStore) -> None:
    with pytest.raises(TypeError, match="not in C"):
        Front(store, stopping=Begun())


def test_requests_that_are_left_and_lines_of_the_log_take_python(front: Front) -> None:
    answered = front.answer(GET, PING)
    assert (front.left, answered and answered.left) == ([(True, None)], [1])
    front.account.logs_requests = True
    assert front.answer(GET) is None
    assert front.left == [(True, None)]


def test_an_attribute_that_cannot_be_read_fails_the_batch_and_frees_the_lock(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front.engine.log, "_is_usual", False)
    monkeypatch.delattr(type(front.engine.log), "confirms_reads")
    with pytest.raises(AttributeError):
        front.answer(GET)
    assert not front.engine.keyspace.lock.locked()
    with pytest.raises(TypeError):
        front.handler.answer(None)  # type: ignore[arg-type]


def test_a_handler_that_nobody_has_any_more_is_collected(front: Front) -> None:
    """It and its turn refer to each other."""
    handler = weakref.ref(front.handler)
    front.handler = None  # type: ignore[assignment]
    gc.collect()
    assert handler() is None


def test_replies_wait_if_the_epoch_has_ended_or_reads_are_to_be_confirmed(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = front.engine.log
    monkeypatch.setattr(log, "_is_usual", False)
    monkeypatch.setattr(log, "confirms_reads", True)
    answered = front.answer(GET)
    assert (front.left, answered is None) == ([(True, None)], False)
    monkeypatch.setattr(log, "confirms_reads", False)
    epochs = iter([0, 1, 1, 1])
    monkeypatch.setattr(type(log), "epoch", property(lambda _: next(epochs)), raising=False)
    answered = front.answer(GET)
    assert (front.left, answered is None) == ([(True, None)], False)
