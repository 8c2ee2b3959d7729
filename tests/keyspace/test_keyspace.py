"""The store without any I/O: entries, revisions, and views of the past."""

from __future__ import annotations

import gc
import random
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from tests.requests.stores import Store
from zkv.bounds import key_range
from zkv.errors import (
    Compacted,
    Full,
    NotFound,
    ReadOnly,
    ShuttingDown,
    StaleSeq,
)
from zkv.keyspace import (
    ABSENT,
    Keyspace,
    Once,
    PackedCommit,
    Sessions,
    SnapshotView,
    StoredEntry,
    history,
    store,
    tally,
    view,
)
from zkv.keyspace.sessions import counted_size
from zkv.users.quota import Quota

Model = dict[str, StoredEntry]


def many(keyspace: Store, *keys: str) -> list[StoredEntry | None]:
    """The entries of ``keys``; None for a key that is not there."""
    return [None if entry is ABSENT else entry for entry in keyspace.get_many(keys)[0]]


def read(snapshot: SnapshotView) -> Model:
    """All of a view; fails where it gives a key twice."""
    return collected([entry for chunk in snapshot.chunks() for entry in chunk])


def collected(pairs: list[tuple[str, StoredEntry]]) -> Model:
    entries = dict(pairs)
    assert len(entries) == len(pairs), "a key twice"
    return entries


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two entries, so that a walk has many steps."""
    monkeypatch.setattr(view, "CHUNK_ENTRIES", 2)


@pytest.fixture
def keyspace() -> Store:
    return Store()


# --- Single operations -----------------------------------------------------------------------


def test_empty(keyspace: Store) -> None:
    assert (len(keyspace), keyspace.rev) == (0, 0)
    assert many(keyspace, "a", "b") == [None, None]
    with pytest.raises(NotFound):
        keyspace.get("a")
    with pytest.raises(NotFound):
        keyspace.delete("a")
    assert read(keyspace.view()) == {}
    assert keyspace.rev == 0


def test_put(keyspace: Store) -> None:
    assert keyspace.put("a", b"1") == (1, None)
    assert keyspace.put("b", b"2") == (2, None)
    assert keyspace.put("a", b"3") == (3, StoredEntry(b"1", 1))
    assert keyspace.get("a") == StoredEntry(b"3", 3)
    assert keyspace.get("b") == StoredEntry(b"2", 2)
    assert (len(keyspace), keyspace.rev) == (2, 3)


def test_put_of_what_is_there_is_a_change(keyspace: Store) -> None:
    keyspace.put("a", b"1")
    assert keyspace.put("a", b"1") == (2, StoredEntry(b"1", 1))
    assert keyspace.get("a").rev == 2


def test_delete(keyspace: Store) -> None:
    keyspace.put("a", b"1")
    assert keyspace.delete("a") == (2, StoredEntry(b"1", 1))
    with pytest.raises(NotFound, match="'a'"):
        keyspace.delete("a")
    assert (len(keyspace), keyspace.rev) == (0, 2)
    assert keyspace.put("a", b"2") == (3, None)


def test_put_many_takes_one_revision(keyspace: Store) -> None:
    keyspace.put("a", b"1")
    assert keyspace.put_many({"a": b"2", "b": b"2", "c": b"2"}) == 2
    assert many(keyspace, "a", "b", "c") == [StoredEntry(b"2", 2)] * 3
    assert keyspace.put_many({}) == 2
    assert keyspace.rev == 2


def test_delete_many_takes_one_revision(keyspace: Store) -> None:
    keyspace.put_many({"a": b"1", "b": b"1", "c": b"1"})
    assert keyspace.delete_many(["a", "x", "b", "a", "x"]) == (2, 2)
    assert keyspace.delete_many(["a", "x"]) == (0, 2)
    assert keyspace.delete_many([]) == (0, 2)
    assert many(keyspace, "a", "b", "c") == [None, None, StoredEntry(b"1", 1)]
    assert keyspace.rev == 2


def test_get_many_keeps_order_and_repeats(keyspace: Store) -> None:
    keyspace.put("a", b"1")
    assert many(keyspace, "x", "a", "a", "x") == [
        None,
        StoredEntry(b"1", 1),
        StoredEntry(b"1", 1),
        None,
    ]
    assert many(keyspace) == []


def test_sealed(keyspace: Store) -> None:
    keyspace.put("a", b"1")
    assert keyspace.end() == 1
    with pytest.raises(ShuttingDown):
        keyspace.put("a", b"2")
    with pytest.raises(ShuttingDown):
        keyspace.put_many({"a": b"2"})
    with pytest.raises(ShuttingDown):
        keyspace.delete("a")
    with pytest.raises(ShuttingDown):
        keyspace.delete_many(["a"])
    assert keyspace.get("a") == StoredEntry(b"1", 1)
    assert read(keyspace.view()) == {"a": StoredEntry(b"1", 1)}
    assert keyspace.rev == 1


def test_goes_on_where_it_was() -> None:
    keyspace = Store({"b": StoredEntry(b"1", 3), "a": StoredEntry(b"2", 7)}, 9)
    assert (len(keyspace), keyspace.rev) == (2, 9)
    assert read(keyspace.view()) == {"a": StoredEntry(b"2", 7), "b": StoredEntry(b"1", 3)}
    assert keyspace.put("a", b"3") == (10, StoredEntry(b"2", 7))


def test_keys_are_in_the_order_of_their_bytes() -> None:
    """UTF-16 would put the last two the other way round."""
    keys = ["\x01", "A", "a", "ab", "b", "\x7f", "é", "\uffff", "\U00010000"]
    keyspace = Store()
    for key in reversed(keys):
        keyspace.put(key, b"1")
    assert list(read(keyspace.view())) == keys
    assert keys == sorted(keys, key=str.encode)


# --- Sessions --------------------------------------------------------------------------------


def test_a_write_that_is_rolled_back_leaves_the_window_as_it_was() -> None:
    """What had fallen out of it is remembered again: it has run, and would run twice."""
    sessions = Sessions(window=3)
    windows = [
        sessions.remember(Once("s", seq, b"digest", b"reply"), seq, seq, 0) for seq in (1, 2, 3, 9)
    ]
    with pytest.raises(StaleSeq):
        sessions.recall("s", 3, b"digest", 0)
    sessions.undo(windows[-1])

    for seq in (1, 2, 3):
        known = sessions.recall("s", seq, b"digest", 0)
        assert known is not None
        assert known.rev == seq
    assert sessions.recall("s", 9, b"digest", 0) is None
    assert sessions.statistics() == {
        "sessions": 1,
        "replies": 3,
        "bytes": 3 * counted_size(len(b"reply")),
    }


# --- What has expired, and is not removed yet ------------------------------------------------


def expired(keyspace: Store, keys: Iterable[str]) -> None:
    """Have entries under ``keys`` whose time is over."""
    for key in keys:
        with keyspace.lock:
            transaction = keyspace.begin()
            transaction.put(key, b"1", keyspace.time + 1)
            keyspace.commit(transaction)
    keyspace.time += 1


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 5, 100])
def test_a_scan_passes_over_what_has_expired(
    keyspace: Store, monkeypatch: pytest.MonkeyPatch, limit: int, reverse: bool
) -> None:
    """But not over very much of it in one page: that may be short, or empty."""
    monkeypatch.setattr(store, "PASSED_OVER", 3)
    expired(keyspace, [f"{number:02}" for number in range(60)])
    there = ["00", "01", "17", "18", "19", "40", "58"]
    for key in there:
        keyspace.put(key, b"1")

    found, after = [], None
    while True:
        page = keyspace.scan(key_range("", after=after, reverse=reverse), limit, reverse)
        assert len(page.items) <= limit
        found += [key for key, _ in page.items]
        if page.following is None:
            break
        after = page.following
    assert found == sorted(there, reverse=reverse)
    assert list(keyspace.entries) != there, "what has expired was removed"


@pytest.mark.parametrize("seed", range(20))
def test_a_count_leaves_out_what_has_expired(
    keyspace: Store, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """It counts for one moment, whatever is written while it looks."""
    chance = random.Random(seed)
    monkeypatch.setattr(tally, "CHUNK_DEADLINES", 3)
    keys = [f"{letter}{number}" for number in range(10) for letter in "abc"]
    expired(keyspace, chance.sample(keys, 25))
    steps = 0

    def write_meanwhile(_seconds: float) -> None:
        nonlocal steps
        steps += 1
        for key in chance.sample(keys, 3):
            keyspace.put(key, b"1")
        keyspace.delete_many(chance.sample(keys, 3))
        keyspace.expire(chance.randrange(3))
        expired(keyspace, chance.sample(keys, 2))

    monkeypatch.setattr("time.sleep", write_meanwhile)
    for key in chance.sample(keys, 4):
        keyspace.put(key, b"1")
    living = [key for key in keys if many(keyspace, key) != [None]]

    assert keyspace.count(key_range("b"))[0] == sum(key.startswith("b") for key in living)
    assert steps > 1


def test_a_count_begins_anew_when_commits_are_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    log = FakeLog(0)
    keyspace = Store(log=log)
    monkeypatch.setattr(tally, "CHUNK_DEADLINES", 3)
    expired(keyspace, [f"{letter}{number}" for number in range(10) for letter in "ab"])
    keyspace.put("a1", b"1")
    keyspace.put("a2", b"1")
    going = iter([True])

    def roll_back(_seconds: float) -> None:
        if next(going, False):
            with keyspace.lock:
                log.roll_back(keyspace, keyspace.rev - 1)

    monkeypatch.setattr("time.sleep", roll_back)
    assert keyspace.count(key_range("a")) == (1, 21)


# --- Quotas ----------------------------------------------------------------------------------


def under(keyspace: Store, *prefixes: str) -> int:
    """The bytes that there are."""
    there = [(key, entry) for key, entry in keyspace.entries.items() if key.startswith(prefixes)]
    return sum(len(key.encode()) + len(entry.value) for key, entry in there)


@pytest.mark.parametrize("seed", range(10))
def test_quotas_count_what_is_there_whatever_is_written_meanwhile(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """In small steps; those of before stay exact, and rollbacks are counted, too."""
    chance = random.Random(seed)
    log = FakeLog(0)
    keyspace = Store(log=log)
    keys = [f"{letter}{number}" for number in range(20) for letter in "abc"]
    keyspace.put_many({key: b"x" * chance.randrange(1, 5) for key in chance.sample(keys, 40)})
    keyspace.set_quotas([Quota(("a",), 0)])
    monkeypatch.setattr(store, "COUNTED_ENTRIES", 3)
    steps = 0

    def write_meanwhile(_seconds: float) -> None:
        nonlocal steps
        steps += 1
        before = keyspace.rev
        for key in chance.sample(keys, 5):
            keyspace.put(key, b"x" * chance.randrange(1, 5))
        keyspace.delete_many(chance.sample(keys, 4))
        if chance.random() < 0.5:
            with keyspace.lock:
                log.roll_back(keyspace, chance.randrange(before, keyspace.rev + 1))
        assert keyspace.entries.bytes_under(("a",)) == under(keyspace, "a")

    monkeypatch.setattr("time.sleep", write_meanwhile)
    keyspace.set_quotas([Quota(("a", "b", "c"), 0), Quota(("b1",), 0)])
    assert steps > 2
    assert keyspace.entries.bytes_under(("b", "c")) == under(keyspace, "b", "c")
    assert keyspace.entries.bytes_under(("b1",)) == under(keyspace, "b1")
    keyspace.set_quotas([Quota(("b",), 0)])
    assert keyspace.entries.bytes_under(("b",)) == under(keyspace, "b")
    assert keyspace.entries.bytes_under(("a",)) is None, "nobody needs it any more"


def test_there_is_no_quota_before_all_is_counted(
    keyspace: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = Quota(("a",), 0)
    keyspace.put_many(dict.fromkeys(["a1", "a2", "a3"], b"1"))
    monkeypatch.setattr(store, "COUNTED_ENTRIES", 1)

    def put(key: str) -> None:
        with keyspace.lock:
            transaction = keyspace.begin(quota)
            transaction.put(key, b"1")
            keyspace.commit(transaction)

    monkeypatch.setattr("time.sleep", lambda _seconds: put("a4"))
    keyspace.set_quotas([quota])
    with pytest.raises(Full):
        put("a5")


# --- History ---------------------------------------------------------------------------------


def kept_revs(keyspace: Store, since: int) -> list[int]:
    """Whose changes are kept and may be told."""
    return [commit.rev for commit in keyspace.changes_since(since, 1_000)[0]]


def test_what_is_not_safe_stays_in_the_history() -> None:
    """Nobody is told that something is gone which nobody could have been told of."""
    log = FakeLog(0)
    keyspace = Store(log=log, history=1)
    for _ in range(5):
        keyspace.put("a", b"1")
    assert keyspace.changes_since(0, 1_000) == ([], 0)

    log.safe_rev = 3
    assert kept_revs(keyspace, 0) == [1, 2, 3]
    keyspace.put("a", b"1")

    with pytest.raises(Compacted) as refused:
        keyspace.changes_since(2, 1_000)
    assert refused.value.details == {"oldest": 4}
    log.safe_rev = 6
    assert kept_revs(keyspace, 3) == [4, 5, 6]


def test_what_is_for_a_cursor_stays_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "UNREAD_CHANGES", 4)
    keyspace = Store(history=1)
    cursor = keyspace.place_cursor()
    for _ in range(4):
        keyspace.put("a", b"1")
    assert [commit.rev for commit in keyspace.read(cursor, 2)] == [1, 2]
    assert (cursor.rev, cursor.missed) == (2, 0)

    for _ in range(4):
        keyspace.put("a", b"1")

    assert [commit.rev for commit in keyspace.read(cursor, 9)] == [5, 6, 7, 8]
    assert (cursor.rev, cursor.missed) == (8, 2)
    keyspace.remove_cursor()
    keyspace.put("a", b"1")
    assert kept_revs(keyspace, 8) == [9]
    with pytest.raises(Compacted):
        keyspace.changes_since(7, 1)


def test_a_large_commit_is_kept_for_a_cursor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is over every bound by itself, and is not missed all the same."""
    monkeypatch.setattr(history, "UNREAD_BYTES", 10)
    keyspace = Store(history=0)
    cursor = keyspace.place_cursor()
    keyspace.put("a", b"x" * 100)
    assert [commit.rev for commit in keyspace.read(cursor, 9)] == [1]
    assert cursor.missed == 0


# --- Views -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("count", range(8))
@pytest.mark.parametrize("steps", range(6))
def test_everything_changes_under_a_view(count: int, steps: int) -> None:
    keyspace = Store()
    for number in range(count):
        keyspace.put(f"k{number}", b"old")
    expected = dict(keyspace.entries)
    snapshot = keyspace.view()
    assert (snapshot.rev, snapshot.count) == (count, count)
    chunks = snapshot.chunks()
    seen = [entry for _ in range(steps) for entry in next(chunks, [])]
    for number in range(0, count, 3):
        keyspace.delete(f"k{number}")
    for number in range(1, count, 3):
        keyspace.put(f"k{number}", b"new")
    for number in range(2, count, 3):
        keyspace.delete(f"k{number}")
        keyspace.put(f"k{number}", b"again")
    for number in range(-1, count + 1):
        keyspace.put(f"k{number}+", b"added")
    seen += [entry for chunk in chunks for entry in chunk]
    assert collected(seen) == expected


@pytest.mark.usefixtures("small_chunks")
def test_closed_view_is_at_its_end(keyspace: Store) -> None:
    keyspace.put_many(dict.fromkeys("abcdef", b"1"))
    snapshot = keyspace.view()
    chunks = snapshot.chunks()
    next(chunks)
    snapshot.close()
    snapshot.close()
    keyspace.delete("f")
    assert [entry for chunk in chunks for entry in chunk] == []


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("how", ["closed", "closed before", "closed half way"])
def test_store_forgets_a_view_that_is_closed(keyspace: Store, how: str) -> None:
    keyspace.put_many(dict.fromkeys("abcdef", b"1"))
    snapshot = keyspace.view()
    if how == "closed":
        read(snapshot)
    if how == "closed half way":
        next(snapshot.chunks())
    snapshot.close()
    remembered = weakref.ref(snapshot)
    del snapshot
    gc.collect()
    assert remembered() is None


def test_a_view_of_what_is_rolled_back_once_it_has_been_read_is_lost() -> None:
    """Whoever saved it must learn that its revision is gone, and may be given to another write."""
    log = FakeLog(0)
    keyspace = Store(log=log)
    keyspace.put("a", b"1")
    snapshot = keyspace.view()
    assert read(snapshot) == {"a": StoredEntry(b"1", 1)}
    assert not snapshot.lost

    with keyspace.lock:
        log.roll_back(keyspace, 0)
    keyspace.put("a", b"2")

    assert snapshot.lost


def test_views_under_threads(
    keyspace: Store, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views read while threads write are equal to the history up to their revision."""
    writers, writes = 3, 1_500
    monkeypatch.setattr(view, "CHUNK_ENTRIES", 40)  # Long enough for others to come in between.
    written: dict[int, tuple[str, bytes | None]] = {}
    begin = threading.Barrier(writers + 1)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # Threads come in between each other at every turn.
    request.addfinalizer(lambda: sys.setswitchinterval(usual))

    def write(number: int) -> None:
        begin.wait()
        for step in range(writes):
            key = f"{step * 7 % 200:03d}-{number}"
            if step % 3 == 2 and many(keyspace, key) != [None]:
                written[keyspace.delete(key)[0]] = (key, None)
            else:
                value = f"{number} {step}".encode()
                written[keyspace.put(key, value)[0]] = (key, value)

    threads = [threading.Thread(target=write, args=[number]) for number in range(writers)]
    for thread in threads:
        thread.start()
    begin.wait()
    views: list[tuple[int, Model]] = []
    while any(thread.is_alive() for thread in threads) or len(views) < 3:
        snapshot = keyspace.view()
        views.append((snapshot.rev, read(snapshot)))
    for thread in threads:
        thread.join()
    assert sorted(written) == list(range(1, writers * writes + 1)), "each revision once"
    model: Model = {}
    states = {0: dict(model)}
    for rev in sorted(written):
        key, value = written[rev]
        if value is None:
            del model[key]
        else:
            model[key] = StoredEntry(value, rev)
        states[rev] = dict(model)
    for rev, seen in views:
        assert seen == states[rev], rev


# --- Against a model -------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "b\0", "c", "d", "e", "é", "\uffff", "\U00010000"])
values = st.binary(max_size=2)


class FakeLog:
    """A log that says what the test says."""

    def __init__(self, safe_rev: int) -> None:
        self.safe_rev = safe_rev
        self.last_lsn = safe_rev
        self.broken = False

    @property
    def safe_lsn(self) -> int:
        """Here, a commit's number is its revision."""
        return self.safe_rev

    def append(self, payload: bytes, removes: bool = False) -> int:
        if self.broken:
            raise ReadOnly("no")
        return self.extend([payload], len(payload))

    @property
    def takes_commits(self) -> bool:
        return not self.broken

    def extend(self, payloads: list[bytes], size: int) -> int:
        self.last_lsn = PackedCommit(payloads[-1]).rev
        return self.last_lsn

    def roll_back(self, keyspace: Keyspace, lsn: int) -> None:
        """Have all commits after ``lsn`` undone."""
        self.last_lsn = lsn
        keyspace.roll_back(lsn)


class OpenView:
    """A view that is being read, and what it must give."""

    def __init__(self, snapshot: SnapshotView, expected: Model) -> None:
        self.snapshot = snapshot
        self.expected = expected
        self.chunks: Iterator[list[tuple[str, StoredEntry]]] = snapshot.chunks()
        self.seen: list[tuple[str, StoredEntry]] = []


class StoreMachine(RuleBasedStateMachine):
    """Random writes and views, a step of each at a time, on a store and on a dict."""

    views = Bundle("views")

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()

    @initialize(
        size=st.integers(1, 3),
        entries=st.dictionaries(names, values),
        rev=st.integers(0, 9),
        kept=st.integers(0, 5),
        unread=st.sampled_from([0, 3, 1_000_000]),
    )
    def begin(self, size: int, entries: dict[str, bytes], rev: int, kept: int, unread: int) -> None:
        self.patch.setattr(view, "CHUNK_ENTRIES", size)
        self.patch.setattr(history, "UNREAD_CHANGES", unread)
        self.model = {key: StoredEntry(value, rev) for key, value in entries.items()}
        self.rev = rev
        self.log = FakeLog(rev)
        self.states = {rev: dict(self.model)}
        self.keyspace = Store(dict(self.model), rev, self.log, history=kept)
        self.keyspace.set_quotas([Quota(("b", "é"), 0)])
        self.cursor = self.keyspace.place_cursor()
        self.may_miss = unread < 1_000_000

    def teardown(self) -> None:
        self.patch.undo()

    @rule(key=names, value=values)
    def put(self, key: str, value: bytes) -> None:
        self.rev += 1
        assert self.keyspace.put(key, value) == (self.rev, self.model.get(key))
        self.model[key] = StoredEntry(value, self.rev)

    @rule(items=st.dictionaries(names, values))
    def put_many(self, items: dict[str, bytes]) -> None:
        self.rev += bool(items)
        assert self.keyspace.put_many(items) == self.rev
        self.model |= {key: StoredEntry(value, self.rev) for key, value in items.items()}

    @rule(key=names)
    def delete(self, key: str) -> None:
        if key not in self.model:
            with pytest.raises(NotFound):
                self.keyspace.delete(key)
            return
        self.rev += 1
        assert self.keyspace.delete(key) == (self.rev, self.model.pop(key))

    @rule(keys=st.lists(names))
    def delete_many(self, keys: list[str]) -> None:
        present = self.model.keys() & set(keys)
        self.rev += bool(present)
        assert self.keyspace.delete_many(keys) == (len(present), self.rev)
        for key in present:
            del self.model[key]

    @rule(keys=st.lists(names))
    def get_many(self, keys: list[str]) -> None:
        assert many(self.keyspace, *keys) == [self.model.get(key) for key in keys]

    @rule(key=names)
    def get(self, key: str) -> None:
        if key in self.model:
            assert self.keyspace.get(key) == self.model[key]
        else:
            with pytest.raises(NotFound):
                self.keyspace.get(key)

    @rule(key=names, keys=st.lists(names), value=values)
    def write_while_the_log_refuses(self, key: str, keys: list[str], value: bytes) -> None:
        self.log.broken = True
        with pytest.raises(ReadOnly):
            self.keyspace.put(key, value)
        with pytest.raises(ReadOnly):
            self.keyspace.put_many({key: value, "a": value})
        with pytest.raises(ReadOnly if key in self.model else NotFound):
            self.keyspace.delete(key)
        if self.model.keys() & set(keys):
            with pytest.raises(ReadOnly):
                self.keyspace.delete_many(keys)
        self.log.broken = False

    @rule(data=st.data())
    def some_become_safe(self, data: st.DataObject) -> None:
        self.log.safe_rev = data.draw(st.integers(self.log.safe_rev, self.rev))

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        self.rev = data.draw(st.integers(self.log.safe_rev, self.rev))
        with self.keyspace.lock:
            self.log.roll_back(self.keyspace, self.rev)
        self.model = dict(self.states[self.rev])
        self.states = {rev: state for rev, state in self.states.items() if rev <= self.rev}

    @rule(most=st.integers(1, 4))
    def read_on(self, most: int) -> None:
        rev, missed = self.cursor.rev, self.cursor.missed
        revs = [commit.rev for commit in self.keyspace.read(self.cursor, most)]
        gap = self.cursor.missed - missed
        assert gap == 0 or self.may_miss
        first = rev + gap + 1
        assert revs == list(range(first, min(first + most, self.log.safe_rev + 1)))
        assert self.cursor.rev == first + len(revs) - 1

    @rule(target=views)
    def open_view(self) -> OpenView:
        snapshot = self.keyspace.view()
        assert (snapshot.rev, snapshot.count) == (self.rev, len(self.model))
        return OpenView(snapshot, dict(self.model))

    @rule(target=views, reading=consumes(views))
    def read_a_chunk(self, reading: OpenView) -> object:
        chunk = next(reading.chunks, None)
        if chunk is not None:
            reading.seen += chunk
            return reading
        self.check(reading)
        return multiple()

    @rule(reading=consumes(views))
    def read_the_rest(self, reading: OpenView) -> None:
        reading.seen += [entry for chunk in reading.chunks for entry in chunk]
        self.check(reading)

    @rule(reading=consumes(views))
    def close_view(self, reading: OpenView) -> None:
        reading.snapshot.close()
        assert collected(reading.seen).items() <= reading.expected.items()

    def check(self, reading: OpenView) -> None:
        """A view that was read to its end is right, also where its revision is gone."""
        assert collected(reading.seen) == reading.expected
        if self.states.get(reading.snapshot.rev) != reading.expected:
            assert reading.snapshot.lost

    @invariant()
    def same_as_the_model(self) -> None:
        self.states[self.rev] = dict(self.model)
        assert self.keyspace.rev == self.rev
        assert len(self.keyspace) == len(self.model)
        assert self.keyspace.entries == self.model
        assert self.keyspace.entries.bytes_under(("b", "é")) == under(self.keyspace, "b", "é")

    @invariant()
    def memory_is_counted_exactly(self) -> None:
        found = self.keyspace.statistics()["memory"]
        kept = self.keyspace.history
        payloads = kept._payloads[kept._begin :]
        assert isinstance(found, dict)
        assert found["keys"] == sum(len(key.encode()) for key in self.model)
        assert found["values"] == sum(len(entry.value) for entry in self.model.values())
        assert found["index"] == 56 * len(self.model)
        assert found["history"] == sum(map(len, payloads)) + 48 * len(payloads)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=150, stateful_step_count=40)
