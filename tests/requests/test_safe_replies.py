"""A reply leaves once nothing that it tells can be lost, and not before."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections import deque
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from tests.requests.contract_stores import (
    MAX_INT64,
    DurableStore,
    FakeClock,
    StuckDisk,
    op,
    request,
)
from tests.requests.once import ONCE, fill_for_once
from tests.support import LIMIT
from zkv.errors import ReadOnly
from zkv.keyspace.change import Commit, KeyChange
from zkv.requests.call import Caller

WRITES = [name for name in ONCE if not ONCE[name].get("if")]


@pytest.mark.parametrize("write", ONCE)
def test_a_write_is_answered_once_it_is_on_disk_and_not_before(
    durable_store: DurableStore, write: str
) -> None:
    store = durable_store
    fill_for_once(store)
    syncs = store.disk.syncs
    body = request(**ONCE[write], session="s", seq=1)
    worker = store.workers[0]

    (first,) = worker.send(body)
    assert not first.left
    (repeat,) = store.workers[1].send(body)
    assert not repeat.left, "the repeat tells no more than the first may tell"
    assert store.disk.syncs == syncs
    worker.settle()

    assert store.disk.syncs == syncs + 1
    assert first.read().get("durable", True) is True
    store.workers[1].settle()
    assert store.disk.syncs == syncs + 1
    assert repeat.read()["replayed"] is True


READERS: dict[str, dict[str, Any]] = {
    "GET": op("GET", key="k"),
    "GET of nothing": op("GET", key="gone"),
    "MGET": op("MGET", keys=["a", "k"]),
    "MGET of nothing": op("MGET", keys=["a", "gone"]),
    "SCAN": op("SCAN"),
    "COUNT": op("COUNT"),
    "INFO": op("INFO"),
    "TXN": op("TXN", ops=[op("GET", key="k")]),
    "CONFLICT": op("PUT", key="k", value=1, if_rev=0),
    "NOT_FOUND": op("DELETE", key="gone"),
    "WRONG_TYPE": op("INCR", key="k"),
    "condition": op("TXN", **{"if": [["k", 0]]}, ops=[]),
    "nothing to do": op("MDELETE", keys=["gone"]),
}


@pytest.mark.parametrize("reader", ["GET", "SCAN"], ids=["the front's", "a worker's"])
def test_nobody_is_told_what_is_only_written(reader: str) -> None:
    """Between the write and the end of its sync, a crash can take it back."""
    disk = StuckDisk()
    with contextlib.closing(DurableStore(FakeClock(), disk)) as store:
        writer, worker = store.workers
        (written,) = writer.send(request("PUT", key="k", value=1))
        disk.sticks = True
        syncing = threading.Thread(target=writer.settle)
        syncing.start()
        assert disk.stuck.wait(LIMIT)
        try:
            (answer,) = worker.send(request(**READERS[reader]))
            assert (written.left, answer.left) == (False, False)
        finally:
            disk.go_on.set()
            syncing.join()
        worker.settle()
        assert (written.left, answer.left) == (True, True)


@pytest.mark.parametrize("reader", READERS)
def test_nobody_is_told_what_a_crash_could_take_back(
    durable_store: DurableStore, reader: str
) -> None:
    store = durable_store
    store.ok("MPUT", items={"a": 1, "gone": 1})
    writer, worker = store.workers
    writer.send(request("TXN", ops=[op("PUT", key="k", value="new"), op("DELETE", key="gone")]))

    (answer,) = worker.send(request(**READERS[reader]))
    (unconcerned,) = worker.send(request("GET", key="a"))
    assert unconcerned.left
    assert not answer.left
    writer.settle()
    (again,) = worker.send(request(**READERS[reader]))
    assert again.left


EXPIRY_READERS: dict[str, dict[str, Any]] = {
    "GET": op("GET", key="k"),
    "MGET": op("MGET", keys=["k"]),
    "SCAN": op("SCAN", prefix="k"),
    "COUNT": op("COUNT", prefix="k"),
    "TXN": op("TXN", ops=[op("GET", key="k")]),
    "CONFLICT": op("PUT", key="k", value=1, if_rev=1),
    "NOT_FOUND": op("TOUCH", key="k", ttl=None),
    "condition": op("TXN", **{"if": [["k", 1]]}, ops=[]),
    "nothing to do": op("MDELETE", keys=["k"]),
}


@pytest.mark.parametrize("removed", [False, True], ids=["to be removed", "removed"])
@pytest.mark.parametrize("reader", EXPIRY_READERS)
def test_nobody_is_told_of_an_expiry_that_a_crash_could_take_back(
    durable_store: DurableStore, reader: str, removed: bool
) -> None:
    """A key that has died of a time to live is there again if the crash takes that back."""
    store = durable_store
    store.ok("MPUT", items={"a": 1, "k": 1})
    writer, worker = store.workers
    writer.send(request("TOUCH", key="k", ttl=1))
    store.clock.advance(1_000)
    if removed:
        store.engine.keyspace.expire(1)

    (answer,) = worker.send(request(**EXPIRY_READERS[reader]))
    (unconcerned,) = worker.send(request("MGET", keys=["a"]))
    assert unconcerned.left
    assert not answer.left
    writer.settle()
    if removed:
        worker.settle()
    (again,) = worker.send(request(**EXPIRY_READERS[reader]))
    assert again.left


def test_changes_are_told_once_they_are_on_disk(durable_store: DurableStore) -> None:
    store = durable_store
    store.put("a")
    store.workers[0].send(request("PUT", key="b", value=1))

    (answer,) = store.workers[1].send(request("CHANGES", since=0))
    assert answer.read() == {"ok": True, "changes": [[1, "PUT", "a", 0]], "next": 1, "rev": 1}
    store.workers[0].settle()
    assert store.ok("CHANGES", since=1)["changes"] == [[2, "PUT", "b", 1]]


def test_what_was_not_on_disk_is_gone_after_a_crash_and_can_be_done_again(
    durable_store: DurableStore,
) -> None:
    store = durable_store
    store.ok("INCR", key="k", session="s", seq=1)
    answers = store.workers[0].send(request("INCR", key="k", session="s", seq=2))
    store.crash()

    assert not any(answer.left for answer in answers)
    assert (store.rev, store.ok("GET", key="k")["value"]) == (1, 1)
    assert store.ok("INCR", key="k", session="s", seq=1)["replayed"] is True
    reply = store.ok("INCR", key="k", session="s", seq=2)
    assert (reply["value"], reply["rev"], "replayed" in reply) == (2, 2, False)


class Watched(deque[Any]):
    """The log's queue, and what another thread may do while something is put into it."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self._meanwhile = meanwhile

    def append(self, item: Any) -> None:
        self._meanwhile()
        super().append(item)
        self._meanwhile()


def test_who_waits_for_the_newest_commit_finds_it_queued(durable_store: DurableStore) -> None:
    """A worker whose writes are on disk asks for the newest number while others write."""
    wal = durable_store.engine.wal
    with mock.patch.object(wal, "_queue", Watched(lambda: wal.commit(wal.last_lsn, durable=True))):
        assert durable_store.put("k") == 1
    durable_store.crash()
    assert durable_store.ok("GET", key="k")["rev"] == 1


def test_what_is_queued_in_one_step_is_seen_whole(durable_store: DurableStore) -> None:
    """Also by what the garbage collector calls, and by who runs while that waits."""
    wal = durable_store.engine.wal
    commits = [Commit(rev, 0, rev, (KeyChange("DELETE", "k"),)).pack() for rev in range(1, 100)]
    seen = set()

    def look(*_: object) -> None:
        seen.add(sum(len(commits) for _, commits, _ in wal._queue))

    usual = gc.get_threshold()
    gc.callbacks.append(look)
    gc.set_threshold(1)
    try:
        wal.extend(commits, sum(map(len, commits)))
    finally:
        gc.set_threshold(*usual)
        gc.callbacks.remove(look)
    look()
    assert seen <= {0, len(commits)}


@pytest.mark.usefixtures("impatient_log")
@pytest.mark.parametrize("lost", ["write", "read"])
def test_a_write_is_not_taken_for_another_one_that_got_its_revision(
    durable_store: DurableStore, lost: str
) -> None:
    """While a batch is being answered the disk refuses its write, and takes another one."""
    store = durable_store
    store.put("k", "old")
    worker, other = store.workers
    finish = Caller.finish

    def finish_slowly(caller: Caller, *arguments: Any) -> bytes:
        patch.stop()
        store.disk.full = True
        with pytest.raises(ReadOnly):
            store.engine.wal.flush()
        store.disk.full = False
        assert other.exchange(request("PUT", key="other", value=1))
        return finish(caller, *arguments)

    patch = mock.patch.object(Caller, "finish", finish_slowly)
    last = op("INCR", key="n", deadline=MAX_INT64) if lost == "write" else op("SCAN")
    writes = [request("PUT", key="k", value="new")] if lost == "read" else []
    patch.start()
    *_, answer = worker.send(*writes, request("PING"), request(**last))
    worker.settle()

    if lost == "write":
        assert (answer.read()["code"], answer.read()["applied"]) == ("READ_ONLY", None)
    else:
        assert answer.read()["items"] == [["k", "old", 1], ["other", 1, 2]]
    assert store.call("GET", key="n")["code"] == "NOT_FOUND"


@pytest.mark.usefixtures("impatient_log")
def test_a_group_is_not_safe_because_the_log_has_passed_its_number(
    durable_store: DurableStore,
) -> None:
    """While the committer comes to the log, that refuses the group's write, and takes another."""
    store, wal = durable_store, durable_store.engine.wal
    worker, other = store.workers
    (answer,) = worker.send(request("PUT", key="k", value="lost"))
    commit = wal.commit

    def commit_late(lsn: int, durable: bool, patient: bool = True) -> bool:
        patch.stop()
        store.disk.full = True
        with pytest.raises(ReadOnly):
            wal.flush()
        store.disk.full = False
        other.send(request("PUT", key="other", value=1))
        wal.flush()
        assert wal.durable_lsn >= lsn
        return commit(lsn, durable, patient)

    patch = mock.patch.object(wal, "commit", commit_late)
    patch.start()
    worker.settle()

    assert (answer.read()["code"], answer.read()["applied"]) == ("READ_ONLY", None)
    assert [key for key, *_ in store.items()] == ["other"]


@pytest.mark.usefixtures("impatient_log")
@pytest.mark.parametrize(
    "put", [op("PUT"), op("PUT", prev=True)], ids=["the front's", "a worker's"]
)
def test_a_write_is_not_safe_because_another_one_with_its_revision_is(
    durable_store: DurableStore, put: dict[str, Any]
) -> None:
    """Between the write and the look at what is safe, the disk refuses it, and takes another."""
    store, engine = durable_store, durable_store.engine
    worker, other = store.workers
    secure = engine.secure

    def secure_late(patient: bool = True) -> None:
        patch.stop()
        store.disk.full = True
        with pytest.raises(ReadOnly):
            engine.wal.flush()
        store.disk.full = False
        other.send(request("PUT", key="other", value=1))
        engine.wal.flush()
        assert engine.safe_rev == 1
        secure(patient)

    patch = mock.patch.object(engine, "secure", secure_late)
    patch.start()
    (answer,) = worker.send(request(**put, key="k", value="lost"))
    worker.settle()

    assert (answer.read()["code"], answer.read()["applied"]) == ("READ_ONLY", None)
    assert [key for key, *_ in store.items()] == ["other"]


@pytest.mark.parametrize("write", WRITES)
def test_durable_asks_for_the_disk_whatever_the_policy(write: str) -> None:
    with contextlib.closing(DurableStore(FakeClock(), fsync="never")) as store:
        fill_for_once(store)
        plain = store.call(**ONCE[write])
        syncs = store.disk.syncs
        if plain["ok"]:
            assert plain["durable"] is False
        assert syncs == 1, "that of the segment's header"

    with contextlib.closing(DurableStore(FakeClock(), fsync="never")) as store:
        fill_for_once(store)
        (answer,) = store.workers[0].send(request(**ONCE[write], durable=True))
        if answer.left:
            assert answer.read()["ok"] is False
            return
        store.workers[0].settle()
        assert store.disk.syncs == 2
        assert answer.read().get("durable", True) is True
        assert store.engine.durable_rev == store.rev
