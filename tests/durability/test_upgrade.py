"""The first start on a directory of an earlier version: it is kept, and written anew; and a newer
one is refused.

`tests/durability/test_versions.py` tests what is read from them.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePath
from random import Random
from typing import Any, Final
from unittest import mock

import pytest
import zmq

from tests.durability.crash.disk_model import Disk, Tree, write_tree
from tests.durability.crash.driver import DATA, scratch
from tests.durability.crash.faults import RecordingFiles, UnsyncedFiles
from tests.durability.versions.make import HERE
from tests.forking import run_zkv
from tests.requests.contract_stores import settings_for
from tests.requests.roads import SteppedEngine
from tests.support import Raw, ServerProcess
from zkv.durability import formats, segment, snapshot
from zkv.durability.backup import RESTORED_ABOVE
from zkv.durability.files import Files
from zkv.durability.upgrade import BEFORE
from zkv.errors import DataDirError

OLD: Final = sorted(path.parent / "data" for path in HERE.glob("0.1/*/expected.json"))
YEAR: Final = 31_536_000.0
NEWER: Final = formats.CURRENT + 1


@pytest.fixture(params=OLD, ids=lambda path: path.parent.name)
def old(request: pytest.FixtureRequest) -> Path:
    """A data directory of 0.1."""
    path: Path = request.param
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A copy of one, which a server of `tests.support` uses if it is started in ``tmp_path``."""
    return Path(shutil.copytree(HERE / "0.1" / "segments" / "data", tmp_path / "data"))


def files_in(directory: Path) -> dict[str, bytes]:
    """Snapshots and segments, with their contents."""
    found = [*directory.glob("snapshot/*.snapshot"), *directory.glob("wal/*.wal*")]
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def start(data: Path, files: Files) -> list[Any]:
    """What a start finds."""
    settings = settings_for({"session_ttl": YEAR}, data_dir=str(data))
    engine = SteppedEngine(settings, files, lambda: 1)
    try:
        keyspace = engine.keyspace
        sessions = keyspace.sessions
        states = [sessions.state(name, 2**62) for name in sessions.names()]
        commits = keyspace.history.since(keyspace.history.oldest - 1, 2**62)
        found: list[Any] = [keyspace.rev, engine.last_lsn, dict(keyspace.entries.items())]
        return [*found, states, commits]
    finally:
        engine.close()


# --- What becomes of them ----------------------------------------------------------------------


def test_what_was_there_is_kept_and_the_rest_is_written_anew(old: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(old, tmp_path / "data"))
    with mock.patch("zkv.durability.upgrade._log.warning") as said:
        found = start(data, UnsyncedFiles())
    assert said.call_args.args[1:] == (data, 1, data / BEFORE, formats.CURRENT)
    kept = files_in(data / BEFORE)
    originals = {name for name in files_in(old) if name.endswith((".snapshot", ".wal"))}
    assert originals <= kept.keys()
    newest = max(data.glob("wal/*.wal"))
    for path in (newest, max(data.glob("snapshot/*.snapshot"))):
        assert path.read_bytes() != kept.get(str(path.relative_to(data)))
    header = segment.read_header(Files(), newest)
    assert header == (formats.CURRENT, found[0] + 1, found[1] + 1, header and header.salt)
    assert found[1] == found[0], "until the upgrade, log numbers are revisions"
    before = files_in(data)
    with mock.patch("zkv.durability.upgrade._log.warning") as said:
        assert start(data, UnsyncedFiles()) == found
    assert not said.called
    assert (files_in(data), files_in(data / BEFORE)) == (before, kept)


def test_what_was_kept_is_what_the_earlier_version_would_find(old: Path, tmp_path: Path) -> None:
    """Copied back, it gives the same once more."""
    data = Path(shutil.copytree(old, tmp_path / "data"))
    found = start(data, UnsyncedFiles())
    checked = run_zkv("check", str(data / BEFORE), cwd=tmp_path)
    assert (checked.returncode, ", format 1\n" in checked.stdout) == (0, True)
    back = Path(shutil.copytree(data / BEFORE, tmp_path / "back"))
    assert start(back, UnsyncedFiles()) == found


def test_files_are_kept_without_copies_of_their_contents(data: Path) -> None:
    (data / "wal" / "not a file of zkv").mkdir()
    inodes = {path.name: path.stat().st_ino for path in data.glob("wal/*.wal")}
    start(data, UnsyncedFiles())
    assert {path.name: path.stat().st_ino for path in (data / BEFORE).glob("wal/*.wal")} == inodes


def test_files_are_copied_where_there_are_no_hard_links(data: Path) -> None:
    before = files_in(data)
    with mock.patch("os.link", side_effect=OSError(errno.EPERM, os.strerror(errno.EPERM))):
        start(data, UnsyncedFiles())
    assert files_in(data / BEFORE) == before


def test_a_copy_of_another_state_is_not_taken_for_this_one(data: Path) -> None:
    """Somebody has gone back to the earlier version, and upgrades again."""
    (data / BEFORE / "wal").mkdir(parents=True)
    (data / BEFORE / "wal" / f"{1:020d}.wal").write_bytes(b"something else")
    before = files_in(data)
    start(data, UnsyncedFiles())
    assert files_in(data / f"{BEFORE}-2") == before
    assert list(files_in(data / BEFORE).values()) == [b"something else"]


def test_an_empty_directory_is_not_kept(tmp_path: Path) -> None:
    start(tmp_path / "data", UnsyncedFiles())
    start(tmp_path / "data", UnsyncedFiles())
    assert not (tmp_path / "data" / BEFORE).exists()


def test_the_server_says_it(data: Path, tmp_path: Path) -> None:
    server = ServerProcess(tmp_path)
    assert server.data_dir == data
    with server, Raw(server.endpoint, zmq.REQ) as client:
        assert client.ok(op="INFO")["durability"]["format"] == formats.CURRENT
    assert f"it is kept in {data / BEFORE}, for that version" in server.log()
    checked = run_zkv("check", str(data), cwd=tmp_path)
    assert f"{data / BEFORE}: kept by an upgrade" in checked.stdout
    dumped = run_zkv("dump", str(data), cwd=tmp_path)
    assert f"zkv: {data}: format 1 and 2; dumped by zkv " in dumped.stderr


def test_a_full_disk_is_told_and_changes_nothing(data: Path) -> None:
    full = mock.patch.object(Files, "create", side_effect=OSError(errno.ENOSPC, "No space left"))
    before = files_in(data)
    with full, pytest.raises(DataDirError, match=r"cannot be upgraded to format 2: .*: No space"):
        start(data, UnsyncedFiles())
    assert files_in(data) == before
    start(data, UnsyncedFiles())
    assert files_in(data / BEFORE) == before


def test_a_repair_keeps_what_was_there(data: Path, tmp_path: Path) -> None:
    newest = max(data.glob("wal/*.wal"))
    content = bytearray(newest.read_bytes())
    content[60] ^= 0xFF
    newest.write_bytes(content)
    before = files_in(data)
    done = run_zkv("repair", "--yes", str(data), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert files_in(data / BEFORE) == before
    rev, lsn, *_ = start(data, UnsyncedFiles())
    assert rev == lsn
    checked = run_zkv("check", str(data), cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout


def test_a_backup_is_copied_as_it_is_and_restored_in_the_current_format(
    old: Path, tmp_path: Path
) -> None:
    backup, restored = tmp_path / "backup", tmp_path / "restored"
    for words in (["backup", old, backup], ["restore", backup, restored]):
        done = run_zkv(*map(str, words), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert {version_of(backup / name) for name in files_in(backup)} == {1}
    assert {version_of(restored / name) for name in files_in(restored)} == {formats.CURRENT}
    found, expected = start(restored, UnsyncedFiles()), start(backup, UnsyncedFiles())
    assert found[:2] == [number + RESTORED_ABOVE for number in expected[:2]]
    assert found[2] == expected[2]
    assert [name for name, *_ in found[3]] == [name for name, *_ in expected[3]]


# --- Crashes -----------------------------------------------------------------------------------


def moments(data: Path) -> Iterator[tuple[Tree, Tree]]:
    """What may be left of an upgrade that is cut off at each moment; and what was there before."""
    with scratch() as root:
        shutil.copytree(data, root / DATA)
        files = RecordingFiles(root)
        before = dict(files.before)
        start(root / DATA, files)
        files.abandon()
    random = Random(1)
    disk = Disk(before)
    for operation in files.operations:
        disk.apply(operation)
        yield disk.as_written(), before
        yield disk.as_synced(), before
        yield disk.torn(random), before


def test_an_upgrade_may_be_cut_off_at_any_moment(old: Path) -> None:
    with scratch() as root:
        expected = start(Path(shutil.copytree(old, root / DATA)), UnsyncedFiles())
    for tree, before in moments(old):
        with scratch() as root:
            write_tree(tree, root)
            assert_kept_before_anything_new(root / DATA, tree, before)
            found = start(root / DATA, UnsyncedFiles())
            assert found[:4] == expected[:4]


def assert_kept_before_anything_new(data: Path, tree: Tree, before: Tree) -> None:
    kept = PurePath(DATA, BEFORE)
    new = [
        path for path in tree
        if not path.is_relative_to(kept) and version_of(data.parents[1] / path) == formats.CURRENT
    ]  # fmt: skip
    for path, content in before.items() if new else ():
        if path.suffix in {".wal", ".snapshot"} and path.parent.parent == DATA:
            held = tree[kept / path.relative_to(DATA)]
            assert held is not None
            assert content is not None
            assert content.startswith(held), "a torn tail may have been cut off, and no more"


def version_of(path: Path) -> int | None:
    """The version of a file; None if it is no snapshot or segment, or not whole."""
    if path.suffix == ".wal":
        header = segment.read_header(Files(), path)
        return None if header is None else header.version
    return snapshot.read_head(Files(), path).version if path.suffix == ".snapshot" else None


# --- Newer files -------------------------------------------------------------------------------


def make_newer(path: Path) -> None:
    """Write a file as a later version may."""
    if path.suffix == ".wal":
        first = segment.first_revision(path.name) or 0
        path.write_bytes(segment.SegmentHeader(NEWER, first, first, 7).pack() + b"what is new")
        return
    with mock.patch.object(formats, "CURRENT", NEWER):
        rev = snapshot.revision_of(path.name) or 0
        with snapshot.Writer(UnsyncedFiles(), path.parent, rev, rev, 1) as writer:
            writer.finish()


@pytest.mark.parametrize("kind", ["snapshot", "segment", "an older segment"])
@pytest.mark.parametrize("command", ["serve", "check", "dump", "repair", "backup", "restore"])
def test_newer_files_are_refused_by_name_and_version(
    data: Path, tmp_path: Path, kind: str, command: str
) -> None:
    segments = sorted(data.glob("wal/*.wal"))
    files = {"segment": segments[-1], "an older segment": segments[0]}
    path = files.get(kind) or max(data.glob("snapshot/*.snapshot"))
    make_newer(path)
    before = files_in(data)
    arguments: dict[str, list[Any]] = {
        "serve": ["--data-dir", data, "--endpoint", "tcp://127.0.0.1:*"],
        "repair": ["--yes", data],
        "backup": [data, tmp_path / "target"],
        "restore": [data, tmp_path / "target"],
    }
    words = [str(word) for word in arguments.get(command, [data])]
    done = run_zkv(command, *words, cwd=tmp_path)
    assert done.returncode == (2 if command == "serve" else 1), done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "format" in line]
    assert f"{path}: its format is version {NEWER}, written by a newer zkv; this zkv (" in line
    assert files_in(data) == before
    assert not (tmp_path / "target").exists()


def test_a_flipped_bit_in_the_version_is_damage(data: Path) -> None:
    start(data, UnsyncedFiles())
    newest = max(data.glob("wal/*.wal"))
    content = bytearray(newest.read_bytes())
    for bit in range(8):
        content[7] ^= 1 << bit
        newest.write_bytes(content)
        assert segment.read_header(Files(), newest) is None
        content[7] ^= 1 << bit
