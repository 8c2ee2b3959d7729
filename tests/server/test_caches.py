"""Cache prefixes, from outside: what is evicted, and how everybody hears of it."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import zmq

import zkv
from tests.broker.followers import Follower
from tests.broker.followers import Mirror as Copy
from tests.forking import run_zkv
from tests.support import Raw, ServerInProcess, ServerProcess, eventually

BOUND: Final = 20_000
CACHE: Final = f"""
[server]
feed = "tcp://127.0.0.1:*"
[log]
requests = false

[[cache]]
prefix = "c/"
max_bytes = {BOUND}
"""


def held(client: zkv.Client, prefix: str = "c/") -> int:
    """The bytes of keys and values under a prefix. All values are texts of 32 to 255 bytes."""
    return sum(len(key) + 2 + len(value) for key, value in items(client, prefix).items())


def items(client: zkv.Client, prefix: str = "") -> dict[str, Any]:
    """All that is there."""
    return {entry.key: entry.value for entry in client.scan(prefix)}


def text(chance: random.Random) -> str:
    return "x" * chance.randrange(32, 256)


@pytest.fixture(params=["lru", "ttl"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerInProcess]:
    cache: Any = [{"prefix": "c/", "max_bytes": BOUND, "policy": request.param}]
    with ServerInProcess(
        tmp_path, server={"feed": "tcp://127.0.0.1:*"}, durability={"fsync": "never"}, cache=cache
    ) as server:
        yield server


def test_a_cache_holds_its_bound_and_everybody_agrees(server: ServerInProcess) -> None:
    """Whoever writes, and however: alone, many at a time, by transactions, with a ttl."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    follower = Follower(context, server.server.feed).joined()
    mirrored = zkv.Client(server.endpoint)

    def write(seed: int) -> None:
        chance = random.Random(seed)

        def key() -> str:
            return f"c/{chance.randrange(1_000)}"

        with zkv.Client(server.endpoint) as client:
            for _ in range(40):
                with client.pipeline() as pipeline:
                    for _ in range(20):
                        pipeline.put(key(), text(chance))
                client.put_many({key(): text(chance) for _ in range(30)})
                client.put(key(), text(chance), ttl=chance.choice([0.01, 100]))
                client.get_many([key() for _ in range(50)])
                with client.txn() as txn:
                    txn.put(key(), text(chance))
                    txn.put("other/count", chance.random())
                client.delete_many([key(), key()])
                client.put(f"other/{seed}/{chance.randrange(1_000)}", text(chance))

    with Raw(server.endpoint) as raw, zkv.Client(server.endpoint) as client:
        copy = Copy(raw, follower)
        mirror = mirrored.mirror("c/")
        threads = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert held(client) <= BOUND, "it fits at all times: all writers are alike"
        assert client.info()["stats"]["evicted"] > 1_000

        def agree() -> bool:
            copy.follow(client.info()["rev"])
            return copy.values == items(client)

        eventually(agree, "what has expired is gone from the copy, too")
        assert len(items(client, "other/")) > 100
        eventually(lambda: dict(mirror) == items(client, "c/"), "the mirror has it")
        mirror.close()
    mirrored.close()
    follower.close()
    context.term()


def test_the_feed_says_why(server: ServerInProcess) -> None:
    """CHANGES does not; and what has expired has no reason."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    follower = Follower(context, server.server.feed).joined()
    with Raw(server.endpoint) as client:
        client.ok(op="PUT", key="short", value=1, ttl=0.01)
        eventually(lambda: client.ok(op="INFO")["stats"]["expired"] == 1, "it expires")
        for number in range(30):
            client.ok(op="PUT", key=f"c/{number}", value="x" * 1_000)
        info = client.ok(op="INFO")
        messages = follower.until(info["rev"])
        changes = client.ok(op="CHANGES", since=0, limit=1_000)["changes"]
        assert [list(message.change) for message in messages] == changes
        reasons = [
            (message.fields["key"], message.fields.get("reason"))
            for message in messages
            if message.fields["op"] == "EXPIRE"
        ]
        assert reasons[0] == ("short", None)
        evicted = reasons[1:]
        assert {reason for _, reason in evicted} == {"evicted"}
        assert all(key.startswith("c/") for key, _ in evicted)
        assert not any("reason" in each.fields for each in messages if each.fields["op"] == "PUT")
        assert info["stats"]["evicted"] == len(evicted) == 30 - BOUND // 1_010
        assert info["stats"]["expired"] == 1
        cache = info["stats"]["caches"].pop("c/")
        there = [key for _, op, key, _ in changes if key.startswith("c/") and op == "PUT"]
        kept = sorted(set(there) - {key for key, _ in evicted})
        assert cache == {
            "bytes": sum(len(key) + 1_003 for key in kept),
            "max_bytes": BOUND,
            "evicted": len(evicted),
        }
        assert not info["stats"]["caches"]
    follower.close()
    context.term()


def test_what_was_evicted_stays_away_after_a_crash(tmp_path: Path) -> None:
    chance = random.Random(4)
    with ServerProcess(tmp_path, config=CACHE) as server:
        with zkv.Client(server.endpoint) as client:
            for _ in range(20):
                client.put_many({f"c/{chance.randrange(1_000)}": text(chance) for _ in range(50)})
                client.put(f"other/{chance.randrange(1_000)}", text(chance))
            assert held(client) <= BOUND
            before, rev = items(client), client.info()["rev"]
        server.kill()
        server.start()
        with zkv.Client(server.endpoint) as client:
            assert items(client) == before
            assert client.info()["rev"] == rev
            client.put_many({f"c/{number}": "x" * 100 for number in range(300)})
            assert held(client) <= BOUND
            assert len(items(client, "other/")) == len([k for k in before if k[0] == "o"])
    assert run_zkv("check", str(server.data_dir), cwd=tmp_path).returncode == 0


def test_a_crash_in_the_middle_of_writes(tmp_path: Path) -> None:
    """Between a write and its evictions, too: the bound holds again, and the log has the store."""

    def write(endpoint: str, seed: int) -> None:
        chance = random.Random(seed)
        with (
            contextlib.suppress(zkv.ClientError),
            zkv.Client(endpoint, timeout=0.5) as client,
        ):
            while True:
                client.put_many({f"c/{chance.randrange(1_000)}": text(chance) for _ in range(80)})

    with ServerProcess(tmp_path, config=CACHE) as server:
        for _ in range(3):
            threads = [
                threading.Thread(target=write, args=(server.endpoint, seed)) for seed in range(2)
            ]
            with zkv.Client(server.endpoint) as client:
                rev = client.info()["rev"]
                for thread in threads:
                    thread.start()
                eventually(lambda: client.info()["rev"] > rev + 100, "many writes")  # noqa: B023
            server.kill()
            for thread in threads:
                thread.join()
            server.start()
            with zkv.Client(server.endpoint) as client, Raw(server.endpoint) as raw:
                eventually(lambda: held(client) <= BOUND, "it fits again")
                copy: dict[str, Any] = {}
                reply = raw.ok(op="CHANGES", since=0, limit=10**6)
                assert reply["next"] == reply["rev"], "it is one page"
                for _, op, key, value in reply["changes"]:
                    copy.pop(key, None) if op == "EXPIRE" else copy.update({key: value})
                assert copy == items(client)


def test_a_cache_that_is_declared_later_is_evicted_down_to_its_bound(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, config="[log]\nrequests = false\n") as server:
        with zkv.Client(server.endpoint) as client:
            client.put_many({f"c/{number:04}": "x" * 100 for number in range(2_000)})
            client.put("d", 1)
        server.stop()
    with (
        ServerProcess(tmp_path, config=CACHE) as server,
        zkv.Client(server.endpoint) as client,
    ):
        eventually(lambda: held(client) <= BOUND, "the rest is evicted")
        assert held(client) > BOUND * 0.9
        assert client.get("d") == 1


def test_large_requests_are_paid_for_before_they_are_answered(tmp_path: Path) -> None:
    """By the lanes of workers, and by the commands; so nobody is refused who writes again."""
    with (
        ServerProcess(tmp_path, config=CACHE) as server,
        zkv.Client(server.endpoint) as client,
    ):
        for round_ in range(4):
            items = {f"c/{round_}/{number}": "x" * 32 for number in range(3_000)}
            client.put_many(items, ttl=None if round_ % 2 else 1_000)
            assert held(client) <= BOUND
        assert client.info()["stats"]["evicted"] > 11_000


def test_large_values_among_small_ones(tmp_path: Path) -> None:
    """Each has to push out hundreds: the bound is exceeded, by no more than is allowed.

    That is 5 %, and what the front takes at a time. Who is refused meanwhile tries again.
    """
    most, batch = 1_000_000, 256 * 1024 + 20_000
    config = CACHE.replace(str(BOUND), str(most))
    refused = 0

    def write(endpoint: str, seed: int) -> None:
        nonlocal refused
        with zkv.Client(endpoint) as client:
            for number in range(150):
                while True:
                    try:
                        client.put(f"c/{seed}/{number}", bytes(20_000))
                        break
                    except zkv.FullError:
                        refused += 1

    with ServerProcess(tmp_path, config=config) as server, zkv.Client(server.endpoint) as client:
        for number in range(0, 60_000, 1_000):
            client.put_many({f"c/{each}": each for each in range(number, number + 1_000)})
        threads = [
            threading.Thread(target=write, args=(server.endpoint, seed)) for seed in range(3)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            there = client.info()["stats"]["caches"]["c/"]["bytes"]
            assert there <= most * 1.05 + batch
        eventually(lambda: client.info()["stats"]["caches"]["c/"]["bytes"] <= most, "it fits again")
        assert client.info()["stats"]["evicted"] > 60_000


def test_a_program_declares_a_cache() -> None:
    cache = {"prefix": "c/", "max_bytes": BOUND}
    with zkv.Server(cache=[cache]) as server, zkv.Client(server.endpoint) as client:
        client.put_many({f"c/{number}": "x" * 100 for number in range(1_000)})
        eventually(lambda: held(client) <= BOUND, "the rest is evicted")


def test_cached_results_are_bounded() -> None:
    """The decorated function tells which prefix to declare; an evicted lock does not matter."""
    cache = {"prefix": "cache/", "max_bytes": 5_000, "policy": "ttl"}
    with zkv.Server(cache=[cache]) as server, zkv.Client(server.endpoint) as client:

        @client.cache(ttl=1_000)
        def twice(number: int) -> str:
            if number % 5 == 0:  # Its lock expires before anything else, and is evicted.
                client.put_many({f"cache/{each}": "x" * 1_000 for each in range(6)}, ttl=1_000)
            return "x" * 100 + str(2 * number)

        @client.namespace("app/").cache()
        def other() -> int:
            return 1

        assert twice.prefix.startswith("cache/")
        assert twice.prefix.endswith("twice/")
        assert other.prefix.startswith("app/cache/")
        assert [twice(number) for number in range(20)] == [
            "x" * 100 + str(2 * number) for number in range(20)
        ]
        assert client.info()["stats"]["evicted"] > 0
        assert held(client, "cache/") <= 5_000
