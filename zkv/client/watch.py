"""Following changes from a thread: what `Client.watch` gives, and what a mirror stands on.

There is no thread behind it: whoever asks for the next change also receives and asks the server.
One thread at a time does so; any other may close it, or tell it of a revision that it should have
by now, and rings a bell for that.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket as posix
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Self, TypeVar

import zmq

from zkv.client import operations
from zkv.client.connection import addresses, explain, refuse_to_pickle
from zkv.client.errors import ClosedError, NoReplyError, RefusedError
from zkv.client.following import Batch, Follower, feed_endpoint
from zkv.client.operations import Change, Operation
from zkv.endpoint import check_to_connect

if TYPE_CHECKING:
    from zkv.client.connection import SocketContext
    from zkv.client.namespace import Keyspace

T = TypeVar("T")

QUEUED: Final = 100_000
"""Messages of the feed that may wait here, as many as at the server."""
AT_ONCE: Final = 1_000
"""Messages that are taken before anything is told."""
FIRST_PATIENCE: Final = 1.0
"""Seconds for the first attempt at a request: closing waits as long at most, unless it drags on."""
LONGEST_PAUSE: Final = 1.0
"""Seconds between attempts while the server is away."""


class Subscription:
    """Batches of changes, one after the other; the sync half of `zkv.client.following`.

    Args:
        keyspace: what to follow.
        prefix: of the keys, behind that of the keyspace.
        since: the revision behind which to begin; None = with all entries there are.
        now: begin behind the store's present revision instead.
        feed: where the feed is to be found; None = where the server says.

    Raises:
        NoReplyError: the server cannot be reached.
    """

    def __init__(
        self, keyspace: Keyspace, prefix: str, since: int | None, now: bool, feed: str | None
    ) -> None:
        self._client = keyspace._client
        self._feed = None if feed is None else check_to_connect(feed)
        self._joined = 0
        self._process = os.getpid()
        self._alarm = _Alarm()
        self._inside = threading.Lock()  # Held by whoever is in `next_batch`.
        self._wanted: deque[int] = deque()
        self._failures = 0
        self._socket: zmq.Socket[bytes] | None = None
        self.closed = False
        try:
            info = self._client.info()
            self._endpoint = self._feed or feed_endpoint(info["feed"], self._client.endpoint)
            self.follower = Follower(
                keyspace._prefix, prefix, info["rev"] if now else since, self._client._codec,
                self._endpoint is not None, time.monotonic(),
            )  # fmt: skip
            self._join()
        except BaseException:
            self.close()
            raise

    def next_batch(self, timeout: float | None = None) -> Batch | None:
        """What comes next, maybe nothing but a newer revision; None = closed, or time is up.

        Raises:
            ClosedError: the client was closed, or this is a child by fork of who began.
            ClientError: the server answers what it should not.
        """
        self._check_process()
        end = None if timeout is None else time.monotonic() + timeout
        try:
            with self._inside:
                while not self.closed:
                    try:
                        batch = self._step(end)
                    except zmq.ZMQError:  # The socket has gone with its context.
                        self._join()
                        continue
                    if batch is not None:
                        return batch
                    if end is not None and time.monotonic() >= end:
                        break
                return None
        finally:
            if self.closed:  # By somebody who found this thread inside.
                self.close()

    def want(self, rev: int) -> None:
        """Have this revision asked for, unless it has come. Any thread. Raises ClosedError."""
        self._check_process()
        self._wanted.append(rev)
        self._alarm.ring()

    def close(self) -> None:
        """Have `next_batch` end, and let go of the socket. Any thread, and any number of times.

        Where another thread is in `next_batch` it closes the socket, and this does not wait.
        """
        self.closed = True
        if os.getpid() != self._process:
            _inherited.append(self)
            return
        self._alarm.ring()
        if self._inside.acquire(blocking=False):
            try:
                if self._socket is not None:
                    self._socket.close()
                    self._socket = None
                self._alarm.close()
            finally:
                self._inside.release()

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ClosedError("it belongs to the process that this one was forked from", False)

    def _step(self, end: float | None) -> Batch | None:
        now = time.monotonic()
        follower = self.follower
        if follower.silent(now):  # Or whoever asks was busy elsewhere.
            batch = None if self._socket is None else drain(self._socket, follower)
            if follower.silent(now):
                self._look_up()
            return batch
        while self._wanted:
            follower.want(self._wanted.popleft())
        request = follower.request(now)
        if request is None:
            return self._receive(follower.wait_until(now), end)
        try:
            return self._ask(request)
        except RefusedError as error:
            follower.refused(error)
            if error.retry:
                self._pause()
            return None

    def _ask(self, operation: Operation[T]) -> T | None:
        """Run an operation; None = there was no reply, and a pause has been made."""
        patience = patience_after(self._failures, self._client.timeout)
        try:
            result = self._client._run(operation, patience)
        except NoReplyError:
            self._pause()
            return None
        self._failures = 0
        return result

    def _pause(self) -> None:
        """Wait before the next attempt, unless it is closed meanwhile."""
        self._failures += 1
        self._alarm.wait(pause_after(self._failures))

    def _look_up(self) -> None:
        """Find the feed anew: the server may have been restarted, and have it elsewhere."""
        info = self._ask(operations.info())
        if info is not None:
            self._endpoint = self._feed or feed_endpoint(info["feed"], self._client.endpoint)
            self._join()
            self.follower.joined(self._endpoint is not None, time.monotonic())

    def _join(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._endpoint is not None:
            context = self._client._context or zmq.Context.instance()
            turn = self._joined + self._client._endpoints.current.ipv6
            self._joined += 1
            self._socket = join(context, self.follower, self._endpoint, turn)

    def _receive(self, until: float, end: float | None) -> Batch | None:
        """Wait for messages, and take what is there."""
        until = until if end is None else min(until, end)
        self._alarm.wait(until - time.monotonic(), self._socket)
        return None if self._socket is None else drain(self._socket, self.follower)


_inherited: list[Subscription] = []
"""Of the process that this one was forked from: not to be used, nor to be closed."""


class Watch(Iterator[Change]):
    """Changes as they come; made by `Client.watch`. An iterator that ends when it is closed.

    Use as a context manager, or `close` at the end. One thread at a time may iterate.
    """

    def __init__(
        self, keyspace: Keyspace, prefix: str, since: int | None, feed: str | None
    ) -> None:
        self._subscription = Subscription(keyspace, prefix, since, since is None, feed)
        self._queue: deque[tuple[Change, int]] = deque()
        self._rev = self._subscription.follower.rev

    __reduce__ = refuse_to_pickle

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_subscription"):
            self.close()

    @property
    def rev(self) -> int:
        """The revision up to which everything has been told: ``since`` of a watch that goes on.

        The changes of one revision belong together: it counts when the last of them was taken.
        """
        return self._rev

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._subscription.closed

    def __next__(self) -> Change:
        change = self.next()
        if change is None:
            raise StopIteration
        return change

    def next(self, timeout: float | None = None) -> Change | None:
        """The next change.

        Args:
            timeout: seconds to wait for one; None = as long as it takes.

        Returns:
            None if no change has come in time, or the watch was closed.

        Raises:
            ClosedError: the client was closed.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while not self._queue:
            left = None if end is None else end - time.monotonic()
            batch = self._subscription.next_batch(left)
            if batch is None:
                return None
            self._queue.extend(marked(batch, self._rev))
            if not batch.changes:
                self._rev = batch.rev
        if self.closed:
            return None
        change, self._rev = self._queue.popleft()
        return change

    def close(self) -> None:
        """End it: whoever waits for a change gets none any more. Any thread may call this."""
        self._subscription.close()


def join(context: SocketContext, follower: Follower, endpoint: str, turn: int) -> zmq.Socket[bytes]:
    """A socket at the feed, with what ``follower`` wants to hear.

    Args:
        context: to make it in.
        follower: tells the topics.
        endpoint: of the feed; one that has been checked.
        turn: which kind of address to take for a name, IPv4 or IPv6: each in its turn.

    Raises:
        ValueError: libzmq does not take the endpoint.
        ClosedError: the context has been terminated.
    """
    places = addresses(endpoint)
    try:
        socket = context.socket(zmq.SUB)
    except zmq.ZMQError as error:
        raise explain(endpoint, error) from error
    socket.linger = 0
    socket.rcvhwm = QUEUED
    socket.ipv6 = places[turn % len(places)].ipv6
    for topic in follower.topics:
        socket.subscribe(topic)
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise explain(endpoint, error) from error
    return socket


def drain(socket: zmq.Socket[bytes], follower: Follower) -> Batch | None:
    """Hand over the messages that are there; None where they bring nothing new."""
    changes: list[Change] = []
    told = follower.rev
    for _ in range(AT_ONCE):
        try:
            frames = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            break
        batch = follower.message(frames, time.monotonic())
        if batch is not None:
            changes += batch.changes
    return Batch(changes, follower.rev) if follower.rev != told else None


def pause_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(LONGEST_PAUSE, 0.02 * 2.0 ** min(failures, 10))


def patience_after(failures: int, timeout: float) -> float:
    """Seconds to wait for a reply after so many failures in a row, ``timeout`` at most."""
    return min(timeout, FIRST_PATIENCE * 2.0 ** min(failures, 10))


def marked(batch: Batch, told: int) -> Iterator[tuple[Change, int]]:
    """Each change, with the revision up to which everything has been told once it is taken.

    Args:
        batch: of changes.
        told: the revision up to which everything has been told before them.
    """
    changes = batch.changes
    for index, change in enumerate(changes, 1):
        if index == len(changes):
            told = batch.rev
        elif batch.in_order and changes[index].rev > change.rev:
            told = change.rev
        yield change, told


class _Alarm:
    """Lets one thread wait for a socket, and others wake it."""

    def __init__(self) -> None:
        self._reader, self._writer = posix.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def wait(self, seconds: float, socket: zmq.Socket[bytes] | None = None) -> None:
        """Wait until ``socket`` is readable, or `ring`, but at most a second.

        An interrupt that comes just before ZeroMQ waits is only seen after it.
        """
        poller = zmq.Poller()
        poller.register(self._reader, zmq.POLLIN)
        if socket is not None:
            poller.register(socket, zmq.POLLIN)
        poller.poll(math.ceil(1000 * max(0.0, min(seconds, 1.0))))
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)

    def ring(self) -> None:
        """Wake who waits, or who will wait next. Any thread."""
        with contextlib.suppress(OSError):  # Closed, or rung often enough.
            self._writer.send(b"\0")

    def close(self) -> None:
        """May be called again."""
        self._reader.close()
        self._writer.close()
