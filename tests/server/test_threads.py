"""What the server's own threads do where something raises what nobody thought of: they go on.

None of them may end for that: somebody would wait for it for ever. For those that answer requests
see tests/broker/test_workers.py and tests/broker/test_front.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from tests.conftest import Connect
from tests.support import LIMIT, ServerInProcess, eventually, pack, unpack
from zkv.broker import feed
from zkv.broker.broker import Broker
from zkv.broker.doors import Doors
from zkv.broker.front import ConnectionLimits
from zkv.broker.mailbox import Mailbox
from zkv.config import LogSettings
from zkv.durability import committer
from zkv.durability.files import Files
from zkv.durability.storage import Storage
from zkv.engine import Engine
from zkv.keyspace import Keyspace
from zkv.log import Log
from zkv.requests.account import Account


class SimulatedDeath(BaseException):
    """Stands for whatever nobody thought of."""


def failing(times: int, error: BaseException, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that raises ``error`` so many times before it does what it should."""
    left = [error] * times

    def fail(*arguments: Any, **others: Any) -> Any:
        if left:
            raise left.pop()
        return function(*arguments, **others)

    return fail


@pytest.mark.parametrize("error", [SimulatedDeath(), MemoryError()])
def test_the_committer_fails(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr("zkv.engine.Engine.settle", lambda *_, **__: False)
    monkeypatch.setattr("zkv.durability.wal.QUICK_SYNC_SECONDS", 0.0)
    monkeypatch.setattr(committer, "settle", failing(1, error, committer.settle))
    with ServerInProcess(tmp_path / "data") as server:
        client = connect(server.endpoint)
        reply = client.call(op="PUT", key="k", value=1, id=1)
        assert (reply["code"], reply["applied"], reply["id"]) == ("READ_ONLY", None, 1)
        assert client.ok(op="PUT", key="k", value=2)["rev"] == 2
        assert server.stop()


class OddFiles(Files):
    """A disk whose syncs raise what no disk raises, once that is wished."""

    odd = False

    def sync(self, file: Any) -> None:
        if self.odd:
            self.odd = False
            raise ValueError("odd")
        super().sync(file)


def test_a_sync_fails_for_no_known_reason(tmp_path: Path, connect: Connect) -> None:
    """It is like any other that fails: nobody knows what is on disk, until a snapshot is."""
    files = OddFiles()
    durability = {"snapshot_interval": 0.05}
    with ServerInProcess(tmp_path / "data", files, durability=durability) as server:
        client = connect(server.endpoint)
        client.ok(op="PUT", key="k", value=1)
        client.ok(op="SNAPSHOT")
        files.odd = True
        reply = client.call(op="PUT", key="k", value=2)
        assert (reply["code"], reply["applied"]) == ("READ_ONLY", None)
        assert "odd" in reply["message"]
        eventually(lambda: client.call(op="PUT", key="k", value=3)["ok"], "it is tried again")
        assert server.stop()


@pytest.mark.parametrize("error", [SimulatedDeath(), MemoryError()])
def test_a_snapshot_fails(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(Storage, "save", failing(1, error, Storage.save))
    with ServerInProcess(tmp_path / "data") as server:
        client = connect(server.endpoint)
        client.ok(op="PUT", key="k", value=1)
        assert client.call(op="SNAPSHOT")["code"] == "READ_ONLY"
        assert client.ok(op="SNAPSHOT")["rev"] == 1
        assert server.stop()


@pytest.mark.parametrize("error", [SimulatedDeath(), MemoryError()])
def test_expiry_fails(
    tmp_path: Path,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    monkeypatch.setattr("zkv.keyspace.expirer.RETRY_SECONDS", 0.01)
    monkeypatch.setattr(Keyspace, "expire", failing(3, error, Keyspace.expire))
    with ServerInProcess(tmp_path / "data") as server:
        client = connect(server.endpoint)
        client.ok(op="PUT", key="k", value=1, ttl=1)
        eventually(lambda: client.ok(op="INFO")["rev"] == 2, "it is removed")
        assert len([r for r in caplog.records if "expired" in r.getMessage()]) == 1
        assert server.stop()


def test_the_feed_has_no_memory(
    tmp_path: Path,
    connect: Connect,
    context: zmq.Context[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It goes on with what comes next; followers see that they have missed something."""
    monkeypatch.setattr("zkv.broker.feed.HEARTBEAT_MS", 20)
    with ServerInProcess(tmp_path / "data", server={"feed": "tcp://127.0.0.1:*"}) as server:
        client = connect(server.endpoint)
        with context.socket(zmq.SUB) as follower:
            follower.linger, follower.rcvtimeo = 0, round(LIMIT * 1000)
            follower.subscribe(b"")
            follower.connect(server.server.feed)
            follower.recv_multipart()  # A heartbeat: it is known from now on.
            monkeypatch.setattr(feed, "encode", failing(2, MemoryError(), msgspec.msgpack.encode))

            def arrives() -> bool:
                client.ok(op="PUT", key="k", value=1)
                topic, _ = follower.recv_multipart()
                return bool(topic == b"k")

            eventually(arrives, "a change is published")
        failures = [r for r in caplog.records if "the change feed has no memory" in r.getMessage()]
        assert len(failures) == 2
        assert server.stop()


def test_a_worker_cannot_be_replaced_at_once(
    tmp_path: Path,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """There is no thread to be had; the supervisor tries again, and the server can be ended."""
    monkeypatch.setattr("zkv.server.LOOK_SECONDS", 0.01)
    with ServerInProcess(tmp_path / "data", server={"workers": 1}) as server:
        client = connect(server.endpoint)
        monkeypatch.setattr(
            Broker, "_add_worker", failing(3, RuntimeError("no thread"), Broker._add_worker)
        )
        monkeypatch.setattr(
            Mailbox, "receive", failing(1, zmq.ZMQError(zmq.ENOTSUP), Mailbox.receive)
        )
        client.ok(op="PING")  # The mailbox fails behind this.
        # A worker that dies loses what is in its pipe, so nothing is sent to it before.
        eventually(lambda: "died" in caplog.text, "the worker's end")
        client = connect(server.endpoint, zmq.DEALER)

        def is_answered() -> bool:  # The front may not know yet that the pipe is closed.
            client.send(pack({"op": "INFO"}))
            return bool(client.socket.poll(500))

        eventually(is_answered, "another worker")
        assert unpack(client.receive())["stats"]["workers_replaced"] == 1
        failures = [r for r in caplog.records if "the supervisor failed" in r.getMessage()]
        assert len(failures) == 3
        assert server.stop()


@pytest.mark.parametrize(
    ("error", "code"), [(SimulatedDeath(), "INTERNAL"), (MemoryError(), "FULL")]
)
def test_saving_fails_for_no_known_reason(
    tmp_path: Path,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: str,
) -> None:
    """Whoever sent END has an answer, and the server ends all the same, as one that failed."""
    save = Engine.save

    def save_and_fail(engine: Engine) -> int:
        save(engine)
        raise error

    monkeypatch.setattr(Engine, "save", save_and_fail)
    with ServerInProcess(tmp_path / "data") as server:
        reply = connect(server.endpoint).call(op="END", id=1)
        assert (reply["ok"], reply["code"], reply["id"]) == (False, code, 1)
        assert server.wait() is False


def test_the_log_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    log = Log(LogSettings(file=str(path)))
    monkeypatch.setattr(Log, "_write_lines", failing(1, MemoryError(), Log._write_lines))
    log.start()
    try:
        logging.getLogger("zkv.test").warning("the first")
        eventually(lambda: path.read_text(encoding="utf-8"), "it says that it has failed")
        logging.getLogger("zkv.test").warning("the second")
    finally:
        log.close()
    text = path.read_text(encoding="utf-8")
    assert "lines of the log are lost" in text
    assert "the second" in text


@pytest.mark.parametrize("count", [1, 3])
def test_so_many_threads_serve_the_connections(
    tmp_path: Path, connect: Connect, count: int
) -> None:
    settings = {"io_threads": count, "endpoints": ["tcp://127.0.0.1:*"]}
    with ServerInProcess(tmp_path / "data", server=settings) as server:
        clients = [connect(server.endpoint) for _ in range(5)]
        assert all(client.ok(op="PUT", key="k", value=1)["rev"] for client in clients)
    limits = ConnectionLimits(1_024, 1, 1)
    broker = Broker(
        ["tcp://127.0.0.1:*"], None, count, limits, Doors(), lambda: None, lambda: None, Account
    )
    assert broker._context.get(zmq.IO_THREADS) == count
    broker._context.term()
