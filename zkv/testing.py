"""Fixtures for pytest: a server for each test, and a client of it.

To use them, put this line into the ``conftest.py`` at the root of the tests::

    pytest_plugins = ["zkv.testing"]

- ``zkv_server``: a `zkv.Server` on a free port of 127.0.0.1, with a data directory below
  ``tmp_path``. The server and its data end with the test. ``zkv_server.stop()`` and
  ``zkv_server.start()`` restart it at the same port, with the same data.
- ``zkv_client``: a `zkv.Client` of that server.

Example::

    def test_counting(zkv_client):
        assert zkv_client.incr("visits") == 1

They are not registered as a pytest plugin when zkv is installed: pytest would then import server
and client in every run, even where no test needs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from zkv.client import Client
from zkv.embed import Server

__all__ = ["zkv_client", "zkv_server"]


@pytest.fixture
def zkv_server(tmp_path: Path) -> Iterator[Server]:
    """A server on a free port, with its data on disk and the fsync policy `never`."""
    with Server("tcp://127.0.0.1:*", data_dir=tmp_path / "zkv", fsync="never") as server:
        yield server


@pytest.fixture
def zkv_client(zkv_server: Server) -> Iterator[Client]:
    """A client of `zkv_server`."""
    with Client(zkv_server.endpoint, server_key=()) as client:  # Whatever the environment says.
        yield client
