"""A server that stops to lead, whatever runs at that moment."""

from __future__ import annotations

from pathlib import Path

import pytest
import zmq

from tests.compiled.slices import in_slices
from tests.conftest import Connect
from tests.support import Raw, ServerInProcess, pack, unpack
from zkv import compiled

LEADER = ["tcp://192.0.2.1:5555"]


def supersede(client: Raw) -> None:
    wish = {"attempt": 1, "term": 9, "leader": LEADER}
    client.ok(op="REPLICATE", member="standby", supersede=wish)


@pytest.mark.parametrize(
    "request_of",
    [
        {"op": "GET", "key": "k"},
        {"op": "MGET", "keys": ["k"]},
        {"op": "SCAN"},
        {"op": "COUNT"},
        {"op": "PUT", "key": "k", "value": 2},
        {"op": "TXN", "ops": [{"op": "GET", "key": "k"}]},
    ],
    ids=lambda request: str(request["op"]),
)
def test_what_only_a_leader_answers(
    tmp_path: Path, connect: Connect, road: str, request_of: dict[str, object]
) -> None:
    with ServerInProcess(tmp_path / "data") as server:
        client = connect(server.endpoint)
        client.ok(op="PUT", key="k", value=1)
        client.ok(op="REPLICATE", member="standby")
        supersede(client)
        reply = client.call(**request_of)
        assert (reply["code"], reply["leader"]) == ("NOT_LEADER", LEADER)
        assert (reply["retry"], reply["applied"]) == (True, False)
        wish = {"attempt": 1, "term": 0, "leader": None}
        client.ok(op="REPLICATE", member="standby", supersede=wish)
        assert client.ok(**request_of)


def test_it_stays_so_after_a_restart(tmp_path: Path, connect: Connect) -> None:
    with ServerInProcess(tmp_path / "data") as server:
        client = connect(server.endpoint)
        client.ok(op="PUT", key="k", value=1)
        client.ok(op="REPLICATE", member="standby")
        supersede(client)
    with ServerInProcess(tmp_path / "data") as server:
        client = connect(server.endpoint)
        assert client.call(op="GET", key="k")["leader"] == LEADER
        assert client.ok(op="GET", key="k", stale=True)["value"] == 1
        assert client.call(op="PROMOTE")["code"] == "BAD_REQUEST"
        assert client.ok(op="PROMOTE", force=True)["term"] == 2
        assert client.ok(op="GET", key="k")["value"] == 1
        assert client.ok(op="PUT", key="k", value=2)["rev"] == 2 + 2**32


@pytest.mark.skipif(not compiled.COMPILED, reason="requests are long only in C")
def test_a_long_read_does_not_outlast_the_lead(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began while the server led, and would be answered after another one has written."""
    with ServerInProcess(tmp_path / "data") as first:
        connect(first.endpoint).ok(op="MPUT", items={"a": 1, "b": 2, "c": 3})
        connect(first.endpoint).ok(op="REPLICATE", member="standby")
    servers: list[ServerInProcess] = []

    def rest() -> None:
        servers[0].server.role.yield_to(LEADER)

    with in_slices(rest), ServerInProcess(tmp_path / "data") as server:
        servers.append(server)
        client = connect(server.endpoint, zmq.DEALER)
        client.send(pack({"op": "MGET", "keys": ["a", "b", "c"]}))
        assert unpack(client.receive())["code"] == "NOT_LEADER"
