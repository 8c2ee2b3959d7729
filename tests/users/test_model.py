"""All ops, all rights, all users: against the rules, written down once more.

Two servers get the same requests, one after the other: one knows users, the other does not. What
the rules forbid must be DENIED by the first, which then does nothing, and is not sent to the
second. All else must be answered alike by both, byte for byte as far as no clock is in it. In
between, users and their rights change. Followers of the feed get just what their users may read.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.support import LIMIT, Raw, ServerInProcess, eventually, unpack
from tests.users.secured import Context, Secured, sees

PREFIXES = ["", "a", "a/", "a/b", "b/", "ä/", "{user}/"]
KEYS = ["a", "a/", "a/b", "a/bc", "a/c", "b", "b/1", "ann/1", "bob/1", "ä/1", "z"]
NAMES = ["ann", "bob", "eve"]
Users = dict[str, dict[str, Any]]
Request = dict[str, Any]
Sockets = list[zmq.Socket[bytes]]


def random_users(chance: random.Random) -> Users:
    """Users with some rights each; at least one."""
    users: Users = {}
    for name in chance.sample(NAMES, chance.randint(1, len(NAMES))):
        fields: dict[str, Any] = {
            kind: chance.sample(PREFIXES, chance.randint(0, 2)) for kind in ("read", "write")
        }
        fields["admin"] = chance.choice(
            [False, True, ["monitor"], ["operate"], ["monitor", "operate"]]
        )
        users[name] = fields
    return users


# --- The rules


def prefixes(fields: dict[str, Any], name: str, *kinds: str) -> list[str]:
    return [each.replace("{user}", name) for kind in kinds for each in fields[kind]]


def reads(users: Users, name: str, text: str) -> bool:
    return any(map(text.startswith, prefixes(users[name], name, "read", "write")))


def writes(users: Users, name: str, text: str) -> bool:
    return any(map(text.startswith, prefixes(users[name], name, "write")))


def administers(users: Users, name: str, right: str) -> bool:
    admin = users[name]["admin"]
    return admin is True or (isinstance(admin, list) and right in admin)


def is_allowed(  # noqa: PLR0911  a rule for each kind of request
    users: Users, name: str, request: Request
) -> bool:
    """Whether a user may send a request."""
    if name not in users:
        return False
    match request["op"]:
        case "PING" | "INFO":
            return True
        case "GET":
            return reads(users, name, request["key"])
        case "MGET":
            return all(reads(users, name, key) for key in request["keys"])
        case "SCAN" | "COUNT" | "CHANGES":
            return reads(users, name, request.get("prefix", ""))
        case "SLOW":
            return administers(users, name, "monitor")
        case "SNAPSHOT":
            return administers(users, name, "operate")
        case "MPUT":
            return all(writes(users, name, key) for key in request["items"])
        case "MDELETE":
            return all(writes(users, name, key) for key in request["keys"])
        case "TXN":
            conditions = [key for key, _ in request.get("if", [])]
            return all(reads(users, name, key) for key in conditions) and all(
                is_allowed(users, name, op) for op in request["ops"]
            )
        case _:
            return writes(users, name, request["key"])


# --- Requests


def random_op(chance: random.Random) -> Request:
    """A request about one key."""
    key = chance.choice(KEYS)
    match chance.choice(["GET", "PUT", "PUT", "DELETE", "TOUCH", "INCR"]):
        case "PUT":
            more: list[Request] = [{}, {"prev": True}, {"if_rev": 0}, {"if_rev": 3, "prev": True}]
            return {"op": "PUT", "key": key, "value": chance.randint(0, 9)} | chance.choice(more)
        case "TOUCH":
            return {"op": "TOUCH", "key": key, "ttl": None}
        case "DELETE":
            return {"op": "DELETE", "key": key, "prev": chance.random() < 0.5}
        case op:
            return {"op": op, "key": key}


def random_request(chance: random.Random) -> Request:
    """Any request, but for END."""
    keys = chance.sample(KEYS, chance.randint(1, 3))
    prefix = chance.choice(PREFIXES[:-1])
    match chance.choice(["one", "one", "one", "many", "txn", "range", "other"]):
        case "one":
            return random_op(chance)
        case "many":
            return chance.choice([
                {"op": "MGET", "keys": keys},
                {"op": "MPUT", "items": {key: chance.randint(0, 9) for key in keys}},
                {"op": "MDELETE", "keys": keys},
            ])  # fmt: skip
        case "txn":
            conditions = [[key, chance.choice([0, 0, 5])] for key in chance.sample(KEYS, 2)]
            ops = [random_op(chance) for _ in range(chance.randint(1, 3))]
            txn: Request = {"op": "TXN", "ops": ops}
            return txn | {"if": conditions} if chance.random() < 0.5 else txn
        case "range":
            return chance.choice([
                {"op": "SCAN", "prefix": prefix}, {"op": "SCAN", "start": "a", "end": "b"},
                {"op": "SCAN", "prefix": prefix, "reverse": True, "limit": 1},
                {"op": "COUNT", "prefix": prefix}, {"op": "CHANGES", "since": 0, "prefix": prefix},
            ])  # fmt: skip
        case _:
            return {"op": chance.choice(["PING", "SLOW", "SNAPSHOT"])}


# --- The test


class Pair:
    """The two servers, and clients of both."""

    def __init__(self, secured: Secured, twin: ServerInProcess, context: Context) -> None:
        self.secured = secured
        self._twin = Raw(twin.endpoint, context=context)
        self._context = context
        self._clients: dict[str, Raw] = {}
        self.denied = 0

    def close(self) -> None:
        for client in (self._twin, *self._clients.values()):
            client.close()

    def client(self, name: str) -> Raw:
        if name not in self._clients:
            self._clients[name] = self.secured.client(self._context, name)
        return self._clients[name]

    def forget(self, name: str) -> None:
        """Drop the client of somebody who could not connect."""
        self._clients.pop(name).close()

    def ask(self, users: Users, name: str, request: Request) -> None:
        reply = self.client(name).call(**request)
        if is_allowed(users, name, request):
            expected = self._twin.call(**request)
            if request["op"] == "PING":
                reply["time"] = expected["time"]
            if request["op"] == "SLOW":
                reply["entries"], reply["minutes"] = expected["entries"], expected["minutes"]
            assert reply == expected, (name, request, users)
        else:
            self.denied += 1
            assert (reply["ok"], reply["code"], reply["applied"]) == (False, "DENIED", False), (
                name, request, users,
            )  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_rights_are_as_written(tmp_path: Path, context: Context, road: str, seed: int) -> None:
    chance = random.Random(f"{road} {seed}")
    users = {name: {"read": [], "write": [""], "admin": True} for name in NAMES}
    (tmp_path / "secured").mkdir()
    with (
        Secured(tmp_path / "secured", users) as secured,
        ServerInProcess(tmp_path / "twin") as twin,
    ):
        pair = Pair(secured, twin, context)
        try:
            for name in NAMES:
                pair.client(name).ok(op="PING")  # Whoever loses his rights stays connected.
            for _ in range(12):
                for _ in range(40):
                    pair.ask(users, chance.choice(NAMES), random_request(chance))
                users = random_users(chance)
                secured.reload(users)
        finally:
            pair.close()
    assert pair.denied > 50
    ran = {record.result for record in secured.server.records}
    assert ran >= {"ok", "DENIED", "NOT_FOUND", "CONFLICT"}


def drain(socket: zmq.Socket[bytes], until: bytes) -> list[tuple[str, int]]:
    """The keys and revisions of all changes up to that of a key."""
    changes: list[tuple[str, int]] = []
    while True:
        assert socket.poll(round(LIMIT * 1000)), "the feed is silent"
        topic, body = socket.recv_multipart()
        if topic == until:
            return changes
        if topic != b"\0":
            changes.append((topic.decode(), unpack(body)["rev"]))


@pytest.mark.parametrize("seed", range(3))
def test_the_feed_has_what_its_follower_may_read(
    tmp_path: Path, context: Context, seed: int
) -> None:
    chance = random.Random(seed)
    root = {"write": [""], "read": [], "admin": True}
    end = "end/"  # All may read it: where a round of the test ends.
    with Secured(tmp_path, {"root": root}, feed=True) as secured:
        writer = secured.client(context, "root")
        followers: dict[str, tuple[list[str], zmq.Socket[bytes]]] = {}
        try:
            for number in range(6):
                users = random_users(chance)
                for fields in users.values():
                    fields["read"].append(end)
                secured.reload(users | {"root": root})
                first = writer.ok(op="PUT", key="z", value=0)["rev"]
                for name in NAMES:
                    if name not in followers:
                        topics = [*chance.sample(PREFIXES[:-1], 3), end]
                        encoded = [topic.encode() for topic in topics]
                        followers[name] = topics, secured.follower(context, name, *encoded)
                mark = f"{end}{number}"
                sockets = [followers[name][1] for name in users]

                def all_follow(mark: str = mark, sockets: Sockets = sockets) -> bool:
                    rev = writer.ok(op="PUT", key=mark, value=0)["rev"]
                    return all(sees(socket, rev) for socket in sockets)

                eventually(all_follow, "everybody to be subscribed")
                keys = [chance.choice(KEYS) for _ in range(30)]
                written = [(key, writer.ok(op="PUT", key=key, value=1)["rev"]) for key in keys]
                writer.ok(op="PUT", key=f"{mark}!", value=0)
                for name in users:
                    topics, socket = followers[name]
                    mine = [each for each in topics if reads(users, name, each)]
                    got = drain(socket, f"{mark}!".encode())
                    got = [change for change in got if change[0].removeprefix(end) == change[0]]
                    assert got == [
                        change for change in written if any(map(change[0].startswith, mine))
                    ], (name, topics, users)
                for name in set(NAMES) - set(users):  # Nothing but heartbeats may be left there.
                    socket = followers.pop(name)[1]
                    while socket.poll(0):
                        topic, body = socket.recv_multipart()
                        assert topic == b"\0" or unpack(body)["rev"] < first
                    socket.close()
        finally:
            writer.close()
            for _, socket in followers.values():
                socket.close()


def test_a_new_user_drops_no_follower(tmp_path: Path, context: Context) -> None:
    ann = {"read": [""]}
    with Secured(tmp_path, {"ann": ann, "root": {"write": [""]}}, feed=True) as secured:
        feed = secured.follower(context, "ann", b"")
        monitor = feed.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        with secured.client(context, "root") as root:

            def follows() -> bool:
                return sees(feed, root.ok(op="PUT", key="k", value=0)["rev"])

            eventually(follows, "ann to follow")
            root_user = {"write": [""]}
            secured.reload({"ann": ann | {"admin": True}, "root": root_user, "bob": {}})
            for _ in range(3):
                assert follows()
            assert not monitor.poll(0)
            secured.reload({"ann": ann | {"write": ["k"]}, "root": root_user})
            assert monitor.poll(round(LIMIT * 1000))
            eventually(follows, "ann to follow again")
        monitor.close()
        feed.close()


def test_a_follower_with_too_many_topics_is_cut_off(
    tmp_path: Path, context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    users = {"ann": {"read": [""]}, "root": {"write": [""]}}
    with Secured(tmp_path, users, feed=True) as secured, secured.client(context, "root") as root:
        good = secured.follower(context, "ann", *[b"a%d" % number for number in range(999)], b"k")
        for topics in ([b"%d" % number for number in range(1_001)], [b"x" * 1_025]):
            caplog.clear()
            bad = secured.follower(context, "ann")
            bad.reconnect_ivl = -1
            monitor = bad.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            for topic in topics:
                bad.subscribe(topic)
            assert monitor.poll(round(LIMIT * 1000))
            monitor.close()
            bad.close()
            (line,) = [each for each in caplog.messages if "was cut off" in each]
            assert "127.0.0.1" in line
            eventually(lambda: sees(good, root.ok(op="PUT", key="k", value=0)["rev"]), "the feed")
        good.close()


def test_a_follower_within_the_program_comes_and_goes(tmp_path: Path) -> None:
    context: Context = zmq.Context.instance()
    name = f"inproc://{tmp_path.name}"
    server = {"endpoints": [name], "feed": f"{name}.feed"}
    with (
        Secured(tmp_path, {"ann": {}}, server=server) as secured,
        Raw(name, context=context) as client,
        context.socket(zmq.SUB) as follower,
        context.socket(zmq.SUB) as other,
    ):
        for socket in (follower, other):
            socket.linger = 0
            socket.subscribe(b"k")
            socket.connect(f"{name}.feed")
        for socket in (follower, other):
            eventually(lambda: sees(socket, client.ok(op="PUT", key="k", value=0)["rev"]), "it")  # noqa: B023
        secured.reload({"ann": {"read": ["k"]}})
        follower.unsubscribe(b"k")
        follower.subscribe(b"l")
        eventually(lambda: sees(follower, client.ok(op="PUT", key="l", value=0)["rev"]), "it")
        rev = client.ok(op="PUT", key="k", value=0)["rev"]
        assert sees(other, rev)
        assert not sees(follower, rev)
