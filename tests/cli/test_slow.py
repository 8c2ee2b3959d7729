"""What operators see of slow requests: `zkv-cli slow` and `zkv doctor --latency`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import run
from tests.forking import run_zkv
from tests.support import ROOT, ServerInProcess
from zkv.cli import latency
from zkv.cli.diagnosis import Diagnosis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerInProcess]:
    """One to which every request is slow."""
    with ServerInProcess(tmp_path / "data", metrics={"slow": 1e-9}) as server:
        yield server


@pytest.fixture
def cli(server: ServerInProcess) -> Callable[..., str]:
    """Runs a command against it, and returns what it prints."""

    def command(*words: str) -> str:
        done = run("-e", server.endpoint, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    return command


def test_a_line_for_each_request(cli: Callable[..., str]) -> None:
    cli("put", "a key", "1")
    cli("mput", "a", "1", "b", "2")
    cli("count")
    count, mput, put = (line.split("\t") for line in cli("slow").splitlines())
    assert put[1:3] == ["PUT", "a key"]
    assert "sync " in put[3]
    assert put[3].split()[1] == "ms:"
    assert put[0].endswith("Z")
    assert mput[1:3] == ["MPUT", "2 keys"]
    assert count[1:3] == ["COUNT", "-"]
    assert len(cli("slow", "--limit", "2").splitlines()) == 2
    assert len(json.loads(cli("slow", "-o", "json", "--reset"))["entries"]) == 5
    assert [line.split("\t")[1] for line in cli("slow").splitlines()] == ["SLOW"]


def test_none_is_slow(tmp_path: Path) -> None:
    with ServerInProcess(tmp_path / "data", metrics={"slow": 0}) as server:
        done = run("-e", server.endpoint, "slow")
        assert (done.returncode, done.stdout) == (0, b"")
        assert b"metrics.slow" in done.stderr
        doctor = run_zkv("doctor", "-e", server.endpoint, "--latency", cwd=ROOT)
        assert doctor.returncode == 0
        assert "no request has been slow" in doctor.stdout


def test_the_doctor_says_that_requests_were_slow(
    server: ServerInProcess, cli: Callable[..., str]
) -> None:
    cli("put", "k", "1")
    done = run_zkv("doctor", "-e", server.endpoint, cwd=ROOT)
    assert " slow requests within the last hour; the slowest took " in done.stdout
    assert "zkv doctor --latency says why" in done.stdout


def test_the_doctor_concludes(server: ServerInProcess, cli: Callable[..., str]) -> None:
    cli("put", "k", "1")
    done = run_zkv("doctor", "-e", server.endpoint, "--latency", "--json", cwd=ROOT)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0]["subject"] == "latency"
    assert {line["subject"] for line in lines} & {"sync", "execute", "queue"}
    assert done.returncode == (1 if any(line["level"] == "todo" for line in lines) else 0)


def entry(minute: int = 0, **changes: Any) -> dict[str, Any]:
    """An entry of the slow log; its time in us is due to the parts given in ``changes``."""
    timing = {part: changes.pop(part, 0) for part in ("queue", "lock", "execute", "sync")}
    fields = {"op": "PUT", "key": "k", "beside": [], "batch": 1, "trace": None, "user": None}
    return {
        **fields, "time": 60_000 * minute, "timing": timing | {"total": sum(timing.values())},
        **changes,
    }  # fmt: skip


class StubClient:
    """Has these slow requests."""

    def __init__(self, entries: list[dict[str, Any]], minutes: list[dict[str, Any]]) -> None:
        self._entries = entries
        self._minutes = minutes

    def call(self, op: str, **_: int) -> dict[str, Any]:
        if op == "SLOW":
            return {"entries": self._entries, "minutes": self._minutes}
        durability = {"fsync": "always", "data_dir": "var"}
        facts = {"stats": {"workers": 2}, "durability": durability, "version": "0.1.0"}
        return facts | ({"features": ["SLOW"]} if self._entries else {})


def findings(*entries: dict[str, Any], minutes: Any = ()) -> dict[str, Diagnosis]:
    client: Any = StubClient(list(entries), list(minutes))
    return {finding.subject: finding for finding in latency.examine(client)}


@pytest.mark.parametrize(
    ("slow", "subject", "text", "advice"),
    [
        (entry(sync=90_000), "sync", "1 request waited, up to 90 ms, for the disk", "quicker one"),
        (entry(sync=90_000, beside=["snapshot"]), "sync", "beside snapshot (1)", "snapshot_int"),
        (entry(lock=50_000), "lock", "for the lock of the store", "thousands of keys"),
        (entry(queue=50_000), "queue", "a worker thread; there are 2", "server.workers"),
        (entry(execute=50_000, op="MPUT", keys=5_000), "execute", "because of their size", "less"),
        (entry(execute=50_000, beside=["collector"]), "execute", "often, beside collector", "load"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_each_part_has_a_conclusion(
    slow: dict[str, Any], subject: str, text: str, advice: str
) -> None:
    found = findings(slow)[subject]
    assert text in found.text
    assert advice in found.advice


def test_an_older_server_has_no_slow_log() -> None:
    """It has no features in INFO, and would refuse SLOW."""
    assert findings()["latency"].text == "the server, zkv 0.1.0, has no slow log"


def test_the_most_frequent_cause_comes_first_and_minutes_are_told() -> None:
    slow = [entry(5, lock=30_000), entry(3, sync=20_000), entry(3, sync=70_000, key="worst")]
    minutes = [
        {**slow[0], "time": 300_000, "count": 1, "beside": {}, "slowest": slow[0]},
        {**slow[2], "time": 180_000, "count": 20, "beside": {"snapshot": 2, "segment": 1},
         "slowest": slow[2]},
    ]  # fmt: skip
    found = list(findings(*slow, minutes=minutes).values())
    assert [each.subject for each in found[:3]] == ["latency", "sync", "lock"]
    third, fifth = (each.text for each in found[3:])
    assert "20 slow, 100% of their time for sync, beside snapshot (2); the slowest" in third
    assert "took 70 ms, most of it for sync: PUT 'worst' at" in third
    assert "1 slow, 100% of their time for lock; the slowest took 30 ms" in fifth


def test_the_minutes_with_the_slowest_requests_are_told() -> None:
    """There may be 1,440 of them, and any may be the one that somebody asks about."""
    slow = [entry(number, sync=number) for number in range(1, 30)]
    minutes = [{**each, "count": 1, "beside": {}, "slowest": each} for each in slow]
    found = list(findings(*slow, minutes=minutes[::-1]).values())[2:]
    assert len(found) == latency.MINUTES
    assert [text.text.count("29 µs") for text in found] == [0] * 9 + [1]
