"""The log of a replicated store, in etcd.

Strategy: every write to etcd is one transaction with a condition, so etcd decides who may write.
An append has two: the fence is mine, so no other member has taken over, and the head is what I saw,
so nothing was appended in between. A member that was deposed cannot append, whatever it believes.

An answer may be lost, and then nobody knows if the transaction was carried out. An append is
repeated as it is. If it was carried out before, its condition fails now, as the head has changed;
then the log itself tells: the batch at my log number is mine if it has my term, as each term has
one leader. Only the state of the fence decides that a leader is deposed, never an error.

A batch that is too large for one request is written in parts, each under the same two conditions.
The last part is written together with the head, and makes the batch valid. What another term has
left of an incomplete batch is removed by the next leader before its first append.

The leader trims the log: first the record ``first`` says where it begins from now on, then what is
before that is deleted, and what a killed leader has left there, too. So ``first`` tells a log that
was trimmed from one with a hole. The transaction that moves ``first`` has the claims on which that
was decided as conditions: if a member has said in between that it does not have its snapshot any
more, nothing is trimmed. Whoever places a pin rewrites ``first`` as it is, so no trimming that has
not seen the pin succeeds after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from zkv.cluster.records import (
    Fence,
    First,
    LeaderRecord,
    LiveRecord,
    LogBatch,
    LogHead,
    MemberRecord,
    PinRecord,
    StateRecord,
    StoreKeys,
    StoreRecord,
    join,
    pack,
    read,
    read_store,
    size_before,
)
from zkv.errors import DamageError, DataDirError, ZkvError
from zkv.etcd.errors import EtcdError
from zkv.etcd.interface import Compare, DeleteOp, PutOp, ReadOp, with_prefix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zkv.cluster.records import PartPlace
    from zkv.etcd.interface import Etcd, Item, Op, TxnResult

LARGE_PARTS: Final = 16
"""Parts of batches that are read in one request where each may have a megabyte."""
MOST_PARTS: Final = 256
"""The same where the ones before were small."""
READ_BYTES: Final = 4 * 1024 * 1024
"""Bytes that one request reads, if the parts are as large as the ones before."""
MOST_SWEPT: Final = 1_000
"""Parts of batches that are deleted in one transaction."""


class DeposedError(ZkvError):
    """Another member has taken over: nothing can be appended in this term any more."""


class NoStoreError(DataDirError):
    """There is no store under this prefix."""


class Seen(NamedTuple):
    """The records that all members look at, at one revision of etcd."""

    cluster: int
    """The identity of the etcd cluster."""
    store: StoreRecord
    fence: Fence
    fence_revision: int
    leader: LeaderRecord | None
    leader_revision: int
    head: LogHead
    head_revision: int
    first: First
    first_revision: int
    revision: int
    """The newest one of etcd."""


class Declared(NamedTuple):
    """A member, and the revision of etcd at which it has written its record."""

    record: MemberRecord
    revision: int


class Pinned(NamedTuple):
    """A pin, and the revision of etcd at which it was moved."""

    record: PinRecord
    revision: int


class Sighting(NamedTuple):
    """The records of a member.

    Args:
        record: what it has declared.
        live: how far it was when it told so last; None if it never has.
        live_revision: that of etcd when it did.
    """

    record: MemberRecord
    live: LiveRecord | None
    live_revision: int


class GoOn(Protocol):
    """Decides if something is tried again; may wait a moment first."""

    def __call__(self, error: EtcdError, /) -> bool:
        """Return True to try again."""


class SharedLog:
    """The log in etcd, as all members use it. Any thread.

    Args:
        etcd: the client.
        prefix: the prefix of the store's keys.
        timeout: seconds that etcd has for an answer.
    """

    def __init__(self, etcd: Etcd, prefix: str, timeout: float) -> None:
        self.etcd = etcd
        self.keys = StoreKeys(prefix)
        self.timeout = timeout

    def look(self) -> Seen:
        """Return what is there now, after everything that was confirmed before this was called.

        Raises EtcdError, NoStoreError, DamageError.
        """
        keys = self.keys
        there = (keys.store, keys.fence, keys.leader, keys.head, keys.first)
        result = self.etcd.transact([], list(map(ReadOp, there)), timeout=self.timeout)
        store, fence, leader, head, first = (items[0] if items else None for items in result.reads)
        if store is None or fence is None or head is None or first is None:
            raise NoStoreError(
                f"there is no store in etcd at {keys.prefix.decode()}: `zkv store found` begins one"
            )
        return Seen(
            result.cluster_id,
            read_store(store.value, store.key),
            read(fence.value, Fence, fence.key),
            fence.mod_revision,
            None if leader is None else read(leader.value, LeaderRecord, leader.key),
            0 if leader is None else leader.mod_revision,
            read(head.value, LogHead, head.key),
            head.mod_revision,
            read(first.value, First, first.key),
            first.mod_revision,
            result.revision,
        )

    def cluster(self) -> int:
        """Return the identity of the etcd cluster. Raises EtcdError."""
        return self.etcd.transact([], [ReadOp(self.keys.store)], timeout=self.timeout).cluster_id

    def found(self, store: StoreRecord, fence: Fence, head: LogHead) -> bool:
        """Begin a store; return False if there is one already. Raises EtcdError."""
        keys = self.keys
        result = self.etcd.transact(
            [_unchanged(keys.store, 0)],
            [
                PutOp(keys.store, pack(store)),
                PutOp(keys.fence, pack(fence)),
                PutOp(keys.head, pack(head)),
                PutOp(keys.first, pack(First(store.first_lsn, head.size))),
            ],
            timeout=self.timeout,
        )
        return result.succeeded

    def read(self, after: int, head: int, most: int = LARGE_PARTS) -> list[LogBatch]:
        """Return some batches after a log number.

        Args:
            after: the log number.
            head: that of a head that was seen, above it. What lies beyond may be incomplete.
            most: parts of batches to read; see `parts_after`.

        Raises EtcdError, and DamageError if a batch is damaged, or missing.
        """
        begin, end = self.keys.log_from(after + 1)
        found = self.etcd.read(begin, end, limit=most, timeout=self.timeout)
        batches: list[LogBatch] = []
        places = [(self.keys.place(item.key), item.value) for item in found.items]
        places = [each for each in places if each[0].first_lsn <= head]
        if not places or places[0][0].first_lsn != after + 1:
            return [self._around(after + 1, head).after_lsn(after)]
        while places:
            place, _ = places[0]
            parts = [value for each, value in places if each.first_lsn == place.first_lsn]
            if len(parts) < place.parts:
                if batches:
                    break  # The rest of it comes with the next request.
                parts = self._whole(place)
            batches.append(join(place, parts))
            places = [each for each in places if each[0].first_lsn != place.first_lsn]
        expected = after + 1
        for batch in batches:
            if batch.first_lsn != expected:
                raise DamageError(
                    f"etcd: log number {expected} is missing; the next batch is {batch.first_lsn}"
                )
            expected = batch.last_lsn + 1
        return batches

    def _around(self, lsn: int, head: int) -> LogBatch:
        """Return the batch that has a commit, which is not its first one.

        A snapshot may end within a batch, and so may the log on the disk of a member.
        """
        place = self._last_up_to(lsn)
        batch = None if place is None else join(place, self._whole(place))
        if batch is None or batch.last_lsn < lsn:
            raise DamageError(f"etcd: log number {lsn} is missing, and the head is at {head}")
        return batch

    def _last_up_to(self, lsn: int) -> PartPlace | None:
        """Return the last batch that begins at a log number or before; None if there is none.

        etcd tells what comes after a key, and not what comes before it: so search, first backwards
        in steps that double.
        """
        high, step = lsn + 1, 1
        while (place := self._first_from(lsn + 1 - step)) is None or place.first_lsn > lsn:
            if step > lsn:
                return None
            high, step = lsn + 1 - step, 2 * step
        low = place.first_lsn
        while low + 1 < high:
            middle = (low + high) // 2
            found = self._first_from(middle)
            if found is None or found.first_lsn > lsn:
                high = middle
            else:
                place, low = found, found.first_lsn
        return place

    def _first_from(self, lsn: int) -> PartPlace | None:
        """Return the first batch that begins at a log number or later; None if there is none."""
        begin, end = self.keys.log_from(max(0, lsn))
        found = self.etcd.read(begin, end, limit=1, keys_only=True, timeout=self.timeout)
        return self.keys.place(found.items[0].key) if found.items else None

    def last_before(self, first: First, bound: int, most_size: int) -> First | None:
        """Return where the log may begin, if it is trimmed as far as possible.

        Args:
            first: where it begins now.
            bound: it must not begin after this log number.
            most_size: so many bytes of commits, at most, may be before it.

        Returns the last batch that fits; None if that is the present one. Raises EtcdError,
        DamageError.
        """
        best: First | None = None
        low, high = first.lsn + 1, bound + 1
        while low < high:
            middle = (low + high) // 2
            begin, end = self.keys.log_from(middle)
            found = self.etcd.read(begin, end, limit=1, timeout=self.timeout).items
            place = self.keys.place(found[0].key) if found else None
            if place is None or place.first_lsn > bound:
                high = middle
                continue
            size = size_before(place, found[0].value)
            if size > most_size:
                high = middle
            else:
                best, low = First(place.first_lsn, size), place.first_lsn + 1
        return best

    def _whole(self, place: PartPlace) -> list[bytes]:
        """Return all parts of a batch that did not come in one request."""
        begin, end = self.keys.batch(place.first_lsn)
        values: list[bytes] = []
        for item in self._each(begin, end):
            if self.keys.place(item.key).term == place.term:
                values.append(item.value)
        if len(values) != place.parts:
            raise DamageError(
                f"etcd: of the batch at log number {place.first_lsn} there are {len(values)} of "
                f"{place.parts} parts"
            )
        return values

    def _each(self, begin: bytes, end: bytes) -> Sequence[Item]:
        items: list[Item] = []
        while True:
            found = self.etcd.read(begin, end, limit=LARGE_PARTS, timeout=self.timeout)
            items += found.items
            if not found.more:
                return items
            begin = found.items[-1].key + b"\0"

    def take_over(self, seen: Seen, fence: Fence, leader: LeaderRecord) -> bool:
        """Take over from the leader that was seen; return True if this member leads now.

        If the outcome is not known, `look` tells: the fence has the nonce of whoever holds it.
        Raises EtcdError.
        """
        keys = self.keys
        result = self.etcd.transact(
            [
                _unchanged(keys.fence, seen.fence_revision),
                _unchanged(keys.leader, seen.leader_revision),
            ],
            [PutOp(keys.fence, pack(fence)), PutOp(keys.leader, pack(leader))],
            timeout=self.timeout,
        )
        return result.succeeded

    def declare(self, member: MemberRecord) -> int:
        """Write the record of a member, whatever is there; return its revision.

        Raises EtcdError.
        """
        key = self.keys.member(member.name)
        return self.etcd.transact([], [PutOp(key, pack(member))], timeout=self.timeout).revision

    def renew_member(self, member: MemberRecord, revision: int) -> int | None:
        """Write the record of a member again; return its new revision.

        Args:
            member: the record.
            revision: that of the one that this process has written before.

        Returns None, and writes nothing, if that is not there any more. Raises EtcdError.
        """
        return self._put_again(self.keys.member(member.name), pack(member), revision)

    def remove_member(self, name: str) -> bool:
        """Remove a member; return False if there is none. Raises EtcdError."""
        keys = self.keys
        there = Compare(keys.member(name), "version", "!=", 0)
        gone = [DeleteOp(each(name)) for each in (keys.member, keys.pin, keys.state, keys.live)]
        return self.etcd.transact([there], gone, timeout=self.timeout).succeeded

    def tell_state(self, record: StateRecord) -> None:
        """Write the hash of a member's state. Raises EtcdError."""
        key = self.keys.state(record.member)
        self.etcd.transact([], [PutOp(key, pack(record))], timeout=self.timeout)

    def states(self) -> list[StateRecord]:
        """Return the hashes that members have told last. Raises EtcdError, DamageError."""
        items = self._each(*with_prefix(self.keys.states))
        return [read(item.value, StateRecord, item.key) for item in items]

    def members(self) -> list[MemberRecord]:
        """Return all members. Raises EtcdError, DamageError."""
        return [each.record for each in self.declared()]

    def declared(self) -> list[Declared]:
        """Return all members, with revisions of their records. Raises EtcdError, DamageError."""
        items = self._each(*with_prefix(self.keys.members))
        return [Declared(read(it.value, MemberRecord, it.key), it.mod_revision) for it in items]

    def pins(self) -> list[Pinned]:
        """Return all pins. Raises EtcdError, DamageError."""
        items = self._each(*with_prefix(self.keys.pins))
        return [Pinned(read(it.value, PinRecord, it.key), it.mod_revision) for it in items]

    def pin(self, pin: PinRecord, seen: Seen) -> int | None:
        """Place a pin; return its revision, or None if the log was trimmed since it was seen.

        Raises EtcdError.
        """
        keys = self.keys
        result = self.etcd.transact(
            [_unchanged(keys.first, seen.first_revision)],
            [PutOp(keys.pin(pin.member), pack(pin)), PutOp(keys.first, pack(seen.first))],
            timeout=self.timeout,
        )
        return result.revision if result.succeeded else None

    def move_pin(self, pin: PinRecord, revision: int) -> int | None:
        """Move a pin; return its new revision, or None if it is not there any more.

        Args:
            pin: the pin.
            revision: the one at which it was placed or moved last.

        Raises EtcdError.
        """
        return self._put_again(self.keys.pin(pin.member), pack(pin), revision)

    def _put_again(self, key: bytes, value: bytes, revision: int) -> int | None:
        """Put a key that was last put at a revision; return the new one, None if it was not."""
        puts = [PutOp(key, value)]
        result = self.etcd.transact([_unchanged(key, revision)], puts, timeout=self.timeout)
        return result.revision if result.succeeded else None

    def unpin(self, member: str, revision: int) -> None:
        """Remove a pin, if it is still at this revision. Raises EtcdError."""
        key = self.keys.pin(member)
        self.etcd.transact([_unchanged(key, revision)], [DeleteOp(key)], timeout=self.timeout)

    def tell(self, own: LiveRecord | None = None) -> tuple[list[Sighting], LeaderRecord | None]:
        """Return the members, by name, and the leader's record.

        Args:
            own: how far this member is, to be written; it is not if the member was removed.

        Raises EtcdError, DamageError.
        """
        keys = self.keys
        asked = [
            ReadOp(*with_prefix(keys.members)), ReadOp(*with_prefix(keys.lives)),
            ReadOp(keys.leader),
        ]  # fmt: skip
        if own is None:
            result = self.etcd.transact([], asked, timeout=self.timeout)
        else:
            there = Compare(keys.member(own.name), "version", "!=", 0)
            put = PutOp(keys.live(own.name), pack(own))
            result = self.etcd.transact([there], [put, *asked], asked, timeout=self.timeout)
        members, lives, leaders = result.reads
        live = {item.key.removeprefix(keys.lives): item for item in lives}
        sightings = []
        for item in members:
            found = live.get(item.key.removeprefix(keys.members))
            sightings.append(
                Sighting(
                    read(item.value, MemberRecord, item.key),
                    None if found is None else read(found.value, LiveRecord, found.key),
                    0 if found is None else found.mod_revision,
                )
            )
        leader = [read(item.value, LeaderRecord, item.key) for item in leaders]
        return sightings, leader[0] if leader else None


class Tenure:
    """The term of a leader: what it may write as long as the fence is its own.

    One thread appends; another renews.

    Args:
        log: the log.
        seen: what was there after this member had taken over: the fence is its own.
    """

    def __init__(self, log: SharedLog, seen: Seen) -> None:
        self._log = log
        self.term = seen.fence.term
        self.revision = seen.fence_revision
        """The revision of etcd at which it began."""
        # By its content, which has a nonce: an etcd that was set back gives revisions again.
        self._fence = Compare(log.keys.fence, "value", "=", pack(seen.fence))
        self._head_revision = seen.head_revision
        self.head = seen.head
        """The newest commit that was appended."""

    def clear(self) -> None:
        """Remove what others have left of batches that were never complete.

        It writes the head anew, as it is, and has the head as a condition. So it is carried out
        before the first append or never, however late etcd gets to it: else it would remove batches
        that were appended since.

        Raises EtcdError, DeposedError.
        """
        keys = self._log.keys
        leftovers = DeleteOp(*keys.log_from(self.head.lsn + 1))
        looks = [ReadOp(keys.fence), ReadOp(keys.head)]
        while True:
            compares = [self._fence, _unchanged(keys.head, self._head_revision)]
            result = self._transact(compares, [leftovers, PutOp(keys.head, pack(self.head))], looks)
            if result.succeeded:
                self._head_revision = result.revision
                return
            fences, heads = result.reads
            if not self._is_own(fences) or not heads:
                raise DeposedError("another member has taken over")
            # An earlier attempt was carried out after all.
            self._head_revision = heads[0].mod_revision

    def renew(self, record: LeaderRecord) -> LogHead:
        """Write the leader's record; return the head of the log.

        Raises EtcdError, DeposedError, DamageError.
        """
        keys = self._log.keys
        puts: list[Op] = [PutOp(keys.leader, pack(record)), ReadOp(keys.head)]
        result = self._transact([self._fence], puts)
        self._require(result)
        (heads,) = result.reads
        if not heads:
            raise DamageError("etcd: the head of the log is gone")
        return read(heads[0].value, LogHead, keys.head)

    def trim(self, seen: Seen, first: First, claims: Sequence[Declared]) -> bool:
        """Have the log begin later; return False if anything of what was seen has changed.

        Args:
            seen: what was seen, with where it begins.
            first: where it is to begin.
            claims: the members that have a snapshot of what goes.

        Raises EtcdError.
        """
        keys = self._log.keys
        conditions = [self._fence, _unchanged(keys.first, seen.first_revision)]
        conditions += [_unchanged(keys.member(each.record.name), each.revision) for each in claims]
        return self._transact(conditions, [PutOp(keys.first, pack(first))]).succeeded

    def sweep(self, first: First) -> int:
        """Delete some of what is before the beginning of the log.

        Returns the revision of etcd in which that was done; 0 if nothing is left. Raises EtcdError,
        DeposedError.
        """
        begin, end = self._log.keys.log_before(first.lsn)
        etcd, timeout = self._log.etcd, self._log.timeout
        found = etcd.read(begin, end, limit=MOST_SWEPT, keys_only=True, timeout=timeout).items
        if not found:
            return 0
        result = self._transact([self._fence], [DeleteOp(begin, found[-1].key + b"\0")])
        self._require(result)
        return result.revision

    def confirm(self) -> None:
        """Return if no other member has taken over before this was called.

        Raises EtcdError, DeposedError.
        """
        self._require(self._transact([self._fence], []))

    def append(self, batch: LogBatch, go_on: GoOn) -> bool:
        """Append a batch; return once etcd has it.

        Returns True if no other member had taken over before this was called; False if the batch
        was appended by an earlier call, and another member has taken over since then.

        It may be called again with the same batch after an EtcdError, and with no other one.

        Args:
            batch: it begins after `head`.
            go_on: asked after an error; if it says no, that is raised, and nobody knows if the
                batch has been appended, or will be.

        Raises:
            DeposedError: another member has taken over, and the batch is not in the log.
            EtcdError: see ``go_on``.
        """
        *first, last = self._log.keys.parts(batch)
        for key, value in first:
            if (leads := self._append([PutOp(key, value)], batch, go_on)) is not None:
                return leads  # All of it was appended by an earlier attempt.
        head = PutOp(self._log.keys.head, pack(batch.head))
        leads = self._append([PutOp(*last), head], batch, go_on)
        self.head = batch.head
        return leads is None or leads

    def _append(self, puts: list[PutOp], batch: LogBatch, go_on: GoOn) -> bool | None:
        """Carry out one transaction; None = it was, and the fence is still this member's.

        If the whole batch is there already, it returns if the fence is this member's.
        """
        keys = self._log.keys
        compares = [self._fence, _unchanged(keys.head, self._head_revision)]
        there = ReadOp(*keys.batch(batch.first_lsn), keys_only=True)
        while True:
            try:
                result = self._transact(
                    compares, puts, [ReadOp(keys.fence), ReadOp(keys.head), there]
                )
            except EtcdError as error:
                if not go_on(error):
                    raise
                continue
            if result.succeeded:
                if len(puts) > 1:
                    self._head_revision = result.revision
                return None
            return self._find_out(result, batch)

    def _find_out(self, result: TxnResult, batch: LogBatch) -> bool:
        """Find out, after a condition has failed, if a batch is in the log.

        Returns True if the fence is this member's. Raises DeposedError if the batch is not in the
        log, and never will be.
        """
        fences, heads, there = result.reads
        places = [self._log.keys.place(item.key) for item in there]
        mine = [each for each in places if each.term == self.term]
        if not any(each.number == each.parts - 1 for each in mine):
            raise DeposedError("another member has taken over")
        self.head = batch.head
        if heads:
            self._head_revision = heads[0].mod_revision
        return self._is_own(fences)

    def _is_own(self, fences: list[Item]) -> bool:
        return [item.value for item in fences] == [self._fence.value]

    def _transact(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()
    ) -> TxnResult:
        return self._log.etcd.transact(compares, then, otherwise, timeout=self._log.timeout)

    def _require(self, result: TxnResult) -> None:
        if not result.succeeded:
            raise DeposedError("another member has taken over")


def parts_after(batches: list[LogBatch]) -> int:
    """Return how many parts to read after these batches.

    Batches of single commits would else take one request for each few of them.
    """
    size = sum(len(payload) for batch in batches for payload in batch.payloads)
    return max(LARGE_PARTS, min(MOST_PARTS, len(batches) * READ_BYTES // max(1, size)))


def _unchanged(key: bytes, revision: int) -> Compare:
    """Return the condition that a key was last put at a revision of etcd; 0 = it is absent."""
    return Compare(key, "mod", "=", revision)
