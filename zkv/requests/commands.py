"""The commands: two tables from request class to function, one of reads and one of writes.

A read takes the `Node` and a decoded request. A write also takes a `StagedWrite`: `execute` calls
it with the keyspace's lock held, then commits what it staged, exactly-once if the request asks for
that. So each write is implemented once, for use alone and in a TXN.

A command returns the reply and the newest revision that it reveals, or a future of a reply that
waits for the disk. It raises a `RequestError` if it refuses the request. Commands run in several
worker threads at once; all that they share is protected by the keyspace's lock or is sent through
another thread's queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from msgspec import UNSET, Raw, Struct

from zkv import __version__
from zkv.bounds import key_range
from zkv.engine import Engine
from zkv.errors import BadRequest, RequestError, TooLarge
from zkv.keyspace import Once, Remembered, StagedWrite, StoredEntry, memory
from zkv.protocol import requests
from zkv.protocol.codec import (
    FEATURES,
    PROTOCOL_VERSION,
    KeyLimits,
    digest,
    encode_reply,
    pack_array,
)
from zkv.protocol.replies import (
    MONITORED,
    NIL,
    OPEN_REPLICATION,
    ChangesReply,
    CommitReply,
    CountReply,
    Failure,
    GetReply,
    HandedOverReply,
    IncrReply,
    InfoReply,
    MDeleteReply,
    MGetReply,
    PingReply,
    PromoteReply,
    ReplicatedInfoReply,
    Reply,
    RevisionReply,
    ScanReply,
    SlowReply,
    TxnReply,
    WriteReply,
    failure,
)
from zkv.replication.handover import HandOver
from zkv.replication.promises import Promises
from zkv.replication.role import Role
from zkv.replication.source import ReplicationSource
from zkv.replication.standby import Promoted
from zkv.requests.parking import ParkedRead, ParkedRequest, Parking
from zkv.requests.permission import may_monitor
from zkv.requests.slow_log import SlowLog
from zkv.requests.stopping import Stopping

if TYPE_CHECKING:
    from zkv.users.quota import Quota
    from zkv.users.rights import User

MAX_REMEMBERED_REPLY: Final = 1024 * 1024
"""Bytes of the largest reply that is remembered for a repeat: a session remembers many of them."""
SCANNED_COMMITS: Final = 10_000
"""Commits that one CHANGES reads at most: with a rare prefix it returns early, and the client goes
on from ``next``."""
DECIDE_THEMSELVES: Final = "the members of a store in etcd decide which one leads"
PATIENCE_SECONDS: Final = 5.0
"""How long a read with ``min_rev`` waits if it has no deadline."""
MOST_PATIENCE_SECONDS: Final = 60.0
"""How long it waits at most, whatever its deadline."""
REMEMBERED_FAILURES: Final = frozenset({"NOT_FOUND", "CONFLICT", "WRONG_TYPE"})
"""Errors that an exactly-once request remembers: a repeat gets the same error."""


_T = TypeVar("_T")


class Done(Struct, frozen=True, gc=False):
    """The result of a command.

    Args:
        reply: the reply; None for a repeat.
        rev: the newest revision that the reply reveals: it is sent once that is safe.
        lsn: log number of the commit that must be safe before the reply is sent; 0 = none.
        remembered: for a repeat, the packed reply to the original request.
        size: bytes of what may be large in the reply: keys and values.
    """

    reply: Reply | Failure | None
    rev: int
    lsn: int = 0
    remembered: bytes = b""
    size: int = 0


Answer = Done | Future[Reply]


@dataclass(frozen=True)
class Node:
    """The environment of the commands: one server's engine, limits and statistics.

    Args:
        engine: the engine.
        limits: limits of keys and values.
        max_reply_bytes: bytes of the largest reply body.
        facts: returns the fields of INFO that do not come from the engine.
        stop: begins to stop the server; its future gives the last saved revision.
        slow: the slow log.
        role: what this server is to its store.
        promote: has a standby take over, by force or not; its future gives revision and term.
        parking: holds requests that wait for commits.
        source: what other servers replicate from; None without a data directory.
        hand_over: has this server stop to lead, likewise; None for a member of a store in etcd.
        promises: what it has promised to standbys that are being promoted, likewise.
        cluster: returns what a member of a store in etcd has in INFO besides; None = it is none.
        stopping: whether the server is stopping.
    """

    engine: Engine
    limits: KeyLimits
    max_reply_bytes: int
    facts: Callable[[], dict[str, Any]]
    stop: Callable[[], Future[int]]
    slow: SlowLog
    role: Role
    promote: Callable[[bool], Future[Promoted]]
    parking: Parking
    source: ReplicationSource | None
    hand_over: HandOver | None
    promises: Promises | None
    cluster: Callable[[], dict[str, Any]] | None = None
    stopping: Stopping = field(default_factory=Stopping)


def execute(node: Node, request: requests.AnyRequest, user: User | None = None) -> Answer:
    """Run a request of a user who may run it. Raises RequestError."""
    write = WRITES.get(type(request))
    if write is None:
        if isinstance(request, requests.Info):
            return info(node, user)
        if isinstance(request, requests.ReadRequest) and request.min_rev is not None:
            return _read_at(node, request, request.min_rev)
        return READS[type(request)](node, request)
    keyspace = node.engine.keyspace
    quota = None if user is None else user.quota
    if request.session is not None and request.seq is not None:
        session = request.session if user is None else user.session(request.session)
        return _execute_once(node, request, write, session, request.seq, quota)
    with keyspace.lock:
        transaction = keyspace.begin(quota)
        reply = write(node, transaction, request)
        lsn = keyspace.commit(transaction)
        return Done(reply, transaction.reply_rev, lsn, size=_values_size(reply))


def _execute_once(
    node: Node,
    request: requests.AnyRequest,
    write: Write,
    session: str,
    seq: int,
    quota: Quota | None,
) -> Answer:
    """Run a write, unless it is a repeat. The reply is logged in the same commit as the changes."""
    keyspace = node.engine.keyspace
    content = digest(request)
    with keyspace.lock:
        known = keyspace.sessions.recall(session, seq, content, keyspace.now())
        if known is not None:
            return _repeat(known)
        transaction = keyspace.begin(quota)
        reply: CommitReply | Failure
        try:
            reply = write(node, transaction, request)
        except RequestError as error:
            if error.code not in REMEMBERED_FAILURES:
                raise
            transaction = keyspace.begin()  # Discards what the failed command had staged.
            reply = failure(error, None)
        packed = encode_reply(reply)
        if len(packed) > MAX_REMEMBERED_REPLY:
            raise TooLarge(
                f"the reply has {len(packed)} bytes; one that is remembered for a repeat may have "
                f"{MAX_REMEMBERED_REPLY}: ask for less, or without session"
            )
        keyspace.sessions.require_capacity(session, seq, len(packed))
        lsn = keyspace.commit(transaction, Once(session, seq, content, packed))
        return Done(reply, transaction.reply_rev, lsn)


def _repeat(known: Remembered) -> Done:
    return Done(None, known.rev, known.lsn, known.reply)


# --- Reads


def ping(_node: Node, _request: requests.Ping) -> Done:
    """Return the protocol version and the server's clock."""
    now = int(time.time() * 1000)
    return Done(PingReply(protocol=PROTOCOL_VERSION, version=__version__, time=now), 0)


def get(node: Node, request: requests.Get) -> Done:
    """Return the entry of a key."""
    node.limits.check_key(request.key)
    entry = node.engine.keyspace.get(request.key)
    memory.require(len(entry.value))
    reply = _get_reply(entry, node.engine.keyspace.now)
    return Done(reply, entry.rev, size=len(entry.value))


def mget(node: Node, request: requests.MGet) -> Done:
    """Return many entries at one revision. Raises TooLarge if they exceed one reply.

    Each step is one call for all keys: for 1,000 keys 0.25 ms instead of 0.37 ms.
    """
    keys = request.keys
    node.limits.check_keys(keys)
    entries, removed = node.engine.keyspace.get_many(keys)
    values = [entry.value for entry in entries]
    revs = [entry.rev for entry in entries]
    size = sum(map(len, values))
    _check_size(node, size, f"the values of these {len(keys)} keys", "ask for fewer keys")
    seen = max(removed, *revs) if 0 in revs else max(revs, default=0)
    return Done(MGetReply(values=pack_array(values), revs=revs), seen, size=size)


def scan(node: Node, request: requests.Scan) -> Done:
    """Return one page of entries in key order."""
    most = min(request.limit, node.limits.max_batch)
    keys = key_range(request.prefix, request.start, request.end, request.after, request.reverse)
    page = node.engine.keyspace.scan(keys, most, request.reverse)
    if page.following is not None and len(page.items) == most < request.limit:
        raise TooLarge(
            f"there are more than {most} keys, which is max_batch; ask with a limit up to that, "
            f"and continue after `next`"
        )
    values = request.values
    size = sum([len(key) + (len(entry.value) if values else 0) for key, entry in page.items])
    _check_size(node, size, "this page", "ask with a smaller limit")
    items = [(key, Raw(entry.value) if values else NIL, entry.rev) for key, entry in page.items]
    return Done(ScanReply(items=items, next=page.following, rev=page.rev), page.rev, size=size)


def count(node: Node, request: requests.Count) -> Done:
    """Count the keys that begin with a prefix."""
    number, rev = node.engine.keyspace.count(key_range(request.prefix))
    return Done(CountReply(count=number), rev)


def changes(node: Node, request: requests.Changes) -> Done:
    """Return changes after a revision, oldest first, and all changes of a revision together."""
    keyspace = node.engine.keyspace
    most = min(max(request.limit, 1), SCANNED_COMMITS) if not request.prefix else SCANNED_COMMITS
    commits, rev = keyspace.changes_since(request.since, most)
    found: list[tuple[int, str, str, Raw]] = []
    size, following = 0, request.since
    for commit in commits:
        if len(found) >= request.limit or size > node.max_reply_bytes // 2:
            break
        for change in commit.changes:
            if change.key.startswith(request.prefix):
                found.append((commit.rev, change.op, change.key, change.value))
                size += len(change.key) + len(memoryview(change.value))
        following = commit.rev
    memory.require(size)
    return Done(ChangesReply(changes=found, next=following, rev=rev), 0, size=size)


def _read_at(node: Node, request: requests.ReadRequest, min_rev: int) -> Answer:
    """Run a read once the store has a revision, for which it may wait in the parking."""
    engine, read = node.engine, READS_OF_KEYS[type(request)]
    if min_rev <= engine.reached_rev:
        return read(node, request)

    def run() -> tuple[Reply | RequestError, int]:
        try:
            done = read(node, request)
        except RequestError as error:
            return error, error.seen_rev
        return cast("Reply", done.reply), done.rev  # It is None for a repeat of a write alone.

    seconds = PATIENCE_SECONDS
    if request.deadline is not None:
        seconds = min(request.deadline / 1000 - time.time(), MOST_PATIENCE_SECONDS)
    attempt = ParkedRead(engine, node.parking, min_rev, run)
    return node.parking.park(attempt, seconds, min_rev)


def replicate(node: Node, request: requests.Replicate) -> Answer:
    """Return commits of the log, or a part of a snapshot, for another server."""
    source, hand_over = node.source, node.hand_over
    if source is None:
        raise BadRequest("this server keeps its data in memory alone: it has no log")
    if request.supersede is not UNSET:
        if hand_over is None:
            raise BadRequest(f"field `supersede`: {DECIDE_THEMSELVES}")
        return Done(_hand_over(hand_over, request.member, request.supersede), 0)
    if request.promise is not UNSET:
        if node.promises is None:
            raise BadRequest(f"field `promise`: {DECIDE_THEMSELVES}")
        return Done(node.promises.answer(request.member, request.store, request.promise), 0)
    source.admit(request)
    memory.require(request.limit)
    if request.snapshot is not None:
        part = source.part(request)
        return part if isinstance(part, Future) else Done(part, 0, size=len(part.data))
    reply = source.pull(request)
    if reply is None and hand_over is not None:
        hand_over.require_use(request.member)
    if reply is not None or not request.wait:
        reply = reply or source.answer([])
        return Done(reply, 0, size=sum(map(len, reply.commits)))

    def attempt(_: ParkedRequest, late: bool) -> Reply | None:
        reply = source.pull(request)
        source.members.note(request)
        return source.answer([]) if reply is None and late else reply

    return node.parking.park(attempt, request.wait / 1000, 0, request.after + 1)


def _hand_over(hand_over: HandOver, member: str, wish: requests.Supersede) -> HandedOverReply:
    if wish.leader is None:
        lsn, rev = hand_over.resume(member, wish.attempt)
    else:
        lsn, rev = hand_over.supersede(member, wish.attempt, wish.term, wish.leader)
    return HandedOverReply(lsn=lsn, rev=rev)


def info(node: Node, user: User | None) -> Done:
    """Return version, limits, settings and statistics, as far as the user may see them."""
    reply = make_info(node)
    if user is not None:
        reply.user = user.name
    if not may_monitor(user):
        for name in MONITORED:
            setattr(reply, name, UNSET)
        if isinstance(reply, ReplicatedInfoReply):
            reply.replication = {name: reply.replication[name] for name in OPEN_REPLICATION}
    # It is needed most while nobody confirms anything.
    if node.engine.needs_confirmation or node.cluster is not None:
        reply.rev = min(reply.rev, node.engine.safe_rev)
    return Done(reply, reply.rev)


def make_info(node: Node) -> InfoReply:
    """Return the reply to INFO. It reveals no newer revision than its own."""
    keyspace = node.engine.keyspace
    keys = len(keyspace)
    rev = keyspace.rev  # Read after what it is to cover.
    facts = node.facts() | {
        "version": __version__,
        "protocol": PROTOCOL_VERSION,
        "features": FEATURES,
        "rev": rev,
        "durable_rev": node.engine.durable_rev,
        "keys": keys,
    }
    if not keyspace.lineage.store and node.role.leads:
        return InfoReply(**facts)
    return ReplicatedInfoReply(**facts, replication=_replication(node))


def _replication(node: Node) -> dict[str, Any]:
    """Return INFO's ``replication``."""
    lineage, role, source = node.engine.keyspace.lineage, node.role, node.source
    facts: dict[str, Any] = {
        "role": role.name,
        "store": lineage.store,
        "term": lineage.term,
        "leader": role.leader,
        "applied": node.engine.safe_lsn,
        "lag_seconds": role.lag(),
        "promised": 0 if node.promises is None else node.promises.binding,
        "members": [] if source is None else source.members.report(),
    }
    if node.cluster is None:
        return facts
    found = node.cluster()
    # Standbys replicate from members, too.
    return facts | found | {"standbys": facts["members"]}


def slow(node: Node, request: requests.Slow) -> Done:
    """Return the newest slow requests, and forget them if the client wants that."""
    entries, minutes = node.slow.newest(request.limit)
    if request.reset:
        node.slow.clear()
    return Done(SlowReply(entries=entries, minutes=minutes), 0)


def snapshot(node: Node, _request: requests.Snapshot) -> Answer:
    """Order a snapshot; the reply waits until it is on disk."""
    return _revision_reply(node.engine.snapshot())


def promote(node: Node, request: requests.Promote) -> Answer:
    """Have a standby take over; the reply waits until it leads."""
    return _reply_to(
        node.promote(request.force), lambda done: PromoteReply(rev=done.rev, term=done.term)
    )


def end(node: Node, _request: requests.End) -> Answer:
    """Stop the server; the reply waits until everything is saved."""
    return _revision_reply(node.stop())


# --- Writes: with the keyspace's lock held


def put(node: Node, transaction: StagedWrite, request: requests.Put) -> WriteReply:
    """Write an entry."""
    key = request.key
    node.limits.check_key(key)
    value = node.limits.value(key, request.value)
    expires = None if request.ttl is None else _expires(transaction, request.ttl)
    previous = None
    if request.if_rev is not None:
        previous = transaction.check(key, request.if_rev)
    elif request.prev:
        previous = transaction.find(key)
    transaction.put(key, value, expires)
    reply = WriteReply(rev=transaction.rev)
    return _with_previous(reply, previous) if request.prev else reply


def delete(node: Node, transaction: StagedWrite, request: requests.Delete) -> WriteReply:
    """Remove an entry."""
    node.limits.check_key(request.key)
    if request.if_rev is not None:
        transaction.check(request.key, request.if_rev)
    previous = transaction.get(request.key)
    transaction.remove(request.key)
    reply = WriteReply(rev=transaction.rev)
    return _with_previous(reply, previous) if request.prev else reply


def touch(node: Node, transaction: StagedWrite, request: requests.Touch) -> WriteReply:
    """Set the time to live of an entry."""
    node.limits.check_key(request.key)
    expires = None if request.ttl is None else _expires(transaction, request.ttl)
    transaction.touch(request.key, expires)
    return WriteReply(rev=transaction.rev)


def incr(node: Node, transaction: StagedWrite, request: requests.Incr) -> IncrReply:
    """Add to an int64."""
    node.limits.check_key(request.key)
    return IncrReply(value=transaction.increment(request.key, request.by), rev=transaction.rev)


def mput(node: Node, transaction: StagedWrite, request: requests.MPut) -> WriteReply:
    """Write many entries with one revision."""
    node.limits.check_keys(request.items)
    expires = None if request.ttl is None else _expires(transaction, request.ttl)
    transaction.put_many(node.limits.values(request.items), expires)
    return WriteReply(rev=transaction.reply_rev)


def mdelete(node: Node, transaction: StagedWrite, request: requests.MDelete) -> MDeleteReply:
    """Remove many entries with one revision."""
    node.limits.check_keys(request.keys)
    present = [key for key in dict.fromkeys(request.keys) if transaction.find(key) is not None]
    for key in present:
        transaction.remove(key)
    return MDeleteReply(deleted=len(present), rev=transaction.reply_rev)


def txn(node: Node, transaction: StagedWrite, request: requests.Txn) -> TxnReply:
    """Check the conditions, then run the ops, each seeing those before; all or nothing."""
    node.limits.check_batch(len(request.ops), "ops")
    node.limits.check_batch(len(request.conditions), "if")
    seen = transaction.rev - 1
    for index, (key, rev) in enumerate(request.conditions):
        with _Failing("if", index, seen):
            node.limits.check_key(key)
            transaction.check(key, rev)
    results: list[Reply] = []
    size = 0
    for index, op in enumerate(request.ops):
        with _Failing("ops", index, seen):
            result = _run_in_txn(node, transaction, op)
            size += _values_size(result)
            _check_size(node, size, "the results", "ask for less in one TXN")
            results.append(result)
    return TxnReply(results=results, rev=transaction.reply_rev)


def _run_in_txn(node: Node, transaction: StagedWrite, op: requests.SubRequest) -> Reply:
    for name in ("id", "session", "seq", "deadline", "durable", "timing", "trace"):
        value = getattr(op, name)
        if value is not None and value is not False:  # 0 is one that was given.
            raise BadRequest(f"field `{name}` belongs to the TXN, not to an op in it")
    if isinstance(op, requests.Get):
        if op.stale or op.min_rev is not None:
            name = "stale" if op.stale else "min_rev"
            raise BadRequest(f"field `{name}` is for a GET alone, not for one in a TXN")
        return _get_in_txn(node, transaction, op)
    return WRITES[type(op)](node, transaction, op)


def _get_in_txn(node: Node, transaction: StagedWrite, op: requests.Get) -> GetReply:
    node.limits.check_key(op.key)
    entry = transaction.find(op.key)
    if entry is None:
        return GetReply(value=NIL, rev=0)
    return _get_reply(entry, transaction.now)


class _Failing:
    """Adds the failing condition or op of a TXN to a `RequestError`.

    The failure reveals that everything before it succeeded, and so may depend on any revision up to
    the newest; but not on the revision that the TXN would have had, which is never written.
    newest one; but not on the revision that the TXN would have had, which is never written.
    """

    def __init__(self, field: str, index: int, seen_rev: int) -> None:
        self._field = field
        self._index = index
        self._seen_rev = seen_rev

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, RequestError):
            error.details["field"] = self._field
            error.details["index"] = self._index
            error.seen_rev = self._seen_rev


# --- Helpers


def _get_reply(entry: StoredEntry, now: Callable[[], int]) -> GetReply:
    reply = GetReply(value=Raw(entry.value), rev=entry.rev)
    if entry.expires is not None:
        reply.ttl = max(0, entry.expires - now()) / 1000
    return reply


def _with_previous(reply: WriteReply, previous: StoredEntry | None) -> WriteReply:
    reply.prev = NIL if previous is None else Raw(previous.value)
    reply.prev_rev = 0 if previous is None else previous.rev
    return reply


def _expires(transaction: StagedWrite, ttl: float) -> int:
    """Return the expiry time in ms of an entry written now; a ttl below 1 ms counts as 1 ms."""
    return transaction.now() + max(1, round(ttl * 1000))


def _values_size(reply: Reply) -> int:
    """Return the bytes of the values in a reply to a write, or to one op of a TXN."""
    if isinstance(reply, TxnReply):
        return sum(map(_values_size, reply.results))
    if isinstance(reply, GetReply):
        return len(memoryview(reply.value))
    if isinstance(reply, WriteReply) and isinstance(reply.prev, Raw):
        return len(memoryview(reply.prev))
    return 0


def _check_size(node: Node, size: int, what: str, advice: str) -> None:
    if size > node.max_reply_bytes:
        raise TooLarge(
            f"{what} would take {size} bytes; max_reply_bytes is {node.max_reply_bytes}: {advice}"
        )
    memory.require(size)


def _revision_reply(revision: Future[int]) -> Future[Reply]:
    return _reply_to(revision, lambda rev: RevisionReply(rev=rev))


def _reply_to(outcome: Future[_T], make: Callable[[_T], Reply]) -> Future[Reply]:
    """Return a future of the reply that ``make`` makes of an outcome."""
    reply: Future[Reply] = Future()

    def settle(done: Future[_T]) -> None:
        error = done.exception()
        if error is not None:
            reply.set_exception(error)
        else:
            reply.set_result(make(done.result()))

    outcome.add_done_callback(settle)
    return reply


Write = Callable[[Node, StagedWrite, Any], CommitReply]

READS_OF_KEYS: Final[dict[type[requests.Request], Callable[[Node, Any], Done]]] = {
    requests.Get: get,
    requests.MGet: mget,
    requests.Scan: scan,
    requests.Count: count,
}

READS: Final[dict[type[requests.Request], Callable[[Node, Any], Answer]]] = {
    **READS_OF_KEYS,
    requests.Ping: ping,
    requests.Changes: changes,
    requests.Slow: slow,
    requests.Snapshot: snapshot,
    requests.Replicate: replicate,
    requests.End: end,
    requests.Promote: promote,
}

WRITES: Final[dict[type[requests.Request], Write]] = {
    requests.Put: put,
    requests.Delete: delete,
    requests.Touch: touch,
    requests.Incr: incr,
    requests.MPut: mput,
    requests.MDelete: mdelete,
    requests.Txn: txn,
}
