"""Peers that have not authenticated yet: what they cost, and what they cannot do."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self

import pytest
import zmq

from tests.broker.curve import CurveWire
from tests.broker.zmtp import (
    COMMAND,
    LONG,
    MORE,
    SIGNATURE,
    Proxy,
    Wire,
    begun,
    command,
    frame,
    greeting,
    properties,
    ready,
    request,
)
from tests.support import (
    FREE_PORT,
    LIMIT,
    Message,
    NoReplyError,
    Raw,
    ServerInProcess,
    ServerProcess,
    curve_options,
    eventually,
    pack,
)
from zkv.broker.handshakes import HandshakeWatch
from zkv.broker.peers import Descriptors, Peer
from zkv.keys import KeyPair, make_key_file, read_key_file

Context = zmq.Context[zmq.Socket[bytes]]
Options = dict[int, int | bytes]

MEGABYTE: Final = 1 << 20
HUGE: Final = 60 * MEGABYTE
"""Bytes; within `max_message_bytes`."""
GREETING_BYTES, HELLO_BYTES = 64, 202
HALF_OPEN: Final = 1_000
PEERS: Final = 10


class Place:
    """A server with a witness in its store, and how clients connect. Use as a context manager.

    Args:
        directory: for its files.
        has_curve: whether it has CURVE, and users: ann, who may do everything, and bob, who may do
            nothing. The system user of the tests is bob, too. Eve is nobody.
    """

    def __init__(self, directory: Path, has_curve: bool) -> None:
        self.has_curve = has_curve
        self.pairs: dict[str, KeyPair] = {}
        self.public = ""
        self.ipc = f"ipc://{directory}/s"
        self.feed = ""
        config = ""
        if has_curve:
            self.public = make_key_file(directory / "server.key")
            for name in ("ann", "bob", "eve"):
                make_key_file(directory / f"{name}.key")
                self.pairs[name] = read_key_file(directory / f"{name}.key")
            ann, bob = self.pairs["ann"].public, self.pairs["bob"].public
            (directory / "users.toml").write_text(
                f'[users.ann]\nkeys = ["{ann}"]\nwrite = [""]\nadmin = true\n'
                f'[users.bob]\nkeys = ["{bob}"]\nuids = [{os.getuid()}]\n'
            )
            config = f"""[security]
            secret_key_file = "{directory}/server.key"
            users = "{directory}/users.toml"
            """
        endpoints = ("--endpoint", FREE_PORT, "--endpoint", self.ipc)
        self.server = ServerProcess(directory / "server", *endpoints, config=config)

    def __enter__(self) -> Self:
        self.server.__enter__()
        with self.client() as client:
            client.ok(op="PUT", key="witness", value="here")
            self.feed = client.ok(op="INFO")["feed"]
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__()

    @property
    def mechanism(self) -> bytes:
        """What a greeting has to ask for."""
        return b"CURVE" if self.has_curve else b"NULL"

    @property
    def first_command(self) -> bytes:
        """What a client sends after its greeting."""
        return b"HELLO" if self.has_curve else b"READY"

    def options(self, name: str = "ann", server_key: str = "") -> Options:
        """The options of a user's socket."""
        if not self.has_curve:
            return {}
        return curve_options(server_key or self.public, self.pairs[name])

    def client(self, endpoint: str = "", kind: int = zmq.REQ) -> Raw:
        """A client that may do everything."""
        return Raw(endpoint or self.server.endpoint, kind, options=self.options())

    def wire(self) -> Wire:
        """A connection on which nothing has been said."""
        return Wire(self.server.endpoint)

    def must_serve(self) -> None:
        """A client that connects now is served."""
        with self.client() as client:
            assert client.ok(op="GET", key="witness")["value"] == "here"

    def must_refuse(self, options: Options) -> None:
        """A client with these options does not get in."""
        with Raw(self.server.endpoint, zmq.DEALER, options=options) as client:
            monitor = client.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            client.send(pack({"op": "PING"}))
            assert monitor.poll(round(LIMIT * 1000)), "it is not refused"
            client.socket.disable_monitor()
            monitor.close()
            client.timeout = 0
            with pytest.raises(NoReplyError):
                client.receive()

    def failed(self) -> dict[str, int]:
        """The number of failed handshakes by reason."""
        with self.client() as client:
            counts: dict[str, int] = client.ok(op="INFO")["stats"]["handshakes_failed"]
            return counts

    def descriptors(self) -> int:
        """The number of open files of the server."""
        return len(os.listdir(f"/proc/{self.server.process.pid}/fd"))

    def take_handshake(self) -> bytes:
        """What a DEALER sends in its handshake."""
        with (
            Proxy(self.server.endpoint) as proxy,
            zmq.Context() as context,
            context.socket(zmq.DEALER) as client,
        ):
            client.linger = 0
            for option, value in self.options().items():
                client.setsockopt(option, value)
            monitor = client.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            client.connect(proxy.endpoint)
            assert monitor.poll(round(LIMIT * 1000)), "the handshake is not done"
            client.disable_monitor()
            monitor.close()
            return proxy.sent[0]


@contextlib.contextmanager
def unharmed(place: Place) -> Iterator[Place]:
    """A server that still serves at the end, and has met no bug."""
    with place:
        yield place
        place.must_serve()
        complaints = re.findall(r".* (?:ERROR|CRITICAL) .*|Traceback.*", place.server.log())
        assert not complaints, complaints[:20]
        assert place.server.stop() == 0


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server without CURVE and users."""
    with unharmed(Place(tmp_path_factory.mktemp("plain"), has_curve=False)) as place:
        yield place


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server with CURVE and users."""
    with unharmed(Place(tmp_path_factory.mktemp("secured"), has_curve=True)) as place:
        yield place


@pytest.fixture(params=["plain", "secured"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each of the two."""
    found: Place = request.getfixturevalue(request.param)
    return found


def in_threads(number: int, work: Callable[[], None]) -> None:
    """Run some work several times at once. Raises the first error of any."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# --- What they cost ---------------------------------------------------------------------------


def test_a_thousand_half_open_connections(place: Place) -> None:
    """They keep nobody from being served, and are ended by the server, which has all back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 2_500, "too few file descriptors for this test: ulimit -Hn"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2_500), hard))
    introduction = greeting(place.mechanism)
    beginnings = [b"", SIGNATURE, introduction, introduction + begun(place.first_command, 100)]
    place.must_serve()
    before, timed_out = place.descriptors(), place.failed()["timeout"]
    with contextlib.ExitStack() as stack:
        wires = []
        for number in range(HALF_OPEN):
            endpoint = {1: place.ipc, 2: place.feed}.get(number % 9, place.server.endpoint)
            wires.append(stack.enter_context(Wire(endpoint)))
            if endpoint != place.ipc:  # Which has never CURVE.
                wires[-1].send(beginnings[number % len(beginnings)])
            if number % 100 == 0:
                place.must_serve()
        place.must_serve()
        for wire in wires:
            wire.wait_for_end()
    eventually(lambda: place.descriptors() <= before, "the descriptors come back")
    timed_out += HALF_OPEN
    eventually(lambda: place.failed()["timeout"] == timed_out, "all are counted")


def send_huge(wire: Wire, beginning: bytes) -> None:
    """Send most of a command that claims to be huge; return once the server has hung up."""
    with contextlib.suppress(ConnectionError):
        wire.socket.sendall(beginning)
        for _ in range(HUGE // MEGABYTE - 1):
            wire.socket.sendall(bytes(MEGABYTE))
    wire.wait_for_end()


@contextlib.contextmanager
def cut_off(place: Place, count: int) -> Iterator[None]:
    """So many peers are cut off for what they send."""
    expected = place.failed()["size"] + count
    yield
    eventually(lambda: place.failed()["size"] >= expected, "all are counted")
    assert place.failed()["size"] == expected


def test_huge_commands_take_no_memory(place: Place) -> None:
    """Whichever command of the handshake has no end: its connection is cut off."""
    firsts = [b""]
    if place.has_curve:
        # With a good HELLO, even if it is another's, a peer comes as far as INITIATE.
        firsts.append(place.take_handshake()[GREETING_BYTES:][:HELLO_BYTES])
    for first in firsts:
        name = b"INITIATE" if first else place.first_command

        def attack(first: bytes = first, name: bytes = name) -> None:
            with place.wire() as wire:
                wire.greet(place.mechanism)
                wire.socket.sendall(first)
                if first:
                    assert wire.next_frame()[1].startswith(b"\x07WELCOME")
                send_huge(wire, begun(name, HUGE))

        before = reset_peak(place)
        with cut_off(place, PEERS):
            in_threads(PEERS, attack)
        assert peak(place) - before < PEERS * HUGE / 4


def reset_peak(place: Place) -> int:
    """Have the system measure anew how much memory the server takes at most; what it has now."""
    Path(f"/proc/{place.server.process.pid}/clear_refs").write_text("5")
    return peak(place)


def peak(place: Place) -> int:
    """The most bytes of memory that the server has taken since."""
    status = Path(f"/proc/{place.server.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def test_a_peer_that_sends_a_little_too_much(place: Place) -> None:
    """It is cut off, too, even if it sends nothing more that could draw attention to it."""
    with cut_off(place, PEERS):
        for _ in range(PEERS):
            with place.wire() as wire:
                wire.greet(place.mechanism)
                wire.send(begun(place.first_command, HUGE) + bytes(16_000))
                wire.wait_for_end()


def test_others_do_not_help_a_peer(secured: Place) -> None:
    """With CURVE the server tells the handshakes of others from that of the peer."""
    with cut_off(secured, 1), secured.wire() as wire:
        wire.greet(b"CURVE")
        wire.send(begun(b"HELLO", HUGE) + bytes(1_000))
        secured.must_serve()
        send_huge(wire, b"")


def test_a_follower_has_no_long_messages(plain: Place) -> None:
    """The server does not wait for a subscription that claims to be as long as a request."""
    with Wire(plain.feed).introduce(b"SUB") as wire:
        wire.send(bytes([LONG]) + struct.pack(">Q", MEGABYTE) + b"\x01")
        wire.wait_for_end()


def test_a_peer_is_cut_off_by_a_server_without_descriptors(place: Place) -> None:
    """Half-open connections may have taken all that it can have."""
    pid = place.server.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with cut_off(place, 1), place.client() as client, contextlib.ExitStack() as stack:

        def connections() -> int:
            return int(client.ok(op="INFO")["stats"]["connections"])

        eventually(lambda: connections() == 1, "nobody else is there")
        wire = stack.enter_context(place.wire())
        wire.greet(place.mechanism)
        # Later the server would refuse it, as too many files are open.
        eventually(lambda: connections() == 2, "it is accepted")
        used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
        lowest_free = min(set(range(len(used) + 1)) - used)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
        try:
            send_huge(wire, begun(place.first_command, HUGE))
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def test_connections_that_end_at_once(place: Place) -> None:
    """Their descriptors become those of others before the server can look at them."""
    reset = struct.pack("ii", 1, 0)
    endpoints = [place.server.endpoint, place.ipc, place.feed]
    beginnings = [b"", SIGNATURE, greeting(place.mechanism), b"GET / HTTP/1.1\r\n\r\n"]

    def come_and_go() -> None:
        for number in range(600):
            with Wire(endpoints[number % 3]) as wire:
                wire.send(beginnings[number % 4])
                if number % 2:
                    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)

    in_threads(6, come_and_go)
    with place.client() as client:

        def are_counted() -> bool:
            stats = client.ok(op="INFO")["stats"]
            return (stats["connections"], stats["followers"]) == (1, 0)

        eventually(are_counted, "all others have left")


# --- Whom this must not hit -------------------------------------------------------------------


def test_large_requests_right_behind_the_handshake(place: Place) -> None:
    """They are answered, even if they arrive before the server knows that the handshake is done."""
    cut = place.failed()["size"]
    body = b"\xc0" * (10 * MEGABYTE)

    def ask_at_once() -> None:
        for _ in range(5):
            with place.wire() as wire:
                wire.greet()
                wire.socket.sendall(ready() + frame(b"", MORE) + frame(body))
                assert wire.reply()["code"] == "BAD_REQUEST"

    def ask_soon() -> None:
        for _ in range(5):
            with place.client(kind=zmq.DEALER) as client:
                client.send(body)
                assert client.receive()

    in_threads(8, ask_soon if place.has_curve else ask_at_once)
    assert place.failed()["size"] == cut


def test_a_handshake_that_is_done_while_the_server_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it looks between the report of the connection and that of the handshake's success."""
    looks, answered = threading.Event(), threading.Event()
    suspects: list[int] = []
    look = HandshakeWatch.suspects

    def look_late(watch: HandshakeWatch) -> list[int]:
        if watch:
            looks.set()
            assert answered.wait(LIMIT)
        suspects.extend(found := look(watch))
        return found

    monkeypatch.setattr(HandshakeWatch, "suspects", look_late)
    with ServerInProcess(tmp_path / "data") as server, Wire(server.endpoint) as wire:
        try:
            assert looks.wait(LIMIT)
            assert wire.introduce().call(op="PUT", key="k", value=bytes(50_000))["ok"]
        finally:
            answered.set()
        eventually(lambda: suspects, "the server suspects the connection")
        with Raw(server.endpoint) as other:
            eventually(lambda: other.ok(op="INFO")["stats"]["connections"] == 2, "it has gone on")
        assert wire.call(op="PING")["ok"]


def test_a_client_whose_bytes_come_one_by_one(place: Place) -> None:
    with (
        Proxy(place.server.endpoint, piece=1) as proxy,
        place.client(proxy.endpoint) as client,
    ):
        assert client.ok(op="GET", key="witness")["value"] == "here"


def test_a_client_that_is_cut_off_at_every_byte_of_its_handshake(place: Place) -> None:
    """Wherever it breaks off, the next attempt begins anew."""
    size = len(place.take_handshake())
    options = place.options() | {zmq.RECONNECT_IVL: 1}
    with (
        Proxy(place.server.endpoint, lambda number: number if number < size else None) as proxy,
        Raw(proxy.endpoint, zmq.DEALER, options=options) as client,
    ):
        eventually(lambda: len(proxy.sent) > size, "the client has been cut off everywhere")
        assert client.ok(op="GET", key="witness")["value"] == "here"
        assert [len(sent) for sent in proxy.sent[:size]] == list(range(size))


# --- What they cannot do ----------------------------------------------------------------------

MECHANISMS = {
    "none": b"",
    "the one of other servers": None,
    "PLAIN": b"PLAIN",
    "GSSAPI": b"GSSAPI",
    "one that nobody knows": b"NOPE",
    "one in small letters": b"null",
    "one that begins well": b"NULLIFY",
    "one that fills its place": b"\xff" * 20,
}


@pytest.mark.parametrize("mechanism", MECHANISMS.values(), ids=MECHANISMS)
@pytest.mark.parametrize("as_server", [False, True])
def test_claims_of_a_mechanism(place: Place, mechanism: bytes | None, as_server: bool) -> None:
    """Nobody gets in by another mechanism than the server's, whatever comes after the claim."""
    if mechanism is None:
        mechanism = b"NULL" if place.has_curve else b"CURVE"
    plain_hello = command(b"HELLO", b"\x05admin\x06secret")
    for behind in (b"", ready(), plain_hello, ready() + request(op="GET", key="witness")):
        with place.wire() as wire:
            wire.send(greeting(mechanism, as_server))
            wire.send(behind)
            said = wire.wait_for_end()
        assert b"READY" not in said
        assert b"WELCOME" not in said
        assert b"here" not in said
    place.must_serve()


COMMANDS = {
    "PING": command(b"PING", b"\0\0"),
    "PONG": command(b"PONG"),
    "SUBSCRIBE": command(b"SUBSCRIBE"),
    "CANCEL": command(b"CANCEL"),
    "ERROR": command(b"ERROR", b"\x03why"),
    "an ERROR longer than it is": command(b"ERROR", b"\xffwhy"),
    "HELLO": command(b"HELLO", bytes(194)),
    "WELCOME": command(b"WELCOME", bytes(160)),
    "INITIATE": command(b"INITIATE", bytes(300)),
    "MESSAGE": command(b"MESSAGE", bytes(100)),
    "MESSAGE as a frame": frame(b"\x07MESSAGE" + bytes(100)),
    "an unknown one": command(b"NOPE"),
    "one without a name": command(b""),
    "one longer than its frame": frame(b"\xffREADY", COMMAND),
    "an empty one": frame(b"", COMMAND),
    "one with more to come": frame(b"\x04NOPE", COMMAND | MORE),
    "a request": request(op="PUT", key="witness", value="gone"),
    "a frame that claims 2^63 bytes": bytes([LONG]) + struct.pack(">Q", 1 << 63),
    "a command that claims 2^64 - 1 bytes": bytes([COMMAND | LONG]) + b"\xff" * 8,
}


@pytest.mark.parametrize("data", COMMANDS.values(), ids=COMMANDS)
def test_commands_before_the_handshake(place: Place, data: bytes) -> None:
    """None is obeyed, and none of them opens the way for what follows."""
    for behind in (b"", request(op="PUT", key="witness", value="gone")):
        with place.wire() as wire:
            wire.greet(place.mechanism)
            wire.send(data + behind)
            wire.wait_for_end()
    place.must_serve()


def test_a_handshake_that_is_sent_again(secured: Place) -> None:
    """A recorded session lets nobody in, and repeats nothing."""
    with Proxy(secured.server.endpoint) as proxy:
        with secured.client(proxy.endpoint) as client:
            assert client.ok(op="INCR", key="count")["value"] == 1
        (recorded,) = proxy.sent
    commands = recorded[GREETING_BYTES:]
    hello, rest = commands[:HELLO_BYTES], commands[HELLO_BYTES:]
    assert hello[2:].startswith(b"\x05HELLO")
    assert b"\x08INITIATE" in rest[:20]
    for waits in (False, True):
        with secured.wire() as wire:
            wire.send(recorded[:GREETING_BYTES])
            wire.receive(GREETING_BYTES)
            wire.send(hello)
            if waits:
                assert wire.next_frame()[1].startswith(b"\x07WELCOME")
            wire.send(rest)
            assert b"READY" not in wire.wait_for_end()
    for data in (hello * 2, rest, hello[:100] + rest):
        with secured.wire() as wire:
            wire.greet(b"CURVE")
            wire.send(data)
            assert b"READY" not in wire.wait_for_end()
    with secured.client() as client:
        assert client.ok(op="GET", key="count")["value"] == 1


FORGERIES = {
    "a key": lambda place: place.pairs["ann"].public,
    "a system user": lambda _place: "uid:0",
    "no user": lambda _place: "anonymous",
    "nothing": lambda _place: "",
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
@pytest.mark.parametrize("name", [b"User-Id", b"user-id", b"USER-ID"])
def test_a_forged_user(secured: Place, forge: Callable[[Place], str], name: bytes) -> None:
    """What a peer says of itself has no effect on who it is."""
    forged = (name, forge(secured).encode())
    with Wire(secured.ipc).introduce(b"DEALER", forged, forged) as wire:
        must_be_bob(wire.call)
    metadata = properties(forged, (b"Socket-Type", b"DEALER"), forged)
    with CurveWire(
        secured.server.endpoint, secured.public, secured.pairs["bob"], metadata
    ) as curve:
        must_be_bob(curve.call)


def must_be_bob(call: Callable[..., Message]) -> None:
    assert call(op="INFO")["user"] == "bob"
    assert call(op="GET", key="witness")["code"] == "DENIED"
    assert call(op="PUT", key="witness", value="gone")["code"] == "DENIED"


def test_a_forged_key_without_its_secret(secured: Place) -> None:
    """The public key of a user is no secret, so that it is known proves nothing."""
    ann, eve = secured.pairs["ann"], secured.pairs["eve"]
    metadata = properties((b"Socket-Type", b"DEALER"))
    with pytest.raises(ConnectionError):
        CurveWire(
            secured.server.endpoint, secured.public, KeyPair(ann.public, eve.secret), metadata
        )


def test_a_forged_descriptor(secured: Place) -> None:
    """A follower that goes too far is cut off itself, although it names another connection."""
    metadata = properties((b"__fd", b"0"), (b"Socket-Type", b"SUB"), (b"__fd", b"0"))
    with CurveWire(secured.feed, secured.public, secured.pairs["bob"], metadata) as wire:
        wire.send_frame(b"\x01" + b"x" * 2_000)
        wire.wait_for_end()


DEALER: Final = properties((b"Socket-Type", b"DEALER"))
PROPERTIES = {
    "none": b"",
    "no socket type": properties((b"Identity", b"me")),
    "an unknown socket type": properties((b"Socket-Type", b"NOPE")),
    "a socket type that does not fit": properties((b"Socket-Type", b"PUB")),
    "two socket types": DEALER + properties((b"Socket-Type", b"REQ")),
    "an endless socket type": properties((b"Socket-Type", b"DEALER" * 1_000)),
    "an empty name": DEALER + properties((b"", b"x")),
    "a long name": DEALER + properties((b"n" * 255, b"x")),
    "a name that is no text": DEALER + properties((b"\xff\0\n", b"x")),
    "a name longer than what follows": DEALER + b"\xffx",
    "a value of 3,000 bytes": DEALER + properties((b"X", bytes(3_000))),
    "a value of 100,000 bytes": DEALER + properties((b"X", bytes(100_000))),
    "a value longer than what follows": DEALER + b"\x01X\0\0\0\x09",
    "a value of 2^31 bytes": DEALER + b"\x01X\x80\0\0\0x",
    "a value of 2^32 - 1 bytes": DEALER + b"\x01X\xff\xff\xff\xffx",
    "a value without its length": DEALER + b"\x01X\0\0",
    "a thousand properties": DEALER + properties(*[(b"%d" % each, b"") for each in range(1_000)]),
    "an identity of 255 bytes": DEALER + properties((b"Identity", b"i" * 255)),
    "an identity of 256 bytes": DEALER + properties((b"Identity", b"i" * 256)),
    "an identity of 3,000 bytes": DEALER + properties((b"Identity", b"i" * 3_000)),
    "an identity that looks like ours": DEALER + properties((b"Identity", b"\0\0\0\0\1")),
    "two identities": DEALER + properties((b"Identity", b"a"), (b"Identity", b"b")),
    "another address": DEALER + properties((b"Peer-Address", b"\n\x1b[31m")),
}


@pytest.mark.parametrize("metadata", PROPERTIES.values(), ids=PROPERTIES)
def test_odd_properties(place: Place, metadata: bytes) -> None:
    """They are refused or ignored, with whatever is asked behind them; others are served."""
    with contextlib.suppress(ConnectionError):  # If refused.
        if place.has_curve:
            with CurveWire(
                place.server.endpoint, place.public, place.pairs["ann"], metadata
            ) as curve:
                curve.call(op="PING")
        else:
            with place.wire() as wire:
                wire.greet()
                wire.socket.sendall(command(b"READY", metadata) + request(op="PING"))
                with contextlib.suppress(OSError):  # It may have been refused by now.
                    wire.socket.shutdown(socket.SHUT_WR)
                wire.wait_for_end()
    place.must_serve()


# ZMTP 2.0 and 1.0, by https://rfc.zeromq.org/spec/15/ and https://rfc.zeromq.org/spec/13/: the
# greeting of a DEALER, and a request.
BODY: Final = pack({"op": "GET", "key": "witness"})
OLD = {
    "2.0": (SIGNATURE + b"\x01\x05" + b"\0\0", b"\x01\0" + b"\0" + bytes([len(BODY)]) + BODY),
    "1.0": (b"\x01\0", b"\x01\x01" + bytes([len(BODY) + 1]) + b"\0" + BODY),
}


@pytest.mark.parametrize(("introduction", "asking"), OLD.values(), ids=OLD)
def test_old_versions(plain: Place, introduction: bytes, asking: bytes) -> None:
    """They have no handshake, which could last too long, or end with the connection."""
    with plain.wire() as old, plain.wire() as half_open:
        old.socket.sendall(introduction + asking)
        must_answer(old)
        half_open.wait_for_end()
        old.socket.sendall(asking)
        must_answer(old)
        left = plain.failed()["other"]
    with plain.wire() as leaver:
        leaver.send(SIGNATURE)
    eventually(lambda: plain.failed()["other"] > left, "the last one is counted")
    assert plain.failed()["other"] == left + 1


def must_answer(wire: Wire) -> None:
    said = b""
    while b"here" not in said:
        said += wire.receive(1)


@pytest.mark.parametrize(("introduction", "asking"), OLD.values(), ids=OLD)
def test_old_versions_without_encryption(
    secured: Place, introduction: bytes, asking: bytes
) -> None:
    """Nobody gets in by a version that has no mechanisms."""
    with secured.wire() as wire:
        wire.send(introduction + asking)
        assert b"here" not in wire.wait_for_end()
    secured.must_serve()


# --- What is told of them ---------------------------------------------------------------------


def must_log(place: Place, text: str) -> None:
    eventually(lambda: text in place.server.log(), f"the log has {text!r}")


def test_time_outs_are_logged(place: Place) -> None:
    with place.wire() as by_tcp, Wire(place.ipc) as by_ipc:
        by_tcp.wait_for_end()
        by_ipc.wait_for_end()
    why = "failed: it was not done within 3 s"
    must_log(place, f"WARNING the handshake with 127.0.0.1 {why}")
    must_log(place, f"WARNING the handshake with uid {os.getuid()} of this machine {why}")


def test_refusals_are_logged(secured: Place) -> None:
    """With the reason, and with the public key that no user has, which may be added."""
    eve, failed = secured.pairs["eve"], secured.failed()
    secured.must_refuse(secured.options("eve"))
    must_log(secured, f"127.0.0.1 failed: it was made with a key that no user has: {eve.public}\n")
    secured.must_refuse(secured.options("ann", server_key=eve.public))
    must_log(secured, "could not be decrypted: the peer may have a wrong key of this server\n")
    with secured.wire() as wire:
        wire.send(greeting(b"NULL"))
        wire.wait_for_end()
    must_log(secured, "asked for another mechanism: either the peer or the server has no CURVE\n")
    eventually(lambda: secured.failed()["auth"] > failed["auth"], "it is counted")
    eventually(lambda: secured.failed()["protocol"] > failed["protocol"], "so is the second")
    for pair in secured.pairs.values():
        assert pair.secret not in secured.server.log()


def test_an_unexpected_error_concerns_one_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Later ones are counted and watched as ever."""
    monkeypatch.setattr("zkv.broker.connections.ERROR_PAUSE_SECONDS", 0)
    failing = iter([True])
    find_peer = Descriptors.find_peer

    def fail_once(watch: Descriptors, descriptor: int, endpoint: str) -> Peer | None:
        if next(failing, False):
            raise MemoryError
        return find_peer(watch, descriptor, endpoint)

    monkeypatch.setattr(Descriptors, "find_peer", fail_once)
    with ServerInProcess(tmp_path / "data") as server, Raw(server.endpoint) as client:
        client.ok(op="PING")
        eventually(lambda: "MemoryError" in caplog.text, "the error is logged")
        with Wire(server.endpoint) as wire:
            wire.greet()
            send_huge(wire, begun(b"READY", HUGE))
        eventually(
            lambda: client.ok(op="INFO")["stats"]["handshakes_failed"]["size"] == 1,
            "the second one is cut off",
        )
