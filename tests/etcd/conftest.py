"""A client for each test: of an etcd in memory, and of a real one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from tests.etcd.fake import FakeEtcd
from tests.etcd.nodes import PROGRAM, EtcdCluster
from zkv.etcd import Etcd
from zkv.etcd.client import EtcdClient

MakeClient = Callable[[], Etcd]
_numbers = itertools.count()


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """A real etcd of one node, that tests share: each has keys of its own."""
    if PROGRAM is None:
        pytest.skip("NOT RUN: etcd is not installed here (make etcd-deps)")
    with EtcdCluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


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
