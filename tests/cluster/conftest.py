"""A log in etcd for each test: of an etcd in memory, and of a real one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.etcd.fake import FakeEtcd
from tests.etcd.nodes import PROGRAM, EtcdCluster
from zkv.cluster.shared_log import SharedLog
from zkv.etcd import Etcd
from zkv.etcd.client import EtcdClient

_numbers = itertools.count()


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """A real etcd of one node, that tests share: each has a prefix of its own."""
    if PROGRAM is None:
        pytest.skip("NOT RUN: etcd is not installed here (make etcd-deps)")
    with EtcdCluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture(params=["fake", "real"])
def log(request: pytest.FixtureRequest) -> Iterator[SharedLog]:
    """A log in etcd, where no store is yet."""
    if request.param == "fake":
        client: Etcd = FakeEtcd().client()
    else:
        client = EtcdClient(request.getfixturevalue("node").endpoints)
    yield SharedLog(client, f"log-{next(_numbers)}", 5.0)
    client.close()
