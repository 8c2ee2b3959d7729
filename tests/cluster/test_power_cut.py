"""The power of a member is cut at every moment of its life, or it is killed.

What a member does to its files is recorded while it joins by a snapshot, follows, takes over,
leads, trims the log in etcd, ends, is away for too long, and joins again. For every prefix of that
the directory is rebuilt as a kill would leave it, with nothing that was not synced, and with parts
of that (see `tests.durability.crash.disk_model`). Then there is nothing in it that etcd does not
have, and all that the member claims to have; and the next start goes on from it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from random import Random
from typing import Final, NamedTuple

import pytest

from tests.cluster.servers import Cluster, MemberServer, take_over
from tests.durability.crash.disk_model import Disk, Mark, Operation, Rename, Tree, write_tree
from tests.durability.crash.driver import scratch
from tests.durability.crash.faults import SharedFiles
from tests.replication.following import state_of
from tests.support import eventually
from zkv.cluster import upkeep
from zkv.cluster.joining import join
from zkv.cluster.place import MemberDirectory
from zkv.cluster.records import Claim, LogBatch, MemberRecord, read
from zkv.cluster.records import join as join_parts
from zkv.durability import recovery, snapshot
from zkv.durability.files import Files
from zkv.errors import DamageError, FormatError
from zkv.etcd import Op, PutOp
from zkv.keyspace.change import REMOVALS, unpack
from zkv.server import connect_to_members

WAYS: Final = 6
"""In which the power is cut after each operation, besides the mildest and the worst."""
TRIMMING: Final = {"log_bytes": 0, "compact": False}
SMALL: Final = {"segment_bytes": 2048, "snapshot_interval": 3600.0}
NAME: Final = "b"
SNAPSHOTS: Final = PurePath("snapshot")

Entries = dict[str, tuple[bytes, int]]


class Story(NamedTuple):
    """The life of a member, and those that outlive it.

    Args:
        cluster: its store.
        others: members that still run; the first one leads.
        operations: on its files, with marks of what it was about to claim, and has claimed.
    """

    cluster: Cluster
    others: list[MemberServer]
    operations: list[Operation]


def member(
    cluster: Cluster, name: str, files: SharedFiles | None = None, root: Path | None = None
) -> MemberServer:
    """A process of a member, not started yet; it marks its claims."""
    place = {} if root is None else {"data_dir": str(root)}
    server = cluster.member(name, files, store=TRIMMING, durability=SMALL | place)
    if files is not None:
        server.etcd.hook = _marking(cluster, files, "claims")
        server.etcd.after = _marking(cluster, files, "claimed")
    return server


def _marking(cluster: Cluster, files: SharedFiles, what: str) -> Callable[[Sequence[Op]], None]:
    key = cluster.log.keys.member(NAME)

    def mark(operations: Sequence[Op]) -> None:
        for each in operations:
            if isinstance(each, PutOp) and each.key == key:
                files.mark(what, read(each.value, MemberRecord, key).claim)

    return mark


def fill(leader: MemberServer) -> None:
    """Have the leader acknowledge some writes, of which each can be told from others."""
    number = leader.lsn
    for key in range(6):
        assert leader.call(op="PUT", key=f"k{key}", value=f"{number} {key} " * 60)["ok"]
    leader.call(op="DELETE", key=f"k{number % 5}")
    once = {"session": f"s{number}", "seq": 1}
    assert leader.call(op="PUT", key="k5", value=0, if_rev=0, **once)["code"] == "CONFLICT"


def trim(cluster: Cluster, members: Sequence[MemberServer]) -> None:
    """Have all members make snapshots, and the first one, which leads, trim the log."""
    leader, *others = members
    fill(leader)
    lsn = leader.lsn
    for each in members:
        each.await_log(leader)
        assert each.call(op="SNAPSHOT")["ok"]
    fill(leader)
    for each in others:
        each.await_log(leader)
    eventually(lambda: cluster.log.look().first.lsn >= lsn, "the log is trimmed")


def next_process(
    cluster: Cluster, ended: MemberServer, files: SharedFiles, root: Path | None = None
) -> MemberServer:
    """Wait until a member has ended because it has to begin anew; its next process."""
    assert ended.wait()
    anew = ended.server.anew
    assert anew is not None, "it has ended for another reason"
    server = member(cluster, ended.name, files, root)
    settings = server.server._settings
    server.server._joining = join(settings, files, connect_to_members(settings), anew)
    return server


@pytest.fixture
def story(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Story]:
    monkeypatch.setattr(upkeep, "ROUND_SECONDS", 0.02)
    (tmp_path / NAME).mkdir()
    files = SharedFiles(tmp_path / NAME)
    with member(cluster, "a") as one:
        one.await_lead()
        with member(cluster, "c") as other:
            trim(cluster, [one, other])
            with member(cluster, NAME, files) as joiner:  # It fetches a snapshot.
                fill(one)
                trim(cluster, [one, other, joiner])
                joiner.await_log(one)
                one.etcd.partition(silent=True)
                take_over(joiner)
                one.etcd.heal()
                eventually(lambda: not one.leads, "the former leader follows")
                trim(cluster, [joiner, one, other])
                fill(joiner)
            leaders: list[MemberServer] = []

            def leads() -> bool:
                leaders[:] = [each for each in (one, other) if each.leads]
                return bool(leaders)

            eventually(leads, "it has handed over")
            others = sorted([one, other], key=lambda each: not each.leads)
            trim(cluster, others)  # They are two of three, so that may go without it.
            away = member(cluster, NAME, files)
            away.__enter__()
            with next_process(cluster, away, files) as again:
                fill(others[0])
                again.await_log(others[0])
                assert again.call(op="SNAPSHOT")["ok"]
            operations = list(files.operations)
            files.abandon()
            yield Story(cluster, others, operations)


def appended(cluster: Cluster) -> dict[int, bytes]:
    """All commits that the log has ever had, by their numbers."""
    keys = cluster.log.keys
    parts: dict[bytes, list[bytes]] = {}
    begin, end = keys.log_from(0)
    for event in cluster.fake.store.since(0):
        item = event.item
        if begin <= item.key < end and not event.deleted:
            parts[item.key] = [item.value]
    batches: list[LogBatch] = [join_parts(keys.place(key), it) for key, it in parts.items()]
    return {
        batch.first_lsn + at: payload
        for batch in batches
        for at, payload in enumerate(batch.payloads)
    }


def states_after(payloads: dict[int, bytes]) -> dict[int, Entries]:
    """What the store holds after each commit."""
    entries: Entries = {}
    found = {0: dict(entries)}
    for lsn in sorted(payloads):
        commit = unpack(payloads[lsn])
        for change in commit.changes:
            if change.op in REMOVALS:
                entries.pop(change.key, None)
            else:
                entries[change.key] = bytes(change.value), commit.rev
        found[lsn] = dict(entries)
    return found


def good_snapshots(root: Path) -> list[int]:
    """The log numbers of the good snapshots in a directory."""
    files, good = Files(), []
    try:
        names = recovery.snapshots(files, root / SNAPSHOTS)
    except FileNotFoundError:
        return []
    for rev in names:
        try:
            found = snapshot.verify(files, root / SNAPSHOTS / snapshot.file_name(rev))
        except (DamageError, FormatError):
            continue
        good.append(found.lsn)
    return good


class Judge:
    """What may be found after a cut.

    Args:
        cluster: the store.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._states = states_after(appended(cluster))

    def check(self, root: Path, claims: set[Claim]) -> int:
        """Check a directory before and after its next start; return its log number.

        Args:
            root: the directory.
            claims: what etcd may have as the claim of the member.
        """
        good = good_snapshots(root)
        assert all(claim.newest <= max(good, default=0) for claim in claims), (claims, good)
        directory = MemberDirectory(Files(), root)
        with directory.lock():
            file = directory.read()
        assert not (root / "incoming").exists()
        if file is None or directory.is_empty:
            return 0
        assert file.member == NAME
        found = directory.found()
        there = {key: (bytes(it.value), it.rev) for key, it in found.entries.items()}
        assert there == self._states[found.lsn]
        return found.lsn


def possible_claims(operations: list[Operation]) -> Iterator[set[Claim]]:
    """After each operation, what etcd may have: what was claimed, and what is about to be."""
    claims = {Claim()}
    for each in operations:
        if isinstance(each, Mark):
            what, claim = each.what
            claims = claims | {claim} if what == "claims" else {claim}
        yield claims


def cuts(disk: Disk, random: Random) -> list[Tree]:
    """What may be found after a kill, or a power cut, at this moment; each once."""
    torn = [disk.torn(random) for _ in range(WAYS if disk.unsynced() else 0)]
    trees = [disk.as_written(), disk.as_synced(), *torn]
    return [tree for number, tree in enumerate(trees) if tree not in trees[:number]]


def test_nothing_but_what_etcd_has_and_all_that_is_claimed(story: Story) -> None:
    judge, random, disk = Judge(story.cluster), Random(1), Disk()
    found, claimed = set(), set()
    for number, (operation, claims) in enumerate(
        zip(story.operations, possible_claims(story.operations), strict=True), 1
    ):
        disk.apply(operation)
        claimed |= claims
        for tree in cuts(disk, random):
            with scratch() as root:
                write_tree(tree, root)
                try:
                    found.add(judge.check(root, claims))
                except Exception as error:
                    error.add_note(f"after operation {number}: {operation!r:.200}")
                    raise
    assert len(claimed) > 3
    assert 0 in found
    assert len(found) > 5


def go_on(story: Story, disk: Disk, operations: list[Operation]) -> set[int]:
    """Have a member start on what is on a disk, until it has all that the others have.

    Args:
        story: the others, which run.
        disk: what was not synced is still lost if the power is cut now.
        operations: that have led to it.

    Returns what it has claimed, by log numbers. Each was on the disk for good.
    """
    cluster, leader = story.cluster, story.others[0]
    with scratch() as root:
        write_tree(disk.as_written(), root)
        files = SharedFiles(root)
        files.operations, files.disk = list(operations), copy.deepcopy(disk)
        fill(leader)
        server = member(cluster, NAME, files, root)
        server.__enter__()
        try:
            eventually(
                lambda: server.server.anew is not None or server.lsn >= leader.lsn, "all is there"
            )
            if server.server.anew is not None:
                server = next_process(cluster, server, files, root)
                server.__enter__()
                server.await_log(leader)
            assert server.call(op="GET", key="k5", stale=True) == leader.call(op="GET", key="k5")
        finally:
            assert server.stop()
        done = files.operations[len(operations) :]
        files.abandon()
        here, there = state_of(root), state_of(cluster._directory / leader.name)
        assert (here.lsn, here.entries, here.sessions) == (there.lsn, there.entries, there.sessions)
    return check_claims(disk, done)


def check_claims(disk: Disk, operations: list[Operation]) -> set[int]:
    """See that each claim is on the disk for good when it is made; their log numbers."""
    claimed = set()
    for each in operations:
        disk.apply(each)
        if isinstance(each, Mark) and each.what[0] == "claims":
            newest = each.what[1].newest
            with scratch() as cut:
                write_tree(disk.as_synced(), cut)
                assert newest <= max(good_snapshots(cut), default=0)
            claimed.add(newest)
    return claimed


@pytest.mark.parametrize(
    "both", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["one", "both"]
)
def test_a_start_after_it(story: Story, both: bool) -> None:
    """Right after something was given a name, which is on disk a moment later only.

    It is killed after it has a snapshot, which it claims at its start, and else the power is cut.
    """
    random, disk, claimed = Random(2), Disk(), set()
    for number, operation in enumerate(story.operations, 1):
        disk.apply(operation)
        if not isinstance(operation, Rename):
            continue
        is_snapshot = operation.new.suffix == ".snapshot"
        try:
            if is_snapshot or both:
                claimed |= go_on(story, copy.deepcopy(disk), story.operations[:number])
            if not is_snapshot or both:
                claimed |= go_on(story, Disk(disk.torn(random)), [])
        except Exception as error:
            error.add_note(f"after operation {number}: {operation!r:.200}")
            raise
    assert len(claimed) > 3
