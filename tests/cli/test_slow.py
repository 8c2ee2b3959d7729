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

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self._entries = entries

    def call(self, _op: str) -> dict[str, Any]:
        facts = {"stats": {"workers": 2}, "durability": {"fsync": "always"}, "version": "0.1.0"}
        return facts | ({"features": ["SLOW"]} if self._entries else {})

    def slow(self, _limit: int) -> list[dict[str, Any]]:
        return self._entries


def findings(*entries: dict[str, Any]) -> dict[str, Diagnosis]:
    client: Any = StubClient(list(entries))
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
    slow = [
        entry(5, lock=30_000, execute=1), entry(3, sync=20_000), entry(3, sync=70_000),
    ]  # fmt: skip
    found = list(findings(*slow))
    assert found[:3] == ["latency", "sync", "lock"]
    assert len(found) == 5
    minutes = list(findings(*slow).values())[3:]
    assert "2 requests were slow, up to 70 ms, most often for sync" in minutes[0].text
    assert "1 request was slow, up to 30 ms, most often for lock" in minutes[1].text
