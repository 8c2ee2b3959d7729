"""What a start reads: the newest snapshot, and only as much of the log as something needs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.compiled.loading import SNAPSHOTS, WAL, MemoryFiles, Tree, segment_file, snapshot_file
from zkv import compiled
from zkv.durability import recovery
from zkv.keyspace import History, Sessions
from zkv.keyspace.change import PUT, Commit, KeyChange, Once

SAVED: Final = 40
LAST: Final = 45
FIRSTS: Final = (1, 11, 21, 31, SAVED + 1)


@pytest.fixture(params=["C", "Python"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "C" and not compiled.COMPILED:
        pytest.skip("zkv was installed without a C compiler")
    monkeypatch.setattr(compiled, "COMPILED", request.param == "C")


def put(rev: int, changes: int = 1) -> bytes:
    """A commit."""
    keys = [KeyChange(PUT, f"key {number}") for number in range(changes)]
    return Commit(rev, rev, tuple(keys)).pack()


def refused(rev: int, seq: int) -> bytes:
    """The reply to a request that changed nothing."""
    return Commit(rev, SAVED, (), Once("session", seq, b"digest", b"reply")).pack()


def directory(end: tuple[bytes, ...] = (), changes: int = 1) -> Tree:
    """Five segments; the snapshot covers all but the last. ``end`` ends the fourth."""
    tree = dict([snapshot_file(SAVED, SAVED, [], 0)])
    for first, successor in zip(FIRSTS, (*FIRSTS[1:], LAST + 1), strict=True):
        payloads = [put(rev, changes) for rev in range(first, successor)]
        payloads += end if successor == SAVED + 1 else ()
        tree |= [segment_file(first, [(payload, 0) for payload in payloads])]
    return tree


def start(tree: Tree, history: History, sessions: Sessions | None = None) -> list[int]:
    """Recover; the first revisions of the segments that are read."""
    files = MemoryFiles(tree)
    recovered = recovery.recover(files, SNAPSHOTS, WAL, sessions, history)
    assert recovered.rev == LAST
    return [int(path.stem) for path in files.opened if path.parent == WAL]


@pytest.mark.parametrize(
    ("kept", "covered"),
    [(0, 1), (4, 1), (5, 1), (10, 1), (11, 2), (20, 2), (21, 3), (30, 3), (31, 4), (100, 4)],
)
def test_segments_that_the_history_cannot_keep_are_not_read(kept: int, covered: int) -> None:
    history = History(kept, 2**30)
    assert start(directory(), history) == list(FIRSTS[4 - covered :])
    assert history.oldest == max(1, LAST + 1 - max(1, kept))


def test_commits_of_many_changes_are_read_as_if_they_had_one() -> None:
    history = History(21, 2**30)
    assert start(directory(changes=3), history) == list(FIRSTS[1:])
    assert history.oldest == LAST + 1 - 7


def test_the_segment_up_to_the_snapshot_is_read_for_refusals_that_came_after_it() -> None:
    sessions = Sessions()
    tree = directory((refused(SAVED, 1), refused(SAVED, 2)))
    assert start(tree, History(0, 0), sessions) == [31, SAVED + 1]
    state = sessions.state("session", LAST)
    assert state is not None
    assert [seq for seq, *_ in state[2]] == [1, 2]


def test_damage_in_a_segment_that_nothing_needs_is_left_to_the_check(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tree = directory()
    path = WAL / Path(f"{1:020d}.wal")
    tree[path] = tree[path].replace(put(5), put(6))
    start(tree, History(10, 2**30))
    assert not caplog.records
    start(tree, History(100, 2**30))
    assert "ignored, since a snapshot covers it" in caplog.text
