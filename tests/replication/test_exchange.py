"""A standby that gets another history has the old one or the new one, wherever it is killed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.durability.crash.disk_model import Tree, read_tree, write_tree
from tests.durability.crash.driver import DATA, scratch
from tests.durability.crash.faults import Killed
from tests.replication.following import state_of
from tests.replication.fragile import FragileFiles
from tests.support import Raw, ServerInProcess
from zkv.durability.files import Files
from zkv.replication.place import StandbyDirectory, read_role

LEADER = ["tcp://192.0.2.1:5555"]


class History:
    """The history of a primary, and a tree with it in the directory of a standby."""

    def __init__(self, directory: Path, writes: int) -> None:
        self.server = ServerInProcess(directory)
        self.server.__enter__()
        self._client = Raw(self.server.endpoint)
        for number in range(writes):
            self._client.ok(op="PUT", key=f"k{number}", value=number)

    def close(self) -> None:
        self._client.close()
        self.server.__exit__()

    def ask(self, request: dict[str, Any], _seconds: float) -> dict[str, Any]:
        """Ask the primary."""
        return self._client.call(**request)


@pytest.fixture
def histories(tmp_path: Path) -> Iterator[list[History]]:
    both = [History(tmp_path / "old", 3), History(tmp_path / "new", 5)]
    yield both
    for each in both:
        each.close()


def exchange(root: Path, files: Files, history: History) -> None:
    place = StandbyDirectory(files, root / DATA)
    with place.lock():
        record = place.prepare(LEADER)
        place.fetch(history.ask, record, lambda _: None)


def after_a_start(tree: Tree) -> int:
    """What the next start finds in these files: the revision."""
    with scratch() as root:
        write_tree(tree, root)
        place = StandbyDirectory(Files(), root / DATA)
        with place.lock():
            record = place.prepare(LEADER)
        assert not (root / DATA / "incoming").exists()
        assert read_role(Files(), root / DATA) == record
        assert not record.exchange
        return -1 if place.is_empty else state_of(root / DATA).rev


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_at_any_call(histories: list[History], after: bool) -> None:
    old, new = histories
    with scratch() as root:
        exchange(root, Files(), old)
        before = read_tree(root)
    found = set()
    for number in itertools.count(1):
        with scratch() as root:
            write_tree(before, root)
            done = False
            with contextlib.suppress(Killed):
                exchange(root, FragileFiles(number, after), new)
                done = True
            tree = read_tree(root)
        rev = after_a_start(tree)
        assert rev == 5 if done else rev in {3, 5}, number
        assert rev == 5 or 5 not in found, "the new history was there before"
        found.add(rev)
        if done:
            break
    assert found == {3, 5}
    assert number > 20
