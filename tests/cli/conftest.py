"""Fixtures of the tests of the command line."""

from __future__ import annotations

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
