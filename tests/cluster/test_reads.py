"""Who may read at a member that led, and what `reads = "confirm"` adds to the lease."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.etcd.fake import FakeClient, FakeEtcd
from tests.support import Raw, ServerInProcess, eventually
from zkv.cluster import joining
from zkv.cluster.records import Fence
from zkv.config import build
from zkv.etcd import Etcd

URL = "etcd://nowhere:2379/test"


class RealClock:
    """The time of this machine, for a fake etcd."""

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        threading.Event().wait(seconds)


class Cluster:
    """Members in this process over a fake etcd."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        self._etcd = FakeEtcd(1, clock=RealClock())
        self._clients: list[FakeClient] = []
        monkeypatch.setattr(joining, "_client", self._new_client)
        settings = build({"store": {"url": URL}})
        joining.found(joining.shared_log(settings), settings.limits)

    def _new_client(self, _settings: object, _endpoints: object) -> Etcd:
        self._clients.append(self._etcd.client())
        return self._clients[-1]

    def member(self, name: str, reads: str) -> ServerInProcess:
        """A member, not started yet."""
        return ServerInProcess(
            self._directory / name,
            store={"url": URL, "member": name, "lease": 2.0, "reads": reads},
        )

    @property
    def newest(self) -> FakeClient:
        """The client of the member that was started last."""
        return self._clients[-1]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(tmp_path, monkeypatch)


def leads(server: ServerInProcess) -> bool:
    return server.server.role.leads


def outcome(client: Raw, **fields: Any) -> Any:
    """The value, or the code of the error."""
    reply = client.call(**fields)
    return reply["value"] if reply["ok"] else reply["code"]


@pytest.mark.parametrize("reads", ["lease", "confirm"])
def test_a_member_whose_lease_is_over_answers_no_read(cluster: Cluster, reads: str) -> None:
    with cluster.member("a", reads) as one:
        etcd = cluster.newest
        eventually(lambda: leads(one), "a leader")
        with Raw(one.endpoint) as client:
            client.ok(op="PUT", key="k", value=1)
            assert outcome(client, op="GET", key="k") == 1
            etcd.partition(silent=True)
            eventually(lambda: not leads(one), "the end of the lease")
            assert outcome(client, op="GET", key="k") == "NOT_LEADER"
            assert outcome(client, op="MGET", keys=["k"] * 2000) == "NOT_LEADER"
            assert outcome(client, op="PUT", key="k", value=2) == "NOT_LEADER"
            assert outcome(client, op="GET", key="k", stale=True) == 1
            assert client.ok(op="PING")
            assert client.ok(op="INFO")["replication"]["role"] == "follower"
            etcd.heal()
            eventually(lambda: leads(one), "that it leads again")
            assert outcome(client, op="GET", key="k") == 1


@pytest.mark.parametrize(("reads", "old"), [("lease", 1), ("confirm", "READ_ONLY")])
def test_a_machine_whose_clock_stands_still(cluster: Cluster, reads: str, old: object) -> None:
    """The lease does not cover that: only a leader that has its reads confirmed notices."""
    with cluster.member("a", reads) as one, Raw(one.endpoint) as client:
        etcd = cluster.newest
        eventually(lambda: leads(one), "a leader")
        client.ok(op="PUT", key="k", value=1)
        with cluster.member("b", reads) as two, Raw(two.endpoint) as other:
            assert one.server._joining is not None
            lease = one.server._joining.lease
            stands = lease.clock()
            lease.clock = lambda: stands
            etcd.partition(silent=True)
            eventually(lambda: leads(two), "another leader")
            assert other.ok(op="PUT", key="k", value=2)
            assert outcome(client, op="GET", key="k") == old
            etcd.heal()
            if reads == "confirm":
                eventually(lambda: outcome(client, op="GET", key="k") == "NOT_LEADER", "deposed")
            else:
                eventually(lambda: not leads(one), "deposed at the next renewal")
            eventually(lambda: outcome(client, op="GET", key="k", stale=True) == 2, "the new value")


def test_each_read_is_confirmed_after_it_arrived(cluster: Cluster) -> None:
    """A leader that was deposed a moment ago, and does not know, reads nothing."""
    with cluster.member("a", "confirm") as one, Raw(one.endpoint) as client:
        eventually(lambda: leads(one), "a leader")
        client.ok(op="PUT", key="k", value=1)
        log = joining.shared_log(build({"store": {"url": URL}}))
        seen = log.look()
        assert seen.leader is not None
        assert log.take_over(seen, Fence(seen.fence.term + 1, "b", "nonce"), seen.leader)
        assert outcome(client, op="GET", key="k") in {"NOT_LEADER", "READ_ONLY"}


@pytest.fixture(autouse=True)
def no_thread_waits_for_long() -> Iterator[None]:
    yield
    names = {thread.name for thread in threading.enumerate()}
    assert not {name for name in names if name.startswith("zkv-member")}
