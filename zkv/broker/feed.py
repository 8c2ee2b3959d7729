"""The change feed: a thread that publishes every change once it is safe.

Each change is a message of two frames: the key as topic, so that a SUB socket's own filter selects
a prefix, and a msgpack map (`ChangeMessage`). A heartbeat has the topic U+0000, with which no key
begins, and the revision up to which everything has been published. It is sent once a second, even
during a burst, and after every burst.

The thread reads the history with a cursor, up to the newest safe revision. No other thread passes
changes to it, and none waits for it. The cursor is placed before the first write, so the feed
begins with the first change. An unused feed costs nothing: while there are no followers, nothing
wakes the thread, the history keeps nothing for it, and the cursor moves on once a second.

A follower can always detect that it has missed changes: each message has its place among those of
its revision, revisions are contiguous, and the heartbeat has the newest. Then it can ask CHANGES
for what it has missed. There are three causes, all counted for INFO. The queue of a follower that
reads too slowly is bounded, and messages that do not fit are dropped for that follower. If too many
bytes wait for followers, this thread pauses, and those who do not read are cut off
(`zkv.broker.backlog`). If writers are faster than this thread for long, changes that the history
cannot keep are skipped for all followers.

With users, a follower gets a topic only if it may read all keys that begin with it
(`zkv.broker.subscriptions`). When users change, the endpoint is closed, and opened again once all
subscriptions are gone: nothing is published in between, so none outlives the right to it. Followers
connect and subscribe again, and find out what they have missed as after any loss. A new user alone
changes nothing for those who are there.

The socket is created, used and closed in this thread. Other threads wake it and read its counters.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from concurrent.futures import Future
from math import ceil
from typing import TYPE_CHECKING, Final, NamedTuple

import zmq
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.msgpack import encode

from zkv.broker.arrivals import Arrivals
from zkv.broker.backlog import Backlog
from zkv.broker.connections import ConnectionCounter
from zkv.broker.handshakes import HANDSHAKE_MS
from zkv.broker.publisher import PUBLISHER, Publisher
from zkv.broker.refusals import Refusal, RefusalLog
from zkv.broker.sockets import INPROC, close
from zkv.broker.subscriptions import HEARTBEAT_TOPIC, Subscriptions, TopicBounds
from zkv.broker.waker import Waker
from zkv.errors import EndpointError

if TYPE_CHECKING:
    from zkv.broker.connections import Monitor
    from zkv.broker.doors import Doors
    from zkv.keyspace import Cursor, Keyspace, PackedCommit

_log = logging.getLogger("zkv.broker")

HEARTBEAT_MS: Final = 1_000
"""Longest time between heartbeats."""
WELCOME_MS: Final = 10
"""Shortest time from a heartbeat to the next one, if that is for a new subscription alone. Whoever
subscribes again and again would otherwise fill the queues of all others."""
MESSAGES_PER_FOLLOWER: Final = 20_000
"""Messages that wait for a follower that does not keep up; further ones to it are dropped. Each
takes 128 bytes for each follower, beside its body."""
LONGEST_MESSAGE: Final = 131_072
"""Bytes of a message from a follower. Subscriptions are shorter, as keys have at most 64 KiB."""
UNHEARD_BYTES: Final = 2 << 20
"""Bytes from a follower that may wait for this thread: all its subscriptions, and more."""
COMMITS_AT_ONCE: Final = 500
"""Commits read from the history in one hold of the keyspace's lock."""
LINGER_MS: Final = 1_000
"""Time in which followers may take the last messages when the feed ends."""
PAUSE_MS: Final = 10
"""Time after which a paused feed looks if it can go on."""
AGAIN_MS: Final = 10
"""Pause between attempts to open an endpoint that libzmq is still closing."""
MANY_ATTEMPTS: Final = 500
"""Failed attempts after which the log says so."""


EVICTED: Final = "evicted"
"""Why an entry of a cache was removed."""


class ChangeMessage(Struct, frozen=True, gc=False):
    """The second frame of a change.

    Args:
        rev: the revision of the change.
        part: place of the change among those of its revision, from 1.
        parts: number of changes of the revision.
        op: op of the change; see `zkv.keyspace.change.KeyChange`.
        key: the key.
        value: the packed value; nil if the key was removed.
        reason: `EVICTED` if that is why it was removed; else it is left out.
    """

    rev: int
    part: int
    parts: int
    op: str
    key: str
    value: Raw
    reason: str | UnsetType = UNSET


class Heartbeat(Struct, frozen=True, gc=False):
    """The second frame of a heartbeat: everything up to ``rev`` has been published.

    Args:
        rev: the revision.
        store: the identity of the store, if it has one.
        term: its term, likewise.
    """

    rev: int
    store: str | UnsetType = UNSET
    term: int | UnsetType = UNSET


class FeedPlace(NamedTuple):
    """Where changes are published."""

    endpoint: str
    topics: TopicBounds
    """Bounds on the topics of a follower."""


class Feed:
    """Publishes the changes of a keyspace.

    Args:
        context: the server's ZeroMQ context.
        place: where followers connect, with bounds on them.
        monitor: counts their connections.
        doors: opens the endpoint.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        place: FeedPlace,
        monitor: Monitor,
        doors: Doors,
    ) -> None:
        self._context = context
        self._doors = doors
        self._endpoint = place.endpoint
        self._monitor = monitor
        self.connections = ConnectionCounter()
        """The connections of followers."""
        self._followed: Future[Keyspace | None] = Future()
        self._keyspace: Keyspace
        self._cursor: Cursor
        self._rev = 0
        self._beaten_at = 0.0  # Time of the last heartbeat.
        self._heartbeat_at = 0.0  # Time of the next one.
        self._arrivals = Arrivals()
        self.subscriptions = Subscriptions(
            doors.users, place.topics, self._welcome, self._note_cut, self._arrivals
        )
        """True while there may be followers. Any thread may ask that."""
        self._cuts = RefusalLog()
        self._reopening = False
        self._publisher: Publisher
        self._backlog: Backlog
        self._waker = Waker()
        self._arrivals.wake = self._waker.wake
        self._bound: Future[str] = Future()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="zkv-feed")
        self.published = 0
        self._dropped = 0
        self.skipped = 0
        self.cut_off = 0

    def start(self) -> str:
        """Start the thread, and return the endpoint as bound. Raises EndpointError."""
        self._thread.start()
        return self._bound.result()

    def follow(self, keyspace: Keyspace) -> None:
        """Publish the changes of ``keyspace`` after its current revision.

        Call this before the first write. The cursor is placed here, and not in the feed's thread,
        so that the feed certainly begins with the first change.
        """
        self._cursor = keyspace.place_cursor()
        self._rev = self._cursor.rev
        self._followed.set_result(keyspace)

    def wake(self) -> None:
        """Wake the feed, since there may be changes to publish. Any thread.

        A follower that subscribes at this moment misses nothing: the feed's thread first adds the
        topic, and then reads which changes are safe.
        """
        if self.subscriptions:
            self._waker.wake()

    def reopen(self) -> None:
        """Have all followers connect and subscribe again. Any thread."""
        self._reopening = True
        self._waker.wake()

    def close(self) -> None:
        """Publish the remaining changes, close the socket, and end the thread."""
        self._closing = True
        if not self._followed.done():
            self._followed.set_result(None)
        self._waker.wake()
        self._thread.join()
        self._waker.close()

    def statistics(self) -> dict[str, int]:
        """Return INFO's ``stats.feed``.

        Messages published; messages that a follower did not get, as its queue was full or it was
        cut off; revisions that were skipped; followers that were cut off; the revision published
        last.
        """
        return {
            "published": self.published,
            "dropped": self._dropped + (self._backlog.lost if self._bound.done() else 0),
            "skipped": self.skipped,
            "cut_off": self.cut_off,
            "rev": self._rev,
        }

    def _run(self) -> None:
        socket: zmq.Socket[bytes] | None = None
        try:
            socket = self._open()
            self.connections = self._monitor.watch(
                socket, UNHEARD_BYTES, waiting=True, arrivals=self._arrivals
            )
            try:
                bound = self._doors.bind(socket, self._endpoint, "server.feed")
                self.subscriptions.endpoint = bound
                self._publisher = PUBLISHER(socket)
                self._backlog = Backlog(self._publisher, bound, self._note_cut)
                self._bound.set_result(bound)
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
            _log.critical("the change feed died: its heartbeats end", exc_info=True)
            if not self._bound.done():
                self._bound.set_exception(error)
        finally:
            if socket is not None:
                socket.linger = LINGER_MS
                close(socket, [self._endpoint])

    def _open(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.XPUB)
        socket.linger = 0  # What waits for a follower is freed as soon as it has left.
        socket.sndhwm = MESSAGES_PER_FOLLOWER
        socket.maxmsgsize = LONGEST_MESSAGE
        socket.handshake_ivl = HANDSHAKE_MS
        socket.xpub_nodrop = True  # A full queue raises zmq.Again: see `_send`.
        self.subscriptions.prepare(socket)
        return socket

    def _serve(self, socket: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._waker, zmq.POLLIN)
        while True:
            closing = self._closing  # Read before publishing, so that no change is left out.
            try:
                self._go_on(socket)
            except MemoryError:
                # Changes that were read and not sent are missing for all; the next one shows it.
                _log.critical("the change feed has no memory; it continues", exc_info=True)
            if closing:
                return
            left = max(0, ceil((self._heartbeat_at - time.monotonic()) * 1000))
            poller.poll(min(left, PAUSE_MS) if self._backlog.is_paused else left)
            self._waker.clear()
            self._cuts.tell()

    def _go_on(self, socket: zmq.Socket[bytes]) -> None:
        """Publish new changes, then a heartbeat, if there were any or it is due."""
        self.subscriptions.take(socket)
        self._reopen_if_asked(socket)
        before = self._rev
        if self.subscriptions:
            self._publish(socket)
        else:
            self._rev = self._keyspace.pass_over(self._cursor)
        if self._rev > before or time.monotonic() >= self._heartbeat_at:
            self._heartbeat(socket)

    def _welcome(self) -> None:
        """Begin to serve a follower that has subscribed."""
        self._keyspace.hold_for(self._cursor)
        self._heartbeat_at = min(self._heartbeat_at, self._beaten_at + WELCOME_MS / 1000)

    def _note_cut(self, address: str, reason: Refusal) -> None:
        """Count and log that a follower is cut off."""
        self.cut_off += 1
        self._cuts.note(address, reason)

    def _reopen_if_asked(self, socket: zmq.Socket[bytes]) -> None:
        """Close the endpoint, wait until all subscriptions are gone, and open it again."""
        if not self._reopening:
            return
        self._reopening = False  # First: what changes from now on asks for it again.
        bound = self._bound.result()
        if bound.startswith(INPROC):
            return  # The rights of the program itself do not change.
        socket.unbind(bound)
        while not self.subscriptions.all_left:
            socket.poll(AGAIN_MS)
            self.subscriptions.take(socket)
        for attempt in itertools.count(1):
            try:
                self._doors.bind(socket, bound, "server.feed")
                return
            except EndpointError as error:
                if self._closing:
                    return
                if attempt == MANY_ATTEMPTS:
                    _log.error("the feed cannot be opened again: %s", error)
                socket.poll(AGAIN_MS)

    def _publish(self, socket: zmq.Socket[bytes]) -> None:
        """Publish all safe changes, and heartbeats when they are due; stop if too much waits."""
        while self._has_room() and (commits := self._keyspace.read(self._cursor, COMMITS_AT_ONCE)):
            self.subscriptions.take(socket)  # Also in a burst, which may last.
            # After they are read: no commit that follows a change of users may meet old rights.
            self._reopen_if_asked(socket)
            for commit in commits:
                if not self._has_room():
                    self._keyspace.put_back(self._cursor, self._rev)
                    return
                self._publish_commit(socket, commit)
                self._rev = commit.rev
                if time.monotonic() >= self._heartbeat_at:
                    self._heartbeat(socket)
        self._rev = max(self._rev, self._cursor.rev)  # A term may begin beyond the last change.

    def _has_room(self) -> bool:
        return self._closing or self._backlog.has_room()

    def _publish_commit(self, socket: zmq.Socket[bytes], commit: PackedCommit) -> None:
        rev, parts, reason = commit.rev, commit.count, EVICTED if commit.evicts else UNSET
        for part, change in enumerate(commit.changes, 1):
            message = ChangeMessage(rev, part, parts, change.op, change.key, change.value, reason)
            self._send(socket, change.key.encode(), encode(message))
        self.published += parts

    def _heartbeat(self, socket: zmq.Socket[bytes]) -> None:
        lineage = self._keyspace.lineage
        identity = (lineage.store, lineage.term) if lineage.store else ()
        self._send(socket, HEARTBEAT_TOPIC, encode(Heartbeat(self._rev, *identity)))
        self._beaten_at = time.monotonic()
        self._heartbeat_at = self._beaten_at + HEARTBEAT_MS / 1000
        skipped, self.skipped = self._cursor.missed - self.skipped, self._cursor.missed
        if skipped:
            _log.warning("the change feed is too slow: it skipped %d revisions", skipped)

    def _send(self, socket: zmq.Socket[bytes], topic: bytes, body: bytes) -> None:
        """Send to every follower whose queue is not full; count it if one is."""
        if not self._publisher.send(topic, body):
            # Send again, and let libzmq drop it for those.
            self._dropped += 1
            socket.xpub_nodrop = False
            self._publisher.send(topic, body)
            socket.xpub_nodrop = True
