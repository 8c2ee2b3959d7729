"""A member for which the log was trimmed too far begins with a snapshot of another one."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cluster.stores import StoreInEtcd, StoreMember, await_leader, fill, put
from tests.durability.crash.faults import Killed
from tests.etcd.nodes import needs_etcd
from tests.replication.following import await_log, await_new_history, state_of
from tests.replication.fragile import FragileFiles
from tests.support import eventually
from zkv.cluster.joining import join
from zkv.cluster.place import MemberDirectory, read_member
from zkv.cluster.shared_log import Pinned
from zkv.config import Settings, build
from zkv.durability.files import Files
from zkv.errors import ConfigError, DataDirError
from zkv.server import connect_to_members

pytestmark = [needs_etcd, pytest.mark.timeout(300)]


class TrimmedStore(NamedTuple):
    """A store whose log does not reach back to its beginning, and two members."""

    store: StoreInEtcd
    members: list[StoreMember]
    """The first one leads."""


def begin_store(store: StoreInEtcd) -> TrimmedStore:
    first = store.start("a")
    members = [await_leader(first), *store.start("b")]
    fill(members[0], 50)
    store.trim(members, 30)
    return TrimmedStore(store, members)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[TrimmedStore]:
    """For a test alone."""
    with StoreInEtcd(tmp_path) as store:
        yield begin_store(store)


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrimmedStore]:
    """For tests that leave its members as they are."""
    with StoreInEtcd(tmp_path_factory.mktemp("store")) as store:
        yield begin_store(store)


def test_a_new_member(own: TrimmedStore) -> None:
    store, trimmed = own
    (new,) = store.start("c")
    assert "fetched a snapshot" in new.log()
    assert [new.get(f"k{number}")[0] for number in range(50)] == list(range(50))
    put(trimmed, "later", 1)
    new.await_lsn(store.log.look().head.lsn)
    assert new.get("later") == 1
    for each in trimmed:
        each.kill()
    put([new], "alone", 2)  # It leads, and goes on from what it has fetched.
    eventually(lambda: store.log.pins() == [], "no pin is left")


def test_a_member_that_was_away_for_long(own: TrimmedStore) -> None:
    store, (leader, away) = own
    assert away.stop() == 0
    assert store.run("member", "remove", "b")  # Else nothing is trimmed without it.
    had = state_of(away.data_dir).lsn
    fill(leader, 50, first=50)
    store.trim([leader], had + 20)
    away.start()
    await_new_history(away)
    away.await_lsn(store.log.look().head.lsn)
    assert away.get("k99")[0] == 99
    assert "are not in the history" not in away.log()
    assert not list(away.data_dir.glob("diverged-*"))
    assert away.stop() == 0
    assert not (away.data_dir / "incoming").exists()


def test_a_member_whose_history_is_not_that_of_the_store(own: TrimmedStore, tmp_path: Path) -> None:
    """Etcd and one member were set back: what the other one had is kept in a file."""
    store, (leader, other) = own
    leader.kill()
    other.kill()
    store.etcd.kill()
    for directory in (leader.data_dir, store.etcd.nodes[0].directory):
        shutil.copytree(directory, tmp_path / "older" / directory.name)
    store.etcd.start()
    leader.start()
    put([leader], "acknowledged", 1)
    other.start()
    other.await_lsn(store.log.look().head.lsn)
    leader.kill()
    other.kill()
    store.etcd.kill()
    for directory in (leader.data_dir, store.etcd.nodes[0].directory):
        shutil.rmtree(directory)
        shutil.copytree(tmp_path / "older" / directory.name, directory)
    store.etcd.start()
    had = state_of(other.data_dir).lsn
    leader.start()
    await_leader([leader])
    store.run("member", "remove", "b")
    fill(leader, 50, first=100)
    store.trim([leader], had + 10)
    other.start()
    await_new_history(other)
    await_log(other, "are not in the history")
    (kept,) = other.data_dir.glob("diverged-after-*.jsonl")
    assert "acknowledged" in kept.read_text(encoding="utf-8")
    other.await_lsn(store.log.look().head.lsn)
    assert other.get("k149")[0] == 149


def settings_of(store: StoreInEtcd, directory: Path, name: str = "new") -> Settings:
    return build({
        "store": {"url": store.url, "member": name, "lease": 2.0},
        "durability": {"data_dir": str(directory)},
    })  # fmt: skip


def begin(store: StoreInEtcd, directory: Path, files: Files) -> None:
    """Join up to the moment at which the directory is opened."""
    settings = settings_of(store, directory)
    join(settings, files, connect_to_members(settings)).close()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_joiner_killed_at_any_step(common: TrimmedStore, tmp_path: Path, after: bool) -> None:
    store, trimmed = common
    trimmed[0].snapshot()
    expected = state_of(trimmed[0].data_dir)
    for number in itertools.count(1):
        directory = tmp_path / f"new-{number}"
        done = False
        with contextlib.suppress(Killed):
            begin(store, directory, FragileFiles(number, after))
            done = True
        begin(store, directory, Files())
        found = MemberDirectory(Files(), directory).found()
        assert (found.lsn, found.rev) == (expected.lsn, expected.rev), number
        assert not (directory / "incoming").exists()
        file = read_member(Files(), directory)
        assert file is not None
        assert (file.member, file.exchange) == ("new", False)
        if done:
            break
    assert number > 20


class PinsSeen(Files):
    """The real file system; looks which pins there are whenever something gets its name."""

    def __init__(self, store: StoreInEtcd) -> None:
        self._store = store
        self.seen: list[list[Pinned]] = []

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        self.seen.append(self._store.log.pins())


def test_the_log_stays_while_a_member_joins(common: TrimmedStore, tmp_path: Path) -> None:
    store, trimmed = common
    store.log.remove_member("new")
    settings, files = settings_of(store, tmp_path / "new"), PinsSeen(store)
    first = store.first
    joining = join(settings, files, connect_to_members(settings))
    name, *others = files.seen
    assert name == []
    for pins in others:
        assert [(each.record.member, each.record.lsn) for each in pins] == [("new", first)]
    before = store.log.members()

    def all_have_more() -> bool:
        fill(trimmed[0], 1)
        for each in trimmed:
            each.snapshot()
        now = {each.name: each.claim.newest for each in store.log.members()}
        return all(now[each.name] > each.claim.newest for each in before if each.claim.newest)

    eventually(all_have_more, "snapshots of later commits")
    assert store.first == first
    joining.close()
    assert store.log.pins() == []
    assert store.log.remove_member("new")
    store.trim(trimmed, first + 1)


def test_what_is_no_directory_of_this_member(own: TrimmedStore, tmp_path: Path) -> None:
    store, trimmed = own
    begin(store, tmp_path / "new", Files())
    settings = settings_of(store, tmp_path / "new", "another")
    with pytest.raises(ConfigError, match="that of member new"):
        join(settings, Files(), connect_to_members(settings))
    assert trimmed[0].stop() == 0
    (trimmed[0].data_dir / "member.json").unlink()
    settings = settings_of(store, trimmed[0].data_dir)
    with pytest.raises(DataDirError, match="holds a store of its own"):
        join(settings, Files(), connect_to_members(settings))
