"""What a server does with messages that it should not get, and with values of every shape."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zmq

from tests.conftest import Connect
from tests.support import (
    FREE_PORT,
    LIMIT,
    Frames,
    Raw,
    ServerInProcess,
    ServerProcess,
    eventually,
    pack,
    raw_fields,
    unpack,
)

MAX_KEY, MAX_VALUE, MAX_BATCH, MAX_REPLY, MAX_MESSAGE = 32, 3_000, 5, 5_000, 1_000_000
CONFIG = f"""
[limits]
max_key_bytes = {MAX_KEY}
max_value_bytes = {MAX_VALUE}
max_batch = {MAX_BATCH}
max_reply_bytes = {MAX_REPLY}
max_message_bytes = {MAX_MESSAGE}
"""


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with small limits for all tests here: none of them may do it any harm."""
    with ServerProcess(tmp_path_factory.mktemp("strict"), config=CONFIG) as server:
        with Raw(server.endpoint) as client:
            client.ok(op="PUT", key="witness", value="here")
        yield server
        log = server.log()
        assert "INTERNAL" not in log
        assert "Traceback" not in log
        assert " ERROR " not in log
        assert " CRITICAL " not in log
        with Raw(server.endpoint) as client:
            assert client.ok(op="INFO")["stats"]["workers_replaced"] == 0
        assert server.stop() == 0


@pytest.fixture
def witness(strict: ServerProcess, connect: Connect) -> Iterator[Raw]:
    """Another client, which is connected before and must be served afterwards as if nothing was."""
    client = connect(strict.endpoint)
    client.ok(op="PING")
    yield client
    assert client.ok(op="GET", key="witness")["value"] == "here"


# --- Messages that are answered with a failure ------------------------------------------------

NOT_UTF8 = b"\xa3a\xffb"
DEEP = b"\x91" * 100_000 + b"\xc0"
GET = {"op": "GET", "key": "witness"}
PUT = {"op": "PUT", "key": "k", "value": 0}


def fields(base: dict[str, Any], /, **raw: bytes) -> bytes:
    """A packed request with some fields packed by hand."""
    packed = {name: pack(value) for name, value in base.items()} | raw
    return bytes([0x80 + len(packed)]) + b"".join(
        pack(name) + value for name, value in packed.items()
    )


class Case(NamedTuple):
    frames: Frames
    code: str
    request_id: Any = None
    envelope: Frames = []  # noqa: RUF012  never changed


def body(packed: bytes, code: str = "BAD_REQUEST", request_id: Any = None) -> Case:
    """A request body of its own, in a good envelope."""
    return Case([b"", packed], code, request_id)


CASES: dict[str, Case] = {
    # Envelopes.
    "delimiter only": Case([b""], "BAD_REQUEST"),
    "empty body": Case([b"", b""], "BAD_REQUEST"),
    "no delimiter": Case([pack(GET)], "BAD_REQUEST"),
    "no delimiter, garbage": Case([b"garbage"], "BAD_REQUEST"),
    "no delimiter, three frames": Case([b"a", b"b", pack(GET)], "BAD_REQUEST"),
    "no delimiter, 1,000 frames": Case([b"x"] * 1_000, "BAD_REQUEST"),
    "two bodies": Case([b"", pack(GET), pack(GET)], "BAD_REQUEST"),
    "second body empty": Case([b"", pack(GET), b""], "BAD_REQUEST"),
    "two delimiters": Case([b"", b"", pack(GET)], "BAD_REQUEST"),
    "1,000 bodies": Case([b"", *[pack(GET)] * 1_000], "BAD_REQUEST"),
    "only empty frames": Case([b""] * 10, "BAD_REQUEST"),
    "hop": Case([b"hop", b"", b"\xc1"], "BAD_REQUEST", None, [b"hop"]),
    "three hops": Case(
        [b"a", b"bb", b"c\0", b"", b"x"], "BAD_REQUEST", None, [b"a", b"bb", b"c\0"]
    ),
    "hop without body": Case([b"hop", b""], "BAD_REQUEST", None, [b"hop"]),
    "hop with two bodies": Case([b"hop", b"", b"x", b"y"], "BAD_REQUEST", None, [b"hop"]),
    "1,000 hops": Case([*[b"h"] * 1_000, b"", b"x"], "BAD_REQUEST", None, [b"h"] * 1_000),
    "long hop": Case([bytes(500_000), b"", b"x"], "BAD_REQUEST", None, [bytes(500_000)]),
    # Bodies that are no map.
    "garbage": body(b"\xff\xfe\xfd"),
    "text": body(b"GET witness\r\n"),
    "JSON": body(b'{"op": "GET", "key": "witness"}'),
    "nil": body(b"\xc0"),
    "array": body(pack(["GET", "witness"])),
    "never used byte": body(b"\xc1"),
    "trailing byte": body(pack(GET) + b"\0"),
    "two maps": body(pack(GET) + pack(GET)),
    "trailing, with id": body(pack(GET | {"id": 9}) + b"\0", request_id=9),
    "cut": body(pack(GET)[:-1]),
    "cut behind the id": body(pack({"id": "me"} | GET)[:-1], request_id="me"),
    "deep": body(DEEP),
    "deep value": body(fields(PUT, value=DEEP)),
    "deep value behind an id": body(fields({"id": 7} | PUT, value=DEEP), request_id=7),
    "deep id": body(fields(GET, id=DEEP)),
    "deep op": body(fields(GET, op=DEEP)),
    "deep key": body(fields({"id": 7} | GET, key=DEEP), request_id=7),
    "deep keys": body(fields({"id": 7, "op": "MGET"}, keys=DEEP), request_id=7),
    "deep items": body(fields({"id": 7, "op": "MPUT"}, items=b"\x81\xa1k" + DEEP), request_id=7),
    "deep field name": body(b"\x81" + DEEP + b"\xc0"),
    "unhashable field name": body(b"\x82\x81\x91\x01\x01\x01\xa2id\x07", request_id=7),
    "unhashable id": body(b"\x82\xa2id\x81\x91\x01\x01\xa2op"),
    "int field name": body(b"\x81\x01\x01"),
    "field name not UTF-8": body(b"\x81" + NOT_UTF8 + b"\x01"),
    # Headers that promise more than comes.
    **{
        f"{name} of 4 billion {where}": case
        for name, head in {
            "array": b"\xdd\xff\xff\xff\xff",
            "map": b"\xdf\xff\xff\xff\xff",
            "str": b"\xdb\xff\xff\xff\xff",
            "bin": b"\xc6\xff\xff\xff\xff",
            "ext": b"\xc9\xff\xff\xff\xff\x05",
        }.items()
        for where, case in {
            "as body": body(head),
            "as body, and some": body(head + b"\xc0" * 1_000),
            "as value": body(fields({"id": 7} | PUT, value=head), request_id=7),
            "as key": body(fields({"id": 7} | GET, key=head), request_id=7),
            "as keys": body(fields({"id": 7, "op": "MGET"}, keys=head), request_id=7),
            "as items": body(fields({"id": 7, "op": "MPUT"}, items=head), request_id=7),
            "as id": body(fields(GET, id=head)),
        }.items()
    },
    # Fields.
    "no op": body(pack({"key": "k", "id": 7}), request_id=7),
    "op is an int": body(pack({"op": 1, "id": 7}), request_id=7),
    "no key": body(pack({"op": "GET", "id": 7}), request_id=7),
    "no value": body(pack({"op": "PUT", "key": "k", "id": 7}), request_id=7),
    "no keys": body(pack({"op": "MGET", "id": 7}), request_id=7),
    "no items": body(pack({"op": "MPUT", "id": 7}), request_id=7),
    "unknown field": body(pack(PUT | {"colour": 1, "id": 7}), request_id=7),
    "field of another op": body(pack(GET | {"value": 1, "id": 7}), request_id=7),
    "field of PING": body(pack({"op": "PING", "key": "k", "id": "x"}), request_id="x"),
    "key is nil": body(pack({"op": "GET", "key": None, "id": 7}), request_id=7),
    "key is an array": body(pack({"op": "GET", "key": ["k"], "id": 7}), request_id=7),
    "keys is a str": body(pack({"op": "MGET", "keys": "k", "id": 7}), request_id=7),
    "keys holds an int": body(pack({"op": "MGET", "keys": ["k", 1], "id": 7}), request_id=7),
    "items is an array": body(pack({"op": "MPUT", "items": ["k"], "id": 7}), request_id=7),
    "items has an int key": body(pack({"op": "MPUT", "items": {1: 1}, "id": 7}), request_id=7),
    "items has an array key": body(
        fields({"op": "MPUT", "id": 7}, items=b"\x81\x91\x01\x01"), request_id=7
    ),
    "prev is an int": body(pack(PUT | {"prev": 1, "id": 7}), request_id=7),
    "id is a float": body(pack(GET | {"id": 1.5})),
    "id is a bool": body(pack(GET | {"id": True})),
    "id is an array": body(pack(GET | {"id": [1]})),
    "id is not UTF-8": body(fields(GET, id=NOT_UTF8)),
    # Keys.
    "empty key": body(pack({"op": "GET", "key": "", "id": 7}), request_id=7),
    "empty key to PUT": body(pack(PUT | {"key": "", "id": 7}), request_id=7),
    "key begins with NUL": body(pack(PUT | {"key": "\0k", "id": 7}), request_id=7),
    "key not UTF-8": body(fields({"op": "GET", "id": 7}, key=NOT_UTF8), request_id=7),
    "bin key not UTF-8": body(fields({"op": "GET", "id": 7}, key=b"\xc4\x01\xff"), request_id=7),
    "surrogate in key": body(fields(GET, key=b"\xa3\xed\xa0\x80")),
    "overlong NUL in key": body(fields(GET, key=b"\xa2\xc0\x80")),
    "bad key in a batch": body(pack({"op": "MGET", "keys": ["k", ""], "id": 7}), request_id=7),
    "NUL key in items": body(pack({"op": "MPUT", "items": {"k": 1, "\0": 2}})),
    "empty key in MDELETE": body(pack({"op": "MDELETE", "keys": [""]})),
    # Limits.
    "long key": body(pack(PUT | {"key": "k" * (MAX_KEY + 1), "id": 7}), "TOO_LARGE", 7),
    "long key in bytes": body(pack(GET | {"key": "é" * (MAX_KEY // 2) + "x"}), "TOO_LARGE"),
    "huge key": body(pack(GET | {"key": "k" * 900_000, "id": 7}), "TOO_LARGE", 7),
    "long key in a batch": body(pack({"op": "MGET", "keys": ["k" * 40]}), "TOO_LARGE"),
    "long key in items": body(pack({"op": "MPUT", "items": {"k" * 40: 1}}), "TOO_LARGE"),
    "batch of keys": body(pack({"op": "MGET", "keys": ["k"] * 6, "id": 7}), "TOO_LARGE", 7),
    "batch of items": body(
        pack({"op": "MPUT", "items": dict.fromkeys("abcdef"), "id": 7}), "TOO_LARGE", 7
    ),
    "batch of deletions": body(pack({"op": "MDELETE", "keys": list("abcdef")}), "TOO_LARGE"),
    "large value": body(fields({"id": 7} | PUT, value=pack(bytes(MAX_VALUE))), "TOO_LARGE", 7),
    "large value in items": body(
        pack({"op": "MPUT", "items": {"k": 1, "l": bytes(MAX_VALUE)}}), "TOO_LARGE"
    ),
    # Ops.
    **{
        f"op {op!r:.20}": body(pack({"op": op, "key": "k", "id": 7}), "UNKNOWN_OP", 7)
        for op in ("get", "Get", "gET", "end", "End", "eND", "shutdown", "STOP", "QUIT", "", " GET",
                   "GET\0", "GET\n", "__init__", "__class__", "stop", "\N{GREEK SMALL LETTER PI}",
                   "X" * 10_000)
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_malformed_message(
    strict: ServerProcess, witness: Raw, connect: Connect, case: Case
) -> None:
    client = connect(strict.endpoint, zmq.DEALER)
    rev = witness.ok(op="INFO")["rev"]
    client.send_frames(case.frames)
    *envelope, delimiter, reply_body = client.receive_frames()
    assert (envelope, delimiter) == (case.envelope, b"")
    reply = unpack(reply_body)
    assert (reply["ok"], reply["code"]) == (False, case.code), reply
    assert reply.get("id") == case.request_id
    assert ("id" in reply) == (case.request_id is not None)
    assert (reply["applied"], reply["retry"]) == (False, False)
    assert isinstance(reply["message"], str)
    assert len(reply_body) < 500, "a failure does not send everything back"
    assert witness.ok(op="GET", key="witness")["value"] == "here"
    assert witness.ok(op="INFO")["rev"] == rev, "nothing was applied"
    assert client.ok(op="GET", key="witness")["value"] == "here", "the sender is served, too"
    assert not client.socket.poll(0), "one message, one reply"


def test_hops_come_back_untouched(strict: ServerProcess, witness: Raw, connect: Connect) -> None:
    client = connect(strict.endpoint, zmq.DEALER)
    for hops in ([b"a"], [b"\0" * 5, b"bb"], [bytes([n]) for n in range(1, 256)]):
        client.send_frames([*hops, b"", pack(GET)])
        *envelope, delimiter, reply = client.receive_frames()
        assert (envelope, delimiter) == (hops, b"")
        assert unpack(reply)["value"] == "here"


def test_all_of_it_at_once(strict: ServerProcess, witness: Raw, connect: Connect) -> None:
    """One client sends everything in one go, in a random order, good requests in between."""
    client = connect(strict.endpoint, zmq.DEALER)
    cases = random.sample([*CASES.values()], len(CASES))
    for number, case in enumerate(cases):
        client.send_frames(case.frames)
        client.send(pack(GET | {"id": f"good{number}"}))
    good, bad = set(), []
    for _ in range(2 * len(cases)):
        *_, reply_body = client.receive_frames()
        reply = unpack(reply_body)
        if reply["ok"]:
            good.add(reply["id"])
        else:
            bad.append(reply["code"])
    assert good == {f"good{number}" for number in range(len(cases))}
    assert sorted(bad) == sorted(case.code for case in cases)


@pytest.mark.parametrize("first", ["GET", "PING"])
def test_duplicate_fields_get_one_answer(
    strict: ServerProcess, witness: Raw, connect: Connect, first: str
) -> None:
    second = "PING" if first == "GET" else "GET"
    client = connect(strict.endpoint)
    twice = [
        b"\x83\xa2op\xa3GET\xa3key\xa1a\xa3key\xa7witness",
        b"\x83\xa2op\xa3GET\xa3key\xa7witness\xa3key\x07",
        b"\x83\xa2op\xa3GET\xa3key\x07\xa3key\xa7witness",
        b"\x83\xa2op" + pack(first) + b"\xa2op" + pack(second) + b"\xa3key\xa7witness",
        b"\x84\xa2op\xa3GET\xa3key\xa7witness\xa2id\x01\xa2id\x02",
        b"\x84\xa2id\x01\xa2id\xc3\xa2op\xa3GET\xa3key\xa7witness",
        b"\x82\xa2op\xa4PING\xc4\x02op\xa4PING",
    ]
    for request in twice:
        reply = unpack(client.exchange(request))
        assert reply["ok"] or reply["code"] in {"BAD_REQUEST", "NOT_FOUND"}, reply


def test_req_client_gets_failures_and_goes_on(
    strict: ServerProcess, witness: Raw, connect: Connect
) -> None:
    client = connect(strict.endpoint)
    for request in (b"", b"\xc1", pack([]), DEEP, pack({"op": "NOPE"})):
        assert unpack(client.exchange(request))["ok"] is False
        assert client.ok(op="GET", key="witness")["value"] == "here"


def test_what_is_just_within_the_limits(
    strict: ServerProcess, witness: Raw, connect: Connect
) -> None:
    client = connect(strict.endpoint)
    value = bytes(MAX_VALUE - 3)
    assert len(pack(value)) == MAX_VALUE
    for key in ("k" * MAX_KEY, "é" * (MAX_KEY // 2), "\x01", "a\0b", "\U0001f600" * (MAX_KEY // 4)):
        client.ok(op="PUT", key=key, value=value)
        assert client.ok(op="GET", key=key)["value"] == value
        client.ok(op="DELETE", key=key)
    batch = list("abcde")
    client.ok(op="MPUT", items=dict.fromkeys(batch, 1))
    assert client.ok(op="MGET", keys=batch)["values"] == [1] * MAX_BATCH
    assert client.ok(op="MDELETE", keys=batch)["deleted"] == MAX_BATCH
    for empty in ({"op": "MGET", "keys": []}, {"op": "MDELETE", "keys": []}):
        client.ok(**empty)
    client.ok(op="MPUT", items={})


def test_reply_over_its_limit(strict: ServerProcess, witness: Raw, connect: Connect) -> None:
    client = connect(strict.endpoint)
    client.ok(op="MPUT", items={"r1": bytes(2_400), "r2": bytes(2_400)})
    assert client.ok(op="MGET", keys=["r1", "r2"])["values"] == [bytes(2_400)] * 2
    for keys in (["r1", "r1", "r2"], ["r1"] * MAX_BATCH):
        reply = client.call(op="MGET", keys=keys, id=7)
        assert (reply["ok"], reply["code"], reply["id"]) == (False, "TOO_LARGE", 7)
        assert "max_reply_bytes" in reply["message"]
    client.ok(op="MDELETE", keys=["r1", "r2"])


# --- What is not even a ZeroMQ message --------------------------------------------------------

SIGNATURE = b"\xff\0\0\0\0\0\0\0\x01\x7f"
GREETING = SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" * 32
READY = b"\x04\x29\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0"

GARBAGE = {
    "nothing": b"",
    "one byte": b"\xff",
    "half a signature": SIGNATURE[:5],
    "a signature": SIGNATURE,
    "half a greeting": GREETING[:30],
    "a greeting without its last byte": GREETING[:-1],
    "a greeting": GREETING,
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "Redis": b"*1\r\n$4\r\nPING\r\n",
    "msgpack": pack(GET),
    "zeros": bytes(10_000),
    "ones": b"\xff" * 10_000,
    "unknown mechanism": GREETING.replace(b"NULL", b"NOPE"),
    "unknown version": GREETING.replace(b"\x7f\x03", b"\x7f\x09"),
    "old version": SIGNATURE + b"\x00\x05" + pack(GET),
    "oldest version": b"\x01\x00" + b"\x01\x01" + b"\x0b\x00" + pack(GET)[:10],
    "greeting, then garbage": GREETING + b"\xde\xad\xbe\xef" * 100,
    "greeting, then zeros": GREETING + bytes(1_000),
    "READY cut": GREETING + READY[:20],
    "message before READY": GREETING + b"\x01\x00" + b"\x00\x01x",
    "READY, then a frame cut": GREETING + READY + b"\x01\x00\x00\xf0abc",
    "READY, then a frame that claims 2^63 bytes": GREETING + READY
    + b"\x02\x7f\xff\xff\xff\xff\xff\xff\xff",
    "READY, then a frame over the limit": GREETING + READY
    + b"\x02" + struct.pack(">Q", MAX_MESSAGE + 1),
    "READY, then a delimiter with more to come": GREETING + READY + b"\x01\x00",
    "READY, then an unknown command": GREETING + READY + b"\x04\x05\x04NOPE",
    "READY, then bad flags": GREETING + READY + b"\xf8\x01x",
    "READY twice": GREETING + READY + READY,
    "READY of a PUB": GREETING + READY.replace(b"\x06DEALER", b"\x03PUB\0\0\0"),
    "random": random.Random(5).randbytes(50_000),  # The same for every run.
}  # fmt: skip


@contextlib.contextmanager
def plain_connection(server: ServerProcess) -> Iterator[socket.socket]:
    host, port = server.endpoint.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port)), timeout=LIMIT) as connection:
        yield connection


def exchange_greetings(connection: socket.socket) -> None:
    """libzmq hangs up on whoever goes on before it has said its own."""
    connection.sendall(GREETING)
    received = b""
    while len(received) < len(GREETING):
        data = connection.recv(len(GREETING) - len(received))
        assert data, received
        received += data


def send_all(connection: socket.socket, data: bytes, piece: int) -> None:
    """Send in pieces; the server may hang up in the middle of it."""
    with contextlib.suppress(ConnectionError):
        if data.startswith(GREETING):
            exchange_greetings(connection)
            data = data.removeprefix(GREETING)
        for place in range(0, len(data), piece):
            connection.sendall(data[place : place + piece])


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_garbage_over_plain_tcp(strict: ServerProcess, witness: Raw, data: bytes) -> None:
    with plain_connection(strict) as whole, plain_connection(strict) as bytewise:
        send_all(whole, data, 1_000_000)
        assert witness.ok(op="GET", key="witness")["value"] == "here"
        send_all(bytewise, data[:200], 1)
        assert witness.ok(op="GET", key="witness")["value"] == "here"
        with contextlib.suppress(OSError):
            whole.shutdown(socket.SHUT_WR)
        assert witness.ok(op="GET", key="witness")["value"] == "here"
        reset = struct.pack("ii", 1, 0)
        bytewise.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)


def test_hand_made_client(strict: ServerProcess, witness: Raw) -> None:
    """The greeting and READY above are good ones: with a good message behind, it is answered."""
    with plain_connection(strict) as connection:
        exchange_greetings(connection)
        connection.sendall(READY)
        request = pack(GET)
        connection.sendall(b"\x01\x00" + b"\x00" + bytes([len(request)]) + request)
        received = b""
        while b"here" not in received:
            data = connection.recv(4_096)
            assert data, received
            received += data


def test_a_client_that_sends_byte_by_byte(strict: ServerProcess, witness: Raw) -> None:
    """It gets its reply, and in the meantime everybody else theirs."""
    request = pack(GET)
    frames = READY + b"\x01\x00" + b"\x00" + bytes([len(request)]) + request
    with plain_connection(strict) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        exchange_greetings(connection)
        for byte in frames:
            connection.sendall(bytes([byte]))
            assert witness.ok(op="GET", key="witness")["value"] == "here"
        received = b""
        while b"here" not in received:
            data = connection.recv(4_096)
            assert data, received
            received += data


IDLE = {
    "with half a frame": GREETING + READY + b"\x01\x00\x00\xf0abc",
    "with a huge frame to come": GREETING + READY + b"\x02" + struct.pack(">Q", MAX_MESSAGE) + b"x",
}


@pytest.mark.parametrize("data", IDLE.values(), ids=IDLE)
def test_a_thousand_idle_connections(
    strict: ServerProcess, witness: Raw, connect: Connect, data: bytes
) -> None:
    """They cost file descriptors, which come back, and nobody's time.

    Those that are still in their handshake are ended by the server: see test_handshake.py.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 2_500, "too few file descriptors for this test: ulimit -Hn"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2_500), hard))
    descriptors = Path(f"/proc/{strict.process.pid}/fd")
    before = len(os.listdir(descriptors))
    with contextlib.ExitStack() as stack:
        for number in range(1_000):
            connection = stack.enter_context(plain_connection(strict))
            exchange_greetings(connection)
            connection.sendall(data.removeprefix(GREETING))
            if number % 100 == 0:
                assert witness.ok(op="GET", key="witness")["value"] == "here"
        eventually(lambda: len(os.listdir(descriptors)) >= 1_000, "all are accepted")

        newcomer = connect(strict.endpoint)
        assert newcomer.ok(op="GET", key="witness")["value"] == "here"
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    newcomer.close()
    eventually(lambda: len(os.listdir(descriptors)) <= before + 20, "the descriptors come back")


def test_oversize_message_ends_only_its_connection(
    strict: ServerProcess, witness: Raw, connect: Connect
) -> None:
    client = connect(strict.endpoint, zmq.DEALER)
    client.ok(op="PING")
    monitor = client.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    client.send(pack(PUT | {"key": "oversize", "value": bytes(MAX_MESSAGE)}))
    assert monitor.poll(round(LIMIT * 1000)), "the connection was not ended"
    client.socket.disable_monitor()
    monitor.close()
    assert witness.ok(op="GET", key="witness")["value"] == "here"
    assert witness.call(op="GET", key="oversize")["code"] == "NOT_FOUND"
    assert client.ok(op="GET", key="witness")["value"] == "here", "it may connect again"


def test_message_just_within_the_limit(
    strict: ServerProcess, witness: Raw, connect: Connect
) -> None:
    client = connect(strict.endpoint)
    rest = len(pack(PUT | {"value": bytes(MAX_MESSAGE)})) - MAX_MESSAGE
    request = pack(PUT | {"value": bytes(MAX_MESSAGE - rest)})
    assert len(request) == MAX_MESSAGE
    assert unpack(client.exchange(request))["code"] == "TOO_LARGE", "it arrives, and is refused"


# --- Values byte for byte ---------------------------------------------------------------------

VALUES = {
    "nil": b"\xc0",
    "false": b"\xc2",
    "int": b"\x07",
    "int in a wide form": b"\xd3\x00\x00\x00\x00\x00\x00\x00\x07",
    "uint64": b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
    "int64": b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00",
    "float32": b"\xca\x3f\x9d\xf3\xb6",
    "float64 that would fit a float32": b"\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00",
    "NaN with a payload": b"\xcb\x7f\xf8\x00\x00\xde\xad\xbe\xef",
    "negative zero": b"\xca\x80\x00\x00\x00",
    "empty str": b"\xa0",
    "short str in a wide form": b"\xdb\x00\x00\x00\x01x",
    "str not UTF-8": b"\xa4\x00\xff\xfe\x80",
    "long str not UTF-8": b"\xda\x03\xe8" + b"\xff" * 1_000,
    "surrogates": b"\xa6\xed\xa0\x80\xed\xb0\x80",
    "empty bin": b"\xc4\x00",
    "bin in a wide form": b"\xc6\x00\x00\x00\x02\x00\xff",
    "ext": b"\xd4\x05x",
    "ext 8": b"\xc7\x03\x2aabc",
    "empty ext": b"\xc7\x00\x01",
    "ext of a negative type": b"\xd5\x80ab",
    "timestamp 32": b"\xd6\xff\x65\x00\x00\x00",
    "timestamp 64": b"\xd7\xff\x00\x00\x00\x00\x65\x00\x00\x00",
    "timestamp 96": b"\xc7\x0c\xff\x00\x00\x00\x01\xff\xff\xff\xff\xff\xff\xff\xff",
    "timestamp that is none": b"\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    "timestamp of odd length": b"\xc7\x02\xff\x00\x01",
    "empty array": b"\x90",
    "array in a wide form": b"\xdd\x00\x00\x00\x02\x01\x02",
    "map in an unusual order": b"\x83\xa1z\x01\xa1a\x02\xa1m\x03",
    "map in a wide form": b"\xdf\x00\x00\x00\x01\xa1a\x01",
    "map with a key twice": b"\x82\xa1a\x01\xa1a\x02",
    "map with int keys": b"\x82\x02\xa1b\x01\xa1a",
    "map with nil and float keys": b"\x82\xc0\x01\xcb\x00\x00\x00\x00\x00\x00\x00\x00\x02",
    "map with an array as key": b"\x81\x92\x01\x02\xa1x",
    "map with a map as key": b"\x81\x81\x01\x02\x81\x81\x03\x04\x05",
    "map with a key not UTF-8": b"\x81\xa1\xff\x01",
    "500 arrays in each other": b"\x91" * 499 + b"\x90",
    "500 maps in each other": b"\x81\xa1k" * 499 + b"\x80",
    "500 maps as keys of each other": b"\x81" * 499 + b"\x80" + b"\xc0" * 499,
    "1,000 nils": b"\xdc\x03\xe8" + b"\xc0" * 1_000,
    "a request": pack(PUT),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_value_comes_back_byte_for_byte(
    strict: ServerProcess, witness: Raw, connect: Connect, value: bytes
) -> None:
    client = connect(strict.endpoint)

    def exchange(request: bytes) -> dict[str, bytes]:
        reply = raw_fields(client.exchange(request))
        assert reply["ok"] == b"\xc3", reply
        return reply

    for name in ("op", b"op"):  # Bin field names take the longer way through the codec.
        op_put = pack({name: "PUT", "key": "v"})[1:]
        exchange(b"\x83" + op_put + pack("value") + value)
        assert exchange(pack({"op": "GET", "key": "v"}))["value"] == value
        items = b"\x82" + pack("v") + value + pack("w") + value
        exchange(b"\x82" + pack({name: "MPUT"})[1:] + pack("items") + items)
        assert exchange(pack({"op": "MGET", "keys": ["w", "x", "v"]}))["values"] == (
            b"\x93" + value + b"\xc0" + value
        )
        replaced = exchange(pack({"op": "PUT", "key": "v", "value": 1, "prev": True}))
        assert replaced["prev"] == value
        assert exchange(pack({"op": "DELETE", "key": "w", "prev": True}))["prev"] == value


# --- Clients that behave in unusual ways -------------------------------------------------------


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[ServerInProcess]:
    """A server with room for the replies to 5,000 requests."""
    with ServerInProcess(tmp_path / "patient", limits={"max_in_flight": 5_000}) as server:
        yield server


def test_5000_requests_in_flight(patient: ServerInProcess, connect: Connect) -> None:
    client = connect(patient.endpoint, zmq.DEALER, options={zmq.SNDHWM: 0, zmq.RCVHWM: 0})
    count = 5_000
    for number in range(count):
        fields = {"op": "PUT", "key": f"k{number % 100}", "value": number, "prev": True}
        client.send(pack(fields | {"id": number}))
    replies = {}
    for _ in range(count):
        reply = unpack(client.receive())
        assert reply["ok"]
        replies[reply["id"]] = reply
    assert sorted(replies) == list(range(count)), "one reply for each"
    assert sorted(reply["rev"] for reply in replies.values()) == list(range(1, count + 1))
    by_rev = {reply["rev"]: number for number, reply in replies.items()}
    for (
        number,
        reply,
    ) in replies.items():  # What each replaced is what was written at that revision.
        if reply["prev_rev"]:
            assert reply["prev"] == by_rev[reply["prev_rev"]]
            assert reply["prev"] % 100 == number % 100
    assert sum(reply["prev_rev"] == 0 for reply in replies.values()) == 100


def test_req_that_does_not_wait_for_its_replies(server: ServerProcess, connect: Connect) -> None:
    """REQ_RELAXED may send again at once; REQ_CORRELATE then drops the earlier reply."""
    client = connect(server.endpoint, options={zmq.REQ_RELAXED: 1, zmq.REQ_CORRELATE: 1})
    for number in range(200):
        client.send(pack({"op": "PING", "id": -number}))
        client.send(pack({"op": "PUT", "key": "k", "value": number, "id": number}))
        assert unpack(client.receive())["id"] == number
    assert client.ok(op="GET", key="k")["value"] == 199


def test_clients_that_leave_before_their_replies(server: ServerProcess, client: Raw) -> None:
    """Their requests run, their replies go nowhere, nobody else notices."""
    for round_ in range(20):
        with zmq.Context() as context:
            for number in range(10):
                leaver = Raw(server.endpoint, zmq.DEALER, context=context)
                leaver.socket.linger = round(LIMIT * 1000)  # It leaves once its request has gone.
                for _ in range(5):
                    leaver.send(pack({"op": "PUT", "key": f"{round_}-{number}", "value": 1}))
                leaver.close()
        assert client.ok(op="PING")
    eventually(lambda: client.ok(op="INFO")["rev"] == 1_000, "all their requests have run")
    assert client.ok(op="INFO")["keys"] == 200


def test_client_that_never_reads_harms_nobody(
    server: ServerProcess, client: Raw, connect: Connect
) -> None:
    client.ok(op="PUT", key="big", value=bytes(1 << 20))
    deaf = connect(server.endpoint, zmq.DEALER, options={zmq.RCVHWM: 1, zmq.RCVBUF: 4_096})
    for number in range(100):
        deaf.send(pack({"op": "GET", "key": "big", "id": number}))
    for number in range(100):
        client.ok(op="PUT", key="k", value=number)
    deaf.close()
    assert client.ok(op="GET", key="k")["value"] == 99


def test_clients_with_the_same_routing_id(server: ServerProcess, connect: Connect) -> None:
    """The second is turned away, the first goes on."""
    options = {zmq.ROUTING_ID: b"same"}
    first = connect(server.endpoint, zmq.DEALER, options=options)
    first.ok(op="PUT", key="k", value=1)
    second = connect(server.endpoint, zmq.DEALER, options=options)
    second.send(pack({"op": "PUT", "key": "k", "value": 2}))
    for _ in range(20):
        assert first.ok(op="GET", key="k")["value"] == 1


def test_nasty_routing_ids(server: ServerProcess, connect: Connect) -> None:
    for routing_id in (b"x", b"goodbye", b"\x01" * 255, b"\xff\xfe", b"id\0id"):
        client = connect(server.endpoint, zmq.DEALER, options={zmq.ROUTING_ID: routing_id})
        client.ok(op="PING")


def test_many_clients_at_once(server: ServerProcess, context: zmq.Context[Any]) -> None:
    """Each sees its own writes, whatever the others do."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            client = Raw(server.endpoint, context=context)
            for value in range(50):
                client.ok(op="PUT", key=f"k{number}", value=value)
                client.ok(op="PUT", key="shared", value=[number, value])
                assert client.ok(op="GET", key=f"k{number}")["value"] == value
            client.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with Raw(server.endpoint, context=context) as client:
        assert client.ok(op="INFO")["rev"] == 16 * 50 * 2


def test_malformed_over_ipc(tmp_path_factory: pytest.TempPathFactory, connect: Connect) -> None:
    """The same holds for another transport."""
    directory = tmp_path_factory.mktemp("ipc")
    endpoint = f"ipc://{directory}/s"
    with ServerProcess(directory, "--endpoint", endpoint, "--endpoint", FREE_PORT) as server:
        client, other = connect(server.endpoints[0], zmq.DEALER), connect(server.endpoints[1])
        other.ok(op="PUT", key="witness", value="here")
        for name in ("delimiter only", "no delimiter", "two bodies", "hop", "garbage", "deep"):
            client.send_frames(CASES[name].frames)
            assert unpack(client.receive_frames()[-1])["code"] == CASES[name].code
            assert other.ok(op="GET", key="witness")["value"] == "here"
        with socket.socket(socket.AF_UNIX) as plain:
            plain.connect(f"{directory}/s")
            plain.sendall(GARBAGE["random"][:1_000])
            assert other.ok(op="GET", key="witness")["value"] == "here"
        assert client.ok(op="GET", key="witness")["value"] == "here"
