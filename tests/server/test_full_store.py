"""A server at its memory limit: what is refused, what goes on, and that it survives all of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conftest import Connect
from tests.support import FREE_PORT, LIMIT, Message, ServerProcess, pack
from zkv import Client

MIB = 2**20
CONFIG = f"""
[server]
feed = "{FREE_PORT}"
[limits]
max_memory = {4 * MIB}
history_bytes = {MIB // 4}
"""


def memory(client: Client) -> Message:
    found = client.info()["stats"]["memory"]
    assert isinstance(found, dict)
    return found


def recount(client: Client) -> dict[str, int]:
    """What the parts of the memory must be, from all entries."""
    items = dict(client.items())
    return {
        "keys": sum(len(key.encode()) for key in items),
        "values": sum(len(pack(value)) for value in items.values()),
        "index": 56 * len(items),
    }


@pytest.mark.parametrize("size", [20_000, 60_000])
def test_a_full_server_serves(tmp_path: Path, connect: Connect, size: int) -> None:
    """By simple requests, which the front runs."""
    with ServerProcess(tmp_path, config=CONFIG) as server:
        raw = connect(server.endpoint)
        more = range(4 * MIB // size)
        replies = (raw.call(op="PUT", key=f"k{number}", value=bytes(size)) for number in more)
        assert next(reply for reply in replies if not reply["ok"])["code"] == "FULL"
        with Client(server.endpoint) as client:
            found = memory(client)
            assert found["used"] <= found["limit"] == 4 * MIB
            assert found["used"] > 4 * MIB - size - MIB // 4 - 2 * size
            assert {part: found[part] for part in ("keys", "values", "index")} == recount(client)
            client.put("k0", bytes(size))
            client.delete("k0")
            client.delete("k1")
            client.put("new", bytes(size))


def test_a_mirror_is_the_store_whatever_is_refused_and_whoever_is_killed(
    tmp_path: Path, connect: Connect
) -> None:
    rng = random.Random(7)
    refused = 0
    with ServerProcess(tmp_path, config=CONFIG) as server:
        with Client(server.endpoint) as client, client.mirror("") as mirror:
            raw = connect(server.endpoint)
            for _ in range(800):
                key, size = f"k{rng.randrange(400)}", rng.choice([10, 1_000, 30_000, 90_000])
                if rng.random() < 0.1:
                    raw.call(op="DELETE", key=key)
                else:
                    reply = raw.call(op="PUT", key=key, value=bytes(size))
                    refused += reply.get("code") == "FULL"
            assert 0 < refused < 800
            mirror.wait_for(raw.ok(op="INFO")["rev"], LIMIT)
            before, counted = dict(client.items()), memory(client)
            assert dict(mirror) == before
        server.kill()
        server.start()
        with Client(server.endpoint) as client:
            assert dict(client.items()) == before
            found = memory(client)
            for part, size in recount(client).items():
                assert found[part] == counted[part] == size
