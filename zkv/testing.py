"""Fixtures for pytest: servers for tests, and clients of them.

To use them, put this line into the ``conftest.py`` at the root of the tests::

    pytest_plugins = ["zkv.testing"]

- ``zkv_server``: a `zkv.Server` for the test, with data on disk.
- ``zkv_client``: a `zkv.Client` of ``zkv_server``.
- ``zkv_shared_server``: a server in memory for all tests; with pytest-xdist, one in each worker.
- ``zkv_namespace``: keys for the test in ``zkv_shared_server``, which are removed at its end.
- ``zkv_process``: a server in a process of its own, which the test may kill and start again.

Servers listen at free ports of 127.0.0.1, and end with their tests, as do their data. A server
starts in about 20 ms, a process in a third of a second, and a namespace takes no time.

Example::

    def test_counting(zkv_client):
        assert zkv_client.incr("visits") == 1

They are not registered as a pytest plugin when zkv is installed: pytest would then import server
and client in every run, even where no test needs them.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from zkv.client import Client, Namespace
from zkv.embed import Server

__all__ = [
    "ServerProcess",
    "zkv_client",
    "zkv_namespace",
    "zkv_process",
    "zkv_server",
    "zkv_shared_server",
]

LOOPBACK: Final = "tcp://127.0.0.1:*"
PORTS: Final = range(10_000, 32_000)
_numbers = itertools.count(1)


@pytest.fixture
def zkv_server(tmp_path: Path) -> Iterator[Server]:
    """A server on a free port, with its data on disk and the fsync policy `never`.

    ``stop()`` and ``start()`` restart it at the same port, with the same data.
    """
    with Server(LOOPBACK, data_dir=tmp_path / "zkv", fsync="never") as server:
        yield server


@pytest.fixture
def zkv_client(zkv_server: Server) -> Iterator[Client]:
    """A client of `zkv_server`."""
    with Client(zkv_server.endpoint, server_key=()) as client:  # Whatever the environment says.
        yield client


@pytest.fixture(scope="session")
def zkv_shared_server() -> Iterator[Server]:
    """A server in memory for all tests of this process."""
    with Server(LOOPBACK) as server:
        yield server


@pytest.fixture(scope="session")
def _zkv_shared_client(zkv_shared_server: Server) -> Iterator[Client]:
    with Client(zkv_shared_server.endpoint, server_key=()) as client:
        yield client


@pytest.fixture
def zkv_namespace(_zkv_shared_client: Client) -> Iterator[Namespace]:
    """Keys for the test alone in `zkv_shared_server`, and all that a client does with them."""
    keys = _zkv_shared_client.namespace(f"test-{next(_numbers)}/")
    yield keys
    keys.clear()


@pytest.fixture
def zkv_process(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server in a process of its own."""
    server = ServerProcess(tmp_path / "zkv-process")
    try:
        server.start()
        yield server
    finally:
        server.kill()


def _lasting_port() -> int:
    """Return a free port that stays free while the server is down.

    The system gives ports from 32,768 on to connections. A client that tries to connect to such a
    port, where nobody listens, may be given the very same one, and then occupies it.
    """
    for port in random.sample(PORTS, 100):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise RuntimeError("zkv.testing has found no free port")


class ServerProcess:
    """``zkv serve`` in a process of its own; made by the fixture ``zkv_process``.

    It has the fsync policy `never`: what it acknowledged survives `kill`, though not a failure of
    the machine.

    Args:
        directory: for its data and its log, ``log.txt``.

    Attributes:
        endpoint: where it listens, also after it has been started again.
    """

    def __init__(self, directory: Path) -> None:
        self.endpoint = f"tcp://127.0.0.1:{_lasting_port()}"
        self._directory = directory
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, unless it runs, and wait until it is ready.

        Raises:
            RuntimeError: it has ended instead; the message has the end of its log.
        """
        if self._process is not None:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        variables = {
            name: value for name, value in os.environ.items() if not name.startswith("ZKV_")
        }
        with (self._directory / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "zkv.cli.main", "serve", "--fsync", "never",
                 "--data-dir", "data", "--endpoint", self.endpoint],
                cwd=self._directory, env=variables | {"PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        assert self._process.stdout is not None  # noqa: S101  for types alone
        words = self._process.stdout.readline().split()
        if words[:1] != ["READY"]:
            self.kill()
            tail = (self._directory / "log.txt").read_text(encoding="utf-8")[-2000:]
            raise RuntimeError(f"zkv serve has not started: {tail}")
        self.endpoint = words[1]

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would."""
        self._end("kill")

    def stop(self) -> None:
        """Have it save all data and end (SIGTERM)."""
        self._end("terminate")

    def _end(self, how: str) -> None:
        process, self._process = self._process, None
        if process is not None:
            getattr(process, how)()
            process.communicate()
