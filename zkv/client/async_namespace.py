"""The keys under one prefix, with every op of the protocol and everything built on them.

A namespace only adds its prefix to keys, removes it from replies, and passes operations to its
client. The client itself is the namespace of all keys.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from zkv import checks
from zkv.client import operations
from zkv.client.codec import PACKED, PLAIN, Codec
from zkv.client.errors import (
    ClientError,
    ConflictError,
    DeadlineError,
    NotFoundError,
    RefusedError,
    TooLargeError,
    UnavailableError,
)
from zkv.client.operations import RAISE, Change, Entry, Operation, Reply
from zkv.client.process import ReadAhead
from zkv.client.retry import PARKED, Attempts, RetryPolicy
from zkv.client.standing import standing_in

# sync: from zkv.client.mapping import Dictionary

if TYPE_CHECKING:
    from zkv.checks import Seconds
    from zkv.client.aio import AsyncClient  # sync: from zkv.client.sync import Client
    from zkv.client.async_mirror import AsyncMirror
    from zkv.client.async_pipeline import AsyncPipeline, AsyncTransaction
    from zkv.client.async_watch import AsyncWatch
    from zkv.client.connection import Connection
    from zkv.client.endpoints import Endpoints
    from zkv.client.recipes.async_cache import AsyncCache
    from zkv.client.recipes.async_election import AsyncElection
    from zkv.client.recipes.async_limiter import AsyncRateLimiter
    from zkv.client.recipes.async_lock import AsyncLock
    from zkv.client.recipes.async_queue import AsyncQueue
    from zkv.client.tracing import RequestSpan

T = TypeVar("T")

NO_FEATURES: Final[frozenset[str]] = frozenset()
"""Those of a server that has told none."""
INFO_SECONDS: Final = 1.0
"""Longest wait for INFO on behalf of another request."""


class AsyncKeyOps:  # sync: class KeyOps(Dictionary):
    """All ops on keys; the base class of clients and their namespaces."""

    _prefix: str
    _client: AsyncClient

    @abstractmethod
    async def _run(self, operation: Operation[T]) -> T:
        """Carry out an operation, with retries."""

    # --- One key

    async def get(self, key: str, default: Any = None, *, min_rev: int | None = None) -> Any:
        """Return the value of a key, or ``default`` if the key is absent.

        Args:
            key: the key to read.
            default: returned if it is absent.
            min_rev: a revision that the read must show, such as the one that a write has returned.
                A server with a copy of the store may then answer, and waits until it has this
                revision. None = the server that leads answers, unless the client reads ``stale``.

        Raises:
            BehindError: the server has not reached ``min_rev`` within the timeout, or in 5 s.
            BadValueError: the value cannot be decoded. Calls that read a single value raise this.
                Calls that return several values (`get_many`, `scan`, `changes`, `watch`,
                transactions) return the error in place of the value.
        """
        return await self._run(operations.get(checks.key(self._prefix, key), default, min_rev))

    async def get_entry(self, key: str, *, min_rev: int | None = None) -> Entry:
        """Return the value of a key with its revision and remaining time to live.

        Args:
            key: the key to read.
            min_rev: as for `get`.

        Raises:
            NotFoundError: the key is absent.
            BadValueError: the value cannot be decoded.
        """
        return await self._run(operations.get_entry(checks.key(self._prefix, key), key, min_rev))

    async def contains(  # sync: def __contains__(
        self,
        key: str,  # sync: key: object,
    ) -> bool:
        """Return True if the key exists."""
        return await self._run(  # sync: return isinstance(key, str) and self._run(
            operations.contains(checks.key(self._prefix, key))
        )

    async def put(
        self,
        key: str,
        value: Any,
        *,
        ttl: Seconds | None = None,
        if_rev: int | None = None,
        create: bool = False,
    ) -> int:
        """Write a value, replacing an existing one, or only on a condition.

        Args:
            key: non-empty text of at most 1,024 bytes.
            value: anything that msgpack or the client's codec can pack.
            ttl: seconds until the entry expires, above 0 and up to 10^10, or a `timedelta`;
                None = it does not expire.
            if_rev: write only if the entry has this revision; 0 = only if it is absent.
            create: write only if the key is absent.

        Returns:
            The new revision of the store, which is also the entry's revision.

        Raises:
            ConflictError: the condition does not hold; ``rev`` is the actual revision.
            TooLargeError: the key or the value exceeds its limit.
            TypeError, ValueError: an argument is not allowed, or the value cannot be stored or
                could not be read back; nothing was sent. All methods raise these.
            BadValueError: a function of the codec failed; nothing was sent.
        """
        return await self._run(
            operations.put(checks.key(self._prefix, key), value, ttl, if_rev, create)
        )

    async def delete(self, key: str, *, if_rev: int | None = None) -> bool:
        """Remove a key. `pop` also returns its value; ``del`` raises an error if it is absent.

        Args:
            key: the key to remove.
            if_rev: remove only if the entry has this revision.

        Returns:
            True if the key existed.

        Raises:
            ConflictError: the entry has another revision, its ``rev``; 0 = it is absent.
        """
        return await self._run(operations.delete(checks.key(self._prefix, key), if_rev))

    async def incr(self, key: str, by: int = 1) -> int:
        """Add to a 64-bit int and return the sum; an absent key counts as 0.

        Args:
            key: the key of the number.
            by: an int of 64 bits; may be negative.

        Raises:
            WrongTypeError: the value is not an int, or the sum would exceed 64 bits.
        """
        return await self._run(operations.incr(checks.key(self._prefix, key), by))

    async def touch(self, key: str, ttl: Seconds | None) -> int:
        """Set a new time to live for a key; the value is unchanged.

        Args:
            key: an existing key.
            ttl: seconds from now, as for `put`; None = it does not expire.

        Returns:
            The revision of this change.

        Raises:
            NotFoundError: the key is absent.
        """
        return await self._run(operations.touch(checks.key(self._prefix, key), ttl))

    async def pop(self, key: str, default: Any = RAISE) -> Any:
        """Remove a key and return its value, or ``default`` if the key is absent.

        This sends two requests: one reads the value, and one removes the entry only if it has not
        changed since. While others write to the key, both are repeated. A value that cannot be
        returned is therefore never lost.

        Raises:
            NotFoundError: the key is absent, and no default was given.
            BadValueError: the value cannot be decoded; the entry is kept.
        """
        while True:
            try:
                entry = await self.get_entry(key)
                await self.delete(key, if_rev=entry.rev)
                return entry.value
            except ConflictError:
                continue
            except NotFoundError:
                if default is RAISE:
                    raise
                return default

    async def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the value of a key; if it is absent, write ``default`` and return that."""
        while True:
            try:
                return await self._run(operations.get(checks.key(self._prefix, key), RAISE))
            except NotFoundError:
                pass
            try:
                await self.put(key, default, create=True)
                return default
            except ConflictError:
                continue

    # --- Many keys

    async def get_many(self, keys: Iterable[str], *, min_rev: int | None = None) -> dict[str, Any]:
        """Return the values of many keys, all at one revision, without the absent keys.

        Args:
            keys: the keys to read.
            min_rev: as for `get`.

        Raises:
            TooLargeError: there are more keys than the server's limit for a batch, or the reply
                would exceed its limit.
        """
        return await self._run(operations.get_many(self._prefix, keys, min_rev))

    async def get_entries(
        self, keys: Iterable[str], *, min_rev: int | None = None
    ) -> dict[str, Entry]:
        """Like `get_many`, but return entries with revisions; their ``ttl`` is always None."""
        return await self._run(operations.get_entries(self._prefix, keys, min_rev))

    async def put_many(self, items: Mapping[str, Any], *, ttl: Seconds | None = None) -> int:
        """Write many values, all or none, and return the revision that they share.

        Args:
            items: a mapping of keys to values.
            ttl: as for `put`; it applies to every entry.

        Raises:
            TooLargeError: the batch exceeds a limit of the server; nothing was written.
        """
        return await self._run(operations.put_many(self._prefix, items, ttl))

    async def delete_many(self, keys: Iterable[str]) -> int:
        """Remove many keys as one change, and return how many of them existed.

        Raises:
            TooLargeError: the batch exceeds a limit of the server; nothing was removed.
        """
        return await self._run(operations.delete_many(self._prefix, keys))

    async def clear(self) -> None:
        """Remove all keys, page by page; other clients may see a part of them."""
        fields = operations.scan_fields(self._prefix, values=False)
        async for page in self._pages(operations.ScanPages(self._prefix, fields, None)):
            await self.delete_many([entry.key for entry in page])

    def scan(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        end: str | None = None,
        after: str | None = None,
        limit: int | None = None,
        values: bool = True,
        reverse: bool = False,
        min_rev: int | None = None,
    ) -> AsyncIterator[Entry]:
        """Iterate over entries in key order. The iterator reads them page by page.

        Args:
            prefix: only keys that begin with this text.
            start: only keys from this one on.
            end: only keys before this one.
            after: begin after this key (with ``reverse``: before it).
            limit: the maximum number of entries, from 0; None = all.
            values: False = do not transfer the values; each ``value`` is then None.
            reverse: True = from the last key to the first.
            min_rev: as for `get`; for each page.
        """
        fields = operations.scan_fields(
            self._prefix, prefix, start=start, end=end, after=after, values=values,
            reverse=reverse, min_rev=min_rev,
        )  # fmt: skip
        return self._each_entry(operations.ScanPages(self._prefix, fields, limit))

    async def _each_entry(self, scan: operations.ScanPages) -> AsyncIterator[Entry]:
        async for page in self._pages(scan):
            for entry in page:  # sync: yield from page
                yield entry  # sync:

    async def _pages(self, scan: operations.ScanPages) -> AsyncIterator[list[Entry]]:
        ahead = ReadAhead()
        while (page := scan.next_page()) is not None:
            try:
                if entries := await self._run(page):
                    yield ahead.page(entries)
                    ahead.check()
            except TooLargeError as error:
                scan.too_large(error)

    async def count(self, prefix: str = "", *, min_rev: int | None = None) -> int:
        """Return the number of keys that begin with ``prefix``; ``min_rev`` is as for `get`."""
        return await self._run(
            operations.count(self._prefix + checks.text("prefix", prefix), min_rev)
        )

    def changes(self, since: int, prefix: str = "") -> AsyncIterator[Change]:
        """Iterate over the changes after a revision, oldest first, up to the present revision.

        Args:
            since: a revision from 0, such as that of an entry, or ``info()["rev"]``.
            prefix: only changes of keys that begin with this text.

        Raises:
            CompactedError: the server no longer keeps the changes after ``since``.
        """
        return self._each_change(operations.ChangePages(self._prefix, prefix, since))

    async def _each_change(self, pages: operations.ChangePages) -> AsyncIterator[Change]:
        ahead = ReadAhead()
        while (page := pages.next_page()) is not None:
            changes = ahead.page(await self._run(page))
            for change in changes:  # sync: yield from changes
                yield change  # sync:
            ahead.check()

    def watch(
        self, prefix: str = "", *, since: int | None = None, feed: str | None = None
    ) -> AsyncWatch:
        """Follow changes as they are made. Returns an iterator that ends when it is closed.

        It yields each change once, in the order of revisions, even if connections are cut, messages
        are lost or the server restarts. While the server is unreachable, the watch waits. If the
        missed changes are no longer available (the watch missed more than the server keeps, or the
        server now has older data), it starts over: first comes a change with the ``op`` ``RESET``,
        which means that you must discard your copy, then a ``PUT`` for each entry, then new
        changes. The watch begins when its block is entered, or when it is first waited for::

            async with kv.watch("user/") as watch:
                async for change in watch:
                    if change.op == "RESET":
                        users.clear()
                    elif change.op in ("PUT", "TOUCH"):
                        users[change.key] = change.value
                    else:  # DELETE, EXPIRE
                        users.pop(change.key, None)

        Args:
            prefix: only changes of keys that begin with this text.
            since: the revision after which to begin, such as the ``rev`` of an earlier watch;
                None = the store's revision when the watch begins.
            feed: the endpoint of the change feed, if it is not the one that the server reports,
                for instance because of a tunnel.

        Raises:
            NoReplyError: the server cannot be reached when the watch begins.
            ValueError: ``feed`` is malformed.
        """
        from zkv.client.async_watch import AsyncWatch

        return (
            AsyncWatch(self, prefix, since, feed)
            # sync: ._open()
        )

    def mirror(
        self, prefix: str = "", *, timeout: Seconds | None = None, feed: str | None = None
    ) -> AsyncMirror:
        """Return a copy of the entries in this process's memory that follows every change.

        Reading from it is as fast as reading a dict. It lags slightly behind the store; `wait_for`
        waits until it shows a revision::

            async with kv.mirror("config/") as settings:
                settings["config/greeting"]

        Args:
            prefix: only keys that begin with this text. The mirror keeps it in its keys, unlike a
                namespace.
            timeout: seconds to read all entries at the start, up to a year, or a `timedelta`;
                None = no limit.
            feed: as for `watch`.

        Raises:
            NoReplyError: the server cannot be reached, or not all entries were read in time.
        """
        from zkv.client.async_mirror import AsyncMirror

        return (
            AsyncMirror(self, prefix, timeout, feed)
            # sync: ._open()
        )

    def lock(self, key: str, *, ttl: Seconds = 30.0, owner: str | None = None) -> AsyncLock:
        """Return a lock for programs on many machines; see `zkv.client.recipes.lock`.

        Example::

            async with kv.lock("report") as lock:
                report = await make_report()
                async with lock.txn() as txn:  # written only if the lock is still held
                    txn.put("report/today", report)

        Args:
            key: the key of the lock; its entry exists while the lock is held.
            ttl: seconds after which a holder that has crashed loses the lock, as for `put`. A
                running holder renews it.
            owner: the holder's name, for people to read; None = host name and process id.
        """
        from zkv.client.recipes.async_lock import AsyncLock

        return AsyncLock(self, key, ttl, owner)

    def election(
        self, key: str, candidate: str | None = None, *, ttl: Seconds = 30.0
    ) -> AsyncElection:
        """Return a candidate for the election of one leader; see `zkv.client.recipes.election`.

        Example::

            async with kv.election("scheduler", "node 7") as election:  # waits until elected
                while election.held:
                    ...

        Args:
            key: the key of the election, the same for all candidates.
            candidate: the name of this candidate; None = host name and process id.
            ttl: seconds after which a leader that has crashed is replaced, as for `put`.
        """
        from zkv.client.recipes.async_election import AsyncElection

        return AsyncElection(self, key, candidate, ttl)

    def cache(
        self,
        function: None = None,
        /,
        *,
        ttl: Seconds | None = None,
        prefix: str | None = None,
        lease: Seconds = 30.0,
    ) -> AsyncCache:
        """Return a decorator that stores a function's results and shares them with all programs.

        Example::

            @kv.cache(ttl=60)
            async def exchange_rate(currency: str) -> float: ...

        It accepts functions, but not methods, generators or classes. A function without a name of
        its own, that is, a lambda or a ``partial``, needs a prefix. The client must be able to
        store arguments and results.

        To bound what the results take, declare ``[[cache]]`` with the prefix ``cache/`` in the
        server's settings, or with the ``prefix`` of the decorated function.

        Args:
            function: must be omitted: write the decorator with parentheses.
            ttl: seconds for which a result is kept, as for `put`; None = until the function's
                ``forget`` is called, such as ``await exchange_rate.forget("EUR")``.
            prefix: of the keys; None = ``cache/``, the function's module and its name.
            lease: seconds after which another program computes a result, if the one that
                computes it has crashed.

        Raises:
            TypeError, ValueError: an argument is not allowed. The decorator also raises TypeError
                if it cannot accept the function.
        """
        from zkv.client.recipes.async_cache import AsyncCache

        if function is not None:
            raise TypeError("cache: write @kv.cache() or @kv.cache(ttl=60), with parentheses")
        return AsyncCache(self, ttl, prefix, lease)

    def rate_limiter(self, prefix: str, *, limit: int, period: Seconds) -> AsyncRateLimiter:
        """Return a rate limiter shared by all programs; see `zkv.client.recipes.limiter`.

        Example::

            limiter = kv.rate_limiter("logins", limit=5, period=60)
            if not await limiter.allow(user):
                raise TooManyLogins

        Args:
            prefix: of the counters' keys.
            limit: the maximum count in each period, from 1 to 2^53.
            period: in seconds, from 0.001 to 5 * 10^9, or a `timedelta`.
        """
        from zkv.client.recipes.async_limiter import AsyncRateLimiter

        return AsyncRateLimiter(self, prefix, limit, period)

    def queue(self, prefix: str, *, lease: Seconds = 30.0) -> AsyncQueue:
        """Return a queue of jobs that are each done at least once; see `zkv.client.recipes.queue`.

        Example::

            jobs = kv.queue("mails")
            await jobs.put({"to": "ann"})
            while (job := await jobs.take()) is not None:
                async with job:  # done at the end, returned to the queue after an error
                    await send(job.value)

        Args:
            prefix: of the keys.
            lease: seconds after which a job is free again if its worker has crashed; limits as
                for the ttl of `put`.
        """
        from zkv.client.recipes.async_queue import AsyncQueue

        return AsyncQueue(self, prefix, lease)

    def txn(self) -> AsyncTransaction:
        """Return a transaction: ops that are all applied or none, if its conditions hold.

        It collects ops, and runs them at the end of the ``with`` block or in `commit`::

            async with kv.txn() as txn:
                txn.check("account/a", rev)  # only if it has not changed since
                txn.incr("account/a", -5)
                txn.incr("account/b", 5)
            a, b = txn.results
        """
        from zkv.client.async_pipeline import AsyncTransaction

        return AsyncTransaction(self._prefix, self._run)

    def pipeline(self) -> AsyncPipeline:
        """Return a pipeline: ops in as few messages as possible, each of which may fail alone.

        It collects ops, and runs them in order at the end of the ``with`` block or in `execute`.
        The server may run ops of other clients in between::

            async with kv.pipeline() as pipe:
                for name in names:
                    pipe.incr(f"hits/{name}")
            hits = dict(zip(names, pipe.results))
        """
        from zkv.client.async_pipeline import AsyncPipeline

        return AsyncPipeline(self._prefix, self._run)

    def namespace(self, prefix: str) -> AsyncNamespace:
        """Return the keys that begin with ``prefix`` as a namespace that omits the prefix."""
        return AsyncNamespace(self, prefix)


class AsyncNamespace(AsyncKeyOps):
    """The keys under one prefix. Made by `AsyncClient.namespace`.

    Args:
        parent: a client, or another namespace.
        prefix: added to all keys, after the prefix of the parent.
    """

    def __init__(self, parent: AsyncKeyOps, prefix: str) -> None:
        self._parent = parent
        self._prefix = parent._prefix + checks.text("prefix", prefix)
        self._client = parent._client

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._prefix!r}>"

    async def _run(self, operation: Operation[T]) -> T:
        return await self._parent._run(operation)


class AsyncClientOps(AsyncKeyOps):
    """All methods of a client: those of the namespace of all keys, and those about the server."""

    timeout: float
    _prefix = ""
    _codec: Codec
    _policy: RetryPolicy
    _endpoints: Endpoints
    _stale = False
    """True if any server may answer reads."""
    _features: tuple[object, frozenset[str]] = None, NO_FEATURES
    """The last answer of a server that was asked for features, and the era that it belongs to."""

    @property
    def _client(self) -> AsyncClient:  # type: ignore[override]  # of a namespace, an attribute
        return self  # type: ignore[return-value]  # there is no other

    @abstractmethod
    async def _run(
        self,
        operation: Operation[T],
        timeout: Seconds | None = None,  # noqa: ASYNC109  of the request
    ) -> T:
        """Carry out an operation, with retries, within the client's timeout or this one."""

    @abstractmethod
    async def _ask(
        self, operation: Operation[Any], fields: dict[str, Any], codec: Codec, attempts: Attempts
    ) -> Reply:
        """Send a request until the server answers it or the time is up."""

    async def _ask_traced(
        self,
        span: RequestSpan,
        operation: Operation[Any],
        fields: dict[str, Any],
        codec: Codec,
        attempts: Attempts,
    ) -> Reply:
        """Do the same as `_ask` within a span, and tell its name to a server that can log it."""
        attempts.span = span
        attempts.is_traced = True
        with span:
            try:
                if "trace" not in fields and await self._takes("trace", attempts):
                    fields = {**fields, "trace": span.traceparent}
                    attempts.added |= {"trace"}
                return await self._ask(operation, fields, codec, attempts)
            finally:
                span.sent_to(self._endpoints.current.endpoint)

    async def _for_anybody(self, fields: dict[str, Any], attempts: Attempts) -> dict[str, Any]:
        """Return the fields of a read that a server may answer although it does not lead."""
        added: dict[str, Any] = {}
        if self._stale and await self._takes("stale", attempts):
            added["stale"] = True
        if "min_rev" in fields:
            if not await self._takes("min_rev", attempts):  # Then no server has copies.
                return {name: field for name, field in fields.items() if name != "min_rev"}
            attempts.parked = PARKED
            if attempts.left() < 2 * PARKED:  # So that the server answers before the client leaves.
                added["deadline"] = round(1000 * (time.time() + 0.8 * attempts.left()))
        attempts.anywhere = "min_rev" in fields or bool(added)
        attempts.added = frozenset([*added, "min_rev"])
        return {**fields, **added}

    @abstractmethod
    async def _takes(self, field: str, attempts: Attempts) -> bool:
        """True if the server lists ``field`` among its features; it is asked once in each era."""

    async def _ask_for_features(self, attempts: Attempts) -> None:
        """Ask the server, on behalf of a request, for its features."""
        seconds = min(attempts.left() / 2, INFO_SECONDS)
        asking = Attempts(self._policy, "INFO", True, seconds)
        asking.is_traced = True
        try:
            facts = await self._ask(operations.info(), {}, PLAIN, asking)
        except UnavailableError:  # Nobody was asked, so the next request asks again.
            self._features = None, NO_FEATURES
            return
        except (ClientError, OSError):
            facts = {}
        self._features = self._endpoints.era, operations.features_in(facts)

    def _introduced(self, connection: Connection, facts: Reply) -> None:
        """Decide from its INFO if the client may use a server, and for what.

        One that does not lead is asked again before each request that the leader has to answer: it
        may have become the leader, of a history that the client then has to know.
        """
        standing = standing_in(facts)
        connection.trouble = self._endpoints.judge(standing.history)
        connection.greeted = connection.trouble is None
        connection.ready = connection.greeted and standing.leads
        self._features = self._endpoints.era, operations.features_in(facts)

    def _without_refused(
        self, fields: dict[str, Any], attempts: Attempts, error: RefusedError
    ) -> dict[str, Any] | None:
        """Return the fields to send instead if a field that the client has added was refused.

        An older server may have taken the place of the one that was asked; and the clocks of client
        and server may differ. None = the client has added no such field.
        """
        for name in attempts.added & fields.keys():
            if operations.is_unknown_field(name, error):
                self._features = self._endpoints.era, self._features[1] - {name}
            elif not (name == "deadline" and isinstance(error, DeadlineError)):
                continue
            if attempts.span is not None:
                attempts.span.repeats(error.code)
            return {each: field for each, field in fields.items() if each != name}
        return None

    async def _name_old_server(self, op: str, error: RefusedError) -> None:
        """Add the versions to ``error`` if it comes from a server older than the client."""
        if op != "INFO" and operations.is_unknown_to_server(error):
            with suppress(ClientError):  # The first error matters more.
                facts = await self._run(operations.info(), min(self.timeout, INFO_SECONDS))
                error.message += operations.older_than_client(facts)

    @abstractmethod
    async def aclose(self) -> None:
        """Close all connections."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def ping(self) -> dict[str, Any]:
        """Ask if the server is up; returns its ``protocol``, ``version``, ``time`` (Unix, ms)."""
        return await self._run(operations.ping())

    async def info(self) -> dict[str, Any]:
        """Return the server's settings, contents and counters, as in the protocol's INFO."""
        return await self._run(operations.info())

    async def slow(self, limit: int = 100, *, reset: bool = False) -> list[dict[str, Any]]:
        """Return the newest slow requests, the newest first, as in the protocol's SLOW.

        Args:
            limit: how many at most, from 1.
            reset: make the server forget them all afterwards.
        """
        return await self._run(
            operations.slow(
                checks.integer("limit", limit, 1, 2**63 - 1), checks.flag("reset", reset)
            )
        )

    async def snapshot(self, timeout: Seconds | None = None) -> int:  # noqa: ASYNC109  of the request
        """Make the server write a snapshot with every write answered before; return its revision.

        Args:
            timeout: seconds to wait, as for `AsyncClient`; None = the client's timeout.
        """
        return await self._run(operations.snapshot(), timeout)

    async def end(self, timeout: Seconds | None = None) -> int:  # noqa: ASYNC109  of the request
        """Make the server save all data and end; return the last revision that it saved.

        Args:
            timeout: seconds to wait, as for `AsyncClient`; None = the client's timeout.
        """
        return await self._run(operations.end(), timeout)

    async def call(self, op: str, /, **fields: Any) -> Reply:
        """Send a request once, unchanged, and return the whole reply.

        The client uses no session, does not repeat the request, and ignores its codec, except
        `PACKED`. Only if a server refuses because it does not lead, another one is asked. The
        protocol page describes the ops.

        Args:
            op: an op of the protocol, in upper case.
            **fields: the request's other fields. The client sets ``id``, and ``trace`` if it is not
                given and OpenTelemetry records the request.

        Raises:
            RefusedError: the server answered that the request failed.
            NoReplyError: no reply arrived in time.
            BadReplyError: the reply violates the protocol.
            BadValueError: the value of a single key cannot be decoded.
            TypeError, ValueError: msgpack cannot pack a field; nothing was sent.
        """
        checks.text("op", op)
        if own := {"op", "id"} & fields.keys():
            raise TypeError(f"{min(own)}: not allowed as a field, since the client sets it")
        attempts = Attempts(self._policy, op, False, self.timeout)
        attempts.anywhere |= "min_rev" in fields or fields.get("stale") is True
        operation = operations.plain(op, fields)
        if self._codec is PACKED:  # Nothing is decoded, so no error needs the name of a key.
            return await self._ask(operation, fields, PACKED, attempts)
        return operation.result(await self._ask(operation, fields, PLAIN, attempts))
