"""A client that does not read its replies: what it takes, and what the others notice."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.broker.zmtp import Wire, request
from tests.conftest import Connect
from tests.support import (
    LIMIT,
    MAX_IN_FLIGHT,
    HeldFiles,
    Message,
    Raw,
    ServerInProcess,
    eventually,
    pack,
    unpack,
)
from zkv import compiled
from zkv.broker.in_flight import COUNTED, RETRY_MS, PythonInFlight

MIB = 1 << 20
LIMIT_BYTES = 16 * MIB
"""The default."""


@pytest.fixture
def server(tmp_path: Path, road: str) -> Iterator[ServerInProcess]:
    with ServerInProcess(tmp_path / "data") as server:
        yield server


@pytest.fixture
def client(server: ServerInProcess, connect: Connect) -> Raw:
    """Somebody else."""
    return connect(server.endpoint)


def deaf(connect: Connect, endpoint: str) -> Raw:
    """A client that takes few bytes until it reads."""
    options = {zmq.RCVHWM: 1, zmq.RCVBUF: 4_096, zmq.SNDHWM: 0}
    return connect(endpoint, zmq.DEALER, options=options)


def stats(client: Raw) -> Message:
    found: Message = client.ok(op="INFO")["stats"]
    return found


def memory() -> int:
    """Bytes of this process, the server's included."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def flood(wire: Wire, asked: Message, count: int) -> threading.Thread:
    """Send requests in a thread, without reading."""
    data = b"".join(request(**asked, id=number) for number in range(count))
    thread = threading.Thread(target=wire.send, args=(data,))
    thread.start()
    return thread


def overload(reader: Raw, client: Raw, asked: int = 0) -> int:
    """Have a client ask for a large value until all is refused; returns how often it has asked."""
    client.ok(op="PUT", key="k", value=b"x" * MIB)
    refused = stats(client)["failures"].get("BUSY", 0)
    for _ in range(20):
        before = refused
        for number in range(asked, asked + 10):
            reader.send(pack({"op": "GET", "key": "k", "id": number}))
        asked += 10
        eventually(lambda: stats(client)["requests"].get("GET") == asked, "all are answered")  # noqa: B023
        refused = stats(client)["failures"].get("BUSY", 0)
        if refused - before == 10:
            return asked
    raise AssertionError("it is not refused")


# --- Many replies, and nobody reads


@pytest.mark.parametrize(
    ("size", "asked"),
    [
        (65_536, {"op": "GET", "key": "k"}),
        (MIB, {"op": "GET", "key": "k"}),
        (MIB, {"op": "SCAN"}),
        (MIB, {"op": "TXN", "ops": [{"op": "GET", "key": "k"}, {"op": "INCR", "key": "n"}]}),
    ],
    ids=["64 KiB", "1 MiB", "pages", "transactions"],
)  # fmt: skip
def test_whoever_does_not_read_takes_little_memory(
    server: ServerInProcess, client: Raw, size: int, asked: Message
) -> None:
    count = 10_000
    client.ok(op="PUT", key="k", value=b"x" * size)
    client.ok(op="PUT", key="small", value=1)
    for _ in range(3):
        client.ok(**asked)
    gc.collect()
    before = most = memory()
    answered = stats(client)["requests"][asked["op"]]
    with Wire(server.endpoint) as wire:
        wire.introduce()
        sending = flood(wire, asked, count)
        while sending.is_alive() or stats(client)["requests"][asked["op"]] < answered + count:
            assert client.ok(op="MGET", keys=["small"])["values"] == [1], "others are served"
            most = max(most, memory())
        sending.join()
        assert most - before < 64 * MIB
        replies: list[Message] = []
        while len(replies) < count - stats(client)["replies_dropped"]:
            replies.append(wire.reply())
        assert len({reply["id"] for reply in replies}) == len(replies), "drops are counted"
        refused = [reply for reply in replies if not reply["ok"]]
        assert len(refused) < len(replies)
        assert {
            (reply["code"], reply["retry"], reply["applied"], reply["retry_after"])
            for reply in refused
        } == {("BUSY", True, False, RETRY_MS)}
        eventually(lambda: wire.call(**asked)["ok"], "it has read everything, and is served again")
    assert stats(client)["failures"] == {"BUSY": stats(client)["failures"]["BUSY"]}


def test_a_limit_of_another_size(tmp_path: Path, road: str, connect: Connect) -> None:
    """Replies to writes count, too."""
    limits = {"max_in_flight_bytes": 4 * MIB}
    with ServerInProcess(tmp_path / "data", limits=limits) as server:
        client = connect(server.endpoint)
        assert client.ok(op="INFO")["limits"]["max_in_flight_bytes"] == 4 * MIB
        for _ in range(20):  # Whoever reads each reply is always served.
            client.ok(op="PUT", key="k", value=b"x" * MIB, prev=True)
        reader = deaf(connect, server.endpoint)
        for number in range(40):
            reader.send(pack({"op": "GET", "key": "k", "id": number}))
        eventually(lambda: stats(client)["failures"].get("BUSY"), "some are refused")
        codes = [unpack(reader.receive()).get("code", "ok") for _ in range(40)]
        assert set(codes) == {"ok", "BUSY"}


# --- Whoever stays within the limits


@pytest.mark.parametrize("size", [1, COUNTED - 100])
def test_nothing_is_lost_within_the_number(
    server: ServerInProcess, client: Raw, connect: Connect, size: int
) -> None:
    client.ok(op="PUT", key="k", value=b"x" * size)
    reader = deaf(connect, server.endpoint)
    sent, answered = 0, stats(client)["requests"]
    for round_ in range(10):
        unread = MAX_IN_FLIGHT if round_ % 2 else MAX_IN_FLIGHT // 3
        kinds = ({"op": "GET", "key": "k"}, {"op": "SCAN"})  # By the front, and by a worker.
        for number in range(unread):
            reader.send(pack(kinds[number % 2] | {"id": sent + number}))
        sent += unread
        eventually(lambda: _served(client, answered) == sent, "all are answered, none is read")  # noqa: B023
        got = {unpack(reader.receive())["id"] for _ in range(unread)}
        assert got == set(range(sent - unread, sent))
    assert stats(client)["replies_dropped"] == 0
    assert stats(client)["failures"] == {}


def _served(client: Raw, before: Message) -> int:
    requests = stats(client)["requests"]
    return sum(requests.get(op, 0) - before.get(op, 0) for op in ("GET", "SCAN"))


def test_nothing_is_refused_within_the_bytes(
    server: ServerInProcess, client: Raw, connect: Connect
) -> None:
    client.ok(op="PUT", key="k", value=b"x" * (MIB - 100))
    reader = deaf(connect, server.endpoint)
    for _ in range(3):
        for number in range(LIMIT_BYTES // MIB):
            reader.send(pack({"op": "GET", "key": "k", "id": number}))
        replies = [unpack(reader.receive()) for _ in range(LIMIT_BYTES // MIB)]
        assert all(reply["ok"] for reply in replies)


# --- Writes


def test_a_refused_write_is_done_once_when_it_is_repeated(
    server: ServerInProcess, client: Raw, connect: Connect
) -> None:
    reader = deaf(connect, server.endpoint)
    asked, write = 0, {"op": "INCR", "key": "n", "session": "s", "id": "write"}
    for seq in itertools.count(1):  # Meanwhile the system may have taken some of what waited.
        asked = overload(reader, client, asked)
        reader.send(pack(write | {"seq": seq}))
        eventually(lambda: stats(client)["requests"].get("INCR") == seq, "it is answered")  # noqa: B023
        if stats(client)["failures_by_op"].get("INCR"):
            break
    replies = [unpack(reader.receive()) for _ in range(asked + seq)]
    (refused,) = (reply for reply in replies if reply["id"] == "write" and not reply["ok"])
    assert (refused["code"], refused["applied"]) == ("BUSY", False)
    repeats = []
    for _ in range(2):
        reader.send(pack(write | {"seq": seq}))
        repeats.append(unpack(reader.receive()))
    assert [(reply["value"], reply.get("replayed")) for reply in repeats] == [
        (seq, None), (seq, True),
    ]  # fmt: skip


def test_what_is_malformed_is_told_so(
    server: ServerInProcess, client: Raw, connect: Connect
) -> None:
    reader = deaf(connect, server.endpoint)
    asked = overload(reader, client)
    for body in (pack({"op": "NONE"}), b"\xc1"):
        reader.send(body)
    reader.send_frames([b"", b"", b""])
    codes = Counter(unpack(reader.receive()).get("code", "ok") for _ in range(asked + 3))
    assert (codes["UNKNOWN_OP"], codes["BAD_REQUEST"]) == (1, 2)


@pytest.mark.skipif(not compiled.COMPILED, reason="in Python such a reply is packed when it leaves")
def test_replies_that_wait_for_the_disk_count(
    tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkv.durability.wal.QUICK_SYNC_SECONDS", 0.0)
    disk = HeldFiles()
    with ServerInProcess(tmp_path / "data", disk) as server:
        client, reader = connect(server.endpoint), deaf(connect, server.endpoint)
        disk.hold.set()
        reader.send(pack({"op": "PUT", "key": "k", "value": b"x" * MIB, "id": "write"}))
        assert disk.held.wait(LIMIT)
        for number in range(100):
            reader.send(pack({"op": "GET", "key": "k", "id": number}))
        refused = unpack(reader.receive())
        assert refused["code"] == "BUSY"
        assert client.call(op="GET", key="other")["code"] == "NOT_FOUND"
        disk.release.set()
        replies = [refused, *(unpack(reader.receive()) for _ in range(100))]
        served = sum(reply["ok"] for reply in replies) - 1  # And the write.
        assert LIMIT_BYTES // MIB <= served <= LIMIT_BYTES // MIB + 5
        reader.send(pack({"op": "GET", "key": "k"}))
        assert unpack(reader.receive())["ok"]


# --- Counting


class Tracker:
    done = False


def test_connections_that_have_gone_are_forgotten() -> None:
    counts = PythonInFlight(100)
    trackers = [Tracker() for _ in range(1_500)]
    for number, tracker in enumerate(trackers):
        for _ in range(2):
            counts.count([b"%d" % number], tracker, 51)  # type: ignore[arg-type]
        tracker.done = number % 3 > 0
    assert len(counts._waiting) < 1_500
    assert [counts.is_over(b"%d" % number, 100) for number in range(6)] == [True, False, False] * 2


class Owner(ctypes.Structure):
    """See zkv/broker/in_flight.h."""

    _fields_ = [
        ("kind", ctypes.c_char), ("name", ctypes.c_char_p), ("size", ctypes.c_size_t),
        ("limit", ctypes.c_size_t),
    ]  # fmt: skip


def owner(name: bytes, limit: int = 0, kind: bytes = b"c") -> Owner:
    return Owner(kind, name, len(name), limit)


@pytest.fixture(scope="module")
def library() -> Any:
    if not compiled.COMPILED:
        pytest.skip("zkv was installed without a C compiler")
    from zkv.broker import _frames

    found = ctypes.CDLL(str(_frames.__file__))
    found.in_flight_new.restype = found.in_flight_count.restype = ctypes.c_void_p
    found.in_flight_count.argtypes = (
        ctypes.c_void_p, ctypes.POINTER(Owner), ctypes.c_size_t, ctypes.c_size_t,
    )  # fmt: skip
    found.in_flight_is_over.argtypes = ctypes.c_void_p, ctypes.POINTER(Owner)
    for name in ("uncount", "drop", "any_over"):
        getattr(found, f"in_flight_{name}").argtypes = (ctypes.c_void_p,)
    return found


NAMES = [b"%d" % number for number in range(1_500)]  # Several of them in each chain.
STEP = st.tuples(
    st.lists(st.sampled_from(NAMES[:5] + NAMES[-5:]), min_size=1, max_size=2, unique=True),
    st.integers(0, 100),
    st.integers(0, 100),
)


@settings(max_examples=30)
@given(steps=st.lists(STEP), seed=st.integers(0, 1_000))
def test_counts_are_like_those_of_a_dict(library: Any, steps: list[Any], seed: int) -> None:
    counts = library.in_flight_new()
    waiting: Counter[bytes] = Counter()
    replies: Counter[bytes] = Counter()
    limits: dict[bytes, int] = {}
    count = library.in_flight_count
    receipts = [(count(counts, owner(name, 5), 1, 1), [name], 1) for name in NAMES]
    waiting.update(NAMES)
    replies.update(NAMES)
    limits |= dict.fromkeys(NAMES, 5)

    def check(names: list[bytes]) -> None:
        over = [name for name in waiting if replies[name] > 1 and waiting[name] > limits[name]]
        assert library.in_flight_any_over(counts) == bool(over)
        for name in names:
            assert library.in_flight_is_over(counts, owner(name)) == (name in over)
            assert not library.in_flight_is_over(counts, owner(name, kind=b"u"))

    for names, size, limit in steps:
        owners = (Owner * 2)(*[owner(name, limit) for name in names])
        receipts.append((count(counts, owners, len(names), size), names, size))
        waiting.update(dict.fromkeys(names, size))
        replies.update(names)
        limits |= dict.fromkeys(names, limit)
        check(names)
    random.Random(seed).shuffle(receipts)
    library.in_flight_drop(counts)
    last = count(counts, owner(b"last", 1), 1, 1)  # So that all can be checked.
    for number, (receipt, names, size) in enumerate(receipts):
        library.in_flight_uncount(receipt)
        waiting.subtract(dict.fromkeys(names, size))
        replies.subtract(names)
        if number % 100 == 0 or len(receipts) - number < 20:
            check(names)
    library.in_flight_uncount(last)
