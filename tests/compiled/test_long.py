"""Long requests: what others see while one is run in slices, and what is left of one that fails."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compiled.alike import told
from tests.compiled.lane_requests import LIMITS, bodies, items_twice, users
from tests.compiled.slices import Onlooker, batch_of, in_slices, open_front_lane
from tests.requests.contract_stores import (
    DurableStore,
    FakeClock,
    MemoryStore,
    PureMemoryStore,
    op,
    request,
)
from tests.support import LIMIT, NoReplyError, Raw, ServerInProcess, ServerProcess, unpack
from zkv import compiled
from zkv.keyspace import StoredEntry
from zkv.requests.lane import LONG_STEPS, open_worker_lane

pytestmark = pytest.mark.skipif(
    not compiled.COMPILED, reason="zkv was installed without a C compiler"
)

MANY = 10_000
"""Steps of a long request: the most that the default limits allow."""
KEYS = ["a", "b", "é", "\U0010ffff"]


def many(value: Any) -> dict[str, Any]:
    return {f"k{number}": value for number in range(MANY)}


# --- In single steps ----------------------------------------------------------------------------


@settings(max_examples=200)
@given(batches=st.lists(st.lists(bodies(), max_size=4), max_size=6), data=st.data())
def test_nobody_sees_half_of_a_long_request(
    batches: list[list[bytes]], data: st.DataObject
) -> None:
    """After each step the front reads what was there before; in the end all is as by the commands.

    Also where entries expire, conditions fail, keys are there twice, requests are repeated, or a
    failure takes the first steps back.
    """
    clock = FakeClock()
    onlooker = Onlooker(KEYS)
    plain = PureMemoryStore(clock, **LIMITS)
    with in_slices(onlooker.look):
        fast = MemoryStore(clock, **LIMITS)
    onlooker.watch(fast.node)
    user = data.draw(users)
    for store in (fast, plain):
        store.serve(user)
    for batch in batches:
        for body in batch:
            onlooker.expect(plain)
            views = [store.node.engine.keyspace.view() for store in (fast, plain)]
            assert told(fast.worker, [body]) == told(plain.worker, [body])
            read = [dict(pair for chunk in view.chunks() for pair in chunk) for view in views]
            assert read[0] == read[1], "a snapshot shows what was there before"
            for store, view in zip((fast, plain), views, strict=True):
                with store.node.engine.keyspace.lock:
                    store.node.engine.keyspace.release_view(view)
        clock.advance(data.draw(st.sampled_from([0, 700, 2_000])))
    assert not onlooker.wrong
    assert held(fast) == held(plain)


def held(store: MemoryStore) -> list[Any]:
    """What a store holds, has committed and remembers."""
    keyspace = store.node.engine.keyspace
    commits, rev = keyspace.changes_since(0, 1_000_000)
    states = [keyspace.sessions.state(name, 2**62) for name in keyspace.sessions.names()]
    remembered = [state for state in states if state and state[2]]
    entries = sorted(keyspace.entries.items())
    return [rev, entries, commits, remembered]


@pytest.mark.parametrize(
    "body",
    [
        request("MPUT", items=items_twice("a", "new", "a", "b", "new")),
        request("MPUT", items=items_twice("a", "new"), session="s", seq=1),
        request("TXN", ops=[op("INCR", key="n"), op("PUT", key="a", value=9)] * 3),
        request("TXN", ops=[op("PUT", key="a", value=9), op("INCR", key="text")]),
        request("MGET", keys=["a", "b", "n"]),
    ],
    ids=["MPUT", "once", "TXN", "failing TXN", "MGET"],
)
def test_the_front_reads_and_leaves_writes_beside_a_long_request(body: bytes) -> None:
    clock = FakeClock()
    onlooker = Onlooker(["a", "b", "n", "new"])
    with in_slices(onlooker.look):
        fast = MemoryStore(clock)
    plain = PureMemoryStore(clock)
    for store in (fast, plain):
        for key, value in [("a", 1), ("b", 2), ("n", 3), ("text", "text")]:
            store.put(key, value)
        store.put("b", 4, ttl=1)
    onlooker.watch(fast.node)
    onlooker.expect(plain)
    assert fast.exchange(body) == plain.exchange(body)
    assert onlooker.rests > 1
    assert not onlooker.wrong
    assert held(fast) == held(plain)
    assert not fast.node.engine.keyspace.lock.locked()


def test_expired_entries_are_absent_beside_a_long_request() -> None:
    clock = FakeClock()
    seen: list[tuple[Any, int]] = []

    def look() -> None:
        batch = batch_of(request("MGET", keys=["a", "b"]), request("GET", key="b"))
        left, newest = lane.run(batch)[:2]
        assert left == [1]
        seen.append((unpack(batch.reply(0) or b""), newest))

    with in_slices(look):
        store = MemoryStore(clock)
    lane = open_front_lane(store.node)
    store.put("a", 1)
    store.put("b", 2, ttl=1)
    store.put("c", 3)
    store.call("DELETE", key="c")
    clock.advance(1_000)
    store.call("MPUT", items={"a": 5, "b": 6})
    before = {"ok": True, "values": [1, None], "revs": [1, 0]}
    assert seen[0] == (before, 4), "the absence depends on the removal of another key"
    assert all(each == seen[0] for each in seen)


# --- As many steps as there may be ---------------------------------------------------------------


@pytest.fixture
def durable() -> Any:
    store = DurableStore(FakeClock())
    yield store
    store.close()


def test_a_long_write_that_the_disk_refuses_is_taken_back(durable: DurableStore) -> None:
    half = {f"k{number}": 1 for number in range(0, MANY, 2)}
    durable.ok("MPUT", items=half)
    durable.put("k0", 2, ttl=100)
    keyspace = durable.engine.keyspace
    before = dict(keyspace.entries), durable.call("COUNT")
    durable.disk.full = True
    ops = [op("INCR", key=f"k{number}") for number in range(MANY)]
    for long in (
        request("MPUT", items=many(3)),
        request("MPUT", items=many(4), session="s", seq=1),
        request("TXN", ops=ops),
    ):
        assert unpack(durable.exchange(long))["code"] == "READ_ONLY"
        durable.clock.advance(1_000)
        after = dict(keyspace.entries), durable.call("COUNT")
        assert after == before
    durable.disk.full = False
    assert keyspace.sessions.statistics()["replies"] == 0
    time.sleep(0.5)  # The log tries the disk again after that time.
    assert durable.ok("MPUT", items=many(5))["rev"] == durable.ok("GET", key="k1")["rev"]


def test_a_long_write_is_there_after_a_crash_and_run_once(durable: DurableStore) -> None:
    once = request("MPUT", items=many(1), session="s", seq=1)
    reply = unpack(durable.exchange(once))
    durable.put("k1", 2)
    durable.crash()
    assert unpack(durable.exchange(once)) == reply | {"replayed": True}
    other = request("MPUT", items=many(3), session="s", seq=1)
    assert unpack(durable.exchange(other))["code"] == "BAD_REQUEST"
    assert durable.ok("MGET", keys=["k0", "k1", "k9999"])["values"] == [1, 2, 1]
    assert durable.ok("COUNT")["count"] == MANY


def test_requests_are_left_to_a_worker_if_they_are_long(durable: DurableStore) -> None:
    front = open_front_lane(durable.node)
    keys = [f"k{number}" for number in range(MANY)]
    engine = durable.engine
    behind = open_worker_lane(engine.keyspace, durable.node.limits, 10**7, True)
    assert behind is not None
    for count in (LONG_STEPS, LONG_STEPS + 1, MANY):
        for body in (
            request("MPUT", items=dict.fromkeys(keys[:count], 1)),
            request("MGET", keys=keys[:count]),
            request("TXN", ops=[op("INCR", key=key) for key in keys[:count]]),
        ):
            left = front.run(batch_of(body)).left
            assert left == ([] if count <= LONG_STEPS else [0])
            assert behind.run(batch_of(body), 0) is not None


def test_a_long_write_tells_watchers_all_that_it_replaces(durable: DurableStore) -> None:
    durable.ok("MPUT", items=many(1))
    view = durable.engine.keyspace.view()
    chunks = view.chunks()
    read = dict(next(chunks))
    durable.ok("MPUT", items=many(2))
    for chunk in chunks:
        read.update(chunk)
    assert read == {key: StoredEntry(b"\x01", 1) for key in many(1)}


def test_memory_of_long_writes_is_given_back(durable: DurableStore) -> None:
    """What they have replaced is released in slices, by runs that come later."""
    sizes = []
    for number in range(60):
        durable.ok("MPUT", items=many("x" * (20 + number % 2)))
        sizes.append(resident())
    assert sizes[-1] - sizes[20] < 12_000_000, "what a write has replaced takes 0.7 MB"


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4_096


# --- On a real server ----------------------------------------------------------------------------


class Writer(threading.Thread):
    """Writes all keys again and again, each time with one value that is higher."""

    def __init__(self, endpoint: str, first: int, step: int, timeout: float = LIMIT) -> None:
        super().__init__()
        self._timeout = timeout
        self._endpoint = endpoint
        self._numbers = range(first, 10**9, step)
        self.done = threading.Event()
        self.acknowledged = self.sent = 0

    def run(self) -> None:
        with Raw(self._endpoint, timeout=self._timeout) as raw:
            for number in self._numbers:
                if self.done.is_set():
                    return
                self.sent = number
                try:
                    raw.ok(op="MPUT", items=many(number))
                except NoReplyError:
                    return
                self.acknowledged = number


def test_readers_see_all_of_a_long_write_or_nothing(tmp_path: Path) -> None:
    with ServerInProcess(tmp_path) as server, Raw(server.endpoint) as raw:
        raw.ok(op="MPUT", items=many(0))
        writers = [Writer(server.endpoint, first, 2) for first in (1, 2)]
        for writer in writers:
            writer.start()
        chance, newest, values = random.Random(1), 0, set()
        end = time.monotonic() + 3
        while time.monotonic() < end:
            some = chance.sample(range(MANY), 20)
            reply = raw.ok(op="MGET", keys=[f"k{number}" for number in some])
            assert len(set(reply["values"])) == len(set(reply["revs"])) == 1
            assert reply["revs"][0] >= newest, "a later read sees no earlier state"
            newest = raw.ok(op="GET", key=f"k{some[0]}")["rev"]
            assert newest >= reply["revs"][0]
            values.add(reply["values"][0])
        for writer in writers:
            writer.done.set()
        for writer in writers:
            writer.join()
        assert len(values) > 2


def test_conditions_hold_beside_long_writes(tmp_path: Path) -> None:
    """A TXN that checks a key is refused if a long write has come in between."""
    with ServerInProcess(tmp_path) as server, Raw(server.endpoint) as raw:
        raw.ok(op="MPUT", items=many(0))
        writer = Writer(server.endpoint, 1, 1)
        writer.start()
        done = 0
        for _ in range(300):
            read = raw.ok(op="GET", key="k5")
            changed = raw.call(
                op="TXN",
                ops=[{"op": "PUT", "key": "k5", "value": -1}, {"op": "GET", "key": "k6"}],
                **{"if": [["k5", read["rev"]], ["k6", read["rev"]]]},
            )
            if changed["ok"]:
                assert changed["results"][1]["value"] == read["value"]
                done += 1
        writer.done.set()
        writer.join()
        assert done


def test_a_long_write_is_there_or_not_after_a_kill(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path)
    with server:
        for number in range(4):
            with Raw(server.endpoint) as raw:
                raw.ok(op="MPUT", items=many(0))
            writer = Writer(server.endpoint, 1, 1, timeout=2)
            writer.start()
            time.sleep(0.1 + 0.037 * number)
            server.kill()
            writer.done.set()
            server.start()
            writer.join()
            with Raw(server.endpoint) as raw:
                (value,) = set(raw.ok(op="MGET", keys=list(many(0)))["values"])
                assert writer.acknowledged <= value <= writer.sent
