"""A standby that gets another history has the old one or the new one, wherever it is killed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from io import IOBase
from pathlib import Path
from typing import Any

import pytest

from tests.durability.crash.disk_model import Tree, read_tree, write_tree
from tests.durability.crash.driver import DATA, scratch
from tests.durability.crash.faults import Killed
from tests.replication.following import state_of
from tests.support import Raw, ServerInProcess
from zkv.durability.files import Files
from zkv.durability.lock import DirectoryLock
from zkv.replication.place import StandbyDirectory, read_role

LEADER = ["tcp://192.0.2.1:5555"]


class FragileFiles(Files):
    """The real file system, until the process is killed at a call.

    Args:
        last: the number of that call; the first is 1.
        after: it is done, and the process killed then.
    """

    def __init__(self, last: int, after: bool) -> None:
        self.calls = 0
        self._last = last
        self._after = after

    def call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Do one call, unless it is too late."""
        self.calls += 1
        if self.calls > self._last or (self.calls == self._last and not self._after):
            raise Killed
        done = method(self, *arguments)
        if self.calls == self._last:
            if isinstance(done, DirectoryLock | IOBase):
                done.close()
            raise Killed
        return done


def _fragile(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *arguments: self.call(method, *arguments)


for _name in dir(Files):
    if not _name.startswith("_"):
        setattr(FragileFiles, _name, _fragile(getattr(Files, _name)))


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
