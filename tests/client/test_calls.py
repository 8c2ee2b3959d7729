"""`Client.call`, against a real server, and against a peer that does what no server does."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest
from msgpack import ExtType, Timestamp

from tests.peer import Answer, Peer, body, reply, swallow
from tests.support import LIMIT, ServerInProcess, pack
from zkv.client import BadReplyError, Client, NoReplyError, RefusedError

SOON = 0.2
"""A timeout in seconds for what is never answered."""

HELLO = reply(ok=True)

VALUES = [
    None,
    True,
    -(2**63),
    2**64 - 1,
    1.5,
    math.inf,
    "",
    "grüße\n\0",
    b"",
    b"\xff\x00",
    [1, [2, {}]],
    {"a": 1, 2: "b", None: b"c", b"d": [None]},
    ExtType(5, b"\x00\xff"),
    Timestamp(-1, 999_999_999),
    "no UTF-8: \udcff",
]


def impatient(peer: Peer) -> Client:
    """A client that waits no longer than SOON, once its connection stands."""
    client = Client(peer.endpoint, LIMIT)
    client.call("PING")
    client.timeout = SOON
    return client


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


# With a real server.


def test_a_call_gives_the_reply_with_its_fields(near: ServerInProcess) -> None:
    with Client(near.endpoint) as client:
        reply = client.call("PING")

        assert reply["ok"] is True
        assert reply["protocol"] == 1


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_as_it_was_sent(near: ServerInProcess, value: Any) -> None:
    with Client(near.endpoint) as client:
        client.call("PUT", key="k", value=value)
        stored = client.call("GET", key="k")["value"]

        assert stored == value
        assert type(stored) is type(value)


def test_a_value_nested_500_levels_deep_comes_back(near: ServerInProcess) -> None:
    with Client(near.endpoint) as client:
        client.call("PUT", key="k", value=nested(500))

        assert pack(client.call("GET", key="k")["value"]) == pack(nested(500))


def test_a_refusal_carries_what_the_reply_said(near: ServerInProcess) -> None:
    with Client(near.endpoint) as client:
        with pytest.raises(RefusedError) as caught:
            client.call("GET", key="nowhere")

        error = caught.value
        assert (error.code, error.retry, error.applied) == ("NOT_FOUND", False, False)
        assert "nowhere" in error.message
        assert str(error) == f"NOT_FOUND: {error.message}"
        assert client.call("PING")["ok"] is True


@pytest.mark.parametrize(
    ("value", "error"), [(object(), TypeError), (2**64, OverflowError), ("\ud800", ValueError)]
)
def test_what_msgpack_cannot_hold_is_refused_before_it_is_sent(
    near: ServerInProcess, value: object, error: type[Exception]
) -> None:
    with Client(near.endpoint) as client:
        with pytest.raises(error):
            client.call("PUT", key="k", value=value)

        assert client.call("INFO")["rev"] == 0


@pytest.mark.parametrize("name", ["op", "id"])
def test_op_and_id_are_no_fields(near: ServerInProcess, name: str) -> None:
    with Client(near.endpoint) as client, pytest.raises(TypeError, match=name):
        client.call("PING", **{name: 1})


def test_the_reply_to_end_arrives(near: ServerInProcess) -> None:
    with Client(near.endpoint) as client:
        client.call("PUT", key="k", value="v")

        assert client.call("END")["rev"] == 1

    assert near.wait()


def test_a_call_made_before_the_server_starts_is_answered(
    tmp_path: Path, free_endpoint: str
) -> None:
    replies: list[dict[str, Any]] = []

    def call() -> None:
        with Client(free_endpoint, LIMIT) as client:
            replies.append(client.call("PING"))

    thread = threading.Thread(target=call)
    thread.start()
    with ServerInProcess(tmp_path / "late", server={"endpoints": [free_endpoint]}):
        thread.join()

    assert [reply["ok"] for reply in replies] == [True]


# With a peer that keeps to a script, or with nobody.


@pytest.mark.parametrize(
    ("op", "applied"), [("PUT", None), ("END", None), ("NEW", None), ("GET", False)]
)
def test_no_reply_in_time_tells_whether_a_write_may_have_run(op: str, applied: bool | None) -> None:
    with (
        Peer(HELLO, swallow) as peer,
        impatient(peer) as client,
        pytest.raises(NoReplyError) as caught,
    ):
        client.call(op, key="k")

    assert caught.value.applied is applied
    assert peer.endpoint in str(caught.value)


def test_the_call_after_a_lost_reply_is_answered() -> None:
    with Peer(HELLO, swallow, reply(ok=True, rev=7)) as peer, impatient(peer) as client:
        with pytest.raises(NoReplyError):
            client.call("PUT", key="k", value=1)
        client.timeout = LIMIT

        assert client.call("PUT", key="k", value=2)["rev"] == 7

    assert [request["value"] for request in peer.requests[1:]] == [1, 2]
    assert len({request["id"] for request in peer.requests}) == 3


BAD_ANSWERS: dict[str, Answer] = {
    "nothing": body(b""),
    "no msgpack": body(b"\xc1"),
    "cut short": body(pack({"ok": True, "id": 1})[:-1]),
    "something behind it": body(pack({"ok": True, "id": 1}) + b"\xc0"),
    "no map": body(pack([1])),
    "a map that Python has no keys for": body(b"\x81\x90\xc0"),
    "two bodies": lambda request: [[b"", pack({"ok": True, "id": request["id"]}), b""]],
    "another id": reply(ok=True, id=2),
    "an id that is no int": reply(ok=True, id=True),
    "no id": body(pack({"ok": True})),
    "another id on a failure": reply(ok=False, id=2, code="NOT_FOUND", message="gone"),
    "neither success nor failure": reply(ok=1),
    "no ok": reply(value=1),
    "a failure of no kind": reply(ok=False, message="gone"),
    "a failure without words": reply(ok=False, code="NOT_FOUND", message=None),
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_a_bad_reply_is_told_from_any_other(answer: Answer) -> None:
    with Peer(answer, reply(ok=True)) as peer, Client(peer.endpoint, LIMIT) as client:
        with pytest.raises(BadReplyError) as caught:
            client.call("PUT", key="k", value=1)

        assert caught.value.applied is None
        assert client.call("PING")["ok"] is True


def test_a_failure_without_id_counts_since_the_server_may_not_have_read_it() -> None:
    answer = body(pack({"ok": False, "code": "BAD_REQUEST", "message": "no", "applied": False}))
    with (
        Peer(answer) as peer,
        Client(peer.endpoint, LIMIT) as client,
        pytest.raises(RefusedError, match="BAD_REQUEST: no") as caught,
    ):
        client.call("PUT", key="k", value=1)

    assert caught.value.applied is False


@pytest.mark.parametrize(
    ("told", "applied"), [({"applied": False}, False), ({"applied": None}, None), ({}, None)]
)
def test_a_refusal_tells_what_is_known_of_the_write(
    told: dict[str, Any], applied: bool | None
) -> None:
    answer = reply(ok=False, code="CONFLICT", message="x", retry=True, key="k", rev=7, **told)
    with (
        Peer(answer) as peer,
        Client(peer.endpoint, LIMIT) as client,
        pytest.raises(RefusedError) as caught,
    ):
        client.call("PUT", key="k", value=1)

    assert caught.value.applied is applied
    assert caught.value.retry is True
    assert caught.value.details == {"key": "k", "rev": 7}


def test_a_message_without_envelope_is_no_reply() -> None:
    stray = Peer(HELLO, lambda _request: [[b"stray"]], reply(ok=True))
    with stray as peer, impatient(peer) as client:
        with pytest.raises(NoReplyError):
            client.call("PING")
        client.timeout = LIMIT

        assert client.call("PING")["ok"] is True


def test_nobody_there_is_no_reply(free_endpoint: str) -> None:
    with Client(free_endpoint, SOON) as client, pytest.raises(NoReplyError):
        client.call("PING")
