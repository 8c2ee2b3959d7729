"""A live copy of part of the store: `zkv.client.mirror_view`, and the task that updates it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from zkv import checks
from zkv.client.async_watch import AsyncSubscription
from zkv.client.errors import ClosedError
from zkv.client.mirror_view import MirrorView
from zkv.client.process import check_process
from zkv.client.tasks import AsyncBackground, AsyncCondition

if TYPE_CHECKING:
    from zkv.checks import Seconds
    from zkv.client.async_namespace import AsyncKeyOps


class AsyncMirror(MirrorView):
    """A live, read-only copy of the entries under a prefix; made by `AsyncClient.mirror`.

    It behaves like a dict with its keys in order, and reading it never waits. Reading one key is as
    fast as with a dict, and any number of threads may read. Iteration, ``keys``, ``values``,
    ``items`` and comparison use a copy that shows one revision.

    While the server is unreachable the mirror keeps its entries; `staleness` says for how long. Use
    it as a context manager, or call `aclose` at the end.
    """

    def __init__(
        self, keyspace: AsyncKeyOps, prefix: str, timeout: Seconds | None, feed: str | None
    ) -> None:
        super().__init__()
        self._timeout = checks.wait(timeout)
        self._subscription = AsyncSubscription(keyspace, prefix, None, False, feed)
        self._moved = AsyncCondition()
        self._worker: AsyncBackground | None = None

    async def _open(self) -> Self:
        """Read all entries, and begin to follow changes. May be called again."""
        if self._worker is None:
            try:
                self._follower = await self._subscription.open()
                self._worker = AsyncBackground(self._follow, "zkv-mirror")
                await self.wait_for(0, self._timeout)
            except BaseException:
                await self.aclose()
                raise
        return self

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def wait_for(self, rev: int, timeout: Seconds | None = None) -> None:  # noqa: ASYNC109
        """Wait until the mirror shows this revision or a newer one. It asks the server at once.

        Args:
            rev: a revision, such as `AsyncClient.put` returns.
            timeout: seconds to wait, up to a year, or a `timedelta`; None = no limit.

        Raises:
            NoReplyError: the mirror does not show it in time.
            ClientError: the mirror has stopped following changes, for this reason.
        """
        check_process(self._made_in)
        rev, wait = checks.revision("rev", rev), checks.wait(timeout)
        if self._rev >= rev:
            return
        self._subscription.want(rev)
        if not await self._moved.wait_for(lambda: self._is_at(rev), wait):
            raise self._too_late(rev, wait)

    async def aclose(self) -> None:
        """Stop following changes; the entries stay readable. Any task may call this."""
        self._subscription.close()
        if self._worker is not None:
            await self._worker.join()

    async def _follow(self) -> None:
        try:
            while (batch := await self._subscription.next_batch()) is not None:
                shown = self._apply(batch)
                self._moved.wake()
                self._tell(shown)
            self._end(ClosedError("the mirror is closed", applied=False))
        except Exception as failure:
            self._end(failure)
        except BaseException as failure:  # It ends this task, or was raised in it.
            self._end(failure)
            raise
        finally:
            self._subscription.close()
            self._moved.wake()
