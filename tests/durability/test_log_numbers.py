"""Log numbers: they count on across restarts, without gaps, and say what a snapshot covers.

The replies to requests that changed nothing are what needs them: such a commit has no revision of
its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
import zmq

from tests.requests.contract_stores import HOUR, Disk, DurableStore, FakeClock
from tests.support import Message, Raw, ServerProcess
from zkv.durability import snapshot, wal
from zkv.durability.check import survey
from zkv.durability.files import Files
from zkv.durability.frozen_view import FrozenView

POLICIES: Final = ["always", "interval", "never"]
KEYS: Final = ["a", "b", "c"]
YEAR: Final = 31_536_000.0
SMALL: Final = 1024
"""Bytes of the smallest segment that settings allow."""


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> Iterator[DurableStore]:
    with contextlib.closing(DurableStore(clock)) as store:
        yield store


def refusal(store: DurableStore, seq: int, session: str = "s") -> Message:
    """The reply to an exactly-once request that changes nothing while nobody has made its key."""
    return store.call("DELETE", key="later", session=session, seq=seq)


# --- What a snapshot covers --------------------------------------------------------------------


def test_a_refusal_behind_a_snapshot_is_remembered_though_the_clock_was_set_back(
    store: DurableStore, clock: FakeClock
) -> None:
    """It has the snapshot's revision, and an earlier time."""
    store.put("a")
    assert store.snapshot() == 1
    clock.advance(-HOUR // 2)
    first = refusal(store, 1)
    assert first["code"] == "NOT_FOUND"
    store.crash()
    store.put("later")
    assert refusal(store, 1) == first | {"replayed": True}
    assert store.ok("GET", key="later")


def test_a_refusal_that_a_snapshot_covers_is_forgotten_with_its_session(
    store: DurableStore, clock: FakeClock
) -> None:
    """The log has it as well, at the snapshot's revision, and with a later time."""
    store.put("a")
    clock.advance(HOUR // 2)
    refusal(store, 1)
    clock.advance(HOUR)
    store.call("DELETE", key="later", session="other", seq=1)  # Forgets the silent session.
    clock.advance(-2 * HOUR)
    assert store.snapshot() == 1
    store.crash()
    assert store.ok("INFO")["stats"]["sessions"]["replies"] == 1


def test_a_refusal_is_remembered_however_much_log_came_after_it(tmp_path: Path) -> None:
    """Nothing else in its segment is needed at the start: not for entries, not for the history."""
    config = (
        f"[durability]\nsegment_bytes = {SMALL}\nsnapshot_interval = 3600.0\n"
        "[limits]\nhistory = 1\n"
    )
    refused = {"op": "DELETE", "key": "later", "session": "s", "seq": 1}
    with ServerProcess(tmp_path, config=config) as server, Raw(server.endpoint, zmq.REQ) as client:
        client.ok(op="PUT", key="a", value=1)
        client.ok(op="SNAPSHOT")
        first = client.call(**refused)
        for seq in range(2, 15):  # Until the segment is full: it ends at the snapshot's revision.
            client.call(**refused | {"seq": seq})
        for number in range(60):
            client.ok(op="PUT", key=f"more {number}", value="x" * 60)
        server.kill()
    with server, Raw(server.endpoint, zmq.REQ) as client:
        client.ok(op="PUT", key="later", value=1)
        assert client.call(**refused) == first | {"replayed": True}


def test_a_snapshot_without_the_refusals_that_came_during_it(store: DurableStore) -> None:
    """They are in the log alone, and are read from there at a start."""
    store.put("a")
    refusal(store, 1)

    def meanwhile() -> None:
        refusal(store, 2)

    store.disk.before["create .snapshot.tmp"] = meanwhile
    assert store.snapshot() == 1
    saved = snapshot.read(Files(), max(store.data_dir.glob("snapshot/*.snapshot")))
    assert (saved.lsn, [seq for seq, *_ in saved.sessions[0][2]]) == (2, [1])
    lsn = store.engine.last_lsn
    store.crash()
    assert store.engine.last_lsn == lsn == 3
    assert [refusal(store, seq)["replayed"] for seq in (1, 2)] == [True, True]


# --- They count on -----------------------------------------------------------------------------


def test_numbers_go_on_after_a_restart(store: DurableStore) -> None:
    store.put("a")
    refusal(store, 1)
    store.put("b")
    assert (store.rev, store.engine.last_lsn, store.engine.safe_lsn) == (2, 3, 3)
    store.crash()
    assert (store.rev, store.engine.last_lsn, store.engine.safe_lsn) == (2, 3, 3)
    assert store.snapshot() == 2
    store.crash()
    refusal(store, 2)
    assert (store.rev, store.engine.last_lsn) == (2, 4)


def test_numbers_of_what_was_rolled_back_are_given_again(
    store: DurableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "RETRY_SECONDS", 0.0)
    store.put("a")
    store.disk.full = True
    assert refusal(store, 1)["code"] == store.call("PUT", key="b", value=1)["code"] == "READ_ONLY"
    store.disk.full = False
    assert store.engine.last_lsn == 1
    refusal(store, 1)
    assert store.engine.last_lsn == 2
    store.crash()
    assert store.engine.last_lsn == 2
    assert_whole(store)


# --- Against a model ---------------------------------------------------------------------------


def assert_whole(store: DurableStore) -> None:
    """``zkv check`` finds no fault: numbers have no gap, within files and between them."""
    with FrozenView(Files(), store.data_dir) as view:
        found = survey(view)
    assert not found.faults
    assert (found.rev, found.lsn) == (store.engine.keyspace.rev, store.engine.last_lsn)


class Model:
    """A store in which everything may happen in any order, and what it has to be.

    Args:
        seed: decides what happens.
        policy: when the log is synced.
    """

    def __init__(self, seed: int, policy: str) -> None:
        self._chance = Random(seed)
        self._clock = FakeClock()
        limits = {"session_ttl": YEAR, "session_window": 1_000, "history": 3}
        self.store = DurableStore(self._clock, Disk(), fsync=policy, segment_bytes=SMALL, **limits)
        self._rev = self._lsn = 0
        self._entries: dict[str, int] = {}
        self._answered: list[tuple[dict[str, Any], Message]] = []

    def run(self, steps: int) -> None:
        """Do so many things, and look at the store after each restart."""
        things = [
            self._write, self._write, self._write_once, self._write_once, self._refuse,
            self._refuse, self._snapshot, self._restart, self._fill_disk, self._fail_sync,
            self._set_clock,
        ]  # fmt: skip
        for _ in range(steps):
            self._chance.choice(things)()
            assert self.store.engine.last_lsn == self._lsn
        self._restart()

    def _write(self, **more: Any) -> None:
        key = self._chance.choice(KEYS)
        fields = {"key": key, "value": "x" * self._chance.choice([0, 100]), **more}
        reply = self.store.ok("PUT", **fields)
        self._rev += 1
        self._lsn += 1
        self._entries[key] = self._rev
        assert reply["rev"] == self._rev
        if more:
            self._answered.append(({"op": "PUT", **fields}, reply))

    def _once(self) -> dict[str, Any]:
        return {"session": self._chance.choice("st"), "seq": len(self._answered) + 1}

    def _write_once(self) -> None:
        self._write(**self._once())

    def _refuse(self) -> None:
        fields = {"op": "DELETE", "key": "never", **self._once()}
        self._answered.append((fields, self.store.call(**fields)))
        self._lsn += 1

    def _snapshot(self) -> None:
        assert self.store.snapshot() == self._rev

    def _set_clock(self) -> None:
        self._clock.advance(self._chance.choice([-HOUR, -1, 1, HOUR]))

    def _fill_disk(self) -> None:
        self.store.disk.full = True
        code = self._chance.choice([self._refused_write, self._refused_refusal])()
        assert code == "READ_ONLY"
        self.store.disk.full = False

    def _refused_write(self) -> str:
        return str(self.store.call("PUT", key="a", value=1)["code"])

    def _refused_refusal(self) -> str:
        return str(self.store.call("DELETE", key="never", session="u", seq=1)["code"])

    def _fail_sync(self) -> None:
        """The log fails, and goes on after a snapshot of all that was safe."""
        self.store.disk.refuses_sync = True
        reply = self.store.call("PUT", key="a", value=1, durable=True)
        assert (reply["code"], reply["applied"]) == ("READ_ONLY", None)
        self.store.disk.refuses_sync = False
        if self.store.rev > self._rev:  # Safe is what was written, perhaps with this one.
            assert not self.store.engine.syncs_each
            self._rev, self._lsn, self._entries["a"] = self._rev + 1, self._lsn + 1, self._rev + 1
        self._snapshot()

    def _restart(self) -> None:
        self.store.crash()
        assert (self.store.rev, self.store.engine.last_lsn) == (self._rev, self._lsn)
        assert {key: rev for key, _, rev in self.store.items()} == self._entries
        for fields, reply in self._answered:
            again = self.store.call(**fields)
            assert again | {"durable": None} == reply | {"durable": None, "replayed": True}
        assert self.store.engine.last_lsn == self._lsn
        assert_whole(self.store)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(12))
def test_restarts_in_every_combination(
    seed: int, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "RETRY_SECONDS", 0.0)
    model = Model(seed, policy)
    with contextlib.closing(model.store):
        model.run(60)
