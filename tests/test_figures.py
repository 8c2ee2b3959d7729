"""Each figure is told once, and by everybody; and each counts what it says."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import pytest
import zmq

from tests.cluster.figures import OF_MEMBERS
from tests.conftest import Connect
from tests.support import FREE_PORT, LIMIT, BadDisk, Message, Raw, ServerInProcess, eventually, pack
from tests.users.secured import Secured
from zkv import rates
from zkv.cli import top
from zkv.client import Client
from zkv.figures import FIGURES, Buckets, Figure

NO_FIGURES: Final = {"stats.process.pid"}
"""What is in `stats` and has no amount."""
AT_TIMES: Final = {
    "durability.refusal", "stats.read_only_since", "stats.snapshot.failed_at",
    "stats.snapshot.failure",
}  # fmt: skip
"""Figures that are nil while all is well."""


@pytest.fixture
def disk() -> BadDisk:
    return BadDisk()


@pytest.fixture
def server(tmp_path: Path, disk: BadDisk) -> Iterator[ServerInProcess]:
    durability = {"snapshot_interval": 3600.0}
    with ServerInProcess(
        tmp_path / "data", disk, server={"feed": FREE_PORT}, durability=durability
    ) as server:
        yield server


@pytest.fixture
def client(server: ServerInProcess, connect: Connect) -> Raw:
    return connect(server.endpoint)


def stats(client: Raw) -> Message:
    found = client.ok(op="INFO")["stats"]
    assert isinstance(found, dict)
    return found


def busy(client: Raw) -> Message:
    """INFO of a server that has done a bit of everything."""
    client.ok(op="PUT", key="k", value=1)
    client.call(op="GET", key="nobody")
    client.ok(op="COUNT")
    client.ok(op="SNAPSHOT")
    client.ok(op="REPLICATE", member="somebody")
    return client.ok(op="INFO")


# --- The table


def test_every_number_of_info_is_a_figure(client: Raw) -> None:
    known = {path for figure in FIGURES for path in figure.paths} | NO_FIGURES
    info = busy(client)
    settings = {f"durability.{name}" for name in (
        "data_dir", "format", "fsync", "fsync_interval", "segment_bytes", "snapshot_interval"
    )}  # fmt: skip
    for table in ("stats", "durability"):
        for path in leaves(info[table], table):
            assert path in settings or any(
                path == each or path.startswith(f"{each}.") for each in known
            ), path


def leaves(table: Message, path: str) -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}"


def test_every_figure_is_in_info(client: Raw) -> None:
    info = busy(client)
    for figure in FIGURES:
        for place, path in enumerate(figure.paths):
            assert (figure.of(info, place) is None) == (path in AT_TIMES | OF_MEMBERS), path
        if figure.members:
            assert set(figure.of(info)) == set(figure.members)


def test_no_two_figures_have_one_name() -> None:
    for names in (
        [figure.name for figure in FIGURES],
        [figure.place for figure in FIGURES if figure.place and not figure.members],
        [path for figure in FIGURES for path in figure.paths],
    ):
        assert len(names) == len(set(names))


def test_top_shows_every_figure(server: ServerInProcess, client: Raw) -> None:
    """Those without a place are in its table of ops."""
    busy(client)
    with Client(server.endpoint) as other:
        before, now = top._sample(other), top._sample(other)
    shown = rates.groups(now, rates.between(before, now))
    for figure in FIGURES:
        if figure.place is not None and figure.paths[0] not in AT_TIMES | OF_MEMBERS:
            heading, name = figure.place
            assert shown[heading].keys() >= (set(figure.members) or {name}), figure.name
    assert [figure.name for figure in FIGURES if figure.place is None] == [
        "zkv_requests_total", "zkv_request_seconds",
    ]  # fmt: skip


# --- What they count


def test_buckets_are_powers_of_two() -> None:
    buckets = Buckets()
    for seconds in (0.0, 0.000_000_9, 0.000_001, 0.000_003_9, 0.000_004):
        buckets.add_time(seconds)
    assert buckets.report() == {"counts": [2, 1, 1, 1], "sum": 0.00001}


def test_latencies_have_a_sum(client: Raw) -> None:
    client.ok(op="PUT", key="k", value=1)
    client.ok(op="COUNT")
    found = stats(client)
    assert found["seconds"].keys() == found["latencies"].keys() == {"PUT", "COUNT"}
    for op, counts in found["latencies"].items():
        (step,) = [step for step, count in enumerate(counts) if count]
        assert 2 ** (step - 1) <= found["seconds"][op] * 1e6 + 1 <= 2**step + 2


def test_bytes_are_those_of_the_bodies(client: Raw) -> None:
    bodies = [
        pack(fields)
        for fields in (
            {"op": "PUT", "key": "k", "value": "x" * 1000},
            {"op": "GET", "key": "k"},
            {"op": "GET", "key": "nobody"},
            {"op": "COUNT"},
            {"op": "bad"},
        )
    ]
    replies = [client.exchange(body) for body in bodies]
    found = stats(client)
    assert found["bytes_in"] == sum(map(len, [*bodies, pack({"op": "INFO"})]))
    assert found["bytes_out"] == sum(map(len, replies))


def test_memory_follows_what_is_stored(client: Raw) -> None:
    def sizes() -> tuple[int, int]:
        memory = stats(client)["memory"]
        assert memory["used"] == sum(memory[part] for part in FIGURES_OF_MEMORY)
        return memory["keys"], memory["values"]

    assert sizes() == (0, 0)
    client.ok(op="PUT", key="é", value="x" * 10)
    assert sizes() == (2, 11)
    client.ok(op="MPUT", items={"é": 1, "b": "xx"})
    assert sizes() == (3, 4)
    client.ok(op="TXN", ops=[{"op": "PUT", "key": "c", "value": 1}, {"op": "DELETE", "key": "b"}])
    assert sizes() == (3, 2)
    client.ok(op="MDELETE", keys=["c", "é"])
    assert sizes() == (0, 0)


FIGURES_OF_MEMORY: Final = ("keys", "values", "index", "history", "sessions")


def test_each_part_of_memory_grows_with_what_it_holds(client: Raw) -> None:
    before = stats(client)["memory"]
    client.ok(op="PUT", key="k", value=1, ttl=1000, session="s", seq=1)
    after = stats(client)["memory"]
    assert all(after[part] > before[part] for part in FIGURES_OF_MEMORY)


def test_expired_entries_are_counted(client: Raw) -> None:
    client.ok(op="MPUT", items={"a": 1, "b": 2}, ttl=0.001)
    client.ok(op="PUT", key="c", value=3)
    eventually(lambda: stats(client)["expired"] == 2, "both are removed")
    client.ok(op="DELETE", key="c")
    assert stats(client)["expired"] == 2


def test_connections_come_and_go(server: ServerInProcess, client: Raw) -> None:
    eventually(lambda: stats(client)["connections"] == 1, "it is counted")
    with Raw(server.endpoint) as other:
        other.ok(op="PING")
        eventually(lambda: stats(client)["connections"] == 2, "so is the other one")
    eventually(lambda: stats(client)["connections"] == 1, "it has left")


def test_followers_come_and_go(server: ServerInProcess, client: Raw) -> None:
    assert stats(client)["followers"] == 0
    with zmq.Context() as context, context.socket(zmq.SUB) as follower:
        follower.linger = 0
        follower.rcvtimeo = round(LIMIT * 1000)
        follower.subscribe(b"")
        follower.connect(server.server.feed)
        follower.recv_multipart()
        eventually(lambda: stats(client)["followers"] == 1, "it is counted")
    eventually(lambda: stats(client)["followers"] == 0, "it has left")
    assert stats(client)["connections"] == 1


def test_followers_come_back_when_the_rights_change(tmp_path: Path) -> None:
    """The server closes the feed's endpoint then, of which libzmq does not tell everything."""
    users: dict[str, dict[str, Any]] = {"ann": {"read": ["a/"], "admin": True}}
    with (
        Secured(tmp_path, users, feed=True) as secured,
        zmq.Context() as context,
        secured.client(context, "ann") as client,
        secured.follower(context, "ann", b"\0") as follower,
    ):
        follower.rcvtimeo = round(LIMIT * 1000)
        follower.recv_multipart()
        monitor = follower.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        users["ann"]["read"] = ["b/"]
        secured.reload(users)
        assert monitor.poll(round(LIMIT * 1000)), "the endpoint is not closed"
        follower.disable_monitor()
        monitor.close()
        while follower.poll(0):
            follower.recv_multipart()
        follower.recv_multipart()
        eventually(lambda: stats(client)["followers"] == 1, "it is counted once")


@pytest.mark.parametrize("feed", [False, True])
def test_handshakes_that_fail_are_counted(server: ServerInProcess, client: Raw, feed: bool) -> None:
    endpoint = server.server.feed if feed else server.endpoint
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host, int(port))) as browser:
        browser.sendall(b"GET / HTTP/1.1\r\n\r\n")
    eventually(
        lambda: sum(stats(client)["handshakes_failed"].values()) == 1, "the handshake has failed"
    )


def test_inproc_connections_are_not_counted(tmp_path: Path) -> None:
    endpoint = "inproc://figures"
    with (
        ServerInProcess(tmp_path / "data", server={"endpoints": [endpoint]}),
        Raw(endpoint, context=zmq.Context.instance()) as client,
    ):
        client._owns_context = False
        assert stats(client)["connections"] == 0


def test_replies_that_nobody_reads_are_counted(tmp_path: Path, connect: Connect) -> None:
    with ServerInProcess(tmp_path / "data", limits={"max_in_flight": 1}) as server:
        client = connect(server.endpoint)
        client.ok(op="PUT", key="k", value=b"x" * 100_000)
        deaf = connect(server.endpoint, zmq.DEALER, options={zmq.RCVHWM: 1, zmq.RCVBUF: 4096})
        asked = 0
        requests = ({"op": "GET", "key": "k"}, {"op": "SCAN"})  # By the front, and by a worker.
        for request in itertools.cycle(requests):
            deaf.send(pack(request))
            asked += 1
            if asked % 100 == 0 and stats(client)["replies_dropped"]:
                break
        assert 0 < stats(client)["replies_dropped"] < asked
        assert stats(client)["unroutable"] == 0


def test_replies_to_clients_that_have_left_are_counted(
    server: ServerInProcess, client: Raw, connect: Connect, disk: BadDisk
) -> None:
    entered, gate = threading.Event(), threading.Event()
    write = disk.write

    def wait(file: BinaryIO, data: bytes) -> None:
        entered.set()
        gate.wait(LIMIT)
        write(file, data)

    disk.write = wait  # type: ignore[method-assign]
    leaver = connect(server.endpoint, zmq.DEALER)
    leaver.send(pack({"op": "SNAPSHOT"}))
    leaver.send(pack({"op": "PUT", "key": "k", "value": 1}))
    leaver.send(pack({"op": "COUNT"}))
    assert entered.wait(LIMIT)
    leaver.close()
    eventually(lambda: server.server._broker._front.connections.closed == 1, "it has left")
    gate.set()
    eventually(lambda: stats(client)["unroutable"], "the replies have no receiver")


def test_waits_for_a_worker_are_counted(client: Raw) -> None:
    for _ in range(10):
        client.ok(op="COUNT")
    waits = stats(client)["queue_wait"]
    assert waits["count"] == 11  # With INFO itself.
    assert 0 < waits["sum"] < LIMIT
    client.ok(op="PUT", key="k", value=1)  # By the front.
    client.ok(op="GET", key="k")
    assert stats(client)["queue_wait"]["count"] == 12


def test_waits_for_the_lock_are_counted(server: ServerInProcess, client: Raw) -> None:
    lock = server.server._engine.keyspace.lock
    assert stats(client)["lock_wait"]["counts"] == []
    acquire, waits = lock.acquire, threading.Semaphore(0)

    def tell(*arguments: Any) -> bool:
        taken = acquire(*arguments)
        if not taken:
            waits.release()
        return taken

    lock.acquire = tell  # type: ignore[assignment]
    with lock:
        client.send(pack({"op": "GET", "key": "k"}))
        assert waits.acquire(timeout=LIMIT)
        assert waits.acquire(timeout=LIMIT)  # The second try is one that takes time.
    client.receive()
    lock.acquire = acquire
    found = stats(client)["lock_wait"]
    assert sum(found["counts"]) >= 1
    assert found["sum"] > 0


def test_syncs_and_their_groups_are_counted(client: Raw) -> None:
    for _ in range(3):
        client.ok(op="INCR", key="n")
    info = client.ok(op="INFO")
    found = info["stats"]
    assert sum(found["fsync"]["counts"]) == sum(found["group_commits"]["counts"])
    assert sum(found["fsync"]["counts"]) == info["durability"]["syncs"] == 3
    assert found["group_commits"]["sum"] == 3
    assert found["log_bytes"] > info["durability"]["log_bytes"] > 0  # It has a header.


def test_a_full_disk_is_told_since_when(client: Raw, disk: BadDisk) -> None:
    client.ok(op="PUT", key="k", value=1)
    assert stats(client)["read_only_since"] is None
    disk.full = True
    assert client.call(op="PUT", key="k", value=2)["code"] == "READ_ONLY"
    since = stats(client)["read_only_since"]
    assert abs(since - client.ok(op="PING")["time"] / 1000) < LIMIT
    assert client.call(op="SNAPSHOT")["code"] == "READ_ONLY"
    found = stats(client)
    assert found["read_only_since"] == since
    assert found["snapshot"]["failures"] == 1
    assert "space" in found["snapshot"]["failure"]
    disk.full = False
    eventually(lambda: client.call(op="PUT", key="k", value=3)["ok"], "writes are taken again")
    assert stats(client)["read_only_since"] is None
    assert stats(client)["snapshot"]["failures"] == 1


def test_the_age_of_a_snapshot_survives_a_restart(tmp_path: Path, connect: Connect) -> None:
    with ServerInProcess(tmp_path / "data") as server:
        client = connect(server.endpoint)
        assert stats(client)["snapshot"]["age"] is None
        client.ok(op="PUT", key="k", value=1)
        client.ok(op="SNAPSHOT")
        assert 0 <= stats(client)["snapshot"]["age"] < LIMIT
    (snapshot,) = (tmp_path / "data" / "snapshot").iterdir()
    os.utime(snapshot, (1_700_000_000, 1_700_000_000))
    with ServerInProcess(tmp_path / "data") as server:
        assert stats(connect(server.endpoint))["snapshot"]["age"] > 1_000_000


def test_requests_that_a_bug_ends_are_counted(
    server: ServerInProcess, client: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("zkv.broker.worker.WorkerHandler._run_all", fail)
        assert client.call(op="COUNT")["code"] == "INTERNAL"
    found = stats(client)
    assert found["succeeded"] == {}
    assert found["requests"]["COUNT"] == found["failures_by_op"]["COUNT"]["INTERNAL"] == 1


def test_in_memory_there_are_no_figures_of_the_disk(tmp_path: Path) -> None:
    from zkv.embed import Server

    with Server("tcp://127.0.0.1:*") as server, Client(server.endpoint) as client:
        info = client.info()
    missing = [figure for figure in FIGURES if figure.of(info) is None]
    assert all(is_of_the_disk(figure) for figure in missing), missing


def is_of_the_disk(figure: Figure) -> bool:
    return figure.paths[0].startswith(("durability.", "replication.")) or figure.paths[0] in {
        "stats.fsync", "stats.group_commits", "stats.log_bytes", "stats.read_only_since",
        "stats.snapshot.age", "stats.snapshot.failures", "stats.snapshot.failed_at",
    }  # fmt: skip
