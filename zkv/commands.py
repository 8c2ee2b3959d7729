"""What each op does: a table from request class to function.

A command takes the `Node` it runs on and a request that the protocol has checked, and gives the
reply, or a future of it where the reply must wait for the disk. It raises a `RequestError` where
the request cannot be done. Commands run in worker threads, many at a time; all that they share is
behind the keyspace's lock or the inbox of another thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from msgspec import Raw

from zkv import __version__
from zkv.engine import Engine
from zkv.errors import TooLargeError
from zkv.protocol import requests
from zkv.protocol.codec import PROTOCOL_VERSION, KeyLimits
from zkv.protocol.replies import (
    NIL,
    GetReply,
    InfoReply,
    MDeleteReply,
    MGetReply,
    PingReply,
    Reply,
    RevisionReply,
    WriteReply,
)

Done = tuple[Reply, int]
"""A reply, and the newest revision that it tells of: it may not leave before that is safe."""
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


def ping(_node: Node, _request: requests.Ping) -> Done:
    """Answer with the protocol's version and the server's clock."""
    now = int(time.time() * 1000)
    return PingReply(protocol=PROTOCOL_VERSION, version=__version__, time=now), 0


def get(node: Node, request: requests.Get) -> Done:
    """The entry of a key."""
    node.limits.check_key(request.key)
    entry = node.engine.keyspace.get(request.key)
    return GetReply(value=Raw(entry.value), rev=entry.rev), entry.rev


def put(node: Node, request: requests.Put) -> Done:
    """Write an entry."""
    node.limits.check_key(request.key)
    value = node.limits.value(request.key, request.value)
    rev, previous = node.engine.keyspace.put(request.key, value)
    reply = WriteReply(rev=rev)
    if request.prev:
        reply.prev = NIL if previous is None else Raw(previous.value)
        reply.prev_rev = 0 if previous is None else previous.rev
    return reply, rev


def delete(node: Node, request: requests.Delete) -> Done:
    """Remove an entry."""
    node.limits.check_key(request.key)
    rev, previous = node.engine.keyspace.delete(request.key)
    reply = WriteReply(rev=rev)
    if request.prev and previous is not None:
        reply.prev = Raw(previous.value)
        reply.prev_rev = previous.rev
    return reply, rev


def mget(node: Node, request: requests.MGet) -> Done:
    """Many entries at one revision; TOO_LARGE where they would not fit into one reply."""
    node.limits.check_keys(request.keys)
    entries, removed = node.engine.keyspace.get_many(request.keys)
    size = sum(len(entry.value) for entry in entries if entry is not None)
    if size > node.max_reply_bytes:
        raise TooLargeError(
            f"the values of these {len(entries)} keys have {size} bytes; max_reply_bytes is "
            f"{node.max_reply_bytes}: ask for fewer keys at once"
        )
    values = [NIL if entry is None else Raw(entry.value) for entry in entries]
    revs = [0 if entry is None else entry.rev for entry in entries]
    seen = max(revs, default=0) if all(revs) else max(removed, *revs)
    return MGetReply(values=values, revs=revs), seen


def mput(node: Node, request: requests.MPut) -> Done:
    """Write many entries as one revision."""
    node.limits.check_keys(request.items)
    items = {key: node.limits.value(key, raw) for key, raw in request.items.items()}
    rev = node.engine.keyspace.put_many(items)
    return WriteReply(rev=rev), rev


def mdelete(node: Node, request: requests.MDelete) -> Done:
    """Remove many entries as one revision."""
    node.limits.check_keys(request.keys)
    deleted, rev = node.engine.keyspace.delete_many(request.keys)
    return MDeleteReply(deleted=deleted, rev=rev), rev


def info(node: Node, _request: requests.Info) -> Done:
    """What the server is, holds and has done."""
    keyspace = node.engine.keyspace
    rev = keyspace.rev
    reply = InfoReply(
        version=__version__,
        protocol=PROTOCOL_VERSION,
        rev=rev,
        durable_rev=node.engine.durable_rev,
        keys=len(keyspace),
        **node.facts(),
    )
    return reply, rev


def snapshot(node: Node, _request: requests.Snapshot) -> Answer:
    """Have a snapshot on disk; the reply waits for it."""
    return _revision_reply(node.engine.snapshot())


def end(node: Node, _request: requests.End) -> Answer:
    """Stop the server; the reply waits until everything is saved."""
    return _revision_reply(node.stop())


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


COMMANDS: Final[dict[type[requests.Request], Callable[[Node, Any], Answer]]] = {
    requests.Ping: ping,
    requests.Get: get,
    requests.Put: put,
    requests.Delete: delete,
    requests.MGet: mget,
    requests.MPut: mput,
    requests.MDelete: mdelete,
    requests.Info: info,
    requests.Snapshot: snapshot,
    requests.End: end,
}
