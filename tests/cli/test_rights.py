"""The tools of a user who may not see the statistics: they say so, and show the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.cli.running import assert_fails, run
from tests.cli.terminal import Terminal
from tests.forking import run_zkv
from tests.support import ROOT, ServerInProcess
from zkv.bench.main import main as bench

WHY: Final = "user ann may not see the statistics: it needs the right monitor"


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    """Of a server that knows this process as the user ann."""
    users = tmp_path / "users.toml"
    users.write_text(f'[users.ann]\nuids = [{os.getuid()}]\nread = ["a/"]\nwrite = ["bench:"]\n')
    place = f"ipc://{tmp_path}/socket"
    with ServerInProcess(
        tmp_path / "data",
        server={"endpoints": [place], "feed": f"ipc://{tmp_path}/feed"},
        security={"users": str(users)},
    ):
        yield place


def test_info_shows_what_everybody_may_see(endpoint: str) -> None:
    done = run("-e", endpoint, "info")
    assert done.returncode == 0
    assert b"user: ann\n" in done.stdout
    assert b"stats." not in done.stdout
    assert done.stderr.decode() == f"zkv-cli: {WHY}\n"


def test_info_at_a_terminal(endpoint: str, tmp_path: Path) -> None:
    with Terminal(tmp_path, "-e", endpoint, "info") as terminal:
        assert "ann" in terminal.expect(WHY)


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_top(endpoint: str, words: tuple[str, ...]) -> None:
    assert_fails(run("-e", endpoint, "top", "--limit", "1", *words), 2, WHY)


def test_top_at_a_terminal(endpoint: str, tmp_path: Path) -> None:
    with Terminal(tmp_path, "-e", endpoint, "top") as terminal:
        terminal.expect(WHY)


def test_slow(endpoint: str) -> None:
    assert_fails(run("-e", endpoint, "slow"), 2, "DENIED: user ann may not SLOW", "monitor")


def test_the_doctor_checks_what_it_can(endpoint: str) -> None:
    done = run_zkv("doctor", "-e", endpoint, "--json", cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == ""
    found = {each["subject"]: each for each in map(json.loads, done.stdout.splitlines())}
    assert found["rights"] == {
        "level": "todo", "subject": "rights", "text": WHY,
        "advice": "most checks need it: run the doctor as another user, or: "
        "zkv user add ann --admin monitor",
    }  # fmt: skip
    others = {name: each["level"] for name, each in found.items() if name != "rights"}
    assert others == dict.fromkeys(["endpoint", "clock", "version", "feed"], "ok")


def test_the_doctor_cannot_explain_latency(endpoint: str) -> None:
    done = run_zkv("doctor", "-e", endpoint, "--latency", cwd=ROOT)
    assert done.returncode == 1
    assert done.stdout == f"todo  latency     {WHY}\n"


def test_the_bench_measures_nevertheless(endpoint: str, capfd: pytest.CaptureFixture[str]) -> None:
    quick = ["--operations", "4", "--clients", "1", "--ceiling", "0", "--keys", "2"]
    assert bench(["-e", endpoint, *quick]) == 0
    assert f"  NOTE: {WHY}\n" in capfd.readouterr().out
