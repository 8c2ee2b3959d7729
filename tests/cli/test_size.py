"""``zkv size``: its estimate is what a real server then counts, takes and writes."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pytest
import zmq

from tests.conftest import Connect
from tests.forking import run_zkv
from tests.support import ROOT, Raw, ServerProcess, pack, unpack
from zkv import config
from zkv.cli.doctor import FULL

Estimate = dict[str, dict[str, int]]

IN_FLIGHT: Final = 100
CONFIG: Final = """
[limits]
session_window = 16
history = {history}
[durability]
fsync = "never"
segment_bytes = {segment}
snapshot_interval = 1e6
[log]
requests = false
"""


def estimate(*words: str, cwd: Path = ROOT) -> Estimate:
    done = run_zkv("size", "--json", *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    found: Estimate = json.loads(done.stdout)
    return found


def fails(*words: str) -> str:
    done = run_zkv("size", *words, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def send_all(client: Raw, requests: Iterable[dict[str, Any]]) -> None:
    """Send requests with many in flight; all must succeed."""
    waiting = 0
    for request in requests:
        if waiting == IN_FLIGHT:
            assert unpack(client.receive())["ok"]
            waiting -= 1
        client.send(pack(request))
        waiting += 1
    for _ in range(waiting):
        assert unpack(client.receive())["ok"]


def puts(
    keys: int, key: int, value: int, expiring: int = 0, sessions: int = 0
) -> Iterable[dict[str, Any]]:
    """A PUT for each key; the value is bin with a head of two or three bytes."""
    packed = bytes(value - (2 if value < 258 else 3))
    for number in range(keys):
        request: dict[str, Any] = {"op": "PUT", "key": f"{number:0{key}}", "value": packed}
        if number < expiring:
            request["ttl"] = 100_000
        if sessions:
            request["session"] = f"{number % sessions:032}"
            request["seq"] = number // sessions + 1
        yield request


STORES: Final = {
    "plain": {"keys": 4_000, "key": 20, "value": 100},
    "larger": {"keys": 2_000, "key": 7, "value": 1_000, "connections": 20},
    "expiring": {"keys": 3_000, "key": 12, "value": 40, "expiring": 1_000},
    "exactly once": {"keys": 4_000, "key": 30, "value": 50, "sessions": 200},
    "followed": {"keys": 1_000, "key": 20, "value": 10, "connections": 5, "followers": 10},
    "large": {"keys": 300_000, "key": 20, "value": 100},
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "large")) for name in STORES],
)
def test_a_server_is_as_large_as_estimated(name: str, tmp_path: Path, connect: Connect) -> None:
    store = STORES[name]
    settings = CONFIG.format(history=2_500, segment=2**26)
    (tmp_path / "zkv.toml").write_text(settings)
    words = [word for option, number in store.items() for word in (f"--{option}", str(number))]
    if "connections" not in store:
        words += ["--connections", "1"]
    expected = estimate(*words, "--changes", str(store["keys"]), "--config", "zkv.toml",
                        cwd=tmp_path)  # fmt: skip
    others = [store.pop(what, 0) for what in ("connections", "followers")]

    with ServerProcess(tmp_path / "server", config=settings) as server:
        client = connect(server.endpoint, zmq.DEALER)
        for _ in range(others[0] - 1):
            connect(server.endpoint).ok(op="PING")
        feed = client.ok(op="INFO")["feed"]
        for _ in range(others[1]):
            follower = connect(feed, zmq.SUB)
            follower.socket.subscribe(b"")
            follower.receive_frames()
        send_all(client, puts(**store))
        client.ok(op="SNAPSHOT")
        info = client.ok(op="INFO")
        stats, durability = info["stats"], info["durability"]
        on_disk = sum(path.stat().st_size for path in server.data_dir.rglob("*.wal"))

    for part in ("keys", "values", "index", "sessions"):
        assert stats["memory"][part] == expected["memory"][part], part
    for part in ("history", "used"):
        assert stats["memory"][part] == pytest.approx(expected["memory"][part], rel=0.01), part
    assert durability["snapshot_bytes"] == pytest.approx(
        expected["disk"]["snapshots"] / 2, rel=0.01
    )
    assert on_disk <= expected["disk"]["log"]
    process = stats["process"]
    assert 0.7 < process["rss"] / expected["process"]["usual"] < 1.3
    assert process["rss"] <= expected["process"]["allow"]
    assert expected["files"]["open"] - 40 <= process["open_files"] <= expected["files"]["open"]


@pytest.mark.slow
def test_what_a_snapshot_holds_is_allowed_for(tmp_path: Path, connect: Connect) -> None:
    """All entries are overwritten, in no order, while a snapshot is written."""
    keys, at_once = 1_000_000, 500
    expected = estimate("--keys", str(keys), "--writes", str(keys))["process"]["allow"]
    without = estimate("--keys", str(keys))["process"]["allow"]
    settings = CONFIG.format(history=100_000, segment=2**26)
    order = random.Random(1).sample(range(keys), keys)
    bodies = [
        {"op": "MPUT", "items": {f"{key:020}": bytes(98) for key in order[at : at + at_once]}}
        for at in range(0, keys, at_once)
    ]
    with ServerProcess(tmp_path / "server", config=settings) as server:
        client, other = connect(server.endpoint, zmq.DEALER), connect(server.endpoint)
        send_all(client, bodies)
        other.send(pack({"op": "SNAPSHOT"}))
        again = itertools.cycle(bodies)
        while not other.socket.poll(0):
            send_all(client, itertools.islice(again, 50))
        status = Path(f"/proc/{server.process.pid}/status").read_text()
    most = 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
    assert most <= expected
    assert most > 0.8 * without, "else nothing was held"


def test_the_log_stays_within_its_bound(tmp_path: Path, connect: Connect) -> None:
    """While there are few writes, a snapshot comes once the log has a tenth of its size."""
    settings = CONFIG.format(history=100, segment=2**14)
    (tmp_path / "zkv.toml").write_text(settings)
    words = ["--keys", "4000", "--writes", "0", "--config", "zkv.toml"]
    expected = estimate(*words, cwd=tmp_path)["disk"]
    longest, record = 0, 177
    with ServerProcess(tmp_path / "server", config=settings) as server:
        client = connect(server.endpoint, zmq.DEALER)
        send_all(client, puts(4_000, 20, 100))
        for round in range(6):
            client.ok(op="SNAPSHOT")
            send_all(client, puts(expected["snapshots"] // 2 // 10 // record, 20, 100))
            logged = sum(path.stat().st_size for path in server.data_dir.rglob("*.wal"))
            longest = max(longest, logged if round > 1 else 0)
    group = IN_FLIGHT * record  # is written as a whole, even if little of the segment was left
    assert 0.8 * expected["log"] < longest <= expected["log"] + group


def test_the_limits_that_are_advised_hold_it() -> None:
    words = ["--keys", "1e5", "--value", "1000", "--sessions", "200000", "--connections", "9000"]
    found = estimate(*words)
    limits = found["limits"]
    settings = config.build({"limits": limits})
    fitted, _ = config.fit_memory(settings.limits)

    assert found["memory"]["used"] <= FULL * limits["max_memory"]
    assert found["memory"]["sessions"] - 512 * 200_000 <= FULL * 0.75 * fitted.session_bytes
    assert limits["max_sessions"] >= 200_000
    assert found["files"]["limit"] * FULL >= found["files"]["open"] > 9_000


def test_in_a_container_of_this_size_the_limit_is_at_least_as_large(tmp_path: Path) -> None:
    found = estimate("--keys", "1e6")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(str(found["process"]["allow"]))
    fitted, _ = config.fit_memory(config.build({"limits": {"max_memory": -1}}).limits, tmp_path)

    assert 0 <= fitted.max_memory - found["limits"]["max_memory"] < 2**23


def test_the_history_is_full_unless_told(tmp_path: Path) -> None:
    full, few = estimate("--keys", "1"), estimate("--keys", "1", "--changes", "1000")
    assert full["memory"]["history"] == 100 * few["memory"]["history"]
    by_bytes = estimate("--keys", "1", "--value", "100000")["memory"]["history"]
    assert 0.99 * 2**26 < by_bytes < 1.01 * 2**26


def test_lines_for_people_end_with_settings() -> None:
    lines = run_zkv("size", "--keys", "1e6", cwd=ROOT).stdout
    facts, _, settings = lines.partition("\n\n")
    assert "memory   used        187.3 MiB  " in facts
    (limit,) = [line for line in settings.splitlines() if line.startswith("max_memory = ")]
    assert (
        int(limit.removeprefix("max_memory = "))
        == estimate("--keys", "1e6")["limits"]["max_memory"]
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keys", "x"], "argument --keys: 'x' is not a whole number from 0 to 1,000,000,000,000"),
        (["--keys", "1.5"], "argument --keys: '1.5' is not a whole number"),
        (["--keys", "-1"], "argument --keys: '-1' is not a whole number"),
        (["--keys", "1e13"], "argument --keys: '1e13' is not a whole number"),
        (["--keys", "nan"], "argument --keys: 'nan' is not a whole number"),
        ([], "the following arguments are required: --keys"),
        (
            ["--keys", "1", "--key", "1025"],
            "--key: 1025 is not from 0 to 1024, limits.max_key_bytes",
        ),
        (["--keys", "1", "--value", "0"], "--value: 0 is not from 1 to 16777216, limits.max_value"),
        (
            ["--keys", "1", "--expiring", "2"],
            "--expiring: 2 is not from 0 to 1, the number of keys",
        ),
        (["--keys", "1", "--config", "no.toml"], "no.toml"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str) -> None:
    assert said in fails(*words)


def test_an_empty_store_can_be_asked_for() -> None:
    found = estimate("--keys", "0", "--changes", "0")
    assert found["memory"]["used"] == 0
    assert found["limits"]["max_memory"] == 2**20
