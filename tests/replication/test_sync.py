"""replication.sync: a write is answered once so many standbys have it on disk.

The standbys are sockets that ask and confirm by hand, so that each step is certain.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.conftest import Connect
from tests.replication.following import Follower, promote
from tests.support import (
    Message,
    NoReplyError,
    Raw,
    ServerInProcess,
    ServerProcess,
    eventually,
    pack,
    unpack,
)
from zkv.config import build
from zkv.durability import quorum
from zkv.durability.files import Files
from zkv.errors import ConfigError


class Standby:
    """Confirms what it is told to."""

    def __init__(self, raw: Raw, name: str) -> None:
        self._raw = raw
        self._name = name

    def ask(self, durable: int, **more: Any) -> Message:
        """Ask for what comes after ``durable``, which it has on disk."""
        position: Message = {"after": 0}
        if durable:
            terms = self._raw.ok(op="REPLICATE", member="looks", sync=False)["terms"]
            number, _, tag = next(each for each in reversed(terms) if each[1] <= durable)
            position = {"after": durable, "durable": durable, "term": number, "tag": tag}
        return self._raw.ok(op="REPLICATE", member=self._name, **position | more)

    def confirm_all(self) -> int:
        """Confirm all that there is; return the log number."""
        commits: list[bytes] = self._raw.ok(op="REPLICATE", member="looks", sync=False)["commits"]
        self.ask(len(commits))
        return len(commits)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, no standby counts as lost."""
    monkeypatch.setattr(quorum, "LOST_SECONDS", 1e6)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerInProcess]:
    with ServerInProcess(tmp_path / "data", replication={"sync": 1}) as server:
        yield server


@pytest.fixture
def standby(server: ServerInProcess, connect: Connect) -> Standby:
    return Standby(connect(server.endpoint), "standby")


def begin(client: Raw, **request: Any) -> None:
    client.send(pack(request))


def answer(client: Raw) -> Message:
    reply: Message = unpack(client.receive())
    return reply


def nothing_yet(client: Raw, other: Raw) -> None:
    """There is no reply although the server has answered a later request."""
    other.ok(op="PING")
    assert not client.socket.poll(0)


def test_without_a_standby_nothing_is_written(server: ServerInProcess, connect: Connect) -> None:
    client = connect(server.endpoint)
    reply = client.call(op="PUT", key="k", value=1)
    assert (reply["code"], reply["applied"], reply["retry"]) == ("READ_ONLY", False, True)
    assert "replication.sync" in reply["message"]
    assert client.call(op="GET", key="k")["code"] == "NOT_FOUND"
    assert client.ok(op="INFO")["replication"]["term"] == 1


def test_a_write_is_answered_once_it_is_confirmed(
    server: ServerInProcess, connect: Connect, standby: Standby
) -> None:
    client, reader, other = (connect(server.endpoint, zmq.DEALER) for _ in range(3))
    standby.ask(0)
    begin(client, op="PUT", key="k", value=1)
    eventually(lambda: len(standby.ask(0)["commits"]) == 2, "it is on disk here")
    begin(reader, op="GET", key="k")
    nothing_yet(client, other)
    nothing_yet(reader, other)
    standby.ask(1)
    nothing_yet(client, other)
    standby.ask(2)
    assert answer(client)["durable"] is True
    assert answer(reader)["value"] == 1


def test_what_does_not_count(server: ServerInProcess, connect: Connect, standby: Standby) -> None:
    """A member that only copies; and one whose history is another."""
    client, other = (connect(server.endpoint, zmq.DEALER) for _ in range(2))
    standby.ask(0)
    begin(client, op="PUT", key="k", value=1)
    eventually(lambda: len(standby.ask(0)["commits"]) == 2, "it is on disk here")
    standby.ask(2, sync=False)
    foreign = {"after": 2, "durable": 2, "term": 1, "tag": "f" * 16}
    with Raw(server.endpoint) as raw:
        refused = raw.call(op="REPLICATE", member="standby", **foreign)
    assert refused["code"] == "DIVERGED"
    nothing_yet(client, other)
    standby.ask(2)
    assert answer(client)["ok"]


def test_two_have_to_confirm(tmp_path: Path, connect: Connect) -> None:
    with ServerInProcess(tmp_path / "data", replication={"sync": 2}) as server:
        client, other = (connect(server.endpoint, zmq.DEALER) for _ in range(2))
        one, two = (Standby(connect(server.endpoint), name) for name in ("one", "two"))
        one.ask(0)
        begin(client, op="PUT", key="k", value=1)
        assert answer(client)["code"] == "READ_ONLY"
        two.ask(0)
        begin(client, op="PUT", key="k", value=1)
        eventually(lambda: len(one.ask(0)["commits"]) == 2, "it is on disk here")
        one.ask(2)
        nothing_yet(client, other)
        two.ask(2)
        assert answer(client)["ok"]


def test_a_write_that_nobody_confirms(
    server: ServerInProcess,
    connect: Connect,
    standby: Standby,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It stays, and counts once it is confirmed; a repeat is answered as the first was to be."""
    monkeypatch.setattr(quorum, "CONFIRM_SECONDS", 0.2)
    client = connect(server.endpoint)
    standby.ask(0)
    once = {"op": "INCR", "key": "n", "session": "s", "seq": 1}
    reply = client.call(**once)
    assert (reply["code"], reply["applied"]) == ("READ_ONLY", None)
    reply = client.call(op="GET", key="n")
    assert (reply["code"], reply["applied"]) == ("READ_ONLY", None)
    assert standby.confirm_all() == 2
    assert client.ok(**once)["replayed"] is True
    assert client.ok(op="GET", key="n")["value"] == 1


def test_nothing_is_safe_after_a_restart_before_it_is_confirmed(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quorum, "CONFIRM_SECONDS", 0.2)
    with ServerInProcess(tmp_path / "data", replication={"sync": 1}) as server:
        standby, client = Standby(connect(server.endpoint), "standby"), connect(server.endpoint)
        standby.ask(0)
        assert client.call(op="PUT", key="k", value=1)["applied"] is None
    with ServerInProcess(tmp_path / "data", replication={"sync": 1}) as server:
        standby, client = Standby(connect(server.endpoint), "standby"), connect(server.endpoint)
        assert client.call(op="GET", key="k")["code"] == "READ_ONLY"
        assert client.ok(op="INFO")["rev"] == 0
        assert standby.confirm_all() == 2
        assert client.ok(op="GET", key="k")["value"] == 1
        assert client.ok(op="INFO")["rev"] == 1


def test_a_standby_that_is_silent_is_not_there(
    server: ServerInProcess,
    connect: Connect,
    standby: Standby,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = connect(server.endpoint)
    standby.ask(0)
    monkeypatch.setattr(quorum, "LOST_SECONDS", 0.0)
    eventually(
        lambda: client.call(op="PUT", key="k", value=1)["applied"] is False, "writes are refused"
    )
    monkeypatch.setattr(quorum, "LOST_SECONDS", 1e6)
    standby.ask(0)
    begin(other := connect(server.endpoint, zmq.DEALER), op="PUT", key="k", value=1)

    def is_answered() -> bool:
        standby.confirm_all()  # Also what was written before the standby was lost.
        return bool(other.socket.poll(1))

    eventually(is_answered, "the standby is there again")
    reply = answer(other)
    assert reply["ok"], reply


def test_however_many_names_confirm_only_some_are_kept() -> None:
    table = quorum.Quorum(2)
    table.confirm("first", 5)
    for number in range(quorum.MOST_STANDBYS):
        table.confirm(f"other-{number}", 3)
    table.confirm("last", 5)
    assert table.confirmed == 3
    table.confirm("first", 5)
    assert table.confirmed == 5


class FullDisk(Files):
    """A disk that is full while it is told to be."""

    is_full = False

    def write(self, file: Any, data: bytes) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")
        super().write(file, data)


def test_a_rollback_undoes_nothing_that_standbys_may_have(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on disk here, and waits for them, stays; what could not be written goes."""
    files = FullDisk()
    with ServerInProcess(tmp_path / "data", files, replication={"sync": 1}) as server:
        standby = Standby(connect(server.endpoint), "standby")
        standby.ask(0)
        first, second = (connect(server.endpoint, zmq.DEALER) for _ in range(2))
        begin(first, op="PUT", key="a", value=1)
        eventually(lambda: len(standby.ask(0)["commits"]) == 2, "it is on disk here")
        files.is_full = True
        begin(second, op="PUT", key="b", value=1)
        assert answer(second)["code"] == "READ_ONLY"
        files.is_full = False
        standby.ask(2)
        answer(first)
        client = connect(server.endpoint)
        assert client.ok(op="GET", key="a")["value"] == 1
        assert client.call(op="GET", key="b")["code"] == "NOT_FOUND"


@pytest.mark.parametrize("policy", ["interval", "never"])
def test_it_needs_a_log_that_is_synced(policy: str) -> None:
    with pytest.raises(ConfigError, match=r"replication\.sync"):
        build({"replication": {"sync": 1}, "durability": {"fsync": policy}})


SYNC = "[replication]\nsync = 1\n[log]\nrequests = false\n"


def test_nothing_is_missing_after_a_promotion_by_force(tmp_path: Path) -> None:
    """Real processes: the primary's machine is gone in the middle of many writes."""
    answered: list[int] = []
    with (
        ServerProcess(tmp_path / "one", config=SYNC) as primary,
        Follower(tmp_path / "two", primary.endpoint, config=SYNC.replace("= 1", "= 0")) as standby,
        Raw(primary.endpoint) as client,
        Raw(standby.endpoint) as other,
    ):
        eventually(lambda: client.call(op="PUT", key="k", value=0)["ok"], "the standby confirms")

        def count() -> None:
            with Raw(primary.endpoint, timeout=3.0) as own, contextlib.suppress(NoReplyError):
                for seq in range(1, 100_000):
                    reply = own.call(op="INCR", key="n", session="s", seq=seq)
                    assert reply["ok"], reply
                    answered.append(reply["value"])

        writer = threading.Thread(target=count)
        writer.start()
        eventually(lambda: len(answered) > 200, "some are answered")
        primary.kill()
        assert promote(standby.endpoint, "--force").returncode == 0
        there = other.ok(op="GET", key="n")["value"]
        assert there - answered[-1] in {0, 1}  # The last one may have got no reply.
        repeat = other.ok(op="INCR", key="n", session="s", seq=answered[-1])
        assert (repeat["replayed"], repeat["value"]) == (True, answered[-1])
        writer.join()
