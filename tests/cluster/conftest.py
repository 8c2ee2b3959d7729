"""A log in etcd for each test, in memory or a real one, and members in this process."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.servers import Cluster, MemberServer
from tests.etcd.fake import FakeEtcd
from zkv.cluster.shared_log import SharedLog
from zkv.etcd import Etcd
from zkv.etcd.client import EtcdClient

_numbers = itertools.count()


@pytest.fixture(params=["fake", "real"])
def log(request: pytest.FixtureRequest) -> Iterator[SharedLog]:
    """A log in etcd, where no store is yet."""
    if request.param == "fake":
        client: Etcd = FakeEtcd().client()
    else:
        client = EtcdClient(request.getfixturevalue("node").endpoints)
    yield SharedLog(client, f"log-{next(_numbers)}", 5.0)
    client.close()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A store, of which the members are in this process, with clocks that a test sets."""
    return Cluster(tmp_path, monkeypatch)


@pytest.fixture
def two(cluster: Cluster) -> Iterator[tuple[MemberServer, MemberServer]]:
    """A leader with one entry, and a follower that has it."""
    with cluster.member("a") as one:
        one.await_lead()
        with cluster.member("b") as other:
            assert one.call(op="PUT", key="k", value="old")["ok"]
            other.await_log(one)
            yield one, other
