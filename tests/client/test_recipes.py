"""Locks, elections, caches, limiters and queues: under contention, and when things crash.

Each test runs with either client. What is looked at beside them, is looked at by a plain one.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

import zkv
from tests.client.blocking import AnyClient, Kind
from tests.support import LIMIT, ServerProcess, eventually
from zkv import AsyncClient, Client, ConflictError, LockLostError, NoReplyError

LONG: Final = 1_000.0
"""Seconds: a lease that does not run out by itself in a test."""


@pytest.fixture
def memory() -> Iterator[zkv.Server]:
    with zkv.Server() as server:
        yield server


@pytest.fixture
def kv(kind: Kind, memory: zkv.Server) -> Iterator[AnyClient]:
    """A client of either kind."""
    with kind(memory.endpoint) as client:
        yield client


@pytest.fixture
def plain(memory: zkv.Server) -> Iterator[Client]:
    """A client to look at what is there."""
    with Client(memory.endpoint) as client:
        yield client


def in_threads(number: int, work: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(work, range(number), timeout=3 * LIMIT))


# --- Lock ------------------------------------------------------------------------------------


def test_one_holds_it_and_its_token_grows(kv: AnyClient, plain: Client) -> None:
    first, second = kv.lock("l", owner="me"), kv.lock("l")
    assert (first.rev, first.held) == (0, False)
    assert first.acquire()
    assert (first.held, plain["l"]["owner"]) == (True, "me")
    assert not second.acquire(0)
    assert not second.acquire(0.01)
    with pytest.raises(RuntimeError, match="already acquired"):
        first.acquire()
    first.release()
    assert (first.held, "l" in plain) == (False, False)
    assert second.acquire(0)
    assert second.rev > first.rev > 0
    second.release()
    with pytest.raises(RuntimeError, match="not been acquired"):
        second.release()
    with pytest.raises(LockLostError):
        second.check()
    with pytest.raises(ValueError, match="ttl"):
        kv.lock("l", ttl=0)


def test_nobody_is_in_it_with_another(kv: AnyClient, plain: Client) -> None:
    inside = Counter[str]()
    tokens: list[int] = []

    def work(_number: int) -> None:
        for _ in range(10):
            with kv.lock("l", ttl=LONG) as lock:
                inside["now"] += 1
                assert inside["now"] == 1
                tokens.append(lock.rev)
                kv.put("n", kv.get("n", 0) + 1)  # Not atomic by itself.
                inside["now"] -= 1

    in_threads(8, work)
    assert plain["n"] == 80
    assert tokens == sorted(set(tokens))


def test_it_is_renewed_as_long_as_it_is_held(kv: AnyClient, plain: Client) -> None:
    with kv.lock("l", ttl=3) as lock:
        taken = plain.get_entry("l")
        eventually(lambda: plain.get_entry("l").rev > taken.rev, "it is renewed")
        assert lock.held
        assert not kv.lock("l").acquire(0)


def test_a_holder_that_dies_loses_it(kind: Kind, tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server, kind(server.endpoint) as kv:
        child = multiprocessing.get_context("spawn").Process(
            target=hold_for_ever, args=(server.endpoint,)
        )
        child.start()
        eventually(lambda: "l" in kv, "it is held")
        lock = kv.lock("l", ttl=LONG)
        assert not lock.acquire(0)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert lock.acquire(LIMIT)
        lock.release()


def hold_for_ever(endpoint: str) -> None:
    with Client(endpoint) as kv, kv.lock("l", ttl=3.0):
        threading.Event().wait()


def test_a_lock_that_was_lost_is_told(kv: AnyClient, plain: Client) -> None:
    lock = kv.lock("l", ttl=LONG)
    lock.acquire()
    del plain["l"]  # As if the lease had run out while the holder was stopped.
    with kv.lock("l", ttl=LONG):
        with pytest.raises(LockLostError), lock.txn() as txn:
            txn.put("data", "of a former holder")
        with pytest.raises(LockLostError):
            lock.release()
        assert "l" in plain
    assert "data" not in plain
    with pytest.raises(ZeroDivisionError) as raised, kv.lock("l", ttl=LONG):  # noqa: PT012
        del plain["l"]
        raise ZeroDivisionError
    assert "no longer held" in raised.value.__notes__[0]


def test_a_lock_that_cannot_be_renewed_is_not_held(kv: AnyClient, plain: Client) -> None:
    with pytest.raises(LockLostError), kv.lock("l", ttl=0.2) as lock:  # noqa: PT012
        lock.check()
        del plain["l"]
        eventually(lambda: not lock.held, "it is noticed")
        with pytest.raises(LockLostError):
            lock.check()


def test_what_its_holder_writes_is_guarded(kv: AnyClient, plain: Client) -> None:
    stop = threading.Event()
    with kv.namespace("n/").lock("l", ttl=LONG) as lock, ThreadPoolExecutor(1) as pool:

        def renew() -> int:
            times = 0
            while not stop.is_set():
                lock._renew(lock._hold)
                times += 1
            return times

        renewed = pool.submit(renew)
        for number in range(200):  # Renewals in between make no conflict.
            with lock.txn() as txn:
                txn.put("data", number)
        stop.set()
        assert renewed.result(LIMIT) > 0
        with pytest.raises(ConflictError), lock.txn() as txn:
            txn.put("data", "new", create=True)
    assert plain["n/data"] == 199


def test_a_renewal_whose_reply_is_lost_does_not_lose_the_lock(kv: AnyClient, plain: Client) -> None:
    lock = kv.lock("l", ttl=LONG)
    lock.acquire()
    client: Any = getattr(kv, "_target", kv)
    run = client._run

    def lose_the_reply(operation: Any, timeout: float | None = None) -> Any:
        run(operation, timeout)
        raise NoReplyError("lost", None)

    async def lose_it_later(operation: Any, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        await run(operation, timeout)
        raise NoReplyError("lost", None)

    client._run = lose_the_reply if client is kv else lose_it_later
    with pytest.raises(NoReplyError):
        lock._renew(lock._hold)
    client._run = run
    with lock.txn() as txn:
        txn.put("data", 1)
    lock._renew(lock._hold)
    lock.release()
    assert "l" not in plain


def test_an_acquire_that_is_interrupted_leaves_no_lock(plain: Client) -> None:
    lock = plain.lock("l", ttl=LONG)
    take = lock._take

    def interrupted(value: dict[str, str]) -> None:
        take(value)
        raise KeyboardInterrupt

    lock._take = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        lock.acquire()
    assert not lock.held
    assert "l" not in plain


def test_locks_while_the_server_is_killed(kind: Kind, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/zkv.ipc"
    inside = Counter[str]()
    stop = threading.Event()

    def work(_number: int) -> list[int]:
        tokens = []
        with kind(endpoint) as kv:
            while not stop.is_set():
                with kv.lock("l", ttl=LONG) as lock:
                    inside["now"] += 1
                    assert inside["now"] == 1
                    with lock.txn() as txn:
                        txn.incr("n")
                    inside["all"] += 1
                    inside["now"] -= 1
                    tokens.append(lock.rev)
        return tokens

    with ServerProcess(tmp_path / "s", "--endpoint", endpoint) as server:
        with ThreadPoolExecutor(4) as pool:
            working = [pool.submit(work, number) for number in range(4)]
            for _ in range(2):
                until = inside["all"] + 20
                eventually(
                    lambda until=until: inside["all"] >= until or any(w.done() for w in working),  # type: ignore[misc]
                    "they get in",
                )
                server.kill()
                server.start()
            stop.set()
            tokens = [token for worker in working for token in worker.result(2 * LIMIT)]
        with Client(endpoint) as kv:
            assert kv["n"] == inside["all"]
            assert len(set(tokens)) == len(tokens) == inside["all"]


# --- Election --------------------------------------------------------------------------------


def test_one_leads_and_is_replaced(kv: AnyClient) -> None:
    ann, bob = kv.election("e", "ann", ttl=LONG), kv.election("e", "bob", ttl=LONG)
    told = kv.election("e").leaders()
    assert next(told) is None
    assert ann.leader() is None
    with ann:
        assert ann.held
        assert not bob.acquire(0)
        assert bob.leader() == "ann"
        assert next(told) == "ann"
        with ThreadPoolExecutor(1) as pool:
            elected = pool.submit(bob.acquire, LIMIT)
            ann.release()
            assert elected.result(LIMIT)
        assert ann.leader() == "bob"
        assert [next(told), next(told)] == [None, "bob"]
        assert next(kv.election("e").leaders()) == "bob"
        bob.release()
        ann.acquire()


# --- Cache -----------------------------------------------------------------------------------


def test_a_value_is_computed_once_per_key(kv: AnyClient, kind: Kind, memory: zkv.Server) -> None:
    calls = Counter[tuple[int, int]]()
    everybody = threading.Event()

    def add(a: int, b: int = 0) -> dict[str, int]:
        """Adds."""
        calls[a, b] += 1
        everybody.wait(LIMIT)  # All want it before it is there.
        return {"sum": a + b}

    compute, add = add, kv.cache()(add)

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(add, n % 2, b=1) for n in range(8)]
        eventually(lambda: sum(calls.values()) == 2, "both are computed")
        everybody.set()
        assert [each.result(LIMIT) for each in asked] == [{"sum": n % 2 + 1} for n in range(8)]
    assert calls == {(0, 1): 1, (1, 1): 1}
    cached: Any = getattr(add, "_target", add)
    assert (cached.__name__, cached.__doc__) == ("add", "Adds.")
    with kind(memory.endpoint) as other:
        same = other.cache(prefix=f"cache/{cached.__module__}.{cached.__qualname__}/")(compute)
        assert same(0, b=1) == {"sum": 1}
    assert sum(calls.values()) == 2


def test_what_is_kept_ends(kv: AnyClient) -> None:
    calls = []

    def compute() -> None:
        calls.append(1)

    nothing = kv.cache(ttl=0.05)(compute)

    nothing()
    nothing()
    assert len(calls) == 1

    def computed_anew() -> bool:
        nothing()
        return len(calls) == 2

    eventually(computed_anew, "it is computed anew")
    kept = kv.cache(prefix="kept/")(compute)
    assert not kept.forget()
    for _ in range(2):
        before = len(calls)
        kept()
        kept()
        assert len(calls) == before + 1
        assert kept.forget()


def test_an_error_is_not_kept_and_the_next_one_tries(kv: AnyClient) -> None:
    chance = iter([ZeroDivisionError, None])

    def compute() -> int:
        error = next(chance)
        if error is not None:
            raise error
        return 1

    fragile = kv.cache()(compute)
    with pytest.raises(ZeroDivisionError):
        fragile()
    assert fragile() == fragile() == 1
    with pytest.raises(TypeError):
        kv.cache()(lambda what: what)(object())


# --- Rate limiter ----------------------------------------------------------------------------


def test_so_many_are_allowed_in_a_period(kv: AnyClient, plain: Client) -> None:
    now = 1_000.25
    limiter = kv.rate_limiter("logins", limit=3, period=10)
    getattr(limiter, "_target", limiter)._now = lambda: now
    verdicts = [limiter.allow("ann") for _ in range(4)]
    assert [verdict.remaining for verdict in verdicts] == [2, 1, 0, 0]
    assert [bool(verdict) for verdict in verdicts] == [True, True, True, False]
    assert verdicts[3].retry_after == 9.75
    assert limiter.allow("bob", 3)
    assert not limiter.allow("bob")
    now += verdicts[3].retry_after
    assert limiter.allow("ann")
    assert all(plain.get_entry(key).ttl is not None for key in plain), "counters go by themselves"
    for limit, period in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="limit"):
            kv.rate_limiter("x", limit=limit, period=period)


def test_no_more_are_allowed_under_contention(kv: AnyClient) -> None:
    limiter = kv.rate_limiter("l", limit=50, period=1e9)
    allowed = in_threads(8, lambda _n: sum(bool(limiter.allow()) for _ in range(20)))
    assert sum(allowed) == 50


# --- Queue -----------------------------------------------------------------------------------


def test_jobs_come_in_order_and_go_when_they_are_done(kv: AnyClient, plain: Client) -> None:
    jobs = kv.queue("mails")
    for number in range(12):
        jobs.put({"n": number})
    assert len(jobs) == 12
    first, second = jobs.take(0), jobs.take(0)
    assert first is not None
    assert second is not None
    assert (first.value, second.value) == ({"n": 0}, {"n": 1})
    first.release()
    with pytest.raises(ZeroDivisionError), second:
        raise ZeroDivisionError
    order = []
    while (job := jobs.take(0)) is not None:
        with job:
            order.append(job.value["n"])
    assert order == list(range(12))
    assert len(jobs) == 0
    assert list(plain) == ["mails/last"]


def test_a_worker_waits_for_a_job(kv: AnyClient) -> None:
    jobs = kv.queue("j")
    assert jobs.take(0.01) is None
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(jobs.take, LIMIT)
        jobs.put(1)
        job = taken.result(LIMIT)
        assert job is not None
        again = pool.submit(jobs.take, LIMIT)
        job.release()
        job = again.result(LIMIT)
        assert job is not None
        job.done()


def test_a_worker_that_was_thought_dead_does_not_do_a_job_again(
    kv: AnyClient, plain: Client
) -> None:
    jobs = kv.queue("j", lease=LONG)
    jobs.put(1)
    slow = jobs.take()
    assert slow is not None
    del plain[f"j/taken/{slow._key}"]  # As if the lease had run out.
    quick = jobs.take(0)
    assert quick is not None
    with pytest.raises(LockLostError):
        slow.done()
    assert len(jobs) == 1
    quick.done()
    assert len(jobs) == 0


def test_every_job_is_done_while_workers_and_servers_are_killed(kind: Kind, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/zkv.ipc"
    spawn = multiprocessing.get_context("spawn")
    with (
        ServerProcess(tmp_path / "s", "--endpoint", endpoint) as server,
        Client(endpoint, timeout=LIMIT) as kv,
    ):
        jobs = kv.queue("j")
        for number in range(60):
            jobs.put(number)
        target = work_on if kind.loop is None else work_on_in_a_loop
        workers = [spawn.Process(target=target, args=(endpoint,)) for _ in range(3)]
        for worker in workers:
            worker.start()
        eventually(lambda: kv.count("done/") >= 10, "some are done")
        assert workers[0].pid is not None
        os.kill(workers[0].pid, signal.SIGKILL)
        server.kill()
        server.start()
        eventually(lambda: len(jobs) == 0, "all are done", 2 * LIMIT)
        assert kv.count("done/") == 60
        jobs.put(None)
        jobs.put(None)
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, 0, 0]


def work_on(endpoint: str) -> None:
    """Do jobs until one says that it is enough."""
    with Client(endpoint, timeout=LIMIT) as kv:
        jobs = kv.queue("j", lease=1.0)
        while (job := jobs.take()) is not None:
            # The lease may run out while the server is away: then others do the job again.
            with contextlib.suppress(LockLostError), job:
                if job.value is None:
                    return
                kv.incr(f"done/{job.value}")


def work_on_in_a_loop(endpoint: str) -> None:
    """Do jobs until one says that it is enough, in an event loop."""

    async def work(kv: AsyncClient) -> None:
        jobs = kv.queue("j", lease=1.0)
        while (job := await jobs.take()) is not None:
            with contextlib.suppress(LockLostError):
                async with job:
                    if job.value is None:
                        return
                    await kv.incr(f"done/{job.value}")

    async def run() -> None:
        async with AsyncClient(endpoint, timeout=LIMIT) as kv:
            await work(kv)

    asyncio.run(run())


# --- Counter ---------------------------------------------------------------------------------


def test_a_counter_counts_each_once_while_the_server_is_killed(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/zkv.ipc"
    stop = threading.Event()
    counted = Counter[int]()

    def count(number: int) -> None:
        with Client(endpoint, timeout=LIMIT) as kv:
            while not stop.is_set():
                kv.incr("n")
                counted[number] += 1

    with ServerProcess(tmp_path / "s", "--endpoint", endpoint) as server:
        with ThreadPoolExecutor(4) as pool:
            counting = [pool.submit(count, number) for number in range(4)]
            for _ in range(2):
                until = counted.total() + 200
                eventually(
                    lambda until=until: counted.total() >= until,  # type: ignore[misc]
                    "it counts",
                )
                server.kill()
                server.start()
            stop.set()
            for each in counting:
                each.result(LIMIT)
        with Client(endpoint) as kv:
            assert kv["n"] == counted.total()
