"""Whole members over an etcd that loses, delays, repeats and reorders answers."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.servers import BEYOND, Cluster, MemberServer, await_look
from tests.etcd.fake import NONE, Faults
from tests.support import eventually

FAULTS = Faults(lost=0.05, unanswered=0.08, late=0.08, delayed=0.05, delay=2.0)
CHANGES_OF_LEADER = 4
COUNTS = 15
"""Between two changes of leader."""


def counted(members: list[MemberServer], seq: int) -> int:
    """Count once, at whoever leads, and again until that is answered; the value."""
    replies: list[Any] = []

    def is_answered() -> bool:
        for member in members:
            reply = member.call(op="INCR", key="n", session="s", seq=seq)
            if reply["ok"]:
                replies.append(reply["value"])
                return True
            assert reply["code"] in {"NOT_LEADER", "READ_ONLY"}, reply
        return False

    eventually(is_answered, f"count {seq}")
    return int(replies[0])


def entries(member: MemberServer) -> list[Any]:
    """What a member has, with revisions."""
    reply = member.call(op="SCAN", prefix="", stale=True)
    assert reply["ok"], reply
    return [reply["rev"], reply["items"]]


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    cluster, chance = Cluster(tmp_path, monkeypatch), random.Random(seed)
    with contextlib.ExitStack() as stack:
        members = [stack.enter_context(cluster.member(name)) for name in "abc"]
        members[0].await_lead()
        for member in members:
            member.etcd._random, member.etcd.faults = random.Random(f"{seed}{member.name}"), FAULTS
        count = 0
        for _ in range(CHANGES_OF_LEADER):
            for _ in range(COUNTS):
                count += 1
                assert counted(members, count) == count
            change_leader(members, chance)
        for member in members:
            member.etcd.faults = NONE
        cluster.fake.settle()
        assert counted(members, count + 1) == count + 1
        head = cluster.log.look().head
        eventually(lambda: all(each.lsn >= head.lsn for each in members), "the log at all members")
        assert entries(members[0]) == entries(members[1]) == entries(members[2])
        assert sum(member.leads for member in members) == 1


def change_leader(members: list[MemberServer], chance: random.Random) -> None:
    """Part the leader from etcd until another one leads."""
    (leader,) = [each for each in members if each.leads]
    follower = chance.choice([each for each in members if each is not leader])
    leader.etcd.partition(silent=chance.random() < 0.5)
    await_look(follower)
    leader.clock.now += BEYOND
    follower.clock.now += BEYOND
    eventually(lambda: any(each.leads for each in members), "another leader")
    leader.etcd.heal()
