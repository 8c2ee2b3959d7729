"""Writes are refused before etcd is full, and what to do is said when it is."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.stores import (
    CONFIG,
    LONG,
    StoreInEtcd,
    StoreMember,
    await_leader,
    fill,
    put,
)
from tests.etcd.nodes import needs_etcd
from tests.replication.following import await_log
from tests.support import Message, Raw, eventually
from zkv.cluster.observer import EtcdSeen
from zkv.cluster.records import MemberRecord
from zkv.cluster.space import Space
from zkv.etcd import DeleteOp, NodeStatus, PutOp, with_prefix
from zkv.etcd.errors import NoSpaceError, UnknownOutcomeError

QUOTA = 1_000_000
SILENT = NodeStatus("silent:2379", UnknownOutcomeError("no answer"))


class Held:
    """Takes what is told to the log."""

    reason: str | None = None

    def hold(self, reason: str | None) -> None:
        self.reason = reason


class Watched:
    """What `Space` judges, and what comes of it."""

    def __init__(self) -> None:
        self.held = Held()
        self.alarms: list[str] = []
        self.obstacle: str | None = None
        self._space = Space(self.held, QUOTA, lambda: self.obstacle)  # type: ignore[arg-type]

    def look(self, *in_use: int, quota: int = 0) -> str | None:
        nodes = [
            NodeStatus(f"h{at}:2379", revision=7 + at, db_size=QUOTA, db_size_in_use=each,
                       db_quota=quota)
            for at, each in enumerate(in_use)
        ]  # fmt: skip
        self._space.judge(EtcdSeen([*nodes, SILENT], self.alarms))
        return self.held.reason


def test_it_is_refused_at_80_percent_and_taken_below() -> None:
    watched = Watched()
    assert watched.look(799_999) is None
    refused = watched.look(800_000)
    assert refused is not None
    assert "80%" in refused
    assert str(QUOTA) in refused
    assert watched.look(799_999) is None


def test_the_fullest_node_counts() -> None:
    watched = Watched()
    assert watched.look(0, 800_000, 0) is not None


def test_the_quota_that_etcd_tells_counts_if_it_is_lower() -> None:
    watched = Watched()
    assert watched.look(400_000, quota=500_000) is not None
    assert watched.look(400_000, quota=5_000_000) is None


def test_it_says_why_the_log_is_not_trimmed() -> None:
    watched = Watched()
    watched.obstacle = "for a reason"
    assert "for a reason" in (watched.look(900_000) or "")


def test_the_alarm_is_said_once_with_the_commands(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched()
    watched.alarms = ["NOSPACE"]
    assert "NOSPACE" in (watched.look(0, 0) or "")
    watched.look(0, 0)
    assert caplog.text.count("its alarm NOSPACE rings, and it refuses all writes") == 1
    assert "the newest revision is 8 now" in caplog.text
    for command in ("compact REVISION", "defrag", "alarm disarm"):
        assert f"etcdctl --endpoints=h0:2379,h1:2379 {command}" in caplog.text
    watched.alarms = []
    assert watched.look(0, 0) is None
    assert caplog.text.count("NOSPACE is gone") == 1


@pytest.fixture
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[StoreInEtcd]:
    flags, config = request.param
    with StoreInEtcd(tmp_path, *flags, config=config) as store:
        yield store


def is_refused(member: StoreMember) -> Message | None:
    """The refusal of a write; None if it is taken."""
    with Raw(member.endpoint) as client:
        reply = client.call(op="PUT", key="large", value="x" * 50_000)
    return None if reply["ok"] else reply


@needs_etcd
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "store",
    [([], CONFIG.replace("[store]", "[store]\nquota_bytes = 4000000"))],
    indirect=True,
)
def test_a_store_that_cannot_trim_its_log(store: StoreInEtcd) -> None:
    (member,) = store.start("a")
    await_leader([member])
    fill(member, 1)
    ghost = MemberRecord(name="ghost", endpoints=[], applied=0, time=0)
    store.log.declare(ghost)  # It never has a snapshot.
    refusals: list[Message] = []

    def refused() -> bool:
        if (reply := is_refused(member)) is not None:
            refusals.append(reply)
        return bool(refusals)

    eventually(refused, "writes are refused", LONG)
    (reply,) = refusals
    assert reply["code"] == "READ_ONLY"
    assert reply["applied"] is False
    eventually(lambda: "not enough members" in (is_refused(member) or {"message": ""})["message"],
               "the reason is told", LONG)  # fmt: skip
    assert member.get("k0")[0] == 0
    assert member.leads
    assert store.log.etcd.alarms(5.0) == []
    store.run("member", "remove", "ghost")

    def taken() -> bool:
        with contextlib.suppress(AssertionError):
            member.snapshot()
        return is_refused(member) is None

    eventually(taken, "writes are taken again", LONG)


@needs_etcd
@pytest.mark.timeout(300)
@pytest.mark.parametrize("store", [(["--quota-backend-bytes=4000000"], CONFIG)], indirect=True)
def test_an_etcd_that_others_fill(store: StoreInEtcd) -> None:
    """All goes on by itself once the commands in the log have been given."""
    members = store.start("a", "b")
    leader = await_leader(members)
    put(members, "k", 1)
    etcd = store.log.etcd
    with contextlib.suppress(NoSpaceError):
        for number in itertools.count():
            etcd.transact([], [PutOp(b"other/%d" % number, bytes(200_000))], timeout=5.0)
    await_log(leader, "its alarm NOSPACE rings, and it refuses all writes")
    reply = is_refused(leader)
    assert reply is not None
    assert reply["code"] in {"READ_ONLY", "NOT_LEADER"}
    etcd.transact([], [DeleteOp(*with_prefix(b"other/"))], timeout=5.0)  # That is not refused.
    _, _, commands = leader.log().partition("by itself then: ")
    newest = str(store.log.look().revision)
    for command in commands.splitlines()[0].replace("REVISION", newest).split("; "):
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done
    put(members, "k", 2)
    for each in members:
        each.await_lsn(store.log.look().head.lsn)
        assert each.get("k") == 2
