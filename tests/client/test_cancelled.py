"""What is cancelled leaves nothing behind: no lock, no job, no entry half made."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

import zkv
from tests.support import LIMIT
from zkv import AsyncClient
from zkv.client.recipes.async_lock import AsyncLock
from zkv.client.recipes.async_queue import AsyncJob

LONG: Final = 1_000.0
"""Seconds: a lease that does not run out by itself in a test."""
TIMES: Final = 150


@asynccontextmanager
async def client() -> AsyncIterator[AsyncClient]:
    with zkv.Server() as server:
        async with AsyncClient(server.endpoint, LIMIT) as kv:
            yield kv


async def cancelled(work: Coroutine[Any, Any, Any], turns: int) -> Any:
    """What the work gives, unless it is cancelled, after some turns of the loop, before that."""
    task = asyncio.ensure_future(work)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return None


async def again_and_again(
    begin: Callable[[], Coroutine[Any, Any, Any]], check: Callable[[Any], Awaitable[None]]
) -> None:
    """Cancel work at many moments, up to the one at which it is done; check what is left each time.

    Args:
        begin: makes the work.
        check: is given what the work has given, None where it was cancelled.
    """
    chance = random.Random()
    ended = set()
    most = 8
    for _ in range(TIMES):
        given = await cancelled(begin(), chance.randrange(most))
        ended.add(given is None)
        most = max(8, most * 5 // 4 if given is None else most // 2)  # About where it is done.
        await check(given)
    assert ended == {True, False}, "some were cancelled, and some were not"


async def test_an_acquire() -> None:
    async with client() as kv:
        locks = list[AsyncLock]()

        def begin() -> Coroutine[Any, Any, Any]:
            locks.append(kv.lock("l", ttl=LONG))
            return locks[-1].acquire()

        async def check(given: Any) -> None:
            lock = locks.pop()
            assert lock.held == bool(given)
            assert (await kv.get("l") is not None) == bool(given)
            if given:
                await lock.release()

        await again_and_again(begin, check)


async def test_an_acquire_that_waits_for_another_holder() -> None:
    async with client() as kv:
        async with kv.lock("l", ttl=LONG) as holder:
            waiting = asyncio.create_task(kv.lock("l", ttl=LONG).acquire())
            assert not await kv.lock("l").acquire(0.01)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert (await kv.get_entry("l")).rev == holder.rev
        assert await kv.get("l") is None


async def test_a_release() -> None:
    async with client() as kv:
        lock = kv.lock("l", ttl=LONG)

        async def release() -> bool:
            await lock.release()
            return True

        async def check(_given: Any) -> None:
            if lock.held:  # It had not even begun.
                await lock.release()
            assert await kv.get("l") is None
            assert await lock.acquire(0)

        await lock.acquire()
        await again_and_again(release, check)


async def test_a_block_with_a_lock() -> None:
    async with client() as kv:
        done = 0

        async def work() -> bool:
            async with kv.lock("l", ttl=LONG) as lock, lock.txn() as txn:
                txn.incr("n")
            return True

        async def check(given: Any) -> None:
            nonlocal done
            assert await kv.get("l") is None
            done += bool(given)

        await again_and_again(work, check)
        assert done <= await kv.get("n") <= TIMES


async def test_a_take() -> None:
    async with client() as kv:
        jobs = kv.queue("j", lease=LONG)
        await jobs.put("the only one")

        async def check(given: AsyncJob | None) -> None:
            if given is not None:
                await given.release()
            assert [entry.key async for entry in kv.scan("j/taken/")] == []

        await again_and_again(jobs.take, check)
        job = await jobs.take(0)
        assert job is not None
        assert job.value == "the only one"
        await job.done()


async def test_a_take_that_waits() -> None:
    async with client() as kv:
        jobs = kv.queue("j", lease=LONG)
        for _ in range(20):
            assert await cancelled(jobs.take(), random.randrange(60)) is None
        waiting = asyncio.create_task(jobs.take())
        await jobs.put(1)
        job = await waiting
        assert job is not None
        async with job:
            assert await jobs.count() == 1
        assert await jobs.count() == 0


async def test_what_is_cached() -> None:
    async with client() as kv:
        calls = 0

        @kv.cache(prefix="c/")
        async def value() -> int:
            nonlocal calls
            calls += 1
            await asyncio.sleep(0)
            return calls

        async def check(given: Any) -> None:
            assert [entry.key async for entry in kv.scan("c/") if "lock" in entry.key] == []
            if given is not None:
                assert await value() == given
            await value.forget()

        await again_and_again(value, check)


async def test_a_mirror_and_a_watch_that_begin() -> None:
    async with client() as kv:
        await kv.put_many({f"{number}": number for number in range(100)})

        async def follow() -> bool:
            async with kv.mirror() as mirror, kv.watch(since=0) as watch:
                change = await watch.next()
                assert change is not None
                assert mirror[change.key] == change.value
            return True

        async def check(_given: Any) -> None:
            names = {task.get_name() for task in asyncio.all_tasks()}
            assert "zkv-mirror" not in names

        await again_and_again(follow, check)
