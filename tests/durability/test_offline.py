"""zkv's verbs for data directories: check, repair, dump, backup and restore.

Most tests work on copies of one directory, `recorded`, which a real server has written and left by
a SIGKILL. What the store was at each of its revisions is known: that is what everything is compared
with.
"""

from __future__ import annotations

import base64
import itertools
import json
import random
import re
import shutil
import subprocess
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgpack
import pytest

from tests.forking import run_zkv
from tests.support import (
    LIMIT,
    Raw,
    ServerProcess,
    environment,
    eventually,
    pack,
    unpack,
    zkv_command,
)
from zkv import __version__
from zkv.durability import backup, dump, recovery, repair, segment
from zkv.durability.backup import MOST_REV, RESTORED_ABOVE
from zkv.durability.check import Survey, revisions, survey
from zkv.durability.files import Files
from zkv.durability.frozen_view import FrozenView
from zkv.durability.layout import Layout
from zkv.durability.lock import DirectoryLock
from zkv.durability.segment import SegmentScan
from zkv.entries.value_writer import write
from zkv.errors import DataDirError

State = dict[str, tuple[Any, int]]
"""Values and revisions by key."""

LAST_REV = 60
SNAPSHOT_REVS = (22, 41)
KEYS = [f"key {number}" for number in range(12)]
COUNTER = "a counter"
CONFIG = "[durability]\nsegment_bytes = 1060\nsnapshot_interval = 3600.0\n"


class Recorded(NamedTuple):
    """A data directory, and what the store was at each revision."""

    data: Path
    states: list[State]
    ops: list[dict[str, Any]]
    """The request that made each revision; none made revision 0."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Two snapshots, some segments, and a log that goes on behind the newest snapshot."""
    recorded = record(tmp_path_factory.mktemp("recorded"), SNAPSHOT_REVS)
    layout = Layout(recorded.data)
    assert recovery.snapshots(Files(), layout.snapshots) == list(SNAPSHOT_REVS)
    assert 1 < recovery.segments(Files(), layout.wal)[0] <= SNAPSHOT_REVS[0]
    assert len(recovery.segments(Files(), layout.wal)) >= 4
    return recorded


@pytest.fixture(scope="module")
def young(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A directory whose log goes back to revision 1; a snapshot is in the first segment's range."""
    recorded = record(tmp_path_factory.mktemp("young"), (2,))
    assert first_revision(segments(recorded.data)[0]) == 1
    assert first_revision(segments(recorded.data)[1]) > 2
    return recorded


def record(directory: Path, snapshot_revs: tuple[int, ...]) -> Recorded:
    """What a server leaves that is killed after many writes of all kinds.

    Every third is an exactly-once request, and behind some revisions stands one that changed
    nothing.
    """
    chance = random.Random(1)
    states: list[State] = [{}]
    ops: list[dict[str, Any]] = [{}]
    with ServerProcess(directory, config=CONFIG) as server, Raw(server.endpoint) as client:
        for rev in range(1, LAST_REV + 1):
            op = some_write(chance, states[-1], rev)
            if rev % 3 == 0:
                op |= {"session": "writer", "seq": rev}
            assert client.ok(**op)["rev"] == rev
            states.append(after(states[-1], op, rev))
            ops.append(op)
            if rev % 4 == 1:
                assert client.ok(**nothing_at(rev))["rev"] == rev
            if rev in snapshot_revs:
                client.ok(op="SNAPSHOT")
    return Recorded(server.data_dir, states, ops)


def nothing_at(rev: int) -> dict[str, Any]:
    """An exactly-once request that changes nothing."""
    return {"op": "MDELETE", "keys": ["absent"], "session": "idle", "seq": rev}


def some_write(chance: random.Random, state: State, number: int) -> dict[str, Any]:
    """A write that changes something."""
    put: dict[str, Any] = {"op": "PUT", "key": chance.choice(KEYS), "value": f"value of {number}"}
    if number % 2:
        put["ttl"] = 1000
    writes: list[dict[str, Any]] = [
        put,
        {"op": "MPUT", "items": {key: [number, key] for key in chance.sample(KEYS, 3)}},
        {"op": "INCR", "key": COUNTER, "by": number},
    ]
    if state:
        key = chance.choice(sorted(state))
        writes += [
            {"op": "DELETE", "key": key},
            {"op": "MDELETE", "keys": [key, "absent"]},
            {"op": "TOUCH", "key": key, "ttl": 1000 * number},
            {"op": "TXN", "ops": [{"op": "DELETE", "key": key}, put]},
        ]
    return chance.choice(writes)


def after(state: State, op: dict[str, Any], rev: int) -> State:
    """What ``op`` makes of ``state``."""
    state = dict(state)
    match op["op"]:
        case "PUT":
            state[op["key"]] = op["value"], rev
        case "MPUT":
            state |= {key: (value, rev) for key, value in op["items"].items()}
        case "INCR":
            state[op["key"]] = state.get(op["key"], (0, 0))[0] + op["by"], rev
        case "TOUCH":
            state[op["key"]] = state[op["key"]][0], rev
        case "DELETE" | "MDELETE":
            for key in op.get("keys") or [op["key"]]:
                state.pop(key, None)
        case "TXN":
            for part in op["ops"]:
                state = after(state, part, rev)
    return state


@pytest.fixture
def data(recorded: Recorded, tmp_path: Path) -> Path:
    """A copy of the recorded directory, to be damaged."""
    return copy_of(recorded, tmp_path / "server" / "data")


def copy_of(recorded: Recorded, directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(recorded.data, directory)
    return directory


# --- What the commands say ---------------------------------------------------------------------


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``zkv``, which must not end with a traceback."""
    done = run_zkv(*map(str, arguments), cwd=Path("/"))
    assert "Traceback" not in done.stderr, done.stderr
    return done


def ok(*arguments: str | Path) -> list[str]:
    """The lines on standard output of a ``zkv`` that must do what it is told."""
    done = run(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    formats = f"zkv: .*: format 2; dumped by zkv {re.escape(__version__)}\n"
    assert re.fullmatch(formats if arguments[0] == "dump" else "", done.stderr), done.stderr
    return done.stdout.splitlines()


def refusal(*arguments: str | Path) -> str:
    """The one line on standard error of a ``zkv`` that must fail with status 1."""
    done = run(*arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("zkv: ")
    return line


class Findings(NamedTuple):
    """What ``zkv check`` printed."""

    status: int
    faults: list[str]
    notes: list[str]
    summary: str


def check(data: Path) -> Findings:
    done = run("check", data)
    assert done.stderr == ""
    *lines, summary = done.stdout.splitlines()
    words = {"ok": [], "note": [], "fault": []}  # type: dict[str, list[str]]
    for line in lines:
        words[line[:5].strip()].append(line[5:].strip())
    return Findings(done.returncode, words["fault"], words["note"], summary)


def assert_clean(data: Path, rev: int, entries: int) -> None:
    findings = check(data)
    assert findings.faults == []
    word = "entry" if entries == 1 else "entries"
    assert findings.summary == f"revision {rev}, {entries} {word}, no fault"
    assert findings.status == 0


def dumped(data: Path, *flags: str) -> State:
    lines = [json.loads(line) for line in ok("dump", data, *flags)]
    assert [line["key"] for line in lines] == sorted(line["key"] for line in lines)
    return {line["key"]: (line["value"], line["rev"]) for line in lines}


def assert_serves(data: Path, rev: int, state: State) -> None:
    """A server starts with just ``state``, at ``rev``, and stops in order."""
    with ServerProcess(data.parent, config=CONFIG) as server, Raw(server.endpoint) as client:
        assert server.data_dir == data
        keys = [COUNTER, *KEYS]
        reply = client.ok(op="MGET", keys=keys)
        found = zip(keys, reply["values"], reply["revs"], strict=True)
        assert {key: (value, its) for key, value, its in found if its} == state
        assert client.ok(op="PUT", key="new", value=1)["rev"] == rev + 1
        assert server.stop() == 0


def assert_refuses_to_start(data: Path) -> None:
    done = run("serve", "--data-dir", data, "--endpoint", "tcp://127.0.0.1:*")
    assert done.returncode == 2
    assert "zkv check" in done.stderr


# --- How to damage a directory -----------------------------------------------------------------


def flip(path: Path, offset: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[offset] ^= 0x10
    path.write_bytes(damaged)


def flip_in_middle(path: Path) -> None:
    flip(path, path.stat().st_size // 2)


def snapshots(data: Path) -> list[Path]:
    return sorted((data / "snapshot").glob("*.snapshot"))


def segments(data: Path) -> list[Path]:
    return sorted((data / "wal").glob("*.wal"))


def flip_revision(data: Path, rev: int) -> Path:
    """Flip a byte in the payload of a frame in the log; returns the segment."""
    path, offset = place_of(data, rev)
    flip(path, offset + 40)
    return path


def place_of(data: Path, rev: int) -> tuple[Path, int]:
    """The segment that holds a revision, and where in it the revision's frame begins."""
    for path in segments(data):
        scan = SegmentScan(Files(), path)
        for commit in scan.commits():
            if commit.rev == rev and commit.changes:
                return path, scan.end
    raise AssertionError(f"there is no revision {rev}")


def end_log_with(data: Path, rev: int) -> None:
    """Make it so that nothing was written behind ``rev``."""
    path, offset = place_of(data, rev + 1)
    path.write_bytes(path.read_bytes()[:offset])
    for other in segments(data):
        if other > path:
            other.unlink()


def first_revision(path: Path) -> int:
    return int(path.name.split(".", maxsplit=1)[0])


def files_in(directory: Path) -> dict[str, bytes]:
    """Every file, by its path in ``directory``, but for the lock, which is no data."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "LOCK"
    }


def aside(data: Path) -> Path:
    (path,) = data.glob("damaged-*")
    return path


# --- check -------------------------------------------------------------------------------------


def test_check_of_what_is_whole(data: Path, recorded: Recorded) -> None:
    before = files_in(data)
    assert_clean(data, LAST_REV, len(recorded.states[LAST_REV]))
    assert files_in(data) == before


def test_check_names_every_file(data: Path) -> None:
    lines = ok("check", data)
    for path in [*snapshots(data), *segments(data)]:
        assert any(line.startswith(f"ok     {path}: ") for line in lines)


def test_check_of_a_torn_tail(data: Path, recorded: Recorded) -> None:
    newest = segments(data)[-1]
    size = newest.stat().st_size
    newest.write_bytes(newest.read_bytes() + b"\0\0\1\0half a frame")
    findings = check(data)
    assert findings.status == 0
    assert findings.faults == []
    (note,) = findings.notes
    assert note.startswith(f"{newest}: ")
    assert f"torn tail: the 16 bytes from offset {size} on" in note
    assert findings.summary.startswith(f"revision {LAST_REV}, ")
    assert ok("repair", data)[0].startswith("nothing to repair: ")
    assert_serves(data, LAST_REV, recorded.states[LAST_REV])
    assert any(".torn-" in note for note in check(data).notes)


def test_check_tells_all_faults(data: Path) -> None:
    flip_in_middle(snapshots(data)[0])
    flip_in_middle(snapshots(data)[1])
    one = flip_revision(data, SNAPSHOT_REVS[0] + 1)
    other = flip_revision(data, LAST_REV - 1)
    findings = check(data)
    assert findings.status == 1
    culprits = [fault.split(": ")[0] for fault in findings.faults]
    assert sorted(culprits) == sorted(map(str, [*snapshots(data), one, other]))
    assert "4 faults" in findings.summary
    assert "a server does not start with this; see `zkv repair`" in findings.summary


def test_check_of_what_recovery_does_not_need(data: Path, recorded: Recorded) -> None:
    """The way back is damaged: a fault, though the server starts."""
    flip_in_middle(snapshots(data)[0])
    findings = check(data)
    assert findings.status == 1
    assert len(findings.faults) == 1
    assert "a server starts with this" in findings.summary
    assert_serves(data, LAST_REV, recorded.states[LAST_REV])


def test_check_of_a_missing_segment(data: Path) -> None:
    path = segments(data)[-2]
    path.unlink()
    (fault,) = check(data).faults
    before = segments(data)[-2]
    last = first_revision(segments(data)[-1]) - 1
    assert fault.startswith(f"{before}: ends too early; ")
    assert fault.endswith(f"revisions {first_revision(path)} to {last} affected")


def test_check_of_a_missing_first_segment(data: Path) -> None:
    segments(data)[0].unlink()
    missing = revisions(SNAPSHOT_REVS[0] + 1, first_revision(segments(data)[0]) - 1)
    (fault,) = check(data).faults
    assert fault == f"{snapshots(data)[0]}: missing after it: {missing}"


def test_check_of_a_log_that_ends_before_the_snapshot(data: Path) -> None:
    for path in segments(data):
        if first_revision(path) > SNAPSHOT_REVS[0] + 1:
            path.unlink()
    (fault,) = check(data).faults
    newest = segments(data)[-1]
    assert re.fullmatch(f"{newest}: missing after it: revisions .* to {SNAPSHOT_REVS[1]}", fault)


def test_check_without_any_segment(data: Path) -> None:
    shutil.rmtree(data / "wal")
    (fault,) = check(data).faults
    assert fault == f"{data / 'wal'}: there is no segment; its contents are unknown"


def test_check_of_leftovers(data: Path) -> None:
    leftovers = {
        data / "snapshot" / "00000000000000000099.snapshot.tmp": "unfinished",
        data / "wal" / "00000000000000000001.wal.torn-20": "a torn tail that was cut off a segment",
        data / "wal" / "notes.txt": "not a file of zkv",
    }
    for path in leftovers:
        path.write_bytes(b"")
    (data / "damaged-20260101T000000Z").mkdir()
    findings = check(data)
    assert findings.status == 0
    assert len(findings.notes) == 4
    for path, text in leftovers.items():
        assert any(note.startswith(f"{path}: ") and text in note for note in findings.notes)


def test_check_of_a_server_without_data(tmp_path: Path) -> None:
    with ServerProcess(tmp_path):
        pass
    assert_clean(tmp_path / "data", 0, 0)


VERBS = ["check", "repair", "dump", "backup", "restore"]


@pytest.mark.parametrize("verb", VERBS)
def test_no_data_directory(tmp_path: Path, verb: str) -> None:
    target = tmp_path / "target"
    more = [target] if verb in {"backup", "restore"} else []
    directory = tmp_path / "directory"
    assert refusal(verb, directory, *more) == f"zkv: {directory}: No such file or directory"
    directory.mkdir()
    assert (
        refusal(verb, directory, *more)
        == f"zkv: {directory}: there is no data here: the directory is empty"
    )
    (directory / "readme").write_text("")
    assert refusal(verb, directory, *more).startswith(f"zkv: {directory}: not a zkv data directory")
    assert refusal(verb, directory / "readme", *more).endswith("readme: Not a directory")
    assert [path.name for path in directory.iterdir()] == ["readme"]
    assert not target.exists()


@pytest.mark.parametrize("verb", VERBS)
def test_usage(verb: str) -> None:
    assert run(verb).returncode == 2
    assert run("dump", "x", "--at-rev", "-1").returncode == 2


def test_nobody_reads(data: Path) -> None:
    with subprocess.Popen(
        zkv_command("dump", str(data), "--log"),
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(LIMIT) == 141


# --- repair ------------------------------------------------------------------------------------


def test_repair_of_what_is_whole(data: Path) -> None:
    before = files_in(data)
    (line,) = ok("repair", data)
    assert line.startswith("nothing to repair: ")
    assert files_in(data) == before


def test_repair_without_loss_after_damage_of_the_newest_snapshot(
    data: Path, recorded: Recorded
) -> None:
    newest = snapshots(data)[-1]
    flip_in_middle(newest)
    before = files_in(data)
    assert_refuses_to_start(data)
    lines = ok("repair", "--yes", data)
    assert "lost   nothing" in lines
    assert "lost: nothing; " in lines[-1]
    assert not newest.exists()
    assert files_in(aside(data)) == {
        f"snapshot/{newest.name}": before.pop(f"snapshot/{newest.name}")
    }
    shutil.rmtree(aside(data))
    assert files_in(data) == before
    assert_clean(data, LAST_REV, len(recorded.states[LAST_REV]))
    assert_serves(data, LAST_REV, recorded.states[LAST_REV])


@pytest.mark.parametrize("rev", [SNAPSHOT_REVS[1] + 1, 52, LAST_REV - 1])
def test_repair_cuts_the_log(data: Path, recorded: Recorded, rev: int) -> None:
    path = flip_revision(data, rev)
    before = files_in(data)
    assert_refuses_to_start(data)
    line = refusal("dump", data)
    assert f"{path}: damaged at offset" in line
    lines = ok("repair", "--yes", data)
    assert f"lost   revisions {rev} to {LAST_REV}" in lines
    assert f"lost: revisions {rev} to {LAST_REV}; " in lines[-1]
    originals = files_in(aside(data))
    assert before.items() >= originals.items()
    assert f"wal/{path.name}" in originals
    assert_clean(data, LAST_REV + 1, len(recorded.states[rev - 1]))
    # Revisions that were lost do not come again.
    assert_serves(data, LAST_REV + 1, recorded.states[rev - 1])


def test_clients_after_revisions_were_lost(data: Path, recorded: Recorded) -> None:
    """Who has seen them is told, and exactly-once requests among them run again."""
    flip_revision(data, 50)
    ok("repair", "--yes", data)
    with ServerProcess(data.parent, config=CONFIG) as server, Raw(server.endpoint) as client:
        reply = client.call(op="CHANGES", since=LAST_REV)
        assert (reply["code"], reply["oldest"]) == ("COMPACTED", LAST_REV + 2)
        assert client.ok(op="CHANGES", since=LAST_REV + 1)["changes"] == []
        for op, rev in ((recorded.ops[48], 48), (nothing_at(41), 41), (nothing_at(49), 49)):
            reply = client.ok(**op)
            assert (reply["rev"], reply["replayed"]) == (rev, True)
        reply = client.ok(**nothing_at(53))
        assert reply["rev"] == LAST_REV + 1
        assert "replayed" not in reply


@pytest.mark.parametrize("place", ["restored", "rebuilt"])
def test_exactly_once_requests_are_not_forgotten(
    data: Path, recorded: Recorded, tmp_path: Path, place: str
) -> None:
    if place == "restored":
        ok("backup", data, tmp_path / "backup")
        shutil.rmtree(data)
        ok("restore", tmp_path / "backup", data)
    else:
        flip_revision(data, SNAPSHOT_REVS[1] - 1)
        ok("repair", "--yes", data)
    with ServerProcess(data.parent, config=CONFIG) as server, Raw(server.endpoint) as client:
        for rev in range(1, LAST_REV + 1):
            if rev % 3 == 0:
                assert client.ok(**recorded.ops[rev])["replayed"] is True
            if rev % 4 == 1:
                reply = client.ok(**nothing_at(rev))
                assert (reply["rev"], reply["replayed"]) == (rev, True)
        rev = LAST_REV + RESTORED_ABOVE if place == "restored" else LAST_REV
        assert client.ok(op="INFO")["rev"] == rev


def test_repair_reads_on_behind_damage_that_a_snapshot_covers(
    data: Path, recorded: Recorded
) -> None:
    entries = ok("dump", data)
    assert any('"expires": ' in line for line in entries)
    flip_revision(data, SNAPSHOT_REVS[1])
    assert_refuses_to_start(data)
    before = files_in(data)
    assert "lost   nothing" in ok("repair", "--yes", data)
    assert files_in(aside(data)) == before
    assert ok("dump", data) == entries
    assert_clean(data, LAST_REV, len(recorded.states[LAST_REV]))
    assert_serves(data, LAST_REV, recorded.states[LAST_REV])


def test_repair_of_what_recovery_does_not_need(data: Path, recorded: Recorded) -> None:
    old = snapshots(data)[0]
    flip_in_middle(old)
    assert "lost   nothing" in ok("repair", "--yes", data)
    assert f"snapshot/{old.name}" in files_in(aside(data))
    assert_clean(data, LAST_REV, len(recorded.states[LAST_REV]))
    assert dumped(data) == recorded.states[LAST_REV]


def test_repair_after_a_missing_segment(data: Path, recorded: Recorded) -> None:
    missing = segments(data)[-2]
    missing.unlink()
    first = max(first_revision(missing), SNAPSHOT_REVS[1] + 1)
    assert f"lost   revisions {first} to {LAST_REV}" in ok("repair", "--yes", data)
    assert_clean(data, LAST_REV + 1, len(recorded.states[first - 1]))
    assert_serves(data, LAST_REV + 1, recorded.states[first - 1])


def test_repair_of_a_log_and_the_newest_snapshot(data: Path, recorded: Recorded) -> None:
    """The snapshot cannot be read, but says how far the store had got."""
    flip_in_middle(snapshots(data)[-1])
    flip_revision(data, 30)
    assert f"lost   revisions 30 to {LAST_REV}" in ok("repair", "--yes", data)
    assert_clean(data, LAST_REV + 1, len(recorded.states[29]))
    assert_serves(data, LAST_REV + 1, recorded.states[29])


def test_repair_counts_what_left_nothing_readable(data: Path, recorded: Recorded) -> None:
    """Where even the lengths of frames are gone, enough revisions are skipped."""
    newest = segments(data)[-1]
    first = first_revision(newest)
    size = newest.stat().st_size
    newest.write_bytes(b"\xff" * size)
    lines = ok("repair", "--yes", data)
    (lost,) = [line for line in lines if line.startswith("lost ")]
    found = re.fullmatch(r"lost   up to (\d+) unreadable revisions after revision (\d+)", lost)
    assert found, lost
    most, known = map(int, found.groups())
    assert known == first - 1
    assert known + most >= LAST_REV
    rev = known + most + 1
    assert_clean(data, rev, len(recorded.states[first - 1]))
    assert_serves(data, rev, recorded.states[first - 1])


def test_nothing_can_be_saved(data: Path) -> None:
    for path in snapshots(data):
        flip_in_middle(path)
    before = files_in(data)
    done = run("repair", "--yes", data)
    assert done.returncode == 1
    assert done.stderr.startswith(f"zkv: {data}: nothing in it can be saved: ")
    assert "zkv restore" in done.stderr
    assert files_in(data) == before


def test_both_snapshots_damaged_and_all_of_the_log(tmp_path: Path) -> None:
    state: State = {}
    with ServerProcess(tmp_path, config=CONFIG) as server, Raw(server.endpoint) as client:
        for number, key in enumerate(KEYS[:4], start=1):
            client.ok(op="PUT", key=key, value=number)
            state[key] = number, number
            if number in {1, 2}:
                client.ok(op="SNAPSHOT")
    data = tmp_path / "data"
    for path in snapshots(data):
        flip_in_middle(path)
    assert len(snapshots(data)) == 2
    assert_refuses_to_start(data)
    assert "lost   nothing" in ok("repair", "--yes", data)
    assert snapshots(data) == []
    assert_clean(data, 4, 4)
    assert_serves(data, 4, state)


def test_repair_asks(data: Path) -> None:
    flip_revision(data, 50)
    before = files_in(data)

    for text in ("n\n", "", "\n"):
        done = run_zkv("repair", str(data), cwd=Path("/"), input=text)
        assert done.returncode == 1
        assert f"lost   revisions 50 to {LAST_REV}" in done.stdout
        assert done.stderr == "zkv: nothing was done\n"
        assert files_in(data) == before
    assert run_zkv("repair", str(data), cwd=Path("/"), input="y\n").returncode == 0
    assert check(data).status == 0


def test_repair_twice(data: Path, recorded: Recorded) -> None:
    flip_revision(data, 55)
    ok("repair", "--yes", data)
    with ServerProcess(data.parent, config=CONFIG) as server, Raw(server.endpoint) as client:
        first = client.ok(op="PUT", key="a", value=1)["rev"]
        client.ok(op="SNAPSHOT")
    flip_in_middle(snapshots(data)[-1])
    assert "lost   nothing" in ok("repair", "--yes", data)
    assert len(list(data.glob("damaged-*"))) == 2
    assert dumped(data) == recorded.states[54] | {"a": (1, first)}


def test_verbs_beside_a_server(data: Path, recorded: Recorded) -> None:
    state = recorded.states[LAST_REV]
    with ServerProcess(data.parent, config=CONFIG) as server:
        before = files_in(data)
        findings = check(data)
        assert findings.status == 0
        assert (
            f"{data}: process {server.process.pid} is using this data directory"
            in findings.notes[0]
        )
        line = refusal("repair", "--yes", data)
        assert line == (
            f"zkv: {data}: another server (process {server.process.pid}) holds this data directory"
        )
        assert dumped(data) == state
        ok("backup", data, data.parent / "backup")
        assert files_in(data) == before
        assert server.stop() == 0
    assert dumped(data.parent / "backup") == state


def test_frames_in_flight_are_no_fault(data: Path) -> None:
    newest = segments(data)[-1]
    newest.write_bytes(newest.read_bytes() + b"\0\0\1\0half a frame")
    with Files().lock(data / "LOCK"):
        findings = check(data)
    assert findings.status == 0
    assert len(findings.notes) == 1
    assert "is using this data directory" in findings.notes[0]


# --- dump --------------------------------------------------------------------------------------


def test_dump_at_each_revision(data: Path, recorded: Recorded) -> None:
    assert dumped(data) == recorded.states[LAST_REV]
    for rev in (SNAPSHOT_REVS[0], 33, SNAPSHOT_REVS[1], 46, LAST_REV):
        assert dumped(data, "--at-rev", str(rev)) == recorded.states[rev]
    with FrozenView(Files(), data) as view:
        for rev in range(SNAPSHOT_REVS[0], LAST_REV + 1):
            entries = dump.state_at(view, rev)
            assert in_model_form(entries) == recorded.states[rev]


def in_model_form(entries: Mapping[str, Any]) -> State:
    return {key: (unpack(entry.value), entry.rev) for key, entry in entries.items()}


def test_dump_at_a_revision_that_is_not_there(data: Path) -> None:
    oldest = SNAPSHOT_REVS[0]
    for rev in (0, 1, oldest - 1):
        assert refusal("dump", data, "--at-rev", str(rev)) == (
            f"zkv: {data}: revision {rev} cannot be reconstructed any more: the oldest that can "
            f"is {oldest}"
        )
    assert refusal("dump", data, "--at-rev", str(LAST_REV + 1)) == (
        f"zkv: {data}: there is no revision {LAST_REV + 1}: the newest is {LAST_REV}"
    )


def test_dump_of_what_leads_around_damage(data: Path, recorded: Recorded) -> None:
    """An older snapshot and the log lead to a revision, too; what is behind it does not matter."""
    flip_in_middle(snapshots(data)[-1])
    flip_revision(data, 55)
    assert dumped(data, "--at-rev", "54") == recorded.states[54]
    assert "damaged at offset" in refusal("dump", data, "--at-rev", "55")
    assert f"{snapshots(data)[-1]}: damaged" in refusal("dump", data)


def test_dump_of_the_log(data: Path, recorded: Recorded) -> None:
    first = first_revision(segments(data)[0])
    lines = [json.loads(line) for line in ok("dump", data, "--log")]
    writes = [line for line in lines if line["changes"]]
    assert [line["rev"] for line in writes] == list(range(first, LAST_REV + 1))
    for line in writes:
        state = dict(recorded.states[line["rev"] - 1])
        for change in line["changes"]:
            if change["op"] in {"PUT", "TOUCH"}:
                state[change["key"]] = change["value"], line["rev"]
                assert change["op"] == "PUT" or change["expires"] > line["time"]
            else:
                assert change == {"op": "DELETE", "key": change["key"]}
                del state[change["key"]]
        assert state == recorded.states[line["rev"]]
        assert (line["rev"] % 3 == 0) == (line.get("session") == "writer")
    refused = {rev for rev in range(first, LAST_REV + 1) if rev % 4 == 1}
    before = {first - 1} & {line["rev"] for line in lines}  # Logged behind the segment before.
    assert {line["seq"] for line in lines if line not in writes} == refused | before
    assert [line["lsn"] for line in lines] == list(range(lines[0]["lsn"], lines[-1]["lsn"] + 1))
    until = [json.loads(line) for line in ok("dump", data, "--log", "--at-rev", "40")]
    assert until == lines[: lines.index(until[-1]) + 1]
    assert until[-1]["rev"] == 40
    for rev in (first - 1, LAST_REV + 1):
        assert refusal("dump", data, "--log", "--at-rev", str(rev)) == (
            f"zkv: {data / 'wal'}: revision {rev} is not in the log: it holds "
            + (f"revisions {first} to {LAST_REV}" if rev > first else "no revisions")
        )


def test_dump_of_a_damaged_log(data: Path) -> None:
    path = flip_revision(data, 50)
    first = first_revision(segments(data)[0])
    done = run("dump", data, "--log")
    assert done.returncode == 1
    revs = {json.loads(line)["rev"] for line in done.stdout.splitlines()}
    assert revs - {first - 1} == set(range(first, 50))
    assert f"{path}: damaged at offset" in done.stderr


def from_form(form: Any) -> Any:
    """The msgpack value that is shown as ``form``."""
    if isinstance(form, list):
        return list(map(from_form, form))
    if isinstance(form, dict):
        name, content = next(iter(form.items()), ("", None))
        if len(form) == 1 and name in FORMS:
            return FORMS[name](content)
        return {key: from_form(value) for key, value in form.items()}
    return form


FORMS: dict[str, Callable[[Any], Any]] = {
    "$bin": base64.b64decode,
    "$ext": lambda form: msgpack.ExtType(form[0], base64.b64decode(form[1])),
    "$float": float,
    "$map": lambda form: {from_form(key): from_form(value) for key, value in form},
}


@pytest.mark.parametrize(
    "value",
    [
        None, True, -1, 2**64 - 1, 1.5, float("inf"), "", "é\n", "\udcff", b"", b"\xff",
        [], [b"x", [None]], {}, {"a": b"x", "b": {"c": 1}}, {1: 2, b"k": [b"v"]},
        msgpack.ExtType(5, b"x"), {"$bin": "eA=="}, {"$map": []}, {"$": {"$ext": b"x"}},
        {"$bin": "eA==", "more": 1},
    ],
)  # fmt: skip
def test_json_form_gives_the_value_back(value: Any) -> None:
    text = write(pack(value))
    assert "\n" not in text
    text.encode("utf-8")
    assert from_form(json.loads(text)) == value


def test_json_forms_of_what_python_cannot_hold() -> None:
    """Maps with a list for a key or a key twice, deep nesting, a timestamp that is none."""
    assert write(bytes.fromhex("81 91 01 02")) == '{"$map": [[[1], 2]]}'
    assert write(bytes.fromhex("82 01 02 01 03")) == '{"$map": [[1, 2], [1, 3]]}'
    assert write(b"\xc7\x03\xffabc") == '{"$ext": [-1, "YWJj"]}'
    packed = b"\x91" * 5000 + b"\xc0"
    assert base64.b64decode(json.loads(write(packed))["$msgpack"]) == packed


# --- backup and restore ------------------------------------------------------------------------


def test_backup_and_restore(data: Path, recorded: Recorded, tmp_path: Path) -> None:
    backup, restored = tmp_path / "some" / "backup", tmp_path / "restored" / "data"
    (line,) = ok("backup", data, backup)
    assert line.startswith(f"backed up to {backup}: revision {LAST_REV}, ")
    assert_clean(backup, LAST_REV, len(recorded.states[LAST_REV]))
    restored.mkdir(parents=True)
    before = files_in(backup)
    (line,) = ok("restore", backup, restored)
    rev = LAST_REV + RESTORED_ABOVE
    assert line.startswith(f"restored to {restored}: revision {rev}, ")
    assert_clean(restored, rev, len(recorded.states[LAST_REV]))
    assert_serves(restored, rev, recorded.states[LAST_REV])
    assert files_in(backup) == before
    assert files_in(data) == files_in(recorded.data)


def test_restored_again_and_again(data: Path, recorded: Recorded, tmp_path: Path) -> None:
    """Each time the revision is higher, until there is none any more."""
    rev, source = LAST_REV, data
    for number in range(3):
        target = tmp_path / str(number)
        ok("restore", source, target)
        rev, source = rev + RESTORED_ABOVE, target
        assert_clean(target, rev, len(recorded.states[LAST_REV]))
    assert dumped(source) == recorded.states[LAST_REV]
    seen = MOST_REV - RESTORED_ABOVE
    for above, raised in ((100, rev + RESTORED_ABOVE), (seen, MOST_REV)):
        target = tmp_path / f"above {above}" / "data"
        ok("restore", "--above", str(above), source, target)
        assert_serves(target, raised, recorded.states[LAST_REV])
    line = refusal("restore", "--above", str(seen + 1), source, tmp_path / "more")
    assert line.startswith(f"zkv: {source}: cannot be restored: its revision would be ")
    assert not (tmp_path / "more").exists()
    refusal("restore", tmp_path / f"above {seen}" / "data", tmp_path / "more")


def test_backup_before_the_first_snapshot(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, config=CONFIG) as server, Raw(server.endpoint) as client:
        client.ok(op="PUT", key=KEYS[0], value=1)
        ok("backup", server.data_dir, tmp_path / "1")
    assert snapshots(tmp_path / "1") == []
    ok("restore", tmp_path / "1", tmp_path / "2" / "data")
    assert_serves(tmp_path / "2" / "data", 1 + RESTORED_ABOVE, {KEYS[0]: (1, 1)})


def test_backup_of_an_empty_store(tmp_path: Path) -> None:
    """Also what is restored from it may not give a revision again."""
    with ServerProcess(tmp_path) as server:
        ok("backup", server.data_dir, tmp_path / "1")
    ok("restore", tmp_path / "1", tmp_path / "2" / "data")
    assert_serves(tmp_path / "2" / "data", RESTORED_ABOVE, {})


def test_backup_leaves_a_torn_tail_behind(data: Path, recorded: Recorded, tmp_path: Path) -> None:
    newest = segments(data)[-1]
    whole = newest.read_bytes()
    newest.write_bytes(whole + b"\0\0\1\0half a frame")
    ok("backup", data, tmp_path / "backup")
    assert (tmp_path / "backup" / "wal" / newest.name).read_bytes() == whole
    assert check(tmp_path / "backup").notes == []
    assert dumped(tmp_path / "backup") == recorded.states[LAST_REV]


def test_target_that_is_not_empty(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").write_text("mine")
    for verb in ("backup", "restore"):
        line = refusal(verb, data, target)
        assert line == f"zkv: {target}: not empty; nothing was copied"
        assert [path.name for path in target.iterdir()] == ["mine"]
        assert refusal(verb, data, target / "mine").startswith(f"zkv: {target / 'mine'}: ")
        assert (target / "mine").read_text() == "mine"


def test_backup_of_what_is_damaged(data: Path, tmp_path: Path) -> None:
    path = flip_revision(data, 50)
    target = tmp_path / "some" / "target"
    line = refusal("backup", data, target)
    assert line.startswith(f"zkv: {path}: damaged at offset ")
    assert line.endswith("see `zkv check` and `zkv repair`")
    assert not target.parent.exists()


def test_restore_checks_first(data: Path, tmp_path: Path) -> None:
    path = snapshots(data)[0]
    flip_in_middle(path)
    assert refusal("restore", data, tmp_path / "target").startswith(f"zkv: {path}: damaged at ")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: snapshots(data)[0].unlink(),
        lambda data: segments(data)[0].unlink(),
        lambda data: (data / "wal" / segment.file_name(LAST_REV + 1)).touch(),
    ],
    ids=["snapshot goes", "segment goes", "segment comes"],
)
def test_picture_of_files_that_come_and_go(data: Path, change: Callable[[Path], object]) -> None:
    """What changes while it is taken is in it; what changes later is not."""
    first = snapshots(data)[0]

    class BusyFiles(Files):
        changed = False

        def open_read(self, path: Path) -> BinaryIO:
            file = super().open_read(path)
            if path == first and not self.changed:
                self.changed = True
                change(data)
            return file

    with FrozenView(BusyFiles(), data) as view:
        before = files_in(data)
        assert view.snapshots == [first_revision(path) for path in snapshots(data)]
        assert view.segments == [first_revision(path) for path in segments(data)]
        shutil.rmtree(data)
        for name, content in before.items():
            with view.open_read(data / name) as file:
                assert file.read() == content


class Counter(threading.Thread):
    """Writes 1, 2, 3 ... under one key, one acknowledged before the next, until told to stop."""

    def __init__(self, endpoint: str, key: str) -> None:
        super().__init__()
        self.key = key
        self.acknowledged = 0
        self.stopping = threading.Event()
        self._endpoint = endpoint

    def run(self) -> None:
        with Raw(self._endpoint) as client:
            while not self.stopping.is_set():
                client.ok(op="PUT", key=self.key, value=self.acknowledged + 1)
                self.acknowledged += 1


def test_backup_under_write_load(tmp_path: Path) -> None:
    """With snapshots and segments that come and go all the time.

    Each write has a revision of its own and adds 1 to the sum of all values: so a state is that of
    one revision if its sum is that revision.
    """
    config = "[durability]\nsegment_bytes = 1024\nsnapshot_interval = 0.001\n"
    with ServerProcess(tmp_path / "server", config=config) as server:
        counters = [Counter(server.endpoint, key) for key in KEYS[:4]]
        for counter in counters:
            counter.start()
        try:
            backups = []
            for number in range(4):
                had = {each.key: each.acknowledged for each in counters}
                eventually(
                    lambda had=had: all(
                        each.acknowledged > had[each.key] + 20 for each in counters
                    ),  # type: ignore[misc]
                    "writes go on",
                )
                before = {each.key: each.acknowledged for each in counters}
                target = tmp_path / str(number) / "backup"
                ok("backup", server.data_dir, target)
                backups.append((target, before))
        finally:
            for counter in counters:
                counter.stopping.set()
            for counter in counters:
                counter.join(LIMIT)
        assert server.stop() == 0
    for target, before in backups:
        data = target.parent / "data"
        ok("restore", target, data)
        state = dumped(data)
        assert all(state[key][0] >= before[key] for key in before)
        rev = sum(value for value, _ in state.values())
        assert rev == max(rev for _, rev in state.values())
        assert_clean(data, rev + RESTORED_ABOVE, len(state))
        assert_serves(data, rev + RESTORED_ABOVE, state)


# --- Whatever is damaged, wherever it stops ----------------------------------------------------


class FastFiles(Files):
    """Syncs nothing: the machine does not stop in these tests."""

    def sync(self, file: BinaryIO) -> None:
        pass

    def sync_directory(self, path: Path) -> None:
        pass


class Crash(BaseException):
    """The process ends here: nothing it has still in mind comes to be."""


class CrashingFiles(FastFiles):
    """Ends the process before its n-th change of the file system, a write in the midst of it."""

    def __init__(self, calls: int) -> None:
        self.left = calls
        self._opened: list[BinaryIO | DirectoryLock] = []

    def _call(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crash

    def close(self) -> None:
        for file in self._opened:
            file.close()

    def make_directory(self, path: Path) -> bool:
        self._call()
        return super().make_directory(path)

    def create(self, path: Path) -> BinaryIO:
        self._call()
        file = super().create(path)
        self._opened.append(file)
        return file

    def write(self, file: BinaryIO, data: bytes) -> None:
        try:
            self._call()
        except Crash:
            super().write(file, data[: len(data) // 2])
            raise
        super().write(file, data)

    def rename(self, old: Path, new: Path) -> None:
        self._call()
        super().rename(old, new)

    def remove(self, path: Path) -> None:
        self._call()
        super().remove(path)

    def remove_directory(self, path: Path) -> None:
        self._call()
        super().remove_directory(path)

    def lock(self, path: Path) -> DirectoryLock:
        self._call()
        lock = super().lock(path)
        self._opened.append(lock)
        return lock


def surveyed(data: Path) -> Survey:
    with FrozenView(Files(), data) as view:
        return survey(view)


def recovered(data: Path) -> recovery.Recovered | None:
    """What a server would start with; None where it refuses."""
    layout = Layout(data)
    try:
        return recovery.recover(Files(), layout.snapshots, layout.wal)
    except DataDirError:
        return None


def repaired(files: Files, data: Path) -> repair.Plan | None:
    """What ``zkv repair --yes`` does, in this process."""
    plan = repair.make_plan(Layout(data), surveyed(data))
    if plan is not None:
        repair.carry_out(files, Layout(data), plan, "damaged-1", 0.0)
    return plan


def damages() -> Iterator[tuple[str, Callable[[bytes], bytes]]]:
    """Ways to damage the bytes of a file, each at a place."""
    for place in range(1, 24):
        share = place / 24

        def cut(data: bytes, share: float = share) -> bytes:
            return data[: int(len(data) * share)]

        def flip(data: bytes, share: float = share) -> bytes:
            at = int(len(data) * share)
            return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]

        def hole(data: bytes, share: float = share) -> bytes:
            at = int(len(data) * share)
            return data[:at] + bytes(len(data[at : at + 100])) + data[at + 100 :]

        yield f"cut {share}", cut
        yield f"flip {share}", flip
        yield f"hole {share}", hole


def test_whatever_is_damaged(recorded: Recorded, tmp_path: Path) -> None:
    """check and recovery agree; a repair gives what it promised, and no revision comes again."""
    data = tmp_path / "data"
    names = [path.relative_to(recorded.data) for path in recorded.data.glob("*/*")]
    assert len(names) >= 5
    for name, (what, damage) in itertools.product(names, damages()):
        copy_of(recorded, data)
        (data / name).write_bytes(damage((data / name).read_bytes()))
        found, state = surveyed(data), recovered(data)
        assert found.serves == (state is not None), (name, what)
        assert found.faults or state is not None, (name, what)
        if state is not None:
            assert (found.rev, found.entries) == (state.rev, len(state.entries)), (name, what)
            assert in_model_form(state.entries) == recorded.states[state.rev], (name, what)
        plan = repaired(FastFiles(), data)
        if plan is None:
            continue
        if not what.startswith("cut") or name.name != segments(recorded.data)[-1].name:
            # (What is behind the end of a file that is too short, nobody knows.)
            assert plan.reach == LAST_REV or plan.rev > LAST_REV, (name, what)
        assert plan.loses == (plan.loss() != "nothing"), (name, what)
        assert_repaired(data, plan, recorded)


def assert_repaired(data: Path, plan: repair.Plan, recorded: Recorded) -> None:
    found, state = surveyed(data), recovered(data)
    assert found.faults == []
    assert state is not None
    assert found.rev == state.rev == plan.rev
    assert in_model_form(state.entries) == recorded.states[plan.reach]


def flip_newest_snapshot(data: Path) -> None:
    flip_in_middle(snapshots(data)[-1])


def flip_old_and_new(data: Path) -> None:
    flip_in_middle(snapshots(data)[-1])
    flip_revision(data, 50)


def flip_what_gets_the_same_name(data: Path) -> None:
    """The new snapshot takes the place of the damaged one."""
    end_log_with(data, SNAPSHOT_REVS[1])
    flip_in_middle(snapshots(data)[-1])
    flip_revision(data, first_revision(segments(data)[0]))


@pytest.mark.parametrize(
    "damage",
    [
        flip_newest_snapshot,
        flip_old_and_new,
        flip_what_gets_the_same_name,
        lambda data: flip_revision(data, 50),
        lambda data: flip_revision(data, SNAPSHOT_REVS[1]),
    ],
    ids=["snapshot", "both", "same name", "log", "covered log"],
)
def test_repair_that_is_interrupted(
    recorded: Recorded, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    """After a crash anywhere a server refuses or has what was promised; a second try succeeds."""
    for calls in itertools.count():
        data = copy_of(recorded, tmp_path / str(calls))
        damage(data)
        plan = repair.make_plan(Layout(data), surveyed(data))
        assert plan is not None
        before = files_in(data)
        files = CrashingFiles(calls)
        try:
            repair.carry_out(files, Layout(data), plan, "damaged-0", 0.0)
        except Crash:
            pass
        else:
            assert_repaired(data, plan, recorded)
            break
        finally:
            files.close()
        state = recovered(data)
        if state is not None:
            assert state.rev == plan.rev
            assert in_model_form(state.entries) == recorded.states[plan.reach]
        repaired(FastFiles(), data)
        assert_repaired(data, plan, recorded)
        assert set(before.values()) <= set(files_in(data).values())
    assert calls > 3


@pytest.mark.parametrize("source", ["recorded", "young", "young, no snapshot"])
def test_copy_that_is_interrupted(
    recorded: Recorded, young: Recorded, tmp_path: Path, source: str
) -> None:
    """It is never taken for an older state."""
    data = copy_of(recorded if source == "recorded" else young, tmp_path / "data")
    if source == "young, no snapshot":
        snapshots(data)[0].unlink()
    calls, target = 0, tmp_path
    for calls in itertools.count():
        target = tmp_path / str(calls)
        files = CrashingFiles(calls)
        try:
            backup.create(files, data, target)
        except Crash:
            pass
        else:
            break
        finally:
            files.close()
        state = recovered(target) if target.exists() and list(target.glob("*/*")) else None
        if state is not None:
            assert state.rev == LAST_REV
            assert in_model_form(state.entries) == recorded.states[LAST_REV]
    assert calls > 10
    assert surveyed(target).rev == LAST_REV


def test_restore_that_is_interrupted(recorded: Recorded, tmp_path: Path) -> None:
    """It is never taken for an older or an empty state."""
    calls, target = 0, tmp_path
    for calls in itertools.count():
        target = tmp_path / str(calls)
        files = CrashingFiles(calls)
        try:
            backup.restore(files, recorded.data, target)
        except Crash:
            pass
        else:
            break
        finally:
            files.close()
        state = recovered(target) if target.exists() and list(target.glob("*/*")) else None
        if state is not None:
            assert state.rev == LAST_REV + RESTORED_ABOVE
            assert in_model_form(state.entries) == recorded.states[LAST_REV]
    assert calls > 10
    assert surveyed(target).rev == LAST_REV + RESTORED_ABOVE


def calls_of_copy(recorded: Recorded, target: Path) -> int:
    """How many changes of the file system a copy takes."""
    files = CrashingFiles(1000)
    backup.create(files, recorded.data, target)
    files.close()
    return 1000 - files.left


def test_copy_that_fails_leaves_nothing(recorded: Recorded, tmp_path: Path) -> None:
    class FailingFiles(CrashingFiles):
        def _call(self) -> None:
            self.left -= 1
            if self.left == -1:
                raise OSError(28, "No space left on device")

    target = tmp_path / "target"
    for calls in range(calls_of_copy(recorded, tmp_path / "counted")):
        files = FailingFiles(calls)
        with pytest.raises(DataDirError, match=r"No space left on device$"):
            backup.create(files, recorded.data, target)
        files.close()
        assert not target.exists()


def test_memory_stays_flat(tmp_path: Path) -> None:
    """check and dump --log hold a frame at a time, however long the log is."""
    value, count = bytes(1 << 20), 40
    with ServerProcess(tmp_path) as server, Raw(server.endpoint) as client:
        for number in range(count):
            client.ok(op="PUT", key=f"key {number % 3}", value=value)
    with FrozenView(Files(), server.data_dir) as view:
        assert sum(view.size(path) for path in segments(server.data_dir)) > count * len(value)
        tracemalloc.start()
        try:
            assert survey(view).rev == count
            assert sum(1 for _ in dump.log(view, None)) == count
            assert tracemalloc.get_traced_memory()[1] < 8 * len(value)
        finally:
            tracemalloc.stop()


def test_runs_behind_a_fault(data: Path) -> None:
    """What is found behind damage is what was written there."""
    rev = first_revision(segments(data)[-2]) + 2
    path = flip_revision(data, rev)
    assert path == segments(data)[-2]
    scan = SegmentScan(Files(), path)
    assert [each.rev for each in scan.commits()][-1] == rev - 1
    (run,) = scan.behind
    commits = list(segment.read_run(Files(), path, run))
    last = first_revision(segments(data)[-1]) - 1
    assert [each.rev for each in commits if each.changes] == list(range(rev + 1, last + 1))


def test_answer_behind_a_lost_revision_does_not_stand_for_it(
    data: Path, recorded: Recorded
) -> None:
    """Behind the frame of revision 49 stands an answer at revision 49, which changed nothing."""
    flip_revision(data, 49)
    plan = repaired(FastFiles(), data)
    assert plan is not None
    assert plan.reach == 48
    assert_repaired(data, plan, recorded)
