"""The keys under one prefix, with every op of the protocol and all that is built on them.

A namespace does nothing but put its prefix before keys, take it off again, and have its client run
the operations. The client itself is the namespace of all keys.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from zkv import checks
from zkv.client import operations
from zkv.client.codec import PACKED, PLAIN, Codec
from zkv.client.errors import ClientError, ConflictError, NotFoundError, RefusedError, TooLargeError
from zkv.client.operations import RAISE, Change, Entry, Operation, Reply
from zkv.client.process import ReadAhead
from zkv.client.retry import Attempts, RetryPolicy

# sync: from zkv.client.mapping import Dictionary

if TYPE_CHECKING:
    from zkv.checks import Seconds
    from zkv.client.aio import AsyncClient  # sync: from zkv.client.sync import Client
    from zkv.client.async_mirror import AsyncMirror
    from zkv.client.async_pipeline import AsyncPipeline, AsyncTransaction
    from zkv.client.async_watch import AsyncWatch
    from zkv.client.recipes.async_cache import AsyncCache
    from zkv.client.recipes.async_election import AsyncElection
    from zkv.client.recipes.async_limiter import AsyncRateLimiter
    from zkv.client.recipes.async_lock import AsyncLock
    from zkv.client.recipes.async_queue import AsyncQueue

T = TypeVar("T")

VERSION_SECONDS: Final = 1.0
"""How long a server may take to tell its version, where it refuses something."""


class AsyncKeyOps:  # sync: class KeyOps(Dictionary):
    """What a client and its namespaces have in common: all ops on keys."""

    _prefix: str
    _client: AsyncClient

    @abstractmethod
    async def _run(self, operation: Operation[T]) -> T:
        """Carry out an operation, with retries."""

    # --- One key

    async def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or ``default`` if the key is absent.

        Raises:
            BadValueError: the value cannot be decoded. Calls that read a single value raise this.
                Where values come together, as from `get_many`, `scan`, `changes`, `watch` and
                transactions, the error replaces the value.
        """
        return await self._run(operations.get(checks.key(self._prefix, key), default))

    async def get_entry(self, key: str) -> Entry:
        """A key's value with its revision, and the seconds that it has left.

        Raises:
            NotFoundError: the key is not there.
            BadValueError: the value cannot be decoded.
        """
        return await self._run(operations.get_entry(checks.key(self._prefix, key), key))

    async def contains(  # sync: def __contains__(
        self,
        key: str,  # sync: key: object,
    ) -> bool:
        """Whether a key is there."""
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
        """Write a value, whatever was there before, or on a condition.

        Args:
            key: non-empty text, 1,024 bytes at most.
            value: anything that msgpack holds, and what the client's codec adds.
            ttl: seconds after which the key is gone, above 0 and up to 10^10, or a `timedelta`;
                None = it stays.
            if_rev: write only if the entry has this revision; 0 = only if it is absent.
            create: write only if the key is absent.

        Returns:
            The revision of the store that this made; it is the entry's from now on.

        Raises:
            ConflictError: the condition does not hold; ``rev`` is the actual revision.
            TooLargeError: key or value are over their limit.
            TypeError, ValueError: an argument is not allowed, or the value cannot be stored or
                would not come back as it was; nothing was sent. So it is in all methods.
            BadValueError: a function of the codec failed; nothing was sent.
        """
        return await self._run(
            operations.put(checks.key(self._prefix, key), value, ttl, if_rev, create)
        )

    async def delete(self, key: str, *, if_rev: int | None = None) -> bool:
        """Remove a key; `pop` also gives its value, and ``del`` insists that it was there.

        Args:
            key: to remove.
            if_rev: remove only if the entry has this revision.

        Returns:
            Whether it was there.

        Raises:
            ConflictError: the entry has another revision; 0 = it is absent.
        """
        return await self._run(operations.delete(checks.key(self._prefix, key), if_rev))

    async def incr(self, key: str, by: int = 1) -> int:
        """Add to an int of 64 bits; an absent key counts as 0. Returns the sum.

        Args:
            key: of the number.
            by: an int of 64 bits; may be negative.

        Raises:
            WrongTypeError: the value is no int, or would leave its range.
        """
        return await self._run(operations.incr(checks.key(self._prefix, key), by))

    async def touch(self, key: str, ttl: Seconds | None) -> int:
        """Give a key another time to live, and leave its value.

        Args:
            key: to keep.
            ttl: seconds from now, as for `put`; None = it does not expire.

        Returns:
            The revision of this change.

        Raises:
            NotFoundError: the key is not there.
        """
        return await self._run(operations.touch(checks.key(self._prefix, key), ttl))

    async def pop(self, key: str, default: Any = RAISE) -> Any:
        """Remove a key and return its value: the one that was read, or nothing is removed.

        It takes two requests, and more while others write to the key. So a value that cannot be
        returned is never lost.

        Raises:
            NotFoundError: the key is not there, and no default was given.
            BadValueError: the value cannot be decoded; it stays.
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
        """The value of a key; where it is not there, write ``default`` and return that."""
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

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of many keys at one moment; keys that are not there are left out.

        Raises:
            TooLargeError: more keys, or larger values, than the server takes at once.
        """
        return await self._run(operations.get_many(self._prefix, keys))

    async def get_entries(self, keys: Iterable[str]) -> dict[str, Entry]:
        """Like `get_many`, with revisions; ``ttl`` is not told."""
        return await self._run(operations.get_entries(self._prefix, keys))

    async def put_many(self, items: Mapping[str, Any], *, ttl: Seconds | None = None) -> int:
        """Write many values, all or nothing, and return the revision that they all have.

        Args:
            items: a mapping of keys to values.
            ttl: as for `put`, of all of them.

        Raises:
            TooLargeError: more than the server takes at once; nothing is written.
        """
        return await self._run(operations.put_many(self._prefix, items, ttl))

    async def delete_many(self, keys: Iterable[str]) -> int:
        """Remove many keys at one moment; how many were there.

        Raises:
            TooLargeError: more than the server takes at once; nothing is removed.
        """
        return await self._run(operations.delete_many(self._prefix, keys))

    async def clear(self) -> None:
        """Remove all keys, page by page."""
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
    ) -> AsyncIterator[Entry]:
        """Entries in the order of their keys, read page by page as the iterator goes on.

        Args:
            prefix: of the keys.
            start: the first key that may come.
            end: the first key that may not.
            after: begin behind this key (with ``reverse``: before it).
            limit: entries at most, from 0; None = all.
            values: whether values are wanted; without, they are None and do not travel.
            reverse: from the last key to the first.
        """
        fields = operations.scan_fields(
            self._prefix, prefix, start=start, end=end, after=after, values=values, reverse=reverse
        )
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

    async def count(self, prefix: str = "") -> int:
        """How many keys there are that begin with ``prefix``."""
        return await self._run(operations.count(self._prefix + checks.text("prefix", prefix)))

    def changes(self, since: int, prefix: str = "") -> AsyncIterator[Change]:
        """What has changed after a revision, oldest first, up to now.

        Args:
            since: a revision from 0, such as that of an entry, or ``info()["rev"]``.
            prefix: of the keys.

        Raises:
            CompactedError: changes after ``since`` are not kept any more.
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
        """Changes as they come, for as long as one likes; an iterator.

        Each change comes once, in the order of revisions, also when connections are cut, messages
        are lost and the server is restarted; while it is away, the watch waits. What cannot be told
        any more (it was away for more changes than the server keeps, or the store's data are older
        than they were) is told anew: first a change with ``op`` ``RESET``, which says to forget
        everything, then each entry there is as a ``PUT``, then changes again. It begins at once, or
        where it is first waited for::

            async with kv.watch("user/") as watch:
                async for change in watch:
                    if change.op == "RESET":
                        users.clear()
                    elif change.op in ("PUT", "TOUCH"):
                        users[change.key] = change.value
                    else:  # DELETE, EXPIRE
                        users.pop(change.key, None)

        Args:
            prefix: of the keys.
            since: the revision behind which to begin, such as the ``rev`` of an earlier watch; None
                = from where the store is when it begins.
            feed: where the change feed is reached, if not where the server says: through a tunnel.

        Raises:
            NoReplyError: the server cannot be reached now.
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
        """A copy of the entries in this process's memory, that follows every change.

        Reading from it is reading from a dict. It lags behind the store by a moment; `wait_for`
        waits until it shows a revision::

            async with kv.mirror("config/") as settings:
                settings["config/greeting"]

        Args:
            prefix: of the keys. Unlike that of a namespace it stays on the keys.
            timeout: seconds for reading everything first, up to a year, or a `timedelta`; None = as
                long as it takes.
            feed: as for `watch`.

        Raises:
            NoReplyError: the server cannot be reached now, or not everything was read in time.
        """
        from zkv.client.async_mirror import AsyncMirror

        return (
            AsyncMirror(self, prefix, timeout, feed)
            # sync: ._open()
        )

    def lock(self, key: str, *, ttl: Seconds = 30.0, owner: str | None = None) -> AsyncLock:
        """Mutual exclusion for programs on many machines, see `zkv.client.recipes.lock`.

        Like this::

            async with kv.lock("report") as lock:
                report = await make_report()
                async with lock.txn() as txn:  # written only if the lock is still held
                    txn.put("report/today", report)

        Args:
            key: of the lock; its entry is there while somebody holds it.
            ttl: seconds after which a holder that has crashed loses it, as for `put`. Who lives
                keeps it.
            owner: who holds it, for people to read; None = the machine and the process.
        """
        from zkv.client.recipes.async_lock import AsyncLock

        return AsyncLock(self, key, ttl, owner)

    def election(
        self, key: str, candidate: str | None = None, *, ttl: Seconds = 30.0
    ) -> AsyncElection:
        """One leader among many, see `zkv.client.recipes.election`.

        Like this::

            async with kv.election("scheduler", "node 7") as election:  # waits until elected
                while election.held:
                    ...

        Args:
            key: of the election, the same for all candidates.
            candidate: the name of this one; None = the machine and the process.
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
        """A decorator: what a function returns is kept, and computed once for all programs.

        Like this::

            @kv.cache(ttl=60)
            async def exchange_rate(currency: str) -> float: ...

        It takes functions, and not methods, generators and classes. What has no name of its own, a
        lambda or a ``partial``, needs a prefix. Arguments and result are what the client can store.

        Args:
            function: is not given here: the decorator needs its parentheses.
            ttl: seconds for which a value is kept, as for `put`; None = until the function's
                ``forget``, such as ``await exchange_rate.forget("EUR")``.
            prefix: of the keys; None = ``cache/``, the function's module and its name.
            lease: seconds until somebody else computes it, if who does has crashed.

        Raises:
            TypeError, ValueError: an argument is none of these. The decorator raises TypeError,
                too, where it gets something else than such a function.
        """
        from zkv.client.recipes.async_cache import AsyncCache

        if function is not None:
            raise TypeError("cache: write @kv.cache() or @kv.cache(ttl=60), with parentheses")
        return AsyncCache(self, ttl, prefix, lease)

    def rate_limiter(self, prefix: str, *, limit: int, period: Seconds) -> AsyncRateLimiter:
        """So many per period, for all programs together, see `zkv.client.recipes.limiter`.

        Like this::

            limiter = kv.rate_limiter("logins", limit=5, period=60)
            if not await limiter.allow(user):
                raise TooManyLogins

        Args:
            prefix: of the counters' keys.
            limit: how many in each period, from 1 to 2^53.
            period: in seconds, from 0.001 to 5 * 10^9, or a `timedelta`.
        """
        from zkv.client.recipes.async_limiter import AsyncRateLimiter

        return AsyncRateLimiter(self, prefix, limit, period)

    def queue(self, prefix: str, *, lease: Seconds = 30.0) -> AsyncQueue:
        """Jobs that are each done at least once, see `zkv.client.recipes.queue`.

        Like this::

            jobs = kv.queue("mails")
            await jobs.put({"to": "ann"})
            while (job := await jobs.take()) is not None:
                async with job:  # done at the end, given back where an error is raised
                    await send(job.value)

        Args:
            prefix: of the keys.
            lease: seconds after which a job is free again if its worker has crashed, as the ttl of
                `put`.
        """
        from zkv.client.recipes.async_queue import AsyncQueue

        return AsyncQueue(self, prefix, lease)

    def txn(self) -> AsyncTransaction:
        """Ops that happen as a whole or not at all, on conditions.

        They are written down, and run at the end of the ``with`` block, or by `commit`::

            async with kv.txn() as txn:
                txn.check("account/a", rev)  # only if it has not changed since
                txn.incr("account/a", -5)
                txn.incr("account/b", 5)
            a, b = txn.results
        """
        from zkv.client.async_pipeline import AsyncTransaction

        return AsyncTransaction(self._prefix, self._run)

    def pipeline(self) -> AsyncPipeline:
        """Ops that are sent in as few messages as possible, each of which may fail alone.

        They are written down, and run in their order at the end of the ``with`` block, or by
        `execute`. Other clients' ops may come in between::

            async with kv.pipeline() as pipe:
                for name in names:
                    pipe.incr(f"hits/{name}")
            hits = dict(zip(names, pipe.results))
        """
        from zkv.client.async_pipeline import AsyncPipeline

        return AsyncPipeline(self._prefix, self._run)

    def namespace(self, prefix: str) -> AsyncNamespace:
        """The keys that begin with ``prefix``, as a mapping of its own, without the prefix."""
        return AsyncNamespace(self, prefix)


class AsyncNamespace(AsyncKeyOps):
    """The keys under one prefix. Made by `AsyncClient.namespace`.

    Args:
        parent: a client, or another namespace.
        prefix: stands before all keys, behind that of the parent.
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
    """The namespace of all keys, and what concerns the server itself: what a client offers."""

    timeout: float
    _prefix = ""
    _codec: Codec
    _policy: RetryPolicy

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
        """Send a request until there is an answer to it, or no time left."""

    async def _name_old_server(self, op: str, error: RefusedError) -> None:
        """Say so in ``error``, where the server does not know what it was asked for."""
        if op != "INFO" and operations.is_unknown_to_server(error):
            with suppress(ClientError):  # The first error matters more.
                facts = await self._run(operations.info(), min(self.timeout, VERSION_SECONDS))
                error.message += operations.older_than_client(facts)

    @abstractmethod
    async def aclose(self) -> None:
        """Close all connections."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def ping(self) -> dict[str, Any]:
        """Whether the server is there: its ``protocol``, ``version`` and ``time`` (Unix, ms)."""
        return await self._run(operations.ping())

    async def info(self) -> dict[str, Any]:
        """What the server is, holds and has done, as the protocol's INFO tells it."""
        return await self._run(operations.info())

    async def snapshot(self, timeout: Seconds | None = None) -> int:  # noqa: ASYNC109  of the request
        """Have a snapshot written that holds every write answered before; its revision.

        Args:
            timeout: seconds to wait for it, as for `AsyncClient`; None = as for any request.
        """
        return await self._run(operations.snapshot(), timeout)

    async def end(self, timeout: Seconds | None = None) -> int:  # noqa: ASYNC109  of the request
        """Have the server save everything and end; the revision that was saved last.

        Args:
            timeout: seconds to wait for it, as for `AsyncClient`; None = as for any request.
        """
        return await self._run(operations.end(), timeout)

    async def call(self, op: str, /, **fields: Any) -> Reply:
        """Send a request as it is, once, and return the reply as it comes.

        There is no codec but `PACKED`, no session, no repeat: the protocol page says what happens.

        Args:
            op: an op of the protocol, upper case.
            **fields: the request's other fields; ``id`` is set here.

        Raises:
            RefusedError: the server answered that the request failed.
            NoReplyError: no reply came in time.
            BadReplyError: a reply came, and breaks the protocol.
            BadValueError: the value of a single key cannot be decoded.
            TypeError, ValueError: msgpack cannot hold a field; nothing was sent.
        """
        checks.text("op", op)
        if own := {"op", "id"} & fields.keys():
            raise TypeError(f"{min(own)}: no field to be given: the client sets it")
        attempts = Attempts(self._policy, op, False, self.timeout)
        operation = operations.plain(op, fields)
        if self._codec is PACKED:  # Nothing is decoded, so there is no error to name a key in.
            return await self._ask(operation, fields, PACKED, attempts)
        return operation.result(await self._ask(operation, fields, PLAIN, attempts))
