"""How a primary stops to lead, in favour of a standby that is being promoted.

Order: first the role changes, so that no further request is taken up; then the keyspace is sealed,
under its lock, so that no write is under way; then the log is put on disk, and the directory says
who leads. Only then the standby learns the last log number: so it has all that was ever answered
here. The front sends its replies in order, so no read that it runs later leaves before that.

Requests of a standby may arrive late, and in another order than they were sent in: each was sent by
a connection of its own if the one before got no reply. So a standby numbers its attempts. This
server leads again only if the newest attempt that it has heard of has failed, and an attempt that
has failed already stops nothing. All that is kept on disk but for failures: what was sent to a
process before this one does not arrive any more.

A server that has stopped to lead may make promises, as any standby: `zkv.replication.promises`. It
leads again only if none is left: another server may lead by it.
"""

from __future__ import annotations

import logging
import threading
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from zkv.errors import BadRequest, NotLeader, ReadOnly
from zkv.replication.place import RoleRecord

if TYPE_CHECKING:
    from zkv.engine import Engine
    from zkv.replication.place import RoleFile
    from zkv.replication.role import Role

_log = logging.getLogger("zkv.replication")


MOST_MEMBERS: Final = 1_000
"""Members whose failed attempts are remembered; the ones that failed last."""


class HandOver:
    """Stops and resumes to lead. Any thread; one at a time.

    Args:
        engine: the engine.
        role: the server's role.
        file: says so in the data directory.
    """

    def __init__(self, engine: Engine, role: Role, file: RoleFile) -> None:
        self._engine = engine
        self._role = role
        self._file = file
        self._lock = threading.Lock()
        held = file.record
        # In favour of whom, if it does not lead.
        self._yielded = held if held is not None and held.role == "superseded" else None
        self._failed: dict[str, int] = {}  # Of a member: its last attempt that has failed.

    def supersede(self, member: str, attempt: int, term: int, leader: list[str]) -> tuple[int, int]:
        """Stop to lead; return the last log number and revision, which are on disk.

        Args:
            member: the name of the standby that takes over.
            attempt: the number of its attempt.
            term: the term that it is going to begin.
            leader: where clients find it.

        Raises:
            BadRequest: the term is not higher than the present one, or that attempt has failed.
            NotLeader: this server does not lead, unless it has stopped in favour of the same
                standby, by this attempt or one before.
            ReadOnly: the log, or the file, cannot be written; the server leads on.
        """
        with self._lock:
            if attempt <= self._failed.get(member, 0):
                raise BadRequest(f"field `supersede`: attempt {attempt} has failed already")
            if not self._role.leads and not self._yielded_to(member, attempt):
                raise self._role.error("can be superseded")
            if term <= self._engine.keyspace.lineage.term:
                raise BadRequest(f"field `supersede`: term {term} has begun before")
            self._role.yield_to(leader)
            self._engine.keyspace.seal(partial(self._role.error, "takes writes"))
            try:
                rev = self._engine.flush()
                record = self._note_superseded(
                    RoleRecord("superseded", leader, member, term, attempt)
                )
            except (ReadOnly, OSError) as error:
                self._lead_again()
                raise ReadOnly(f"this server leads on: {error}") from error
            self._yielded = record
            _log.warning("superseded by term %d, at %s", term, ", ".join(leader))
            return self._engine.last_lsn, rev

    def resume(self, member: str, attempt: int) -> tuple[int, int]:
        """Lead again, if this server has stopped by this attempt; return the same.

        Args:
            member: the name of the standby whose attempt has failed.
            attempt: its number. If the attempt itself arrives later, it is refused.

        Raises:
            NotLeader: it has stopped by a later attempt, or in favour of another server, or has
                promised to confirm nothing to a lower term than that of another one.
            ReadOnly: the file cannot be written.
        """
        with self._lock:
            self._note_failed(member, attempt)
            if not self._role.leads:
                if not self._yielded_to(member, attempt):
                    raise self._role.error("leads")
                self._forget_superseded(member, attempt)
                self._lead_again()
                _log.warning("this server leads again: the promotion of the other one failed")
            return self._engine.last_lsn, self._engine.keyspace.rev

    def require_use(self, member: str) -> None:
        """Raise NotLeader if no further commits will come here, as another server leads.

        Args:
            member: the name of the standby that asks. The one that takes over may ask on: it has to
                know that it has all.
        """
        held = self._yielded
        if held is not None and held.member != member:
            self._role.require_lead("has the newest commits")

    def _note_superseded(self, record: RoleRecord) -> RoleRecord:
        """Write the file, and return what it says. What was promised stays. Raises OSError."""
        with self._file.lock:
            if (held := self._file.record) is not None:
                record = msgspec.structs.replace(record, promises=held.promises)
            self._file.write(record)
        return record

    def _forget_superseded(self, member: str, attempt: int) -> None:
        """Remove the file, unless another server may lead by a promise. Raises NotLeader, ReadOnly.

        A promise to the member itself has no effect any more: this attempt has failed.
        """
        with self._file.lock:
            held = self._file.record
            for each in [] if held is None else held.promises:
                if each.member != member or each.attempt > attempt:
                    raise NotLeader(
                        f"this server has promised term {each.term} to {each.member}, and leads "
                        f"no more",
                        leader=self._role.leader,
                    )
            try:
                self._file.write(None)
            except OSError as error:
                raise ReadOnly(f"{self._file.directory}: {error.strerror or error}") from error

    def _yielded_to(self, member: str, attempt: int) -> bool:
        """Return True if this server has stopped by an attempt of this member, up to this one."""
        held = self._yielded
        return held is not None and held.member == member and held.attempt <= attempt

    def _note_failed(self, member: str, attempt: int) -> None:
        self._failed[member] = max(attempt, self._failed.pop(member, 0))
        if len(self._failed) > MOST_MEMBERS:
            del self._failed[next(iter(self._failed))]

    def _lead_again(self) -> None:
        self._yielded = None
        self._engine.keyspace.unseal()
        self._role.begin_to_lead()
