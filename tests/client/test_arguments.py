"""Arguments that are not allowed: refused at the call, by name, before anything is sent.

A table of all arguments with what is wrong for each, and generated arguments for every public call.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import zmq.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zkv
from tests.client.blocking import AnyClient, Kind, Loop
from tests.support import LIMIT, ServerInProcess
from zkv import (
    AsyncClient,
    Client,
    ClientError,
    Codec,
    ConflictError,
    NoReplyError,
    RetryPolicy,
    Server,
    ValueType,
)

NO_NUMBER = ["5", b"5", True, False, [5], object(), 1j]
NO_INT = [*NO_NUMBER, 1.0, 1.5, math.nan, math.inf, timedelta(1)]
BEYOND = [math.nan, math.inf, -math.inf, -1, -0.5, -1e300, 1e12, 2**63, 2**64, 10**400]
NO_SECONDS = [*NO_NUMBER, *BEYOND, timedelta(-1), timedelta.max]
NO_SPAN = [*NO_SECONDS, 0, 0.0, timedelta(0)]
"""For what must take some time."""
NO_REVISION = [*NO_INT, -1, 2**63, 2**64, 10**400]
NO_INT64 = [*NO_INT, 2**63, 2**64, -(2**63) - 1, 10**400]
NO_COUNT = [*NO_INT, -100, -1, 0, 10**12 * 10**12]
NO_TEXT = [5, 1.5, True, b"x", ["x"], object(), timedelta(1)]
NO_FLAG = [0, 1, "yes", b"", 1.0, None, []]
NO_KEYS = [None, 5, 1.5, True, object(), b"ab", ["a", 5], [b"a"], [None]]
NO_MAPPING = [None, 5, "ab", [("a", 1)], ["ab"], {5: 1}, {b"a": 1}, {None: 1}]
NO_CALLABLE = [None, 5, "time"]

Row = tuple[str, Callable[[AnyClient, Any], object], list[Any]]


def none(*bad: Any) -> list[Any]:
    """Without None, which stands for a default."""
    return [each for each in bad if each is not None]


def each(entries: Any) -> list[Any]:
    return list(entries)


TABLE: dict[str, Row] = {
    "get": ("key", lambda kv, bad: kv.get(bad), [*NO_TEXT, None]),
    "get_entry": ("key", lambda kv, bad: kv.get_entry(bad), [*NO_TEXT, None]),
    "put key": ("key", lambda kv, bad: kv.put(bad, 1), [*NO_TEXT, None]),
    "put ttl": ("ttl", lambda kv, bad: kv.put("k", 1, ttl=bad), NO_SPAN),
    "put if_rev": ("if_rev", lambda kv, bad: kv.put("k", 1, if_rev=bad), NO_REVISION),
    "put create": ("create", lambda kv, bad: kv.put("k", 1, create=bad), NO_FLAG),
    "delete": ("key", lambda kv, bad: kv.delete(bad), [*NO_TEXT, None]),
    "delete if_rev": ("if_rev", lambda kv, bad: kv.delete("k", if_rev=bad), NO_REVISION),
    "incr": ("key", lambda kv, bad: kv.incr(bad), [*NO_TEXT, None]),
    "incr by": ("by", lambda kv, bad: kv.incr("n", bad), [*NO_INT64, None]),
    "touch": ("key", lambda kv, bad: kv.touch(bad, 1), [*NO_TEXT, None]),
    "touch ttl": ("ttl", lambda kv, bad: kv.touch("k", bad), NO_SPAN),
    "pop": ("key", lambda kv, bad: kv.pop(bad), [*NO_TEXT, None]),
    "setdefault": ("key", lambda kv, bad: kv.setdefault(bad), [*NO_TEXT, None]),
    "get_many": ("keys", lambda kv, bad: kv.get_many(bad), NO_KEYS),
    "get_many of a prefix": ("keys", lambda kv, bad: kv.namespace("p/").get_many(bad), NO_KEYS),
    "get_entries": ("keys", lambda kv, bad: kv.get_entries(bad), NO_KEYS),
    "delete_many": ("keys", lambda kv, bad: kv.delete_many(bad), NO_KEYS),
    "put_many": ("items", lambda kv, bad: kv.put_many(bad), NO_MAPPING),
    "put_many in a prefix": ("items", lambda kv, bad: kv.namespace("p").put_many(bad), NO_MAPPING),
    "put_many ttl": ("ttl", lambda kv, bad: kv.put_many({"a": 1}, ttl=bad), NO_SPAN),
    "scan": ("prefix", lambda kv, bad: kv.scan(bad), [*NO_TEXT, None, "\udc80"]),
    "scan start": ("start", lambda kv, bad: kv.scan(start=bad), NO_TEXT),
    "scan end": ("end", lambda kv, bad: kv.scan(end=bad), NO_TEXT),
    "scan after": ("after", lambda kv, bad: kv.scan(after=bad), NO_TEXT),
    "scan limit": ("limit", lambda kv, bad: kv.scan(limit=bad), NO_REVISION),
    "scan values": ("values", lambda kv, bad: kv.scan(values=bad), NO_FLAG),
    "scan reverse": ("reverse", lambda kv, bad: kv.scan(reverse=bad), NO_FLAG),
    "count": ("prefix", lambda kv, bad: kv.count(bad), [*NO_TEXT, None]),
    "changes": ("since", lambda kv, bad: kv.changes(bad), [*NO_REVISION, None]),
    "changes prefix": ("prefix", lambda kv, bad: kv.changes(0, bad), [*NO_TEXT, None]),
    "watch": ("prefix", lambda kv, bad: kv.watch(bad), [*NO_TEXT, None, "\udc80"]),
    "watch since": ("since", lambda kv, bad: kv.watch(since=bad), NO_REVISION),
    "watch feed": ("feed", lambda kv, bad: kv.watch(feed=bad), [*NO_TEXT, "", "here", "tcp://*:1"]),
    "mirror": ("prefix", lambda kv, bad: kv.mirror(bad), [*NO_TEXT, None]),
    "mirror timeout": ("timeout", lambda kv, bad: kv.mirror(timeout=bad), NO_SECONDS),
    "mirror feed": ("feed", lambda kv, bad: kv.mirror(feed=bad), [*NO_TEXT, "", "here"]),
    "lock": ("key", lambda kv, bad: kv.lock(bad), [*NO_TEXT, None]),
    "lock ttl": ("ttl", lambda kv, bad: kv.lock("l", ttl=bad), [*NO_SPAN, None]),
    "lock owner": ("owner", lambda kv, bad: kv.lock("l", owner=bad), NO_TEXT),
    "lock acquire": ("timeout", lambda kv, bad: kv.lock("l").acquire(bad), NO_SECONDS),
    "election": ("key", lambda kv, bad: kv.election(bad), [*NO_TEXT, None]),
    "election candidate": ("candidate", lambda kv, bad: kv.election("e", bad), NO_TEXT),
    "election ttl": ("ttl", lambda kv, bad: kv.election("e", ttl=bad), [*NO_SPAN, None]),
    "election acquire": ("timeout", lambda kv, bad: kv.election("e").acquire(bad), NO_SECONDS),
    "cache ttl": ("ttl", lambda kv, bad: kv.cache(ttl=bad), NO_SPAN),
    "cache prefix": ("prefix", lambda kv, bad: kv.cache(prefix=bad), NO_TEXT),
    "cache lease": ("lease", lambda kv, bad: kv.cache(lease=bad), [*NO_SPAN, None]),
    "limiter": (
        "prefix", lambda kv, bad: kv.rate_limiter(bad, limit=1, period=1), [*NO_TEXT, None],
    ),
    "limiter limit": (
        "limit", lambda kv, bad: kv.rate_limiter("r", limit=bad, period=1), [*NO_COUNT, None],
    ),
    "limiter period": (
        "period", lambda kv, bad: kv.rate_limiter("r", limit=1, period=bad),
        [*NO_SPAN, None, 1e-300, 5e9 + 1],
    ),
    "limiter who": (
        "who", lambda kv, bad: kv.rate_limiter("r", limit=1, period=1).allow(bad), [*NO_TEXT, None],
    ),
    "limiter count": (
        "count", lambda kv, bad: kv.rate_limiter("r", limit=1, period=1).allow("a", bad),
        [*NO_COUNT, None],
    ),
    "queue": ("prefix", lambda kv, bad: kv.queue(bad), [*NO_TEXT, None]),
    "queue lease": ("lease", lambda kv, bad: kv.queue("q", lease=bad), [*NO_SPAN, None]),
    "queue take": ("timeout", lambda kv, bad: kv.queue("q").take(bad), NO_SECONDS),
    "namespace": ("prefix", lambda kv, bad: kv.namespace(bad), [*NO_TEXT, None]),
    "slow": ("limit", lambda kv, bad: kv.slow(bad), [0, -1, 2**63, 1.5, "1", None, True]),
    "snapshot": ("timeout", lambda kv, bad: kv.snapshot(bad), [*NO_SPAN, 86_401]),
    "end": ("timeout", lambda kv, bad: kv.end(bad), [*NO_SPAN, 86_401]),
    "call": ("op", lambda kv, bad: kv.call(bad), [*NO_TEXT, None]),
    "call id": ("id", lambda kv, bad: kv.call("PING", id=bad), [5, None]),
    "call op": ("op", lambda kv, bad: kv.call("PING", op=bad), ["GET"]),
    **{
        f"{batch} {name}": (
            argument,
            lambda kv, bad, batch=batch, use=use: use(getattr(kv, batch)(), bad),  # type: ignore[misc]
            wrong,
        )
        for batch in ("txn", "pipeline")
        for name, argument, use, wrong in (
            ("get", "key", lambda ops, bad: ops.get(bad), [*NO_TEXT, None]),
            ("put", "key", lambda ops, bad: ops.put(bad, 1), [*NO_TEXT, None]),
            ("put ttl", "ttl", lambda ops, bad: ops.put("k", 1, ttl=bad), NO_SPAN),
            ("put if_rev", "if_rev", lambda ops, bad: ops.put("k", 1, if_rev=bad), NO_REVISION),
            ("put create", "create", lambda ops, bad: ops.put("k", 1, create=bad), NO_FLAG),
            ("delete", "key", lambda ops, bad: ops.delete(bad), [*NO_TEXT, None]),
            ("delete if_rev", "if_rev", lambda ops, bad: ops.delete("k", if_rev=bad), NO_REVISION),
            ("touch", "key", lambda ops, bad: ops.touch(bad, 1), [*NO_TEXT, None]),
            ("touch ttl", "ttl", lambda ops, bad: ops.touch("k", bad), NO_SPAN),
            ("incr", "key", lambda ops, bad: ops.incr(bad), [*NO_TEXT, None]),
            ("incr by", "by", lambda ops, bad: ops.incr("k", bad), [*NO_INT64, None]),
        )
    },
    "txn check": ("key", lambda kv, bad: kv.txn().check(bad, 1), [*NO_TEXT, None]),
    "txn check rev": ("rev", lambda kv, bad: kv.txn().check("k", bad), [*NO_REVISION, None]),
    "pipeline execute": (
        "return_exceptions", lambda kv, bad: kv.pipeline().execute(return_exceptions=bad), NO_FLAG,
    ),
}  # fmt: skip

ENDPOINT = "tcp://127.0.0.1:1"

CONSTRUCTORS: dict[str, Row] = {
    "timeout": ("timeout", lambda make, bad: make(ENDPOINT, bad), [*NO_SPAN, None, 86_401]),
    "endpoint": ("endpoint", lambda make, bad: make(bad), [5, b"tcp://h", [], [5], "x", None]),
    "codec": ("codec", lambda make, bad: make(ENDPOINT, codec=bad), [None, 5, "json", int]),
    "durable": ("durable", lambda make, bad: make(ENDPOINT, durable=bad), NO_FLAG),
    "retry": ("retry", lambda make, bad: make(ENDPOINT, retry=bad), [None, 5, (1, 2), True]),
    "context": (
        "context", lambda make, bad: make(ENDPOINT, context=bad),
        [5, "c", zmq.asyncio.Context.instance()],
    ),
    **{
        name: (name, lambda _, bad, name=name: RetryPolicy(**{name: bad}), [*wrong, None])  # type: ignore[misc]
        for name, wrong in {
            "patience": NO_SPAN, "pause": NO_SECONDS, "longest_pause": NO_SECONDS,
            "repeat_for": NO_SECONDS, "now": NO_CALLABLE, "wait_for_start": NO_FLAG,
        }.items()
    },
    "jitter": ("jitter", lambda _, bad: RetryPolicy(jitter=bad), [5, "x"]),
    "replaced": ("patience", lambda _, bad: RetryPolicy()._replace(patience=bad), NO_SPAN),
    "types": ("type", lambda _, bad: Codec(bad), [5, int, (1, 2, 3, 4), None]),
    "code": (
        "code", lambda _, bad: Codec(ValueType(bad, set, bytes, set)), [*NO_INT, -1, 128, 2**64],
    ),
    "value type": ("type", lambda _, bad: Codec(ValueType(1, bad, bytes, set)), [5, "set", None]),
    "pack": ("pack", lambda _, bad: Codec(ValueType(1, set, bad, set)), NO_CALLABLE),
    "unpack": ("unpack", lambda _, bad: Codec(ValueType(1, set, bytes, bad)), NO_CALLABLE),
    "server endpoint": ("endpoints", lambda _, bad: Server(bad), [5, b"x", None, "here", True]),
    "server data_dir": ("data_dir", lambda _, bad: Server(data_dir=bad), [5, b"x", True, "\0"]),
    "server feed": ("feed", lambda _, bad: Server(feed=bad), [5, b"x", "here"]),
    "server fsync": ("fsync", lambda _, bad: Server(fsync=bad), [None, 5, "sometimes", True]),
    "server workers": (
        "workers", lambda _, bad: Server(workers=bad), [0, -1, 1.5, True, "2", 2**64],
    ),
    "server setting": (
        "history", lambda _, bad: Server(history=bad), [-1, 1.5, math.nan, "5", True, 2**64],
    ),
    "server seconds": (
        "snapshot_interval", lambda _, bad: Server(snapshot_interval=bad),
        [0, -1, math.nan, math.inf, 1e12, "5", True, 10**400],
    ),
    "server unknown": ("colour", lambda _, bad: Server(colour=bad), [5]),
    "server wait": ("timeout", lambda _, bad: Server().wait(bad), NO_SECONDS),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerInProcess]:
    """A server that serves all tests of this module."""
    quick = {"fsync": "never", "snapshot_interval": 3600.0}
    with ServerInProcess(tmp_path_factory.mktemp("arguments"), durability=quick) as server:
        yield server


@pytest.fixture
def kv(kind: Kind, server: ServerInProcess) -> Iterator[AnyClient]:
    with kind(server.endpoint) as client:
        yield client
        client.clear()


def refused(name: str, call: Callable[[], object], bad: object) -> None:
    """See that a call is refused by name, with nothing but what the program has passed."""
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    message = str(caught.value)
    assert name in message, bad
    assert "\n" not in message
    assert len(message) < 300
    assert not isinstance(caught.value, ClientError)


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE.keys())
def test_what_is_not_allowed_is_refused_by_name_and_not_sent(row: Row, kv: AnyClient) -> None:
    name, call, wrong = row
    received = [bytes_in(kv), bytes_in(kv)]
    for bad in wrong:
        refused(name, partial(call, kv, bad), bad)
    received.append(bytes_in(kv))

    alone, with_refused = received[1] - received[0], received[2] - received[1]
    assert with_refused - alone in {0, 1, 2, 3, 4}, "nothing but a longer id came with the request"


def bytes_in(kv: AnyClient) -> int:
    """The bytes of the requests that the server has received, with this one."""
    received: int = kv.info()["stats"]["bytes_in"]
    return received


@pytest.mark.parametrize("row", CONSTRUCTORS.values(), ids=CONSTRUCTORS.keys())
@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_what_is_not_allowed_is_refused_at_construction(
    row: Row, make: Callable[..., object]
) -> None:
    name, call, wrong = row

    async def construct() -> None:
        for bad in wrong:
            refused(name, partial(call, make, bad), bad)

    asyncio.run(construct())


def test_watches_and_mirrors_refuse_by_name(kv: AnyClient, server: ServerInProcess) -> None:
    rev = kv.put("k", 1)
    with kv.watch() as watch, kv.mirror() as mirror:
        for bad in NO_SECONDS:
            refused("timeout", partial(watch.next, bad), bad)
            refused("timeout", partial(mirror.wait_for, rev, bad), bad)
            refused("timeout", partial(mirror.wait_for, rev + 1, bad), bad)
        for bad in [*NO_REVISION, None]:
            refused("rev", partial(mirror.wait_for, bad), bad)
        for bad in NO_CALLABLE:
            refused("callback", partial(mirror.subscribe, bad), bad)
        with pytest.raises(NoReplyError):
            mirror.wait_for(rev + 1, timedelta(microseconds=1))
        with pytest.raises(zkv.NotFoundError):
            mirror["nobody"]
        with pytest.raises(zkv.NotFoundError):
            mirror.get_entry("nobody")
        assert watch.next(0) is None


def test_seconds_may_be_a_timedelta_everywhere(kv: AnyClient, kind: Kind) -> None:
    minute = timedelta(minutes=1)
    kv.put("a", 1, ttl=minute)
    kv.put_many({"b": 1}, ttl=minute)
    with kv.txn() as txn:
        txn.put("c", 1, ttl=minute)
    with kv.pipeline() as pipe:
        pipe.put("d", 1, ttl=minute)
        pipe.put("e", 1)
        pipe.touch("e", minute)
    kv.put("f", 1)
    kv.touch("f", minute)
    lock = kv.lock("g", ttl=minute)
    assert lock.acquire(minute)
    assert kv.queue("q", lease=minute).take(timedelta(0)) is None
    assert kv.rate_limiter("r", limit=1, period=minute).allow("who")
    for key in "abcdefg":
        assert 0 < kv.get_entry(key).ttl <= 60
    with kind(ENDPOINT, retry=RetryPolicy(patience=minute), timeout=minute) as client:
        assert client.timeout == 60
    with Server() as server:
        assert not server.wait(timedelta(0))
    lock.release()


def test_numbers_of_other_types_are_taken_as_what_they_are(kv: AnyClient) -> None:
    kv.put("k", 1, ttl=np.float64(60))
    with kv.txn() as txn:
        txn.put("t", 1, ttl=np.float64(60))
    assert 59 < kv.get_entry("k").ttl <= 60
    assert 59 < kv.get_entry("t").ttl <= 60


def test_the_timeout_of_a_client_may_be_changed(kv: AnyClient) -> None:
    client = inside(kv)
    client.timeout = timedelta(seconds=7)
    assert client.timeout == 7
    for bad in [*NO_SPAN, None, 86_401]:
        refused("timeout", partial(setattr, client, "timeout", bad), bad)


def test_bounds_are_those_of_the_protocol(kv: AnyClient) -> None:
    for ttl in (1e-9, 1, 1e10, 10**10):
        kv.put("k", 1, ttl=ttl)
        kv.put("k", 1)
        kv.touch("k", ttl)
    assert kv.incr("n", 2**63 - 1) == 2**63 - 1
    assert kv.incr("n", -(2**63)) == -1
    with pytest.raises(ConflictError):
        kv.put("n", 1, if_rev=2**63 - 1)
    assert list(kv.scan(limit=2**63 - 1))
    assert kv.rate_limiter("r", limit=2**53, period=5e9).allow("a", 2**53)
    assert kv.lock("l", ttl=1e10).acquire(31_536_000)


# --- Everything else is a ClientError

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.binary(max_size=5) | st.timedeltas()
    | st.sampled_from(
        [2**63, 2**64, -(2**63) - 1, 10**400, 1e12, math.nan, math.inf, 0, -1, "\udc80", "\ud800",
         "\0", "k", "", object(), print, int, np.float64(2), np.int64(2), ...,
         memoryview(b"abc")[::2]]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
    | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip

BOOLEANS = st.booleans()
QUICK = {"timeout": 0.0}
"""What must not wait."""


def arguments_of(function: Callable[..., object]) -> list[inspect.Parameter]:
    kinds = {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    return [
        each for each in inspect.signature(function).parameters.values() if each.kind not in kinds
    ]


def call_with(function: Callable[..., Any], draw: Callable[[Any], Any], blocked: set[str]) -> Any:
    """Call something with generated arguments, by the names that it has for them."""
    positional, keywords = [], {}
    for parameter in arguments_of(function):
        if parameter.name in blocked:
            value = 0.01
        elif parameter.default is not parameter.empty and draw(BOOLEANS):
            if parameter.kind is parameter.POSITIONAL_ONLY:
                break
            continue
        else:
            value = draw(ANYTHING)
        if parameter.kind is parameter.POSITIONAL_ONLY:
            positional.append(value)
        else:
            keywords[parameter.name] = value
    return function(*positional, **keywords)


NOT_CALLED = {"close", "aclose", "end", "timeout", "endpoint", "clear"}
ITEMS = {"__getitem__", "__setitem__", "__delitem__", "__contains__"}
PUBLIC = {
    which: sorted(
        name
        for name in dir(cls)
        if (not name.startswith("_") or name in ITEMS) and name not in NOT_CALLED
    )
    for which, cls in (("sync", Client), ("asyncio", AsyncClient))
}
ALLOWED = (TypeError, ValueError, ClientError)


@pytest.fixture(scope="module")
def clients(server: ServerInProcess) -> Iterator[Mapping[str, AnyClient]]:
    with Loop() as loop, Client(server.endpoint) as sync, Kind(loop)(server.endpoint) as other:
        yield {"sync": sync, "asyncio": other}


@pytest.mark.parametrize(
    ("name", "which"),
    [(name, which) for which, names in PUBLIC.items() for name in names],
)
@settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_a_call_raises_nothing_else(
    name: str, which: str, clients: Mapping[str, AnyClient], data: st.DataObject
) -> None:
    kv = clients[which].namespace("generated/")
    target = clients[which] if name in {"ping", "info", "slow", "snapshot", "call"} else kv
    function = getattr(target, name)
    later: Callable[[Any], Any] = data.draw
    if name in {"watch", "mirror"}:  # Whether they can be entered depends on the time it takes.
        values = data.draw(st.lists(ANYTHING, min_size=2, max_size=2))
        flags = data.draw(st.lists(BOOLEANS, min_size=2, max_size=2))
        later = lambda kind: (flags if kind is BOOLEANS else values).pop()  # noqa: E731
    try:
        made = call_with(function, data.draw, {"timeout"})
        use(made, name, later)
    except ALLOWED:
        pass


def test_the_longest_ttl_holds_up_no_other(kv: AnyClient) -> None:
    """It is longer than Python can wait, and ended the thread that removes what has expired."""
    with kv.watch() as watch:
        kv.put("long", 1, ttl=1e10)
        kv.put("short", 1, ttl=0.001)
        assert [watch.next(LIMIT).op for _ in range(3)] == ["PUT", "PUT", "EXPIRE"]


def use(made: Any, name: str, draw: Callable[[Any], Any]) -> None:
    """Do with what a call has made what programs do with it."""
    match name:
        case "scan" | "changes" | "keys" | "values" | "items":
            for _ in made:
                pass
        case "watch":
            with made:
                call_with(lambda timeout: made.next(timeout=timeout), draw, {"timeout"})
        case "mirror":
            with made:
                call_with(
                    lambda rev, timeout: made.wait_for(rev, timeout=timeout), draw, {"timeout"}
                )
        case "lock" | "election":
            if made.acquire(0):
                made.release()
        case "queue":
            call_with(lambda value: made.put(value=value), draw, set())
            if (job := made.take(0)) is not None:
                job.done()
        case "rate_limiter":
            call_with(lambda who, count: made.allow(who=who, count=count), draw, set())
        case "txn" | "pipeline":
            for _ in range(3):
                method = draw(st.sampled_from(["get", "put", "delete", "touch", "incr"]))
                call_with(getattr(made, method), draw, set())
            made.commit() if name == "txn" else made.execute()
        case "cache":
            made(draw(ANYTHING))


# --- Functions that are cached


def inside(kv: AnyClient) -> Any:
    """The client itself, of either kind."""
    return vars(kv).get("_target", kv)


def test_only_functions_are_cached(kv: AnyClient, kind: Kind) -> None:
    cache: Any = inside(kv).cache

    async def coroutine(x: int) -> int:
        return x

    async def asynchronous(x: int) -> Any:
        yield x

    def generator(x: int) -> Any:
        yield x

    def plain(x: int) -> int:
        return x

    class Callables:
        def __call__(self, x: int) -> int:
            return x

        async def asynchronous(self, x: int) -> int:
            return x

        def method(self, x: int) -> int:
            return x

        @classmethod
        def of_class(cls, x: int) -> int:
            return x

        @staticmethod
        def static(x: int) -> int:
            return x

        @property
        def attribute(self) -> int:
            return 1

    is_async = kind.loop is not None
    of_class = vars(Callables)
    for wrong in (
        of_class["method"], of_class["asynchronous"], of_class["of_class"], of_class["static"],
        of_class["attribute"], Callables, generator, asynchronous, partial(generator), 5, None, "f",
        plain if is_async else coroutine,
        partial(plain) if is_async else partial(coroutine),
        Callables() if is_async else Callables().asynchronous,
        len if is_async else asyncio.sleep,
    ):  # fmt: skip
        with pytest.raises(TypeError, match="a cache is for functions"):
            cache(prefix="p/")(wrong)
    nameless = coroutine if is_async else plain
    bound = Callables().asynchronous if is_async else Callables().method
    for unnamed in (partial(nameless), bound):
        with pytest.raises(TypeError, match="prefix"):
            cache()(unnamed)
        assert cache(prefix="named/")(unnamed)
    with pytest.raises(TypeError):
        cache()(lambda x: x)
    with pytest.raises(TypeError, match="parentheses"):
        cache(nameless)


def test_methods_are_told_where_the_class_is_made(server: ServerInProcess) -> None:
    with Client(server.endpoint) as kv:
        with pytest.raises(TypeError, match=r"method.*staticmethod"):

            class Wrong:
                @kv.cache()
                def method(self, x: int) -> int:
                    return x

        class Right:
            @staticmethod
            @kv.cache()
            def double(x: int) -> int:
                return 2 * x

        assert Right.double(2) == Right().double(2) == 4


def test_arguments_of_the_types_of_a_codec_are_part_of_a_key(
    kind: Kind, server: ServerInProcess
) -> None:
    calls = []

    def double(x: complex) -> complex:
        calls.append(x)
        return 2 * x

    codec = Codec(
        ValueType(1, complex, lambda z: repr(z).encode(), lambda data: complex(data.decode()))
    )
    with kind(server.endpoint, codec=codec) as kv:
        # The other kind of client may have the same server.
        cached = kv.cache(prefix=f"complex/{uuid4()}/")(double)
        assert [cached(1j), cached(1j), cached(2j)] == [2j, 2j, 4j]
        assert calls == [1j, 2j]
        assert cached.forget(1j)
        for bad in (object(), 2**64, "\ud800"):
            with pytest.raises((TypeError, ValueError), match=r"an argument of .*double .*key"):
                cached(bad)


# --- Values


@pytest.mark.parametrize("bad", [2**64, -(2**63) - 1, [2**64], "\ud800", {1: {2**70}}])
def test_values_that_cannot_be_packed(bad: Any, kv: AnyClient) -> None:
    wrong = (TypeError, ValueError)
    txn, pipe = kv.txn(), kv.pipeline()
    for batch in (txn, pipe):
        batch.incr("n")
        batch.put("k", bad)
    writes: list[Callable[[], object]] = [
        lambda: kv.put("k", bad),
        lambda: kv.put_many({"k": bad}),
        lambda: kv.setdefault("new", bad),
        lambda: kv.queue("q").put(bad),
        lambda: kv.call("PUT", key="k", value=bad),
        txn.commit,
        pipe.execute,
    ]
    for write in writes:
        with pytest.raises(wrong):
            write()
