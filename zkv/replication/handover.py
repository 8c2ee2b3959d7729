"""How a primary stops to lead, in favour of a standby that is being promoted.

Order: first the role changes, so that no further request is taken up; then the keyspace is sealed,
under its lock, so that no write is under way; then the log is put on disk, and the directory says
who leads. Only then the standby learns the last log number: so it has all that was ever answered
here. The front sends its replies in order, so no read that it runs later leaves before that.
"""

from __future__ import annotations

import logging
import threading
from functools import partial
from typing import TYPE_CHECKING

from zkv.errors import BadRequest, ReadOnly
from zkv.replication.place import RoleRecord, write_role

if TYPE_CHECKING:
    from pathlib import Path

    from zkv.durability.files import Files
    from zkv.engine import Engine
    from zkv.replication.role import Role

_log = logging.getLogger("zkv.replication")


class HandOver:
    """Stops and resumes to lead. Any thread; one at a time.

    Args:
        engine: the engine.
        role: the server's role.
        files: the file operations.
        directory: the data directory.
    """

    def __init__(self, engine: Engine, role: Role, files: Files, directory: Path) -> None:
        self._engine = engine
        self._role = role
        self._files = files
        self._directory = directory
        self._lock = threading.Lock()
        self._superseded_by = 0  # The term; 0 = by none.

    def supersede(self, term: int, leader: list[str]) -> tuple[int, int]:
        """Stop to lead; return the last log number and revision, which are on disk.

        Args:
            term: the term that the other server is going to begin.
            leader: where clients find it.

        Raises:
            BadRequest: the term is not higher than the present one, or this server does not lead.
            ReadOnly: the log, or the file, cannot be written; the server leads on.
        """
        with self._lock:
            if term <= self._engine.keyspace.lineage.term:
                raise BadRequest(f"field `supersede`: term {term} has begun before")
            if not self._role.leads and self._superseded_by != term:
                raise self._role.error("can be superseded")
            self._role.yield_to(leader)
            self._engine.keyspace.seal(partial(self._role.error, "takes writes"))
            try:
                rev = self._engine.flush()
                write_role(self._files, self._directory, RoleRecord("superseded", leader, "", term))
            except (ReadOnly, OSError) as error:
                self._lead_again()
                raise ReadOnly(f"this server leads on: {error}") from error
            self._superseded_by = term
            _log.warning("superseded by term %d, at %s", term, ", ".join(leader))
            return self._engine.last_lsn, rev

    def resume(self) -> tuple[int, int]:
        """Lead again, if this server was superseded since its start; return the same.

        Raises ReadOnly.
        """
        with self._lock:
            if self._superseded_by:
                try:
                    write_role(self._files, self._directory, None)
                except OSError as error:
                    raise ReadOnly(f"{self._directory}: {error.strerror or error}") from error
                self._lead_again()
                _log.warning("this server leads again: the promotion of the other one failed")
            return self._engine.last_lsn, self._engine.keyspace.rev

    def _lead_again(self) -> None:
        self._superseded_by = 0
        self._engine.keyspace.unseal()
        self._role.begin_to_lead()
