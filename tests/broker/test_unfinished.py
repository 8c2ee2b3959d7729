"""Messages without an end: who sends one is cut off, and nobody else is."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import zmq

from tests.broker.curve import CurveWire
from tests.broker.mailboxes import WAYS
from tests.broker.zmtp import MORE, Wire, frame, properties, request
from tests.support import FREE_PORT, Raw, ServerInProcess, ServerProcess, eventually, pack
from zkv.broker.arrivals import PLACES, SOME_MORE, Arrivals
from zkv.broker.feed import Feed
from zkv.keys import make_key_file, read_key_file

MEGABYTE: Final = 1 << 20
LARGEST: Final = 4 * MEGABYTE
"""`max_message_bytes` here."""
LARGE: Final = 3 * MEGABYTE
LIMITS: Final = {"max_message_bytes": LARGEST, "max_value_bytes": LARGE + 10}


@pytest.fixture(params=WAYS)
def server(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ServerInProcess]:
    """A server with each of the two mailboxes."""
    if WAYS[request.param] is None:
        pytest.skip("zkv was installed without a C compiler")
    for module in ("front", "broker"):
        monkeypatch.setattr(f"zkv.broker.{module}.FRAMES", WAYS[request.param])
    with ServerInProcess(tmp_path / "data", server={"feed": FREE_PORT}, limits=LIMITS) as running:
        yield running


def cut(server: ServerInProcess | ServerProcess) -> int:
    """The number of connections that were cut off for what they sent."""
    with Raw(server.endpoint) as client:
        return int(client.ok(op="INFO")["stats"]["connections_cut"]["message"])


def await_cut(server: ServerInProcess | ServerProcess) -> None:
    """Wait until one was cut off: it is counted a moment after the connection has gone."""
    eventually(lambda: cut(server) == 1, "one that was cut off")


def cut_by_feed(server: ServerInProcess) -> int:
    """The number of followers that the feed has cut off."""
    with Raw(server.endpoint) as client:
        return int(client.ok(op="INFO")["stats"]["feed"]["cut_off"])


def flood(wire: Wire, data: bytes, size: int) -> None:
    """Send ``data`` over and over, up to ``size`` bytes, until the server hangs up.

    Raises TimeoutError if it does not.
    """
    with contextlib.suppress(ConnectionError):
        for _ in range(size // len(data)):
            wire.socket.sendall(data)
        while wire.socket.recv(65_536):
            pass


PARTS = {
    "large parts": frame(bytes(LARGEST // 2), MORE),
    "parts of 1,000 bytes": frame(bytes(1_000), MORE) * 1_000,
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_it_is_cut_off(server: ServerInProcess, parts: bytes) -> None:
    """Also if the peer has sent proper requests before, and others go on meanwhile."""
    with Wire(server.endpoint).introduce() as wire, Raw(server.endpoint) as other:
        assert wire.call(op="PUT", key="k", value=1)["ok"]
        flood(wire, parts, 1_000 * MEGABYTE)
        assert other.ok(op="GET", key="k")["value"] == 1
    await_cut(server)


def test_it_is_cut_off_while_others_keep_the_server_busy(server: ServerInProcess) -> None:
    """Here some message is always waiting."""
    done = threading.Event()

    def load() -> None:
        with Raw(server.endpoint, zmq.DEALER) as client:
            for _ in range(300):
                client.send(pack({"op": "GET", "key": "k"}))
            while not done.is_set():
                client.receive()
                client.send(pack({"op": "GET", "key": "k"}))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with Wire(server.endpoint).introduce() as wire:
            flood(wire, PARTS["large parts"], 1_000 * MEGABYTE)
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_a_slow_one_is_cut_off(server: ServerInProcess) -> None:
    """However long it takes: what counts are bytes."""
    part = frame(bytes(10_000), MORE)
    with (
        Wire(server.endpoint).introduce() as wire,
        Raw(server.endpoint) as other,
        contextlib.suppress(ConnectionError),
    ):
        while True:  # Until it is cut off.
            wire.socket.sendall(part)
            other.ok(op="PING")
    await_cut(server)


def test_a_peer_with_curve_is_cut_off(tmp_path: Path) -> None:
    public = make_key_file(tmp_path / "server.key")
    make_key_file(tmp_path / "ann.key")
    pair = read_key_file(tmp_path / "ann.key")
    security = {"secret_key_file": str(tmp_path / "server.key")}
    metadata = properties((b"Socket-Type", b"DEALER"))
    with (
        ServerInProcess(tmp_path / "data", security=security, limits=LIMITS) as server,
        CurveWire(server.endpoint, public, pair, metadata) as wire,
    ):
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                wire.send_frame(bytes(MEGABYTE), MORE)
        wire.wait_for_end()


# --- Whom this must not hit -------------------------------------------------------------------


def largest() -> bytes:
    """A request that is as large as one may be."""
    return request(op="PUT", key="large", value=bytes(LARGE))


def test_a_slow_upload(server: ServerInProcess) -> None:
    """The server suspects it at each of its pieces, and asks for others' messages meanwhile."""
    message = largest()
    with Wire(server.endpoint).introduce() as wire, Raw(server.endpoint) as other:
        for _ in range(3):
            for start in range(0, len(message), 50_000):
                wire.socket.sendall(message[start : start + 50_000])
                other.ok(op="PUT", key="k", value=start)
            assert wire.reply()["ok"]
        assert other.ok(op="GET", key="large")["value"] == bytes(LARGE)
    assert cut(server) == 0


def test_many_large_requests_at_once(server: ServerInProcess) -> None:
    message, count = largest(), 15
    with Wire(server.endpoint).introduce() as wire:
        sending = threading.Thread(target=lambda: wire.socket.sendall(message * count))
        sending.start()
        for _ in range(count):
            assert wire.reply()["ok"]
        sending.join()
    assert cut(server) == 0


def test_requests_that_wait_because_the_server_is_held_up(server: ServerInProcess) -> None:
    """All of them together are larger than the bound."""
    count = 12
    lock = server.server._engine.keyspace.lock
    with Wire(server.endpoint).introduce() as wire:
        with lock:
            wire.socket.sendall(request(op="PUT", key="k", value=1))  # The front waits for it.
            sending = threading.Thread(target=lambda: wire.socket.sendall(largest() * count))
            sending.start()
            sending.join(0.5)  # As far as the server reads meanwhile.
        for _ in range(count + 1):
            assert wire.reply()["ok"]
        sending.join()
    assert cut(server) == 0


# --- Followers --------------------------------------------------------------------------------

NEWS = {
    "a subscription": frame(b"\x01" + bytes(1_000)) * 100,
    "the end of one": frame(b"\x00" + bytes(1_000)) * 100,
    "nonsense": frame(b"\x07" + bytes(1_000)) * 100,
    "a message without an end": frame(bytes(1_000), MORE) * 100,
}


@pytest.mark.parametrize("news", NEWS.values(), ids=NEWS)
def test_a_follower_that_sends_without_end(server: ServerInProcess, news: bytes) -> None:
    with Wire(server.server.feed).introduce(b"SUB") as wire:
        flood(wire, news, 1_000 * MEGABYTE)
    # What it says may be too much for the feed, before it is too much for the watch.
    assert cut(server) + cut_by_feed(server) == 1


def test_a_follower_that_sends_faster_than_the_feed_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its messages end, and the feed itself permits so many here: the watch alone can tell."""
    welcome = Feed._welcome

    def slowly(feed: Feed) -> None:
        time.sleep(0.01)  # However busy the machine is: the follower is quicker than that.
        welcome(feed)

    monkeypatch.setattr(Feed, "_welcome", slowly)
    with ServerInProcess(
        tmp_path / "data", server={"feed": FREE_PORT}, limits={"max_topics": 1_000_000}
    ) as server:
        with Wire(server.server.feed).introduce(b"SUB") as wire:
            flood(wire, NEWS["a subscription"], 1_000 * MEGABYTE)
        await_cut(server)
        assert cut_by_feed(server) == 0


def test_a_follower_with_many_topics(server: ServerInProcess) -> None:
    """It may take them all back at once."""
    with Raw(server.endpoint) as client, Wire(server.server.feed).introduce(b"SUB") as wire:
        for kind in (b"\x01", b"\x00"):
            topics = (b"%d" % number + b"t" * 1_000 for number in range(1_000))
            wire.socket.sendall(b"".join(frame(kind + topic) for topic in topics))
        wire.socket.sendall(frame(b"\x01k") + frame(b"\x01\x00"))  # And heartbeats.
        client.ok(op="PUT", key="k", value=1)
        while wire.next_frame()[1] != b"k":
            client.ok(op="PUT", key="k", value=1)
    assert cut(server) == 0


# --- Notes ------------------------------------------------------------------------------------


def test_a_question_is_answered_when_enough_was_received() -> None:
    arrivals = Arrivals()
    question = arrivals.ask(5)
    arrivals.heard(question, SOME_MORE + 5, nothing_left=False)
    assert not arrivals.has_answered(question)
    arrivals.heard(question, 1, nothing_left=False)
    assert arrivals.has_answered(question)
    later = arrivals.ask(5)
    arrivals.heard(question, 0, nothing_left=True)
    assert not arrivals.has_answered(later)


def test_two_descriptors_at_one_place_count_as_senders_together() -> None:
    arrivals = Arrivals()
    arrivals.senders[5] = 1
    assert arrivals.has_sent(5)
    assert arrivals.has_sent(5 + PLACES)
    arrivals.forget(5)
    assert not arrivals.has_sent(5)


# --- Memory -----------------------------------------------------------------------------------


def peak(server: ServerProcess, reset: bool = False) -> int:
    """The most bytes of memory that a server has taken, since the last reset."""
    place = Path(f"/proc/{server.process.pid}")
    if reset:
        (place / "clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+) kB", (place / "status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_it_takes_no_memory(tmp_path: Path) -> None:
    """Beyond one message of the largest size, which a client may send."""
    with ServerProcess(tmp_path) as server:
        before = peak(server, reset=True)
        with Wire(server.endpoint).introduce() as wire:
            flood(wire, frame(bytes(MEGABYTE), MORE), 2_000 * MEGABYTE)
        assert peak(server) - before < (64 + 64) * MEGABYTE
        await_cut(server)
        text = "the connection of 127.0.0.1 was cut off: the peer sent more than 68,157,440 bytes"
        eventually(lambda: text in server.log(), "it is logged")
        assert "Traceback" not in server.log()
