"""How the public API is seen by a type checker. Nothing here runs: ``make lint`` reads it."""

from __future__ import annotations

from collections.abc import AsyncIterator, ItemsView, Iterator, Mapping, MutableMapping
from typing import Any, assert_type

from zkv import (
    AsyncClient,
    AsyncElection,
    AsyncJob,
    AsyncLock,
    AsyncMirror,
    AsyncNamespace,
    AsyncTransaction,
    AsyncWatch,
    Change,
    Client,
    ClientError,
    ConflictError,
    Election,
    Entry,
    Job,
    Lock,
    Mirror,
    Namespace,
    NoReplyError,
    NotFoundError,
    RefusedError,
    Server,
    Transaction,
    Verdict,
    Watch,
    ZkvError,
)


def ops(kv: Client) -> None:
    assert_type(kv.get("k"), Any)
    assert_type(kv.get_entry("k"), Entry)
    assert_type(kv.put("k", 1, ttl=1.5, if_rev=2, create=False), int)
    assert_type(kv.delete("k", if_rev=1), bool)
    assert_type(kv.incr("k", 2), int)
    assert_type(kv.touch("k", None), int)
    assert_type(kv.get_many(["k"]), dict[str, Any])
    assert_type(kv.get_entries(iter("k")), dict[str, Entry])
    assert_type(kv.put_many({"k": 1}, ttl=5), int)
    assert_type(kv.delete_many({"k"}), int)
    assert_type(kv.scan("p", limit=3, reverse=True), Iterator[Entry])
    assert_type(kv.changes(0), Iterator[Change])
    assert_type(kv.count(), int)
    assert_type(kv.ping(), dict[str, Any])
    assert_type(kv.info(), dict[str, Any])
    assert_type(kv.snapshot(timeout=3), int)
    assert_type(kv.end(), int)
    assert_type(kv.call("PING"), dict[str, Any])


def mapping(kv: Client, namespace: Namespace) -> None:
    both: list[MutableMapping[str, Any]] = [kv, namespace]
    assert_type(kv.namespace("a/"), Namespace)
    assert_type(namespace.namespace("b/"), Namespace)
    assert_type(kv["k"], Any)
    assert_type("k" in kv, bool)
    assert_type(len(kv), int)
    assert_type(list(kv), list[str])
    assert_type(list(reversed(kv)), list[str])
    assert_type(dict(kv), dict[str, Any])
    assert_type(kv.pop("k", None), Any)
    assert_type(kv.popitem(), tuple[str, Any])
    assert_type(kv.setdefault("k", 1), Any)
    items: ItemsView[str, Any] = kv.items()
    kv.update({"a": 1}, b=2)
    kv.update([("a", 1)])
    kv |= {"a": 1}
    del kv["k"], both, items


def batches(kv: Client) -> None:
    with kv.txn() as txn:
        txn.check("k", 1)
        txn.get("k")
    assert_type(txn.results, list[Any])
    assert_type(txn.rev, int)
    with kv.pipeline() as pipe:
        pipe.put("k", 1, ttl=2)
    assert_type(pipe.execute(return_exceptions=True), list[Any])


async def async_ops(kv: AsyncClient) -> None:
    async with kv as same:
        assert_type(same, AsyncClient)
    assert_type(await kv.get("k"), Any)
    assert_type(await kv.get_entry("k"), Entry)
    assert_type(await kv.put("k", 1), int)
    assert_type(await kv.delete("k"), bool)
    assert_type(await kv.contains("k"), bool)
    assert_type(await kv.get_many(["k"]), dict[str, Any])
    assert_type(kv.scan(), AsyncIterator[Entry])
    assert_type(kv.changes(0), AsyncIterator[Change])
    assert_type([entry.value async for entry in kv.scan()], list[Any])
    assert_type(kv.namespace("a/"), AsyncNamespace)
    async with kv.pipeline() as pipe:
        pipe.incr("k")
    assert_type(await kv.txn().commit(), list[Any])
    assert_type(pipe.results, list[Any])


def entries(entry: Entry, change: Change) -> None:
    assert_type(entry.key, str)
    assert_type(entry.rev, int)
    assert_type(entry.ttl, float | None)
    assert_type(change.op, str)


def errors(error: ConflictError, refused: RefusedError, lost: NoReplyError) -> None:
    assert_type(error.key, str)
    assert_type(error.rev, int)
    assert_type(error.applied, bool | None)
    assert_type(refused.code, str)
    assert_type(refused.details, Mapping[str, Any])
    is_timeout: TimeoutError = lost
    kinds: list[type[ZkvError]] = [ClientError, NotFoundError]
    is_key_error: type[KeyError] = NotFoundError
    del is_timeout, kinds, is_key_error


def following(kv: Client, namespace: Namespace) -> None:
    assert_type(kv.watch("p", since=1), Watch)
    assert_type(next(kv.watch()), Change)
    assert_type(kv.watch().next(timeout=1), Change | None)
    assert_type(namespace.mirror("p", timeout=1), Mirror)
    mirror: Mapping[str, Any] = kv.mirror()
    assert_type(mirror["k"], Any)
    assert_type(kv.mirror().get_entry("k"), Entry)


async def async_following(kv: AsyncClient) -> None:
    async with kv.watch("p", since=1) as watch, kv.namespace("n").mirror("p") as mirror:
        assert_type(watch, AsyncWatch)
        assert_type(mirror, AsyncMirror)
        async for change in watch:
            assert_type(change, Change)
        await mirror.wait_for(1, timeout=1)


def recipes(kv: Client) -> None:
    with kv.lock("l", ttl=5) as lock:
        assert_type(lock, Lock)
        with lock.txn() as txn:
            assert_type(txn, Transaction)
            txn.put("k", lock.rev)
    with kv.election("e", "me") as election:
        assert_type(election, Election)
    assert_type(kv.queue("q").take(), Job | None)
    limiter = kv.rate_limiter("r", limit=1, period=1)
    assert_type(limiter.allow("who"), Verdict)

    @kv.cache(ttl=60)
    def length(text: str, more: int = 0) -> int:
        return len(text) + more

    assert_type(length("a", more=1), int)
    assert_type(length.forget("a"), bool)
    length(1)  # type: ignore[arg-type]


async def async_recipes(kv: AsyncClient) -> None:
    async with kv.lock("l", ttl=5) as lock:
        assert_type(lock, AsyncLock)
        async with lock.txn() as txn:
            assert_type(txn, AsyncTransaction)
    async with kv.election("e", "me") as election:
        assert_type(election, AsyncElection)
        async for leader in election.leaders():
            assert_type(leader, str | None)
    assert_type(await kv.queue("q").take(), AsyncJob | None)
    assert_type(await kv.queue("q").count(), int)
    assert_type(await kv.rate_limiter("r", limit=1, period=1).allow("who"), Verdict)

    @kv.cache(ttl=60)
    async def length(text: str, more: int = 0) -> int:
        return len(text) + more

    assert_type(await length("a", more=1), int)
    assert_type(await length.forget("a"), bool)
    await length(1)  # type: ignore[arg-type]


def embedding() -> None:
    with Server("tcp://127.0.0.1:*", data_dir="var", fsync="never", history=5) as server:
        assert_type(server, Server)
        assert_type(server.endpoint, str)
        assert_type(server.feed, str | None)
    Server(fsync="sometimes")  # type: ignore[arg-type]
