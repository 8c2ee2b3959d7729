"""What is special about the asyncio client: many requests in flight, cancellation, event loops."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.peer import Peer, reply, swallow
from tests.support import LIMIT, ServerInProcess, ServerProcess, eventually, pack, unpack
from zkv import AsyncClient, ClosedError, NoReplyError, RetryPolicy
from zkv.client.aio import MOST_IN_FLIGHT

HASTY = RetryPolicy(patience=0.1, pause=0.01)


async def test_ten_thousand_tasks(near: ServerInProcess) -> None:
    async with AsyncClient(near.endpoint, 3 * LIMIT) as kv:
        counted = await asyncio.gather(*[kv.incr("n") for _ in range(10_000)])

        assert sorted(counted) == list(range(1, 10_001))
        info = await kv.info()
        assert info["stats"]["sessions"]["sessions"] <= MOST_IN_FLIGHT


def answer_all(router: zmq.Socket[bytes], requests: int) -> int:
    """Answer so many requests, whenever no more come by themselves; the most that waited."""
    most, waiting = 0, list[list[bytes]]()
    while requests:
        while router.poll(100):
            waiting.append(router.recv_multipart())
        most = max(most, len(waiting))
        for peer, delimiter, body in waiting:
            fields = {"ok": True, "id": unpack(body)["id"], "value": 1}
            router.send_multipart([peer, delimiter, pack(fields)])
            requests -= 1
        waiting.clear()
    return most


async def test_requests_in_flight_are_bounded(router: zmq.Socket[bytes]) -> None:
    endpoint = str(router.get_string(zmq.LAST_ENDPOINT))
    async with AsyncClient(endpoint, LIMIT, retry=RetryPolicy(patience=LIMIT)) as kv:
        answering = asyncio.to_thread(answer_all, router, 500)
        most, *values = await asyncio.gather(answering, *[kv.get("k") for _ in range(500)])

    assert most == MOST_IN_FLIGHT
    assert values == [1] * 500


async def cancel_some(tasks: list[asyncio.Task[Any]], chance: random.Random) -> int:
    """Cancel half of the tasks, each after some more turns of the loop; how many were."""
    for task in chance.sample(tasks, len(tasks) // 2):
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(each) for each in done} <= {int, asyncio.CancelledError}
    return sum(isinstance(each, asyncio.CancelledError) for each in done)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
async def test_a_storm_of_cancellations_leaves_the_client_usable(
    near: ServerInProcess, seed: int
) -> None:
    chance = random.Random(seed)
    async with AsyncClient(near.endpoint, 3 * LIMIT) as kv:
        cancelled, asked = 0, 0
        for _ in range(5):
            tasks = [asyncio.create_task(kv.incr("n")) for _ in range(400)]
            asked += len(tasks)
            cancelled += await cancel_some(tasks, chance)
        counted = await asyncio.gather(*[kv.incr("m") for _ in range(500)])

        assert cancelled > 0
        assert sorted(counted) == list(range(1, 501))
        assert asked - cancelled <= await kv.get("n") <= asked


async def test_cancelled_requests_to_a_server_that_is_down_do_no_harm(
    free_endpoint: str, tmp_path: Path
) -> None:
    async with AsyncClient(free_endpoint, 3 * LIMIT) as kv:
        for _ in range(20):  # More than a socket's queue holds.
            tasks = [asyncio.create_task(kv.incr("n")) for _ in range(MOST_IN_FLIGHT)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        waiting = asyncio.create_task(kv.call("INCR", key="m"))  # Sent once only.
        server = ServerProcess(tmp_path, "--endpoint", free_endpoint)
        try:
            await asyncio.to_thread(server.start)
            assert (await waiting)["value"] == 1
            assert await kv.get("n", 0) <= 20 * MOST_IN_FLIGHT
        finally:
            server.kill()


async def test_a_timeout_around_a_request_cancels_it_alone(near: ServerInProcess) -> None:
    async with AsyncClient(near.endpoint) as kv:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await kv.get("k")
        assert await kv.put("k", 1) == 1


async def test_waiting_for_a_place_ends_in_time(router: zmq.Socket[bytes]) -> None:
    async with AsyncClient(str(router.get_string(zmq.LAST_ENDPOINT)), 0.3) as kv:
        tasks = [kv.incr("n") for _ in range(3 * MOST_IN_FLIGHT)]
        errors = await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(error, NoReplyError) for error in errors)


async def test_a_link_that_fails_is_replaced_while_others_wait_at_it() -> None:
    with Peer(swallow, swallow, afterwards=reply(ok=True, value=2, rev=1)) as peer:
        async with AsyncClient(peer.endpoint, LIMIT, retry=HASTY) as kv:
            slow = asyncio.create_task(kv.call("SNAPSHOT"))  # Not repeated: waits at its link.
            assert await kv.incr("n") == 2
            assert not slow.done()
            slow.cancel()
            await asyncio.gather(slow, return_exceptions=True)


async def test_closing_ends_requests_under_way() -> None:
    with Peer(reply(ok=True), swallow) as peer:
        kv = AsyncClient(peer.endpoint, LIMIT)
        await kv.call("PING")
        waiting = asyncio.create_task(kv.incr("n"))
        await asyncio.to_thread(peer.done.wait, LIMIT)
        await kv.aclose()
        with pytest.raises(ClosedError) as caught:
            await waiting

    assert caught.value.applied is None


def test_a_client_belongs_to_its_event_loop(near: ServerInProcess) -> None:
    kv = AsyncClient(near.endpoint)
    asyncio.run(kv.ping())

    async def use_and_close() -> None:
        with pytest.raises(RuntimeError, match="event loop"):
            await kv.ping()
        await kv.aclose()

    asyncio.run(use_and_close())


async def test_timeouts_leave_no_file_descriptors_behind(free_endpoint: str) -> None:
    async with AsyncClient(free_endpoint, 0.001) as kv:
        await asyncio.gather(kv.incr("n"), return_exceptions=True)
        before = len(os.listdir("/dev/fd"))
        for _ in range(300):
            with pytest.raises(NoReplyError):
                await kv.incr("n")

        eventually(lambda: len(os.listdir("/dev/fd")) <= before, "as many descriptors as before")


async def test_a_scan_may_be_left_early(near: ServerInProcess) -> None:
    async with AsyncClient(near.endpoint) as kv:
        await kv.put_many({f"{number}": number for number in range(10)})
        async for entry in kv.scan():
            if entry.value == 3:
                break

        assert await kv.count() == 10
