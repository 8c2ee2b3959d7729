"""Limits of a user: requests per second, and bytes of replies that wait for its connections."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq

import zkv
from tests.support import LIMIT, Message, Raw, eventually, pack, unpack
from tests.users.secured import Context, Secured
from zkv.users.meter import Meter

pytestmark = pytest.mark.usefixtures("road")
MIB = 1 << 20
ALL: dict[str, Any] = {"write": [""]}
ADMIN: dict[str, Any] = {"write": [""], "admin": True}


def refused(reply: Message) -> bool:
    """Whether it is BUSY; otherwise it must be a success."""
    assert reply["ok"] or reply["code"] == "BUSY", reply
    if not reply["ok"]:
        assert (reply["retry"], reply["applied"]) == (True, False)
        assert reply["retry_after"] >= 1
    return not reply["ok"]


# --- Requests per second


def test_a_meter_allows_so_many_per_second() -> None:
    clock = [0.0]
    meter = Meter(4, now=lambda: clock[0])
    assert [meter.take() is None for _ in range(6)] == [True] * 4 + [False] * 2
    overload = meter.take()
    assert overload is not None
    assert overload.retry_after == 250, "there is a token every quarter of a second"
    assert "max_requests" in overload.reason
    clock[0] += 0.5
    assert [meter.take() is None for _ in range(3)] == [True, True, False]
    clock[0] += 100
    assert [meter.take() is None for _ in range(5)] == [True] * 4 + [False], "no more are saved up"


def test_too_many_requests_are_refused(tmp_path: Path, context: Context) -> None:
    users = {"ann": ALL | {"max_requests": 5}, "bob": ADMIN}
    with (
        Secured(tmp_path, users) as secured,
        secured.client(context, "ann") as ann,
        secured.client(context, "ann", kind=zmq.DEALER) as again,
        secured.client(context, "bob") as bob,
    ):
        ann.ok(op="PUT", key="k", value=1)
        replies = []
        kinds = ({"op": "GET", "key": "k"}, {"op": "SCAN"})  # By the front, and by a worker.
        for number in range(200):
            again.send(pack(kinds[number % 2] | {"id": number}))
            bob.ok(op="GET", key="k")
            replies.append(unpack(again.receive()))
        assert [reply["id"] for reply in replies] == list(range(200))
        assert sum(map(refused, replies)) > 100, "of all connections together"
        write = {"op": "INCR", "key": "n", "session": "s", "seq": 1}
        for _ in range(2):
            eventually(lambda: not refused(ann.call(**write)), "it is done later")
        assert bob.ok(op="GET", key="n")["value"] == 1
        assert set(bob.ok(op="INFO")["stats"]["failures"]) == {"BUSY"}


def test_a_change_of_the_limit_counts_at_once(tmp_path: Path, context: Context) -> None:
    with (
        Secured(tmp_path, {"ann": ALL}) as secured,
        secured.client(context, "ann") as ann,
    ):

        def some() -> bool:
            return any(refused(ann.call(op="PING")) for _ in range(50))

        assert not some()
        secured.reload({"ann": ALL | {"max_requests": 2}})
        assert some()
        secured.reload({"ann": ALL | {"max_requests": 2, "read": ["x"]}})
        assert refused(ann.call(op="PING")), "another change gives it no further requests"
        secured.reload({"ann": ALL})
        assert not some()


def test_a_client_waits_until_it_may_go_on(tmp_path: Path) -> None:
    with Secured(tmp_path, {"ann": ALL | {"max_requests": 20}}) as secured:
        secured.key("ann")
        keys = {"server_key": secured.server_key, "key_file": tmp_path / "ann.key"}
        with zkv.Client(secured.endpoint, LIMIT, **keys) as client:  # type: ignore[arg-type]
            assert [client.incr("n") for _ in range(30)] == list(range(1, 31))


# --- Replies that wait


def test_replies_that_wait_count_for_the_user(tmp_path: Path, context: Context) -> None:
    users = {"ann": ALL | {"max_in_flight_bytes": 4 * MIB}, "bob": ADMIN}
    small = {zmq.RCVHWM: 1, zmq.RCVBUF: 4_096}
    with Secured(tmp_path, users) as secured, secured.client(context, "bob") as bob:
        bob.ok(op="PUT", key="k", value=b"x" * MIB)
        options = secured.options("ann") | small
        deaf = [
            Raw(secured.endpoint, zmq.DEALER, context=context, options=options) for _ in range(3)
        ]
        kinds = ({"op": "GET", "key": "k"}, {"op": "SCAN"})
        for number in range(20):
            for each in deaf:
                each.send(pack(kinds[number % 2]))
            assert bob.ok(op="GET", key="k")
        eventually(_busy(bob), "some are refused")
        with secured.client(context, "ann") as ann:
            assert refused(ann.call(op="GET", key="none")), "on whichever connection"
            replies = [unpack(each.receive()) for each in deaf for _ in range(20)]
            assert {refused(reply) for reply in replies} == {True, False}
            eventually(lambda: not refused(ann.call(op="GET", key="k")), "it has read all of them")
        for each in deaf:
            each.close()


def _busy(client: Raw) -> Callable[[], bool]:
    return lambda: client.ok(op="INFO")["stats"]["failures"].get("BUSY", 0) > 20


def test_a_user_over_the_rate_does_not_slow_another(tmp_path: Path, context: Context) -> None:
    """It is served in turn, whatever the other sends."""
    users = {"ann": ALL | {"max_requests": 1}, "bob": ADMIN}
    with (
        Secured(tmp_path, users) as secured,
        secured.client(context, "ann", kind=zmq.DEALER) as ann,
        secured.client(context, "bob") as bob,
    ):
        bob.ok(op="PUT", key="k", value=1)
        for number in range(200):
            ann.send(pack({"op": "GET", "key": "k", "id": number}))
        served = 0
        for _ in range(2_000):
            reply = unpack(ann.receive())
            ann.send(pack({"op": "GET", "key": "k", "id": reply["id"]}))
            served += bob.ok(op="GET", key="k")["value"]
        assert served == 2_000
        for _ in range(200):
            ann.receive()
