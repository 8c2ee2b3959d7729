"""A server for a framework's tests, at the endpoint that adapters use if they are given none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ServerProcess, free_ports

_directory = tempfile.TemporaryDirectory()
_server = ServerProcess(Path(_directory.name) / "server")


def pytest_configure() -> None:
    _server.start()
    os.environ["ZKV_ENDPOINT"] = _server.endpoint


def pytest_unconfigure() -> None:
    _server.kill()
    _directory.cleanup()


@pytest.fixture
def endpoint() -> str:
    return _server.endpoint


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that the test kills; it comes back at the same endpoint."""
    endpoint = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    with ServerProcess(tmp_path / "fragile", "--endpoint", endpoint) as server:
        yield server
