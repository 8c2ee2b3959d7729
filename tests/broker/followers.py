"""Followers of the feed: one that holds what the protocol promises, and a copy of the store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import zmq

from tests.support import LIMIT, Message, Raw, unpack

HEARTBEAT = b"\0"

Context = zmq.Context[zmq.Socket[bytes]]


class Published(NamedTuple):
    """One message of the feed."""

    topic: bytes
    body: bytes
    fields: Message
    """What is in the body."""

    @property
    def is_heartbeat(self) -> bool:
        return self.topic == HEARTBEAT

    @property
    def change(self) -> tuple[int, str, str, Any]:
        """The message as CHANGES tells it."""
        fields = self.fields
        assert self.topic == fields["key"].encode()
        return fields["rev"], fields["op"], fields["key"], fields["value"]


class Follower:
    """A SUB socket, and what the protocol promises of whatever comes out of it.

    Args:
        context: to make the socket in.
        endpoint: of the feed.
        prefix: of the keys to follow.
        options: socket options to set before connecting.
        heartbeats: whether to subscribe to them, too.
    """

    def __init__(
        self,
        context: Context,
        endpoint: str,
        prefix: str = "",
        options: dict[int, int] | None = None,
        heartbeats: bool = True,
    ) -> None:
        self.socket: zmq.Socket[bytes] = context.socket(zmq.SUB)
        self.socket.linger = 0
        for option, value in (options or {}).items():
            self.socket.setsockopt(option, value)
        self.socket.subscribe(prefix)
        if heartbeats:
            self.socket.subscribe(HEARTBEAT)
        self.socket.connect(endpoint)
        self.rev = 0
        """The newest revision that anything told."""

    def close(self) -> None:
        self.socket.close()

    def next(self) -> Published:
        """The next message. Fails where there is none for long."""
        assert self.socket.poll(round(LIMIT * 1000)), f"nothing from the feed for {LIMIT:g} s"
        topic, body = self.socket.recv_multipart()
        message = Published(topic, body, unpack(body))
        assert message.fields["rev"] >= self.rev, "a revision behind a newer one"
        self.rev = message.fields["rev"]
        return message

    def joined(self) -> Follower:
        """Wait for a heartbeat: from now on, nothing that matches is passed over."""
        while not self.next().is_heartbeat:
            pass
        return self

    def until(self, rev: int) -> list[Published]:
        """All changes up to a heartbeat that tells ``rev``, or a newer one."""
        messages = []
        while not (message := self.next()).is_heartbeat or message.fields["rev"] < rev:
            if not message.is_heartbeat:
                messages.append(message)
        return messages

    def changes(self, rev: int) -> list[tuple[int, str, str, Any]]:
        """`until`, as CHANGES tells it."""
        return [message.change for message in self.until(rev)]


class Mirror:
    """A copy of the store, kept as the protocol page says.

    It follows all keys, or, with a prefix, believes the feed only as far as CHANGES confirms it:
    it cannot see from revisions and parts whether something is missing.

    Args:
        client: to ask with.
        follower: of the feed, and with the same prefix; it has joined already.
        prefix: of the keys.
    """

    def __init__(self, client: Raw, follower: Follower, prefix: str = "") -> None:
        self._client = client
        self._prefix = prefix
        self.follower = follower
        self.values: dict[str, Any] = {}
        self.rev = 0
        """The newest revision that is in the copy whole."""
        self.part = 0
        """How many parts there are of the next one."""
        self.healed = 0
        """How often it had to ask for changes."""
        self.loaded = 0
        """How often it had to read the whole store."""
        self.load()

    def load(self) -> None:
        """Read everything. Pages may be of different revisions: the first one's counts."""
        self.loaded += 1
        pages = list(scan(self._client, self._prefix))
        self.values = {key: value for page in pages for key, value, _ in page["items"]}
        self.rev = pages[0]["rev"]

    def rejoin(self, follower: Follower) -> None:
        """Go on with another connection, after however long a time without one."""
        self.follower = follower
        self.heal()

    def turn_to(self, client: Raw, follower: Follower) -> None:
        """Go on at another server of the same store."""
        self._client = client
        if follower is not self.follower:
            self.rejoin(follower)

    def heal(self) -> None:
        """Ask for what has changed."""
        self.healed += 1
        since, self.part = self.rev, 0
        while True:
            reply = self._client.call(op="CHANGES", since=since, prefix=self._prefix, limit=10_000)
            if not reply["ok"]:
                assert reply["code"] == "COMPACTED", reply
                self.load()
                return
            for change in reply["changes"]:
                self._apply(*change)
            since = reply["next"]
            if since >= reply["rev"]:
                self.rev = since
                return

    def follow(self, rev: int) -> None:
        """Take messages until the copy is whole up to ``rev``."""
        while not (message := self.follower.next()).is_heartbeat or message.fields["rev"] < rev:
            self.take(message)
        self.take(message)

    def take(self, message: Published) -> None:
        """Follow one message."""
        rev = message.fields["rev"]
        if message.is_heartbeat:
            if rev > self.rev:
                self.heal()
        elif rev <= self.rev:
            pass
        elif self._prefix:
            self._apply(*message.change)
        elif (rev, message.fields["part"]) == (self.rev + 1, self.part + 1):
            self._apply(*message.change)
            self.part += 1
            if self.part == message.fields["parts"]:
                self.rev, self.part = rev, 0
        else:
            self.heal()

    def _apply(self, _rev: int, op: str, key: str, value: Any) -> None:
        if op in {"DELETE", "EXPIRE"}:
            self.values.pop(key, None)
        else:
            self.values[key] = value


def scan(client: Raw, prefix: str = "", limit: int = 50) -> Iterator[Message]:
    """All pages of a SCAN."""
    after: dict[str, str] = {}
    while True:
        page = client.ok(op="SCAN", prefix=prefix, limit=limit, **after)
        yield page
        if page["next"] is None:
            return
        after = {"after": page["next"]}


def stored(client: Raw, prefix: str = "") -> dict[str, Any]:
    """What the server holds."""
    return {key: value for page in scan(client, prefix) for key, value, _ in page["items"]}
