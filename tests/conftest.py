"""Fixtures that tests share."""

from __future__ import annotations

import compileall
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import zmq

pytest.register_assert_rewrite("tests.support")

from tests.forking import start_server  # noqa: E402
from tests.support import (  # noqa: E402  after the line above
    ROOT,
    Raw,
    ServerProcess,
    serve_in_python,
    stuck_threads,
    terminate,
)
from zkv import compiled  # noqa: E402

if TYPE_CHECKING:
    from tests.etcd.nodes import EtcdCluster

# How long an example takes says nothing on a busy machine. A failure prints how to repeat it. Each
# run has other examples.
hypothesis.settings.register_profile("zkv", deadline=None, print_blob=True, max_examples=50)
hypothesis.settings.load_profile("zkv")


def pytest_configure(config: pytest.Config) -> None:
    """Take SIGINT, as all children then do: a shell without job control starts what runs in the
    background so that nobody does, and what Ctrl-C ends would never end.

    Compile zkv once, and have no child do that: there are thousands, and it more than doubles what
    a start takes. One that has no space on its disk, as a test wants it, would leave half a file.

    So the servers are forked. What pytest makes of the tests themselves is kept, so that only the
    first run waits for it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(ROOT / "zkv", quiet=2)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = False
    gc.disable()
    ServerProcess.start_program = staticmethod(start_server)


def pytest_collection_finish() -> None:
    """Have the garbage collector look at none of the tests, which are there to the end."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """End the run although a server that failed its test never ends."""
    if stuck_threads:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


Connect = Callable[..., Raw]


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """A ZeroMQ context; a socket of it that is left open fails the test."""
    context = zmq.Context()
    yield context
    terminate(context)


@pytest.fixture(params=["compiled", "plain"])
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which half of a server in this process moves messages and runs requests."""
    if request.param == "compiled" and not compiled.COMPILED:
        pytest.skip("zkv was installed without a C compiler: there is no other half")
    if request.param == "plain":
        serve_in_python(monkeypatch)
    return str(request.param)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server of the test's own, with default settings. It must not have met a bug."""
    with ServerProcess(tmp_path / "server") as process:
        yield process
        complaints = [
            line
            for line in process.log().splitlines()
            if " ERROR " in line or " CRITICAL " in line or "Traceback" in line
        ]
        assert not complaints, complaints[:20]


@pytest.fixture
def connect(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Connect]:
    """Makes `Raw` clients that are closed at the end: ``connect(server.endpoint)``."""
    clients: list[Raw] = []

    def connect(endpoint: str, kind: int = zmq.REQ, **keywords: Any) -> Raw:
        client = Raw(endpoint, kind, context=context, **keywords)
        clients.append(client)
        return client

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def client(server: ServerProcess, connect: Connect) -> Raw:
    """A REQ client of `server`."""
    return connect(server.endpoint)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """A real etcd of one node, that tests share: each has keys of its own."""
    from tests.etcd.nodes import PROGRAM, EtcdCluster  # Late: it needs an extra.

    if PROGRAM is None:
        pytest.skip("NOT RUN: etcd is not installed here (make etcd-deps)")
    with EtcdCluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster
