"""The feed's bounds: what one follower can make the server keep, and what that does to others."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

import zkv
from tests.broker import followers
from tests.broker.curve import CurveWire
from tests.broker.zmtp import SIGNATURE, Wire, frame, properties
from tests.conftest import Connect
from tests.support import (
    FREE_PORT,
    LIMIT,
    Message,
    Raw,
    ServerInProcess,
    ServerProcess,
    eventually,
    pack,
    unpack,
)
from tests.users.secured import Secured, sees
from zkv.broker.backlog import PAUSE_SECONDS
from zkv.broker.publisher import PUBLISHER, PythonPublisher
from zkv.keyspace import Cursor, PackedCommit

Context = zmq.Context[zmq.Socket[bytes]]

MEGABYTE = 1_000_000


def feed_statistics(client: Raw) -> Message:
    """INFO's figures of the feed."""
    statistics: Message = client.ok(op="INFO")["stats"]["feed"]
    return statistics


def rss(client: Raw) -> int:
    """The memory that the server takes."""
    return int(client.ok(op="INFO")["stats"]["process"]["rss"])


class Follower:
    """A SUB socket that notices when it is cut off. Use as a context manager."""

    def __init__(
        self, context: Context, endpoint: str, *topics: bytes, kind: int = zmq.SUB, **options: int
    ) -> None:
        self.socket: zmq.Socket[bytes] = context.socket(kind)
        self.socket.linger = 0
        self.socket.sndhwm = 0
        self.socket.reconnect_ivl = -1
        for name, value in options.items():
            setattr(self.socket, name, value)
        self._events = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.socket.connect(endpoint)
        for topic in topics:
            self.follow(topic)

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.disable_monitor()
        self._events.close()
        self.socket.close()

    def follow(self, topic: bytes) -> None:
        """Subscribe."""
        if self.socket.type == zmq.SUB:
            self.socket.subscribe(topic)
        else:
            self.socket.send(b"\1" + topic)

    def is_cut_off(self, wait: float = 0) -> bool:
        return bool(self._events.poll(round(wait * 1000)))

    def gets(self, client: Raw, key: str) -> bool:
        """Whether it gets the change of a key."""
        return sees(self.socket, client.ok(op="PUT", key=key, value=0)["rev"])


class Wired(Wire):
    """A follower that speaks the wire protocol itself, and so may send anything."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.introduce(b"SUB")

    def tell(self, *bodies: bytes) -> None:
        self.send(b"".join(map(frame, bodies)))


@pytest.fixture(params=["tcp", "ipc"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerInProcess]:
    """A server in this process whose followers may have 5 topics."""
    feed = FREE_PORT if request.param == "tcp" else f"ipc://{tmp_path}/feed"
    with ServerInProcess(
        tmp_path / "data", server={"feed": feed}, limits={"max_topics": 5}
    ) as node:
        yield node


@pytest.fixture
def client(node: ServerInProcess, connect: Connect) -> Raw:
    return connect(node.endpoint)


@pytest.fixture
def feed(client: Raw) -> str:
    return str(client.ok(op="INFO")["feed"])


# Topics.


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_two_hundred_thousand_topics_take_no_memory(
    tmp_path: Path, context: Context, connect: Connect, transport: str
) -> None:
    """Others are served meanwhile, and have as many as they may."""
    place = FREE_PORT if transport == "tcp" else f"ipc://{tmp_path}/feed"
    with ServerProcess(tmp_path / "server", "--feed", place, config="") as server:
        client = connect(server.endpoint)
        feed = str(client.ok(op="INFO")["feed"])
        most = [b"%d" % number for number in range(999)]
        with Follower(context, feed, *most, b"k") as good:
            eventually(lambda: good.gets(client, "k"), "the good one to follow")
            before = rss(client)
            topics = (b"%x/%d" % (number * 0x9E3779B97F4A7C15, number) for number in range(200_000))
            with Follower(context, feed, *topics, kind=zmq.XSUB) as bad:
                assert bad.is_cut_off(LIMIT)
                assert good.gets(client, "k")
                assert rss(client) - before < 30 * MEGABYTE
            assert not good.is_cut_off()
        assert feed_statistics(client)["cut_off"] == 1
        (line,) = [line for line in server.log().splitlines() if "was cut off" in line]
        assert "limits.max_topics" in line


def test_a_topic_may_be_as_long_as_a_key(
    tmp_path: Path, context: Context, connect: Connect
) -> None:
    limits = {"max_key_bytes": 2_000}
    with ServerInProcess(tmp_path / "data", server={"feed": FREE_PORT}, limits=limits) as node:
        client = connect(node.endpoint)
        feed = str(client.ok(op="INFO")["feed"])
        with (
            Follower(context, feed, b"x" * 2_000) as good,
            Follower(context, feed, b"x" * 2_001) as bad,
        ):
            assert bad.is_cut_off(LIMIT)
            eventually(lambda: good.gets(client, "x" * 2_000), "the good one to follow")


def test_only_topics_at_a_time_count(client: Raw, feed: str, context: Context) -> None:
    """Of those, repetitions do not count, and what was never subscribed to cannot be given back."""
    with Wired(feed) as bad, Follower(context, feed, b"k", b"l") as good:
        bad.tell(b"\1a", b"\1b", b"\1c", b"\1d", b"\0a", b"\0b", *[b"\1c"] * 9, b"\1e", b"\1f")
        bad.tell(b"\1k")
        eventually(lambda: good.gets(client, "k"), "the good one to follow")
        eventually(lambda: client.ok(op="PUT", key="k", value=0) and bad.has_sent(), "the bad")
        assert bad.next_frame() == (1, b"k")
        bad.tell(*[b"\0nothing"] * 9, b"\0l", b"\1g")
        bad.wait_for_end()
        assert good.gets(client, "l")
    eventually(lambda: client.ok(op="INFO")["stats"]["followers"] == 0, "that all have left")
    assert feed_statistics(client)["cut_off"] == 1


def test_a_follower_cannot_end_what_others_follow(client: Raw, feed: str, context: Context) -> None:
    with Follower(context, feed, b"k") as good:
        eventually(lambda: good.gets(client, "k"), "the good one to follow")
        with Wired(feed) as bad:
            bad.tell(b"\1k", b"\1k", b"\0k", b"\0k", b"\0k", b"\1l")
            eventually(lambda: client.ok(op="PUT", key="l", value=0) and bad.has_sent(), "the bad")
            assert good.gets(client, "k")
        eventually(lambda: client.ok(op="INFO")["stats"]["followers"] == 1, "that it has left")
        for _ in range(3):
            assert good.gets(client, "k")


def test_subscriptions_that_change_all_the_time(client: Raw, feed: str, context: Context) -> None:
    with Follower(context, feed, b"k") as good, Wired(feed) as bad:
        eventually(lambda: good.gets(client, "k"), "the good one to follow")
        for number in range(100):
            bad.tell(b"\1%d" % number, b"\0%d" % number)
        bad.wait_for_end()
        assert good.gets(client, "k")
    assert feed_statistics(client)["cut_off"] == 1


def old_follower(endpoint: str, *topics: bytes) -> Wire:
    """A follower that speaks ZMTP 2.0: https://rfc.zeromq.org/spec/15/."""
    wire = Wire(endpoint)
    wire.send(SIGNATURE + b"\x01\x02" + frame(b""))
    wire.receive(14)
    wire.send(b"".join(frame(b"\1" + topic) for topic in topics))
    return wire


def test_old_peers_share_a_bound(client: Raw, feed: str, context: Context) -> None:
    """libzmq does not tell them apart. They are served, and may come again."""
    with Follower(context, feed, b"k") as good:
        eventually(lambda: good.gets(client, "k"), "the good one to follow")
        with old_follower(feed, b"k", b"a", b"b") as old:
            eventually(lambda: good.gets(client, "k") and old.has_sent(), "the old one to follow")
        with old_follower(feed, b"k", b"c", b"d") as old:
            eventually(lambda: good.gets(client, "k") and old.has_sent(), "another one to follow")
            with old_follower(feed, *[b"x%d" % number for number in range(100)]) as bad:
                bad.wait_for_end()
                old.wait_for_end()
        assert good.gets(client, "k")
        with old_follower(feed, b"k") as old:
            eventually(lambda: good.gets(client, "k") and old.has_sent(), "a new one to follow")
            assert not good.is_cut_off()


# Followers that do not read.

LARGE, SMALL = "x" * 65_536, "x"
HISTORY = 64 * 1024 * 1024


def put_all(endpoint: str, values: Iterable[str]) -> int:
    """Write values to a few keys, with some requests in flight; return the last revision."""
    rev, waiting = 0, 0
    options: dict[int, int | bytes] = {zmq.SNDHWM: 0, zmq.RCVHWM: 0}
    with Raw(endpoint, zmq.DEALER, options=options) as pipeline:
        for number, value in enumerate(values):
            pipeline.send(pack({"op": "PUT", "key": f"k{number % 7}", "value": value}))
            waiting += 1
            if waiting == 32:
                rev, waiting = max(rev, unpack(pipeline.receive())["rev"]), waiting - 1
        revs: list[int] = [unpack(pipeline.receive())["rev"] for _ in range(waiting)]
        return max(rev, *revs)


def mixed(size: int) -> Iterator[str]:
    """Large values of so many bytes together, with small ones in between."""
    for _ in range(size // len(LARGE)):
        yield from (LARGE, SMALL, SMALL)


def stalled(context: Context, endpoint: str) -> followers.Follower:
    """A follower that has room for as little as can be."""
    follower = followers.Follower(context, endpoint, options={zmq.RCVHWM: 1, zmq.RCVBUF: 4096})
    return follower.joined()


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
@pytest.mark.parametrize("size", [160, pytest.param(500, marks=pytest.mark.slow)])
def test_a_follower_that_does_not_read_takes_little_memory(
    tmp_path: Path, context: Context, connect: Connect, transport: str, size: int
) -> None:
    """Others are served meanwhile; all have the same in the end, as has a watch and a mirror."""
    place = FREE_PORT if transport == "tcp" else f"ipc://{tmp_path}/feed"
    config = """
        [durability]
        fsync = "never"
        [limits]
        max_value_bytes = 1000000
        max_reply_bytes = 1100000  # What CHANGES returns at once takes memory, too.
        [log]
        requests = false
    """
    with (
        ServerProcess(tmp_path / "server", "--feed", place, config=config) as server,
        zkv.Client(server.endpoint) as kv,
        kv.mirror() as mirror,
        kv.watch() as watch,
    ):
        client = connect(server.endpoint)
        copy = followers.Mirror(client, stalled(context, str(client.ok(op="INFO")["feed"])))
        before = rss(client)
        rounds = rev = 0
        while rounds < 4 or not feed_statistics(client)["dropped"]:
            rev = put_all(server.endpoint, mixed(size * MEGABYTE // 4))
            assert rss(client) - before < HISTORY + 64 * MEGABYTE
            mirror.wait_for(rev, LIMIT)
            assert set(mirror.values()) <= {LARGE, SMALL}
            rounds += 1
            assert rounds < 100, "nothing is dropped"
        eventually(lambda: feed_statistics(client)["rev"] == rev, "that the feed goes on")
        values: dict[str, Any] = {}
        while watch.rev < rev:
            if (change := watch.next(LIMIT)) is not None and change.op == "PUT":
                values[change.key] = change.value
        copy.follow(rev)
        held = followers.stored(client)
        copy.follower.close()
        assert feed_statistics(client)["cut_off"] >= 1
        are_same = values == held == mirror == copy.values
        assert are_same
        assert "has not read" in server.log()


def test_the_feed_goes_on_where_it_was(
    tmp_path: Path, context: Context, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Followers that are slow, but read, miss nothing, though the feed pauses."""
    monkeypatch.setattr("zkv.broker.backlog.MOST_BYTES", 200_000)
    monkeypatch.setattr("zkv.broker.backlog.PAUSE_SECONDS", LIMIT)
    with ServerInProcess(
        tmp_path / "data", server={"feed": FREE_PORT}, durability={"fsync": "never"}
    ) as node:
        client = connect(node.endpoint)
        feed = str(client.ok(op="INFO")["feed"])
        with contextlib.closing(stalled(context, feed)) as follower:
            rev = put_all(node.endpoint, [LARGE] * 300)
            assert feed_statistics(client)["rev"] < rev, "it has not paused"
            assert [change[0] for change in follower.changes(rev)] == list(range(1, rev + 1))
        statistics = feed_statistics(client)
        assert (statistics["dropped"], statistics["skipped"], statistics["cut_off"]) == (0, 0, 0)


@pytest.mark.parametrize("publisher", [PythonPublisher, PUBLISHER])
def test_a_follower_that_reads_now_and_then_does_not_hold_up_others(
    tmp_path: Path,
    context: Context,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    publisher: Any,
) -> None:
    monkeypatch.setattr("zkv.broker.feed.PUBLISHER", publisher)
    monkeypatch.setattr("zkv.broker.backlog.MOST_BYTES", 6 * MEGABYTE)
    with ServerInProcess(
        tmp_path / "data", server={"feed": FREE_PORT}, durability={"fsync": "never"}
    ) as node:
        client = connect(node.endpoint)
        feed = str(client.ok(op="INFO")["feed"])
        with Follower(context, feed, b"") as good, Wired(feed) as slow:
            # So that the server notices each of its reads.
            slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, len(LARGE))
            slow.tell(b"\1")
            eventually(lambda: good.gets(client, "k") and slow.has_sent(), "all to follow")
            begin = last = time.monotonic()
            while not feed_statistics(client)["cut_off"]:
                put_all(node.endpoint, [LARGE] * 10)
                now = time.monotonic()
                assert now < begin + LIMIT, "it is never cut off"
                if now > last + PAUSE_SECONDS / 10:
                    with contextlib.suppress(ConnectionError):  # It may just be cut off.
                        slow.receive(len(LARGE))
                    last = now
            eventually(lambda: good.gets(client, "k"), "the good one to go on")
            assert not good.is_cut_off()
            assert feed_statistics(client)["cut_off"] == 1


# With users.

USERS: dict[str, dict[str, Any]] = {
    "ann": {"read": [""], "write": [""], "admin": ["monitor"]},
    "bob": {"read": ["open/"]},
}


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    """A server whose followers may have 5 topics: ann may follow everything, bob a part."""
    with Secured(tmp_path, USERS, feed=True, limits={"max_topics": 5}) as secured:
        yield secured


def follower_of(secured: Secured, name: str) -> CurveWire:
    """A follower that speaks the wire protocol itself."""
    metadata = properties((b"Socket-Type", b"SUB"))
    return CurveWire(secured.feed, secured.server_key, secured.key(name), metadata)


def test_topics_that_are_not_permitted_count_too(secured: Secured, context: Context) -> None:
    with secured.client(context, "ann") as ann, follower_of(secured, "bob") as bob:
        for topic in (b"open/", b"a", b"b", b"c", b"d", b"d"):
            bob.send_frame(b"\1" + topic)
        eventually(
            lambda: ann.ok(op="PUT", key="open/", value=0) and bob.has_sent(), "bob to follow"
        )
        assert bob.receive_frame() == b"open/"
        bob.send_frame(b"\1e")
        bob.wait_for_end()
        assert feed_statistics(ann)["cut_off"] == 1


def test_rights_change_whatever_a_follower_has_subscribed_to(
    secured: Secured, context: Context
) -> None:
    """The feed's endpoint is opened again, though it was told the same twice."""
    with secured.client(context, "ann") as ann, follower_of(secured, "bob") as bob:
        for _ in range(3):
            bob.send_frame(b"\1open/")
        eventually(
            lambda: ann.ok(op="PUT", key="open/", value=0) and bob.has_sent(), "bob to follow"
        )
        secured.reload(USERS | {"bob": {"read": ["a"]}})
        bob.wait_for_end()
        with contextlib.closing(secured.follower(context, "bob", b"a", b"open/")) as again:
            eventually(lambda: sees(again, ann.ok(op="PUT", key="a", value=0)["rev"]), "it again")
            assert not sees(again, ann.ok(op="PUT", key="open/", value=0)["rev"])


def test_a_message_that_is_no_subscription_gives_nobody_those_of_others(
    secured: Secured, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libzmq would apply a subscription of ann's to bob, if his came in between."""
    keyspace = secured.server.server._engine.keyspace
    read, reading, blocked = keyspace.read, threading.Lock(), threading.Event()

    def read_when_told(cursor: Cursor, most: int) -> list[PackedCommit]:
        if reading.locked():
            blocked.set()
        with reading:
            return read(cursor, most)

    with (
        secured.client(context, "ann") as client,
        follower_of(secured, "ann") as ann,
        follower_of(secured, "bob") as bob,
        follower_of(secured, "bob") as talker,
    ):
        for wire in (ann, bob, talker):
            wire.send_frame(b"\1open/")
            eventually(
                lambda: client.ok(op="PUT", key="open/", value=0) and wire.has_sent(),  # noqa: B023
                "all to follow",
            )
        monkeypatch.setattr(keyspace, "read", read_when_told)
        with reading:
            client.ok(op="PUT", key="k", value=0)
            assert blocked.wait(LIMIT)
            for wire, message in ((talker, b"hello"), (ann, b"\1secret"), (bob, b"\1open/more")):
                wire.send_frame(message)
                for _ in range(3):  # The same thread of libzmq's has taken it by then.
                    client.ok(op="PING")
        talker.wait_for_end()
        for _ in range(10):
            client.ok(op="PUT", key="secret", value=0)
        client.ok(op="PUT", key="open/end", value=0)
        with contextlib.suppress(ConnectionError):
            while (topic := bob.receive_frame()) != b"open/end":
                assert topic != b"secret"
