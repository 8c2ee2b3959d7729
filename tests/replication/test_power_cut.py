"""The power is cut at every moment of an exchange of histories, of a promotion and of a hand-over.

What is done to files is recorded. For every prefix of that, the directory is rebuilt as a kill
would leave it, with nothing that was not synced, and with parts of that (see
`tests.durability.crash.disk_model`). Then the next start is played through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

import pytest

from tests.conftest import Connect
from tests.durability.crash.disk_model import Disk, Mark, Operation, Tree, read_tree, write_tree
from tests.durability.crash.driver import DATA, scratch
from tests.durability.crash.faults import RecordingFiles, SharedFiles
from tests.replication.following import State, state_of
from tests.support import LIMIT, Message, Raw, ServerInProcess
from zkv.cli.dumped import commit_line
from zkv.durability.files import Files
from zkv.replication.incoming import keep_diverged
from zkv.replication.place import StandbyDirectory, read_role
from zkv.replication.standby import Promoted
from zkv.replication.stream import FetchedSnapshot, StreamError
from zkv.server import Following

LEADER: Final = ["tcp://192.0.2.1:5555"]
DIVERGED: Final = 8
"""Commits that only the old history has, as a test has it."""
WAYS: Final = 8
"""In which the power is cut after each operation, besides the mildest and the worst."""
SMALL: Final = {"segment_bytes": 4096}
"""So that a history has several segments, and could be there in part."""


def cut(disk: Disk, random: Random) -> list[Tree]:
    """What may be found after a kill, or a power cut, at this moment; each once."""
    torn = [disk.torn(random) for _ in range(WAYS if disk.unsynced() else 0)]
    trees = [disk.as_written(), disk.as_synced(), *torn]
    return [tree for number, tree in enumerate(trees) if tree not in trees[:number]]


# --- The exchange ---------------------------------------------------------------------------------


class History:
    """A store of its own that a server has, with snapshots and several segments."""

    def __init__(self, directory: Path, writes: int) -> None:
        self.directory = directory
        self.server = ServerInProcess(directory, durability=SMALL)
        self.server.__enter__()
        self._client = Raw(self.server.endpoint)
        for number in range(writes):
            self._client.ok(op="PUT", key=f"k{number}", value=str(number) * 500)
            if number in {writes // 3, writes // 2}:
                self._client.ok(op="SNAPSHOT")
        self.ask({"op": "REPLICATE", "member": "somebody"}, LIMIT)

    def close(self) -> None:
        self._client.close()
        self.server.__exit__()

    def ask(self, request: Message, _seconds: float) -> Message:
        """Ask the server."""
        return self._client.call(**request)

    def tree(self) -> Tree:
        """The files of a machine that has this history."""
        above: Tree = {parent: None for parent in (DATA, *DATA.parents) if parent.name}
        return above | {DATA / path: data for path, data in read_tree(self.directory).items()}


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[History, History]]:
    directory = tmp_path_factory.mktemp("histories")
    old, new = History(directory / "old", 30), History(directory / "new", 40)
    yield old, new
    old.close()
    new.close()


def exchange(root: Path, files: Files, history: History, common: int | None = None) -> None:
    """Have a data directory get a history in the place of its own.

    Args:
        root: what it is in.
        files: the file operations.
        history: the new one.
        common: the last log number of the old one that is in the new one; None = nothing is kept.
    """
    place = StandbyDirectory(files, root / DATA)

    def keep(_: FetchedSnapshot) -> None:
        if common is not None:
            keep_diverged(files, place.layout, common, commit_line)

    with place.lock():
        place.fetch(history.ask, place.prepare(LEADER), keep)


class Found(NamedTuple):
    """What a start has to go on from; `state`: None = nothing, so it fetches a snapshot."""

    state: State | None
    kept: dict[str, bytes | None]
    """The files of diverged commits."""


def after_a_start(tree: Tree) -> Found:
    """What the next start finds in these files."""
    with scratch() as root:
        write_tree(tree, root)
        place = StandbyDirectory(Files(), root / DATA)
        with place.lock():
            record = place.prepare(LEADER)
        assert not (root / DATA / "incoming").exists()
        assert read_role(Files(), root / DATA) == record
        assert (record.role, record.exchange) == ("standby", False)
        kept = {
            path.name: data
            for path, data in read_tree(root).items()
            if path.match("diverged-after-*.jsonl")
        }
        return Found(None if place.is_empty else state_of(root / DATA), kept)


def record(tree: Tree, work: Callable[[Path, Files], None]) -> list[Operation]:
    """What some work does to a tree of files."""
    with scratch() as root:
        write_tree(tree, root)
        files = RecordingFiles(root)
        work(root, files)
        files.abandon()
    return files.operations


@pytest.mark.parametrize("has_old", [True, False], ids=["old", "none"])
def test_an_exchange(histories: tuple[History, History], has_old: bool) -> None:
    """It leaves the old history whole, or the new one; what only the old one had is kept first."""
    old, new = histories
    tree: Tree = old.tree() if has_old else {}
    here = state_of(old.directory) if has_old else None
    common = here.lsn - DIVERGED if here is not None else None
    operations = record(tree, lambda root, files: exchange(root, files, new, common))
    random, disk = Random(1), Disk(tree)
    for operation in operations:
        disk.apply(operation)
    there, kept = after_a_start(disk.as_synced())
    assert there is not None
    assert len(kept) == has_old
    assert there != here
    whole = next(iter(kept.values()), b"") or b""
    assert whole.count(b"\n") == has_old * DIVERGED

    disk, found = Disk(tree), set()
    for number, operation in enumerate(operations, 1):
        disk.apply(operation)
        for cut_off in cut(disk, random):
            after = after_a_start(cut_off)
            where = f"operation {number}: {operation!r:.99}"
            assert after.state in (here, there), where
            assert set(after.kept.values()) <= {whole}, where
            assert after.state == here or after.kept == kept, where
            found.add(after.state)
        if after_a_start(disk.as_synced()).state == there:  # From then on it is certain.
            here = there
    assert here == there
    assert len(found) == 2
    assert number > 40


def test_a_start_that_completes_an_exchange(histories: tuple[History, History]) -> None:
    """A second cut, in the middle of it, changes nothing any more."""
    old, new = histories
    tree = old.tree()
    operations = record(tree, lambda root, files: exchange(root, files, new))

    def start(root: Path, files: Files) -> None:
        place = StandbyDirectory(files, root / DATA)
        with place.lock():
            place.prepare(LEADER)

    random, disk = Random(2), Disk(tree)
    tried, expected = 0, None
    for operation in operations:
        disk.apply(operation)
        cut_off = disk.torn(random)
        if b'"exchange": true' not in (cut_off.get(DATA / "replication.json") or b""):
            continue
        expected = expected or after_a_start(cut_off)
        tried += 1
        second = Disk(cut_off)
        for again in record(cut_off, start):
            second.apply(again)
            for twice in (second.as_synced(), second.torn(random)):
                assert after_a_start(twice) == expected
    assert tried > 10
    assert expected is not None
    assert expected.state == after_a_start(disk.as_synced()).state


# --- Who leads ------------------------------------------------------------------------------------


def marked(operation: Operation, what: str) -> bool:
    return isinstance(operation, Mark) and operation.what == (what,)


class Nobody:
    """A primary that is gone."""

    patient = False
    places = 1
    endpoint = "nowhere"

    def ask(self, _request: Message, _seconds: float) -> Message:
        raise StreamError("nobody is there")

    def go_on(self) -> None:
        pass

    hurry = interrupt = go_on


def role_and_term(tree: Tree) -> tuple[str, int]:
    """What a start finds in these files: the role, and the newest term of its log."""
    with scratch() as root:
        write_tree(tree, root)
        role = read_role(Files(), root / DATA)
        return ("primary" if role is None else role.role), len(state_of(root / DATA).terms)


def test_a_promotion(histories: tuple[History, History]) -> None:
    """The term is on disk before the file that says "standby" is gone, and that for good."""
    with scratch() as root:
        write_tree(histories[0].tree(), root)
        StandbyDirectory(Files(), root / DATA).prepare(LEADER)
        tree = read_tree(root)
        files = SharedFiles(root)
        following = Following(Nobody(), "standby", LEADER)
        with ServerInProcess(root / DATA, files, following, durability=SMALL) as server:
            promotion: Future[Promoted] = server.server._promote(force=True)
            promotion.add_done_callback(lambda _: files.mark("promoted"))
            promotion.result(LIMIT)
            with Raw(server.endpoint) as client:
                client.ok(op="PUT", key="new", value=1)
        files.abandon()

    random, disk = Random(3), Disk(tree)
    leads, found = False, set()
    for operation in files.operations:
        disk.apply(operation)
        leads |= marked(operation, "promoted")
        for cut_off in cut(disk, random):
            role, term = role_and_term(cut_off)
            assert (role, term) in {("standby", 1), ("standby", 2), ("primary", 2)}
            assert role == "primary" or not leads
            found.add((role, term))
    assert leads
    assert len(found) == 3


class Reluctant(Files):
    """A disk that does not sync the name of a file that was removed, once."""

    removed = False

    def remove(self, path: Path) -> None:
        super().remove(path)
        self.removed |= path.name == "replication.json"

    def sync_directory(self, path: Path) -> None:
        if self.removed:
            self.removed = False
            raise OSError(5, "Input/output error")
        super().sync_directory(path)


def test_a_promotion_that_the_disk_refuses(histories: tuple[History, History]) -> None:
    """It stays a standby, also after a restart: the primary leads on."""
    with scratch() as root:
        write_tree(histories[0].tree(), root)
        record = StandbyDirectory(Files(), root / DATA).prepare(LEADER)
        following = Following(Nobody(), "standby", LEADER)
        with (
            ServerInProcess(root / DATA, Reluctant(), following) as server,
            Raw(server.endpoint) as client,
        ):
            assert client.call(op="PROMOTE", force=True)["code"] == "READ_ONLY"
            assert client.call(op="PUT", key="k", value=1)["code"] == "NOT_LEADER"
        assert read_role(Files(), root / DATA) == record


def test_a_hand_over(connect: Connect) -> None:
    """Once the standby has heard of it, the old primary never leads again by itself."""
    wish = {"attempt": 1, "term": 2, "leader": LEADER}
    with scratch() as root:
        files = SharedFiles(root)
        with ServerInProcess(root / DATA, files, durability=SMALL) as server:
            client = connect(server.endpoint)
            client.ok(op="REPLICATE", member="standby")
            for number in range(30):
                client.ok(op="PUT", key=f"k{number}", value="x" * 500)
            hand_over = server.server._hand_over
            assert hand_over is not None
            lsn, _ = hand_over.supersede("standby", 1, 2, LEADER)
            files.mark("superseded")
            client.ok(op="REPLICATE", member="standby", supersede=wish)
            files.mark("resuming")
            hand_over.resume("standby", 1)
            files.mark("resumed")
        files.abandon()

    random, disk = Random(4), Disk()
    told, roles = "", set()
    for operation in files.operations:
        disk.apply(operation)
        if isinstance(operation, Mark):
            told = operation.what[0]
        if not told:
            continue
        for cut_off in cut(disk, random):
            with scratch() as root:
                write_tree(cut_off, root)
                role = read_role(Files(), root / DATA)
                assert state_of(root / DATA).lsn >= lsn
            if role is not None:
                assert (role.role, role.member, role.leader) == ("superseded", "standby", LEADER)
            roles.add((told, role is None))
    assert roles == {
        ("superseded", False), ("resuming", False), ("resuming", True), ("resumed", True),
    }  # fmt: skip
