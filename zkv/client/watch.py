# Generated from async_watch.py by tools/unasync.py. Change that file, then: make generate
"""Following changes: what `watch` gives, and what a mirror stands on.

There is nothing in the background: whoever asks for the next change also receives and asks the
server. One thread at a time does so, and whoever interrupts it loses nothing. Any other may close
it, or tell it of a revision that it should have by now, and wakes it for that.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self, TypeVar

import zmq

from zkv import checks
from zkv.client import operations
from zkv.client.connection import refuse_to_pickle
from zkv.client.errors import ClientError, MisuseError, NoReplyError, RefusedError
from zkv.client.feed import drain, join
from zkv.client.follower import (
    FIRST_PATIENCE,
    Batch,
    Follower,
    feed_endpoint,
    marked,
    patience_after,
    pause_after,
)
from zkv.client.operations import Change, Operation
from zkv.client.process import check_process, generation, is_foreign, leave_alone
from zkv.client.threads import Waiter
from zkv.endpoint import check_to_connect

if TYPE_CHECKING:
    from zkv.checks import Seconds
    from zkv.client.namespace import KeyOps

T = TypeVar("T")

ONE_AT_A_TIME: Final = "another thread waits for the next change: only one at a time may"


class Subscription:
    """Batches of changes, one after the other: `zkv.client.follower` with a socket and a clock.

    Args:
        keyspace: what to follow.
        prefix: of the keys, behind that of the keyspace.
        since: the revision behind which to begin; None = with all entries there are.
        now: begin behind the store's present revision instead.
        feed: where the feed is to be found; None = where the server says.

    Attributes:
        trouble: why nothing comes at present; None while the server answers.
    """

    def __init__(
        self, keyspace: KeyOps, prefix: str, since: int | None, now: bool, feed: str | None
    ) -> None:
        self._client = keyspace._client
        self._namespace = keyspace._prefix
        self._prefix = checks.text("prefix", prefix)
        self._since = None if since is None else checks.revision("since", since)
        self._now = now
        self._feed = None if feed is None else _checked_feed(feed)
        self._joined = 0
        self._endpoint: str | None = None
        self._made_in = generation()
        self._waiter = Waiter()
        self._inside = threading.Lock()  # Held by whoever is in `next_batch`. Nobody waits for it.
        self._wanted: deque[int] = deque()
        self._failures = 0
        self._socket: zmq.Socket[bytes] | None = None
        self._follower: Follower | None = None
        self.closed = False
        self.trouble: ClientError | None = None

    @property
    def prefix(self) -> str:
        """Of the keys, as they are stored."""
        return self._namespace + self._prefix

    def open(self) -> Follower:
        """Ask the server where the feed is, and join it. May be called again.

        Raises:
            NoReplyError: the server cannot be reached.
            ValueError: the feed's endpoint is malformed.
        """
        if self._follower is None:
            rev, feed = self._client._run(operations.place())
            self._endpoint = self._feed or feed_endpoint(feed, self._client.endpoint)
            follower = Follower(
                self._namespace, self._prefix, rev if self._now else self._since,
                self._client._codec, self._endpoint is not None, time.monotonic(),
            )  # fmt: skip
            self._join(follower)
            self._follower = follower
        return self._follower

    def next_batch(self, end: float | None = None) -> Batch | None:
        """What comes next, maybe nothing but a newer revision.

        Args:
            end: until when to wait, by the monotonic clock; None = as long as it takes.

        Returns:
            None if it has been closed, or time is up.

        Raises:
            ClosedError: the client was closed, or this is a child by fork of who began.
            ClientError: the server answers what it should not.
            MisuseError: another thread is in here.
        """
        self.check_process()
        if not self._inside.acquire(blocking=False):
            if self.closed:
                return None
            raise MisuseError(ONE_AT_A_TIME, applied=False)
        try:
            while not self.closed:
                follower = self.open()
                try:
                    batch = self._step(follower, end)
                except zmq.ZMQError:  # The socket has gone with its context.
                    self._join(follower)
                    continue
                if batch is not None:
                    return batch
                if end is not None and time.monotonic() >= end:
                    break
            return None
        finally:
            self._inside.release()
            if self.closed:  # By somebody who found this thread inside.
                self.close()

    def want(self, rev: int) -> None:
        """Have this revision asked for, unless it has come. Any thread. Raises ClosedError."""
        self.check_process()
        self._wanted.append(rev)
        self._waiter.wake()

    def close(self) -> None:
        """Have `next_batch` end, and let go of the socket. Any thread, and any number of times.

        Where another thread is in `next_batch` it closes the socket, and this does not wait.
        """
        self.closed = True
        if is_foreign(self._made_in):
            leave_alone(self)
            return
        self._waiter.wake()
        if self._inside.acquire(blocking=False):
            try:
                self._leave()
                self._waiter.close()
            finally:
                self._inside.release()

    def check_process(self) -> None:
        """Raise ClosedError in a child by fork of who began."""
        check_process(self._made_in)

    def _step(self, follower: Follower, end: float | None) -> Batch | None:
        now = time.monotonic()
        if follower.silent(now):  # Or whoever asks was busy elsewhere.
            batch = None if self._socket is None else drain(self._socket, follower)
            if follower.silent(now):
                self._look_up(follower, end)
            return batch
        while self._wanted:
            follower.want(self._wanted.popleft())
        request = follower.request(now)
        if request is None:
            return self._receive(follower, end)
        try:
            return self._ask(request, end)
        except RefusedError as error:
            follower.refused(error)
            if error.retry:
                self.trouble = error
                self._pause(end)
            return None

    def _ask(self, operation: Operation[T], end: float | None) -> T | None:
        """Run an operation; None = there was no reply, and a pause has been made."""
        patience = patience_after(self._failures, self._client.timeout)
        if end is not None:
            patience = min(patience, max(FIRST_PATIENCE, end - time.monotonic()))
        try:
            result = self._client._run(operation, patience)
        except NoReplyError as error:
            self.trouble = error
            self._pause(end)
            return None
        self._failures = 0
        self.trouble = None
        return result

    def _pause(self, end: float | None) -> None:
        """Wait before the next attempt, unless it is closed meanwhile."""
        self._failures += 1
        self._wait(time.monotonic() + pause_after(self._failures), end, None)

    def _look_up(self, follower: Follower, end: float | None) -> None:
        """Find the feed anew: the server may have been restarted, and have it elsewhere."""
        place = self._ask(operations.place(), end)
        if place is not None:
            self._endpoint = self._feed or feed_endpoint(place[1], self._client.endpoint)
            self._join(follower)
            follower.joined(self._endpoint is not None, time.monotonic())

    def _receive(self, follower: Follower, end: float | None) -> Batch | None:
        """Wait for messages, and take what is there."""
        self._wait(follower.wait_until(time.monotonic()), end, self._socket)
        return None if self._socket is None else drain(self._socket, follower)

    def _wait(self, until: float, end: float | None, socket: zmq.Socket[bytes] | None) -> None:
        until = until if end is None else min(until, end)
        self._waiter.wait(until - time.monotonic(), socket)

    def _join(self, follower: Follower) -> None:
        self._leave()
        if self._endpoint is not None:
            turn = self._joined + self._client._endpoints.current.ipv6
            self._joined += 1
            self._socket = join(self._client._context, follower.topics, self._endpoint, turn)

    def _leave(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _checked_feed(feed: str) -> str:
    """Return an endpoint that a program names. Raises TypeError and ValueError."""
    try:
        return check_to_connect(feed)
    except (TypeError, ValueError) as error:
        raise checks.named("feed", error) from None


class Watch(Iterator[Change]):
    """Changes as they come; made by `Client.watch`. An iterator that ends when it is closed.

    Use as a context manager, or `close` at the end. One thread at a time may iterate.
    """

    def __init__(self, keyspace: KeyOps, prefix: str, since: int | None, feed: str | None) -> None:
        self._subscription = Subscription(keyspace, prefix, since, since is None, feed)
        self._queue: deque[tuple[Change, int]] = deque()
        self._rev: int = since or 0
        self._begun = False

    __reduce__ = refuse_to_pickle

    def _open(self) -> Self:
        """Begin, if it has not begun yet. Raises NoReplyError and ValueError."""
        if not self._begun:
            self._rev = self._subscription.open().rev
            self._begun = True
        return self

    def __enter__(self) -> Self:
        return self._open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_subscription"):
            self._subscription.close()

    def __repr__(self) -> str:
        keys = f"{self._subscription.prefix!r} at revision {self._rev}"
        return f"<{type(self).__name__} {keys}{' closed' if self.closed else ''}>"

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

    @property
    def trouble(self) -> ClientError | None:
        """Why nothing comes at present: how the last question ended; None while all is well.

        There is nothing to be done about it: the watch asks again until the server answers.
        """
        return self._subscription.trouble

    def __next__(self) -> Change:
        change = self.next()
        if change is None:
            raise StopIteration
        return change

    def next(self, timeout: Seconds | None = None) -> Change | None:
        """The next change.

        Args:
            timeout: seconds to wait for one, up to a year, or a `timedelta`; None = as long as it
                takes.

        Returns:
            None if no change has come in time, or the watch was closed.

        Raises:
            ClosedError: the client was closed, or this is a child by fork of who began.
            MisuseError: another thread waits for the next change.
        """
        wait = checks.wait(timeout)
        self._subscription.check_process()
        if not self.closed:
            self._open()
        end = None if wait is None else time.monotonic() + wait
        while True:
            with suppress(IndexError):
                told = self._queue.popleft()
                break
            batch = self._subscription.next_batch(end)
            if batch is None:
                return None
            self._queue.extend(marked(batch, self._rev or 0))
            if not batch.changes:
                self._rev = batch.rev
        if self.closed:
            return None
        change, self._rev = told
        return change

    def close(self) -> None:
        """End it: whoever waits for a change gets none any more. Any thread may call this."""
        self._subscription.close()
