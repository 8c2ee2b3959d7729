"""The server in this process: what bugs in commands, dead workers and a dead front do to it."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.conftest import Connect
from tests.support import (
    LIMIT,
    MAX_IN_FLIGHT,
    Message,
    NoReplyError,
    Raw,
    ServerInProcess,
    eventually,
    pack,
    unpack,
)
from zkv.broker.frames import FRAMES
from zkv.broker.mailbox import (
    QUEUED_PER_WORKER,
    WORKERS_BATCH,
    FrontMailbox,
    Mailbox,
    connect_worker,
)
from zkv.broker.waiting import PendingCalls, PendingReply
from zkv.engine import Engine
from zkv.protocol import requests
from zkv.requests import commands
from zkv.requests.lane import open_lane

DEATHS = 5


class SimulatedBugError(Exception):
    """What a command raises that has a bug."""


class SimulatedDeath(BaseException):
    """What no command should raise; stands for whatever nobody thought of."""


@pytest.fixture(autouse=True)
def commands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests put others in the place of commands, which lanes would pass by."""
    for name in ("open_lane", "open_worker_lane"):
        monkeypatch.setattr(f"zkv.server.{name}", lambda *_: None)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerInProcess]:
    """A server with two workers, in this process."""
    with ServerInProcess(tmp_path / "data") as server:
        yield server


@pytest.fixture
def replace(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[requests.Request], Any], None]:
    """Puts another function in a command's place."""

    def replace(kind: type[requests.Request], command: Any) -> None:
        monkeypatch.setitem(table_of(kind), kind, command)

    return replace


def table_of(kind: type[requests.Request]) -> dict[type[requests.Request], Any]:
    """The table of commands that ``kind`` stands in."""
    tables: tuple[dict[type[requests.Request], Any], ...] = (commands.READS, commands.WRITES)
    return next(table for table in tables if kind in table)


Replace = Callable[[type[requests.Request], Any], None]


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once a stopping server has saved everything."""
    event = threading.Event()
    save = Engine.save

    def save_and_tell(engine: Engine) -> int:
        try:
            return save(engine)
        finally:
            event.set()

    monkeypatch.setattr(Engine, "save", save_and_tell)
    return event


def raising(error: BaseException) -> Callable[..., Any]:
    def command(*_: object) -> None:
        raise error

    return command


def tracebacks_of(caplog: pytest.LogCaptureFixture, error: type[BaseException]) -> list[str]:
    """The messages of log records that carry a traceback of ``error``."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.exc_info and record.exc_info[0] is error
    ]


@pytest.mark.parametrize("error", [SimulatedBugError("x"), KeyError("x"), RecursionError("x")])
def test_bug_in_a_command(
    server: ServerInProcess,
    connect: Connect,
    replace: Replace,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    client = connect(server.endpoint)
    client.ok(op="PUT", key="k", value=1)
    replace(requests.Put, raising(error))
    for number in range(DEATHS):
        reply = client.call(op="PUT", key="k", value=2, id=number)
        assert (reply["ok"], reply["code"], reply["id"]) == (False, "INTERNAL", number)
        assert reply["applied"] is None
        assert reply["retry"] is False
        assert client.ok(op="GET", key="k")["value"] == 1
    assert len(tracebacks_of(caplog, type(error))) == DEATHS
    stats = client.ok(op="INFO")["stats"]
    assert stats["failures"]["INTERNAL"] == DEATHS
    assert stats["workers_replaced"] == 0
    assert server.stop()


def test_bug_while_a_reply_is_pending(
    server: ServerInProcess,
    connect: Connect,
    replace: Replace,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pending: Future[Any] = Future()
    replace(requests.Snapshot, lambda *_: pending)
    waiting, other = connect(server.endpoint), connect(server.endpoint)
    waiting.send(pack({"op": "SNAPSHOT", "id": 4}))
    other.ok(op="PUT", key="k", value=1)
    pending.set_exception(SimulatedBugError())
    reply = unpack(waiting.receive())
    assert (reply["code"], reply["id"], reply["applied"]) == ("INTERNAL", 4, None)
    assert tracebacks_of(caplog, SimulatedBugError)
    assert other.ok(op="GET", key="k")["value"] == 1


def test_a_pending_reply_that_cannot_be_made(
    server: ServerInProcess,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its service dies as with any other request, and what else is pending is answered."""
    client, writer = connect(server.endpoint), connect(server.endpoint)
    client.ok(op="PUT", key="k", value=1)
    with monkeypatch.context() as patch:
        patch.setattr(PendingReply, "complete", raising(SimulatedDeath()))
        reply = client.call(op="SNAPSHOT", id=4)
        assert (reply["code"], reply["id"], reply["applied"]) == ("INTERNAL", 4, None)
        patch.setattr(PendingCalls, "complete", raising(SimulatedDeath()))
        reply = writer.call(op="PUT", key="k", value=2, id=5)
        assert (reply["code"], reply["id"], reply["applied"]) == ("INTERNAL", 5, None)
    assert client.ok(op="SNAPSHOT")["rev"] == 2
    assert writer.ok(op="PUT", key="k", value=3)["rev"] == 3
    stats = client.ok(op="INFO")["stats"]
    assert stats["workers_replaced"] == 2
    assert stats["failures"] == {"INTERNAL": 2}
    assert len(tracebacks_of(caplog, SimulatedDeath)) >= 2
    assert server.stop()


def test_replies_that_could_not_be_sent_hold_up_no_others(
    server: ServerInProcess, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for the disk is completed all the same, or the end would wait for it for ever."""
    client = connect(server.endpoint)
    reply = Mailbox.reply

    def reply_and_fail(mailbox: Mailbox, *arguments: Any) -> None:
        reply(mailbox, *arguments)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Mailbox, "reply", reply_and_fail)
        assert client.ok(op="PUT", key="k", value=1)["rev"] == 1
    eventually(lambda: client.ok(op="INFO")["stats"]["workers_replaced"] == 1, "the failure")
    assert server.stop()


@pytest.mark.parametrize("kind", [Mailbox, FrontMailbox])
def test_memory_ends_while_requests_are_received(
    tmp_path: Path,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: type[Mailbox],
) -> None:
    """It may be there again a moment later: nobody has to be replaced for that, or to end."""
    receive, times = kind.receive, 3

    def receive_later(mailbox: Mailbox) -> Any:
        nonlocal times
        if times:
            times -= 1
            raise MemoryError
        return receive(mailbox)

    monkeypatch.setattr(kind, "receive", receive_later)
    with ServerInProcess(tmp_path / "data", server={"workers": 1}) as server:
        client = connect(server.endpoint)
        assert client.ok(op="PUT", key="k", value=1)["rev"] == 1
        assert client.ok(op="INFO")["stats"]["workers_replaced"] == 3
        assert caplog.text.count("out of memory in zkv-") == 3
        assert not tracebacks_of(caplog, MemoryError)
        assert server.stop()


def worker_names() -> set[str]:
    return {thread.name for thread in threading.enumerate() if "worker" in thread.name}


def test_a_batch_that_kills_is_answered_and_the_thread_goes_on(
    server: ServerInProcess,
    connect: Connect,
    replace: Replace,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client, other = connect(server.endpoint), connect(server.endpoint)
    client.ok(op="PUT", key="k", value=1)
    replace(requests.Put, raising(SimulatedDeath()))
    for number in range(1, DEATHS + 1):
        reply = client.call(op="PUT", key="k", value=2, id=number)
        assert (reply["ok"], reply["code"]) == (False, "INTERNAL")
        assert reply["applied"] is None
        assert other.ok(op="GET", key="k")["value"] == 1

        def replaced(number: int = number) -> bool:
            stats = other.ok(op="INFO")["stats"]
            return bool(stats["workers_replaced"] == number)

        eventually(replaced, f"{number} workers replaced")
    assert len(tracebacks_of(caplog, SimulatedDeath)) >= DEATHS
    assert other.ok(op="INFO")["stats"]["failures"]["INTERNAL"] == DEATHS
    dead = [r for r in caplog.records if r.levelno == logging.CRITICAL and "bug" in r.getMessage()]
    assert len(dead) == DEATHS
    assert len(worker_names()) == 2
    for each in (client, other):
        assert each.ok(op="GET", key="k")["value"] == 1
    assert other.ok(op="INFO")["stats"]["requests"]["GET"] >= DEATHS, "its counters live on"
    assert server.stop()


def test_the_id_comes_back_where_a_batch_ends_in_a_bug(
    server: ServerInProcess, connect: Connect, replace: Replace
) -> None:
    client = connect(server.endpoint, zmq.DEALER)
    replace(requests.Put, raising(SimulatedDeath()))
    reply = client.call(op="PUT", key="k", value=2, id=77)
    assert (reply["code"], reply.get("id")) == ("INTERNAL", 77)


@pytest.mark.parametrize("lane", [False, True])
def test_who_waits_for_the_disk_is_answered_where_a_batch_ends_in_a_bug(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch, lane: bool
) -> None:
    """It dies between a write and the disk: nobody knows what became of that."""
    if lane:
        monkeypatch.setattr("zkv.server.open_lane", open_lane)
    with ServerInProcess(tmp_path / "data") as server:
        client = connect(server.endpoint)
        client.ok(op="PUT", key="k", value=1)
        with monkeypatch.context() as patch:
            for name in ("submit", "settle"):
                patch.setattr(Engine, name, raising(SimulatedDeath()))
            patch.setattr(server.server._engine.log, "quick_sync_seconds", 0.0)
            reply = client.call(op="PUT", key="k", value=2, id=1)
        assert (reply["code"], reply["applied"], reply["id"]) == ("READ_ONLY", None, 1)
        assert client.ok(op="PUT", key="k", value=3)["rev"] == 3
        assert server.stop()


def test_a_log_that_cannot_be_written_for_no_known_reason(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is like any other disk that fails: rolled back, refused, tried again."""
    directory = tmp_path / "data"
    with ServerInProcess(directory) as server:
        client = connect(server.endpoint)
        client.ok(op="PUT", key="k", value=1)
        with monkeypatch.context() as patch:
            patch.setattr("zkv.durability.segment.pack_frames", raising(SimulatedBugError("odd")))
            reply = client.call(op="PUT", key="k", value=2)
            assert (reply["code"], reply["applied"]) == ("READ_ONLY", False)
            assert "odd" in reply["message"]
            assert client.ok(op="GET", key="k")["value"] == 1
        eventually(lambda: client.call(op="PUT", key="k", value=3)["ok"], "it is tried again")
        assert server.stop()
    with ServerInProcess(directory) as server:
        assert connect(server.endpoint).ok(op="GET", key="k") | {"rev": 2} == {
            "ok": True, "value": 3, "rev": 2,
        }  # fmt: skip


@pytest.mark.parametrize("workers", [1, 2])
def test_every_request_around_a_death_is_answered(
    tmp_path: Path, connect: Connect, replace: Replace, workers: int
) -> None:
    """A worker has a batch in its hands and more in its mailbox when it dies."""
    count = MAX_IN_FLIGHT
    replace(requests.Put, raising(SimulatedDeath()))
    with ServerInProcess(tmp_path / "data", server={"workers": workers}) as server:
        client = connect(server.endpoint, zmq.DEALER, timeout=5)
        for round_ in range(DEATHS):
            for number in range(count):
                fatal = number == 10 + round_
                fields = {"op": "PUT", "key": "k", "value": 1} if fatal else {"op": "PING"}
                client.send(pack(fields | {"id": number}))
            codes = [unpack(client.receive()).get("code", "ok") for _ in range(count)]
            assert set(codes) <= {"ok", "INTERNAL"}
            assert "INTERNAL" in codes
        assert server.stop()


def test_pending_replies_outlive_their_worker(
    tmp_path: Path, connect: Connect, replace: Replace
) -> None:
    pending: Future[Any] = Future()
    replace(requests.Snapshot, lambda *_: pending)
    replace(requests.Put, raising(SimulatedDeath()))
    with ServerInProcess(tmp_path / "data", server={"workers": 1}) as server:
        waiting, fatal = connect(server.endpoint, timeout=5), connect(server.endpoint)
        waiting.send(pack({"op": "SNAPSHOT", "id": 4}))
        eventually(
            lambda: fatal.ok(op="INFO") and pending._done_callbacks,  # type: ignore[attr-defined]
            "the worker waits for the snapshot",
        )
        assert fatal.call(op="PUT", key="k", value=1)["code"] == "INTERNAL"
        pending.set_exception(SimulatedBugError())
        reply = unpack(waiting.receive())
        assert (reply["ok"], reply["code"]) == (False, "INTERNAL")
        assert server.stop()


def test_death_while_stopping(
    tmp_path: Path, connect: Connect, replace: Replace, saved: threading.Event
) -> None:
    """Nobody takes the place of the last worker then; the end must come all the same."""
    entered, go_on = threading.Event(), threading.Event()

    def die(*_: object) -> None:
        entered.set()
        go_on.wait(LIMIT)
        raise SimulatedDeath

    replace(requests.Get, die)  # A write would hold the lock that the end needs.
    with ServerInProcess(tmp_path / "data", server={"workers": 1}) as server:
        client = connect(server.endpoint, zmq.DEALER)
        client.send(pack({"op": "GET", "key": "k"}))
        assert entered.wait(LIMIT)
        for number in range(200):
            client.send(pack({"op": "PING", "id": number}))
        threading.Thread(target=lambda: go_on.set() if saved.wait(LIMIT) else None).start()
        server.stop()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_nothing_is_left_after_the_end(tmp_path: Path, replace: Replace) -> None:
    replace(requests.Delete, raising(SimulatedDeath()))

    def once(number: int) -> None:
        with ServerInProcess(tmp_path / str(number)) as server, Raw(server.endpoint) as client:
            client.ok(op="PUT", key="k", value=1)
            client.ok(op="SNAPSHOT")
            assert client.call(op="DELETE", key="k")["code"] == "INTERNAL"
            eventually(
                lambda: client.ok(op="INFO")["stats"]["workers_replaced"] == 1, "a new worker"
            )
            assert server.stop()

    once(0)  # What is opened once and for all is open now.
    threads = set(threading.enumerate())
    gc.collect()
    descriptors = open_descriptors()
    for number in range(1, 4):
        once(number)
    # Those of other tests may end meanwhile.
    assert set(threading.enumerate()) <= threads
    gc.collect()
    assert open_descriptors() == descriptors


def test_the_front_dies_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The supervisor ends the server and says that it failed; what was written is saved."""
    doomed = threading.Event()
    receive = FrontMailbox.receive

    def receive_until_doomed(mailbox: FrontMailbox) -> Any:
        if doomed.is_set():
            raise zmq.ZMQError(zmq.ENOTSUP)
        return receive(mailbox)

    monkeypatch.setattr(FrontMailbox, "receive", receive_until_doomed)
    directory = tmp_path / "data"
    with ServerInProcess(directory) as server, Raw(server.endpoint) as client:
        client.ok(op="PUT", key="k", value=1)
        doomed.set()
        client.send(pack({"op": "GET", "key": "k"}))
        assert server.wait() is False
    assert any(record.levelno == logging.CRITICAL and record.exc_info for record in caplog.records)
    monkeypatch.undo()
    with ServerInProcess(directory) as server, Raw(server.endpoint) as client:
        assert client.ok(op="GET", key="k")["value"] == 1


def test_what_has_arrived_is_answered_at_the_end(
    tmp_path: Path, connect: Connect, replace: Replace, saved: threading.Event
) -> None:
    """Requests that wait for the only worker when a signal comes hear that it is too late."""
    begun = threading.Event()
    get = commands.READS[requests.Get]

    def go_on_when_saved(*arguments: Any) -> Any:
        begun.set()
        assert saved.wait(LIMIT)
        return get(*arguments)

    replace(requests.Get, go_on_when_saved)
    count = 5_000  # Far more than wait in a worker's own queue.
    limits = {"max_in_flight": count}
    with ServerInProcess(tmp_path / "data", server={"workers": 1}, limits=limits) as server:
        client = connect(
            server.endpoint, zmq.DEALER, options={zmq.SNDHWM: 0, zmq.RCVHWM: 0}, timeout=1
        )
        client.send(pack({"op": "GET", "key": "k", "id": 0}))
        assert begun.wait(LIMIT)
        for number in range(1, count):
            client.send(pack({"op": "PING", "id": number}))
        assert server.stop()
        replies: list[Message] = []
        with contextlib.suppress(NoReplyError):
            while len(replies) < count:
                replies.append(unpack(client.receive()))
    assert [reply["id"] for reply in replies] == list(range(len(replies))), "none is passed over"
    assert len(replies) > QUEUED_PER_WORKER, "but the others may not have arrived in time"
    assert replies[0]["code"] == "NOT_FOUND", "it had begun"
    assert {reply.get("code") for reply in replies[1:]} == {"SHUTTING_DOWN"}


def test_mailbox_may_be_rung_after_its_end(context: zmq.Context[Any]) -> None:
    """Whoever rings cannot know: the worker may have been awake, and gone home, just before."""
    with context.socket(zmq.DEALER) as backend:
        backend.linger = 0
        backend.bind("inproc://backend")
        socket = connect_worker(context, "inproc://backend")
        mailbox = Mailbox(partial(FRAMES, socket, bounds=WORKERS_BATCH))
        mailbox.stop()
        assert len(mailbox.receive()) == 0
        mailbox.close()
        mailbox.stop()


# --- END, SNAPSHOT and signals at the same moment --------------------------------------------


def test_two_ends_at_once(
    server: ServerInProcess,
    connect: Connect,
    replace: Replace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both workers have an END in their hands; each client is answered and the server ends."""
    both = threading.Barrier(2)
    end = commands.READS[requests.End]

    def end_together(*arguments: Any) -> Any:
        both.wait(LIMIT)
        return end(*arguments)

    class SlowFuture(Future[int]):
        """Gives the other thread the time to come in between."""

        def __init__(self) -> None:
            super().__init__()
            try:
                both.wait(0.3)
            except threading.BrokenBarrierError:
                pass

    replace(requests.End, end_together)
    monkeypatch.setattr("zkv.server.Future", SlowFuture, raising=False)
    clients = [connect(server.endpoint), connect(server.endpoint)]
    for client in clients:
        client.send(pack({"op": "END"}))
    answers = [unpack(client.receive()) for client in clients]
    assert any(answer["ok"] for answer in answers)
    assert all(answer["ok"] or answer["code"] == "SHUTTING_DOWN" for answer in answers)
    assert server.wait()


@pytest.mark.parametrize("op", ["END", "SNAPSHOT"])
def test_request_that_runs_while_the_server_stops(
    server: ServerInProcess, connect: Connect, replace: Replace, saved: threading.Event, op: str
) -> None:
    """A worker has begun with it when a signal comes, and goes on when everything is saved."""
    kind = requests.REQUEST_TYPES[op]
    command = table_of(kind)[kind]
    begun = threading.Event()

    def go_on_when_saved(*arguments: Any) -> Any:
        begun.set()
        assert saved.wait(LIMIT)
        return command(*arguments)

    replace(kind, go_on_when_saved)
    client = connect(server.endpoint)
    client.send(pack({"op": op}))
    assert begun.wait(LIMIT)
    assert server.stop()
    reply = unpack(client.receive())
    assert reply["ok"] or reply["code"] == "SHUTTING_DOWN"


def test_snapshots_and_the_end_race(tmp_path: Path, context: zmq.Context[Any]) -> None:
    """Every SNAPSHOT that has arrived is answered, also by a server that stops meanwhile."""
    for number in range(10):
        with (
            ServerInProcess(tmp_path / str(number)) as server,
            Raw(server.endpoint, zmq.DEALER, context=context) as client,
        ):
            ids = set(range(20))
            for request_id in ids:
                client.send(pack({"op": "PUT", "key": "k", "value": request_id}))
                client.send(pack({"op": "SNAPSHOT", "id": request_id}))
            client.send(pack({"op": "PING", "id": "arrived"}))
            replies = [unpack(client.receive())]
            while replies[-1].get("id") != "arrived":  # And so has all that was sent before.
                replies.append(unpack(client.receive()))
            assert server.stop()
            while len(replies) < 2 * len(ids) + 1:
                replies.append(unpack(client.receive()))
        assert {reply.get("id") for reply in replies} == ids | {"arrived", None}
        assert all(reply["ok"] or reply["code"] == "SHUTTING_DOWN" for reply in replies)


def test_a_worker_does_not_wait_for_others_who_sync(tmp_path: Path, connect: Connect) -> None:
    """They might begin anew each time before it gets its turn, as a lock is not fair."""
    with ServerInProcess(tmp_path / "data", server={"workers": 1}) as server:
        disk = server.server._engine.disk
        assert disk is not None
        client = connect(server.endpoint, zmq.DEALER)
        with disk.wal._io:
            client.send(pack({"op": "PUT", "key": "k", "value": 1, "id": 1}))
            client.send(pack({"op": "COUNT", "id": 2}))  # It has seen the PUT.
            worker = server.server._broker._accounts[1]
            eventually(lambda: worker.taken, "the worker has taken it")
            assert client.call(op="PING", id=3)["id"] == 3
        assert {unpack(client.receive())["id"] for _ in range(2)} == {1, 2}
