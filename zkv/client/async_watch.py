"""Watches, and the subscription that watches and mirrors use.

A watch does nothing in the background: the task that asks for the next change also receives
messages and sends requests. Only one task at a time may do so, and nothing is lost if it is
interrupted. Any other task may close the watch, or request a revision that it knows of; both wake
the first task.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self, TypeVar

import zmq

from zkv import checks
from zkv.client import operations
from zkv.client.connection import (
    HANDSHAKE_FAILED,
    Connection,
    addresses,
    refuse_to_pickle,
)
from zkv.client.errors import (
    AuthenticationError,
    ClientError,
    MisuseError,
    NoReplyError,
    RefusedError,
)
from zkv.client.feed import drain, join, named
from zkv.client.follower import (
    FIRST_PATIENCE,
    ChangeBatch,
    Follower,
    feed_endpoint,
    marked,
    patience_after,
    pause_after,
)
from zkv.client.operations import Change, Operation
from zkv.client.process import check_process, generation, is_foreign, leave_alone
from zkv.client.retry import REASON_SECONDS, RECONNECT, Attempts
from zkv.client.tasks import AsyncWaiter, find_trouble
from zkv.endpoint import check_to_connect

if TYPE_CHECKING:
    from zkv.checks import Seconds
    from zkv.client.async_namespace import AsyncKeyOps

T = TypeVar("T")

LOOK_SECONDS: Final = 5.0
"""The interval at which a follower with a choice of servers asks if its server still leads."""

ONE_AT_A_TIME: Final = "another task waits for the next change: only one at a time may"


class AsyncSubscription:
    """Returns batches of changes: a `zkv.client.follower.Follower` with a socket and a clock.

    Args:
        keyspace: the client or namespace to follow.
        prefix: of the keys, after that of the keyspace.
        since: the revision after which to begin; None = begin with all entries.
        now: True = begin after the store's present revision instead.
        feed: the endpoint of the feed; None = the one that the server reports.

    Attributes:
        closed: True once it has been closed.
        trouble: the error of the last request; None while the server answers.
    """

    def __init__(
        self, keyspace: AsyncKeyOps, prefix: str, since: int | None, now: bool, feed: str | None
    ) -> None:
        self._client = keyspace._client
        self._namespace = keyspace._prefix
        self._prefix = checks.text("prefix", prefix)
        self._since = None if since is None else checks.revision("since", since)
        self._now = now
        self._feed = None if feed is None else _checked_feed(feed)
        self._turn = 0  # Which of the feed's addresses to try.
        self._endpoint: str | None = None
        self._server = ""  # The endpoint of the server that named it.
        self._looked = -math.inf
        self._attempts: Attempts | None = None  # To connect to the feed; None = none has failed.
        self._join_at = math.inf
        self._made_in = generation()
        self._waiter = AsyncWaiter()
        self._inside = threading.Lock()  # Held while in `next_batch`. Never waited for.
        self._wanted: deque[int] = deque()
        self._failures = 0
        self._connection: Connection | None = None
        self._follower: Follower | None = None
        self.closed = False
        self.trouble: ClientError | None = None

    @property
    def prefix(self) -> str:
        """The prefix of the keys, as they are stored."""
        return self._namespace + self._prefix

    async def open(self) -> Follower:
        """Ask the server for the feed's endpoint, and join the feed. May be called again.

        Raises:
            NoReplyError: the server cannot be reached.
            ValueError: the feed's endpoint is malformed, or the client's keys do not suffice.
        """
        if self._follower is None:
            place = await self._client._run(operations.place())
            for _ in range(self._client._endpoints.number - 1):
                if not self._leads_elsewhere(place):
                    break
                place = await self._client._run(operations.place())
            self._endpoint = self._told_by(place)
            follower = Follower(
                self._namespace, self._prefix, place.rev if self._now else self._since,
                self._client._codec, self._endpoint is not None, time.monotonic(),
                place.standing.history,
            )  # fmt: skip
            self._join(follower)
            self._follower = follower
        return self._follower

    async def next_batch(self, end: float | None = None) -> ChangeBatch | None:
        """Return the next batch, which may hold no changes but only a newer revision.

        Args:
            end: the end of the wait, by the monotonic clock; None = no limit.

        Returns:
            None if the subscription has been closed, or the time is up.

        Raises:
            ClosedError: the client was closed, or this is a forked child of the process that
                made the subscription.
            AuthenticationError: the server, or its feed, refuses the client's keys.
            ClientError: the server refused a request for good, or violates the protocol.
            MisuseError: another task is in this method.
        """
        self.check_process()
        if not self._inside.acquire(blocking=False):
            if self.closed:
                return None
            raise MisuseError(ONE_AT_A_TIME, applied=False)
        try:
            while not self.closed:
                follower = await self.open()
                try:
                    batch = await self._step(follower, end)
                except zmq.ZMQError:  # The socket was closed with its context.
                    self._join(follower)
                    continue
                if batch is not None:
                    return batch
                if end is not None and time.monotonic() >= end:
                    break
            return None
        finally:
            self._inside.release()
            if self.closed:  # By another task, which left the socket to this one.
                self.close()

    def want(self, rev: int) -> None:
        """Request this revision unless it has arrived. Any task may call this.

        Raises:
            ClosedError: this is a forked child.
        """
        self.check_process()
        self._wanted.append(rev)
        self._waiter.wake()

    def close(self) -> None:
        """End `next_batch`, and close the socket. Any task may call this, repeatedly.

        This does not wait: if another task is in `next_batch`, that one closes the socket.
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
        """Raise ClosedError in a forked child of the process that made the subscription."""
        check_process(self._made_in)

    async def _step(self, follower: Follower, end: float | None) -> ChangeBatch | None:
        now = time.monotonic()
        if self._must_look(follower, now):
            await self._look_up(follower, end)
            return None
        if follower.silent(now):  # Or the caller was busy elsewhere, and messages wait.
            batch = self._drain(follower)
            if follower.silent(now):
                await self._look_up(follower, end)
            return batch
        while self._wanted:
            follower.want(self._wanted.popleft())
        request = follower.request(now)
        if request is None:
            return await self._receive(follower, end)
        try:
            return await self._ask(request, end)
        except RefusedError as error:
            follower.refused(error)
            if error.retry:
                self.trouble = error
                await self._pause(end)
            return None

    async def _ask(self, operation: Operation[T], end: float | None) -> T | None:
        """Run an operation. Returns None, after a pause, if there was no reply."""
        patience = patience_after(self._failures, self._client.timeout)
        if end is not None:
            patience = min(patience, max(FIRST_PATIENCE, end - time.monotonic()))
        try:
            result = await self._client._run(operation, patience)
        except AuthenticationError:  # Waiting does not help.
            raise
        except NoReplyError as error:
            self.trouble = error
            await self._pause(end)
            return None
        self._failures = 0
        self.trouble = None
        return result

    async def _pause(self, end: float | None) -> None:
        """Wait before the next attempt, at most until the subscription is closed."""
        self._failures += 1
        await self._wait(time.monotonic() + pause_after(self._failures), end, None)

    def _must_look(self, follower: Follower, now: float) -> bool:
        """True if another server may be in use, or another history, than INFO has named."""
        client = self._client
        if follower.doubts or client.endpoint != self._server:
            return True
        may_go = follower.has_copies and not client._stale and client._endpoints.number > 1
        return may_go and now - self._looked >= LOOK_SECONDS

    async def _look_up(self, follower: Follower, end: float | None) -> None:
        """Ask for the feed's endpoint again: another server, or a restarted one, has another."""
        place = await self._ask(operations.place(), end)
        for _ in range(self._client._endpoints.number - 1):
            if place is None or not self._leads_elsewhere(place):
                break
            place = await self._ask(operations.place(), end)
        if place is None:
            return
        now = time.monotonic()
        before, self._endpoint = self._endpoint, self._told_by(place)
        if self._endpoint != before or follower.silent(now):
            self._join(follower)
            follower.joined(self._endpoint is not None, now)
        follower.told(place, now)

    def _leads_elsewhere(self, place: operations.FeedInfo) -> bool:
        """True if the client now goes to another server, since this one does not lead."""
        client = self._client
        if place.standing.leads or client._stale or client._endpoints.number == 1:
            return False
        return client._endpoints.refer(client._endpoints.current, place.standing.leader)

    def _told_by(self, place: operations.FeedInfo) -> str | None:
        """Return the endpoint of the feed that the server has named."""
        self._server = self._client.endpoint
        self._looked = time.monotonic()
        return self._feed or feed_endpoint(place.feed, self._server)

    async def _receive(self, follower: Follower, end: float | None) -> ChangeBatch | None:
        """Wait for messages, and process those that have arrived."""
        now = time.monotonic()
        if now >= self._join_at:
            self._join(follower)
        await self._wait(min(follower.wait_until(now), self._join_at), end, self._connection)
        batch = self._drain(follower)
        if batch is None and self._connection is not None and self._connection.look():
            await self._join_later(self._connection, end)
        return batch

    async def _wait(self, until: float, end: float | None, connection: Connection | None) -> None:
        until = until if end is None else min(until, end)
        await self._waiter.wait(until - time.monotonic(), connection)

    # --- The connection to the feed

    def _drain(self, follower: Follower) -> ChangeBatch | None:
        return None if self._connection is None else drain(self._connection.socket, follower)

    def _join(self, follower: Follower) -> None:
        self._leave()
        if self._endpoint is not None:
            client = self._client
            keys, current = client._endpoints.keys, client._endpoints.current
            places = addresses(self._endpoint, keys)
            # The feed probably has the same kind of address as the server, and the same key.
            likely = [
                (each.ipv6, each.server_key) == (current.ipv6, current.server_key)
                for each in places
            ]
            first = likely.index(True) if True in likely else 0
            address = places[(first + self._turn) % len(places)]
            self._connection = join(client._context, follower.topics, address, keys)

    async def _join_later(self, failed: Connection, end: float | None) -> None:
        """Plan when to connect to the feed again.

        Raises:
            AuthenticationError: it refuses the client's keys.
        """
        pause = RECONNECT
        if failed.connected:
            self._attempts = None
        elif failed.ends_round:
            pause = await self._pause_after(failed, end)
        else:
            pause = 0.0
        self._leave()
        self._join_at = time.monotonic() + pause

    async def _pause_after(self, failed: Connection, end: float | None) -> float:
        """Return the seconds after which to connect again; raises AuthenticationError."""
        endpoint, failure = failed.endpoint, failed.failure
        if self._attempts is None:
            self._attempts = Attempts(self._client._policy, "INFO", True, checks.LONGEST_WAIT)
        trouble = None
        if self._attempts.asks_why(named(endpoint), failure) and failure & HANDSHAKE_FAILED:
            keys = self._client._endpoints.keys
            trouble = await find_trouble(endpoint, REASON_SECONDS, keys, failure, for_feed=True)
        if trouble is not None and not trouble.is_refusal:
            trouble = None  # Without the feed, changes only come later.
        try:
            return self._attempts.no_connection(named(endpoint), trouble, 1, True)
        except AuthenticationError:
            self._attempts = None
            # A server that ends may refuse everybody; and this one may say more about the user.
            if await self._ask(operations.place(), end) is not None:
                raise
            return RECONNECT

    def _leave(self) -> None:
        self._join_at = math.inf
        if self._connection is not None:
            self._turn += not self._connection.connected
            self._connection.close()
            self._connection = None


def _checked_feed(feed: str) -> str:
    """Return an endpoint given by the program. Raises TypeError or ValueError if it is wrong."""
    try:
        return check_to_connect(feed)
    except (TypeError, ValueError) as error:
        raise checks.named("feed", error) from None


class AsyncWatch(AsyncIterator[Change]):
    """An iterator over changes as they are made; made by `AsyncClient.watch`.

    It ends when it is closed: use it as a context manager, or call `aclose`. Only one task at a
    time may iterate.
    """

    def __init__(
        self, keyspace: AsyncKeyOps, prefix: str, since: int | None, feed: str | None
    ) -> None:
        self._subscription = AsyncSubscription(keyspace, prefix, since, since is None, feed)
        self._queue: deque[tuple[Change, int]] = deque()
        self._rev: int | None = since  # sync: self._rev: int = since or 0
        self._begun = False

    __reduce__ = refuse_to_pickle

    async def _open(self) -> Self:
        """Begin, unless it has begun. Raises NoReplyError or ValueError if that fails."""
        if not self._begun:
            self._rev = (await self._subscription.open()).rev
            self._begun = True
        return self

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if hasattr(self, "_subscription"):
            self._subscription.close()

    def __repr__(self) -> str:
        keys = f"{self._subscription.prefix!r} at revision {self._rev}"
        return f"<{type(self).__name__} {keys}{' closed' if self.closed else ''}>"

    @property
    def rev(self) -> int | None:  # sync: def rev(self) -> int:
        """The revision up to which you have received all changes.

        Pass it as ``since`` to a later watch to continue. If several changes share a revision, it
        counts once you have received the last of them.
        """
        return self._rev

    @property
    def closed(self) -> bool:
        """True if the watch has been closed."""
        return self._subscription.closed

    @property
    def trouble(self) -> ClientError | None:
        """The error of the last request, which explains why no changes arrive; None = no error.

        You need not react to it: the watch repeats the request until the server answers.
        """
        return self._subscription.trouble

    async def __anext__(self) -> Change:
        change = await self.next()
        if change is None:
            raise StopAsyncIteration
        return change

    async def next(self, timeout: Seconds | None = None) -> Change | None:  # noqa: ASYNC109
        """Return the next change, or None if the time is up or the watch is closed.

        Args:
            timeout: seconds to wait, up to a year, or a `timedelta`; None = no limit.

        Raises:
            ClosedError: the client was closed, or this is a forked child of the process that made
                the watch.
            MisuseError: another task waits for the next change.
        """
        wait = checks.wait(timeout)
        self._subscription.check_process()
        if not self.closed:
            await self._open()
        end = None if wait is None else time.monotonic() + wait
        while True:
            with suppress(IndexError):
                told = self._queue.popleft()
                break
            batch = await self._subscription.next_batch(end)
            if batch is None:
                return None
            self._queue.extend(marked(batch, self._rev or 0))
            if not batch.changes:
                self._rev = batch.rev
        if self.closed:
            return None
        change, self._rev = told
        return change

    async def aclose(self) -> None:
        """End the watch, also for a task that waits for a change. Any task may call this."""
        self._subscription.close()
