"""The lane: simple requests, run in C, many at a time. See "Simple requests" in ARCHITECTURE.md.

The front offers each batch to the lane. The lane runs the requests that it can handle, and leaves
the others to the commands of their ops: one with a further field, one that fails, one that is
unusual in any way. The commands specify the behaviour; tests compare the two (`tests/compiled`).
The commits of a run are passed to the log, the history and the undo list in one step, so Python's
cost is paid once for a run and not for each request.

Invariants: a run is one hold of the keyspace's lock. Its commits are appended to the log's queue in
one step, and so are written, made safe or rolled back together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zkv import compiled
from zkv.defaults import MAX_LEVELS
from zkv.keyspace.table import is_compiled

if TYPE_CHECKING:
    from zkv.keyspace.store import Keyspace
    from zkv.protocol.codec import KeyLimits
    from zkv.requests.batch import Batch


class Lane:
    """The lane of a keyspace.

    Args:
        keyspace: the keyspace.
        limits: limits of keys and values.
        max_reply_bytes: bytes of values that a reply may have.
        durable: a write is on disk when its reply is sent.
    """

    def __init__(
        self, keyspace: Keyspace, limits: KeyLimits, max_reply_bytes: int, durable: bool
    ) -> None:
        self._keyspace = keyspace
        self._compiled = compiled.store.Lane(
            table=keyspace.entries,  # type: ignore[arg-type]
            max_key_bytes=limits.max_key_bytes,
            max_value_bytes=limits.max_value_bytes,
            max_batch=limits.max_batch,
            max_reply_bytes=max_reply_bytes,
            max_levels=MAX_LEVELS,
            durable=durable,
            **keyspace.write_hooks()._asdict(),
        )

    def run(self, batch: Batch, logs: bool = False) -> tuple[list[int], int]:
        """Run the simple requests of a batch, and add their replies.

        Args:
            batch: the batch.
            logs: keep what the request log needs.

        Returns:
            The places of the requests that are not answered, and the newest revision that a reply
            reveals.
        """
        keyspace = self._keyspace
        with keyspace.lock:
            run = self._compiled.run(
                batch,
                rev=keyspace.rev,
                removed_rev=keyspace.removed_rev,
                now=keyspace.now(),
                takes_writes=keyspace.takes_writes,
                logs=logs,
            )
            if run.payloads and run.replaced is not None:
                keyspace.add_run(run, run.replaced)
        return run.left, run.newest


def open_lane(
    keyspace: Keyspace, limits: KeyLimits, max_reply_bytes: int, durable: bool
) -> Lane | None:
    """Return the lane of a keyspace; None if its table is not compiled."""
    if not is_compiled(keyspace.entries):
        return None
    return Lane(keyspace, limits, max_reply_bytes, durable)
