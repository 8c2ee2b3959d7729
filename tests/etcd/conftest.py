"""A client for each test: of an etcd in memory, and of a real one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from tests.etcd.fake import FakeEtcd
from tests.etcd.nodes import EtcdCluster
from zkv.etcd import Etcd
from zkv.etcd.client import EtcdClient

MakeClient = Callable[[], Etcd]
_numbers = itertools.count()


@pytest.fixture(params=["fake", "real"])
def connect(request: pytest.FixtureRequest) -> Iterator[MakeClient]:
    """Makes clients of one etcd."""
    clients: list[Etcd] = []
    if request.param == "fake":
        make: MakeClient = FakeEtcd().client
    else:
        node: EtcdCluster = request.getfixturevalue("node")

        def make() -> Etcd:
            return EtcdClient(node.endpoints)

    def connect() -> Etcd:
        clients.append(make())
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def etcd(connect: MakeClient) -> Etcd:
    """A client."""
    return connect()


@pytest.fixture
def prefix() -> bytes:
    """The beginning of the test's keys."""
    return b"test-%d/" % next(_numbers)
