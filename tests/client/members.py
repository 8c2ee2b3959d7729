"""Stand-ins for servers with copies of one store, as far as clients can tell them apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zmq

from tests.peer import Peer
from tests.support import FREE_PORT, Frames, Message, pack
from zkv.client.follower import HEARTBEAT_TOPIC

FEATURES = ["stale", "min_rev"]
READS = {"GET", "MGET", "SCAN", "COUNT"}
LEADERS_OWN = READS | {"PUT", "INCR", "TXN"}


class Store:
    """What all members of a store have, however far each of them has got."""

    def __init__(self) -> None:
        self.commits: list[tuple[str, Any]] = []
        self.remembered: dict[tuple[Any, Any], int] = {}


class Member:
    """One server. Its attributes may be changed while it runs.

    Attributes:
        role: as in INFO.
        name: of the store.
        term: of its history.
        leader: the endpoints that it names.
        rev: the revision that its copy has reached.
        swallows: the ops that it carries out, but does not answer.
        applied: of its refusals as NOT_LEADER.
    """

    def __init__(self, role: str, store: Store, name: str = "s", term: int = 1) -> None:
        self.role = role
        self.store = store
        self.name = name
        self.term = term
        self.leader: list[str] | None = None
        self.features = FEATURES
        self.rev = len(store.commits)
        self.swallows: set[str] = set()
        self.applied: bool | None = False
        self.peer: Peer
        self.feed: zmq.Socket[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return self.peer.endpoint

    @property
    def ops(self) -> list[str]:
        """The ops that it was asked for, in their order."""
        return [request["op"] for request in self.peer.requests]

    def asked(self, op: str) -> list[Message]:
        """The requests of one op, without their ids."""
        requests = [dict(request) for request in self.peer.requests if request["op"] == op]
        for request in requests:
            del request["id"]
        return requests

    def beat(self) -> None:
        """Send a heartbeat of the feed."""
        assert self.feed is not None
        fields = {"rev": self.rev, "store": self.name, "term": self.term}
        self.feed.send_multipart([HEARTBEAT_TOPIC, pack(fields)])

    def answer(self, request: Message) -> list[Frames]:
        """Carry out a request."""
        op = request["op"]
        anywhere = op in READS and ("stale" in request or "min_rev" in request)
        leads = self.role == "primary"
        if op in LEADERS_OWN and not leads and not anywhere:
            fields = self._refuse("NOT_LEADER", leader=self.leader, applied=self.applied)
        elif request.get("min_rev", 0) > self.rev:
            fields = self._refuse("BEHIND", rev=self.rev)
        else:
            fields = {"ok": True, **getattr(self, f"_{op.lower()}")(request)}
        if op in self.swallows:
            return []
        return [[b"", pack({"id": request["id"], **fields})]]

    def _refuse(self, code: str, **fields: object) -> dict[str, object]:
        words = {"ok": False, "code": code, "message": "words", "retry": True, "applied": False}
        return {**words, **fields}

    def _info(self, _request: Message) -> dict[str, object]:
        replication = {"role": self.role, "store": self.name, "term": self.term}
        feed = None if self.feed is None else self.feed.get_string(zmq.LAST_ENDPOINT)
        return {
            "protocol": 1, "version": "99.0", "rev": self.rev, "feed": feed,
            "features": self.features, "replication": {**replication, "leader": self.leader},
        }  # fmt: skip

    def _ping(self, _request: Message) -> dict[str, object]:
        return {}

    def _end(self, _request: Message) -> dict[str, object]:
        return {"rev": self.rev}

    def _put(self, request: Message) -> dict[str, object]:
        number = request.get("session"), request.get("seq")
        if number in self.store.remembered:
            return {"rev": self.store.remembered[number], "replayed": True}
        self.store.commits.append((request["key"], request["value"]))
        self.rev = self.store.remembered[number] = len(self.store.commits)
        return {"rev": self.rev, "durable": True}

    @property
    def _entries(self) -> dict[str, tuple[Any, int]]:
        commits = enumerate(self.store.commits[: self.rev], 1)
        return {key: (value, rev) for rev, (key, value) in commits}

    def _get(self, request: Message) -> dict[str, object]:
        if request["key"] not in self._entries:
            return self._refuse("NOT_FOUND", retry=False)
        value, rev = self._entries[request["key"]]
        return {"value": value, "rev": rev}

    def _mget(self, request: Message) -> dict[str, object]:
        found = [self._entries.get(key, (None, 0)) for key in request["keys"]]
        return {"values": [value for value, _ in found], "revs": [rev for _, rev in found]}

    def _count(self, _request: Message) -> dict[str, object]:
        return {"count": len(self._entries)}

    def _scan(self, request: Message) -> dict[str, object]:
        """Pages of one entry."""
        after = request.get("after") or ""
        keys = sorted(key for key in self._entries if key > after)
        items = [[key, *self._entries[key]] for key in keys[:1]]
        return {"items": items, "next": keys[0] if keys[1:] else None, "rev": self.rev}

    def _changes(self, request: Message) -> dict[str, object]:
        since = request["since"]
        commits = enumerate(self.store.commits[since : self.rev], since + 1)
        changes = [[rev, "PUT", key, value] for rev, (key, value) in commits]
        return {"changes": changes, "next": max(since, self.rev), "rev": self.rev}


@contextmanager
def running(
    *members: Member, keys: tuple[bytes, bytes] | None = None, feeds: bool = False
) -> Iterator[None]:
    """Run servers, with feeds if they are wanted."""
    with zmq.Context() as context:
        context.linger = 0
        peers = []
        try:
            for member in members:
                member.peer = Peer(afterwards=member.answer, keys=keys)
                peers.append(member.peer.__enter__())
                if feeds:
                    member.feed = context.socket(zmq.XPUB)
                    member.feed.bind(FREE_PORT)
            yield
        finally:
            for peer in peers:
                peer.__exit__()
            for member in members:
                if member.feed is not None:
                    member.feed.close()
