"""The usual commit in C writes what Python's would, and fails as that does.

Faults that `Files` can inject are injected by the tests of the log itself: its commits in C go
through the same door, unless that is the real file system. Here they do not.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compiled.test_turn import Front
from tests.requests.contract_stores import DurableStore, FakeClock, request
from tests.requests.roads import replies_of
from tests.support import LIMIT, ROOT, Message, unpack
from zkv import compiled
from zkv.keyspace import History
from zkv.keyspace.change import count_in, revision_in
from zkv.keyspace.sessions import Sessions

pytestmark = pytest.mark.skipif(not compiled.COMPILED, reason="zkv was installed without C")

KIB = 1024
LARGE = 20 * KIB
"""Bytes of a value that is written from its place."""


def open_store(fsync: str = "always", **limits: Any) -> DurableStore:
    """A store on the real file system."""
    store = DurableStore(FakeClock(), fsync=fsync, **limits)
    store.engine.wal._is_direct = True
    store.engine.wal.quick_sync_seconds = LIMIT
    return store


@pytest.fixture(params=["never", "always"])
def store(request: pytest.FixtureRequest) -> Iterator[DurableStore]:
    """A store of each policy."""
    with contextlib.closing(open_store(request.param)) as store:
        yield store


def puts(values: dict[str, Any]) -> list[bytes]:
    """A request for each value."""
    return [request("PUT", key=key, value=value) for key, value in values.items()]


@pytest.mark.parametrize(
    "sizes",
    [
        [1],
        [LARGE],
        [1, LARGE, 2, LARGE],
        [LARGE] * 40,
        [*range(100), 700 * KIB, 5],
        [16 * KIB - 60 + n for n in range(50)],
    ],
    ids=["small", "large", "both", "many large", "very large", "about large"],
)
def test_what_is_written_can_be_read_back(store: DurableStore, sizes: list[int]) -> None:
    values = {f"k{n}": bytes([n % 256]) * size for n, size in enumerate(sizes)}
    front = Front(store)
    assert front.answer(*puts(values)) is None
    assert front.left == [], "no step of Python"
    assert front.answer(*puts({"last": 1})) is None
    wal = store.engine.wal
    assert wal.segment_size == store.data_dir.joinpath("wal", wal._path.name).stat().st_size
    store.crash()
    assert {key: value for key, value, _ in store.items()} == values | {"last": 1}


def refused(store: DurableStore, bodies: list[bytes]) -> list[Message]:
    """Answers to a batch that has to wait for the log's refusal."""
    (worker, _) = store.workers
    answers = worker.send(*bodies)
    worker.settle()
    return [each.read() for each in answers]


@mock.patch("zkv.durability.wal.RETRY_SECONDS", 0)
def test_of_a_write_that_stops_half_way_nothing_stays(store: DurableStore) -> None:
    """The file may not grow by more than half of it."""
    assert Front(store).answer(*puts({"k": 0})) is None
    size, limits = store.engine.wal.segment_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + LARGE, limits[1]))
    try:
        answers = refused(store, puts({"k": 1, "l": bytes(LARGE), "m": 2}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {(each["code"], each["applied"]) for each in answers} == {("READ_ONLY", False)}
    assert "File too large" in answers[0]["message"]
    assert store.engine.wal.segment_size == size
    assert store.put("n", 3) == 2
    store.crash()
    assert store.items() == [["k", 0, 1], ["n", 3, 2]]


def test_after_a_sync_that_failed_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe takes what is written, and cannot be synced."""
    with contextlib.closing(open_store()) as store:
        assert Front(store).answer(*puts({"k": 0})) is None
        reader, writer = os.pipe()
        with (
            os.fdopen(reader, "rb"),
            os.fdopen(writer, "wb", buffering=0) as pipe,
            monkeypatch.context() as patch,
        ):
            patch.setattr(store.engine.wal, "_file", pipe)
            (answer,) = refused(store, puts({"k": 1}))
        assert (answer["code"], answer["applied"]) == ("READ_ONLY", None)
        assert store.engine.wal.broken
        assert store.engine.wal.on_disk.since is None
        store.crash()
        assert store.items() == [["k", 0, 1]]


def test_what_another_thread_does_with_the_file_is_not_waited_for(store: DurableStore) -> None:
    front = Front(store)
    with store.engine.wal._io:
        answered = front.answer(*puts({"k": 1}))
    assert answered is not None
    assert answered.group is not None
    assert store.engine.wal.last_lsn == 1
    assert store.engine.wal.safe_lsn == 0
    assert front.answer(*puts({"l": 2})) is None
    assert store.engine.wal.safe_lsn == 2, "both runs are written at once"
    store.crash()
    assert store.items() == [["k", 1, 1], ["l", 2, 2]]


def test_who_listens_is_told_and_others_now_and_then(store: DurableStore) -> None:
    wal = store.engine.wal
    told: list[int] = []
    waiting: list[int] = []
    wal.on_safe = lambda: told.append(wal.safe_rev)
    wal.listeners = (waiting,)
    front = Front(store)
    front.answer(*puts({"k": 1}))
    assert told == []
    waiting.append(1)
    front.answer(*puts({"k": 2}))
    assert told == [2]
    waiting.clear()
    front.answer(*puts({"k": bytes(64 * KIB)}))
    assert told == [2, 3], "what is kept for a rollback can be freed"


def test_syncs_are_counted() -> None:
    with contextlib.closing(open_store()) as store:
        front, wal = Front(store), store.engine.wal
        for number in range(1, 4):
            front.answer(*puts({f"k{n}": number for n in range(number)}))
        assert wal.syncs == 3
        assert sum(wal.sync_times.counts) == 3
        assert wal.commits_per_sync.counts[:3] == [0, 1, 2]
        assert wal.commits_per_sync.total == 6
        assert 0 < wal.sync_times.total < LIMIT


def test_exactly_once_writes_are_remembered_and_forgotten_with_their_commits() -> None:
    with contextlib.closing(open_store("never")) as store:
        once = request("INCR", key="n", session="s", seq=1)
        front = Front(store)
        assert front.answer(once) is None
        assert not store.engine.keyspace._remembered_in_run
        (repeat,) = store.workers[0].send(once)
        assert repeat.read()["replayed"] is True
        assert len(store.engine.keyspace._undo) == 1
        with store.engine.keyspace.lock:
            store.engine.keyspace.roll_back(0)
        assert store.engine.keyspace._undo == type(store.engine.keyspace._undo)()


@given(
    sent=st.lists(st.tuples(st.sampled_from("st"), st.sampled_from([1, 1, 1, 3])), min_size=10),
    kept=st.integers(0, 10),
)
@settings(max_examples=40, deadline=None)
def test_a_rollback_leaves_the_sessions_as_they_were(
    sent: list[tuple[str, int]], kept: int
) -> None:
    """What has fallen out of a window is remembered again: it has run, and would run twice."""
    with contextlib.closing(open_store("never", session_window=3)) as store:
        front, keyspace = Front(store), store.engine.keyspace
        seqs = Counter[str]()
        bodies = []
        for name, step in sent:
            seqs[name] += step
            bodies.append(request("INCR", key="n", session=name, seq=seqs[name]))
        for body in bodies[:kept]:
            front.answer(body)
        sessions, lsn = keyspace.sessions, keyspace.last_lsn
        before = _remembered(sessions)
        with store.engine.wal._io:  # They are queued, and not safe.
            for body in bodies[kept:]:
                front.answer(body)
        with keyspace.lock:
            keyspace.roll_back(lsn)
            store.engine.wal._queue.clear()
        assert _remembered(sessions) == before


def _remembered(sessions: Sessions) -> list[Any]:
    """The replies of each session, by sequence number, and what they count as."""
    states = [sessions.state(name, 2**62) for name in "st"]
    counts = sessions.statistics()
    return [sorted(state[2]) for state in states if state and state[2]] + [
        counts["replies"], counts["bytes"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fsync", "width", "way"), [("always", 2, "c"), ("never", 2, "c"), ("always", 5, "python")]
)
def test_where_memory_ends_the_log_has_no_gap(fsync: str, width: int, way: str) -> None:
    pytest.importorskip("_testcapi", reason="NOT RUN: this Python is installed without _testcapi")
    command = [sys.executable, "-m", "tests.compiled.no_memory", fsync, str(width), way]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    ended = int(line.partition(" ")[0])
    assert 0 < ended < 45, "many places can be gone on from"


BATCHES = st.lists(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 300)), min_size=1, max_size=6),
    min_size=1,
    max_size=30,
)


@given(batches=BATCHES, reads=st.lists(st.integers(0, 10), max_size=30), follows=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_history_is_that_of_python(
    batches: list[list[tuple[int, int]]], reads: list[int], follows: bool
) -> None:
    with contextlib.closing(open_store("never", history=10, history_bytes=2_000)) as store:
        history = store.engine.keyspace.history
        shadow = History(history.most_changes, history._most_bytes)
        cursors = (history.place_cursor(), shadow.place_cursor()) if follows else None
        front, pause = Front(store), iter(reads)
        for batch in batches:
            bodies = [
                request("MPUT", items={f"k{n}": bytes(size) for n in range(count)})
                for count, size in batch
            ]
            safe, before = store.engine.log.safe_rev, history.newest
            assert front.answer(*bodies) is None
            payloads = history._payloads[-len(batch) :]
            kept = [payload for payload in payloads if payload]
            assert len(kept) == len(batch), "what is not safe yet is never dropped"
            changes, size = sum(map(count_in, kept)), sum(map(len, kept))
            shadow.extend(kept, before + len(batch), changes, size, safe)
            if cursors is not None:
                most = next(pause, 0)
                read = history.read(cursors[0], most, store.engine.log.safe_rev)
                assert read == shadow.read(cursors[1], most, store.engine.log.safe_rev)
            assert history.statistics() == shadow.statistics()
            assert history.has_surplus is shadow.has_surplus
            oldest = history.oldest
            assert history.since(oldest - 1, 100) == shadow.since(oldest - 1, 100)
            assert revision_in(history.since(oldest - 1, 1)[0].payload) == oldest


def test_replies_of_writes_say_their_revisions(store: DurableStore) -> None:
    front = Front(store)
    assert front.answer(*puts({"k": 1, "l": 2})) is None
    assert [unpack(reply or b"")["rev"] for reply in replies_of(front.batch)] == [1, 2]
