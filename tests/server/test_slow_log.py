"""Where the time of a request went: `timing` in a reply, the slow log, and `trace`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
import zmq

from tests.conftest import Connect
from tests.support import LIMIT, Raw, ServerInProcess, eventually, pack, unpack
from zkv import compiled
from zkv.durability.files import Files
from zkv.protocol import requests
from zkv.requests import commands, slow_log

DELAY = 0.05
"""Seconds for which the tests hold a request up."""
PARTS = ("queue", "lock", "execute", "sync")

EACH_OP: dict[str, dict[str, Any]] = {
    "PING": {}, "GET": {"key": "k"}, "PUT": {"key": "k", "value": 1}, "INCR": {"key": "n"},
    "MGET": {"keys": ["k", "?"]}, "MPUT": {"items": {"a": 1, "b": 2}},
    "TOUCH": {"key": "k", "ttl": 9}, "MDELETE": {"keys": ["a"]}, "DELETE": {"key": "k"},
    "SCAN": {}, "COUNT": {}, "INFO": {},
    "CHANGES": {"since": 0}, "SNAPSHOT": {}, "SLOW": {}, "REPLICATE": {"member": "m"},
    "TXN": {"ops": [{"op": "PUT", "key": "t", "value": 1}]}, "END": {},
}  # fmt: skip


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerInProcess]:
    with ServerInProcess(tmp_path / "data") as server:
        yield server


def slow_server(path: Path, files: Files | None = None, **tables: Any) -> ServerInProcess:
    """A server to which every request is slow."""
    return ServerInProcess(path / "data", files, metrics={"slow": 1e-9}, **tables)


def entries(client: Raw, **fields: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.ok(op="SLOW", **fields)["entries"]
    return found


@pytest.mark.parametrize("road", ["lane", "commands"])
def test_each_op_tells_where_its_time_went(tmp_path: Path, connect: Connect, road: str) -> None:
    assert requests.REQUEST_TYPES.keys() - {"PROMOTE"} == EACH_OP.keys()  # It needs a standby.
    aside = {} if road == "lane" else {"deadline": 2**60}  # The lane leaves that to the commands.
    with ServerInProcess(tmp_path / "data") as server:
        client = connect(server.endpoint)
        client.ok(op="PUT", key="k", value=1)
        for op, fields in EACH_OP.items():
            client.ok(op="MPUT", items={"k": 1, "a": 1})
            began = time.perf_counter()
            reply = client.ok(op=op, id=7, timing=True, **fields, **aside)
            took = (time.perf_counter() - began) * 1e6
            timing = reply["timing"]
            assert list(timing) == [*PARTS, "total"], op
            assert all(timing[part] >= 0 for part in PARTS)
            assert timing["total"] == sum(timing[part] for part in PARTS) <= took + 5
            assert reply["id"] == 7
        assert server.wait()


def test_a_failure_tells_it_too(server: ServerInProcess, connect: Connect) -> None:
    client = connect(server.endpoint)
    reply = client.call(op="GET", key="none", timing=True)
    assert (reply["code"], "timing" in reply) == ("NOT_FOUND", True)
    assert "timing" not in client.call(op="GET", key="none", timing=False)
    assert "timing" not in client.ok(op="PUT", key="k", value=1, timing=False)
    for bad in (1, None, "yes"):
        reply = client.call(op="PUT", key="k", value=1, timing=bad)
        assert (reply["code"], "`timing`" in reply["message"]) == ("BAD_REQUEST", True)


def test_they_are_no_part_of_what_is_remembered(server: ServerInProcess, connect: Connect) -> None:
    """Neither of the digest nor of the reply, for any op and on both roads."""
    client = connect(server.endpoint)
    writes = [op for op, cls in requests.REQUEST_TYPES.items() if cls.writes]
    client.ok(op="MPUT", items={"k": 1, "a": 1})
    for seq, op in enumerate(writes, 1):
        request = {"op": op, "session": "s", "seq": seq} | EACH_OP[op]
        first = client.ok(**request, timing=True, trace="one")
        plain = client.ok(**request)
        assert plain["replayed"]
        assert plain["rev"] == first["rev"]
        assert "timing" not in plain
        again = client.ok(**request, timing=True, trace="two")
        assert again["replayed"]
        assert again["timing"]["total"] >= 0
        client.ok(op="PUT", key="k", value=1)


class SlowDisk(Files):
    """Each sync takes a while."""

    def sync(self, file: BinaryIO) -> None:
        time.sleep(DELAY)
        super().sync(file)


def is_due_to(timing: dict[str, int], part: str, began: float) -> bool:
    """Whether a request that was sent at ``began`` was held up in this part, and in no other."""
    took = (time.perf_counter() - began) * 1e6
    return timing[part] >= DELAY * 1e6 and sum(timing[each] for each in PARTS) <= took + 5


@pytest.mark.parametrize("fields", [{}, {"ttl": 60}])
def test_a_slow_disk_shows_as_sync(
    tmp_path: Path, connect: Connect, fields: dict[str, Any]
) -> None:
    with slow_server(tmp_path, SlowDisk()) as server:
        client = connect(server.endpoint)
        for number in range(3):  # The first is not known to be slow, and waits in another thread.
            began = time.perf_counter()
            reply = client.ok(op="PUT", key="k", value=number, timing=True, **fields)
            assert is_due_to(reply["timing"], "sync", began)
            assert is_due_to(entries(client)[0]["timing"], "sync", began)


@pytest.mark.parametrize("fields", [{}, {"deadline": 2**60}])
def test_a_held_lock_shows_as_lock(
    server: ServerInProcess, connect: Connect, fields: dict[str, Any]
) -> None:
    client = connect(server.endpoint)
    client.ok(op="PUT", key="k", value=1)
    lock, waits = server.server._engine.keyspace.lock, threading.Event()
    acquire = lock.acquire

    def note_and_acquire(blocking: bool = True, timeout: float = -1) -> bool:
        if blocking:
            waits.set()
        return acquire(blocking, timeout)

    lock.acquire = note_and_acquire
    with lock:
        waits.clear()
        began = time.perf_counter()
        client.send(pack({"op": "GET", "key": "k", "timing": True} | fields))
        assert waits.wait(LIMIT)
        time.sleep(DELAY)
    assert is_due_to(unpack(client.receive())["timing"], "lock", began)


def test_a_busy_worker_shows_as_queue(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def wait(*_: object) -> Any:
        entered.set()
        go_on.wait(LIMIT)
        raise AssertionError("this one fails")

    reads: dict[Any, Any] = commands.READS
    monkeypatch.setitem(reads, requests.Count, wait)
    with slow_server(tmp_path, server={"workers": 1}) as server:
        busy, client = connect(server.endpoint), connect(server.endpoint, zmq.DEALER)
        client.call(op="PUT", key="k", value=1)
        busy.send(pack({"op": "COUNT"}))
        assert entered.wait(LIMIT)
        began = time.perf_counter()
        client.send(pack({"op": "SCAN", "id": 1, "timing": True}))
        assert client.call(op="GET", key="k", id=2)["id"] == 2  # The front has taken both.
        time.sleep(DELAY)
        go_on.set()
        assert is_due_to(unpack(client.receive())["timing"], "queue", began)
        assert unpack(busy.receive())["code"] == "INTERNAL"
        beside = {each["op"]: each["beside"] for each in entries(client)}
        assert (beside["SCAN"], beside["COUNT"]) == (["large op"], [])  # Not beside itself.


def test_entries_are_the_newest_first(tmp_path: Path, connect: Connect) -> None:
    with slow_server(tmp_path) as server:
        client = connect(server.endpoint)
        client.ok(op="PUT", key="k", value="x" * 100, trace="00-abc")
        client.ok(op="MPUT", items={"a": 1, "b": 2})
        client.call(op="DELETE", key="none")
        newest, middle, oldest = entries(client)
        assert (newest["op"], newest["key"], newest["trace"]) == ("DELETE", "none", None)
        assert (middle["op"], middle["keys"], "key" in middle) == ("MPUT", 2, False)
        assert (oldest["op"], oldest["key"], oldest["trace"]) == ("PUT", "k", "00-abc")
        assert oldest["bytes"] > 100
        assert oldest["batch"] == 1
        assert oldest["user"] is None
        assert isinstance(oldest["time"], int)
        assert [each["op"] for each in entries(client, limit=2)] == ["SLOW", "DELETE"]
        assert len(entries(client, reset=True)) == 5
        assert [each["op"] for each in entries(client)] == ["SLOW"]
        for bad in ({"limit": 0}, {"reset": 1}, {"more": 1}):
            assert client.call(op="SLOW", **bad)["code"] == "BAD_REQUEST"


@pytest.mark.parametrize("trace", [None, "00-abc", "\u00e9" * 32])
@pytest.mark.parametrize("road", ["lane", "commands"])
def test_requests_of_many_keys_are_told_alike(
    tmp_path: Path, connect: Connect, road: str, trace: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lane notes it as it runs them, and nobody reads them again: that would take as long."""
    if road == "lane" and compiled.COMPILED:
        monkeypatch.setattr("zkv.requests.slow_log.decode", None)
    aside: dict[str, Any] = {} if road == "lane" else {"deadline": 2**60}
    aside |= {} if trace is None else {"trace": trace}
    items = {f"k{number}": number for number in range(1_500)}
    with slow_server(tmp_path) as server:
        client = connect(server.endpoint)
        client.ok(op="MPUT", items=items, **aside)
        client.ok(op="MGET", keys=["k1", "k1", "k2"], **aside)
        client.ok(op="TXN", ops=[{"op": "INCR", "key": "k1"}] * 5, **aside)
        found = {each["op"]: each for each in entries(client)}
        assert {op: (each["keys"], each["trace"]) for op, each in found.items()} == {
            "MPUT": (1_500, trace), "MGET": (3, trace), "TXN": (5, trace),
        }  # fmt: skip
        assert found["MPUT"]["bytes"] > 10_000
        assert not any("key" in each for each in found.values())


def test_a_long_key_is_cut(tmp_path: Path, connect: Connect) -> None:
    with slow_server(tmp_path) as server:
        client = connect(server.endpoint)
        client.ok(op="PUT", key="k" * 1_024, value=1)
        assert entries(client)[0]["key"] == "k" * slow_log.KEPT_OF_A_KEY


@pytest.mark.parametrize("fields", [{}, {"ttl": 60}])
def test_a_reply_does_not_need_memory_for_an_entry(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    def no_memory(**_: object) -> None:
        raise MemoryError

    with slow_server(tmp_path) as server:
        client = connect(server.endpoint)
        with monkeypatch.context() as patch:
            patch.setattr(slow_log, "SlowEntry", no_memory)
            assert client.ok(op="PUT", key="k", value=1, **fields)["rev"] == 1
        assert entries(client) == []


def test_what_is_not_slow_leaves_no_entry(tmp_path: Path, connect: Connect) -> None:
    for slow in (0, 3600):
        with ServerInProcess(tmp_path / str(slow), metrics={"slow": slow}) as server:
            client = connect(server.endpoint)
            client.ok(op="PUT", key="k", value=1)
            client.ok(op="SCAN")
            assert entries(client) == []


def test_the_number_of_entries_is_bounded(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_log, "KEPT", 5)
    with slow_server(tmp_path) as server:
        client = connect(server.endpoint)
        for number in range(9):
            client.ok(op="PUT", key=str(number), value=1)
        assert [each["key"] for each in entries(client)] == ["8", "7", "6", "5", "4"]


def test_many_slow_requests_do_not_slow_the_server_down(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_log, "KEPT_AT_ONCE", 3)
    monkeypatch.setattr(slow_log, "KEPT_A_SECOND", 1e-6)
    with slow_server(tmp_path) as server:
        client = connect(server.endpoint)
        for number in range(9):
            client.ok(op="PUT", key=str(number), value=1)
        kept = ["2", "1", "0"] if compiled.COMPILED else [str(number) for number in range(9)][::-1]
        assert [each["key"] for each in entries(client)] == kept
        client.ok(op="PUT", key="not simple", value=1, ttl=9)
        assert entries(client)[0]["key"] == "not simple"
        client.ok(op="SLOW", reset=True)
        client.ok(op="PUT", key="9", value=1)
        assert entries(client)[0]["key"] == "9"

        monkeypatch.setattr(slow_log, "KEPT_A_SECOND", 100)
        client.ok(op="SLOW", reset=True)
        for number in range(4):
            client.ok(op="PUT", key=str(number), value=1)
        eventually(
            lambda: (
                client.ok(op="PUT", key="later", value=1)
                and entries(client)[0].get("key") == "later"
            ),
            "that there is room for an entry again",
        )


def test_a_minute_outlasts_its_entries(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_log, "KEPT", 2)
    now = 1_000_000 * slow_log.MINUTE
    monkeypatch.setattr(slow_log, "time", SimpleNamespace(time=lambda: now / 1000))
    with slow_server(tmp_path, SlowDisk()) as server:
        client = connect(server.endpoint)
        client.ok(op="PUT", key="slowest", value=1)
        for key in "abc":
            client.ok(op="GET", key="slowest")
            client.call(op="GET", key=key)
        now += slow_log.MINUTE
        client.ok(op="GET", key="slowest")
        now -= slow_log.MINUTE  # A clock that is set back does not begin it again.
        client.ok(op="GET", key="slowest")
        found = client.ok(op="SLOW")
        newest, minute = found["minutes"]
        assert len(found["entries"]) == 2
        assert (newest["time"] - minute["time"], newest["count"]) == (slow_log.MINUTE, 2)
        assert (minute["count"], minute["slowest"]["key"]) == (7, "slowest")
        assert minute["timing"]["sync"] >= DELAY * 1e6
        assert minute["timing"]["total"] == sum(minute["timing"][part] for part in PARTS)
        assert len(client.ok(op="SLOW", limit=1, reset=True)["minutes"]) == 1
        assert len(client.ok(op="SLOW")["minutes"]) == 1


def test_what_went_on_beside_it_is_told(tmp_path: Path, connect: Connect) -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Stops(Files):
        """Stands still in the midst of writing a snapshot."""

        def rename(self, source: Path, target: Path) -> None:
            if target.suffix == ".snapshot":
                entered.set()
                go_on.wait(LIMIT)
            super().rename(source, target)

    with slow_server(tmp_path, Stops(), durability={"snapshot_interval": 1e6}) as server:
        client, other = connect(server.endpoint), connect(server.endpoint)
        client.ok(op="PUT", key="k", value=1)
        assert entries(client)[0]["beside"] == []
        other.send(pack({"op": "SNAPSHOT"}))
        assert entered.wait(LIMIT)
        client.ok(op="PUT", key="k", value=2)
        assert "snapshot" in entries(client)[0]["beside"]
        go_on.set()
        unpack(other.receive())


def test_the_trace_is_in_the_request_log(server: ServerInProcess, connect: Connect) -> None:
    client = connect(server.endpoint)
    client.ok(op="PUT", key="k", value=1, trace="lane")
    client.ok(op="SCAN", trace="command")
    client.ok(op="GET", key="k")

    def traces() -> dict[str, str | None]:
        return {record.op: record.trace for record in server.records}

    eventually(lambda: len(traces()) == 3, "three lines")
    assert traces() == {"PUT": "lane", "SCAN": "command", "GET": None}


@pytest.mark.parametrize("trace", ["", "x" * 65, "é" * 33, 7, None, b"\xff"])
def test_a_trace_is_a_short_text(server: ServerInProcess, connect: Connect, trace: object) -> None:
    client = connect(server.endpoint)
    if trace is None:
        assert client.ok(op="PING", trace=None)
        return
    for request in ({"op": "GET", "key": "k"}, {"op": "PING"}):
        reply = client.call(**request, trace=trace)
        assert (reply["code"], "`trace`" in reply["message"]) == ("BAD_REQUEST", True), reply
