"""The keys that the members of a replicated store have in etcd, and the records in them.

All keys begin with the prefix of the store:

- ``store``: which store it is, and the settings on which its state depends. Written once.
- ``fence``: who may append: the member that has taken over last. Written at a take-over alone.
- ``leader``: where it is, and that it still leads. It renews this record, so the record changes
  more often than the fence.
- ``head``: the newest commit in the log.
- ``first``: where the log begins. What comes before it was trimmed, and is in snapshots of members.
- ``log/<number>/<term>-<part>-of-<parts>``: a batch of commits, in parts that etcd takes. The
  number is the log number of its first commit, with 20 digits: the order of keys is that of the
  log, and whoever has a log number knows the key of what comes next.
- ``members/<name>``: a member: where it is, and which snapshots are on its disk (`Claim`).
- ``pins/<name>``: a member that fetches a snapshot; the log after it must stay until it is there.
- ``live/<name>``: how far a member is. It writes this record every few seconds, for display alone.
- ``states/<name>``: the hash of a member's state at a log number: see `zkv.cluster.state_check`.

Records are msgpack maps, and whoever reads one leaves out fields that it does not know, so members
of two versions work side by side. What an older version must not overlook is another format. The
record ``store`` has its number, and that field stays in all of them. A leader raises it once all
members that are declared have said that they know the new one; those who say nothing know 1.

A part of a batch is an array with a checksum; the commits in it are the payloads that the
write-ahead log has (`zkv.keyspace.change`), so they are the same bytes in etcd, in files and in the
replication stream.
"""

from __future__ import annotations

import re
import zlib
from typing import Final, NamedTuple, Self, TypeVar

import msgspec
from msgspec import Struct

from zkv.errors import DamageError
from zkv.keyspace.change import Commit, revision_in, unpack

FORMAT: Final = 1
"""The format of all records. A member refuses a store with a higher one."""
PART_BYTES: Final = 1_000_000
"""Bytes of commits in a part: etcd takes 1.5 MiB in a request, by default."""
_DIGITS: Final = 20
_PART_KEY: Final = re.compile(rb"(\d{20})/(\d{10})-(\d{5})-of-(\d{5})")


class CacheTable(Struct, frozen=True):
    """A table [[cache]]: a prefix under which a leader evicts entries."""

    prefix: str
    max_bytes: int
    policy: str


class StoreRecord(Struct, frozen=True, kw_only=True):
    """Which store it is.

    Args:
        format: that of the records.
        store: its identity, as in `zkv.keyspace.lineage`.
        limits: settings on which its state depends: all members have these.
        first_lsn: the log number of the first commit that the log has had.
        caches: the tables [[cache]] of all members.
    """

    format: int
    store: str
    limits: dict[str, int | float]
    first_lsn: int
    caches: list[CacheTable] = []


class Fence(Struct, frozen=True):
    """Who may append to the log.

    Args:
        term: the number of its term.
        member: its name.
        nonce: random, another one for each process: a copied directory has the same name.
    """

    term: int
    member: str
    nonce: str


class LeaderRecord(Struct, frozen=True, kw_only=True):
    """The leader, which renews this record as long as it leads.

    Args:
        term: its term.
        member: its name.
        endpoints: where clients find it.
        renewals: how often it has been renewed.
        time: the time of the store, Unix time in ms.
        released: it leads no more: another member may take over at once.
    """

    term: int
    member: str
    endpoints: list[str]
    renewals: int
    time: int
    released: bool = False


class LogHead(Struct, frozen=True):
    """The newest commit of the log.

    Args:
        lsn: its log number.
        rev: the revision of the store after it.
        term: the term of the batch that it is in.
        time: the time of the store then, Unix time in ms.
        crc: the checksum of the commit; 0 for a log that has none.
        size: the bytes of all commits that the log has ever had.
    """

    lsn: int
    rev: int
    term: int
    time: int
    crc: int = 0
    size: int = 0


class First(Struct, frozen=True):
    """Where the log begins.

    Args:
        lsn: the log number of the first commit that is kept.
        size: the bytes of all commits before it.
    """

    lsn: int
    size: int


class Claim(Struct, frozen=True):
    """The snapshots that are really on the disk of a member: synced, and read back.

    Args:
        newest: the log number of the newest one; 0 = there is none.
        crc: the checksum of that file.
        second: the log number of the one before; 0 = there is none.
    """

    newest: int = 0
    crc: int = 0
    second: int = 0


class MemberRecord(Struct, frozen=True, kw_only=True):
    """A member.

    Args:
        name: its name.
        endpoints: where clients find it.
        applied: the log number that it had when it wrote this.
        time: when it did, Unix time in ms.
        claim: which snapshots it has.
        nonce: random, another one for each process; empty: it has never been started.
        renewals: how often this process has written it before.
    """

    name: str
    endpoints: list[str]
    applied: int
    time: int
    claim: Claim = Claim()
    nonce: str = ""
    renewals: int = 0


class LiveRecord(Struct, frozen=True):
    """How far a member is. Nothing is decided by it.

    Args:
        name: its name.
        applied: the log number up to which it has applied the log.
        time: when it wrote this, Unix time in ms by its system clock.
    """

    name: str
    applied: int
    time: int


class StateRecord(Struct, frozen=True, kw_only=True):
    """The state of a member at a log number.

    Args:
        member: its name.
        lsn: the log number.
        hash: that of its entries then.
    """

    member: str
    lsn: int
    hash: int


class PinRecord(Struct, frozen=True):
    """A member that needs the log from a commit on, and moves this record as long as it does.

    Args:
        member: its name.
        lsn: the log number of that commit.
        nonce: random, another one for each process.
        moves: how often it was moved.
    """

    member: str
    lsn: int
    nonce: str
    moves: int


_T = TypeVar(
    "_T", StoreRecord, Fence, LeaderRecord, LogHead, First, MemberRecord, StateRecord, PinRecord,
    LiveRecord,
)  # fmt: skip


def pack(record: _T) -> bytes:
    """Return the bytes of a record."""
    return msgspec.msgpack.encode(record)


def read(value: bytes, kind: type[_T], key: bytes) -> _T:
    """Return the record in a value. Raises DamageError."""
    try:
        return msgspec.msgpack.decode(value, type=kind)
    except msgspec.DecodeError as error:
        raise _damage(key, error) from None


def _damage(key: bytes, error: msgspec.DecodeError) -> DamageError:
    return DamageError(f"etcd, key {key.decode(errors='replace')}: {error}")


class _Format(Struct, frozen=True):
    format: int


def read_store(value: bytes, key: bytes) -> StoreRecord:
    """Return the record of the store. Raises DamageError, also if its format is not known."""
    try:
        found = msgspec.msgpack.decode(value, type=_Format).format
    except msgspec.DecodeError as error:
        raise _damage(key, error) from None
    if found > FORMAT:  # The other fields may be others.
        raise DamageError(f"the store in etcd has format {found}; this zkv reads up to {FORMAT}")
    return read(value, StoreRecord, key)


class _Part(Struct, frozen=True, array_like=True):
    last_lsn: int
    rev: int
    time: int
    before: int
    size_before: int
    check_at: int
    data: bytes
    crc: int = 0

    @property
    def checksum(self) -> int:
        """That of the other fields."""
        numbers = (
            self.last_lsn, self.rev, self.time, self.before, self.size_before, self.check_at
        )  # fmt: skip
        others = b"%d,%d,%d,%d,%d,%d" % numbers
        return zlib.crc32(self.data, zlib.crc32(others))

    def checked(self) -> _Part:
        """Return it with its checksum."""
        return msgspec.structs.replace(self, crc=self.checksum)


class LogBatch(NamedTuple):
    """Commits that were appended together.

    The checksum of the commit before them shows a history that was cut off, and has grown again to
    the same log number.
    """

    term: int
    first_lsn: int
    last_lsn: int
    rev: int
    """The revision of the store after them."""
    time: int
    """The time of the store then, Unix time in ms."""
    before: int
    """The checksum of the commit before the first one; 0 if there is none."""
    size_before: int
    """The bytes of all commits before the first one."""
    payloads: list[bytes]
    check_at: int = 0
    """The log number at which all members compare their states; 0 = they do not."""

    @classmethod
    def after(
        cls, head: LogHead, term: int, payloads: list[bytes], time: int, check_at: int = 0
    ) -> Self:
        """Return the batch of these commits, which follow a head."""
        first, last = head.lsn + 1, head.lsn + len(payloads)
        rev = revision_in(payloads[-1])
        return cls(term, first, last, rev, time, head.crc, head.size, payloads, check_at)

    @property
    def head(self) -> LogHead:
        """The head of a log that ends with it."""
        crc, size = zlib.crc32(self.payloads[-1]), self.size_before + sum(map(len, self.payloads))
        return LogHead(self.last_lsn, self.rev, self.term, self.time, crc, size)

    def after_lsn(self, lsn: int) -> Self:
        """Return the part of it after a log number that is in it, or just before it."""
        skipped = lsn + 1 - self.first_lsn
        if skipped == 0:
            return self
        left_out = self.payloads[:skipped]
        return self._replace(
            first_lsn=lsn + 1,
            before=zlib.crc32(left_out[-1]),
            size_before=self.size_before + sum(map(len, left_out)),
            payloads=self.payloads[skipped:],
        )

    def commits(self) -> list[Commit]:
        """Return its commits. Raises DamageError."""
        try:
            return list(map(unpack, self.payloads))
        except ValueError as error:
            raise DamageError(f"etcd, log number {self.first_lsn} ff.: {error}") from None


class StoreKeys:
    """The keys of a store.

    Args:
        prefix: that of the store, without a slash at its end.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = f"{prefix}/".encode()
        self.store = self.prefix + b"store"
        self.fence = self.prefix + b"fence"
        self.leader = self.prefix + b"leader"
        self.head = self.prefix + b"head"
        self.first = self.prefix + b"first"
        self._log = self.prefix + b"log/"
        self.members = self.prefix + b"members/"
        self.pins = self.prefix + b"pins/"
        self.lives = self.prefix + b"live/"
        self.states = self.prefix + b"states/"

    def member(self, name: str) -> bytes:
        """The key of a member."""
        return self.members + name.encode()

    def pin(self, name: str) -> bytes:
        """The key of the pin of a member."""
        return self.pins + name.encode()

    def log_before(self, lsn: int) -> tuple[bytes, bytes]:
        """The range of the keys of all batches that begin before this log number."""
        return self._log, self._log + _number(lsn)

    def live(self, name: str) -> bytes:
        """The key of how far a member is."""
        return self.lives + name.encode()

    def state(self, name: str) -> bytes:
        """The key of a member's state."""
        return self.states + name.encode()

    def log_from(self, lsn: int) -> tuple[bytes, bytes]:
        """The range of the keys of all batches that begin with this log number or a later one."""
        return self._log + _number(lsn), _with_prefix(self._log)[1]

    def batch(self, lsn: int) -> tuple[bytes, bytes]:
        """The range of the keys of the batches that begin with this log number."""
        return _with_prefix(self._log + _number(lsn) + b"/")

    def parts(self, batch: LogBatch) -> list[tuple[bytes, bytes]]:
        """Return the keys and values of the parts of a batch."""
        whole = msgspec.msgpack.encode(batch.payloads)
        pieces = [whole[at : at + PART_BYTES] for at in range(0, len(whole), PART_BYTES)]
        begin, _ = self.batch(batch.first_lsn)
        head = (
            batch.last_lsn, batch.rev, batch.time, batch.before, batch.size_before, batch.check_at
        )  # fmt: skip
        return [
            (
                begin + b"%010d-%05d-of-%05d" % (batch.term, number, len(pieces)),
                msgspec.msgpack.encode(_Part(*head, piece).checked()),
            )
            for number, piece in enumerate(pieces)
        ]

    def place(self, key: bytes) -> PartPlace:
        """Return what the key of a part tells. Raises DamageError."""
        found = _PART_KEY.fullmatch(key.removeprefix(self._log))
        if found is None:
            raise DamageError(f"etcd, key {key.decode(errors='replace')}: not a part of a batch")
        lsn, term, number, parts = map(int, found.groups())
        return PartPlace(lsn, term, number, parts)


class PartPlace(NamedTuple):
    """The contents of the key of a part."""

    first_lsn: int
    term: int
    number: int
    parts: int


def join(place: PartPlace, values: list[bytes]) -> LogBatch:
    """Return the batch of which these are all parts, in order. Raises DamageError."""
    where = f"etcd, the batch at log number {place.first_lsn}"
    try:
        parts = [msgspec.msgpack.decode(value, type=_Part) for value in values]
        if any(part.checksum != part.crc for part in parts):
            raise DamageError(f"{where}: damaged: a checksum does not match")
        payloads = msgspec.msgpack.decode(b"".join(part.data for part in parts), type=list[bytes])
    except msgspec.DecodeError as error:
        raise DamageError(f"{where}: damaged: {error}") from None
    last = parts[-1]
    if place.first_lsn + len(payloads) - 1 != last.last_lsn or not payloads:
        raise DamageError(f"{where}: it has {len(payloads)} commits, up to {last.last_lsn}")
    return LogBatch(
        place.term, place.first_lsn, last.last_lsn, last.rev, last.time, last.before,
        last.size_before, payloads, last.check_at,
    )  # fmt: skip


def size_before(place: PartPlace, value: bytes) -> int:
    """Return the bytes of all commits before the batch of a part. Raises DamageError."""
    try:
        part = msgspec.msgpack.decode(value, type=_Part)
    except msgspec.DecodeError as error:
        raise DamageError(f"etcd, the batch at log number {place.first_lsn}: {error}") from None
    if part.checksum != part.crc:
        raise DamageError(f"etcd, the batch at log number {place.first_lsn}: damaged")
    return part.size_before


def _with_prefix(prefix: bytes) -> tuple[bytes, bytes]:
    from zkv.etcd.interface import with_prefix  # Late: a server alone reads records only.

    return with_prefix(prefix)


def _number(lsn: int) -> bytes:
    return b"%0*d" % (_DIGITS, lsn)
