"""Measures Python clients: zkv's beside redis-py with its parser in C, each against its server.

Here the client is what is measured. It runs in this process, one thread or one loop, with the same
keys for all. The server of each is that of the group ``never`` which keeps its data best.
The *REQ loop* is a plain socket of pyzmq that sends packed requests and does not look at replies:
the least that a blocking client of zkv can take.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import msgpack
import zmq

import zkv
from benchmarks.load import Load
from benchmarks.record import Record
from benchmarks.servers import START_LIMIT, AbsentError, Server, named, running

KEYS: Final = 10_000
VALUE: Final = b"x" * 16
BATCH: Final = 100
BATCHES: Final = 200
TASKS: Final = 50
ZKV, REDIS, LOOP = "zkv.Client", "redis-py", "REQ loop"
ASYNC_ZKV, ASYNC_REDIS = "zkv.AsyncClient", "redis.asyncio"

Keys = list[str]
Op = Callable[[Keys], Any]
"""Sends one request, about the first of these keys or all of them."""
AsyncOp = Callable[[Keys], Awaitable[Any]]


def measure(record: Record, load: Load, rounds: int, seconds: float) -> None:
    """Add the figures of all clients to a record."""
    with tempfile.TemporaryDirectory(prefix="zkv-bench-") as root, contextlib.ExitStack() as stack:
        ours = _filled("zkv never", root, load, stack)
        theirs = None
        if find_spec("redis") is None:
            record.miss(REDIS)
        else:
            with contextlib.suppress(AbsentError):  # The record has it already.
                theirs = _filled("Redis AOF no fsync", root, load, stack)
        _blocking(record, ours, theirs, rounds, seconds)
        asyncio.run(_asynchronous(record, ours, theirs, rounds, seconds))


def _filled(name: str, root: str, load: Load, stack: contextlib.ExitStack) -> Server:
    """A running server with all keys. Raises AbsentError."""
    directory = Path(root, name)
    directory.mkdir()
    server = stack.enter_context(running(named(name), str(directory)))
    load.fill(server, KEYS, len(VALUE))
    return server


def _batches() -> list[Keys]:
    chance = random.Random(1)  # noqa: S311  the same keys for all, and no secret
    keys = [f"k{number:07d}" for number in range(KEYS)]
    return [chance.sample(keys, BATCH) for _ in range(BATCHES)]


# --- Blocking clients ------------------------------------------------------------------------


def _blocking(
    record: Record, ours: Server, theirs: Server | None, rounds: int, seconds: float
) -> None:
    batches = _batches()
    with zkv_ops(ours.port) as mine, loop_ops(ours.port) as loop, redis_ops(theirs) as other:
        for row in mine:
            clients = {ZKV: mine, LOOP: loop, REDIS: other}
            present = [(name, ops[row]) for name, ops in clients.items() if row in ops]
            for number in range(rounds):
                first = number % len(present)
                for name, op in present[first:] + present[:first]:
                    record.add("python", f"1 thread, {row}", name, _timed(op, batches, seconds))


def _timed(op: Op, batches: list[Keys], seconds: float) -> dict[str, float]:
    for keys in batches[: BATCHES // 10]:
        op(keys)
    used, began, count = time.process_time(), time.perf_counter(), 0
    while not count or time.perf_counter() - began < seconds:
        op(batches[count % BATCHES])
        count += 1
    return _figures(count, began, used)


def _figures(count: int, began: float, used: float) -> dict[str, float]:
    wall, cpu = time.perf_counter() - began, time.process_time() - used
    return {"rate": count / wall, "client_cpu": cpu / count * 1e6}


@contextlib.contextmanager
def zkv_ops(port: int) -> Iterator[dict[str, Op]]:
    """The operations of zkv.Client, by row."""
    with zkv.Client(f"tcp://127.0.0.1:{port}") as client:

        def pipeline(keys: Keys) -> None:
            with client.pipeline() as calls:
                for key in keys:
                    calls.get(key)
                calls.execute()

        yield {
            "GET": lambda keys: client.get(keys[0]),
            "PUT": lambda keys: client.put(keys[0], VALUE),
            "MGET of 100": client.get_many,
            "MPUT of 100": lambda keys: client.put_many(dict.fromkeys(keys, VALUE)),
            "pipeline of 100 GETs": pipeline,
        }


@contextlib.contextmanager
def loop_ops(port: int) -> Iterator[dict[str, Op]]:
    """The same for a REQ socket."""
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.rcvtimeo = int(START_LIMIT * 1000)
        socket.connect(f"tcp://127.0.0.1:{port}")

        def op(**request: Any) -> Op:
            packed = msgpack.packb(request)

            def ask(_: Keys) -> None:
                socket.send(packed)
                socket.recv()

            return ask

        keys = _batches()[0]
        yield {
            "GET": op(op="GET", key=keys[0]),
            "PUT": op(op="PUT", key=keys[0], value=VALUE),
            "MGET of 100": op(op="MGET", keys=keys),
            "MPUT of 100": op(op="MPUT", items=dict.fromkeys(keys, VALUE)),
        }


@contextlib.contextmanager
def redis_ops(server: Server | None) -> Iterator[dict[str, Op]]:
    """The same for redis-py."""
    if server is None:
        yield {}
        return
    with importlib.import_module("redis").Redis(port=server.port) as client:

        def pipeline(keys: Keys) -> None:
            calls = client.pipeline(transaction=False)
            for key in keys:
                calls.get(key)
            calls.execute()

        yield {
            "GET": lambda keys: client.get(keys[0]),
            "PUT": lambda keys: client.set(keys[0], VALUE),
            "MGET of 100": client.mget,
            "MPUT of 100": lambda keys: client.mset(dict.fromkeys(keys, VALUE)),
            "pipeline of 100 GETs": pipeline,
        }


# --- Clients for asyncio ---------------------------------------------------------------------


async def _asynchronous(
    record: Record, ours: Server, theirs: Server | None, rounds: int, seconds: float
) -> None:
    batches = _batches()
    async with contextlib.AsyncExitStack() as stack:
        mine = await stack.enter_async_context(zkv.AsyncClient(f"tcp://127.0.0.1:{ours.port}"))
        clients: dict[str, dict[str, AsyncOp]] = {
            ASYNC_ZKV: {
                "GET": lambda keys: mine.get(keys[0]),
                "PUT": lambda keys: mine.put(keys[0], VALUE),
                "MGET of 100": mine.get_many,
            }
        }
        if theirs is not None:
            redis = importlib.import_module("redis.asyncio")
            other = redis.Redis(port=theirs.port, max_connections=TASKS)
            stack.push_async_callback(other.aclose)
            clients[ASYNC_REDIS] = {
                "GET": lambda keys: other.get(keys[0]),
                "PUT": lambda keys: other.set(keys[0], VALUE),
                "MGET of 100": other.mget,
            }
        for row in clients[ASYNC_ZKV]:
            present = list(clients)
            for number in range(rounds):
                first = number % len(present)
                for name in present[first:] + present[:first]:
                    found = await _timed_tasks(clients[name][row], batches, seconds)
                    record.add("python", f"{TASKS} tasks, {row}", name, found)


async def _timed_tasks(op: AsyncOp, batches: list[Keys], seconds: float) -> dict[str, float]:
    count = 0

    async def send_until(end: float, number: int) -> None:
        nonlocal count
        while not count or time.perf_counter() < end:
            await op(batches[(count + number) % BATCHES])
            count += 1

    async def together(length: float) -> None:
        end = time.perf_counter() + length
        await asyncio.gather(*(send_until(end, number) for number in range(TASKS)))

    await together(seconds / 10)
    used, began, count = time.process_time(), time.perf_counter(), 0
    await together(seconds)
    return _figures(count, began, used)
