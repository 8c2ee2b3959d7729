"""The front answers what is plain by itself: whatever the workers or the disk are busy with."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import zmq

from tests.conftest import Connect
from tests.support import LIMIT, MAX_IN_FLIGHT, HeldFiles, ServerInProcess, pack, unpack
from zkv import compiled
from zkv.broker.frames import FRAMES
from zkv.broker.front import FrontHandler
from zkv.broker.waiting import PendingRun
from zkv.durability.files import Files
from zkv.durability.wal import QUICK_SYNC_SECONDS
from zkv.protocol import requests
from zkv.requests import commands

pytestmark = pytest.mark.skipif(
    not compiled.COMPILED, reason="zkv was installed without a C compiler: there is no lane"
)


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """PING takes until this is set."""
    released = threading.Event()
    ping = commands.READS[requests.Ping]

    def wait(*arguments: Any) -> Any:
        assert released.wait(LIMIT)
        return ping(*arguments)

    reads: dict[Any, Any] = commands.READS
    monkeypatch.setitem(reads, requests.Ping, wait)
    yield released
    released.set()


def test_plain_requests_are_answered_while_every_worker_is_busy(
    tmp_path: Path, connect: Connect, blocked: threading.Event
) -> None:
    """What the workers have room for waits with them, and holds up nobody."""
    with ServerInProcess(tmp_path / "data") as server:
        busy, client = connect(server.endpoint, zmq.DEALER), connect(server.endpoint)
        for number in range(100):
            busy.send(pack({"op": "PING", "id": number}))
        client.ok(op="PUT", key="k", value=1)
        assert client.ok(op="GET", key="k")["value"] == 1
        assert client.ok(op="MPUT", items={"k": 2, "l": 3})["rev"] == 2
        assert client.ok(op="MGET", keys=["k", "l"])["values"] == [2, 3]
        blocked.set()
        assert sorted(unpack(busy.receive())["id"] for _ in range(100)) == list(range(100))
        assert server.stop()


def test_nothing_is_lost_that_the_workers_have_no_room_for(
    tmp_path: Path, connect: Connect, blocked: threading.Event
) -> None:
    """It waits with the clients, plain requests too, and in the end all is answered."""
    count = 3_000
    with ServerInProcess(tmp_path / "data", limits={"max_in_flight": count}) as server:
        options = {zmq.SNDHWM: 0, zmq.RCVHWM: 0}
        busy = connect(server.endpoint, zmq.DEALER, options=options)
        for number in range(count):
            op = {"op": "PING"} if number % 2 else {"op": "PUT", "key": "k", "value": number}
            busy.send(pack(op | {"id": number}))
        blocked.set()
        replies = [unpack(busy.receive()) for _ in range(count)]
        assert sorted(reply["id"] for reply in replies) == list(range(count))
        assert all(reply["ok"] for reply in replies)
        assert server.stop()


class SlowFiles(Files):
    """A disk that takes its time, and once, when it is told to, until it is told to end."""

    def __init__(self) -> None:
        self.hold = threading.Event()
        self.held = threading.Event()
        self.release = threading.Event()

    def sync(self, file: BinaryIO) -> None:
        time.sleep(2 * QUICK_SYNC_SECONDS)
        super().sync(file)
        if self.hold.is_set():
            self.held.set()
            assert self.release.wait(LIMIT)


def test_reads_go_on_while_a_slow_disk_syncs(tmp_path: Path, connect: Connect) -> None:
    files = SlowFiles()
    with ServerInProcess(tmp_path / "data", files) as server:
        writer, reader = connect(server.endpoint), connect(server.endpoint)
        writer.ok(op="PUT", key="k", value=1)
        files.hold.set()
        writer.send(pack({"op": "PUT", "key": "l", "value": 2}))
        assert files.held.wait(LIMIT)
        assert reader.ok(op="GET", key="k")["value"] == 1
        files.hold.clear()
        files.release.set()
        assert unpack(writer.receive())["rev"] == 2
        assert server.stop()


@pytest.mark.parametrize(
    "durability",
    [{"fsync": "interval", "fsync_interval": 0.01}, {"fsync": "never", "segment_bytes": 65_536}],
    ids=["the committer's", "of a segment that is full"],
)
def test_reads_go_on_while_a_sync_holds_the_log(
    tmp_path: Path, connect: Connect, durability: dict[str, Any]
) -> None:
    """What was read is safe; only what is written in the meantime has to wait for the log."""
    files = SlowFiles()
    with ServerInProcess(tmp_path / "data", files, durability=durability) as server:
        client = connect(server.endpoint, zmq.DEALER)
        files.hold.set()
        client.ok(op="PUT", key="k", value=bytes(70_000))
        client.send(pack({"op": "PUT", "key": "l", "value": 1, "id": 1}))
        assert files.held.wait(LIMIT)
        client.send(pack({"op": "PUT", "key": "m", "value": 2, "id": 2}))
        client.send(pack({"op": "GET", "key": "k", "id": 3}))
        replies: dict[int, dict[str, Any]] = {}
        while 3 not in replies:  # The first write may have come before the sync.
            replies |= {reply["id"]: reply for reply in [unpack(client.receive())]}
        assert replies[3]["rev"] == 1
        assert 2 not in replies
        files.hold.clear()
        files.release.set()
        while len(replies) < 3:
            replies |= {reply["id"]: reply for reply in [unpack(client.receive())]}
        assert replies[2]["rev"] == 3
        assert server.stop()


@pytest.mark.parametrize(
    "other",
    [{"op": "PUT", "key": "o", "value": 1, "ttl": 3_600_000}, {"op": "SNAPSHOT"}],
    ids=["a worker's", "of a snapshot"],
)
def test_the_front_does_not_wait_for_a_sync_of_others(
    tmp_path: Path, connect: Connect, other: dict[str, Any]
) -> None:
    """However quick the disk has been: one who has the log's file may never let go of it."""
    files = HeldFiles()
    with ServerInProcess(tmp_path / "data", files) as server:
        busy, client = connect(server.endpoint), connect(server.endpoint, zmq.DEALER)
        client.ok(op="PUT", key="k", value=1)
        files.hold.set()
        busy.send(pack(other))
        assert files.held.wait(LIMIT)
        for number in range(3):
            client.send(pack({"op": "PUT", "key": "l", "value": number, "id": number}))
            for _ in range(3):  # Of which the later ones come when the front has gone on.
                assert client.ok(op="GET", key="k", id="read")["rev"] == 1
        files.release.set()
        assert sorted(unpack(client.receive())["id"] for _ in range(3)) == [0, 1, 2]
        assert unpack(busy.receive())["ok"]
        assert server.stop()


class NoRoomYet(Files):
    """A disk on which a new segment takes, once it is told so, until it is told to end."""

    def __init__(self) -> None:
        self.hold = threading.Event()
        self.held = threading.Event()
        self.release = threading.Event()

    def create(self, path: Path) -> BinaryIO:
        if self.hold.is_set() and ".wal" in path.suffixes:
            self.held.set()
            assert self.release.wait(LIMIT)
        return super().create(path)


def test_reads_go_on_while_a_segment_is_begun(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkv.durability.wal.QUICK_SYNC_SECONDS", LIMIT)  # Every disk is quick.
    files = NoRoomYet()
    durability = {"segment_bytes": 100_000, "snapshot_interval": 3_600.0}
    with ServerInProcess(tmp_path / "data", files, durability=durability) as server:
        writer, reader = connect(server.endpoint), connect(server.endpoint)
        writer.ok(op="PUT", key="k", value=bytes(200_000))
        files.hold.set()
        writer.send(pack({"op": "PUT", "key": "l", "value": 2}))
        assert files.held.wait(LIMIT)
        assert reader.ok(op="GET", key="k")["rev"] == 1
        files.release.set()
        assert unpack(writer.receive())["rev"] == 2
        assert server.stop()


@pytest.mark.parametrize("ask", [{"op": "GET", "key": "k"}, {"op": "PING"}])
def test_malformed_messages_between_good_ones(
    tmp_path: Path, connect: Connect, ask: dict[str, Any]
) -> None:
    """The front answers those itself, wherever the others go."""
    with ServerInProcess(tmp_path / "data") as server:
        client = connect(server.endpoint, zmq.DEALER)
        client.ok(op="PUT", key="k", value=1)
        for number in range(50):
            client.socket.send_multipart([b"no delimiter"])
            client.send(pack(ask | {"id": number}))
            client.socket.send_multipart([b"", b"two", b"bodies"])
        replies = [unpack(client.receive()) for _ in range(150)]
        bad = [reply for reply in replies if not reply["ok"]]
        assert {reply["code"] for reply in bad} == {"BAD_REQUEST"}
        assert (len(bad), len(replies)) == (100, 150)
        assert sorted(reply["id"] for reply in replies if reply["ok"]) == list(range(50))
        failures = client.ok(op="INFO")["stats"]["failures"]
        assert failures == {"BAD_REQUEST": 100}
        assert server.stop()


def test_a_batch_that_ends_in_a_bug_is_answered_and_counted(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ServerInProcess(tmp_path / "data") as server:
        client = connect(server.endpoint)
        client.ok(op="PUT", key="k", value=1)
        with monkeypatch.context() as patch:
            patch.setattr(FrontHandler, "_refuse", raising)
            reply = client.call(op="PING", id=7)
        assert (reply["code"], reply["id"], reply["applied"]) == ("INTERNAL", 7, None)
        assert client.ok(op="GET", key="k")["value"] == 1
        stats = client.ok(op="INFO")["stats"]
        assert stats["workers_replaced"] == 1
        assert stats["requests"]["PUT"] == 1, "its counters live on"
        assert server.stop()


def test_a_pending_reply_of_the_front_that_cannot_be_made(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ServerInProcess(tmp_path / "data") as server:
        client = connect(server.endpoint)
        with monkeypatch.context() as patch:
            patch.setattr(PendingRun, "complete", raising)
            patch.setattr(server.server._engine.log, "quick_sync_seconds", 0.0)
            reply = client.call(op="PUT", key="k", value=1, id=7)
        assert (reply["code"], reply["id"], reply["applied"]) == ("INTERNAL", 7, None)
        assert client.ok(op="GET", key="k")["rev"] == 1
        stats = client.ok(op="INFO")["stats"]
        assert (stats["workers_replaced"], stats["failures"]) == (1, {"INTERNAL": 1})
        assert server.stop()


def test_what_cannot_be_handed_over_is_answered_by_the_front(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without memory for it; what was plain in its batch has its answer, and nobody waits."""

    def frames(*arguments: Any, **others: Any) -> Any:
        return NobodyBehind(FRAMES(*arguments, **others))

    monkeypatch.setattr("zkv.broker.front.FRAMES", frames)
    with ServerInProcess(tmp_path / "data") as server:
        client = connect(server.endpoint, zmq.DEALER)
        for number in range(10):
            client.send(pack({"op": "PING", "id": 2 * number}))
            client.send(pack({"op": "GET", "key": "k", "id": 2 * number + 1}))
            client.send(pack({"op": "MPUT", "items": {"k": 1}, "id": "write"}))
        replies = [unpack(client.receive()) for _ in range(30)]
        told = {reply["id"]: reply.get("code") for reply in replies if reply["id"] != "write"}
        assert {told[2 * number] for number in range(10)} == {"FULL"}
        assert {told[2 * number + 1] for number in range(10)} <= {None, "NOT_FOUND", "FULL"}
        assert server.stop()


def test_no_wake_is_lost_between_clients_and_workers(tmp_path: Path, connect: Connect) -> None:
    """Replies and requests that come at any moment: to look at one socket resets signals."""
    count = MAX_IN_FLIGHT
    with ServerInProcess(tmp_path / "data", server={"workers": 1}) as server:
        client = connect(server.endpoint, zmq.DEALER)
        for _ in range(100):
            for number in range(count):
                client.send(pack({"op": "PING", "id": number}))
            assert {unpack(client.receive())["id"] for _ in range(count)} == set(range(count))


class NobodyBehind:
    """Frames without memory for what is to be handed over."""

    def __init__(self, frames: Any) -> None:
        self._frames = frames

    def __getattr__(self, name: str) -> Any:
        return getattr(self._frames, name)

    def forward(self, *_: object) -> int:
        raise MemoryError


def raising(*_: object) -> bool:
    raise BaseException("nobody thought of this")
