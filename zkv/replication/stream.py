"""Reads the log of another server: asks for commits and snapshots, and checks what comes.

Strategy: each request says what the asker has, and so confirms it; the reply has what comes next,
as followers fetch in Kafka (Kreps et al., "Kafka: a Distributed Messaging System for Log
Processing", NetDB 2011). So the asker decides how much is under way, and goes on where it was after
any failure. PROTOCOL.md specifies REPLICATE.

Nothing that fails a check is passed on: checksums, log numbers without a gap, and the identity of
the store.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar

import msgspec
from msgspec import Struct

from zkv.errors import ZkvError
from zkv.keyspace.change import unpack
from zkv.keyspace.lineage import NO_LINEAGE, Lineage, Term

if TYPE_CHECKING:
    from typing import BinaryIO

    from zkv.durability.files import Files
    from zkv.keyspace import Commit

_T = TypeVar("_T")

Ask = Callable[[dict[str, Any], float], dict[str, Any]]
"""Asks a server: the request, and the seconds to wait for the reply. Raises StreamError."""

WAIT_MS: Final = 1_000
"""How long a server waits for commits before it says that there are none."""
REPLY_SECONDS: Final = 5.0
"""How long the asker waits beyond that."""
PART_BYTES: Final = 1024 * 1024
"""Bytes of a part of a snapshot, and about those of the commits in a reply."""
SNAPSHOT_SECONDS: Final = 600.0
"""How long a server may take to write a snapshot, before it sends the first part."""


class StreamError(ZkvError):
    """Nothing has come, or what has come is not good. It may be tried again."""


class StreamRefusedError(StreamError):
    """The server refuses.

    Args:
        code: why, in the protocol's words.
        message: for people.
        reply: the whole reply.
    """

    def __init__(self, code: str, message: str, reply: dict[str, Any]) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.reply = reply


class LogPosition(NamedTuple):
    """A place in a history."""

    store: str
    term: Term | None
    """The term of the commit ``lsn``."""
    lsn: int

    @classmethod
    def of(cls, lineage: Lineage, lsn: int) -> Self:
        """Return the place of the commit ``lsn`` in the history of a lineage."""
        return cls(lineage.store, lineage.at(lsn), lsn)


class Confirmed(NamedTuple):
    """The newest commit that the asker has on its disk."""

    lsn: int
    rev: int


class _Answer(Struct):
    store: str
    terms: tuple[Term, ...]
    commits: list[bytes]
    crc: int
    lsn: int
    rev: int
    time: int


class _HandedOver(Struct):
    lsn: int
    rev: int


class SnapshotPart(Struct):
    """A part of a snapshot file; the fields are those of the reply."""

    store: str
    terms: tuple[Term, ...]
    snapshot: int
    lsn: int
    size: int
    offset: int
    data: bytes
    crc: int

    @property
    def lineage(self) -> Lineage:
        """That of the store, up to the snapshot."""
        return Lineage(self.store, tuple(term for term in self.terms if term.first_lsn <= self.lsn))


class Pulled(NamedTuple):
    """An answer of a server."""

    commits: list[Commit]
    lineage: Lineage
    lsn: int
    """The newest log number there that is on disk."""
    rev: int
    time: int
    """The time there, Unix time in ms."""


class FetchedSnapshot(NamedTuple):
    """A snapshot file that has been fetched, and is not checked yet."""

    rev: int
    lsn: int
    size: int
    lineage: Lineage


def pull(
    ask: Ask,
    member: str,
    after: LogPosition,
    on_disk: Confirmed,
    wait: int = WAIT_MS,
    sync: bool = True,
) -> Pulled:
    """Ask for the commits after a position, and confirm what is on disk here.

    Args:
        ask: asks the server.
        member: the asker's name.
        after: the newest commit that the asker has.
        on_disk: the newest one that is on its disk.
        wait: ms for which the server waits if there is nothing new.
        sync: the asker counts for ``replication.sync`` of the server.

    Raises:
        StreamRefusedError: the server refuses, with `COMPACTED` or `DIVERGED` if the asker has to
            begin anew from a snapshot.
        StreamError: nothing has come, or something that is no answer.
    """
    term = after.term
    reply = ask(
        {
            "op": "REPLICATE",
            "member": member,
            "store": after.store,
            "after": after.lsn,
            "term": 0 if term is None else term.number,
            "tag": "" if term is None else term.tag,
            "durable": on_disk.lsn,
            "durable_rev": on_disk.rev,
            "wait": wait,
            "limit": PART_BYTES,
            "sync": sync,
        },
        wait / 1000 + REPLY_SECONDS,
    )
    answer = _convert(reply, _Answer)
    crc = 0
    for payload in answer.commits:
        crc = zlib.crc32(payload, crc)
    if crc != answer.crc:
        raise StreamError("the checksum of commits does not match")
    commits = _unpack(answer.commits, after.lsn)
    lineage = Lineage(answer.store, answer.terms)
    return Pulled(commits, lineage, answer.lsn, answer.rev, answer.time)


def supersede(ask: Ask, member: str, attempt: int, term: int, leader: list[str]) -> int:
    """Have a primary stop to lead, in favour of the asker; return its last log number.

    Args:
        ask: asks the primary.
        member: the asker's name.
        attempt: the number of this attempt, higher than that of all before.
        term: the term that the asker is going to begin.
        leader: where clients find the asker.

    Raises StreamRefusedError, StreamError.
    """
    wish = {"attempt": attempt, "term": term, "leader": leader}
    reply = ask({"op": "REPLICATE", "member": member, "supersede": wish}, REPLY_SECONDS)
    return _convert(reply, _HandedOver).lsn


def reinstate(ask: Ask, member: str, attempt: int) -> None:
    """Have a primary lead again after `supersede`, or lead on if that has not arrived yet.

    Raises StreamRefusedError, StreamError.
    """
    wish = {"attempt": attempt, "term": 0, "leader": None}
    reply = ask({"op": "REPLICATE", "member": member, "supersede": wish}, REPLY_SECONDS)
    _convert(reply, _HandedOver)


def snapshot_parts(
    ask: Ask, member: str, store: str = "", sync: bool = True
) -> Iterator[SnapshotPart]:
    """Ask for the newest snapshot of a server, and yield it part by part.

    Args:
        ask: asks the server.
        member: the asker's name.
        store: the store that it must be of; empty = any.
        sync: as for `pull`.

    Raises StreamRefusedError, StreamError.
    """
    rev = offset = 0
    ask({"op": "PING"}, REPLY_SECONDS)  # Only a server that is there may take its time.
    while True:
        reply = ask(
            {
                "op": "REPLICATE", "member": member, "store": store, "snapshot": rev,
                "offset": offset, "limit": PART_BYTES, "sync": sync,
            },
            SNAPSHOT_SECONDS,
        )  # fmt: skip
        part = _convert(reply, SnapshotPart)
        if zlib.crc32(part.data) != part.crc:
            raise StreamError("the checksum of a part of the snapshot does not match")
        if part.offset != offset or (offset and part.snapshot != rev) or not part.data:
            raise StreamError("a part of the snapshot is missing")
        yield part
        rev, offset = part.snapshot, offset + len(part.data)
        if offset >= part.size:
            return


def fetch_snapshot(
    ask: Ask,
    member: str,
    files: Files,
    file: BinaryIO,
    store: str = "",
    sync: bool = True,
    accept: Callable[[SnapshotPart], None] = lambda part: None,
) -> FetchedSnapshot:
    """Copy the newest snapshot of a server into a file, part by part. Does not sync the file.

    Args:
        ask: asks the server.
        member: the asker's name.
        files: the file operations.
        file: takes the bytes.
        store: the store that it must be of; empty = any.
        sync: as for `pull`.
        accept: gets the first part; may raise StreamError.

    Raises StreamRefusedError, StreamError, OSError.
    """
    fetched = FetchedSnapshot(0, 0, 0, NO_LINEAGE)
    for part in snapshot_parts(ask, member, store, sync):
        if not part.offset:
            accept(part)
        files.write(file, part.data)
        lineage = Lineage(part.store, part.terms)
        fetched = FetchedSnapshot(part.snapshot, part.lsn, part.size, lineage)
    return fetched


def hold_snapshot(ask: Ask, member: str, fetched: FetchedSnapshot) -> None:
    """Have a server keep the log after a snapshot that was fetched. Raises StreamError.

    It keeps that for a while after a part of the snapshot was asked for.
    """
    reply = ask(
        {
            "op": "REPLICATE", "member": member, "snapshot": fetched.rev,
            "offset": fetched.size - 1, "limit": 1, "sync": False,
        },
        REPLY_SECONDS,
    )  # fmt: skip
    _convert(reply, SnapshotPart)


def _unpack(payloads: list[bytes], after: int) -> list[Commit]:
    try:
        commits = list(map(unpack, payloads))
    except ValueError as error:
        raise StreamError(str(error)) from None
    for place, commit in enumerate(commits, after + 1):
        if commit.lsn != place:
            raise StreamError(f"log number {commit.lsn} where {place} should be")
    return commits


def _convert(reply: dict[str, Any], kind: type[_T]) -> _T:
    """Return a successful reply as an object. Raises StreamRefusedError, StreamError."""
    if reply.get("ok") is not True:
        code, message = str(reply.get("code")), str(reply.get("message"))
        raise StreamRefusedError(code, message, reply)
    try:
        return msgspec.convert(reply, kind)
    except msgspec.ValidationError as error:
        raise StreamError(f"not an answer to REPLICATE: {error}") from None
