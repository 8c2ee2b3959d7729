"""An archive has every moment: restored, the store is what it was."""

from __future__ import annotations

import itertools
import logging
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
import zmq

from tests.forking import run_zkv as run_in
from tests.replication.archiving import (
    ArchiverProcess,
    ArchiverThread,
    await_revision,
    newest,
    parts,
    reasons,
    spans,
)
from tests.support import (
    FREE_PORT,
    LIMIT,
    ROOT,
    BadDisk,
    Raw,
    ServerInProcess,
    ServerProcess,
    environment,
    eventually,
    free_ports,
    unpack,
    zkv_command,
)
from tests.users.secured import Secured
from zkv.bounds import key_range
from zkv.durability import moments, recovery, segment
from zkv.durability.backup import RESTORED_ABOVE, State
from zkv.durability.files import Files
from zkv.durability.frozen_view import FrozenView
from zkv.durability.layout import Layout
from zkv.durability.moments import PointInTime
from zkv.errors import DamageError, DataDirError
from zkv.keyspace import Commit, Keyspace, Sessions
from zkv.replication import archiver as archiver_module

MILLISECOND = timedelta(milliseconds=1)
SMALL = "[durability]\nsegment_bytes = 1060\nsnapshot_interval = 3600.0\n"
"""Short segments, and snapshots only when they are asked for."""

Entries = dict[str, tuple[bytes, int, int | None]]
Replies = dict[str, list[tuple[int, bytes, bytes, int]]]


class Seen(NamedTuple):
    """A store at one moment."""

    rev: int
    lsn: int
    time: int
    entries: Entries
    replies: Replies


def replies_in(sessions: Sessions) -> Replies:
    """The remembered replies."""
    states = [sessions.state(name, 2**62) for name in sessions.names()]
    return {state[0]: sorted(state[2]) for state in states if state is not None}


def entries_in(table: Any) -> Entries:
    return {key: (bytes(entry.value), entry.rev, entry.expires) for key, entry in table.items()}


def seen(keyspace: Keyspace) -> Seen:
    """The store as it is now."""
    with keyspace.lock:
        pairs = keyspace.entries.pairs(key_range(""), len(keyspace.entries), False)
        entries = {key: (bytes(each.value), each.rev, each.expires) for key, each in pairs}
        replies = replies_in(keyspace.sessions)
        return Seen(keyspace.rev, keyspace.last_lsn, keyspace.now(), entries, replies)


def as_seen(state: State) -> tuple[int, int, Entries, Replies]:
    return state.rev, state.lsn, entries_in(state.entries), replies_in(state.sessions)


def is_state(state: State, seen: Seen) -> bool:
    """True if this is what was seen; otherwise it is compared."""
    assert as_seen(state) == (seen.rev, seen.lsn, seen.entries, seen.replies)
    return True


def keyspace_of(server: ServerInProcess) -> Keyspace:
    return server.server._engine.keyspace


def begin_term(server: ServerInProcess) -> None:
    """Have the store go on in another term, as after a promotion."""
    engine = server.server._engine
    with engine.keyspace.lock:
        start = engine.keyspace.lineage.next_start()
        lsn = engine.keyspace.begin_term(start, engine.keyspace.rev + 2**32)
    engine.log.commit(lsn, durable=True)


def some_write(chance: random.Random, number: int) -> dict[str, Any]:
    key = f"key {chance.randrange(12)}"
    kind = chance.randrange(8)
    op: dict[str, Any] = {"op": "PUT", "key": key, "value": "v" * chance.randrange(60)}
    if kind == 0:
        op["ttl"] = chance.choice([0.001, 0.01, 3600.0])
    elif kind == 1:
        op = {"op": "MDELETE", "keys": [key, "absent"]}
    elif kind == 2:
        op = {"op": "INCR", "key": "counter"}
    elif kind == 3:
        op = {"op": "PUT", "key": f"cached/{number}", "value": bytes(chance.randrange(300))}
    elif kind == 4:
        items = {f"{key}/{each}": each for each in range(3)}
        op = {"op": "MPUT", "items": items}
    elif kind == 5:  # It is refused, and that is remembered.
        op = {"op": "PUT", "key": key, "value": 1, "if_rev": 10**6}
        return op | {"session": "careful", "seq": number}
    if chance.randrange(3) == 0:
        op |= {"session": f"writer {chance.randrange(2)}", "seq": number}
    return op


def run_zkv(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_in(*map(str, arguments), cwd=ROOT)


def restored(directory: Path, target: Path, *flags: str) -> State:
    """What ``zkv restore`` makes of an archive."""
    done = run_zkv("restore", str(directory), str(target), *flags)
    assert done.returncode == 0, done.stderr
    sessions, layout = Sessions(), Layout(target)
    found = recovery.recover(Files(), layout.snapshots, layout.wal, sessions)
    return State(found.entries, sessions, found.rev, found.lsn, found.time, found.lineage)


def refused(*arguments: str | Path, status: int = 2) -> str:
    """What ``zkv`` says when it does not do what it is told."""
    done = run_zkv(*arguments)
    assert done.returncode == status, (done.stdout, done.stderr)
    return done.stderr


def state_at(part: Path, moment: PointInTime, up_to_damage: bool = False) -> State:
    with FrozenView(Files(), part) as view:
        return moments.state_at(view, moment, up_to_damage)


def commits_in(part: Path) -> list[Commit]:
    """Every commit of a part."""
    layout = Layout(part)
    segments = map(layout.segment, recovery.segments(Files(), layout.wal))
    return [each for path in segments for each in segment.SegmentScan(Files(), path).commits()]


@pytest.fixture(params=range(3))
def chance(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.param)


def test_every_moment_of_a_history(chance: random.Random, tmp_path: Path) -> None:
    directory = tmp_path / "archive"
    history: list[Seen] = []
    cache: Any = [{"prefix": "cached/", "max_bytes": 1_000}]
    with (
        ServerInProcess(
            tmp_path / "data",
            durability={"segment_bytes": 1_060, "snapshot_interval": 3_600.0},
            cache=cache,
            limits={
                "session_window": 1_000
            },  # A server forgets what is older; an archive does not.
        ) as server,
        Raw(server.endpoint) as client,
    ):
        client.ok(op="PUT", key="first", value=1)
        keyspace = keyspace_of(server)
        with ArchiverProcess(server.endpoint, directory) as archiver:
            for number in range(1, 200):
                client.call(**some_write(chance, number))
                history.append(seen(keyspace))
                if number in {70, 130}:
                    begin_term(server)
                if number % 60 == 0:
                    client.ok(op="SNAPSHOT")
                if chance.randrange(40) == 0:
                    archiver.kill()
                    archiver.start()
            await_revision(directory, keyspace.rev)
            assert archiver.stop() == 0
    assert reasons(directory) == ["begun"]
    part = newest(directory)
    by_lsn = {each.lsn: each for each in history}
    at_rev = at_time = 0
    for commit, following in itertools.pairwise(commits_in(part)):
        if (then := by_lsn.get(commit.lsn)) is None:
            continue
        if following.rev > commit.rev:  # Otherwise that belongs to the revision, too.
            at_rev += is_state(state_at(part, PointInTime(rev=commit.rev)), then)
        if following.time > then.time:
            at_time += is_state(state_at(part, PointInTime(time=then.time)), then)
    assert at_rev > 80
    assert at_time
    for number in (60, 180):
        each = history[number]
        state = restored(directory, tmp_path / f"{number}", "--at-rev", str(each.rev))
        assert entries_in(state.entries) == each.entries
        last = spans(directory)[-1]
        assert state.rev == last.last_rev + RESTORED_ABOVE
        assert state.lineage.term == last.term + 1 == 4
    assert run_zkv("check", str(directory)).returncode == 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    (port,) = free_ports(1)
    endpoint = f"tcp://127.0.0.1:{port}"
    flags = ("--endpoint", endpoint, "--feed", "")
    with ServerProcess(tmp_path / "server", *flags, config=SMALL) as server:
        put(server, "first")
        yield server


def put(server: ServerProcess, *keys: str) -> int:
    """Write some entries; returns the last one's revision."""
    with Raw(server.endpoint) as client:
        revisions = [client.ok(op="PUT", key=key, value=f"value of {key}")["rev"] for key in keys]
    return int(revisions[-1])


def numbered(first: int, last: int) -> list[str]:
    return [f"key {number:03}" for number in range(first, last + 1)]


@pytest.fixture
def directory(server: ServerProcess, tmp_path: Path) -> Path:
    """An archive of revisions 1 to 60, in some segments, with snapshots at 1 and at 40."""
    directory = tmp_path / "archive"
    with ArchiverThread(
        server.endpoint, directory, segment_bytes=1_060, least_log_bytes=100
    ) as archiver:
        put(server, *numbered(2, 40))
        with Raw(server.endpoint) as client:
            client.ok(op="SNAPSHOT")
        await_snapshot(archiver, Layout(newest(directory)), 40)
        await_revision(directory, put(server, *numbered(41, 60)))
    layout = Layout(newest(directory))
    assert recovery.snapshots(Files(), layout.snapshots) == [1, 40]
    assert len(recovery.segments(Files(), layout.wal)) > 3
    return directory


def await_snapshot(archiver: ArchiverThread, layout: Layout, rev: int) -> None:
    """Wait until a part has the snapshot of a revision."""

    def there() -> bool:
        archiver.archiver._look_at = 0.0
        return rev in recovery.snapshots(Files(), layout.snapshots)

    eventually(there, f"a snapshot at {rev}")


def test_the_operator_deleted_a_prefix(
    server: ServerProcess, directory: Path, tmp_path: Path
) -> None:
    with ArchiverProcess(server.endpoint, directory):
        before = spans(directory)[-1].last_time
        noted = datetime.now(UTC)
        eventually(lambda: datetime.now(UTC) - noted > MILLISECOND, "the time of commits goes on")
        with Raw(server.endpoint) as client:
            rev = client.ok(op="MDELETE", keys=numbered(2, 60))["rev"]
        await_revision(directory, rev)
        moment = noted.isoformat()
        state = restored(directory, tmp_path / "one", "--at-time", moment)
        assert sorted(state.entries.keys()) == ["first", *numbered(2, 60)]
        seconds = str(noted.timestamp())
        state = restored(directory, tmp_path / "two", "--at-time", seconds)
        assert len(state.entries) == 60
        assert before <= noted.timestamp() * 1000
        assert list(restored(directory, tmp_path / "three").entries.keys()) == ["first"]


def test_moments_that_are_not_there(directory: Path, tmp_path: Path) -> None:
    span = spans(directory)[-1]
    for flags in (
        ("--at-rev", "61"), ("--at-rev", "0"), ("--at-time", "2020-02-02T02:02:02Z"),
        ("--at-time", str(span.last_time / 1000 + 1)),
    ):  # fmt: skip
        message = refused("restore", directory, tmp_path / "target", *flags)
        assert "revisions 1 to 60" in message
        assert moments.at(span.first_time) in message
        assert moments.at(span.last_time) in message
    assert not (tmp_path / "target").exists()
    refused("restore", directory, tmp_path / "target", "--at-time", "noon")
    refused("restore", directory, tmp_path / "target", "--at-time", "1", "--at-rev", "1")


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_damage_of_the_log_is_told(directory: Path, tmp_path: Path) -> None:
    layout = Layout(newest(directory))
    first = recovery.segments(Files(), layout.wal)[1]
    path = layout.segment(first)
    flip(path, segment.HEADER_BYTES + segment.FRAME_HEAD_BYTES + 30)
    target = tmp_path / "target"
    message = refused("restore", directory, target, "--at-rev", "39")
    assert f"{path}: damaged at offset {segment.HEADER_BYTES}" in message
    assert f"up to revision {first - 1} of " in message
    assert "and from revision 40 of " in message
    assert not target.exists()
    assert "1 fault" in run_zkv("check", str(directory)).stdout
    assert run_zkv("check", str(directory)).returncode == 1
    state = restored(directory, target, "--at-rev", "39", "--up-to-damage")
    assert sorted(state.entries.keys()) == ["first", *numbered(2, first - 1)]
    # What comes after the next snapshot does not need it.
    state = restored(directory, tmp_path / "later", "--at-rev", "50")
    assert len(state.entries) == 50


def test_a_damaged_snapshot_does_no_harm(directory: Path, tmp_path: Path) -> None:
    layout = Layout(newest(directory))
    flip(layout.snapshot(40), 200)
    done = run_zkv("restore", str(directory), str(tmp_path / "target"), "--at-rev", "50")
    assert done.returncode == 0
    assert str(layout.snapshot(40)) in done.stderr
    flip(layout.snapshot(1), 30)
    message = refused("restore", directory, tmp_path / "other", "--at-rev", "50")
    assert str(layout.snapshot(1)) in message or str(layout.snapshot(40)) in message


def test_flipped_bytes_anywhere(directory: Path, tmp_path: Path) -> None:
    """Whatever byte is wrong, no wrong state is restored."""
    chance = random.Random(5)
    whole = {
        rev: as_seen(state_at(newest(directory), PointInTime(rev=rev))) for rev in range(1, 61)
    }
    layout = Layout(newest(directory))
    paths = sorted([*layout.snapshots.iterdir(), *layout.wal.iterdir()])
    told = 0
    for _ in range(60):
        path = chance.choice(paths)
        content = path.read_bytes()
        flip(path, chance.randrange(len(content)))
        rev = chance.randint(1, 60)
        for up_to_damage in (False, True):
            try:
                found = as_seen(state_at(layout.directory, PointInTime(rev=rev), up_to_damage))
            except (DamageError, DataDirError):
                told += 1
            else:
                assert found == whole[found[0]]
                assert up_to_damage or found[0] == rev
        path.write_bytes(content)
    assert told


def test_a_damaged_end_is_kept_apart(
    server: ServerProcess, directory: Path, tmp_path: Path
) -> None:
    layout = Layout(newest(directory))
    damaged = recovery.segments(Files(), layout.wal)[-2]
    flip(layout.segment(damaged), 70)
    with Raw(server.endpoint) as client:
        client.ok(op="SNAPSHOT")
    with ArchiverProcess(server.endpoint, directory) as archiver:
        await_revision(directory, put(server, "more"))
        assert "damaged at offset" in archiver.log()
    assert reasons(directory) == ["begun", "damaged"]
    assert len(restored(directory, tmp_path / "now").entries) == 61
    before = restored(directory, tmp_path / "then", "--at-rev", str(damaged - 1))
    assert len(before.entries) == damaged - 1


def test_a_restart_of_the_server(server: ServerProcess, tmp_path: Path) -> None:
    directory = tmp_path / "archive"
    with ArchiverProcess(server.endpoint, directory):
        for stop in (server.stop, server.kill, server.stop):
            await_revision(directory, put(server, "before"))
            stop()
            server.start()
            await_revision(directory, put(server, "after"))
    assert len(parts(directory)) == 1
    assert len(restored(directory, tmp_path / "target").entries) == 3


def test_two_archivers(server: ServerProcess, tmp_path: Path) -> None:
    directory = tmp_path / "archive"
    with ArchiverProcess(server.endpoint, directory) as archiver:
        message = refused("archive", "--from", server.endpoint, directory)
        assert f"another archiver (process {archiver.process.pid}) uses this archive" in message
        await_revision(directory, put(server, "more"))
        assert archiver.stop() == 0
        archiver.start()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    message = refused("archive", "--from", server.endpoint, tmp_path / "other")
    assert "neither empty nor an archive" in message


def test_a_full_disk(server: ServerProcess, tmp_path: Path) -> None:
    directory, disk = tmp_path / "archive", BadDisk()
    with ArchiverThread(server.endpoint, directory, disk, segment_bytes=1_060):
        await_revision(directory, put(server, *numbered(2, 20)))
        disk.full = True
        put(server, *numbered(21, 40))
        eventually(lambda: spans(directory)[-1].last_rev >= 20, "it keeps what it has")
        disk.full = False
        await_revision(directory, 40)
    assert len(parts(directory)) == 1
    for rev in range(1, 41):
        assert len(state_at(newest(directory), PointInTime(rev=rev)).entries) == rev


def test_what_is_not_kept(
    server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archiver_module, "PRUNE_SECONDS", 0.0)
    directory = tmp_path / "archive"
    options: dict[str, Any] = {"segment_bytes": 1_060, "least_log_bytes": 100}
    with ArchiverThread(server.endpoint, directory, keep=1, **options) as archiver:
        layout = Layout(newest(directory))
        for last in (21, 41, 61):
            put(server, *numbered(last - 19, last))
            with Raw(server.endpoint) as client:
                client.ok(op="SNAPSHOT")
            await_snapshot(archiver, layout, last)
        eventually(
            lambda: recovery.snapshots(Files(), layout.snapshots) == [41, 61], "the others are gone"
        )
        await_revision(directory, put(server, "last"))
    assert recovery.segments(Files(), layout.wal)[0] > 20
    assert len(state_at(newest(directory), PointInTime(rev=62)).entries) == 62
    assert "revisions 41 to 62" in refused("restore", directory, tmp_path / "a", "--at-rev", "40")
    assert run_zkv("check", str(directory)).returncode == 0


def test_everything_within_the_time_is_kept(server: ServerProcess, tmp_path: Path) -> None:
    directory = tmp_path / "archive"
    with ArchiverProcess(server.endpoint, directory, "--keep", "7d"):
        await_revision(directory, put(server, *numbered(2, 50)))
    for rev in range(1, 51):
        assert len(state_at(newest(directory), PointInTime(rev=rev)).entries) == rev


def test_a_gap(server: ServerProcess, tmp_path: Path) -> None:
    directory = tmp_path / "archive"
    with ArchiverProcess(server.endpoint, directory):
        await_revision(directory, put(server, *numbered(2, 20)))
    server.stop()  # A server keeps its log for a while after it has handed out a snapshot.
    server.start()
    for first in (21, 121, 221):
        put(server, *numbered(first, first + 99))
        with Raw(server.endpoint) as client:
            client.ok(op="SNAPSHOT")
    with ArchiverProcess(server.endpoint, directory) as archiver:
        await_revision(directory, put(server, "last"))
        assert "a new part begins; commits after that will be missing" in archiver.log()
    assert reasons(directory) == ["begun", "gap"]
    message = refused("restore", directory, tmp_path / "target", "--at-rev", "100")
    assert "part-000001: revisions 1 to 20" in message
    assert "part-000002, after a gap: revisions 320 to 321" in message
    state = restored(directory, tmp_path / "old", "--at-rev", "15")
    assert (len(state.entries), state.rev) == (15, 321 + RESTORED_ABOVE)
    assert len(restored(directory, tmp_path / "new").entries) == 321


def test_another_history(server: ServerProcess, tmp_path: Path) -> None:
    """A standby was promoted that lacked what the archive has: both histories are kept."""
    directory, copy = tmp_path / "archive", tmp_path / "copy"
    with ArchiverProcess(server.endpoint, directory) as archiver:
        await_revision(directory, put(server, *numbered(2, 20)))
        server.stop()
        shutil.copytree(server.data_dir, copy)
        server.start()
        await_revision(directory, put(server, *numbered(21, 30)))
        server.stop()
        place = {"endpoints": [server.endpoint]}
        with ServerInProcess(copy, server=place) as other, Raw(other.endpoint) as client:
            begin_term(other)
            rev = client.ok(op="PUT", key="in the other one", value=1)["rev"]
            await_revision(directory, rev)
            archiver.stop()
    assert reasons(directory) == ["begun", "diverged"]
    assert "it has another history now" in archiver.log()
    state = restored(directory, tmp_path / "new")
    assert len(state.entries) == 21
    assert (state.rev, state.lineage.term) == (rev + RESTORED_ABOVE, 3)
    done = run_zkv("restore", str(directory), str(tmp_path / "old"), "--at-rev", "25")
    assert "looking for revision 25 in part-000001" in done.stderr
    state = restored(directory / "part-000001", tmp_path / "older")
    assert len(state.entries) == 30


class Follower(ServerProcess):
    """A real ``zkv follow``, as a server.

    Args:
        primary: where its primary listens.
        directory: of its data.
    """

    def __init__(self, primary: str, directory: Path) -> None:
        super().__init__(directory, "--feed", "")
        place = self._command.index("serve")
        self._command[place : place + 1] = ["follow", primary]


def test_a_promotion(server: ServerProcess, tmp_path: Path) -> None:
    """It is one history, and the archiver finds who goes on with it."""
    directory = tmp_path / "archive"
    with Follower(server.endpoint, tmp_path / "standby") as standby:
        endpoints = f"{server.endpoint},{standby.endpoint}"
        with ArchiverProcess(endpoints, directory):
            await_revision(directory, put(server, *numbered(2, 20)))
            assert run_zkv("promote", "-e", standby.endpoint).returncode == 0
            rev = put(standby, "at the new one")
            await_revision(directory, rev)
            server.stop()
            await_revision(directory, put(standby, "and again"))
    assert reasons(directory) == ["begun"]
    assert rev > 2**32
    for last in (5, 20):
        assert len(state_at(newest(directory), PointInTime(rev=last)).entries) == last
    assert len(state_at(newest(directory), PointInTime(rev=rev)).entries) == 21
    message = refused("restore", directory, tmp_path / "target", "--at-rev", "1000")
    assert "there is no revision 1000: the last one before it is 20" in message


def test_a_store_without_any_write(tmp_path: Path) -> None:
    directory = tmp_path / "archive"
    with (
        ServerProcess(tmp_path / "server", "--feed", "") as server,
        ArchiverProcess(server.endpoint, directory),
    ):
        done = run_zkv("backup", "--from", server.endpoint, tmp_path / "copy")
        assert done.returncode == 0, done.stderr
        await_revision(directory, put(server, "first"))
    assert list(restored(directory, tmp_path / "target").entries.keys()) == ["first"]


# --- Copies of a running server.


def test_a_copy_from_the_first_that_answers(server: ServerProcess, tmp_path: Path) -> None:
    endpoints = f"tcp://127.0.0.1:{free_ports(1)[0]},{server.endpoint}"
    done = run_zkv("backup", "--from", endpoints, str(tmp_path / "copy"))
    assert done.returncode == 0, done.stderr


def test_backup_of_a_running_server(server: ServerProcess, tmp_path: Path) -> None:
    put(server, *numbered(2, 30))
    with Raw(server.endpoint) as client:
        client.ok(op="SNAPSHOT")
    rev = put(server, *numbered(31, 50))
    target = tmp_path / "copy"
    done = run_zkv("backup", "--from", server.endpoint, str(target))
    assert (done.returncode, done.stdout) == (
        0, f"backed up to {target}: revision {rev}, 50 entries, no fault\n",
    )  # fmt: skip
    with FrozenView(Files(), server.data_dir) as view:
        there = moments.state_at(view, PointInTime())
    assert as_seen(state_at(target, PointInTime())) == as_seen(there)
    for at in (30, 41):
        if at >= recovery.snapshots(Files(), Layout(target).snapshots)[0]:
            state = restored(target, tmp_path / f"at {at}", "--at-rev", str(at))
            assert len(state.entries) == at
    assert "not empty" in refused("backup", "--from", server.endpoint, target, status=1)


def test_an_archive_has_one_store(server: ServerProcess, directory: Path, tmp_path: Path) -> None:
    """Not even behind damage does another one get in."""
    layout = Layout(newest(directory))
    damaged = recovery.segments(Files(), layout.wal)[-2]
    flip(layout.segment(damaged), 70)
    with ServerProcess(tmp_path / "other", "--feed", "") as other:
        put(other, "of another store")
        archiver = ArchiverProcess(other.endpoint, directory)
        archiver.start(ready=False)
        eventually(lambda: "cannot archive: DIVERGED" in archiver.log(), "it is refused")
        assert archiver.stop() == 0
    assert reasons(directory) == ["begun"]


def test_it_takes_the_right_to_replicate(tmp_path: Path) -> None:
    users: dict[str, Any] = {"copier": {"admin": ["replicate"]}, "reader": {"read": [""]}}
    with Secured(tmp_path, users) as secured:
        secured.key("copier"), secured.key("reader")
        common = ("--from", secured.endpoint, "--server-key", secured.server_key)
        files = {name: str(tmp_path / f"{name}.key") for name in users}
        message = refused(
            "backup", *common, "--key-file", files["reader"], tmp_path / "none", status=1
        )
        assert "DENIED" in message
        assert not (tmp_path / "none").exists()
        done = run_zkv("backup", *common, "--key-file", files["copier"], tmp_path / "copy")
        assert done.returncode == 0, done.stderr
        flags = ("--server-key", secured.server_key, "--key-file", files["copier"])
        with ArchiverProcess(secured.endpoint, tmp_path / "archive", *flags) as archiver:
            assert archiver.stop() == 0


def test_an_interrupted_backup_is_refused(server: ServerProcess, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    with Relay(server.endpoint, lambda request: "after" in request) as relay:
        command = zkv_command("backup", "--from", relay.endpoint, str(target))
        with subprocess.Popen(command, env=environment()) as copying:
            assert relay.has_stopped.wait(LIMIT)
            copying.kill()
    assert run_zkv("check", str(target)).returncode == 1
    assert "damaged" in refused("restore", target, tmp_path / "restored", status=1)
    refused("serve", "--data-dir", target, "--endpoint", FREE_PORT)
    assert "not empty" in refused("backup", "--from", server.endpoint, target, status=1)


class Relay:
    """Passes requests on to a server, up to one after which it is silent. A context manager.

    Args:
        endpoint: of the server.
        is_last: tells which request is not passed on any more.
    """

    def __init__(self, endpoint: str, is_last: Callable[[dict[str, Any]], bool]) -> None:
        self._server = endpoint
        self._is_last = is_last
        self.has_stopped = threading.Event()
        self._over = threading.Event()
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(FREE_PORT)
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._context.term()

    def _run(self) -> None:
        with Raw(self._server) as server, self._socket:
            while not self._over.is_set():
                if not self._socket.poll(100):
                    continue
                body = self._socket.recv()
                if self._is_last(unpack(body)):
                    self.has_stopped.set()
                    return
                self._socket.send(server.exchange(body))


def test_backup_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkv.replication.copying.REPLY_SECONDS", 0.2)
    (port,) = free_ports(1)
    message = refused("backup", "--from", f"tcp://127.0.0.1:{port}", tmp_path / "copy", status=1)
    assert "no reply within" in message
    assert not (tmp_path / "copy").exists()
    assert "either a DIR or --from" in refused("backup", tmp_path / "copy")


# --- What a standby answers.


class Scripted:
    """A connection that answers as it is told. See `zkv.replication.standby.Source`."""

    places = 1
    endpoint = "tcp://scripted:1"
    patient = False

    def __init__(
        self, real: Any, refusal: Callable[[dict[str, Any]], dict[str, Any] | None]
    ) -> None:
        self._real = real
        self._refusal = refusal
        self.asked = 0

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        refusal = self._refusal(request)
        self.asked += refusal is not None
        answer: dict[str, Any] = self._real.ask(request, seconds) if refusal is None else refusal
        return answer

    def go_on(self) -> None:
        self._real.go_on()

    def hurry(self) -> None:
        self._real.hurry()

    def interrupt(self) -> None:
        self._real.interrupt()


def test_a_standby_that_is_behind(
    server: ServerProcess, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It refuses as one of another history does, but no new part begins."""
    behind = True

    def refusal(request: dict[str, Any]) -> dict[str, Any] | None:
        if not behind:
            return None
        if request["op"] == "INFO":
            return {"ok": True, "replication": {"role": "standby", "store": store, "term": 1}}
        return {"ok": False, "code": "DIVERGED", "message": "behind", "common": 3}

    with FrozenView(Files(), newest(directory)) as view:
        store = moments.state_at(view, PointInTime()).lineage.store
    caplog.set_level(logging.WARNING)
    follower = ArchiverThread(server.endpoint, directory)
    scripted = Scripted(follower._source, refusal)
    follower.archiver._source = scripted
    follower.archiver._asker.ask = scripted.ask
    follower._thread.start()
    eventually(lambda: scripted.asked > 4, "it has been refused")
    behind = False
    await_revision(directory, put(server, "more"))
    follower.__exit__()
    assert len(parts(directory)) == 1
    assert "cannot archive: DIVERGED: behind" in caplog.text


def test_times_are_local_without_an_offset(
    server: ServerProcess, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = spans(directory)[-1].last_time / 1000
    local = datetime.fromtimestamp(last).isoformat()
    assert len(restored(directory, tmp_path / "target", "--at-time", local).entries) == 60
    assert time.time() >= last
