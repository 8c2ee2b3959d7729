"""The change feed: what followers get, when, and how they come to have the whole store."""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

import pytest
import zmq

from tests.broker.followers import HEARTBEAT, Context, Follower, Mirror, Published, stored
from tests.conftest import Connect
from tests.forking import run_zkv
from tests.support import (
    FREE_PORT,
    LIMIT,
    MAX_IN_FLIGHT,
    Message,
    NoReplyError,
    Raw,
    ServerInProcess,
    ServerProcess,
    eventually,
    pack,
    raw_fields,
    unpack,
)
from zkv.durability.files import Files
from zkv.keyspace import Cursor, PackedCommit

NEVER_MS = 10_000_000
"""A time in ms after which no test waits any more."""


def all_changes(client: Raw, since: int = 0) -> list[tuple[int, str, str, Any]]:
    """Everything that CHANGES tells."""
    changes: list[tuple[int, str, str, Any]] = []
    while True:
        reply = client.ok(op="CHANGES", since=since)
        changes += [(rev, op, key, value) for rev, op, key, value in reply["changes"]]
        since = reply["next"]
        if since >= reply["rev"]:
            return changes


class Disk(Files):
    """Files whose syncs wait, while it is `held`, for a verdict on each of them."""

    def __init__(self) -> None:
        self._held = False
        self._arrived: SimpleQueue[None] = SimpleQueue()
        self._verdicts: SimpleQueue[OSError | None] = SimpleQueue()

    def sync(self, file: BinaryIO) -> None:
        if self._held:
            self._arrived.put(None)
            verdict = self._verdicts.get(timeout=LIMIT)
            if verdict is not None:
                raise verdict
        super().sync(file)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """From here to the end, each sync waits."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            for _ in range(10):
                self.allow()

    def arrived(self) -> None:
        """Wait for a sync to be waiting."""
        self._arrived.get(timeout=LIMIT)

    def allow(self) -> None:
        """Let a sync be done."""
        self._verdicts.put(None)

    def fail(self) -> None:
        """Let a sync fail."""
        self._verdicts.put(OSError(errno.EIO, "Input/output error"))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk that can be held, and none so quick that the front would wait for it."""
    monkeypatch.setattr("zkv.durability.wal.QUICK_SYNC_SECONDS", 0)
    return Disk()


Follow = Callable[..., Follower]
Serve = Callable[..., ServerInProcess]


@pytest.fixture
def follow(context: Context) -> Iterator[Follow]:
    """Makes followers that are closed at the end."""
    followers: list[Follower] = []

    def follow(endpoint: str, *arguments: Any, **keywords: Any) -> Follower:
        followers.append(Follower(context, endpoint, *arguments, **keywords))
        return followers[-1]

    yield follow
    for follower in followers:
        follower.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ServerInProcess]:
    """A server in this process, with a feed."""
    with ServerInProcess(tmp_path / "data", server={"feed": FREE_PORT}) as node:
        yield node


@pytest.fixture
def client(node: ServerInProcess, connect: Connect) -> Raw:
    """A client of `node`."""
    return connect(node.endpoint)


@pytest.fixture
def feed(client: Raw) -> str:
    """Where `node` publishes."""
    return str(client.ok(op="INFO")["feed"])


@pytest.fixture
def only_bursts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers in this process make no heartbeat because of the time."""
    monkeypatch.setattr("zkv.broker.feed.HEARTBEAT_MS", NEVER_MS)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server process of the test's own whose feed stays where it is."""
    feed = f"ipc://{tmp_path}/feed"
    with ServerProcess(tmp_path / "server", "--feed", feed, config="") as process:
        yield process


def feed_of(client: Raw) -> str:
    """Where the server publishes."""
    return str(client.ok(op="INFO")["feed"])


def put_all(endpoint: str, requests: Iterable[Message]) -> None:
    """Send requests, as many at a time as a server takes; all must succeed."""
    with Raw(endpoint, zmq.DEALER) as pipeline:
        in_flight = 0
        for request in requests:
            if in_flight == MAX_IN_FLIGHT:
                assert unpack(pipeline.receive())["ok"] is True
                in_flight -= 1
            pipeline.send(pack(request))
            in_flight += 1
        for _ in range(in_flight):
            assert unpack(pipeline.receive())["ok"] is True


# Messages.


@pytest.mark.parametrize(
    "value",
    [
        pack(None),
        pack("ü"),
        b"\xca\x3f\xc0\x00\x00",
        b"\xcd\x00\x01",
        b"\xd9\x01\xff",
        b"\x82\xa1b\x01\xa1a\x02",
        b"\xd4\x05\xff",
        pack(b"\x00" * 70_000),
    ],
    ids=["nil", "str", "float32", "wide int", "no UTF-8", "map", "ext", "70 kB"],
)
def test_a_message_is_the_key_and_a_map_with_the_value_as_it_was_sent(
    client: Raw, feed: str, follow: Follow, value: bytes
) -> None:
    follower = follow(feed).joined()
    fields = {"op": pack("PUT"), "key": pack("schlüssel"), "value": value}
    client.exchange(b"\x83" + b"".join(pack(name) + raw for name, raw in fields.items()))

    (message,) = follower.until(1)

    assert message.topic == "schlüssel".encode()
    packed = raw_fields(message.body)
    assert packed.pop("value") == value
    assert packed == {
        "rev": pack(1),
        "part": pack(1),
        "parts": pack(1),
        "op": pack("PUT"),
        "key": pack("schlüssel"),
    }


def test_every_op_makes_its_changes(client: Raw, feed: str, follow: Follow) -> None:
    follower = follow(feed).joined()

    client.ok(op="PUT", key="a", value=[1])
    client.ok(op="TOUCH", key="a", ttl=1000)
    client.ok(op="INCR", key="n", by=5)
    client.ok(op="MPUT", items={"b": 1, "c": 2})
    client.ok(op="DELETE", key="a")
    client.ok(op="MDELETE", keys=["c", "nowhere", "b", "c"])
    client.ok(
        op="TXN",
        ops=[
            {"op": "PUT", "key": "x", "value": 1},
            {"op": "GET", "key": "n"},
            {"op": "INCR", "key": "n"},
            {"op": "PUT", "key": "y", "value": None},
            {"op": "TOUCH", "key": "x", "ttl": None},
        ],
    )
    client.ok(op="PUT", key="soon", value=1, ttl=0.001)

    assert follower.changes(9) == [
        (1, "PUT", "a", [1]),
        (2, "TOUCH", "a", [1]),
        (3, "PUT", "n", 5),
        (4, "PUT", "b", 1),
        (4, "PUT", "c", 2),
        (5, "DELETE", "a", None),
        (6, "DELETE", "c", None),
        (6, "DELETE", "b", None),
        (7, "PUT", "x", 1),
        (7, "PUT", "n", 6),
        (7, "PUT", "y", None),
        (7, "TOUCH", "x", 1),
        (8, "PUT", "soon", 1),
        (9, "EXPIRE", "soon", None),
    ]


def test_a_message_tells_its_place_in_its_revision(client: Raw, feed: str, follow: Follow) -> None:
    """Also with a prefix, where not all of them come."""
    follower, some = follow(feed).joined(), follow(feed, "b").joined()

    client.ok(op="MPUT", items={"a": 1, "b": 2, "c": 3})
    client.ok(op="TXN", ops=[{"op": "INCR", "key": "b"}, {"op": "DELETE", "key": "b"}])
    client.ok(op="PUT", key="b", value=1, ttl=0.001)

    def places(follower: Follower) -> list[tuple[int, int, int, str]]:
        messages = [message.fields for message in follower.until(4)]
        return [(each["rev"], each["part"], each["parts"], each["op"]) for each in messages]

    assert places(follower) == [
        (1, 1, 3, "PUT"),
        (1, 2, 3, "PUT"),
        (1, 3, 3, "PUT"),
        (2, 1, 2, "PUT"),
        (2, 2, 2, "DELETE"),
        (3, 1, 1, "PUT"),
        (4, 1, 1, "EXPIRE"),
    ]
    assert places(some) == [
        (1, 2, 3, "PUT"),
        (2, 1, 2, "PUT"),
        (2, 2, 2, "DELETE"),
        (3, 1, 1, "PUT"),
        (4, 1, 1, "EXPIRE"),
    ]


def test_what_changes_nothing_is_not_published(client: Raw, feed: str, follow: Follow) -> None:
    client.ok(op="PUT", key="k", value="text", session="s", seq=1)
    follower = follow(feed).joined()

    client.ok(op="PUT", key="k", value="text", session="s", seq=1)
    client.ok(op="GET", key="k")
    client.ok(op="MDELETE", keys=["nowhere"])
    client.ok(op="MPUT", items={})
    client.ok(op="TXN", ops=[{"op": "GET", "key": "k"}])
    client.ok(op="TXN", ops=[])
    put = {"op": "PUT", "key": "x", "value": 1}
    for refused in (
        {"op": "PUT", "key": "k", "value": 1, "if_rev": 0},
        {"op": "DELETE", "key": "nowhere"},
        {"op": "DELETE", "key": "nowhere", "session": "s", "seq": 2},
        {"op": "INCR", "key": "k"},
        {"op": "TXN", "ops": [put, {"op": "INCR", "key": "k"}]},
        {"op": "TXN", "ops": [put], "if": [["k", 7]]},
    ):
        assert client.call(**refused)["ok"] is False
    client.ok(op="PUT", key="last", value=1)

    assert follower.changes(2) == [(2, "PUT", "last", 1)]


def test_a_prefix_selects_keys(client: Raw, feed: str, follow: Follow) -> None:
    users = follow(feed, "user:").joined()
    accents = follow(feed, "é").joined()
    one = follow(feed, "user:1", heartbeats=False)
    everything = follow(feed).joined()
    keys = ["user:1", "user", "users:1", "é", "user:", "e", "\xc3", "user:12", "éa", "User:1"]

    # The prefix that comes without heartbeats is there once one of its messages is.
    eventually(
        lambda: [client.ok(op="PUT", key="user:1", value=0), one.socket.poll(10)][1],
        "a message for the prefix",
    )
    client.ok(op="MPUT", items=dict.fromkeys(keys, 1))
    rev = client.ok(op="PUT", key="user:1", value="end")["rev"]

    def keys_at(changes: list[tuple[int, str, str, Any]]) -> list[str]:
        return [key for at, _, key, _ in changes if at == rev - 1]

    assert keys_at(everything.changes(rev)) == keys
    assert keys_at(users.changes(rev)) == ["user:1", "user:", "user:12"]
    assert keys_at(accents.changes(rev)) == ["é", "éa"]
    alone: list[Published] = []
    while not alone or alone[-1].fields["value"] != "end":
        alone.append(one.next())
    assert keys_at([message.change for message in alone]) == ["user:1", "user:12"]


def test_changes_come_in_the_order_of_their_revisions_and_each_of_them_once(
    node: ServerInProcess, client: Raw, feed: str, follow: Follow
) -> None:
    """From many clients at once, with commits of one change and of many."""
    writers, writes = 6, 60
    follower = follow(feed).joined()

    def write(number: int) -> None:
        with Raw(node.endpoint) as own:
            for index in range(writes):
                own.ok(op="PUT", key=f"{number}", value=index)
                own.ok(op="MPUT", items={f"{number}:{part}": index for part in range(5)})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    changes = follower.changes(2 * writers * writes)
    for thread in threads:
        thread.join()

    assert [rev for rev, _ in itertools.groupby(changes, lambda change: change[0])] == list(
        range(1, 2 * writers * writes + 1)
    )
    assert changes == all_changes(client)
    assert len(changes) == 6 * writers * writes


def test_a_heartbeat_tells_no_more_than_what_has_been_published(
    node: ServerInProcess, feed: str, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkv.broker.feed.HEARTBEAT_MS", 0)  # One behind each revision.
    follower = follow(feed).joined()
    put_all(node.endpoint, ({"op": "PUT", "key": "k", "value": index} for index in range(500)))

    published = 0
    while published < 500:
        message = follower.next()
        if message.is_heartbeat:
            assert message.fields["rev"] == published
        else:
            published += 1
            assert message.fields["rev"] == published


# Heartbeats.


def test_heartbeats_come_again_and_again_while_nothing_happens(
    client: Raw, feed: str, follow: Follow
) -> None:
    client.ok(op="PUT", key="k", value=1)
    follower = follow(feed).joined()

    for _ in range(3):
        message = follower.next()

        assert message.topic == HEARTBEAT
        assert message.fields == {"rev": 1}


@pytest.mark.usefixtures("only_bursts")
def test_a_heartbeat_follows_every_burst(client: Raw, feed: str, follow: Follow) -> None:
    follower = follow(feed, "nothing but heartbeats").joined()

    for rev in range(1, 6):
        client.ok(op="MPUT", items={"a": rev, "b": rev})

        assert follower.until(rev) == []


@pytest.mark.usefixtures("only_bursts")
def test_a_new_follower_gets_a_heartbeat_at_once(client: Raw, feed: str, follow: Follow) -> None:
    client.ok(op="PUT", key="k", value=1)

    assert follow(feed).joined().rev == 1
    assert follow(feed).joined().rev == 1, "not the first one with this subscription"


def test_heartbeats_come_while_the_feed_never_catches_up(
    node: ServerInProcess, client: Raw, feed: str, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the feed asks for more, there is more."""
    keyspace = node.server._engine.keyspace
    read = keyspace.read
    asking, going = threading.Lock(), True

    def never_all(cursor: Cursor, _most: int) -> list[PackedCommit]:
        with asking:
            if going:
                client.ok(op="PUT", key="k", value=1)
        return read(cursor, 1)

    # First, since a heartbeat that is due in a second may come after thousands of changes.
    monkeypatch.setattr("zkv.broker.feed.HEARTBEAT_MS", 1)
    follower = follow(feed).joined()
    monkeypatch.setattr(keyspace, "read", never_all)
    try:
        with Raw(node.endpoint) as other:
            other.ok(op="PUT", key="begin", value=1)
        while follower.next().is_heartbeat:
            pass
        while not follower.next().is_heartbeat:
            assert follower.rev < 2_000, "not one heartbeat"
    finally:
        with asking:
            going = False


# Late joiners, and the state that a follower comes to have.


def reconnected(client: Raw, follower: Follower) -> Follower:
    """Wait for a follower to be back after a restart, which it was not told of.

    What it has got before may still wait to be read, and a heartbeat does not tell where it is
    from. So something is written until it comes.
    """
    since = client.ok(op="INFO")["rev"]

    def came() -> bool:
        client.ok(op="PUT", key="probe", value=1)
        while follower.socket.poll(10):
            message = follower.next()
            if not message.is_heartbeat and message.fields["rev"] > since:
                return True
        return False

    eventually(came, "that the follower is back")
    return follower


def random_write(chance: random.Random) -> Message:
    """A request that most likely changes something, of keys that begin with a or b."""
    keys = [f"{chance.choice('ab')}{chance.randrange(12)}" for _ in range(4)]
    key, number = keys[0], chance.randrange(1000)
    put = {"op": "PUT", "key": key, "value": number}
    return chance.choice(
        [
            put,
            put | {"ttl": 0.001},
            {"op": "DELETE", "key": key},
            {"op": "INCR", "key": key, "by": number},
            {"op": "TOUCH", "key": key, "ttl": chance.choice([None, 0.001])},
            {"op": "MPUT", "items": dict.fromkeys(keys, number)},
            {"op": "MDELETE", "keys": keys},
            {
                "op": "TXN",
                "ops": [
                    {"op": "PUT", "key": keys[0], "value": number},
                    {"op": "INCR", "key": keys[0]},
                    {"op": "PUT", "key": keys[1], "value": [number]},
                    {"op": "DELETE", "key": keys[1]},
                    {"op": "PUT", "key": keys[2], "value": number, "ttl": 0.001},
                ],
            },
        ]
    )


def settled_rev(client: Raw) -> int:
    """The store's revision once nothing will expire any more."""
    eventually(lambda: client.ok(op="INFO")["stats"]["expiring"] == 0, "that nothing expires")
    return int(client.ok(op="INFO")["rev"])


@pytest.fixture
def chance() -> random.Random:
    """A source of randomness whose seed a failing test shows."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


def test_a_late_joiner_misses_nothing(
    node: ServerInProcess, client: Raw, feed: str, follow: Follow, chance: random.Random
) -> None:
    """It subscribes, reads the store page by page, and goes on with the feed alone."""
    client.ok(op="MPUT", items={f"c{index}": index for index in range(500)})
    joined, seeds = threading.Event(), [chance.randrange(2**32) for _ in range(3)]

    def write(seed: int) -> None:
        own_chance = random.Random(seed)
        with Raw(node.endpoint) as own:
            for _ in range(100):
                own.call(**random_write(own_chance))
            joined.wait(LIMIT)
            for _ in range(100):
                own.call(**random_write(own_chance))

    threads = [threading.Thread(target=write, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    mirror = Mirror(client, follow(feed).joined())
    joined.set()
    for thread in threads:
        thread.join()
    mirror.follow(settled_rev(client))

    assert mirror.values == stored(client)
    assert (mirror.healed, mirror.loaded) == (0, 1), "the feed alone was not enough"


@pytest.mark.parametrize("prefix", ["", "a"])
def test_a_follower_that_comes_and_goes_has_the_same_as_the_server(
    client: Raw, feed: str, follow: Follow, chance: random.Random, prefix: str
) -> None:
    mirror = Mirror(client, follow(feed, prefix).joined(), prefix)
    for _ in range(12):
        for _ in range(chance.randrange(60)):
            client.call(**random_write(chance))
        match chance.choice(["follow", "take some", "leave"]):
            case "follow":
                mirror.follow(client.ok(op="INFO")["rev"])
            case "take some":
                mirror.take(mirror.follower.next())
            case "leave":
                mirror.follower.close()
                for _ in range(chance.randrange(60)):
                    client.call(**random_write(chance))
                mirror.rejoin(follow(feed, prefix).joined())
    mirror.follow(settled_rev(client))

    assert mirror.values == stored(client, prefix)
    assert mirror.loaded == 1


def test_a_follower_that_is_too_far_behind_is_told_and_reads_everything(
    tmp_path: Path, connect: Connect, follow: Follow
) -> None:
    with ServerInProcess(
        tmp_path / "data", server={"feed": FREE_PORT}, limits={"history": 20}
    ) as node:
        client = connect(node.endpoint)
        feed = feed_of(client)
        mirror = Mirror(client, follow(feed).joined())
        client.ok(op="PUT", key="gone", value=1)
        mirror.follow(1)
        mirror.follower.close()
        client.ok(op="DELETE", key="gone")
        for index in range(40):
            client.ok(op="PUT", key=f"k{index % 7}", value=index)
        assert client.call(op="CHANGES", since=1)["code"] == "COMPACTED"

        mirror.rejoin(follow(feed).joined())
        client.ok(op="PUT", key="last", value=1)
        mirror.follow(43)

        assert mirror.loaded == 2
        assert mirror.values == stored(client)


def test_a_commit_larger_than_the_history_is_published_all_the_same(
    tmp_path: Path, connect: Connect, follow: Follow
) -> None:
    with ServerInProcess(
        tmp_path / "data", server={"feed": FREE_PORT}, limits={"history": 5}
    ) as node:
        client = connect(node.endpoint)
        follower = follow(feed_of(client)).joined()
        mirror = Mirror(client, follow(feed_of(client)).joined())
        client.ok(op="PUT", key="before", value=1)
        assert follower.changes(1) == [(1, "PUT", "before", 1)]
        client.ok(op="MPUT", items={f"k{index}": index for index in range(6)})
        assert follower.changes(2) == [(2, "PUT", f"k{index}", index) for index in range(6)]
        client.ok(op="PUT", key="after", value=1)

        assert follower.changes(3) == [(3, "PUT", "after", 1)]
        mirror.follow(3)
        assert mirror.values == stored(client)
        assert mirror.loaded == 1


def stalled(follow: Follow, feed: str) -> Follower:
    """A follower that has room for as little as can be: what it does not take waits elsewhere."""
    return follow(feed, options={zmq.RCVHWM: 1, zmq.RCVBUF: 4096}).joined()


def feed_statistics(client: Raw) -> Message:
    """What INFO says of the feed, once everything is published."""

    def all_published() -> bool:
        info.update(client.ok(op="INFO"))
        return bool(info["stats"]["feed"]["rev"] == info["rev"])

    info: Message = {}
    eventually(all_published, "that everything is published")
    statistics = info["stats"]["feed"]
    assert isinstance(statistics, dict)
    return statistics


def test_a_follower_that_missed_a_part_of_a_commit_asks_for_it(
    server: ServerProcess, connect: Connect, follow: Follow
) -> None:
    client = connect(server.endpoint)
    feed = feed_of(client)
    mirror, rev = Mirror(client, stalled(follow, feed)), 0
    while not feed_statistics(client)["dropped"]:
        assert rev < 50, "nothing is dropped, however much waits"
        rev = client.ok(op="MPUT", items={f"k{n}": rev + 1 for n in range(10_000)})["rev"]

    mirror.follow(rev)

    assert mirror.healed + mirror.loaded > 1, "it has missed nothing"
    # `==` is outside of the assertion, that nobody has to look at the difference.
    is_whole = mirror.values == {f"k{n}": rev for n in range(10_000)}
    assert is_whole


def test_a_follower_that_does_not_read_misses_something_and_harms_nobody(
    server: ServerProcess, connect: Connect, follow: Follow
) -> None:
    """Messages are dropped for it alone. Each commit is one change: so it sees what it missed."""
    client = connect(server.endpoint)
    feed = feed_of(client)
    quick = follow(feed, options={zmq.RCVHWM: 0}).joined()
    mirror, other = Mirror(client, stalled(follow, feed)), Mirror(client, quick)
    assert feed_statistics(client)["dropped"] == 0
    writes = 0
    while not feed_statistics(client)["dropped"]:
        assert writes < 500_000, "nothing is dropped, however much waits"
        numbers = range(writes, writes + 10_000)
        put_all(server.endpoint, ({"op": "PUT", "key": f"k{n % 5}", "value": n} for n in numbers))
        writes += 10_000
        assert client.ok(op="INFO")["rev"] == writes
        other.follow(writes)
        assert other.values == stored(client)
    for index in range(5):
        client.ok(op="PUT", key=f"k{index}", value="end")
    other.follow(writes + 5)
    mirror.follow(writes + 5)

    assert (other.healed, other.loaded) == (0, 1)
    assert mirror.healed + mirror.loaded > 1, "it has missed nothing"
    assert mirror.values == stored(client)
    assert feed_statistics(client)["published"] == writes + 5


def test_ten_followers_get_all_of_many_changes_in_order(
    server: ServerProcess, connect: Connect, follow: Follow
) -> None:
    client = connect(server.endpoint)
    feed = feed_of(client)
    followers = [follow(feed).joined() for _ in range(10)]
    commits = [{f"{rev}:{part}": rev for part in range(1 + rev % 5)} for rev in range(1, 4_001)]
    put_all(server.endpoint, ({"op": "MPUT", "items": items} for items in commits))
    first, *others = (follower.changes(4_000) for follower in followers)

    # Requests that are in flight together may run in any order. Each is one revision.
    assert len(first) == sum(map(len, commits)) > 10_000
    runs = [list(run) for _, run in itertools.groupby(first, lambda change: change[0])]
    assert [run[0][0] for run in runs] == list(range(1, 4_001))
    assert {tuple(key for _, _, key, _ in run) for run in runs} == set(map(tuple, commits))
    assert [other == first for other in others] == [True] * 9

    assert feed_statistics(client) == {
        "published": len(first), "dropped": 0, "skipped": 0, "cut_off": 0, "rev": 4_000,
    }  # fmt: skip


# Only what is safe.


def test_nothing_is_published_before_it_is_on_disk_nor_what_is_rolled_back(
    tmp_path: Path, connect: Connect, follow: Follow, disk: Disk
) -> None:
    with ServerInProcess(
        tmp_path / "data", disk,
        server={"feed": FREE_PORT, "workers": 4},
        durability={"snapshot_interval": 3_600.0},
    ) as node:  # fmt: skip
        client, first, second = (connect(node.endpoint, zmq.DEALER) for _ in range(3))
        follower = follow(feed_of(client)).joined()
        keyspace = node.server._engine.keyspace

        with disk.held():
            first.send(pack({"op": "PUT", "key": "first", "value": 1}))
            disk.arrived()
            second.send(pack({"op": "PUT", "key": "second", "value": 1}))
            eventually(lambda: keyspace.rev == 2, "that the second write ran")
            late = follow(feed_of_node(node)).joined()
            assert (late.rev, follower.joined().rev) == (0, 0)

            # Now the feed has a reason to look, and the second is in the store, but not on disk.
            disk.allow()
            assert unpack(first.receive())["ok"] is True
            assert follower.changes(1) == [(1, "PUT", "first", 1)]
            disk.arrived()
            assert follower.joined().rev == 1

            disk.fail()
            assert unpack(second.receive())["code"] == "READ_ONLY"
        client.ok(op="SNAPSHOT")  # The log begins anew behind it.
        client.ok(op="PUT", key="third", value=1)

        assert follower.changes(2) == [(2, "PUT", "third", 1)]
        assert late.changes(2) == [(1, "PUT", "first", 1), (2, "PUT", "third", 1)]
        assert all_changes(client) == [(1, "PUT", "first", 1), (2, "PUT", "third", 1)]


def feed_of_node(node: ServerInProcess) -> str:
    """Where a server publishes whose workers may all be busy."""
    assert node.server._broker.feed is not None
    return node.server._broker.feed


@pytest.mark.parametrize("policy", ["interval", "never"])
def test_what_need_not_be_on_disk_is_published_at_once(
    tmp_path: Path, connect: Connect, follow: Follow, policy: str
) -> None:
    disk = Disk()
    with ServerInProcess(
        tmp_path / "data", disk,
        server={"feed": FREE_PORT},
        durability={"fsync": policy, "fsync_interval": 3_600.0, "snapshot_interval": 3_600.0},
    ) as node:  # fmt: skip
        client = connect(node.endpoint)
        follower = follow(feed_of(client)).joined()
        with disk.held():
            assert client.ok(op="PUT", key="k", value=1)["durable"] is False

            assert follower.changes(1) == [(1, "PUT", "k", 1)]


@pytest.mark.parametrize("survive", [True, False], ids=["on disk", "rolled back"])
def test_what_waits_for_the_disk_is_not_passed_over_however_short_the_history(
    tmp_path: Path, connect: Connect, follow: Follow, disk: Disk, survive: bool
) -> None:
    """What the history has no room for, while it is not safe yet, is published once it is."""
    with ServerInProcess(
        tmp_path / "data", disk,
        server={"feed": FREE_PORT, "workers": 4},
        durability={"snapshot_interval": 3_600.0},
        limits={"history": 1},
    ) as node:  # fmt: skip
        client, *others = (connect(node.endpoint, zmq.DEALER) for _ in range(4))
        follower = follow(feed_of(client)).joined()
        keyspace = node.server._engine.keyspace
        with disk.held():
            for rev, other in enumerate(others, 1):
                other.send(pack({"op": "PUT", "key": f"k{rev}", "value": 1}))
                eventually(lambda: keyspace.rev == rev, "that the write ran")  # noqa: B023
                if rev == 1:
                    disk.arrived()
            disk.allow()  # Of the first. The others wait for the next.
            assert follower.changes(1) == [(1, "PUT", "k1", 1)]
            disk.arrived()
            if survive:
                disk.allow()
            else:
                disk.fail()
            assert [unpack(other.receive())["ok"] for other in others] == [True, survive, survive]
        client.ok(op="SNAPSHOT")

        rev = client.ok(op="PUT", key="after", value=1)["rev"]

        waited = [(2, "PUT", "k2", 1), (3, "PUT", "k3", 1)] if survive else []
        assert follower.changes(rev) == [*waited, (rev, "PUT", "after", 1)]
        assert feed_statistics(client)["skipped"] == 0


def test_a_short_history_is_kept_until_the_feed_has_read_it(
    tmp_path: Path, connect: Connect, follow: Follow
) -> None:
    with ServerInProcess(
        tmp_path / "data", server={"feed": FREE_PORT}, limits={"history": 0}
    ) as node:
        client = connect(node.endpoint)
        follower = follow(feed_of(client)).joined()
        put_all(node.endpoint, ({"op": "PUT", "key": "k", "value": n} for n in range(2_000)))

        assert [change[0] for change in follower.changes(2_000)] == list(range(1, 2_001))
        eventually(
            lambda: (
                client.ok(op="PUT", key="k", value=1)
                and client.ok(op="INFO")["stats"]["history"]["changes"] == 1
            ),
            "that the history is short again",
        )


def test_a_feed_that_is_behind_for_too_long_says_so(
    tmp_path: Path,
    connect: Connect,
    follow: Follow,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """To followers by a gap in the revisions, in INFO and in the log."""
    monkeypatch.setattr("zkv.keyspace.history.UNREAD_CHANGES", 20)
    with ServerInProcess(
        tmp_path / "data", server={"feed": FREE_PORT}, limits={"history": 5}
    ) as node:
        client = connect(node.endpoint)
        follower = follow(feed_of(client)).joined()
        mirror = Mirror(client, follow(feed_of(client)).joined())
        read, reading = node.server._engine.keyspace.read, threading.Lock()

        def read_when_told(cursor: Cursor, most: int) -> list[PackedCommit]:
            with reading:
                return read(cursor, most)

        monkeypatch.setattr(node.server._engine.keyspace, "read", read_when_told)
        client.ok(op="PUT", key="gone", value=1)
        mirror.follow(1)
        assert follower.changes(1) == [(1, "PUT", "gone", 1)]
        assert reading.acquire(timeout=LIMIT)
        client.ok(op="DELETE", key="gone")
        for n in range(40):
            client.ok(op="PUT", key=f"k{n % 7}", value=n)
        reading.release()

        assert follower.changes(42) == [(n + 3, "PUT", f"k{n % 7}", n) for n in range(20, 40)]
        mirror.follow(42)
        assert mirror.values == stored(client)
        assert mirror.loaded == 2
        assert feed_statistics(client)["skipped"] == 21
        told = "it skipped 21 revisions"
        eventually(lambda: told in caplog.text, "that the log tells, which is after INFO does")


# A server that is started again.


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL, None], ids=["TERM", "KILL", "END"])
def test_the_history_and_the_feed_go_on_after_a_restart(
    server: ServerProcess, connect: Connect, follow: Follow, end: int | None
) -> None:
    client = connect(server.endpoint)
    follower = follow(feed_of(client), options={zmq.RECONNECT_IVL: 10}).joined()
    mirror = Mirror(client, follower)
    client.ok(op="PUT", key="a", value=1)
    client.ok(op="SNAPSHOT")
    client.ok(op="MPUT", items={"b": 2, "c": 3})
    client.ok(op="DELETE", key="a")
    client.ok(op="PUT", key="soon", value=1, ttl=0.001)
    mirror.follow(5)
    before = all_changes(client)

    if end is None:
        client.ok(op="END")
        assert server.wait() == 0
    else:
        server.signal(end)
        server.process.wait(LIMIT)
        server.kill()
    server.start()

    client = connect(server.endpoint)
    assert all_changes(client) == before
    assert [change[:3] for change in all_changes(client, since=2)] == [
        (3, "DELETE", "a"), (4, "PUT", "soon"), (5, "EXPIRE", "soon"),
    ]  # fmt: skip
    late = follow(feed_of(client)).joined()
    assert client.ok(op="PUT", key="d", value=4)["rev"] == 6
    assert late.changes(6) == [(6, "PUT", "d", 4)]
    assert client.ok(op="CHANGES", since=5)["changes"] == [[6, "PUT", "d", 4]]
    reconnected(client, follower)
    rev = client.ok(op="PUT", key="e", value=5)["rev"]
    assert follower.changes(rev)[-1] == (rev, "PUT", "e", 5)


def test_a_follower_outlives_any_number_of_restarts(
    server: ServerProcess, connect: Connect, follow: Follow, chance: random.Random
) -> None:
    """However the server ends, and with writes that nobody was told of."""
    client = connect(server.endpoint)
    follower = follow(feed_of(client), options={zmq.RECONNECT_IVL: 10}).joined()
    mirror = Mirror(client, follower)
    for _ in range(5):
        for _ in range(chance.randrange(1, 40)):
            client.call(**random_write(chance))
        mirror.follow(chance.randrange(client.ok(op="INFO")["rev"] + 1))
        if chance.random() < 0.5:
            assert server.stop() == 0
        else:
            server.kill()
        server.start()
        mirror._client = client = connect(server.endpoint)
        mirror.rejoin(reconnected(client, follower))
    mirror.follow(settled_rev(client))

    assert mirror.values == stored(client)
    assert mirror.loaded == 1


def test_what_the_log_has_dropped_is_compacted_after_a_restart(
    tmp_path: Path, connect: Connect, follow: Follow
) -> None:
    feed = f"ipc://{tmp_path}/feed"
    config = "[durability]\nsegment_bytes = 1024\nsnapshot_interval = 3600\n"
    with ServerProcess(tmp_path / "server", "--feed", feed, config=config) as server:
        client = connect(server.endpoint)
        mirror = Mirror(client, follow(feed).joined())
        client.ok(op="PUT", key="gone", value=1)
        mirror.follow(1)
        client.ok(op="DELETE", key="gone")
        for _ in range(3):
            for index in range(60):
                client.ok(op="PUT", key=f"k{index % 7}", value="x" * 100)
            client.ok(op="SNAPSHOT")
        # The memory still holds it, the log does not.
        assert client.ok(op="CHANGES", since=1)["changes"][0] == [2, "DELETE", "gone", None]
        mirror.follower.close()

        server.stop()
        server.start()

        client = connect(server.endpoint)
        refused = client.call(op="CHANGES", since=1)
        assert refused["code"] == "COMPACTED"
        oldest = refused["oldest"]
        assert 2 < oldest <= 182
        assert client.call(op="CHANGES", since=oldest - 2)["code"] == "COMPACTED"
        assert [rev for rev, _, _, _ in all_changes(client, oldest - 1)] == list(range(oldest, 183))
        mirror._client = client
        mirror.rejoin(follow(feed).joined())
        assert mirror.loaded == 2
        client.ok(op="PUT", key="last", value=1)
        mirror.follow(183)
        assert mirror.values == stored(client)


def test_the_last_changes_are_published_before_the_end(
    server: ServerProcess, connect: Connect, follow: Follow
) -> None:
    client = connect(server.endpoint)
    # With a full queue, libzmq would forget what it has not read from a connection that ends.
    follower = follow(feed_of(client), options={zmq.RCVHWM: 0}).joined()
    numbers = range(2_000)
    put_all(server.endpoint, ({"op": "PUT", "key": "k", "value": number} for number in numbers))

    client.send(pack({"op": "END"}))

    changes = follower.changes(2_000)
    assert [rev for rev, _, _, _ in changes] == list(range(1, 2_001))
    assert {value for _, _, _, value in changes} == set(numbers)
    assert server.wait() == 0


def test_the_first_changes_of_all_are_published(
    tmp_path: Path, context: Context, follow: Follow
) -> None:
    """Client and follower are there before the server, and their first request is waiting."""
    for attempt in range(30):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        endpoint, feed = f"ipc://{directory}/requests", f"ipc://{directory}/feed"
        follower = follow(feed, options={zmq.RECONNECT_IVL: 1})
        options: dict[int, int | bytes] = {zmq.RECONNECT_IVL: 1}
        with Raw(endpoint, zmq.DEALER, context=context, options=options) as early:
            for index in range(20):
                early.send(pack({"op": "PUT", "key": "k", "value": index}))
            with ServerInProcess(
                directory / "data", server={"endpoints": [endpoint], "feed": feed}
            ):
                for _ in range(20):
                    early.receive()

                assert [change[0] for change in follower.changes(20)] == list(range(1, 21))


# Where it is, and is not.


def test_no_feed(tmp_path: Path, connect: Connect) -> None:
    before = set(threading.enumerate())
    with ServerInProcess(tmp_path / "data", server={"feed": ""}) as node:
        client = connect(node.endpoint)
        client.ok(op="PUT", key="k", value=1)

        info = client.ok(op="INFO")
        assert info["feed"] is None
        assert info["stats"]["feed"] == {}
        assert all_changes(client) == [(1, "PUT", "k", 1)]
        started = set(threading.enumerate()) - before
        assert "zkv-feed" not in {thread.name for thread in started}


def test_no_feed_from_the_command_line(tmp_path: Path, connect: Connect) -> None:
    with ServerProcess(tmp_path, "--feed", "", config='[server]\nfeed = "tcp://127.0.0.1:*"') as it:
        assert connect(it.endpoint).ok(op="INFO")["feed"] is None


def test_a_busy_port_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        feed = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        result = run_zkv("serve", "--endpoint", FREE_PORT, "--feed", feed, cwd=tmp_path)

    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("zkv: ")
    assert feed in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("feed", ["nonsense", "tcp://127.0.0.1", "tcp://127.0.0.1:99999"])
def test_a_malformed_endpoint_is_told_in_one_line(tmp_path: Path, feed: str) -> None:
    result = run_zkv("serve", "--endpoint", FREE_PORT, "--feed", feed, cwd=tmp_path)

    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert feed in line
    assert not list(tmp_path.iterdir())


def test_the_feed_cannot_be_where_requests_are_taken(tmp_path: Path) -> None:
    place = f"ipc://{tmp_path}/both"

    result = run_zkv("serve", "--endpoint", place, "--feed", place, cwd=tmp_path)

    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1


def test_a_follower_that_talks_harms_nobody(
    client: Raw, feed: str, follow: Follow, context: Context
) -> None:
    follower = follow(feed).joined()
    with context.socket(zmq.XSUB) as talker, context.socket(zmq.DEALER) as stranger:
        talker.linger = stranger.linger = 0
        talker.connect(feed)
        stranger.connect(feed)
        with contextlib.suppress(zmq.Again):  # The feed has refused the stranger already.
            stranger.send(b"who are you?", zmq.NOBLOCK)
        for frames in ([b""], [b"hello"], [b"\x01", b"more", b"\x00"], [b"\x00never subscribed"]):
            talker.send_multipart(frames)
        talker.send(b"\x01k")
        with socket.create_connection(("127.0.0.1", int(feed.rpartition(":")[2]))) as noise:
            noise.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        eventually(
            lambda: [client.ok(op="PUT", key="k", value=1), talker.poll(10)][1],
            "a message for the talker",
        )

    rev = client.ok(op="PUT", key="end", value=1)["rev"]
    assert follower.changes(rev)[-1] == (rev, "PUT", "end", 1)


def test_the_feed_takes_no_requests(client: Raw, feed: str, context: Context) -> None:
    with Raw(feed, zmq.REQ, context=context, timeout=0.2) as lost, pytest.raises(NoReplyError):
        lost.call(op="PUT", key="k", value=1)

    assert client.ok(op="INFO")["rev"] == 0
