"""Expiry by the clock: what steps of the system clock do to it, and what they do not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Connect
from tests.support import ServerInProcess, eventually
from zkv.clock import Clock

HOUR_MS = 3_600_000


class SystemTime:
    """The module `time`, with a system clock that can be set."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def time_ns(self) -> int:
        return time.time_ns() + self.ahead_ms * 1_000_000

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> SystemTime:
    system = SystemTime()
    monkeypatch.setattr("zkv.clock.time", system)
    return system


@pytest.mark.parametrize("step", [-HOUR_MS, HOUR_MS])
def test_steps_of_the_system_clock_move_nothing_while_the_server_runs(
    tmp_path: Path, connect: Connect, system: SystemTime, step: int
) -> None:
    with ServerInProcess(tmp_path / "data") as node:
        client = connect(node.endpoint)
        client.ok(op="PUT", key="k", value=1, ttl=600)
        client.ok(op="PUT", key="soon", value=1, ttl=0.05)

        system.ahead_ms += step

        assert 500 < client.ok(op="GET", key="k")["ttl"] <= 600
        eventually(lambda: client.call(op="GET", key="soon")["ok"] is False, "that it expires")


@pytest.mark.parametrize("step", [-HOUR_MS, HOUR_MS])
def test_what_has_expired_does_not_come_back_with_a_restart(
    tmp_path: Path, connect: Connect, system: SystemTime, step: int
) -> None:
    """A clock set forwards ends what has less time left, and one set back ends nothing later."""
    with ServerInProcess(tmp_path / "data") as node:
        client = connect(node.endpoint)
        client.ok(op="PUT", key="gone", value=1, ttl=0.001)
        client.ok(op="PUT", key="minutes", value=1, ttl=600)
        client.ok(op="PUT", key="hours", value=1, ttl=36_000)
        eventually(lambda: client.ok(op="INFO")["rev"] == 4, "that one has expired")

    system.ahead_ms += step
    with ServerInProcess(tmp_path / "data") as node:
        client = connect(node.endpoint)
        assert client.call(op="GET", key="gone")["code"] == "NOT_FOUND"
        left = client.call(op="GET", key="minutes").get("ttl", 0)
        assert 500 < left <= 600 if step < 0 else left == 0
        expected = 36_000 - max(0, step / 1000)
        assert expected - 100 < client.ok(op="GET", key="hours")["ttl"] <= expected


def test_the_clock_never_shows_less_than_it_has_shown(system: SystemTime) -> None:
    first = Clock()()
    system.ahead_ms -= HOUR_MS

    assert first <= Clock(first)() < first + 60_000
