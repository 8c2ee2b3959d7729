"""Fixtures of the tests of the command line."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import FREE_PORT, ServerInProcess, ServerProcess


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerInProcess]:
    """A server of the test's own, with a feed. It starts sooner than a process."""
    with ServerInProcess(tmp_path / "data", server={"feed": FREE_PORT}) as server:
        yield server


@pytest.fixture
def server_process(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that may be killed and started again."""
    with ServerProcess(tmp_path / "server") as process:
        yield process


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Child processes take SIGINT, even where the tests run in the background and do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
