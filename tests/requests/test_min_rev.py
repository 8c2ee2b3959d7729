"""Reads that wait for a revision: `min_rev`. They wait outside of the workers."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO, Final

import pytest
import zmq

from tests.support import (
    LIMIT,
    BadDisk,
    HeldFiles,
    Message,
    Raw,
    ServerInProcess,
    eventually,
    pack,
    unpack,
)
from zkv.durability import wal
from zkv.durability.files import Files
from zkv.requests import parking

FAR: Final = 10**6

READS: Final[dict[str, dict[str, Any]]] = {
    "GET": {"op": "GET", "key": "a"},
    "MGET": {"op": "MGET", "keys": ["a"]},
    "SCAN": {"op": "SCAN"},
    "COUNT": {"op": "COUNT"},
}


def in_ms(seconds: float) -> int:
    """A deadline."""
    return round((time.time() + seconds) * 1_000)


def later(client: Raw) -> Message:
    """The next reply."""
    reply = unpack(client.receive())
    assert isinstance(reply, dict)
    return reply


def parked(server: ServerInProcess) -> int:
    """The number of requests that wait."""
    return len(server.server._parking.parked)


@pytest.mark.parametrize("data_dir", ["data", None])
@pytest.mark.parametrize("read", READS)
def test_a_read_waits_for_its_revision(tmp_path: Path, read: str, data_dir: str | None) -> None:
    place = None if data_dir is None else str(tmp_path / data_dir)
    durability = {"data_dir": place}
    with (
        ServerInProcess(tmp_path, durability=durability, server={"workers": 1}) as server,
        Raw(server.endpoint) as client,
        Raw(server.endpoint, zmq.DEALER) as waiting,
    ):
        waiting.send(pack(READS[read] | {"min_rev": 2, "id": 7}))
        eventually(lambda: parked(server) == 1, "it waits")
        client.ok(op="PUT", key="a", value=1)
        assert parked(server) == 1
        client.ok(op="PUT", key="a", value=2)
        reply = later(waiting)
        assert (reply["ok"], reply["id"]) == (True, 7)
        assert reply == client.call(**READS[read], min_rev=2, id=7)


def test_a_failure_waits_as_well(tmp_path: Path) -> None:
    with (
        ServerInProcess(tmp_path) as server,
        Raw(server.endpoint) as client,
        Raw(server.endpoint, zmq.DEALER) as waiting,
    ):
        waiting.send(pack({"op": "GET", "key": "none", "min_rev": 1}))
        client.ok(op="PUT", key="a", value=1)
        assert later(waiting)["code"] == "NOT_FOUND"


def test_a_revision_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkv.requests.commands.PATIENCE_SECONDS", 0.05)
    with ServerInProcess(tmp_path) as server, Raw(server.endpoint) as client:
        client.ok(op="PUT", key="a", value=1)
        for limit in ({}, {"deadline": in_ms(0.1)}):
            reply = client.call(op="GET", key="a", min_rev=FAR, **limit)
            assert (reply["code"], reply["retry"], reply["rev"]) == ("BEHIND", True, 1)
        reply = client.call(op="GET", key="a", min_rev=FAR, deadline=in_ms(-1))
        assert reply["code"] == "DEADLINE"
        assert parked(server) == 0


def test_the_time_for_which_it_waits_counts_for_no_figure(tmp_path: Path) -> None:
    with (
        ServerInProcess(tmp_path, metrics={"slow": 1.0}) as server,
        Raw(server.endpoint) as client,
    ):
        client.call(op="GET", key="a", min_rev=FAR, deadline=in_ms(1.2))
        assert "GET" not in {each["op"] for each in client.ok(op="SLOW")["entries"]}


def test_many_wait_and_no_worker_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "MOST_READS", 50)
    with (
        ServerInProcess(tmp_path, server={"workers": 1}) as server,
        Raw(server.endpoint) as client,
        Raw(server.endpoint, zmq.DEALER) as waiting,
    ):
        for number in range(60):
            waiting.send(pack({"op": "GET", "key": "a", "min_rev": 1 + number % 5, "id": number}))
        busy = [later(waiting) for _ in range(10)]
        assert [each["code"] for each in busy] == ["BUSY"] * 10
        assert all(each["retry_after"] > 0 for each in busy)
        for number in range(5):
            client.ok(op="PUT", key="a", value=number)
        replies = [later(waiting) for _ in range(50)]
        assert all(each["ok"] and each["rev"] > each["id"] % 5 for each in replies)


def test_it_is_answered_once_what_it_reveals_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "QUICK_SYNC_SECONDS", 0.0)  # The front waits for no sync.
    disk = HeldFiles()
    with (
        ServerInProcess(tmp_path, disk) as server,
        Raw(server.endpoint, zmq.DEALER) as client,
        Raw(server.endpoint, zmq.DEALER) as waiting,
    ):
        client.send(pack({"op": "PUT", "key": "a", "value": 1}))
        later(client)
        disk.hold.set()
        try:
            client.send(pack({"op": "PUT", "key": "a", "value": 2}))
            assert disk.held.wait(LIMIT)
            waiting.send(pack({"op": "GET", "key": "a", "min_rev": 2}))
            eventually(lambda: parked(server) == 1, "it waits")
            assert not waiting.socket.poll(50)
        finally:
            disk.hold.clear()
            disk.release.set()
        assert later(waiting)["value"] == 2
        assert later(client)["rev"] == 2


class OneByOne(Files):
    """A disk of which each sync needs a permit, once somebody says so."""

    def __init__(self) -> None:
        self.asks = False
        self.begun = threading.Semaphore(0)
        self.permits = threading.Semaphore(0)

    def sync(self, file: BinaryIO) -> None:
        super().sync(file)
        if self.asks:
            self.begun.release()
            assert self.permits.acquire(timeout=LIMIT)


def test_what_is_newer_than_its_revision_has_to_be_safe_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "QUICK_SYNC_SECONDS", 0.0)  # The front waits for no sync.
    disk = OneByOne()
    with (
        ServerInProcess(tmp_path, disk) as server,
        Raw(server.endpoint, zmq.DEALER) as client,
        Raw(server.endpoint, zmq.DEALER) as waiting,
    ):
        client.send(pack({"op": "PUT", "key": "a", "value": 1}))
        later(client)
        waiting.send(pack({"op": "GET", "key": "a", "min_rev": 2}))
        eventually(lambda: parked(server) == 1, "it waits")
        disk.asks = True
        try:
            client.send(pack({"op": "PUT", "key": "a", "value": 2}))
            assert disk.begun.acquire(timeout=LIMIT)
            client.send(pack({"op": "PUT", "key": "a", "value": 3}))
            keyspace = server.server._engine.keyspace
            eventually(lambda: keyspace.rev == 3, "the second one is done")
            disk.permits.release()
            assert disk.begun.acquire(timeout=LIMIT)  # Revision 2 is safe, and 3 is not.
            assert not waiting.socket.poll(50)
        finally:
            disk.asks = False
            disk.permits.release(10)
        assert later(waiting)["value"] == 3


def test_it_runs_again_after_a_rollback(tmp_path: Path) -> None:
    disk = BadDisk()
    with (
        ServerInProcess(tmp_path, disk) as server,
        Raw(server.endpoint) as client,
        Raw(server.endpoint, zmq.DEALER) as waiting,
    ):
        client.ok(op="PUT", key="a", value=1)
        waiting.send(pack({"op": "SCAN", "min_rev": 2}))
        eventually(lambda: parked(server) == 1, "it waits")
        disk.full = True
        assert client.call(op="PUT", key="a", value="lost")["code"] == "READ_ONLY"
        disk.full = False
        eventually(lambda: client.call(op="PUT", key="a", value="kept")["ok"], "it is written")
        assert later(waiting)["items"] == [["a", "kept", 2]]


def test_reads_with_many_writers(tmp_path: Path) -> None:
    """What a reply tells is never older than asked for, whatever is written meanwhile."""
    with ServerInProcess(tmp_path) as server, contextlib.ExitStack() as stack:
        over = threading.Event()

        def write() -> None:
            with Raw(server.endpoint) as client:
                while not over.is_set():
                    client.ok(op="INCR", key="n")

        writers = [threading.Thread(target=write) for _ in range(3)]
        for writer in writers:
            writer.start()
        for writer in writers:
            stack.callback(writer.join)
        stack.callback(over.set)
        with Raw(server.endpoint) as client:
            for _ in range(50):
                rev = client.ok(op="INFO")["rev"] + 20
                reply = client.ok(op="SCAN", min_rev=rev)
                assert reply["rev"] >= rev
                assert reply["items"][0][1] == reply["items"][0][2]


def test_the_end_answers_those_who_wait(tmp_path: Path) -> None:
    with (
        ServerInProcess(tmp_path) as server,
        Raw(server.endpoint) as client,
        Raw(server.endpoint, zmq.DEALER) as waiting,
    ):
        for _ in range(20):
            waiting.send(pack({"op": "GET", "key": "a", "min_rev": FAR}))
        eventually(lambda: parked(server) == 20, "they wait")
        client.ok(op="END")
        assert {later(waiting)["code"] for _ in range(20)} == {"SHUTTING_DOWN"}
        assert server.wait()
