"""Fixtures of the tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import Cli, Result, run
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


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerInProcess]:
    """One server for the rows of a table, where a row leaves nothing behind that counts."""
    with ServerInProcess(tmp_path_factory.mktemp("shared") / "data") as server:
        yield server


@pytest.fixture
def cli(server: ServerInProcess) -> Cli:
    """Runs zkv-cli against `server`, and checks the exit status: 0, or ``status``."""

    def run_here(*words: str | bytes, status: int = 0, **keywords: Any) -> Result:
        result = run("-e", server.endpoint, *words, **keywords)
        assert result.returncode == status, result.stderr
        return result

    return run_here
