"""Fixtures of the client's tests."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from tests.client.blocking import AnyClient, Kind, Loop
from tests.support import FREE_PORT, ServerInProcess


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run tests that are coroutines, each in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(params=["sync", "asyncio"])
def kind(request: pytest.FixtureRequest) -> Iterator[Kind]:
    """Makes clients of either kind."""
    if request.param == "sync":
        yield Kind(None)
        return
    with Loop() as loop:
        yield Kind(loop)


@pytest.fixture
def near(tmp_path: Path) -> Iterator[ServerInProcess]:
    """A server in this process, which starts twenty times as fast as one of its own."""
    with ServerInProcess(tmp_path / "near") as server:
        yield server


@pytest.fixture
def kv(kind: Kind, near: ServerInProcess) -> Iterator[AnyClient]:
    """A client of `near`, of either kind."""
    with kind(near.endpoint) as client:
        yield client


@pytest.fixture
def free_endpoint() -> str:
    """An endpoint where nobody listens."""
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        socket.bind(FREE_PORT)
        return str(socket.get_string(zmq.LAST_ENDPOINT))


@pytest.fixture
def router() -> Iterator[zmq.Socket[bytes]]:
    """A bound socket that answers only what a test answers."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.bind(FREE_PORT)
        yield router
