"""The claims of members: which snapshots are really on their disks.

The log in etcd is trimmed because members have snapshots, so a claim that is wrong loses data. A
member claims a snapshot only after it has read all of it back, and synced it. It writes the claim
before it does anything else at each start, as its directory may be another one than before: an
older copy, or an empty one. It writes it again after each snapshot, in each term, and at least
every `RENEW_SECONDS`.

A process renews only the record that it has itself written: if the member was removed, or another
process has its name, it claims nothing any more, and says so.

The leader counts a claim only if it was written in its own term, so that each member has said
since then what it has, and if it has itself seen it renewed within the last hour
(`zkv.cluster.trimming`).
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from zkv.cluster.records import Claim, MemberRecord
from zkv.durability import recovery, snapshot
from zkv.errors import DamageError, FormatError
from zkv.etcd.errors import EtcdError

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.cluster.shared_log import SharedLog
    from zkv.durability.snapshot import Verified
    from zkv.engine import Engine, OnDisk

_log = logging.getLogger("zkv.cluster")

RENEW_SECONDS: Final = 60.0
"""A claim is renewed at least so often."""
NO_CLAIM: Final = Claim()


class _Place(NamedTuple):
    """Which file a snapshot is: another one has another number, size or time."""

    rev: int
    inode: int
    size: int
    changed: int


class Claims:
    """The claim of this member. One thread at a time calls it.

    Args:
        log: the log in etcd.
        name: the name of the member.
        engine: the engine.
        disk: what it has in its data directory.
        advertised: returns the endpoints at which clients find this server.
        clock: returns seconds.
    """

    def __init__(
        self,
        log: SharedLog,
        name: str,
        engine: Engine,
        disk: OnDisk,
        advertised: Callable[[], list[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._name = name
        self._engine = engine
        self._disk = disk
        self._advertised = advertised
        self._clock = clock
        self._nonce = secrets.token_hex(8)
        self._verified: dict[_Place, Verified | None] = {}
        self._revision = 0  # Of the record in etcd.
        self._record: MemberRecord | None = None  # As it was written last.
        self._term = 0
        self._renewed_at = 0.0
        self._lost = False

    @property
    def begun(self) -> bool:
        """True once this process has written a claim."""
        return self._record is not None

    def begin(self, term: int) -> None:
        """Write the first claim of this process: the newest snapshot, and nothing that was before.

        Raises EtcdError.
        """
        found = self._snapshots(1)
        self._write_first(Claim(found[0].lsn, found[0].crc) if found else NO_CLAIM, term)

    def withdraw(self) -> None:
        """Claim nothing: what is here is not of the history in etcd. Raises EtcdError."""
        self._write_first(NO_CLAIM, 0)
        self._lost = True

    def look(self, term: int) -> None:
        """Renew the claim if there is a reason to. Raises EtcdError.

        Args:
            term: the newest term that is known.
        """
        if self._record is None or self._lost:
            return
        found = self._snapshots(snapshot.KEPT_SNAPSHOTS)
        first, second = found[0] if found else None, found[1] if len(found) > 1 else None
        claim = Claim(
            0 if first is None else first.lsn,
            0 if first is None else first.crc,
            0 if second is None else second.lsn,
        )
        due = self._clock() - self._renewed_at >= RENEW_SECONDS
        if due or term != self._term or claim != self._record.claim:
            self._renew(claim, term, self._record.renewals + 1)

    def _write_first(self, claim: Claim, term: int) -> None:
        record = self._make(claim, 0)
        self._revision = self._log.declare(record)
        self._note(record, term)

    def _renew(self, claim: Claim, term: int, renewals: int) -> None:
        record = self._make(claim, renewals)
        try:
            revision = self._log.renew_member(record, self._revision)
        except EtcdError:
            self._find()
            raise
        if revision is None:
            self._find()
        else:
            self._revision = revision
            self._note(record, term)

    def _find(self) -> None:
        """Find out what is there, after a renewal that has failed. Raises EtcdError."""
        there = next((it for it in self._log.declared() if it.record.name == self._name), None)
        if there is not None and there.record.nonce == self._nonce:
            self._revision = there.revision  # It was written, and the answer got lost.
            return
        self._lost = True
        if there is None:
            _log.error(
                "%s was removed from the members: it claims no snapshots any more; it declares "
                "itself again at its next start", self._name,
            )  # fmt: skip
        else:
            _log.error(
                "another process is member %s, too: this one claims no snapshots any more. Two "
                "members must not have the same name", self._name,
            )  # fmt: skip

    def _make(self, claim: Claim, renewals: int) -> MemberRecord:
        return MemberRecord(
            name=self._name,
            endpoints=self._advertised(),
            applied=self._engine.last_lsn,
            time=self._engine.clock(),
            claim=claim,
            nonce=self._nonce,
            renewals=renewals,
        )

    def _note(self, record: MemberRecord, term: int) -> None:
        self._record, self._term, self._renewed_at = record, term, self._clock()

    def _snapshots(self, most: int) -> list[Verified]:
        """Return the newest snapshots that are good, the newest first."""
        places = self._places()
        self._verified = {it: self._verified[it] for it in places if it in self._verified}
        good: list[Verified] = []
        for place in reversed(places):
            if len(good) == most:
                break
            if place not in self._verified:
                self._verified[place] = self._verify(place)
            verified = self._verified[place]
            if verified is not None:
                good.append(verified)
        return good

    def _places(self) -> list[_Place]:
        directory = self._disk.storage.snapshot_directory
        places = []
        try:
            for rev in recovery.snapshots(self._disk.files, directory):
                found = os.stat(directory / snapshot.file_name(rev))
                places.append(_Place(rev, found.st_ino, found.st_size, found.st_mtime_ns))
        except OSError as error:
            _log.error("the snapshots cannot be read: %s", error)
            return []
        return places

    def _verify(self, place: _Place) -> Verified | None:
        """Read a snapshot back; None if it is not good."""
        path = self._disk.storage.snapshot_directory / snapshot.file_name(place.rev)
        try:
            return snapshot.verify(self._disk.files, path)
        except (DamageError, FormatError, OSError) as error:
            _log.error("%s; this member does not claim to have it", error)
            return None
