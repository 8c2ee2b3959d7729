"""Reads the log of another server: asks for commits and snapshots, and checks what comes.

Strategy: each request says what the asker has, and so confirms it; the reply has what comes next,
as followers fetch in Kafka (Kreps et al., "Kafka: a Distributed Messaging System for Log
Processing", NetDB 2011). So the asker decides how much is under way, and goes on where it was after
any failure. PROTOCOL.md specifies REPLICATE.

Nothing that fails a check is passed on: checksums, log numbers without a gap, and the identity of
the store.

An answer comes whole or not at all. So the asker asks for as much as the link carries in about a
second, and waits longer each time that nothing has come: one commit may be larger than that
(`Pace`).
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar

import msgspec
from msgspec import Struct

from zkv.durability.files import Files, LargeFile
from zkv.errors import ZkvError
from zkv.keyspace.change import unpack
from zkv.keyspace.lineage import NO_LINEAGE, Lineage, Term

if TYPE_CHECKING:
    from typing import BinaryIO

    from zkv.keyspace import Commit
    from zkv.replication.vote import Bid

_T = TypeVar("_T")

Ask = Callable[[dict[str, Any], float], dict[str, Any]]
"""Asks a server: the request, and the seconds to wait for the reply.

Raises StreamTimeoutError if none comes in that time, or another StreamError."""

WAIT_MS: Final = 1_000
"""How long a server waits for commits before it says that there are none."""
REPLY_SECONDS: Final = 5.0
"""How long the asker waits beyond that, unless the link has proved to be slow."""
MOST_REPLY_SECONDS: Final = 300.0
"""How long it waits at most."""
PART_BYTES: Final = 1024 * 1024
"""Most bytes of a part of a snapshot, and about those of the commits in a reply."""
FIRST_BYTES: Final = 64 * 1024
"""The same of the first one, when nobody knows yet what the link carries."""
LEAST_BYTES: Final = 16 * 1024
"""The same where the link is as slow as can be."""
SNAPSHOT_SECONDS: Final = 600.0
"""How long a server may take to write a snapshot, before it sends the first part."""


class StreamError(ZkvError):
    """Nothing has come, or what has come is not good. It may be tried again."""


class StreamTimeoutError(StreamError):
    """Nothing has come in time: nobody is there, or the link is slow."""


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
    age: int = 0  # Older servers do not say it.


class _HandedOver(Struct):
    lsn: int
    rev: int


class PromiseAnswer(Struct):
    """The answer of a server that was asked for a promise; the fields are those of the reply."""

    server: str
    store: str
    term: int
    tag: str
    lsn: int
    granted: bool
    leads: bool
    promised: int
    sync: int
    machines: list[str]

    @property
    def place(self) -> tuple[int, int]:
        """How long its log is, to be compared with others: see `zkv.replication.vote`."""
        return self.term, self.lsn


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
    age: int
    """Milliseconds since a primary was heard of there; 0: it is one."""


class FetchedSnapshot(NamedTuple):
    """A snapshot file that has been fetched, and is not checked yet."""

    rev: int
    lsn: int
    size: int
    lineage: Lineage


class Asker:
    """Asks a server for parts of its log or of a snapshot, as large as the link carries.

    Strategy: what comes tells how fast the link is. The next part is to take a fifth of
    `REPLY_SECONDS`; it is at most twice as large as the last one, or half as large. After each part
    that has not come, the next one is a quarter of it, and is waited for twice as long.

    A place where nobody is must not be waited for so long. So after a failure a small request has
    to be answered in the usual time first.

    Args:
        ask: asks the server.
    """

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.limit = FIRST_BYTES
        """Bytes of the next part."""
        self._seconds = REPLY_SECONDS
        self._in_doubt = False  # The last part has not come.

    def part(
        self,
        request: dict[str, Any],
        size: Callable[[dict[str, Any]], int],
        beyond: float = 0.0,
        most: float = math.inf,
        insist: bool = False,
    ) -> dict[str, Any]:
        """Ask for a part; return the reply.

        Args:
            request: without its ``limit``.
            size: returns the bytes of the part in a reply.
            beyond: seconds that the server may take, besides those for the way.
            most: seconds for which to wait at most.
            insist: ask again where nothing comes in time, as long as the server is there.

        Raises StreamTimeoutError, StreamError.
        """
        end = time.monotonic() + most
        while True:
            if self._in_doubt:
                self.ask({"op": "PING"}, min(REPLY_SECONDS, most))
            is_last = self._seconds >= MOST_REPLY_SECONDS
            seconds = max(0.0, min(beyond + self._seconds, end - time.monotonic()))
            try:
                return self._part(request, size, seconds)
            except StreamTimeoutError:
                if is_last or not insist:
                    raise

    def _part(
        self, request: dict[str, Any], size: Callable[[dict[str, Any]], int], seconds: float
    ) -> dict[str, Any]:
        limit, begun = self.limit, time.monotonic()
        try:
            reply = self.ask(request | {"limit": limit}, seconds)
        except StreamTimeoutError:
            self._in_doubt = True
            self.limit = max(LEAST_BYTES, limit // 4)
            self._seconds = min(2 * self._seconds, MOST_REPLY_SECONDS)
            raise
        took = time.monotonic() - begun
        self._in_doubt = False
        self._seconds = min(max(REPLY_SECONDS, self._seconds / 2, 2 * took), MOST_REPLY_SECONDS)
        if (brought := size(reply)) >= limit // 2:  # Less tells little of the link.
            fits = round(brought / max(took, 1e-6) * REPLY_SECONDS / 5)
            self.limit = max(LEAST_BYTES, min(max(fits, limit // 2), 2 * limit, PART_BYTES))
        return reply


def pull(
    asker: Asker,
    member: str,
    after: LogPosition,
    on_disk: Confirmed,
    wait: int = WAIT_MS,
    sync: bool = True,
    most: float = math.inf,
    insist: bool = False,
) -> Pulled:
    """Ask for the commits after a position, and confirm what is on disk here.

    Args:
        asker: asks the server.
        member: the asker's name.
        after: the newest commit that the asker has.
        on_disk: the newest one that is on its disk.
        wait: ms for which the server waits if there is nothing new.
        sync: the asker counts for ``replication.sync`` of the server.
        most: seconds for which to wait at most.
        insist: ask again where nothing comes in time, as long as the server is there.

    Raises:
        StreamRefusedError: the server refuses, with `COMPACTED` or `DIVERGED` if the asker has to
            begin anew from a snapshot.
        StreamError: nothing has come, or something that is no answer.
    """
    term = after.term
    reply = asker.part(
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
            "sync": sync,
        },
        _bytes_of_commits,
        wait / 1000,
        most,
        insist,
    )
    answer = _convert(reply, _Answer)
    crc = 0
    for payload in answer.commits:
        crc = zlib.crc32(payload, crc)
    if crc != answer.crc:
        raise StreamError("the checksum of commits does not match")
    commits = _unpack(answer.commits, after.lsn)
    lineage = Lineage(answer.store, answer.terms)
    return Pulled(commits, lineage, answer.lsn, answer.rev, answer.time, answer.age)


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


def ask_for_promise(ask: Ask, bid: Bid, seconds: float) -> PromiseAnswer:
    """Ask a server for a promise, or withdraw it.

    Args:
        ask: asks the server.
        bid: the promise.
        seconds: how long to wait for the reply.

    Raises StreamRefusedError, StreamError.
    """
    wish = {"attempt": bid.attempt, "term": bid.term, "tag": bid.tag}
    request = {"op": "REPLICATE", "member": bid.member, "store": bid.store, "promise": wish}
    return _convert(ask(request, seconds), PromiseAnswer)


def snapshot_parts(
    asker: Asker, member: str, store: str = "", sync: bool = True
) -> Iterator[SnapshotPart]:
    """Ask for the newest snapshot of a server, and yield it part by part.

    Args:
        asker: asks the server.
        member: the asker's name.
        store: the store that it must be of; empty = any.
        sync: as for `pull`.

    Raises StreamRefusedError, StreamError.
    """
    request = {"op": "REPLICATE", "member": member, "store": store, "sync": sync}
    asker.ask({"op": "PING"}, REPLY_SECONDS)  # Only a server that is there may take its time.
    reply = asker.ask(
        request | {"snapshot": 0, "offset": 0, "limit": asker.limit}, SNAPSHOT_SECONDS
    )
    rev = offset = 0
    while True:
        part = _convert(reply, SnapshotPart)
        if zlib.crc32(part.data) != part.crc:
            raise StreamError("the checksum of a part of the snapshot does not match")
        if part.offset != offset or (offset and part.snapshot != rev) or not part.data:
            raise StreamError("a part of the snapshot is missing")
        yield part
        rev, offset = part.snapshot, offset + len(part.data)
        if offset >= part.size:
            return
        place = {"snapshot": rev, "offset": offset}
        reply = asker.part(request | place, _bytes_of_snapshot, insist=True)


def fetch_snapshot(
    asker: Asker,
    member: str,
    files: Files,
    file: BinaryIO,
    store: str = "",
    sync: bool = True,
    accept: Callable[[SnapshotPart], None] = lambda part: None,
) -> FetchedSnapshot:
    """Copy the newest snapshot of a server into a file, part by part. Does not sync its end.

    Args:
        asker: asks the server.
        member: the asker's name.
        files: the file operations.
        file: takes the bytes.
        store: the store that it must be of; empty = any.
        sync: as for `pull`.
        accept: gets the first part; may raise StreamError.

    Raises StreamRefusedError, StreamError, OSError.
    """
    fetched = FetchedSnapshot(0, 0, 0, NO_LINEAGE)
    content = LargeFile(files, file)
    for part in snapshot_parts(asker, member, store, sync):
        if not part.offset:
            accept(part)
        content.write(part.data)
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


def _bytes_of_commits(reply: dict[str, Any]) -> int:
    commits = reply.get("commits")
    return sum(map(len, commits)) if isinstance(commits, list) else 0


def _bytes_of_snapshot(reply: dict[str, Any]) -> int:
    data = reply.get("data")
    return len(data) if isinstance(data, bytes) else 0


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
