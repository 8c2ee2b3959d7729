"""What a start reads: the newest snapshot, and only as much of the log as something needs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.compiled.loading import (
    SNAPSHOTS,
    WAL,
    MemoryFiles,
    Tree,
    old,
    segment_file,
    snapshot_file,
)
from zkv import compiled
from zkv.durability import formats, recovery
from zkv.errors import DamageError
from zkv.keyspace import History, Sessions
from zkv.keyspace.change import PUT, Commit, KeyChange, Once
from zkv.keyspace.lineage import Lineage, Term, TermStart

SAVED: Final = 40
LAST: Final = 45
Firsts = tuple[int, ...]
FIRSTS: Final[Firsts] = (1, 11, 21, 31, SAVED + 1)


@pytest.fixture(params=["C", "Python"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "C" and not compiled.COMPILED:
        pytest.skip("zkv was installed without a C compiler")
    monkeypatch.setattr(compiled, "COMPILED", request.param == "C")


def put(rev: int, changes: int = 1, lsn: int | None = None) -> bytes:
    """A commit; without another one, its log number is its revision."""
    keys = [KeyChange(PUT, f"key {number}") for number in range(changes)]
    return Commit(rev, rev, lsn or rev, tuple(keys)).pack()


def refused(rev: int, seq: int, lsn: int, time: int = SAVED) -> bytes:
    """The reply to a request that changed nothing."""
    return Commit(rev, time, lsn, (), Once("session", seq, b"digest", b"reply")).pack()


def directory(
    end: tuple[bytes, ...] = (),
    changes: int = 1,
    follower: int = SAVED + 1,
    firsts: Firsts = FIRSTS,
) -> Tree:
    """Five segments; the snapshot covers all but the last. ``end`` ends the fourth.

    The first log number behind the fourth is ``follower``.
    """
    tree = dict([snapshot_file(SAVED, SAVED, [], 0)])
    for first, successor in zip(firsts, (*firsts[1:], LAST + 1), strict=True):
        more = follower - SAVED - 1 if first > SAVED else 0
        payloads = [put(rev, changes, rev + more) for rev in range(first, successor)]
        payloads += end if successor == SAVED + 1 else ()
        tree |= [segment_file(first, [(payload, 0) for payload in payloads], first + more)]
    return tree


def old_directory(end: tuple[bytes, ...]) -> Tree:
    """The same in format 1."""
    tree = dict([snapshot_file(SAVED, SAVED, [], 0, version=formats.FIRST)])
    for first, successor in zip(FIRSTS, (*FIRSTS[1:], LAST + 1), strict=True):
        payloads = [put(rev) for rev in range(first, successor)]
        payloads += end if successor == SAVED + 1 else ()
        whole = [(old(payload), 0) for payload in payloads]
        tree |= [segment_file(first, whole, version=formats.FIRST)]
    return tree


def remembered(sessions: Sessions) -> list[int]:
    """The sequence numbers of the replies that are remembered."""
    state = sessions.state("session", 2**62)
    return [] if state is None else [seq for seq, *_ in state[2]]


def start(tree: Tree, history: History, sessions: Sessions | None = None) -> list[int]:
    """Recover; the first revisions of the segments that are read, or of which the header is."""
    files = MemoryFiles(tree)
    recovered = recovery.recover(files, SNAPSHOTS, WAL, sessions, history)
    assert recovered.rev == LAST
    return sorted({int(path.stem) for path in files.opened if path.parent == WAL})


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
    tree = directory((refused(SAVED, 1, SAVED + 1), refused(SAVED, 2, SAVED + 2)), 1, SAVED + 3)
    assert start(tree, History(0, 0), sessions) == [31, SAVED + 1]
    assert remembered(sessions) == [1, 2]


def test_log_numbers_decide_what_the_snapshot_covers_whatever_the_clock_says() -> None:
    """The clock may have been set back between the snapshot and the refusals behind it."""
    sessions = Sessions()
    behind = (refused(SAVED, 1, SAVED + 1, time=SAVED - 30), refused(SAVED, 2, SAVED + 2, time=1))
    start(directory(behind, 1, SAVED + 3), History(0, 0), sessions)
    assert remembered(sessions) == [1, 2]


def test_refusals_behind_the_snapshot_are_read_however_much_came_later() -> None:
    sessions = Sessions()
    end = (refused(SAVED, 1, SAVED + 1), refused(SAVED, 2, SAVED + 2))
    tree = directory(end, 1, SAVED + 3)
    tree |= [segment_file(LAST, [(put(LAST, 1, LAST + 2), 0)], LAST + 2)]
    start(tree, History(0, 0), sessions)
    assert remembered(sessions) == [1, 2]


def test_refusals_that_the_next_segment_replaces_were_rolled_back() -> None:
    sessions = Sessions()
    end = (refused(SAVED, 1, SAVED + 1), refused(SAVED, 2, SAVED + 2))
    start(directory(end, 1, SAVED + 2), History(0, 0), sessions)
    assert remembered(sessions) == [1]


def test_a_refusal_that_is_missing_is_missed() -> None:
    with pytest.raises(DamageError, match="the segment ends too early"):
        start(directory((refused(SAVED, 1, SAVED + 1),), 1, SAVED + 3), History(0, 0))
    whole = directory(firsts=(SAVED + 1,), follower=SAVED + 2)
    with pytest.raises(DamageError, match=f"log numbers {SAVED + 1} to {SAVED + 1} are missing"):
        start(whole, History(0, 0))


def test_without_log_numbers_times_decide_as_in_the_version_that_wrote_them() -> None:
    sessions = Sessions()
    end = (refused(SAVED, 1, 0, time=SAVED - 1), refused(SAVED, 2, 0), refused(SAVED, 3, 0))
    tree = old_directory(end)
    start(tree, History(0, 0), sessions)
    assert remembered(sessions) == [2, 3]
    tree |= [segment_file(LAST, [(old(put(LAST)), 0)], version=formats.FIRST)]
    sessions = Sessions()
    start(tree, History(0, 0), sessions)
    assert remembered(sessions) == [2, 3], "however much came later"


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


def begin(rev: int, lsn: int, term: int) -> bytes:
    """A commit that begins a term."""
    return Commit(rev, SAVED, lsn, (), begins=TermStart("5" * 32, term, str(term))).pack()


def test_terms_are_read_back() -> None:
    """A term may leave out revisions, and the history then begins there."""
    tree = directory(follower=SAVED + 2, end=(begin(SAVED, SAVED + 1, 1),))
    last, number = LAST, LAST + 1
    payloads = [put(rev, 1, rev + 1) for rev in range(SAVED + 1, LAST + 1)]
    payloads += [begin(2**32, number + 1, 2), put(2**32 + 1, 1, number + 2)]
    tree |= [segment_file(SAVED + 1, [(payload, 0) for payload in payloads], SAVED + 2)]
    sessions, history = Sessions(), History(10**6, 10**9)
    found = recovery.recover(MemoryFiles(tree), SNAPSHOTS, WAL, sessions, history)
    assert (found.rev, found.lsn) == (2**32 + 1, number + 2)
    assert found.lineage == Lineage("5" * 32, (Term(1, SAVED + 1, "1"), Term(2, last + 2, "2")))
    assert (history.oldest, history.newest) == (2**32 + 1, 2**32 + 1)


def test_a_term_that_does_not_follow_is_damage() -> None:
    tree = directory()
    payloads = [begin(SAVED, SAVED + 1, 2), begin(SAVED, SAVED + 2, 1)]
    tree |= [segment_file(SAVED + 1, [(payload, 0) for payload in payloads], SAVED + 1)]
    with pytest.raises(DamageError, match="term 1 after term 2"):
        recovery.recover(MemoryFiles(tree), SNAPSHOTS, WAL)
