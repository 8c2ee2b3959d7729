"""Following changes in an event loop: `AsyncClient.watch` and `AsyncClient.mirror`.

The other shell around `zkv.client.following`; what both shells share is in `zkv.client.watch` and
`zkv.client.mirror`. Everything happens in the task that asks for the next change; whoever cancels
it loses nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Self, TypeVar

import zmq

from zkv.client import operations
from zkv.client.connection import refuse_to_pickle
from zkv.client.errors import ClientError, ClosedError, NoReplyError, RefusedError
from zkv.client.following import Batch, Follower, feed_endpoint
from zkv.client.mirror import MirrorView, log_end
from zkv.client.operations import Change, Operation
from zkv.client.watch import drain, join, marked, patience_after, pause_after
from zkv.endpoint import check_to_connect

if TYPE_CHECKING:
    from zkv.client.aio import AsyncKeyspace

T = TypeVar("T")


class AsyncSubscription:
    """Batches of changes, one after the other; see `zkv.client.watch.Subscription`."""

    def __init__(
        self, keyspace: AsyncKeyspace, prefix: str, since: int | None, now: bool, feed: str | None
    ) -> None:
        self._keyspace = keyspace
        self._client = keyspace._client
        self._prefix = prefix
        self._since = since
        self._now = now
        self._feed = None if feed is None else check_to_connect(feed)
        self._joined = 0
        self._woken = asyncio.Event()
        self._failures = 0
        self._endpoint: str | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._descriptor = -1
        self.follower: Follower | None = None
        self.closed = False

    async def open(self) -> Follower:
        """Ask the server where the feed is, and join it. Raises NoReplyError."""
        if self.follower is None:
            info = await self._client.info()
            self._endpoint = self._feed or feed_endpoint(info["feed"], self._client.endpoint)
            self.follower = Follower(
                self._keyspace._prefix, self._prefix, info["rev"] if self._now else self._since,
                self._client._codec, self._endpoint is not None, time.monotonic(),
            )  # fmt: skip
            self._join(self.follower)
        return self.follower

    async def next_batch(self) -> Batch | None:
        """What comes next, maybe nothing but a newer revision; None = closed.

        Raises:
            ClientError: the client was closed, or the server answers what it should not.
        """
        while not self.closed:
            follower = await self.open()
            try:
                batch = await self._step(follower)
            except zmq.ZMQError:  # The socket has gone with its context.
                self._join(follower)
                continue
            if batch is not None:
                return batch
        return None

    def want(self, rev: int) -> None:
        """Have this revision asked for, unless it has come."""
        if self.follower is not None:
            self.follower.want(rev)
            self._woken.set()

    def close(self) -> None:
        """Have `next_batch` end, and let go of the socket. May be called again."""
        self.closed = True
        self._woken.set()
        self._leave()

    async def _step(self, follower: Follower) -> Batch | None:
        now = time.monotonic()
        if follower.silent(now):  # Or whoever asks was busy elsewhere.
            batch = None if self._socket is None else drain(self._socket, follower)
            if follower.silent(now):
                await self._look_up(follower)
            return batch
        request = follower.request(now)
        if request is None:
            return await self._receive(follower, now)
        try:
            return await self._ask(request)
        except RefusedError as error:
            follower.refused(error)
            if error.retry:
                await self._pause()
            return None

    async def _ask(self, operation: Operation[T]) -> T | None:
        """Run an operation; None = there was no reply, and a pause has been made."""
        patience = patience_after(self._failures, self._client.timeout)
        try:
            result = await self._client._run(operation, patience)
        except NoReplyError:
            await self._pause()
            return None
        self._failures = 0
        return result

    async def _pause(self) -> None:
        self._failures += 1
        await self._sleep(pause_after(self._failures))

    async def _sleep(self, seconds: float) -> None:
        """Sleep until something wakes: a message, a wish, the end."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._woken.wait()
        except TimeoutError:
            return
        self._woken.clear()

    async def _look_up(self, follower: Follower) -> None:
        """Find the feed anew: the server may have been restarted, and have it elsewhere."""
        info = await self._ask(operations.info())
        if info is not None and not self.closed:
            self._endpoint = self._feed or feed_endpoint(info["feed"], self._client.endpoint)
            self._join(follower)
            follower.joined(self._endpoint is not None, time.monotonic())

    async def _receive(self, follower: Follower, now: float) -> Batch | None:
        """Take what is there; wait for more where that brings nothing new."""
        self._woken.clear()  # Before the socket is looked at: what comes later wakes again.
        batch = None if self._socket is None else drain(self._socket, follower)
        if batch is None and follower.request(now) is None:
            await self._sleep(follower.wait_until(now) - now)
        return batch

    def _join(self, follower: Follower) -> None:
        self._leave()
        if self._endpoint is not None:
            context = self._client._context or zmq.Context.instance()
            turn = self._joined + self._client._endpoints.current.ipv6
            self._joined += 1
            self._socket = join(context, follower, self._endpoint, turn)
            self._descriptor = int(self._socket.getsockopt(zmq.FD))
            asyncio.get_running_loop().add_reader(self._descriptor, self._woken.set)

    def _leave(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            self._socket.close()
            self._socket = None


class AsyncWatch(AsyncIterator[Change]):
    """Changes as they come; made by `AsyncClient.watch`. An async iterator that ends when closed.

    Use as an async context manager, or `aclose` at the end. One task at a time may iterate.
    """

    def __init__(
        self, keyspace: AsyncKeyspace, prefix: str, since: int | None, feed: str | None
    ) -> None:
        self._subscription = AsyncSubscription(keyspace, prefix, since, since is None, feed)
        self._queue: deque[tuple[Change, int]] = deque()
        self._rev = since

    __reduce__ = refuse_to_pickle

    async def __aenter__(self) -> Self:
        follower = await self._subscription.open()
        self._rev = follower.rev
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def rev(self) -> int | None:
        """The revision up to which everything has been told; see `Watch.rev`. None: not begun."""
        return self._rev

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._subscription.closed

    async def __anext__(self) -> Change:
        change = await self.next()
        if change is None:
            raise StopAsyncIteration
        return change

    async def next(self, timeout: float | None = None) -> Change | None:  # noqa: ASYNC109
        """The next change; see `Watch.next`."""
        try:
            async with asyncio.timeout(timeout):
                while not self._queue and await self._more():
                    pass
        except NoReplyError:
            raise
        except TimeoutError:
            return None
        if self.closed:
            return None
        change, self._rev = self._queue.popleft()
        return change

    async def aclose(self) -> None:
        """End it: whoever waits for a change gets none any more."""
        self._subscription.close()

    async def _more(self) -> bool:
        """Queue the next batch; False = closed."""
        batch = await self._subscription.next_batch()
        if batch is None:
            return False
        self._queue.extend(marked(batch, self._rev or 0))
        if not batch.changes:
            self._rev = batch.rev
        return True


class AsyncMirror(MirrorView):
    """A live, read-only copy of the entries under a prefix; made by `AsyncClient.mirror`.

    A task follows the changes, from the beginning of the ``async with`` block to its end. Reading
    is as in a `Mirror`, without ``await``.
    """

    def __init__(
        self, keyspace: AsyncKeyspace, prefix: str, timeout: float | None, feed: str | None
    ) -> None:
        super().__init__()
        self._timeout = timeout
        self._subscription = AsyncSubscription(keyspace, prefix, None, False, feed)
        self._moved = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            self._follower = await self._subscription.open()
            self._task = asyncio.create_task(self._follow(), name="zkv-mirror")
            await self.wait_for(0, self._timeout)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def wait_for(self, rev: int, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until it shows this revision, or a newer one; see `Mirror.wait_for`."""
        if self._rev >= rev:
            return
        self._subscription.want(rev)
        try:
            async with asyncio.timeout(timeout), self._moved:
                await self._moved.wait_for(lambda: self._is_at(rev))
        except NoReplyError:
            raise
        except TimeoutError:
            raise self._too_late(rev, timeout) from None

    async def aclose(self) -> None:
        """Follow no more. What it shows stays. May be called again."""
        self._subscription.close()
        if self._task is not None:
            await self._task

    async def _follow(self) -> None:
        error: ClientError = ClosedError("the mirror is closed", applied=False)
        try:
            while (batch := await self._subscription.next_batch()) is not None:
                with self._lock:
                    shown = self._apply(batch)
                async with self._moved:
                    self._moved.notify_all()
                self._tell(shown)
        except ClientError as failure:
            error = failure
            log_end(failure)
        finally:
            self._subscription.close()
            self._error = error
            async with self._moved:
                self._moved.notify_all()
