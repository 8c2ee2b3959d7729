"""The store against a model of it: random requests, crashes, full disks, and what comes of them.

`Model` is the contract once more, as simply as it can be said: a dict, no log, no index, nothing
kept in two places. The machine sends the same requests to both; it compares every reply, and after
every step all that the store holds. Requests of several workers are in flight at a time, and a
reply may leave only if it would be the same after a crash at that moment.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple
from unittest import mock

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.requests.contract_stores import Disk, DurableStore, FakeClock, Parked, request
from tests.support import Message, pack, unpack
from zkv.bounds import key_range
from zkv.errors import ReadOnly
from zkv.keyspace.sessions import counted_size
from zkv.users.rights import SCOPE_END, User

WINDOW: Final = 3
SESSION_TTL: Final = 31_536_000
"""Seconds. Only `long_silence` lets as much pass."""
HISTORY: Final = 12
SEGMENT_BYTES: Final = 2_000
"""So little that a run goes through several segments."""
KEYS: Final = ("a", "ab", "b", "\xe9", "\ud7ff", "\ue000", "\U0010ffff")
VALUES: Final = (0, 1, -7, 2**63 - 1, -(2**63), 2**63, None, True, 1.0, "1", b"\x00", [1], {"a": 1})
INT64: Final = range(-(2**63), 2**63)
ENOUGH: Final = 1_000
"""More bytes than the values take together."""

Request = dict[str, Any]


# --- The model --------------------------------------------------------------------------------


class RefusedError(Exception):
    """The model refuses a request."""

    def __init__(self, code: str, **details: Any) -> None:
        super().__init__(code)
        self.reply: Message = {"ok": False, "code": code, "applied": False}
        self.reply |= {"retry": code in {"FULL", "READ_ONLY"}} | details


class Entry(NamedTuple):
    value: Any
    rev: int
    expires: int | None = None


class Reply(NamedTuple):
    content: bytes
    reply: Message
    changed_something: bool


@dataclass
class Session:
    newest: int = 0
    replies: dict[int, Reply] = field(default_factory=dict)

    def add(self, seq: int, reply: Reply) -> None:
        self.replies.setdefault(seq, reply)
        self.newest = max(self.newest, seq)
        for old in [old for old in self.replies if old <= self.newest - WINDOW]:
            del self.replies[old]

    def copy(self) -> Session:
        return Session(self.newest, dict(self.replies))


@dataclass
class Allowed:
    """What all entries may hold together."""

    max_bytes: int = ENOUGH


@dataclass
class Model:
    """What a store holds, and what it answers."""

    clock: FakeClock
    allowed: Allowed = field(default_factory=Allowed)
    entries: dict[str, Entry] = field(default_factory=dict)
    rev: int = 0
    history: list[tuple[int, str, str, Any]] = field(default_factory=list)
    oldest: int = 1
    safe_rev: int = 0
    """What is newer stays in the history."""
    sessions: dict[str, Session] = field(default_factory=dict)
    forgotten: dict[tuple[str, int], Reply] = field(default_factory=dict)
    """What sessions were answered before a long silence: a crash may bring it back."""

    def copy(self) -> Model:
        return replace(
            self,
            entries=dict(self.entries),
            history=list(self.history),
            sessions={name: session.copy() for name, session in self.sessions.items()},
            forgotten=dict(self.forgotten),
        )

    def become(self, other: Model) -> None:
        self.__dict__.update(other.copy().__dict__)

    def answer(self, asked: Request) -> Message:
        """The reply, without its message."""
        fields = without(asked, "op", "session", "seq")
        do: Callable[..., Message] = getattr(self, "do_" + asked["op"].lower())
        try:
            if asked["op"] in READS:
                return {"ok": True} | do(**fields)
            if "session" in asked:
                return self.once(asked, do, fields)
            return self.write(do, fields)
        except RefusedError as error:
            return error.reply

    # Writes

    def write(self, do: Callable[..., Message], fields: Request) -> Message:
        """Do a write whole or not at all."""
        before = self.copy()
        self.rev += 1
        try:
            reply: Message = {"ok": True, "rev": self.rev} | do(**fields)
            if self.held() > max(before.held(), self.allowed.max_bytes):
                raise RefusedError("FULL")
        except RefusedError:
            self.become(before)
            raise
        if len(self.history) == len(before.history):
            self.rev -= 1
            reply["rev"] = self.rev
        self.trim()
        return reply

    def once(self, asked: Request, do: Callable[..., Message], fields: Request) -> Message:
        content = pack(without(asked, "seq"))
        session = self.sessions.get(asked["session"], Session())
        seq = asked["seq"]
        if seq in session.replies:
            known = session.replies[seq]
            if known.content != content:
                raise RefusedError("BAD_REQUEST")
            return known.reply | {"replayed": True}
        if seq <= session.newest - WINDOW:
            raise RefusedError("STALE_SEQ")
        before = self.rev
        try:
            reply = self.write(do, fields)
        except RefusedError as error:
            reply = error.reply
            if reply["code"] == "FULL":
                raise
        session = self.sessions.setdefault(asked["session"], Session())
        session.add(seq, Reply(content, reply, self.rev > before))
        return reply

    def held(self) -> int:
        """The bytes that the quota limits; of expired entries, too, until they are removed."""
        return sum(
            len(key.encode()) + len(pack(entry.value)) for key, entry in self.entries.items()
        )

    def live(self, key: str) -> Entry | None:
        entry = self.entries.get(key)
        if entry is not None and entry.expires is not None and entry.expires <= self.clock():
            return None
        return entry

    def present(self, key: str) -> Entry:
        entry = self.live(key)
        if entry is None:
            raise RefusedError("NOT_FOUND")
        return entry

    def rev_of(self, key: str) -> int:
        entry = self.live(key)
        return entry.rev if entry else 0

    def check(self, key: str, rev: int | None) -> None:
        if rev not in {None, self.rev_of(key)}:
            raise RefusedError("CONFLICT", key=key, rev=self.rev_of(key))

    def store(self, what: str, key: str, value: Any, expires: int | None) -> None:
        self.entries[key] = Entry(value, self.rev, expires)
        self.history.append((self.rev, what, key, value))

    def drop(self, what: str, key: str) -> None:
        del self.entries[key]
        self.history.append((self.rev, what, key, None))

    def expiry(self, ttl: float | None) -> int | None:
        return None if ttl is None else self.clock() + round(ttl * 1000)

    def previous(self, key: str, prev: bool) -> Message:
        entry = self.live(key) or Entry(None, 0)
        return {"prev": entry.value, "prev_rev": entry.rev} if prev else {}

    def do_put(
        self,
        key: str,
        value: Any,
        ttl: float | None = None,
        if_rev: int | None = None,
        prev: bool = False,
    ) -> Message:
        self.check(key, if_rev)
        told = self.previous(key, prev)
        self.store("PUT", key, value, self.expiry(ttl))
        return told

    def do_delete(self, key: str, if_rev: int | None = None, prev: bool = False) -> Message:
        self.check(key, if_rev)
        self.present(key)
        told = self.previous(key, prev)
        self.drop("DELETE", key)
        return told

    def do_touch(self, key: str, ttl: float | None) -> Message:
        self.store("TOUCH", key, self.present(key).value, self.expiry(ttl))
        return {}

    def do_incr(self, key: str, by: int = 1) -> Message:
        entry = self.live(key) or Entry(0, 0)
        if type(entry.value) is not int or entry.value not in INT64:
            raise RefusedError("WRONG_TYPE", key=key)
        total = entry.value + by
        if total not in INT64:
            raise RefusedError("WRONG_TYPE", key=key)
        self.store("PUT", key, total, entry.expires)
        return {"value": total}

    def do_mput(self, items: dict[str, Any], ttl: float | None = None) -> Message:
        for key, value in items.items():
            self.store("PUT", key, value, self.expiry(ttl))
        return {}

    def do_mdelete(self, keys: list[str]) -> Message:
        there = [key for key in dict.fromkeys(keys) if self.live(key)]
        for key in there:
            self.drop("DELETE", key)
        return {"deleted": len(there)}

    def do_txn(self, ops: list[Request], **conditions: Any) -> Message:
        results = []
        steps = [
            functools.partial(self.check, *condition) for condition in conditions.get("if", [])
        ]
        for index, step in enumerate(steps):
            self.at("if", index, step)
        for index, each in enumerate(ops):
            results.append(
                {"ok": True} | self.at("ops", index, functools.partial(self.do_in_txn, each))
            )
        return {"results": results}

    def at(self, field: str, index: int, step: Callable[[], Any]) -> Any:
        """Do a step of a TXN."""
        try:
            return step()
        except RefusedError as error:
            error.reply |= {"field": field, "index": index}
            raise

    def do_in_txn(self, each: Request) -> Message:
        fields = without(each, "op")
        if each["op"] != "GET":
            do: Callable[..., Message] = getattr(self, "do_" + each["op"].lower())
            return {"rev": self.rev} | do(**fields)
        return self.do_get(**fields) if self.live(each["key"]) else {"value": None, "rev": 0}

    # Reads

    def do_get(self, key: str) -> Message:
        entry = self.present(key)
        reply = {"value": entry.value, "rev": entry.rev}
        if entry.expires is not None:
            reply["ttl"] = (entry.expires - self.clock()) / 1000
        return reply

    def do_mget(self, keys: list[str]) -> Message:
        found = [self.live(key) or Entry(None, 0) for key in keys]
        return {"values": [entry.value for entry in found], "revs": [entry.rev for entry in found]}

    def do_scan(self, prefix: str = "", after: str = "", limit: int = 100) -> Message:
        found = [
            [key, self.entries[key].value, self.entries[key].rev]
            for key in self.names()
            if key.startswith(prefix) and key > after
        ]
        following = found[limit - 1][0] if len(found) > limit else None
        return {"items": found[:limit], "next": following, "rev": self.rev}

    def do_count(self, prefix: str = "") -> Message:
        return {"count": sum(key.startswith(prefix) for key in self.names())}

    def do_changes(self, since: int, limit: int = 1_000) -> Message:
        if since < self.oldest - 1:
            raise RefusedError("COMPACTED", oldest=self.oldest)
        page: list[list[Any]] = []
        for change in self.history:
            if change[0] > since:
                if len(page) >= limit and change[0] != page[-1][0]:
                    break
                page.append(list(change))
        return {"changes": page, "next": page[-1][0] if page else since, "rev": self.rev}

    def names(self) -> list[str]:
        """The keys that are there, in order."""
        return sorted(filter(self.live, self.entries), key=str.encode)

    def remembered(self) -> dict[tuple[str, int], Reply]:
        """What a repeat is answered, by session and number."""
        return {
            (name, seq): reply
            for name, session in self.sessions.items()
            for seq, reply in session.replies.items()
        }

    # What happens by itself

    def trim(self) -> None:
        while self.oldest <= self.safe_rev:
            if sum(change[0] >= self.oldest for change in self.history) <= HISTORY:
                return
            self.oldest += 1

    def remove_expired(self, most: int) -> None:
        due = [
            (entry.expires, key)
            for key, entry in self.entries.items()
            if entry.expires is not None and not self.live(key)
        ]
        for _, key in sorted(due)[:most]:
            self.rev += 1
            self.drop("EXPIRE", key)
            self.trim()


READS: Final = {"GET", "MGET", "SCAN", "COUNT", "CHANGES"}


def without(fields: Request, *names: str) -> Request:
    """``fields`` but for some."""
    return {name: value for name, value in fields.items() if name not in names}


def plain(reply: Message) -> bytes:
    """What is compared of a reply: all but the message, and whether it is on disk."""
    told = {name: reply[name] for name in sorted(without(reply, "message", "durable"))}
    if "results" in told:
        told["results"] = [unpack(plain(result)) for result in told["results"]]
    return pack(told)


# --- Requests ---------------------------------------------------------------------------------

keys = st.sampled_from(KEYS)
values = st.sampled_from(VALUES)
small_ints = st.sampled_from(VALUES[:3])
ttls = st.sampled_from([0.001, 0.002, 0.005, 1.0, 60.0])
prefixes = st.sampled_from(["", "a", "\xe9", "\ud7ff"])
limits = st.integers(1, 6)
offsets = st.sampled_from([0, 0, 0, 1, -1, None])
"""Added to a key's revision to make a condition; None = the condition that it is absent."""


def named(
    name: str, required: dict[str, Any], optional: dict[str, Any] | None = None
) -> st.SearchStrategy[Request]:
    """Requests of one op, with fields that they must have and others that they may have."""
    fields: dict[str, Any] = {"op": st.just(name)} | required
    return st.fixed_dictionaries(fields, optional=optional or {})


some_keys = st.lists(keys, max_size=4)
puts = named(
    "PUT",
    {"key": keys, "value": values | small_ints},
    {"ttl": ttls, "if_rev": offsets, "prev": st.booleans()},
)
deletes = named("DELETE", {"key": keys}, {"if_rev": offsets, "prev": st.booleans()})
touches = named("TOUCH", {"key": keys, "ttl": ttls | st.none()})
incrs = named("INCR", {"key": keys}, {"by": st.sampled_from([1, -1, 0, 2**63 - 1])})
gets = named("GET", {"key": keys})
txns = named(
    "TXN",
    {"ops": st.lists(puts | deletes | touches | incrs | gets, max_size=5)},
    {"if": st.lists(st.tuples(keys, offsets), max_size=2)},
)
mputs = named("MPUT", {"items": st.dictionaries(keys, small_ints, max_size=4)}, {"ttl": ttls})
mdeletes = named("MDELETE", {"keys": some_keys})
writes = puts | deletes | touches | incrs | mputs | mdeletes | txns
once = st.fixed_dictionaries({"session": st.sampled_from("st"), "seq": st.integers(1, 7)})
reads = (
    gets
    | named("MGET", {"keys": some_keys})
    | named("SCAN", {}, {"prefix": prefixes, "after": keys, "limit": limits})
    | named("COUNT", {}, {"prefix": prefixes})
    | named("CHANGES", {"since": st.integers(-8, 1)}, {"limit": limits})
)
again = st.builds(lambda index: {"again": index}, st.integers(0, 5))
"""One of the last exactly-once requests, once more."""
requests = writes | st.builds(dict.__or__, writes, once) | again | reads
batches = st.lists(requests, min_size=1, max_size=3)
numbers = st.integers(0, 1)


# --- The machine ------------------------------------------------------------------------------


class Sent(NamedTuple):
    """A request that a worker has run, and whose reply may not have left."""

    asked: Request
    expected: Message
    answer: Parked


@dataclass
class Batch:
    """What a worker has in flight.

    Args:
        epoch: how often the disk had refused something when it was sent.
        lsn: of the newest commit then.
        parked: what waits for the disk.
    """

    epoch: int
    lsn: int
    parked: list[Sent]


class StoreMachine(RuleBasedStateMachine):
    """A store and its model."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = mock.patch("zkv.durability.wal.RETRY_SECONDS", 0)
        self.patch.start()
        self.clock = FakeClock()
        self.disk = Disk()
        self.store = DurableStore(
            self.clock,
            self.disk,
            segment_bytes=SEGMENT_BYTES,
            session_window=WINDOW,
            session_ttl=SESSION_TTL,
            history=HISTORY,
        )
        self.model = Model(self.clock)
        self.limit(ENOUGH)
        self.durable = self.model.copy()
        self.limbo: Model | None = None
        """What the log may hold after a failed sync; nobody knows before it is read again."""
        self.doubtful: dict[tuple[str, int], Reply] = {}
        """Refusals on which a sync failed: a crash may bring them back."""
        self.epoch = 0
        self.survived: list[int] = []
        """The newest commit, by its number, that was left at each refusal."""
        self.saved_rev = 0
        self.in_flight: list[Batch | None] = [None, None]
        self.asked_once: list[Request] = []

    def teardown(self) -> None:
        self.store.close()
        self.patch.stop()

    # Requests

    @rule(number=numbers, batch=batches)
    def send_and_settle(self, number: int, batch: list[Request]) -> None:
        self.settle(number)
        self.send(number, batch)
        self.settle(number)

    @rule(number=numbers, batch=batches)
    def send(self, number: int, batch: list[Request]) -> None:
        """Have a worker run a batch; what it wrote is not on disk yet."""
        if self.in_flight[number] is not None:
            return
        asked = [each for each in map(self.resolve, batch) if each is not None]
        if not asked:
            return
        bodies = [request(each["op"], **without(each, "op")) for each in asked]
        worker = self.store.workers[number]
        answers = worker.send(*bodies)
        parked = []
        for place in sorted(range(len(asked)), key=lambda place: (place in worker.left, place)):
            survivor = self.durable.copy().answer(asked[place])
            sent = Sent(asked[place], self.expect(asked[place]), answers[place])
            if sent.answer.left:
                self.compare(sent.asked, sent.answer.read(), sent.expected)
                self.check_safe(sent, survivor)
            else:
                parked.append(sent)
        self.in_flight[number] = Batch(self.epoch, self.store.engine.last_lsn, parked)

    def resolve(self, drawn: Request) -> Request | None:
        """The request that is meant: what depends on the state is put in."""
        if "again" in drawn:
            index = drawn["again"]
            return self.asked_once[-index - 1] if index < len(self.asked_once) else None
        asked = dict(drawn)
        if asked["op"] == "CHANGES":
            asked["since"] = max(0, self.model.rev + asked["since"])
        if "if" in asked:
            asked["if"] = [(key, self.condition(key, offset)) for key, offset in asked["if"]]
        if "ops" in asked:
            asked["ops"] = [self.with_condition(each) for each in asked["ops"]]
        if "session" in asked:
            self.asked_once.append(asked)
        return self.with_condition(asked)

    def with_condition(self, asked: Request) -> Request:
        if "if_rev" not in asked:
            return asked
        asked_rev = self.condition(asked["key"], asked["if_rev"])
        asked_now = asked | {"if_rev": asked_rev}
        if "session" in asked:
            self.asked_once[-1] = asked_now
        return asked_now

    def condition(self, key: str, offset: int | None) -> int:
        return 0 if offset is None else max(0, self.model.rev_of(key) + offset)

    def expect(self, asked: Request) -> Message:
        """What the model answers, where the log takes writes at all."""
        if asked["op"] == "CHANGES":  # tells of nothing that is not on disk
            return replace(self.durable, oldest=self.model.oldest).answer(asked)
        self.model.safe_rev = self.store.engine.safe_rev
        if self.limbo is None:
            return self.model.answer(asked)
        trial = self.model.copy()
        reply = trial.answer(asked)
        return reply if trial == self.model else RefusedError("READ_ONLY").reply

    def compare(self, asked: Request, reply: Message, expected: Message) -> None:
        assert plain(reply) == plain(expected), (asked, reply, expected)
        assert reply["ok"] or reply["message"]
        if "durable" in reply:
            assert reply["durable"] is True, (asked, reply)

    def check_safe(self, sent: Sent, survivor: Message) -> None:
        """A reply that has left must not tell of anything that a crash would take back."""
        if sent.expected.get("code") in NOT_OF_THE_STATE:
            return
        assert plain(survivor) == plain(sent.expected), (sent.asked, sent.expected, survivor)

    @rule(number=numbers)
    def settle(self, number: int) -> None:
        """Have a worker wait for the disk."""
        batch, self.in_flight[number] = self.in_flight[number], None
        if batch is None:
            return
        unsafe = batch.lsn > self.store.engine.safe_lsn
        before = self.model.copy()
        self.store.workers[number].settle()
        if not batch.parked:
            return
        applied: bool | None = None
        if batch.epoch != self.epoch:
            refused = batch.lsn > self.survived[batch.epoch]
        elif unsafe and self.disk.full:
            refused, applied = True, None if self.disk.refuses_sync else False
            self.roll_back()
            if self.disk.refuses_sync:  # The file is cut back; whether for good, nobody knows.
                self.limbo = self.model.copy()
        elif unsafe and self.disk.refuses_sync:
            refused = True
            self.roll_back()
            self.limbo = before
        else:
            refused = False
            if unsafe:
                self.durable = self.model.copy()
        for sent in batch.parked:
            self.check_parked(sent, refused, applied)

    def check_parked(self, sent: Sent, refused: bool, applied: bool | None) -> None:
        reply = sent.answer.read()
        if not refused:
            self.compare(sent.asked, reply, sent.expected)
        elif sent.asked["op"] not in READS:
            refusal = RefusedError("READ_ONLY", applied=applied)
            self.compare(sent.asked, reply, refusal.reply)
        elif reply.get("code") == "READ_ONLY":
            assert self.model != self.durable, "there was no reason to refuse a read"
        else:
            self.compare(sent.asked, reply, self.model.answer(sent.asked))
            self.compare(sent.asked, reply, self.durable.answer(sent.asked))

    def roll_back(self) -> None:
        self.epoch += 1
        self.survived.append(self.store.engine.safe_lsn)
        oldest = self.model.oldest
        self.model.become(self.durable)
        # What the history let go of before does not come back.
        self.model.oldest = self.durable.oldest = min(oldest, self.model.rev + 1)

    # Quotas

    @rule(max_bytes=st.sampled_from([1, 10, 20, 40, ENOUGH]))
    def limit(self, max_bytes: int) -> None:
        self.model.allowed.max_bytes = max_bytes
        self.store.serve(User("", write=[""], max_bytes=max_bytes))

    # Time

    @rule(ms=st.sampled_from([1, 1, 2, 1_000, 60_000]))
    def time_passes(self, ms: int) -> None:
        self.clock.advance(ms)

    @rule(most=st.integers(1, 3))
    def remove_expired(self, most: int) -> None:
        if self.limbo is not None:
            return
        self.model.safe_rev = self.store.engine.safe_rev
        self.model.remove_expired(most)
        self.store.engine.keyspace.expire(most)

    @rule()
    @precondition(lambda self: self.model.sessions)
    def long_silence(self) -> None:
        """Long enough for all sessions to be forgotten."""
        self.clock.advance(SESSION_TTL * 1000)
        for model in (self.model, self.durable, self.limbo):
            if model is not None:
                model.forgotten |= model.remembered()
                model.sessions.clear()
        self.doubtful.clear()

    # The disk

    @rule(full=st.booleans())
    def disk_is_full(self, full: bool) -> None:
        self.disk.full = full

    @rule(refuses=st.booleans())
    def disk_refuses_sync(self, refuses: bool) -> None:
        self.disk.refuses_sync = refuses

    @rule(during=st.lists(writes | st.builds(dict.__or__, writes, once), max_size=3), late=batches)
    def snapshot(self, during: list[Request], late: list[Request]) -> None:
        """Write a snapshot, with requests while it is written and just before it is named."""
        self.disk.full = self.disk.refuses_sync = False
        if self.model.rev == self.saved_rev and self.limbo is None:
            assert self.store.snapshot() == self.saved_rev
            self.durable = self.model.copy()
            return
        rev = self.model.rev

        def safe_by_now() -> None:
            if self.limbo is None:
                self.durable = self.model.copy()
            self.send(1, late)

        self.disk.before = {
            "create .snapshot.tmp": lambda: self.send(0, during),
            "rename .snapshot.tmp": safe_by_now,
        }
        outcome = self.store.snapshot()
        assert not isinstance(outcome, ReadOnly), outcome
        assert outcome == rev
        assert self.disk.before == {}
        self.saved_rev = rev
        if self.limbo is not None:
            self.doubtful = {
                number: reply
                for number, reply in self.limbo.remembered().items()
                if not reply.changed_something
            }
        self.limbo = None

    @rule()
    def crash(self) -> None:
        """Lose what is in memory, and read what is on disk."""
        self.disk.full = self.disk.refuses_sync = False
        self.in_flight = [None, None]
        self.store.crash()
        survivors = [self.durable] if self.limbo is None else [self.durable, self.limbo]
        for survivor in survivors:
            self.take_back(survivor)
        differences = [self.differences(model) for model in survivors]
        assert [] in differences, differences
        self.model = survivors[differences.index([])].copy()
        self.learn_oldest()
        self.durable, self.limbo = self.model.copy(), None

    def take_back(self, model: Model) -> None:
        """Take what a crash may bring back, where it has.

        A refusal on which a sync failed was answered as unknown. And a session that goes on after a
        long silence may as well have lived by repeats, which are in no log.
        """
        remembered = self.remembered()
        gone_on = {name for name, _ in model.remembered()}
        for (name, seq), reply in self.doubtful.items():
            if seq in remembered.get(name, ()):
                model.sessions.setdefault(name, Session()).add(seq, reply)
        for (name, seq), reply in model.forgotten.items():
            if name in gone_on and seq in remembered.get(name, ()):
                model.sessions[name].add(seq, reply)

    def remembered(self) -> dict[str, set[int]]:
        """The sequence numbers that the store remembers."""
        sessions = self.store.engine.keyspace.sessions
        states = [sessions.state(name, 2**62) for name in sessions.names()]
        return {
            bare(state[0]): {seq for seq, *_ in state[2]} for state in states if state is not None
        }

    def learn_oldest(self) -> None:
        """How far back the history reaches after a restart: as far as the log does."""
        oldest = self.store.engine.keyspace.history.oldest
        self.model.oldest, self.model.safe_rev = 1, self.model.rev
        self.model.trim()
        assert self.model.oldest <= oldest <= max(self.model.oldest, self.saved_rev + 1)
        self.model.oldest = oldest

    # What must always be so

    @invariant()
    def the_store_is_as_the_model_is(self) -> None:
        assert self.differences(self.model) == []
        keyspace = self.store.engine.keyspace
        commits = keyspace.history.since(self.model.oldest - 1, 1_000_000)
        kept = [
            (commit.rev, change.op, change.key, bytes(change.value))
            for commit in commits
            for change in commit.changes
        ]
        assert kept == [
            (rev, what, key, pack(value))
            for rev, what, key, value in self.model.history
            if rev >= self.model.oldest
        ]
        assert keyspace.history.oldest == self.model.oldest

    def differences(self, model: Model) -> list[str]:
        """How the store is other than ``model``."""
        keyspace = self.store.engine.keyspace
        with keyspace.lock:
            keyspace.sessions.forget_silent(self.clock())
            entries = {
                key: (entry.value, entry.rev, entry.expires)
                for key, entry in keyspace.entries.items()
            }
            states = [keyspace.sessions.state(name, 2**62) for name in keyspace.sessions.names()]
        replies = {
            (bare(state[0]), seq): plain(unpack(reply))
            for state in states
            if state is not None
            for seq, _, reply, _ in state[2]
        }
        statistics: Any = keyspace.statistics()
        scanned = keyspace.scan(key_range(), 1_000, False).items
        backwards = keyspace.scan(key_range(), 1_000, True).items
        held: dict[str, tuple[Any, Any]] = {
            "rev": (keyspace.rev, model.rev),
            "entries": (
                entries,
                {
                    key: (pack(entry.value), entry.rev, entry.expires)
                    for key, entry in model.entries.items()
                },
            ),
            "under the quota": (keyspace.entries.bytes_under(("",)), model.held()),
            "order": ([key for key, _ in scanned], model.names()),
            "order backwards": ([key for key, _ in backwards], model.names()[::-1]),
            "count": (len(keyspace), len(model.names())),
            "expiring": (
                statistics["expiring"],
                sum(entry.expires is not None for entry in model.entries.values()),
            ),
            "sessions": (
                replies,
                {number: plain(known.reply) for number, known in model.remembered().items()},
            ),
            "replies": (statistics["sessions"]["replies"], len(replies)),
            "bytes of replies": (
                statistics["sessions"]["bytes"],
                sum(
                    counted_size(len(reply))
                    for state in states
                    if state
                    for *_, reply, _ in state[2]
                ),
            ),
        }
        return [
            f"{what}: the store has {found}, the model {expected}"
            for what, (found, expected) in held.items()
            if found != expected
        ]


def bare(name: str) -> str:
    """The name of a session without the user's."""
    return name.rpartition(SCOPE_END)[2]


NOT_OF_THE_STATE: Final = {"BAD_REQUEST", "STALE_SEQ", "COMPACTED", "READ_ONLY"}
"""Codes that tell nothing of what a crash could take back."""


def run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        StoreMachine,
        settings=hypothesis.settings(
            max_examples=examples,
            stateful_step_count=steps,
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )


def test_the_store_does_what_the_model_does() -> None:
    run(examples=100, steps=30)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_the_store_does_what_the_model_does_for_long() -> None:
    run(examples=5_000, steps=60)
