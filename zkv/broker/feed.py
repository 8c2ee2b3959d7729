"""The change feed: a thread that publishes every change once it is safe.

Each change is a message of two frames: the key as topic, so that a SUB socket's own filter selects
a prefix, and a msgpack map ``{rev, op, key, value}``. A heartbeat, topic U+0000 (no key begins so),
tells the revision once a second and after every burst. So a follower that has missed something
knows.

The thread reads the history, from the revision that it published last to the newest that is safe;
nobody hands changes over, and nobody waits for it. A follower that reads too slowly has a bounded
queue: what does not fit is dropped for that follower, counted, and can be asked for with CHANGES.

The socket is made, used and closed in this thread. Others ring its bell, and read its counters.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

import msgspec
import zmq

from zkv.broker.bell import Bell
from zkv.broker.proxy import bind
from zkv.errors import CompactedError, EndpointError

if TYPE_CHECKING:
    from zkv.keyspace import Commit, Keyspace

_log = logging.getLogger("zkv.broker")

HEARTBEAT_TOPIC: Final = b"\0"
HEARTBEAT_MS: Final = 1_000
MESSAGES_PER_FOLLOWER: Final = 100_000
"""Messages that may wait for a follower that does not keep up; others are dropped for it."""
COMMITS_AT_ONCE: Final = 500
"""Commits taken from the history in one hold of the keyspace's lock."""
LINGER_MS: Final = 1_000

_encode = msgspec.msgpack.encode


class Feed:
    """Publishes the changes of a keyspace.

    Args:
        context: the server's.
        endpoint: where followers connect.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self._context = context
        self._endpoint = endpoint
        self._followed: Future[Keyspace | None] = Future()
        self._keyspace: Keyspace
        self._rev = 0
        self._bell = Bell()
        self._bound: Future[str] = Future()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="zkv-feed")
        self.published = 0
        self.dropped = 0

    def start(self) -> str:
        """Start the thread; the endpoint as bound. Raises EndpointError."""
        self._thread.start()
        return self._bound.result()

    def follow(self, keyspace: Keyspace) -> None:
        """Publish the changes of ``keyspace`` from its present revision on."""
        self._followed.set_result(keyspace)

    def ring(self) -> None:
        """There may be something to publish. Any thread."""
        self._bell.ring()

    def close(self) -> None:
        """Publish what is left, close the socket and end the thread."""
        self._closing = True
        if not self._followed.done():
            self._followed.set_result(None)
        self._bell.ring()
        self._thread.join()
        self._bell.close()

    def statistics(self) -> dict[str, int]:
        """Messages published and dropped, and the revision published last."""
        return {"published": self.published, "dropped": self.dropped, "rev": self._rev}

    def _run(self) -> None:
        socket = self._context.socket(zmq.XPUB)
        try:
            socket.linger = LINGER_MS
            socket.sndhwm = MESSAGES_PER_FOLLOWER
            socket.xpub_nodrop = True  # So that a full queue is noticed; see `_send`.
            try:
                self._bound.set_result(bind(socket, self._endpoint))
            except EndpointError as error:
                self._bound.set_exception(error)
                return
            keyspace = self._followed.result()
            if keyspace is not None:
                self._keyspace = keyspace
                self._rev = keyspace.rev
                self._serve(socket)
        except Exception:
            _log.critical("the change feed died; followers see its heartbeat stop", exc_info=True)
        finally:
            socket.close()

    def _serve(self, socket: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._bell, zmq.POLLIN)
        while True:
            closing = self._closing  # Looked at before publishing, so that nothing is left out.
            self._publish(socket)
            self._heartbeat(socket)
            if closing:
                return
            while not (ready := poller.poll(HEARTBEAT_MS)) or self._only_subscriptions(
                socket, ready
            ):
                self._heartbeat(socket)
            self._bell.hush()

    def _only_subscriptions(
        self, socket: zmq.Socket[bytes], ready: list[tuple[object, int]]
    ) -> bool:
        """Take the news of subscriptions from the socket; whether that is all that is ready."""
        while int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            socket.recv()
        return all(who is socket for who, _ in ready)

    def _publish(self, socket: zmq.Socket[bytes]) -> None:
        """Publish everything that has become safe."""
        while True:
            try:
                commits, _ = self._keyspace.changes_since(self._rev, COMMITS_AT_ONCE)
            except CompactedError as error:
                oldest = error.details["oldest"]
                _log.warning("the change feed lost revisions %d to %d", self._rev + 1, oldest)
                self._rev = int(str(oldest)) - 1
                continue
            if not commits:
                return
            for commit in commits:
                self._publish_commit(socket, commit)
            self._rev = commits[-1].rev

    def _publish_commit(self, socket: zmq.Socket[bytes], commit: Commit) -> None:
        for change in commit.changes:
            body = {
                "rev": commit.rev,
                "op": change.op,
                "key": change.key,
                "value": change.value,
            }
            self._send(socket, change.key.encode(), _encode(body))
            self.published += 1

    def _heartbeat(self, socket: zmq.Socket[bytes]) -> None:
        self._send(socket, HEARTBEAT_TOPIC, _encode({"rev": self._rev}))

    def _send(self, socket: zmq.Socket[bytes], topic: bytes, body: bytes) -> None:
        """Send to every follower that has room; count where one has not."""
        try:
            socket.send(topic, zmq.SNDMORE | zmq.NOBLOCK)
        except zmq.Again:
            # At least one follower's queue is full. Once more, and it goes without.
            self.dropped += 1
            socket.xpub_nodrop = False
            socket.send(topic, zmq.SNDMORE)
            socket.send(body)
            socket.xpub_nodrop = True
            return
        socket.send(body)
