# Generated from async_mirror.py by tools/unasync.py. Change that file, then: make generate
"""A live copy of part of the store: `zkv.client.mirror_view`, and what keeps it up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from zkv import checks
from zkv.client.errors import ClosedError
from zkv.client.mirror_view import MirrorView
from zkv.client.process import check_process
from zkv.client.threads import Background, Condition
from zkv.client.watch import Subscription

if TYPE_CHECKING:
    from zkv.checks import Seconds
    from zkv.client.namespace import KeyOps


class Mirror(MirrorView):
    """A live, read-only copy of the entries under a prefix; made by `Client.mirror`.

    It behaves as a dict with its keys in order, and nothing has to be waited for to read it. One
    key is read at the speed of a dict, and any number of threads may read. Iterating, ``keys``,
    ``values``, ``items`` and comparing go by a copy that shows one revision.

    While the server is away it keeps what it had; `staleness` tells for how long. Use as a context
    manager, or `close` at the end.
    """

    def __init__(
        self, keyspace: KeyOps, prefix: str, timeout: Seconds | None, feed: str | None
    ) -> None:
        super().__init__()
        self._timeout = checks.wait(timeout)
        self._subscription = Subscription(keyspace, prefix, None, False, feed)
        self._moved = Condition()
        self._worker: Background | None = None

    def _open(self) -> Self:
        """Read everything, and begin to follow. May be called again."""
        if self._worker is None:
            try:
                self._follower = self._subscription.open()
                self._worker = Background(self._follow, "zkv-mirror")
                self.wait_for(0, self._timeout)
            except BaseException:
                self.close()
                raise
        return self

    def __enter__(self) -> Self:
        return self._open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_for(self, rev: int, timeout: Seconds | None = None) -> None:
        """Wait until it shows this revision, or a newer one; the server is asked at once.

        Args:
            rev: such as `Client.put` returns it.
            timeout: seconds to wait, up to a year, or a `timedelta`; None = as long as it takes.

        Raises:
            NoReplyError: it does not in time.
            ClientError: it does not follow any more, for this reason.
        """
        check_process(self._made_in)
        rev, wait = checks.revision("rev", rev), checks.wait(timeout)
        if self._rev >= rev:
            return
        self._subscription.want(rev)
        if not self._moved.wait_for(lambda: self._is_at(rev), wait):
            raise self._too_late(rev, wait)

    def close(self) -> None:
        """Follow no more. What it shows stays. May be called again, and by any thread."""
        self._subscription.close()
        if self._worker is not None:
            self._worker.join()

    def _follow(self) -> None:
        try:
            while (batch := self._subscription.next_batch()) is not None:
                shown = self._apply(batch)
                self._moved.wake()
                self._tell(shown)
            self._end(ClosedError("the mirror is closed", applied=False))
        except Exception as failure:
            self._end(failure)
        except BaseException as failure:  # Which ends this thread, or was raised in it.
            self._end(failure)
            raise
        finally:
            self._subscription.close()
            self._moved.wake()
