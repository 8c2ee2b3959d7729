"""Who may read at a member that led, and what `reads = "confirm"` adds to the lease."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.servers import BEYOND, Cluster, take_over
from tests.support import Raw, eventually
from zkv.cluster.records import Fence


def outcome(client: Raw, **fields: Any) -> Any:
    """The value, or the code of the error."""
    reply = client.call(**fields)
    return reply["value"] if reply["ok"] else reply["code"]


@pytest.mark.parametrize("reads", ["lease", "confirm"])
def test_a_member_whose_lease_is_over_answers_no_read(cluster: Cluster, reads: str) -> None:
    with cluster.member("a", store={"reads": reads}) as one, Raw(one.endpoint) as client:
        one.await_lead()
        client.ok(op="PUT", key="k", value=1)
        assert outcome(client, op="GET", key="k") == 1
        one.etcd.partition(silent=True)
        one.clock.now += BEYOND
        assert outcome(client, op="GET", key="k") == "NOT_LEADER"
        assert outcome(client, op="MGET", keys=["k"] * 2000) == "NOT_LEADER"
        assert outcome(client, op="PUT", key="k", value=2) == "NOT_LEADER"
        assert outcome(client, op="GET", key="k", stale=True) == 1
        assert client.ok(op="PING")
        assert client.ok(op="INFO")["replication"]["role"] == "follower"
        one.etcd.heal()
        one.await_lead()
        assert outcome(client, op="GET", key="k") == 1


@pytest.mark.parametrize(("reads", "old"), [("lease", 1), ("confirm", "READ_ONLY")])
def test_a_machine_whose_clock_stands_still(cluster: Cluster, reads: str, old: object) -> None:
    """The lease does not cover that: only a leader that has its reads confirmed notices."""
    with cluster.member("a", store={"reads": reads}) as one, Raw(one.endpoint) as client:
        one.await_lead()
        client.ok(op="PUT", key="k", value=1)
        with cluster.member("b", store={"reads": reads}) as two, Raw(two.endpoint) as other:
            two.await_log(one)
            one.etcd.partition(silent=True)
            take_over(two)
            assert other.ok(op="PUT", key="k", value=2)
            assert outcome(client, op="GET", key="k") == old
            one.etcd.heal()
            if reads == "confirm":
                eventually(lambda: outcome(client, op="GET", key="k") == "NOT_LEADER", "deposed")
            else:
                eventually(lambda: not one.leads, "deposed at the next renewal")
            eventually(lambda: outcome(client, op="GET", key="k", stale=True) == 2, "the new value")


def test_each_read_is_confirmed_after_it_arrived(cluster: Cluster) -> None:
    """A leader that was deposed a moment ago, and does not know, reads nothing."""
    with cluster.member("a", store={"reads": "confirm"}) as one, Raw(one.endpoint) as client:
        one.await_lead()
        client.ok(op="PUT", key="k", value=1)
        seen = cluster.log.look()
        assert seen.leader is not None
        fence = Fence(seen.fence.term + 1, "b", "nonce")
        assert cluster.log.take_over(seen, fence, seen.leader)
        assert outcome(client, op="GET", key="k") in {"NOT_LEADER", "READ_ONLY"}


@pytest.fixture(autouse=True)
def no_thread_waits_for_long() -> Iterator[None]:
    yield
    names = {thread.name for thread in threading.enumerate()}
    assert not {name for name in names if name.startswith("zkv-member")}
