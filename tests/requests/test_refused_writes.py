"""Writes that the disk refuses leave nothing behind, and what is safe stays."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, BinaryIO
from unittest import mock

import pytest

from tests.requests.contract_stores import (
    MAX_INT64,
    Disk,
    DurableStore,
    FakeClock,
    Parked,
    Store,
    StuckDisk,
    op,
    request,
)
from tests.support import LIMIT
from zkv.errors import BadRequest


def everything(store: Store, sessions: dict[str, int]) -> dict[str, Any]:
    """All that a client can find out about a store; ``sessions``: name -> seq to repeat."""
    items = store.items()
    return {
        "items": items,
        "ttls": [store.ok("GET", key=key).get("ttl") for key, _, _ in items],
        "count": store.ok("COUNT")["count"],
        "changes": store.ok("CHANGES", since=0),
        "rev": store.rev,
        "stats": store.ok("INFO")["stats"],
        "replies": [
            store.ok("INCR", key="n", session=name, seq=seq) | {"durable": None}
            for name, seq in sessions.items()
        ],
    }


LOST_WRITES: dict[str, dict[str, Any]] = {
    "PUT": op("PUT", key="a", value="lost"),
    "PUT ttl": op("PUT", key="a", value="lost", ttl=1),
    "PUT new": op("PUT", key="new", value="lost", ttl=1),
    "PUT over ttl": op("PUT", key="t", value="lost"),
    "DELETE": op("DELETE", key="a"),
    "DELETE ttl": op("DELETE", key="t"),
    "TOUCH": op("TOUCH", key="t", ttl=None),
    "TOUCH shorter": op("TOUCH", key="t", ttl=1),
    "INCR": op("INCR", key="n"),
    "MPUT": op("MPUT", items={"a": 1, "t": 1, "new": 1}, ttl=1),
    "MDELETE": op("MDELETE", keys=["a", "t", "n"]),
    "TXN": op(
        "TXN",
        ops=[
            op("DELETE", key="a"),
            op("PUT", key="a", value=1, ttl=1),
            op("TOUCH", key="t", ttl=1),
            op("INCR", key="new"),
            op("DELETE", key="n"),
        ],
    ),
    "once": op("INCR", key="n", session="s", seq=2),
    "once, refused": op("DELETE", key="x", session="s", seq=2),
}


@pytest.mark.usefixtures("impatient_log")
@pytest.mark.parametrize("fsync", ["always", "never"])
@pytest.mark.parametrize("write", LOST_WRITES)
def test_a_write_that_the_disk_refuses_leaves_nothing_behind(fsync: str, write: str) -> None:
    with contextlib.closing(DurableStore(FakeClock(), fsync=fsync)) as store:
        store.ok("MPUT", items={"a": 1, "n": 1})
        store.put("t", 2, ttl=10)
        store.ok("INCR", key="n", session="s", seq=1)
        before = everything(store, {"s": 1})

        store.disk.full = True
        reply = store.call(**LOST_WRITES[write])
        assert (reply["ok"], reply["code"]) == (False, "READ_ONLY"), reply
        assert (reply["retry"], reply["applied"]) == (True, False)
        assert everything(store, {"s": 1}) == before
        store.clock.advance(5_000)
        assert len(store.items()) == 3

        store.disk.full = False
        reply = store.call(**LOST_WRITES[write])
        assert reply.get("code") == ("NOT_FOUND" if "refused" in write else None)
        assert "replayed" not in reply
        after = everything(store, {"s": 1})
        assert after["rev"] == before["rev"] + ("refused" not in write)
        store.crash()
        assert everything(store, {"s": 1}) == after


@pytest.mark.usefixtures("impatient_log")
@pytest.mark.parametrize("fsync", ["always", "never"])
def test_a_write_for_which_memory_ends_is_refused_and_leaves_no_gap(fsync: str) -> None:
    """What a batch commits is put together for the log, which may take a lot of memory at once."""
    with contextlib.closing(DurableStore(FakeClock(), fsync=fsync)) as store:
        store.put("k", 1)
        with mock.patch.object(store.disk, "write", side_effect=MemoryError):
            reply = store.call("PUT", key="k", value=2)
        assert (reply["code"], reply["applied"]) == ("FULL", False)
        assert reply["message"] == "out of memory"
        assert store.put("k", 3) == 2
        store.crash()
        assert store.ok("GET", key="k")["value"] == 3


@pytest.mark.parametrize(
    "write",
    [
        op("TXN", ops=[op("TOUCH", key="k", ttl=1)] * 3),
        op("TXN", ops=[op("TOUCH", key="k", ttl=1), op("PUT", key="j", value="x" * 450)]),
        op("MPUT", items={"k": "x" * 500, "j": "x" * 500}, ttl=1),
    ],
    ids=["touches", "put", "items"],
)
def test_what_no_frame_of_the_log_holds_is_too_large(
    durable_store: DurableStore, write: dict[str, Any]
) -> None:
    """A TXN writes much more than it says: each TOUCH of a large entry logs its value once more."""
    store = durable_store
    with mock.patch("zkv.keyspace.change.MOST_PAYLOAD_BYTES", 900):
        store.put("k", "x" * 440)
        message = store.refused("TOO_LARGE", **write)["message"]
        assert message.endswith("the log takes 900 at most: write less in one request")
        store.refused("TOO_LARGE", **write, session="s", seq=1)
        store.put("j", 1)
    store.crash()
    assert [key for key, *_ in store.items()] == ["j", "k"]


@pytest.mark.usefixtures("impatient_log")
def test_several_writes_that_the_disk_refuses_are_undone_together() -> None:
    with contextlib.closing(DurableStore(FakeClock())) as store:
        store.put("a", 1, ttl=10)
        store.ok("INCR", key="n", session="s", seq=1)
        before = everything(store, {"s": 1})

        one, other = store.workers
        answers = one.send(
            request("PUT", key="a", value=2),
            request("INCR", key="n", session="s", seq=2),
            request("GET", key="a"),
            request("MDELETE", keys=["a", "n"]),
        )
        answers += other.send(
            request("PUT", key="a", value=3, if_rev=0, ttl=99),
            request("COUNT"),
            request("INCR", key="n", session="s", seq=2),
        )
        assert not any(answer.left for answer in answers)
        store.disk.full = True
        one.settle()
        other.settle()

        replies = [answer.read() for answer in answers]
        for index in (0, 1, 3, 4, 6):
            assert (replies[index]["code"], replies[index]["retry"]) == ("READ_ONLY", True)
            assert replies[index]["applied"] is (False if index < 4 else None)
        assert (replies[2]["value"], replies[2]["rev"]) == (1, 1)
        assert replies[5]["count"] == 2
        assert everything(store, {"s": 1}) == before
        store.disk.full = False
        assert store.ok("INCR", key="n", session="s", seq=2)["value"] == 2


@pytest.mark.usefixtures("impatient_log")
@pytest.mark.parametrize("fsync", ["always", "never"])
def test_a_refused_write_does_not_move_the_window_of_its_session(fsync: str) -> None:
    """Its number may be far ahead; those in between have not run yet."""
    with contextlib.closing(DurableStore(FakeClock(), fsync=fsync, session_window=3)) as store:
        store.ok("INCR", key="n", session="s", seq=1)
        store.disk.full = True
        assert store.call("INCR", key="n", session="s", seq=9)["code"] == "READ_ONLY"
        store.disk.full = False

        assert store.ok("INCR", key="n", session="s", seq=2)["value"] == 2
        assert store.ok("INCR", key="n", session="s", seq=1)["replayed"] is True


class BusyDisk(Disk):
    """Something else happens, once, before it refuses a write."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: list[Callable[[], object]] = []

    def write(self, file: BinaryIO, data: bytes) -> None:
        while self.full and self.meanwhile:
            self.meanwhile.pop()()
        super().write(file, data)


@pytest.mark.usefixtures("impatient_log")
def test_what_is_queued_while_the_disk_refuses_is_not_written_later() -> None:
    disk = BusyDisk()
    with contextlib.closing(DurableStore(FakeClock(), disk)) as store:
        one, other = store.workers
        one.send(request("PUT", key="a", value=1))
        queued = []
        disk.meanwhile = [lambda: queued.extend(other.send(request("PUT", key="b", value=2)))]
        disk.full = True
        one.settle()
        other.settle()
        disk.full = False

        (answer,) = queued
        assert answer.read()["code"] == "READ_ONLY"
        assert store.put("c", 3) == 1
        store.crash()
        assert store.items() == [["c", 3, 1]]


@pytest.mark.usefixtures("impatient_log")
@pytest.mark.parametrize("fsync", ["always", "never"])
def test_what_is_rolled_back_after_it_was_written_leaves_the_log(fsync: str) -> None:
    """A commit may be in the file, and not on disk yet, when the next one does not fit."""
    with contextlib.closing(DurableStore(FakeClock(), fsync=fsync)) as store:
        wal = store.engine.wal
        worker, other = store.workers
        (written,) = worker.send(request("PUT", key="a", value=1))
        wal.commit(wal.last_lsn, durable=False)
        store.disk.full = True
        assert other.send(request("PUT", key="b", value=2))
        other.settle()
        worker.settle()
        store.disk.full = False

        stays = fsync == "never"
        assert written.read()["ok"] is stays
        store.put("c", 3)
        found = store.items()
        assert [key for key, *_ in found] == [*(["a"] if stays else []), "c"]
        store.crash()
        assert store.items() == found


def send_with_a_pause(
    store: DurableStore,
    first: list[bytes],
    do: Callable[[], None],
    second: list[bytes],
    in_front: bool,
) -> list[Parked]:
    """The answers to two series of requests; ``do`` is done between them.

    The front runs each series as a batch of its own. A worker runs both in one batch, with a
    request between them that it refuses once ``do`` is done.
    """
    worker = store.workers[0]
    if in_front:
        answers = worker.send(*first)
        do()
        return answers + worker.send(*second)

    def do_and_refuse() -> None:
        do()
        raise BadRequest("this is no snapshot")

    with mock.patch.object(store.engine, "snapshot", do_and_refuse):
        answers = worker.send(*first, request("SNAPSHOT"), *second)
    del answers[len(first)]
    return answers


@pytest.mark.usefixtures("impatient_log")
@pytest.mark.parametrize(
    ("put", "get"),
    [
        (op("PUT"), op("GET")),
        (op("PUT", prev=True), op("GET", deadline=MAX_INT64)),
        (op("PUT", ttl=9), op("GET", deadline=MAX_INT64)),
    ],
    ids=["the front's", "a worker's", "a worker's, with ttl"],
)
def test_what_is_on_disk_is_not_refused_for_what_could_not_follow(
    put: dict[str, Any], get: dict[str, Any]
) -> None:
    """Another thread has begun to sync the first half of a batch; the disk refuses the rest."""
    disk = StuckDisk()
    with contextlib.closing(DurableStore(FakeClock(), disk)) as store:
        log = store.engine.wal
        syncing = threading.Thread(target=log.flush)

        def sync() -> None:
            disk.sticks = True
            syncing.start()
            assert disk.stuck.wait(LIMIT)

        first_half = [
            request(**put, key="a", value=1, session="s", seq=1, id=1),
            request(**get, key="a", id=2),
        ]
        second_half = [
            request(**get, key="a", id=4),
            request(**put, key="b", value=2, session="s", seq=2, id=5),
            request(**get, key="b", id=6),
            request("COUNT", id=7),
        ]
        answers = send_with_a_pause(store, first_half, sync, second_half, put == op("PUT"))
        disk.go_on.set()
        syncing.join()
        disk.full = True
        store.workers[0].settle()
        disk.full = False

        first, read, again, second, absent, count = [answer.read() for answer in answers]
        assert [first["id"], read["id"], again["id"]] == [1, 2, 4]
        assert (first["rev"], first["durable"]) == (1, True)
        assert (read["value"], again["value"]) == (1, 1)
        assert (second["code"], second["applied"], second["id"]) == ("READ_ONLY", False, 5)
        assert (absent["code"], absent["id"]) == ("NOT_FOUND", 6)
        assert (count["count"], count["id"]) == (1, 7)
        assert store.ok(**put, key="a", value=1, session="s", seq=1)["replayed"] is True
        assert store.ok(**put, key="b", value=2, session="s", seq=2)["rev"] == 2


@pytest.mark.usefixtures("impatient_log")
@pytest.mark.parametrize(
    "put", [op("PUT"), op("PUT", prev=True)], ids=["the front's", "a worker's"]
)
def test_what_is_written_is_not_refused_for_what_could_not_follow(put: dict[str, Any]) -> None:
    """It is safe, and stays. That it is on disk, too, is what nobody can tell."""
    with contextlib.closing(DurableStore(FakeClock(), fsync="never")) as store:

        def write() -> None:
            store.engine.secure()
            store.disk.full = True

        in_front = put == op("PUT")
        durable_put = request("PUT", key="b", value=2, durable=True)
        behind = [] if in_front else [durable_put]
        first_half = [request(**put, key="a", value=1), *behind]
        second_half = [request(**put, key="c", value=3)]
        answers = send_with_a_pause(store, first_half, write, second_half, in_front)
        store.workers[0].settle()
        store.disk.full = False

        first, *durable, second = [answer.read() for answer in answers]
        assert (first["ok"], first["rev"]) == (True, 1)
        for reply in durable:
            assert (reply["code"], reply["applied"]) == ("READ_ONLY", None)
        assert (second["code"], second["applied"]) == ("READ_ONLY", False)
        assert [key for key, *_ in store.items()] == ["a", *["b" for _ in behind]]
