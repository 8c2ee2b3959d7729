"""The promises of a server that does not lead: to confirm nothing to a lower term.

A standby that is promoted without its primary asks the other machines for a promise of the term
that it is going to begin (`zkv.replication.vote`). A server that has made one confirms nothing
until that term, or a higher one, is in its own log: its position is then in no history but that of
a server at such a term. Meanwhile it goes on to copy, by requests that do not count for ``sync``.

Rules, each of which the safety of a promotion needs:

- A promise is on disk before it is answered, and the place in the log is read after that. So the
  answer covers all that this server has ever confirmed to a lower term, also after a restart.
- A term is promised once: to one attempt of one member, and only above all terms that are promised
  or have begun here. A higher term may be promised although a lower one is: its owner may be gone.
- A server that leads promises nothing; nor does one that has not said yet on disk that it does not.
- A withdrawal removes that one promise, as its owner never begins that term. The lower ones hold
  again: another server may lead by them. So they are kept, until the log has commits of a term as
  high that do more than begin it. Such commits are given up for no history of a lower term.
- An attempt that has been withdrawn is promised nothing any more: its request may arrive late. That
  is remembered in memory, as what was sent to a process before this one does not arrive.
- The owner of a promise has made it to itself, too. It begins the term while it holds the lock that
  makes promises, and only if its own promise is still the newest one.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from typing import TYPE_CHECKING, Final

import msgspec

from zkv.errors import Diverged, ReadOnly
from zkv.protocol.replies import PromiseReply
from zkv.replication.handover import MOST_MEMBERS
from zkv.replication.place import PromiseRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zkv.config import ReplicationSettings
    from zkv.engine import Engine
    from zkv.keyspace.lineage import Lineage
    from zkv.protocol.requests import Promise
    from zkv.replication.place import RoleFile, RoleRecord
    from zkv.replication.role import Role

_log = logging.getLogger("zkv.replication")

HELD_SECONDS: Final = 6.0
"""For so long after a promise no other member gets a higher one, so that the promotion can end. A
promotion waits for answers a little less long. Only who wins depends on it."""
MOST_PROMISES: Final = 32
"""Promises that are kept. Beyond that the lowest is dropped, and the next one stays for good."""


class Promises:
    """The promises of a server. Any thread.

    Args:
        engine: the engine.
        role: the server's role.
        file: where they are kept.
        settings: are told to who asks, as those of all machines have to be the same.
    """

    def __init__(
        self, engine: Engine, role: Role, file: RoleFile, settings: ReplicationSettings
    ) -> None:
        self._engine = engine
        self._role = role
        self._file = file
        self._settings = settings
        self._server = secrets.token_hex(8)
        self._held_until = 0.0  # By `time.monotonic`.
        self._void: dict[str, int] = {}  # Of a member: its last attempt that was withdrawn.

    def answer(self, member: str, store: str, wish: Promise) -> PromiseReply:
        """Promise a term, or withdraw a promise, and say how far the log on disk is.

        Args:
            member: the name of who asks.
            store: the identity of its store.
            wish: the promise.

        Raises:
            Diverged: this server has another store, or none.
            ReadOnly: the promise cannot be written.
        """
        lineage = self._engine.keyspace.lineage
        if not lineage.store or store != lineage.store:
            raise Diverged(
                f"field `store`: this is store {lineage.store or 'none'}, not {store or 'none'}",
                common=0,
            )
        with self._file.lock:
            if wish.tag is None:
                self._withdraw(member, wish.attempt)
                granted = False
            else:
                asked = PromiseRecord(member, wish.attempt, wish.term, wish.tag)
                granted = self._grant(asked)
            return self._reply(granted)

    @property
    def highest(self) -> int:
        """The highest term that was promised; 0 = none."""
        return max((each.term for each in self._promises), default=0)

    @property
    def binding(self) -> int:
        """The highest promised term that is not in the log here; 0 = commits may be confirmed."""
        lineage = self._engine.keyspace.lineage
        waiting = (each.term for each in self._promises if not _has_come(each, lineage))
        return max(waiting, default=0)

    def made_to(self, member: str) -> list[PromiseRecord]:
        """Return the promises to a member."""
        return [each for each in self._promises if each.member == member]

    def holds(self, member: str, attempt: int) -> bool:
        """Return True if the newest promise is one to this attempt."""
        newest = self._promises[-1:]
        return [(each.member, each.attempt) for each in newest] == [(member, attempt)]

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Within the block, nothing is promised by other threads."""
        with self._file.lock:
            yield

    @property
    def _promises(self) -> list[PromiseRecord]:
        record = self._file.record
        return [] if record is None else record.promises

    def _grant(self, asked: PromiseRecord) -> bool:
        """Note a promise on disk; return False if it cannot be made. Raises ReadOnly."""
        record = self._file.record
        if record is None or self._role.leads or asked.attempt <= self._void.get(asked.member, 0):
            return False
        if record.promises and asked == record.promises[-1]:  # A repeat.
            return True
        if asked.term <= max(self.highest, self._engine.keyspace.lineage.term):
            return False
        newest = record.promises[-1].member if record.promises else asked.member
        if newest != asked.member and time.monotonic() < self._held_until:
            return False
        self._write(record, [*self._needed(record), asked])
        self._held_until = time.monotonic() + HELD_SECONDS
        _log.warning(
            "term %d is promised to %s: nothing is confirmed to a primary of a lower one",
            asked.term, asked.member,
        )  # fmt: skip
        return True

    def _withdraw(self, member: str, attempt: int) -> None:
        self._void[member] = max(attempt, self._void.pop(member, 0))
        if len(self._void) > MOST_MEMBERS:
            del self._void[next(iter(self._void))]
        record = self._file.record
        if record is None:
            return
        left = [
            each for each in record.promises if (each.member, each.attempt) != (member, attempt)
        ]
        if left != record.promises:
            self._write(record, left)
            self._held_until = 0.0
            _log.warning("the promise to %s is withdrawn: its promotion has failed", member)

    def _needed(self, record: RoleRecord) -> list[PromiseRecord]:
        """Return the promises that have to be kept beside a further one."""
        engine = self._engine
        written, _ = engine.keyspace.lineage.written(engine.durable_lsn)
        reached = 0 if written is None else written.number
        left = [each for each in record.promises if each.term > reached]
        if len(left) < MOST_PROMISES:
            return left
        # Nobody knows which of them may be withdrawn yet: the floor must not become too low.
        return [msgspec.structs.replace(left[1], attempt=0), *left[2:]]

    def _write(self, record: RoleRecord, promises: list[PromiseRecord]) -> None:
        try:
            self._file.write(msgspec.structs.replace(record, promises=promises))
        except OSError as error:
            raise ReadOnly(f"{self._file.directory}: {error.strerror or error}") from error

    def _reply(self, granted: bool) -> PromiseReply:
        engine = self._engine
        lineage = engine.keyspace.lineage
        term, lsn = lineage.written(engine.durable_lsn)  # After the promise is on disk.
        return PromiseReply(
            server=self._server,
            store=lineage.store,
            term=0 if term is None else term.number,
            tag="" if term is None else term.tag,
            lsn=lsn,
            granted=granted,
            leads=self._role.leads,
            promised=max(self.highest, lineage.term),
            sync=self._settings.sync,
            machines=self._settings.machines,
        )


def _has_come(promise: PromiseRecord, lineage: Lineage) -> bool:
    """Return True if the promised term, or a higher one, has begun in this history."""
    if lineage.term > promise.term:
        return True
    return bool(lineage.terms) and (lineage.term, lineage.terms[-1].tag) == (
        promise.term, promise.tag,
    )  # fmt: skip
