"""What each op does: two tables from request class to function, one of reads and one of writes.

A read takes the `Node` it runs on and a request that the protocol has checked. A write takes also a
`StagedWrite`: it runs with the keyspace's lock held, inside `execute`, which commits what it staged
and makes it exactly-once where the request asks for that. So each write is described once, whether
it comes alone or in a TXN.

Each gives its reply and the newest revision that the reply tells of, or a future of a reply that
must wait for the disk. It raises a `RequestError` where the request cannot be done. Commands run in
worker threads, many at a time; all that they share is behind the keyspace's lock or the inbox of
another thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from msgspec import Raw, Struct

from zkv import __version__
from zkv.engine import Engine
from zkv.errors import BadRequest, RequestError, TooLarge
from zkv.keyspace import Once, Remembered, StagedWrite, StoredEntry
from zkv.keyspace.bounds import key_range
from zkv.protocol import requests
from zkv.protocol.codec import PROTOCOL_VERSION, KeyLimits, digest, encode_reply, pack_array
from zkv.protocol.replies import (
    NIL,
    ChangesReply,
    CommitReply,
    CountReply,
    Failure,
    GetReply,
    IncrReply,
    InfoReply,
    MDeleteReply,
    MGetReply,
    PingReply,
    Reply,
    RevisionReply,
    ScanReply,
    TxnReply,
    WriteReply,
    failure,
)

MAX_REMEMBERED_REPLY: Final = 1024 * 1024
"""Bytes of the largest reply that is kept for a repeat: a session holds many of them."""
SCANNED_COMMITS: Final = 10_000
"""Most commits that one CHANGES looks at: one with a rare prefix returns early, and goes on."""
REMEMBERED_FAILURES: Final = frozenset({"NOT_FOUND", "CONFLICT", "WRONG_TYPE"})
"""What an exactly-once request that ran may be refused for: a repeat is refused likewise."""


class Done(Struct, frozen=True, gc=False):
    """What came of a request.

    Args:
        reply: what to answer; None where ``remembered`` is to be answered again.
        rev: the newest revision that the reply tells of: it may not leave before that is safe.
        lsn: the log's number of the commit, likewise; 0 = there is none to wait for.
        remembered: the packed reply of a repeated exactly-once request.
    """

    reply: Reply | Failure | None
    rev: int
    lsn: int = 0
    remembered: bytes = b""


Answer = Done | Future[Reply]


@dataclass(frozen=True)
class Node:
    """What commands work on: one server's engine, limits and facts.

    Args:
        engine: the store.
        limits: what keys and values are held to.
        max_reply_bytes: largest reply body.
        facts: what INFO says of the server around the engine.
        stop: begins the orderly end; the future gives the revision that was saved last.
    """

    engine: Engine
    limits: KeyLimits
    max_reply_bytes: int
    facts: Callable[[], dict[str, Any]]
    stop: Callable[[], Future[int]]


def execute(node: Node, request: requests.AnyRequest) -> Answer:
    """Run a request. Raises RequestError."""
    write = WRITES.get(type(request))
    if write is None:
        return READS[type(request)](node, request)
    keyspace = node.engine.keyspace
    if request.session is not None and request.seq is not None:
        return _execute_once(node, request, write, request.session, request.seq)
    with keyspace.lock:
        transaction = keyspace.begin()
        reply = write(node, transaction, request)
        lsn = keyspace.commit(transaction)
        return Done(reply, transaction.reply_rev, lsn)


def _execute_once(
    node: Node, request: requests.AnyRequest, write: Write, session: str, seq: int
) -> Answer:
    """Run a write unless it has run before. The reply is logged with what it changes."""
    keyspace = node.engine.keyspace
    content = digest(request)
    with keyspace.lock:
        known = keyspace.sessions.recall(session, seq, content, keyspace.now())
        if known is not None:
            return _repeat(known)
        transaction = keyspace.begin()
        reply: CommitReply | Failure
        try:
            reply = write(node, transaction, request)
        except RequestError as error:
            if error.code not in REMEMBERED_FAILURES:
                raise
            transaction = keyspace.begin()  # Without whatever the failed one had staged.
            reply = failure(error, None)
        packed = encode_reply(reply)
        if len(packed) > MAX_REMEMBERED_REPLY:
            raise TooLarge(
                f"the reply has {len(packed)} bytes; one that is remembered for a repeat may have "
                f"{MAX_REMEMBERED_REPLY}: ask for less, or without session"
            )
        keyspace.sessions.require_room(session, seq, len(packed))
        lsn = keyspace.commit(transaction, Once(session, seq, content, packed))
        return Done(reply, transaction.reply_rev, lsn)


def _repeat(known: Remembered) -> Done:
    return Done(None, known.rev, known.lsn, known.reply)


# --- Reads


def ping(_node: Node, _request: requests.Ping) -> Done:
    """Answer with the protocol's version and the server's clock."""
    now = int(time.time() * 1000)
    return Done(PingReply(protocol=PROTOCOL_VERSION, version=__version__, time=now), 0)


def get(node: Node, request: requests.Get) -> Done:
    """The entry of a key."""
    node.limits.check_key(request.key)
    entry = node.engine.keyspace.get(request.key)
    return Done(_get_reply(entry, node.engine.keyspace.now), entry.rev)


def mget(node: Node, request: requests.MGet) -> Done:
    """Many entries at one revision; TOO_LARGE where they would not fit into one reply.

    Each step is one call for all keys: 1,000 of them take 0.25 ms instead of 0.37 ms.
    """
    keys = request.keys
    node.limits.check_keys(keys)
    entries, removed = node.engine.keyspace.get_many(keys)
    values = [entry.value for entry in entries]
    revs = [entry.rev for entry in entries]
    size = sum(map(len, values))
    _check_size(node, size, f"the values of these {len(keys)} keys", "ask for fewer keys")
    seen = max(removed, *revs) if 0 in revs else max(revs, default=0)
    return Done(MGetReply(values=pack_array(values), revs=revs), seen)


def scan(node: Node, request: requests.Scan) -> Done:
    """Entries in order of their keys, a page at a time."""
    most = min(request.limit, node.limits.max_batch)
    keys = key_range(request.prefix, request.start, request.end, request.after, request.reverse)
    page = node.engine.keyspace.scan(keys, most, request.reverse)
    if page.following is not None and len(page.items) == most < request.limit:
        raise TooLarge(
            f"there are more than {most} keys, which is max_batch; ask with a limit up to that, "
            f"and go on behind `next`"
        )
    values = request.values
    size = sum([len(key) + (len(entry.value) if values else 0) for key, entry in page.items])
    _check_size(node, size, "this page", "ask with a smaller limit")
    items = [(key, Raw(entry.value) if values else NIL, entry.rev) for key, entry in page.items]
    return Done(ScanReply(items=items, next=page.following, rev=page.rev), page.rev)


def count(node: Node, request: requests.Count) -> Done:
    """How many keys begin with a prefix."""
    number, rev = node.engine.keyspace.count(key_range(request.prefix))
    return Done(CountReply(count=number), rev)


def changes(node: Node, request: requests.Changes) -> Done:
    """What has changed after a revision, oldest first. The changes of a revision stay together."""
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
    return Done(ChangesReply(changes=found, next=following, rev=rev), 0)


def info(node: Node, _request: requests.Info) -> Done:
    """What the server is, holds and has done."""
    keyspace = node.engine.keyspace
    keys = len(keyspace)
    rev = keyspace.rev  # Afterwards: it is what the reply tells of.
    reply = InfoReply(
        version=__version__,
        protocol=PROTOCOL_VERSION,
        rev=rev,
        durable_rev=node.engine.durable_rev,
        keys=keys,
        **node.facts(),
    )
    return Done(reply, rev)


def snapshot(node: Node, _request: requests.Snapshot) -> Answer:
    """Have a snapshot on disk; the reply waits for it."""
    return _revision_reply(node.engine.snapshot())


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
    """Give an entry another time to live."""
    node.limits.check_key(request.key)
    expires = None if request.ttl is None else _expires(transaction, request.ttl)
    transaction.touch(request.key, expires)
    return WriteReply(rev=transaction.rev)


def incr(node: Node, transaction: StagedWrite, request: requests.Incr) -> IncrReply:
    """Add to an int64."""
    node.limits.check_key(request.key)
    return IncrReply(value=transaction.increment(request.key, request.by), rev=transaction.rev)


def mput(node: Node, transaction: StagedWrite, request: requests.MPut) -> WriteReply:
    """Write many entries as one revision."""
    node.limits.check_keys(request.items)
    expires = None if request.ttl is None else _expires(transaction, request.ttl)
    transaction.put_many(node.limits.values(request.items), expires)
    return WriteReply(rev=transaction.reply_rev)


def mdelete(node: Node, transaction: StagedWrite, request: requests.MDelete) -> MDeleteReply:
    """Remove many entries as one revision."""
    node.limits.check_keys(request.keys)
    present = [key for key in dict.fromkeys(request.keys) if transaction.find(key) is not None]
    for key in present:
        transaction.remove(key)
    return MDeleteReply(deleted=len(present), rev=transaction.reply_rev)


def txn(node: Node, transaction: StagedWrite, request: requests.Txn) -> TxnReply:
    """Check conditions, then run ops that see each other's effects; all or nothing."""
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
    for name in ("id", "session", "seq", "deadline"):
        if getattr(op, name) is not None:
            raise BadRequest(f"field `{name}` belongs to the TXN, not to an op in it")
    if op.durable:
        raise BadRequest("field `durable` belongs to the TXN, not to an op in it")
    if isinstance(op, requests.Get):
        return _get_in_txn(node, transaction, op)
    return WRITES[type(op)](node, transaction, op)


def _get_in_txn(node: Node, transaction: StagedWrite, op: requests.Get) -> GetReply:
    node.limits.check_key(op.key)
    entry = transaction.find(op.key)
    if entry is None:
        return GetReply(value=NIL, rev=0)
    return _get_reply(entry, transaction.now)


class _Failing:
    """Adds to a `RequestError` which condition or op of a TXN it comes from.

    Such a failure also tells that everything before it did not fail, and so of any revision of the
    store; and never of the TXN's own, which nobody will ever write.
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
    """When an entry that is written now expires, in ms; a ttl below a millisecond is one."""
    return transaction.now() + max(1, round(ttl * 1000))


def _values_size(reply: Reply) -> int:
    """Bytes of the values in the reply of one op."""
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


def _revision_reply(revision: Future[int]) -> Future[Reply]:
    reply: Future[Reply] = Future()

    def settle(done: Future[int]) -> None:
        error = done.exception()
        if error is not None:
            reply.set_exception(error)
        else:
            reply.set_result(RevisionReply(rev=done.result()))

    revision.add_done_callback(settle)
    return reply


Write = Callable[[Node, StagedWrite, Any], CommitReply]

READS: Final[dict[type[requests.Request], Callable[[Node, Any], Answer]]] = {
    requests.Ping: ping,
    requests.Get: get,
    requests.MGet: mget,
    requests.Scan: scan,
    requests.Count: count,
    requests.Changes: changes,
    requests.Info: info,
    requests.Snapshot: snapshot,
    requests.End: end,
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
