"""Servers that are killed, and networks that lose things: no write is lost, none happens twice.

Each worker counts in a key of its own, so it knows what every answer has to be: after a lost
increment it would be smaller, after one that ran twice larger.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.client.blocking import AnyClient, Kind
from tests.client.proxy import Proxy
from tests.support import LIMIT, ServerInProcess, ServerProcess
from zkv import NotFoundError, RetryPolicy

PATIENT = 3 * LIMIT
HASTY = RetryPolicy(patience=0.1, pause=0.01, longest_pause=0.1)
WORKERS = 6


def count(kv: AnyClient, worker: int, rounds: int, between: Callable[[], None]) -> None:
    """Count in every way that there is, and check every answer."""
    key = f"n/{worker}"
    for done in range(0, 6 * rounds, 6):
        assert kv.incr(key) == done + 1
        between()
        with kv.txn() as txn:
            txn.incr(key)
            txn.incr(key)
        assert txn.results == [done + 2, done + 3]
        between()
        pipe = kv.pipeline()
        pipe.incr(key)
        pipe.incr(key)
        pipe.touch("nowhere", 1)  # Takes its message with it, so that the others go once more.
        pipe.incr(key)
        *counted, failed, last = pipe.execute(return_exceptions=True)
        assert [*counted, last] == [done + 4, done + 5, done + 6]
        assert type(failed) is NotFoundError
        between()


def count_all(kv: AnyClient, rounds: int, between: Callable[[], None]) -> None:
    """Let all workers count at once; what is counted must be what is there at the end."""
    with ThreadPoolExecutor(WORKERS) as pool:
        counts = [pool.submit(count, kv, worker, rounds, between) for worker in range(WORKERS)]
        for each in counts:
            each.result()
    expected = {f"n/{worker}": 6 * rounds for worker in range(WORKERS)}
    assert kv.get_many(expected) == expected


def over_a_bad_network(kind: Kind, server: ServerInProcess, seed: int, rounds: int) -> None:
    chance = random.Random(seed)

    def fault() -> None:
        match chance.randrange(40):
            case 0:
                proxy.cut()
            case 1:
                proxy.mute()
            case 2:
                proxy.delay(chance.choice([0, 0, 0.001, 0.02]))

    with (
        Proxy(server.endpoint) as proxy,
        kind(proxy.endpoint, PATIENT, retry=HASTY) as kv,
    ):
        count_all(kv, rounds, fault)


def over_restarts(
    kind: Kind, directory: Path, endpoint: str, rounds: int, restarts: int, fsync: str
) -> None:
    """Kill the server again and again, each time after so many answers."""
    lock, answered, killing = threading.Lock(), 0, rounds * WORKERS * 3 // (restarts + 1)

    def kill() -> None:
        nonlocal answered
        with lock:
            answered += 1
            if answered % killing == 0:
                server.kill()
                server.start()

    process = ServerProcess(directory, "--endpoint", endpoint, "--fsync", fsync)
    with process as server, kind(endpoint, PATIENT, retry=HASTY) as kv:
        count_all(kv, rounds, kill)


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_lost_or_doubled_over_a_bad_network(
    kind: Kind, near: ServerInProcess, seed: int
) -> None:
    over_a_bad_network(kind, near, seed, rounds=8)


def test_nothing_is_lost_or_doubled_when_the_server_is_killed(
    kind: Kind, tmp_path: Path, free_endpoint: str
) -> None:
    over_restarts(kind, tmp_path, free_endpoint, rounds=10, restarts=2, fsync="always")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(100, 110))
def test_nothing_is_lost_or_doubled_over_a_bad_network_for_long(
    kind: Kind, near: ServerInProcess, seed: int
) -> None:
    over_a_bad_network(kind, near, seed, rounds=150)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fsync", ["always", "never"])  # A kill takes nothing from the system.
def test_nothing_is_lost_or_doubled_over_many_restarts(
    kind: Kind, tmp_path: Path, free_endpoint: str, fsync: str
) -> None:
    over_restarts(kind, tmp_path, free_endpoint, rounds=300, restarts=25, fsync=fsync)
