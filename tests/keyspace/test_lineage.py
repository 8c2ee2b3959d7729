"""Terms: where they begin, what two histories have in common, and commits of another server."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkv.keyspace import History, Keyspace, MemoryLog, Sessions
from zkv.keyspace.change import Commit, KeyChange, Once, begins_term, revision_in, unpack
from zkv.keyspace.lineage import NO_LINEAGE, Lineage, Term, TermStart

FAR: Final = 2**32
START: Final = TermStart("5" * 32, 1, "a" * 16)


class Recording(MemoryLog):
    """A log that keeps what is appended, and of which nothing is safe."""

    safe_lsn = safe_rev = 0  # type: ignore[misc]

    def __init__(self) -> None:
        super().__init__()
        self.payloads: list[bytes] = []

    def extend(self, payloads: list[bytes], size: int) -> int:
        self.payloads += payloads
        return super().extend(payloads, size)


def store() -> tuple[Keyspace, Recording]:
    log = Recording()
    return Keyspace(lambda: 1, Sessions(), History(100, 10**6), log=log), log


def put(keyspace: Keyspace, key: str, once: Once | None = None) -> None:
    with keyspace.lock:
        transaction = keyspace.begin()
        transaction.put(key, b"\x01")
        keyspace.commit(transaction, once)


def test_a_term_is_a_commit() -> None:
    commit = Commit(FAR, 7, 3, (), begins=START)
    payload = commit.pack()
    assert unpack(payload) == Commit(FAR, 7, 3, (), None, payload, START)
    assert begins_term(payload)
    assert revision_in(payload) == FAR
    assert not begins_term(Commit(1, 7, 1, (KeyChange("DELETE", "k"),)).pack())


@pytest.mark.parametrize("more", [b"\xc0", b"\x80", b"\x81\xa5store\xa1s"])
def test_a_commit_with_another_fifth_part_is_none(more: bytes) -> None:
    head = Commit(1, 1, 1, (KeyChange("DELETE", "k"),)).pack()[:28]
    with pytest.raises(ValueError, match="not a commit"):
        unpack(b"\x95" + head[1:] + b"\x90" + more)


def test_a_store_begins_a_term() -> None:
    keyspace, _ = store()
    put(keyspace, "a")
    with keyspace.lock:
        assert keyspace.begin_term(START, keyspace.rev) == 2
    assert (keyspace.rev, keyspace.history.oldest) == (1, 1)
    with keyspace.lock:
        keyspace.begin_term(keyspace.lineage.next_start(), keyspace.rev + FAR)
    assert (keyspace.rev, keyspace.history.oldest) == (1 + FAR, 2 + FAR)
    assert [(term.number, term.first_lsn) for term in keyspace.lineage.terms] == [(1, 2), (2, 3)]
    put(keyspace, "b")
    assert keyspace.get("b").rev == 2 + FAR


def test_a_term_is_rolled_back() -> None:
    keyspace, _ = store()
    put(keyspace, "a")
    with keyspace.lock:
        keyspace.begin_term(START, 1 + FAR)
        keyspace.roll_back(1)
    assert (keyspace.rev, keyspace.lineage) == (1, NO_LINEAGE)


def test_another_store_has_the_same_log() -> None:
    """Whatever is applied there: values, removals, remembered replies, refusals, terms."""
    keyspace, log = store()
    put(keyspace, "a", Once("s", 1, b"12345678", b"reply"))
    put(keyspace, "b")
    with keyspace.lock:
        removal = keyspace.begin()
        removal.remove("a")
        keyspace.commit(removal)
        keyspace.commit(keyspace.begin(), Once("s", 2, b"12345678", b"refused"))
        keyspace.begin_term(START, keyspace.rev + FAR)
    put(keyspace, "c")
    copy, copied = store()
    with copy.lock:
        copy.apply(list(map(unpack, log.payloads)))
    assert copied.payloads == log.payloads
    assert (copy.rev, copy.lineage) == (keyspace.rev, keyspace.lineage)
    assert dict(copy.entries.items()) == dict(keyspace.entries.items())
    assert copy.sessions.state("s", 9) == keyspace.sessions.state("s", 9)
    with copy.lock:
        copy.roll_back(0)
    assert (len(copy), copy.rev, copy.lineage) == (0, 0, NO_LINEAGE)


@pytest.mark.parametrize(
    "commit",
    [
        Commit(2, 1, 1, (KeyChange("DELETE", "k"),)),
        Commit(1, 1, 2, (KeyChange("DELETE", "k"),)),
        Commit(1, 1, 1, ()),
    ],
    ids=["revision", "log number", "revision of a refusal"],
)
def test_a_commit_that_does_not_follow_is_refused(commit: Commit) -> None:
    keyspace, log = store()
    with keyspace.lock, pytest.raises(ValueError, match="should be"):
        keyspace.apply([commit])
    assert not log.payloads


def test_a_term_of_another_store_is_refused() -> None:
    lineage = NO_LINEAGE.begin(START, 4)
    with pytest.raises(ValueError, match="store"):
        lineage.begin(TermStart("6" * 32, 2, ""), 5)
    with pytest.raises(ValueError, match="term 1 after term 1"):
        lineage.begin(START, 5)


def test_the_middle_one_of_three_is_promoted() -> None:
    """A wrote to 100; B, at 95, is promoted; C, at 100, has what B never had."""
    first = NO_LINEAGE.begin(START, 1)
    promoted = first.begin(first.next_start(), 96)
    assert promoted.common(first, 100, 110) == 95
    assert promoted.common(first, 90, 110) == 90
    assert promoted.at(95) == first.terms[0]
    assert promoted.at(96) == promoted.terms[1]


def test_two_that_are_promoted_at_once_are_two_histories() -> None:
    first = NO_LINEAGE.begin(START, 1)
    one, other = (first.begin(first.next_start(), 50) for _ in range(2))
    assert one.term == other.term
    assert one.common(other, 70, 70) == 49


def test_stores_have_nothing_in_common() -> None:
    one, other = (NO_LINEAGE.begin(NO_LINEAGE.next_start(), 1) for _ in range(2))
    assert one.common(other, 9, 9) == 0


@given(
    shared=st.lists(st.integers(1, 20), max_size=4),
    here=st.lists(st.integers(1, 20), max_size=3),
    there=st.lists(st.integers(1, 20), max_size=3),
    cut=st.integers(0, 80),
)
def test_what_is_common(shared: list[int], here: list[int], there: list[int], cut: int) -> None:
    """Compared with the histories themselves: lists of the tags of commits, by log number."""

    def grow(
        lineage: Lineage, history: list[str], lengths: list[int], side: str
    ) -> tuple[Lineage, list[str]]:
        for length in lengths:
            start = lineage.next_start("s" * 32)
            start = TermStart(start.store, start.term, f"{side}{start.term}")
            lineage = lineage.begin(start, len(history) + 1)
            history = history + [start.tag] * length
        return lineage, history

    base, past = grow(NO_LINEAGE, [], [1, *shared], "both")
    mine, ours = grow(base, past, here, "here")
    kept = past[: max(1, min(cut, len(past)))]  # Promoted before it had all.
    terms = tuple(term for term in base.terms if term.first_lsn <= len(kept))
    yours, theirs = grow(Lineage(base.store, terms), kept, there, "there")
    common = 0
    while common < min(len(ours), len(theirs)) and ours[common] == theirs[common]:
        common += 1
    assert mine.common(yours, len(theirs), len(ours)) == common
    assert all(isinstance(term, Term) for term in mine.terms)
