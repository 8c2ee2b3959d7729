"""A store begins with what a directory holds, and a member leaves one with what it has."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.stores import StoreInEtcd, await_leader, fill, put
from tests.durability.crash.faults import Killed
from tests.etcd.fake import FakeClient, FakeEtcd
from tests.etcd.nodes import needs_etcd
from tests.forking import run_zkv
from tests.replication.following import RAISED_BY, state_of
from tests.support import Raw, ServerInProcess, ServerProcess
from zkv.cluster import founding
from zkv.cluster.joining import Joining, found
from zkv.cluster.place import MemberDirectory, MemberFile, read_member
from zkv.cluster.records import CacheTable, MemberRecord
from zkv.cluster.shared_log import SharedLog
from zkv.config import Settings, build
from zkv.durability.files import Files
from zkv.errors import DataDirError, LockedError

PLAIN = build({"store": {"url": "etcd://nowhere:1/test"}})


@pytest.fixture
def log() -> SharedLog:
    """An etcd in memory."""
    return SharedLog(FakeEtcd().client(), "test", 1.0)


def write_alone(directory: Path, count: int = 5) -> int:
    """Write entries with a server alone; its revision."""
    rev = 0
    with ServerInProcess(directory) as server, Raw(server.endpoint) as client:
        for number in range(count):
            rev = int(client.ok(op="PUT", key=f"k{number}", value=number)["rev"])
    return rev


def values(directory: Path) -> dict[str, Any]:
    """What a directory holds."""
    done = run_zkv("dump", str(directory))
    assert done.returncode == 0, done
    return {(line := json.loads(each))["key"]: line["value"] for each in done.stdout.splitlines()}


def test_with_a_directory(log: SharedLog, tmp_path: Path) -> None:
    rev = write_alone(tmp_path)
    file = founding.found_from(Files(), tmp_path, log, PLAIN)
    seen, state = log.look(), state_of(tmp_path)
    assert state.rev == seen.head.rev == rev + RAISED_BY
    assert state.lsn == seen.head.lsn == seen.first.lsn - 1 == seen.store.first_lsn - 1
    assert state.store == seen.store.store == file.store
    assert state.terms[-1].number == seen.fence.term == seen.head.term
    assert seen.head.crc
    assert read_member(Files(), tmp_path) == file
    with pytest.raises(DataDirError, match=r"start it with its store\.url"):
        ServerInProcess(tmp_path).server.start()


def test_a_store_that_was_copied_before_keeps_its_identity(log: SharedLog, tmp_path: Path) -> None:
    with ServerInProcess(tmp_path) as server, Raw(server.endpoint) as client:
        client.ok(op="PUT", key="k", value=1)
        first = client.ok(op="REPLICATE", member="m", store="", after=0, term=0, tag="",
                          durable=0, durable_rev=0, wait=0, limit=1, sync=False)  # fmt: skip
    file = founding.found_from(Files(), tmp_path, log, PLAIN)
    assert file.store == first["store"]
    assert log.look().fence.term == 2


def test_twice(log: SharedLog, tmp_path: Path) -> None:
    write_alone(tmp_path / "a")
    write_alone(tmp_path / "b")
    file = founding.found_from(Files(), tmp_path / "a", log, PLAIN)
    rev = state_of(tmp_path / "a").rev
    assert founding.found_from(Files(), tmp_path / "a", log, PLAIN) == file, "it was repeated"
    assert state_of(tmp_path / "a").rev == rev
    before = state_of(tmp_path / "b")
    with pytest.raises(DataDirError, match="there is a store"):
        founding.found_from(Files(), tmp_path / "b", log, PLAIN)
    assert state_of(tmp_path / "b") == before


def test_a_directory_in_use(log: SharedLog, tmp_path: Path) -> None:
    with ServerInProcess(tmp_path) as server, Raw(server.endpoint) as client:
        client.ok(op="PUT", key="k", value=1)
        with pytest.raises(LockedError):
            founding.found_from(Files(), tmp_path, log, PLAIN)


def test_a_directory_without_a_store(log: SharedLog, tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataDirError, match="holds no store"):
            founding.found_from(Files(), directory, log, PLAIN)


STEPS = [(founding, "_begin_term"), (founding, "_head_of"), (MemberDirectory, "write"),
         (SharedLog, "found")]  # fmt: skip


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("home", "name"), STEPS)
def test_founding_killed_between_its_steps(
    log: SharedLog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    home: Any,
    name: str,
    after: bool,
) -> None:
    """Repeating it completes it; the revision never goes back."""
    rev = write_alone(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(home, name, killed_at(getattr(home, name), after))
        with pytest.raises(Killed):
            founding.found_from(Files(), tmp_path, log, PLAIN)
    founding.found_from(Files(), tmp_path, log, PLAIN)
    state = state_of(tmp_path)
    assert state.rev - rev in {RAISED_BY, 2 * RAISED_BY}
    assert (state.lsn, state.store) == (log.look().head.lsn, log.look().store.store)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("home", "name"),
    [(SharedLog, "remove_member"), (founding, "_begin_term"), (founding, "remove_member")],
)
def test_leaving_killed_between_its_steps(
    log: SharedLog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    home: Any,
    name: str,
    after: bool,
) -> None:
    write_alone(tmp_path, 1)
    file = founding.found_from(Files(), tmp_path, log, PLAIN)
    log.declare(MemberRecord(name=file.member, endpoints=[], applied=0, time=0))
    with monkeypatch.context() as patch:
        patch.setattr(home, name, killed_at(getattr(home, name), after))
        with pytest.raises(Killed):
            founding.leave(Files(), tmp_path, log, PLAIN)
    if read_member(Files(), tmp_path) is not None:
        founding.leave(Files(), tmp_path, log, PLAIN)
    assert log.members() == []
    assert state_of(tmp_path).rev > log.look().head.rev
    with ServerInProcess(tmp_path) as server, Raw(server.endpoint) as client:
        assert client.ok(op="GET", key="k0")["value"] == 0


def killed_at(function: Callable[..., Any], after: bool) -> Callable[..., Any]:
    """The function, at the beginning or at the end of which the process is killed."""

    def call(*arguments: Any) -> None:
        if after:
            function(*arguments)
        raise Killed

    return call


def test_leaving(log: SharedLog, tmp_path: Path) -> None:
    write_alone(tmp_path)
    file = founding.found_from(Files(), tmp_path, log, PLAIN)
    log.declare(MemberRecord(name=file.member, endpoints=[], applied=0, time=0))
    before = state_of(tmp_path)
    left = founding.leave(Files(), tmp_path, log, PLAIN)
    after = state_of(tmp_path)
    assert left.member == file.member
    assert left.rev == after.rev == before.rev + RAISED_BY
    assert after.terms[:-1] == before.terms
    assert log.members() == []
    assert read_member(Files(), tmp_path) is None
    with ServerInProcess(tmp_path) as server, Raw(server.endpoint) as client:
        assert client.ok(op="GET", key="k4")["value"] == 4
        assert client.ok(op="PUT", key="k5", value=5)["rev"] == after.rev + 1


def test_leaving_a_store_that_needs_this_member(log: SharedLog, tmp_path: Path) -> None:
    write_alone(tmp_path)
    file = founding.found_from(Files(), tmp_path, log, PLAIN)
    for name in (file.member, "another"):
        log.declare(MemberRecord(name=name, endpoints=[], applied=0, time=0))
    before = state_of(tmp_path)
    with pytest.raises(DataDirError, match="is needed until"):
        founding.leave(Files(), tmp_path, log, PLAIN)
    assert state_of(tmp_path) == before
    assert len(log.members()) == 2


def test_leaving_when_etcd_has_lost_the_store(tmp_path: Path) -> None:
    etcd = FakeEtcd()
    client: FakeClient = etcd.client()
    log = SharedLog(client, "test", 1.0)
    write_alone(tmp_path)
    founding.found_from(Files(), tmp_path, log, PLAIN)
    etcd.wipe()
    assert founding.leave(Files(), tmp_path, log, PLAIN).head is None
    with ServerInProcess(tmp_path) as server, Raw(server.endpoint) as raw:
        assert raw.ok(op="GET", key="k4")["value"] == 4


def test_a_directory_that_is_no_members(log: SharedLog, tmp_path: Path) -> None:
    write_alone(tmp_path)
    with pytest.raises(DataDirError, match="not the directory of a member"):
        founding.leave(Files(), tmp_path, log, PLAIN)


def test_a_store_decides_settings(
    log: SharedLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = {"prefix": "c/", "max_bytes": 1_000_000, "policy": "ttl"}
    founder = build({"limits": {"session_window": 7}, "cache": [cache]})
    found(log, founder.limits, founder.cache)
    store = log.look().store
    assert store.limits["session_window"] == 7
    assert store.caches == [CacheTable("c/", 1_000_000, "ttl")]

    def join_with(settings: Settings) -> Joining:
        file = MemberFile(store.store, "m", 1, store.limits, store.caches)
        return Joining(log, file, settings)

    joining = join_with(founder)
    assert caplog.text == ""
    joining = join_with(PLAIN)
    assert joining.limits(PLAIN.limits).session_window == 7
    assert [each.prefix for each in joining.caches] == ["c/"]
    assert caplog.text.count("limits.session_window is 7 in this store") == 1
    assert caplog.text.count("the tables [[cache]]") == 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreInEtcd]:
    with StoreInEtcd(tmp_path, founded=False) as store:
        yield store


@needs_etcd
@pytest.mark.timeout(300)
def test_a_whole_life(store: StoreInEtcd, tmp_path: Path) -> None:
    """From a server alone to three members, and back to a server alone."""
    alone = ServerProcess(tmp_path / "a")
    with alone, Raw(alone.endpoint) as client:
        for number in range(20):
            client.ok(op="PUT", key=f"k{number}", value=[number])
        assert alone.stop() == 0
    done = run_zkv("store", "found", store.url, "--from", str(tmp_path / "a" / "data"))
    assert done.returncode == 0, done
    assert "first member" in done.stdout
    again = run_zkv("store", "found", store.url)
    assert again.returncode == 2
    first = store.member("a", named=False)
    first.start()
    await_leader([first])
    second, third = store.start("b", "c")
    for each in (second, third):
        assert each.get("k19") == [19]
    members = [first, second, third]
    put(members, "more", 1)
    fill(first, 10, first=20)
    store.trim(members, store.log.look().head.lsn)
    assert third.stop() == 0
    left = run_zkv("store", "leave", store.url, "--data-dir", str(third.data_dir))
    assert left.returncode == 0, left
    assert "c has left" in left.stdout
    assert run_zkv("member", "list", store.url).stdout.count("\n") == 2
    with ServerProcess(tmp_path / "c") as own, Raw(own.endpoint) as client:
        assert client.ok(op="GET", key="more")["value"] == 1
        assert client.ok(op="PUT", key="own", value=1)["rev"] > 2 * RAISED_BY
