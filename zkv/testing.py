"""Fixtures for pytest: a server for one test, and a client connected to it.

This line in the ``conftest.py`` at the root of the tests makes them available::

    pytest_plugins = ["zkv.testing"]

- ``zkv_server``: a `zkv.Server` on a free port of 127.0.0.1, with a data directory below
  ``tmp_path``. It ends with the test. ``zkv_server.stop()`` and ``zkv_server.start()`` restart it
  on the same port, with its data.
- ``zkv_client``: a `zkv.Client` connected to that server.

Example::

    def test_counting(zkv_client):
        assert zkv_client.incr("visits") == 1

They are not registered with pytest wherever zkv is installed: then every test run would import the
server and the client, even those that need neither.
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
    """A server on a free port, with its data on disk; writes do not wait for the disk (`never`)."""
    with Server("tcp://127.0.0.1:*", data_dir=tmp_path / "zkv", fsync="never") as server:
        yield server


@pytest.fixture
def zkv_client(zkv_server: Server) -> Iterator[Client]:
    """A client connected to `zkv_server`."""
    with Client(zkv_server.endpoint) as client:
        yield client
