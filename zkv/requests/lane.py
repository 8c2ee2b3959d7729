"""The fast lane: plain requests, carried out by the compiled store, many at a time.

What is plain stands in ARCHITECTURE.md. What the front takes from its mailbox is offered to the
lane, which carries out what it knows, and stops at the first request that it leaves to the command
of its op: one with any further field, one that fails, one out of the ordinary in any way. The
commands are the specification; tests compare the two (`tests/compiled`). All that a run has
committed enters log, history and the way back at once, so that what Python costs is paid for a run,
and not for each request.

Invariants: a run is one hold of the store's lock. What it commits is appended to the log's queue in
one step, and so is written, made safe or rolled back as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zkv import compiled
from zkv.defaults import MAX_LEVELS
from zkv.keyspace.change import Packed
from zkv.keyspace.table import is_compiled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zkv.keyspace.store import Keyspace
    from zkv.log import Subject
    from zkv.protocol.codec import KeyLimits


class Answers:
    """The answers to a batch of requests, as far as a lane gave them; its lists go in step.

    Args:
        subjects: a list, if the request log wants to know.

    Attributes:
        replies: the body of each reply; None where the request was left out.
        reveals: the newest revision that it reveals.
        ops: the op's name; empty where the request was left out.
        subjects: for the request log; None where it does not want any.
        newest: the newest revision of all that replies reveal.
    """

    __slots__ = ("newest", "ops", "replies", "reveals", "subjects")

    def __init__(self, subjects: list[Subject | None] | None = None) -> None:
        self.replies: list[bytes | None] = []
        self.reveals: list[int] = []
        self.ops: list[str] = []
        self.subjects = subjects
        self.newest = 0

    def leave_out(self, reply: bytes | None = None) -> None:
        """The next request is answered otherwise: with ``reply``, or by others."""
        self.replies.append(reply)
        self.reveals.append(0)
        self.ops.append("")
        if self.subjects is not None:
            self.subjects.append(None)

    def take_out(self, places: list[int]) -> Answers:
        """Some of the answers, which are left out here."""
        taken = Answers()
        taken.replies = [self.replies[place] for place in places]
        taken.ops = [self.ops[place] for place in places]
        if self.subjects is not None:
            taken.subjects = [self.subjects[place] for place in places]
        for place in places:
            self.replies[place] = None
            self.strike(place)
        return taken

    def strike(self, place: int) -> None:
        """Have an answer not counted: it is not the one that is given."""
        self.ops[place] = ""
        if self.subjects is not None:
            self.subjects[place] = None


class Lane:
    """The lane of one store.

    Args:
        keyspace: the store.
        limits: what keys and values are held to.
        max_reply_bytes: the most bytes of values in a reply.
        durable: whether a write is on disk when its reply leaves.
    """

    def __init__(
        self, keyspace: Keyspace, limits: KeyLimits, max_reply_bytes: int, durable: bool
    ) -> None:
        self._keyspace = keyspace
        self._compiled = compiled.store.Lane(
            keyspace.entries,  # type: ignore[arg-type]
            Packed,
            limits.max_key_bytes,
            limits.max_value_bytes,
            limits.max_batch,
            max_reply_bytes,
            MAX_LEVELS,
            durable,
            *keyspace.followers_of_writes(),
        )

    def run(self, bodies: Sequence[object], answers: Answers) -> int:
        """Answer requests, from the first that has no place in ``answers``; how many."""
        keyspace = self._keyspace
        with keyspace.lock:
            taken, newest, rev, commits, changes, size, replaced = self._compiled.run(
                bodies,
                len(answers.replies),
                keyspace.rev,
                keyspace.removed_rev,
                keyspace.now(),
                keyspace.takes_writes,
                answers.replies,
                answers.reveals,
                answers.ops,
                answers.subjects,
            )
            if replaced is not None and commits:
                keyspace.add_run(commits, rev, changes, size, replaced)
        answers.newest = max(answers.newest, newest)
        return taken


def open_lane(
    keyspace: Keyspace, limits: KeyLimits, max_reply_bytes: int, durable: bool
) -> Lane | None:
    """The lane of a store; None where its table is not compiled."""
    if not is_compiled(keyspace.entries):
        return None
    return Lane(keyspace, limits, max_reply_bytes, durable)
