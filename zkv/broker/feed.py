"""The change feed: a thread that publishes every change once it is safe.

Each change is a message of two frames: the key as topic, so that a SUB socket's own filter selects
a prefix, and a msgpack map (`ChangeMessage`). A heartbeat, topic U+0000 (no key begins so), tells
the revision up to which everything has been published: once a second, however much there is to
publish, and after every burst.

The thread reads the history with a cursor, up to the newest safe revision; nobody hands changes
over, and nobody waits for it. The cursor is placed before anything can be written, so the feed
begins with the first change of all. As long as nobody follows, nobody wakes it, the history keeps
nothing for the feed, and the cursor is moved on once a second: an unused feed costs nothing.

A follower can always see that it has missed something: each message tells its place among those of
its revision, revisions have no gaps, and the heartbeat tells the newest. There are two ways to miss
something, both counted for INFO, and what was missed can be asked for with CHANGES. A follower that
reads too slowly has a bounded queue, and what does not fit is dropped for that follower. And where
writers are faster than this thread for long, what the history cannot keep is skipped for all.

The socket is made, used and closed in this thread. Others wake it, and read its counters.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

import zmq
from msgspec import Raw, Struct
from msgspec.msgpack import encode

from zkv.broker.frames import copied
from zkv.broker.sockets import bind, close
from zkv.broker.waker import Waker
from zkv.errors import EndpointError

if TYPE_CHECKING:
    from zkv.keyspace import Cursor, Keyspace, Packed

_log = logging.getLogger("zkv.broker")

HEARTBEAT_TOPIC: Final = b"\0"
HEARTBEAT_MS: Final = 1_000
"""Time between heartbeats, at most."""
MESSAGES_PER_FOLLOWER: Final = 100_000
"""Messages that may wait for a follower that does not keep up; others are dropped for it."""
COMMITS_AT_ONCE: Final = 500
"""Commits taken from the history in one hold of the keyspace's lock."""
LINGER_MS: Final = 1_000
_SUBSCRIBE: Final = b"\x01"


class ChangeMessage(Struct, frozen=True, gc=False):
    """The second frame of a change.

    Args:
        rev: the revision that made it.
        part: its place among the changes of that revision, from 1.
        parts: how many changes the revision has.
        op: see `zkv.keyspace.Change`, and so for the others.
        key: which entry.
        value: the packed value; nil where the key is gone.
    """

    rev: int
    part: int
    parts: int
    op: str
    key: str
    value: Raw


class Heartbeat(Struct, frozen=True, gc=False):
    """The second frame of a heartbeat: everything up to ``rev`` has been published."""

    rev: int


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
        self._cursor: Cursor
        self._rev = 0
        self._heartbeat_at = 0.0  # When the next one is due.
        self._topics: set[bytes] = set()  # What anybody follows.
        self._waker = Waker()
        self._bound: Future[str] = Future()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="zkv-feed")
        self.published = 0
        self.dropped = 0
        self.skipped = 0

    def start(self) -> str:
        """Start the thread; the endpoint as bound. Raises EndpointError."""
        self._thread.start()
        return self._bound.result()

    def follow(self, keyspace: Keyspace) -> None:
        """Publish the changes of ``keyspace`` from its present revision on.

        To be called before anything is written: here, and not in the feed's thread, it is settled
        which change is the first.
        """
        self._cursor = keyspace.place_cursor()
        self._rev = self._cursor.rev
        self._followed.set_result(keyspace)

    def wake(self) -> None:
        """There may be something to publish. Any thread.

        Who comes to follow at this very moment misses nothing: the topic is noted first, and then
        it is looked up what is safe.
        """
        if self._topics:
            self._waker.wake()

    def close(self) -> None:
        """Publish what is left, close the socket and end the thread."""
        self._closing = True
        if not self._followed.done():
            self._followed.set_result(None)
        self._waker.wake()
        self._thread.join()
        self._waker.close()

    def statistics(self) -> dict[str, int]:
        """What has been published, and what could not be.

        Messages published; how often a follower's queue was found full; revisions that were gone
        before they could be published; and the revision published last.
        """
        return {
            "published": self.published,
            "dropped": self.dropped,
            "skipped": self.skipped,
            "rev": self._rev,
        }

    def _run(self) -> None:
        socket: zmq.Socket[bytes] | None = None
        try:
            socket = self._context.socket(zmq.XPUB)
            socket.linger = LINGER_MS
            socket.sndhwm = MESSAGES_PER_FOLLOWER
            socket.xpub_nodrop = True  # So that a full queue is noticed; see `_send`.
            socket.xpub_verbose = True  # So that every follower gets a heartbeat as it comes.
            try:
                self._bound.set_result(bind(socket, self._endpoint, "server.feed"))
            except EndpointError as error:
                self._bound.set_exception(error)
                return
            keyspace = self._followed.result()
            if keyspace is not None:
                self._keyspace = keyspace
                try:
                    self._serve(socket)
                finally:
                    keyspace.remove_cursor()
        except BaseException as error:
            _log.critical("the change feed died; followers see its heartbeat stop", exc_info=True)
            if not self._bound.done():
                self._bound.set_exception(error)
        finally:
            if socket is not None:
                close(socket, [self._endpoint])

    def _serve(self, socket: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._waker, zmq.POLLIN)
        while True:
            closing = self._closing  # Looked at before publishing, so that nothing is left out.
            try:
                self._go_on(socket)
            except MemoryError:
                # What was read and not sent is missing for all, and they notice by the next.
                _log.critical("the change feed has no memory, and goes on", exc_info=True)
            if closing:
                return
            poller.poll(HEARTBEAT_MS)
            self._waker.clear()

    def _go_on(self, socket: zmq.Socket[bytes]) -> None:
        """Publish what there is to publish, with a heartbeat behind it."""
        self._take_subscriptions(socket)
        if self._topics:
            self._publish(socket)
        else:
            self._rev = self._keyspace.pass_over(self._cursor)
        self._heartbeat(socket)

    def _take_subscriptions(self, socket: zmq.Socket[bytes]) -> None:
        """Take the news of who follows what: libzmq has acted upon them already."""
        while int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            news = socket.recv()
            if news[:1] == _SUBSCRIBE:
                self._topics.add(news[1:])
                self._keyspace.hold_for(self._cursor)
            else:
                self._topics.discard(news[1:])  # It was the last one who followed that.

    def _publish(self, socket: zmq.Socket[bytes]) -> None:
        """Publish everything that has become safe, and heartbeats when they are due."""
        while commits := self._keyspace.read(self._cursor, COMMITS_AT_ONCE):
            for commit in commits:
                self._publish_commit(socket, commit)
                self._rev = commit.rev
                if time.monotonic() >= self._heartbeat_at:
                    self._heartbeat(socket)

    def _publish_commit(self, socket: zmq.Socket[bytes], commit: Packed) -> None:
        parts = commit.count
        for part, change in enumerate(commit.changes, 1):
            message = ChangeMessage(commit.rev, part, parts, change.op, change.key, change.value)
            self._send(socket, change.key.encode(), encode(message))
        self.published += parts

    def _heartbeat(self, socket: zmq.Socket[bytes]) -> None:
        self._send(socket, HEARTBEAT_TOPIC, encode(Heartbeat(self._rev)))
        self._heartbeat_at = time.monotonic() + HEARTBEAT_MS / 1000
        skipped, self.skipped = self._cursor.missed - self.skipped, self._cursor.missed
        if skipped:
            _log.warning("the change feed is behind: %d revisions were not published", skipped)

    def _send(self, socket: zmq.Socket[bytes], topic: bytes, body: bytes) -> None:
        """Send to every follower that has room; count where one has not."""
        last = copied(body)
        try:
            socket.send(topic, zmq.SNDMORE | zmq.NOBLOCK)
        except zmq.Again:
            # At least one follower's queue is full. Once more, and it goes without.
            self.dropped += 1
            socket.xpub_nodrop = False
            socket.send(topic, zmq.SNDMORE)
            socket.send(last)
            socket.xpub_nodrop = True
            return
        socket.send(last)
