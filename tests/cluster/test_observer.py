"""What a member sees of etcd, and what it makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cluster.logs import new_log, new_store
from tests.etcd.fake import FakeClient
from tests.support import eventually
from zkv.cluster import observer as module
from zkv.cluster.observer import EtcdSeen, Observer, quota_of
from zkv.etcd import NodeStatus
from zkv.etcd.errors import UnknownOutcomeError


@contextmanager
def observing(judged: list[EtcdSeen]) -> Iterator[tuple[Observer, FakeClient]]:
    etcd, _ = new_store()
    log = new_log(etcd)
    assert isinstance(log.etcd, FakeClient)
    observer = Observer(log, "a", lambda: 0, lambda: 0.0, 1, judged.append)
    observer.start()
    yield observer, log.etcd
    observer.end()
    observer.join()


def test_an_etcd_that_does_not_answer_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """So what was decided last goes on: an etcd that was full has not got room by its silence."""
    monkeypatch.setattr(module, "OBSERVE_SECONDS", 0.001)
    judged: list[EtcdSeen] = []
    with observing(judged) as (observer, client):
        eventually(lambda: judged, "it is judged")
        client.partition()
        eventually(lambda: not observer.seen.answering, "it is silent")
        count, seen = len(judged), observer.seen
        eventually(lambda: observer.seen is not seen, "it has looked again")
        assert len(judged) == count
        client.heal()
        eventually(lambda: len(judged) > count, "it is judged again")


def test_what_is_seen_of_nodes_that_answer() -> None:
    silent = NodeStatus("a:2379", UnknownOutcomeError("no answer"))
    assert EtcdSeen([silent], ["NOSPACE"]).revision == 0
    seen = EtcdSeen([silent, NodeStatus("b", revision=8), NodeStatus("c", revision=7)], ["CORRUPT"])
    assert (seen.revision, seen.rings) == (8, False)
    assert EtcdSeen([], ["NOSPACE"]).rings


@pytest.mark.parametrize(
    ("told", "expected"), [([], 9), ([0, 0], 9), ([10, 0], 9), ([8, 0], 8), ([8, 7], 7)]
)
def test_the_least_quota_counts(told: list[int], expected: int) -> None:
    assert quota_of([NodeStatus("a", db_quota=each) for each in told], 9) == expected
