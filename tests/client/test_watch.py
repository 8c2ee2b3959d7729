"""`watch` and `mirror`, sync and async, of real servers that are killed, cut off and restarted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import pytest
import zmq

import zkv
from tests.client.blocking import AnyClient, Kind
from tests.client.proxy import Proxy
from tests.support import FREE_PORT, LIMIT, ServerProcess, environment, eventually
from zkv.client import AsyncClient, Change, Client, ClientError, ClosedError, NoReplyError
from zkv.client.follower import RESET

QUIET: Final = "[durability]\nsnapshot_interval = 3600.0\n[log]\nrequests = false\n"
"""Every change stays in the log, and so in the history that a restarted server has."""


class Followed:
    """Changes as one loop takes them, in a thread of its own, until it is closed.

    Args:
        endpoint: of the server.
        kind: ``sync`` or ``async``.
        prefix, since, feed: of the watch.
    """

    def __init__(
        self, endpoint: str, kind: str, prefix: str, since: int | None, feed: str | None = None
    ) -> None:
        self.changes: list[Change] = []
        self.rev = -1
        """As the watch told it behind the last change."""
        self._arguments: dict[str, Any] = {"prefix": prefix, "since": since, "feed": feed}
        self._endpoint = endpoint
        self._begun = threading.Event()
        self._close: Callable[[], object] = lambda: None
        self._pool = ThreadPoolExecutor(1)
        self._done = self._pool.submit(self._sync if kind == "sync" else self._async)

    def __enter__(self) -> Self:
        assert self._begun.wait(LIMIT) or self._done.result(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._done.result(LIMIT)
        self._pool.shutdown()

    def wait_for(self, rev: int) -> None:
        eventually(lambda: self.rev >= rev or self._done.done(), f"revision {rev} is told")
        if self._done.done():
            self._done.result()

    def _sync(self) -> None:
        with Client(self._endpoint) as kv, kv.watch(**self._arguments) as watch:
            self._close, self.rev = watch.close, watch.rev
            self._begun.set()
            for change in watch:
                self.changes.append(change)
                self.rev = watch.rev

    def _async(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        async with AsyncClient(self._endpoint) as kv, kv.watch(**self._arguments) as watch:
            self._close = lambda: asyncio.run_coroutine_threadsafe(watch.aclose(), loop)
            self.rev = watch.rev or 0
            self._begun.set()
            async for change in watch:
                self.changes.append(change)
                self.rev = watch.rev or 0


KINDS: Final = pytest.mark.parametrize("kind", ["sync", "async"])


@pytest.fixture
def memory() -> Iterator[zkv.Server]:
    with zkv.Server() as server:
        yield server


@pytest.fixture
def kv(memory: zkv.Server) -> Iterator[Client]:
    with Client(memory.endpoint) as client:
        yield client


@pytest.fixture
def both(kind: Kind, memory: zkv.Server) -> Iterator[AnyClient]:
    """A client of either kind."""
    with kind(memory.endpoint) as client:
        yield client


# --- What a watch tells ----------------------------------------------------------------------


@KINDS
def test_it_tells_what_changes_from_now_on(memory: zkv.Server, kv: Client, kind: str) -> None:
    kv["a/before"] = 0
    with Followed(memory.endpoint, kind, "a/", None) as followed:
        kv["a/1"] = [1]
        kv["b/1"] = 1
        kv.incr("a/n", 5)
        kv.touch("a/1", 1_000)
        kv.put_many({"a/2": 2, "b/2": 2, "a/3": b"3"})
        del kv["a/2"]
        rev = kv.put("a/short", 1, ttl=0.01)
        followed.wait_for(rev + 1)
    assert followed.changes == [
        Change(2, "PUT", "a/1", [1]),
        Change(4, "PUT", "a/n", 5),
        Change(5, "TOUCH", "a/1", [1]),
        Change(6, "PUT", "a/2", 2),
        Change(6, "PUT", "a/3", b"3"),
        Change(7, "DELETE", "a/2", None),
        Change(8, "PUT", "a/short", 1),
        Change(9, "EXPIRE", "a/short", None),
    ]


@KINDS
def test_it_begins_where_it_is_told_to(memory: zkv.Server, kv: Client, kind: str) -> None:
    for number in range(3_000):
        kv[f"k{number}"] = number
    with Followed(memory.endpoint, kind, "", 1_000) as followed:
        followed.wait_for(3_000)
    assert [change.rev for change in followed.changes] == list(range(1_001, 3_001))


def test_a_watch_of_a_namespace_tells_its_keys(both: AnyClient, kv: Client) -> None:
    users, same = kv.namespace("user/"), both.namespace("user/")
    with same.watch("a") as watch, same.mirror("a") as mirror:
        users["bob"] = 1
        users["ann"] = 2
        change = watch.next(LIMIT)
        assert change is not None
        assert change.key == "ann"
        mirror.wait_for(change.rev, LIMIT)
        assert mirror == {"ann": 2}


def test_rev_counts_whole_revisions(both: AnyClient, kv: Client) -> None:
    with both.watch(since=0) as watch:
        kv.put_many({"a": 1, "b": 2})
        kv["c"] = 3
        revs = []
        for _ in range(3):
            assert watch.next(LIMIT) is not None
            revs.append(watch.rev)
        assert revs == [0, 1, 2]
        assert watch.next(0.01) is None


@KINDS
def test_who_was_away_too_long_is_told_everything_anew(tmp_path: Path, kind: str) -> None:
    with zkv.Server(history=20) as server, Client(server.endpoint) as kv:
        for number in range(2_500):
            kv[f"a/{number}"] = number
        kv.delete_many([f"a/{number}" for number in range(500)])
        with Followed(server.endpoint, kind, "a/", 5) as followed:
            eventually(lambda: len(followed.changes) == 2_001, "all of it is told")
            kv["a/new"] = 1
            followed.wait_for(2_502)
        reset, *entries, new = followed.changes
        assert (reset.op, reset.rev, reset.key, reset.value) == (RESET, 2_501, "", None)
        assert {change.op for change in entries} == {"PUT"}
        assert {change.key: change.value for change in entries} == {
            f"a/{number}": number for number in range(500, 2_500)
        }
        assert new == Change(2_502, "PUT", "a/new", 1)


@KINDS
def test_a_store_that_has_gone_back_is_told_anew(kind: str) -> None:
    with zkv.Server("inproc://gone-back") as server, Client(server.endpoint) as kv:
        kv.put_many({"a": 1, "b": 2})
        kv["a"] = 3
        with Followed(server.endpoint, kind, "", 0) as followed:
            followed.wait_for(2)
            server.stop()
            server.start()
            kv.clear()
            kv["c"] = 4
            eventually(lambda: followed.changes[-1].key == "c", "the new store is told")
        assert followed.changes[-2:] == [Change(1, RESET, "", None), Change(1, "PUT", "c", 4)]


@KINDS
def test_without_a_feed_it_asks(kind: str) -> None:
    with (
        zkv.Server(feed="") as server,
        Client(server.endpoint) as kv,
        Followed(server.endpoint, kind, "", None) as followed,
    ):
        for _ in range(2):
            followed.wait_for(kv.put("k", 1))
    assert [change.rev for change in followed.changes] == [1, 2]


@KINDS
def test_a_server_that_is_not_there_is_told_at_once(kind: str) -> None:
    if kind == "sync":
        with Client("inproc://nobody", timeout=0.05) as kv:
            with pytest.raises(NoReplyError):
                kv.watch()
            with pytest.raises(NoReplyError):
                kv.mirror()
        return

    async def run() -> None:
        async with AsyncClient("inproc://nobody", timeout=0.05) as kv:
            with pytest.raises(NoReplyError):
                await anext(kv.watch())
            with pytest.raises(NoReplyError):
                async with kv.mirror():
                    pass

    asyncio.run(run())


def test_why_nothing_comes_is_told(kind: Kind, tmp_path: Path) -> None:
    server = zkv.Server(FREE_PORT, data_dir=tmp_path / "data", fsync="never")
    with server, kind(server.endpoint, 0.5) as kv, kv.watch() as watch:
        server.stop()
        eventually(lambda: watch.next(0.01) or watch.trouble, "it is known to be away")
        assert isinstance(watch.trouble, NoReplyError)
        server.start()
        eventually(lambda: watch.next(0.01) or not watch.trouble, "it is known to be back")
        with Client(server.endpoint) as other:
            other["k"] = 1
        assert watch.next(LIMIT).key == "k"


# --- How it ends -----------------------------------------------------------------------------


def test_it_is_closed_from_another_thread(kv: Client) -> None:
    watch = kv.watch()
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(list, watch)
        watch.close()
        assert told.result(LIMIT) == []
    assert watch.closed
    watch.close()
    assert watch.next() is None


def test_one_at_a_time_waits_for_the_next_change(both: AnyClient, kv: Client) -> None:
    with both.watch() as watch, ThreadPoolExecutor(1) as pool:
        subscription = getattr(watch, "_target", watch)._subscription
        waiting = pool.submit(watch.next, LIMIT)
        eventually(subscription._inside.locked, "it waits")
        with pytest.raises(RuntimeError, match="one at a time"):
            watch.next(0)
        kv["k"] = 1
        assert waiting.result(LIMIT).key == "k"


def test_what_is_queued_is_not_told_once_it_is_closed(both: AnyClient, kv: Client) -> None:
    kv.update({"a": 1, "b": 2})
    with both.watch(since=0) as watch:
        assert next(watch).key == "a"
    assert list(watch) == []


def test_an_end_of_the_client_ends_what_follows(memory: zkv.Server) -> None:
    kv = Client(memory.endpoint)
    watch, mirror = kv.watch(since=0), kv.mirror()
    kv.close()
    with pytest.raises(ClosedError):
        list(watch)
    with pytest.raises(ClosedError):
        mirror.wait_for(1, LIMIT)
    mirror.close()


def test_nothing_is_left_open(memory: zkv.Server, kv: Client) -> None:
    def files() -> int:
        return len(os.listdir("/proc/self/fd"))

    def follow() -> None:
        watch = kv.watch(since=0)
        assert next(watch).key == "k"  # And is forgotten without having been closed.
        with kv.mirror() as mirror:
            assert mirror["k"] == 1
        with kv.watch() as watch, contextlib.suppress(ZeroDivisionError):
            raise ZeroDivisionError

    kv["k"] = 1
    follow()
    before, threads = files(), set(threading.enumerate())
    for _ in range(30):
        follow()
    assert set(threading.enumerate()) <= threads
    eventually(lambda: files() <= before, "all is closed")  # By ZeroMQ's own thread.


def test_an_end_of_the_program_waits_for_none_of_it(tmp_path: Path) -> None:
    program = """
import asyncio, sys, zkv
with zkv.Server() as server:
    kv = zkv.Client(server.endpoint)
    watch, mirror = kv.watch(), kv.mirror()
    kv["k"] = 1
    mirror.wait_for(1)
    print(mirror["k"], next(watch).key)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environment(), cwd=tmp_path,
        capture_output=True, text=True, timeout=LIMIT, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("1 k\n", "")


def test_a_forked_child_is_told_that_it_does_not_follow(tmp_path: Path) -> None:
    program = """
import os, zkv
with zkv.Server("tcp://127.0.0.1:*") as server, zkv.Client(server.endpoint) as kv:
    kv["k"] = 1
    with kv.watch(since=0) as watch, kv.mirror() as mirror:
        child = os.fork()
        if child == 0:
            for follow in (lambda: next(watch), lambda: mirror.wait_for(10), lambda: mirror["k"]):
                try:
                    follow()
                except zkv.ClosedError as error:
                    assert "forked" in str(error)
                else:
                    raise AssertionError
        else:
            assert os.waitpid(child, 0)[1] == 0
            assert next(watch).key == "k"
            mirror.wait_for(kv.put("k", 2))
"""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environment(), cwd=tmp_path,
        timeout=LIMIT, check=True,
    )  # fmt: skip


def test_a_feed_that_is_none_is_told(both: AnyClient, kv: Client) -> None:
    assert kv.info()["feed"]
    with pytest.raises(ValueError, match="nonsense"):
        both.watch(feed="nonsense").next()


def test_a_cancelled_wait_loses_nothing(memory: zkv.Server, kv: Client) -> None:
    async def run() -> list[int]:
        revs: list[int] = []
        async with AsyncClient(memory.endpoint) as akv, akv.watch(since=0) as watch:
            while len(revs) < 200:
                change = await watch.next(timeout=0.0005)
                if change is not None:
                    revs.append(change.rev)
                elif watch.rev == len(revs):
                    await akv.put("k", len(revs))
                task = asyncio.create_task(watch.next())
                await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    change = await task
                    assert change is not None
                    revs.append(change.rev)
        return revs

    revs = asyncio.run(run())
    assert revs == list(range(1, len(revs) + 1))


# --- Kills, cuts, losses ---------------------------------------------------------------------


class Writers:
    """Threads that change everything all the time. Use as a context manager.

    Args:
        endpoint: of the server.
        seed: of what they do.
        ttl: seconds that some keys live.
    """

    def __init__(self, endpoint: str, seed: int, ttl: float = 0.05) -> None:
        self._endpoint = endpoint
        self._seed = seed
        self._ttl = ttl
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(2)
        self.written = 0

    def __enter__(self) -> Self:
        self._running = [self._pool.submit(self._write, self._seed + n) for n in range(2)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for writer in self._running:
            writer.result(LIMIT)
        self._pool.shutdown()

    def wait_for(self, more: int) -> None:
        """Wait until some more has been written."""
        until = self.written + more
        eventually(
            lambda: self.written >= until or any(writer.done() for writer in self._running),
            "it is written",
        )

    def _write(self, seed: int) -> None:
        chance = random.Random(seed)
        with Client(self._endpoint, timeout=LIMIT) as kv:
            while not self._stop.is_set():
                key = f"{chance.choice('ab')}/{chance.randrange(30)}"
                match chance.randrange(6):
                    case 0:
                        kv.delete(key)
                    case 1:
                        kv.put(key, chance.randrange(100), ttl=chance.choice([self._ttl, 1_000]))
                    case 2:
                        names = chance.sample(range(30), 5)
                        kv.put_many({f"{chance.choice('ab')}/{n}": seed for n in names})
                    case 3:
                        with kv.txn() as txn:
                            txn.incr(f"{key}/n")
                            txn.incr(f"{chance.choice('ab')}/total")
                    case _:
                        kv.put(key, chance.randbytes(chance.randrange(200)))
                self.written += 1


class Checked:
    """Everything that can follow a server, and a check that all of it shows what is so.

    Args:
        endpoint: of the server, for what follows.
        direct: of the server, for the check.
        feed: of the server, for what follows.
    """

    def __init__(self, endpoint: str, direct: str, feed: str | None = None) -> None:
        self._stack = contextlib.ExitStack()
        self._kv = self._stack.enter_context(Client(direct, timeout=LIMIT))
        self._followed = {
            (kind, prefix): self._stack.enter_context(Followed(endpoint, kind, prefix, 0, feed))
            for kind in ("sync", "async")
            for prefix in ("", "a/")
        }
        mirrored = self._stack.enter_context(Client(endpoint))
        self._mirrors = {
            prefix: self._stack.enter_context(mirrored.mirror(prefix, feed=feed))
            for prefix in ("", "a/")
        }
        self._seen = {prefix: dict(mirror) for prefix, mirror in self._mirrors.items()}
        for prefix, mirror in self._mirrors.items():
            mirror.subscribe(partial(apply, self._seen[prefix]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def check(self, seed: int) -> None:
        """Once nobody writes: everybody has been told everything, once and in order.

        What expires meanwhile may come on top.
        """
        self._kv.put("a/end", seed)
        rev = self._kv.put("b/end", seed)
        everything = list(self._kv.changes(0))
        for (kind, prefix), followed in self._followed.items():
            expected = [change for change in everything if change.key.startswith(prefix)]
            followed.wait_for(expected[-1].rev)
            assert followed.changes[: len(expected)] == expected, (seed, kind, prefix)
        for prefix, mirror in self._mirrors.items():
            mirror.wait_for(rev, LIMIT)
            eventually(self._is_shown(prefix), f"the mirror shows the store: {seed}, {prefix!r}")
            eventually(self._is_seen(prefix), f"callbacks tell the same: {seed}, {prefix!r}")

    def _is_shown(self, prefix: str) -> Callable[[], bool]:
        def is_shown() -> bool:
            state = {entry.key: entry for entry in self._kv.scan(prefix)}
            mirror = self._mirrors[prefix]
            if list(mirror.items()) != [(entry.key, entry.value) for entry in state.values()]:
                return False
            return all(mirror.get_entry(key).rev == entry.rev for key, entry in state.items())

        return is_shown

    def _is_seen(self, prefix: str) -> Callable[[], bool]:
        return lambda: self._seen[prefix] == self._mirrors[prefix].copy()


def apply(seen: dict[str, Any], change: Change) -> None:
    """What a program would do in a callback."""
    if change.op in {"PUT", "TOUCH"}:
        seen[change.key] = change.value
    else:
        del seen[change.key]


def kill_again_and_again(directory: Path, kills: int, seed: int) -> None:
    """The endpoint stays, the feed is elsewhere after each restart."""
    endpoint = f"ipc://{directory}/zkv.ipc"
    server = ServerProcess(directory / "s", "--endpoint", endpoint, config=QUIET)
    with server, Checked(endpoint, endpoint) as checked:
        with Writers(endpoint, seed) as writers:
            for _ in range(kills):
                writers.wait_for(300)
                server.kill()
                server.start()
            writers.wait_for(300)
        checked.check(seed)


def cut_again_and_again(directory: Path, cuts: int, seed: int) -> None:
    """Requests and feed go through proxies that cut them off."""
    with ServerProcess(directory, config=QUIET) as server, Client(server.endpoint) as kv:
        feed = kv.info()["feed"]
        with (
            Proxy(server.endpoint) as requests,
            Proxy(feed) as changes,
            Checked(requests.endpoint, server.endpoint, changes.endpoint) as checked,
        ):
            with Writers(server.endpoint, seed) as writers:
                for number in range(cuts):
                    writers.wait_for(20)
                    (changes if number % 3 else requests).cut()
            checked.check(seed)


def lose_again_and_again(directory: Path, writes: int, seed: int) -> None:
    """A relay loses and repeats messages of the feed."""
    with ServerProcess(directory, config=QUIET) as server, Client(server.endpoint) as kv:
        feed = kv.info()["feed"]
        with (
            Lossy(feed, seed) as relay,
            Checked(server.endpoint, server.endpoint, relay.endpoint) as checked,
        ):
            with Writers(server.endpoint, seed) as writers:
                for _ in range(0, writes, 500):
                    writers.wait_for(500)
            checked.check(seed)
            assert relay.lost > writes / 10


class Lossy:
    """Passes a feed on, but for some of its messages, and some twice. A context manager."""

    def __init__(self, feed: str, seed: int) -> None:
        self._chance = random.Random(seed)
        self.lost = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._source = self._context.socket(zmq.SUB)
        self._source.rcvhwm = self._sink_hwm = 100_000
        self._source.subscribe(b"")
        self._source.connect(feed)
        self._sink = self._context.socket(zmq.PUB)
        self._sink.sndhwm = self._sink_hwm
        self._sink.bind(FREE_PORT)
        self.endpoint = self._sink.get_string(zmq.LAST_ENDPOINT)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._pass_on)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _pass_on(self) -> None:
        while not self._stop.is_set():
            if not self._source.poll(100):
                continue
            frames = self._source.recv_multipart()
            number = self._chance.choice([0, 1, 1, 1, 2])
            self.lost += number == 0
            for _ in range(number):
                self._sink.send_multipart(frames)


def test_killed_servers(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path, 3, random.randrange(2**32))


def test_cut_connections(tmp_path: Path) -> None:
    cut_again_and_again(tmp_path, 30, random.randrange(2**32))


def test_lost_messages(tmp_path: Path) -> None:
    lose_again_and_again(tmp_path, 1_000, random.randrange(2**32))


@pytest.mark.parametrize("prefix", ["", "a/"])
def test_a_history_that_is_too_short(prefix: str) -> None:
    """The feed loses much, the server keeps little: mirrors begin anew again and again."""
    seed = random.randrange(2**32)
    resets = 0

    async def follow(endpoint: str, feed: str, written: threading.Event) -> None:
        nonlocal resets
        async with AsyncClient(endpoint) as kv:
            seen: dict[str, Any] = {}
            async with kv.mirror(prefix, feed=feed) as mirror, kv.watch(prefix, feed=feed) as watch:
                seen.update(mirror)
                mirror.subscribe(partial(apply, seen))
                while not written.is_set():
                    change = await watch.next(timeout=0.1)
                    resets += change is not None and change.op == RESET
                rev = await kv.put("a/end", 1)
                await mirror.wait_for(rev, LIMIT)
                assert dict(mirror) == {e.key: e.value async for e in kv.scan(prefix)}, seed
                assert seen == dict(mirror)

    written = threading.Event()
    with (
        zkv.Server(FREE_PORT, history=20) as server,
        Lossy(server.feed or "", seed) as relay,
        Client(server.endpoint) as kv,
        kv.mirror(prefix, feed=relay.endpoint) as mirror,
        ThreadPoolExecutor(1) as pool,
    ):
        following = pool.submit(asyncio.run, follow(server.endpoint, relay.endpoint, written))
        with Writers(server.endpoint, seed, ttl=LIMIT * 10) as writers:
            eventually(lambda: resets >= 3 or following.done(), "it begins anew")
            writers.wait_for(100)
        written.set()
        following.result(2 * LIMIT)
        mirror.wait_for(kv.put("b/end", 1), LIMIT)
        assert mirror == {entry.key: entry.value for entry in kv.scan(prefix)}, seed


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
def test_for_long(tmp_path: Path, seed: int) -> None:
    kill_again_and_again(tmp_path / "kills", 30, seed)
    cut_again_and_again(tmp_path / "cuts", 500, seed)
    lose_again_and_again(tmp_path / "losses", 20_000, seed)


# --- What a mirror shows ---------------------------------------------------------------------


def test_a_mirror_reads_like_a_dict_in_order(both: AnyClient, kv: Client) -> None:
    kv.update({"b": 2, "a": 1, "é": 3, "c": None})
    with both.mirror() as mirror:
        same = dict(kv.items())
        assert mirror == same
        assert mirror != {}
        assert (mirror == 7) is False
        assert list(mirror) == list(same) == ["a", "b", "c", "é"]
        assert list(mirror.items()) == list(same.items())
        assert (list(mirror.keys()), list(mirror.values())) == (list(same), list(same.values()))
        assert len(mirror) == 4
        assert "c" in mirror
        assert "d" not in mirror
        assert (mirror["c"], mirror.get("c", 1), mirror.get("d"), mirror.get("d", 1)) == (
            None, None, None, 1,
        )  # fmt: skip
        with pytest.raises(KeyError, match="d"):
            mirror["d"]
        with pytest.raises(KeyError):
            mirror.get_entry("d")
        entry = mirror.get_entry("a")
        assert (entry.key, entry.value, entry.rev) == ("a", 1, 1)
        assert kv.put("a", 5, if_rev=entry.rev) == 2
        assert "4 entries" in repr(mirror)


def test_wait_for_shows_ones_own_writes(both: AnyClient, kv: Client) -> None:
    with both.mirror("a/") as mirror:
        for number in range(300):
            rev = kv.put(random.choice(["a/k", "b/k"]), number)
            mirror.wait_for(rev, LIMIT)
            assert mirror.get("a/k") == kv.get("a/k")
        with pytest.raises(NoReplyError, match="revision 10000"):
            mirror.wait_for(10_000, 0.01)


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads that compute take turns 50 times as often: those that wait for a turn wait less."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 50)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_a_mirror_shows_whole_revisions_to_all_threads(both: AnyClient, kv: Client) -> None:
    kv.update({"from": 1_000, "to": 0})
    with both.mirror() as mirror, ThreadPoolExecutor(4) as pool:
        stop = threading.Event()

        def read() -> int:
            shown = set()
            while not stop.is_set():
                copy = mirror.copy()
                assert sum(copy.values()) == 1_000
                shown.add(copy["to"])
            return len(shown)

        readers = [pool.submit(read) for _ in range(2)]
        for _ in range(500):
            with kv.txn() as txn:
                txn.incr("from", -1)
                txn.incr("to", 1)
        mirror.wait_for(kv.info()["rev"], LIMIT)
        stop.set()
        assert sum(reader.result(LIMIT) for reader in readers) > 2
        assert mirror["to"] == 500


def test_callbacks_are_told_what_is_shown(
    both: AnyClient, kv: Client, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Change] = []
    with both.mirror() as mirror:

        def show(change: Change) -> None:
            told.append(change)
            assert mirror.rev >= change.rev
            raise ZeroDivisionError

        unsubscribe = mirror.subscribe(show)
        kv["a"] = 1
        rev = kv.put("b", 2)
        mirror.wait_for(rev, LIMIT)
        eventually(lambda: len(told) == 2, "both are told")
        unsubscribe()
        mirror.wait_for(kv.put("c", 3), LIMIT)
    assert told == [Change(1, "PUT", "a", 1), Change(2, "PUT", "b", 2)]
    assert "a callback of a mirror failed" in caplog.text


def test_a_mirror_of_a_server_that_is_away_keeps_what_it_has(tmp_path: Path) -> None:
    server = zkv.Server(FREE_PORT, data_dir=tmp_path / "data", fsync="never")
    told: list[Change] = []
    with server, Client(server.endpoint) as kv, kv.mirror() as mirror:
        kv.update({"a": 1, "b": 2})
        mirror.wait_for(1, LIMIT)
        mirror.subscribe(told.append)
        server.stop()
        stopped = time.monotonic()
        assert mirror == {"a": 1, "b": 2}
        eventually(lambda: mirror.staleness > 2, "it knows that it is old")
        assert mirror.staleness < time.monotonic() - stopped + 5
        server.start()
        rev = kv.put("a", 3)
        mirror.wait_for(rev, LIMIT)
        assert mirror == {"a": 3, "b": 2}
        eventually(lambda: mirror.staleness < 2, "it knows that it is not old")
        assert told == [Change(2, "PUT", "a", 3)]


def test_a_mirror_that_was_away_too_long_tells_the_differences() -> None:
    server = zkv.Server("inproc://differences")
    told: list[Change] = []
    with server, Client(server.endpoint) as kv, kv.mirror() as mirror:
        kv["gone"] = 1
        kv["kept"] = 2
        kv["other"] = 3
        kv["changed"] = 1
        mirror.wait_for(4, LIMIT)
        mirror.subscribe(told.append)
        server.stop()  # In memory alone: its data are gone.
        server.start()
        kv["new"] = 1
        kv["kept"] = 2
        kv["changed"] = 2
        shown = {"new": 1, "kept": 2, "changed": 2}
        eventually(lambda: mirror == shown, "it shows the new store")
        eventually(lambda: len(told) >= 4, "the differences are told")
    assert told[:2] == [Change(told[0].rev, "DELETE", key, None) for key in ("gone", "other")]
    assert Change(1, "PUT", "new", 1) in told
    assert Change(3, "PUT", "changed", 2) in told


def test_an_async_mirror(memory: zkv.Server, kv: Client) -> None:
    kv.update({"a/b": 2, "a/a": 1})

    async def run() -> None:
        async with AsyncClient(memory.endpoint) as akv, akv.mirror("a/") as mirror:
            assert list(mirror.items()) == [("a/a", 1), ("a/b", 2)]
            told: list[Change] = []
            mirror.subscribe(told.append)
            rev = await akv.put("b", 1)
            await mirror.wait_for(rev)
            rev = await akv.put("a/c", 3)
            await mirror.wait_for(rev)
            assert mirror["a/c"] == 3
            assert mirror.staleness < 2
            assert told == [Change(rev, "PUT", "a/c", 3)]
            with pytest.raises(NoReplyError):
                await mirror.wait_for(10_000, timeout=0.01)
        with pytest.raises(ClientError):
            await mirror.wait_for(10_000)
        assert mirror["a/c"] == 3

    asyncio.run(run())


def test_a_mirror_is_of_any_keyspace(both: AnyClient, kv: Client) -> None:
    assert len(kv) == 0
    for space in (both, both.namespace("n/"), both.namespace("n/").namespace("m/")):
        space.put("k", 1)
        with space.mirror("k") as mirror:
            assert dict(mirror) == {"k": 1}
