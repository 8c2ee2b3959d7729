"""The leader trims what enough members have in snapshots, and nothing else."""

from __future__ import annotations

import threading

import pytest

from tests.cluster.written import HandClock, WrittenLog
from tests.support import eventually
from zkv.cluster import shared_log
from zkv.cluster.pins import Pin
from zkv.cluster.records import PART_BYTES, First, PinRecord
from zkv.cluster.shared_log import DeposedError, SharedLog
from zkv.cluster.trimming import CLAIM_SECONDS, PIN_SECONDS, LogTrimmer
from zkv.errors import DamageError


@pytest.fixture
def written(log: SharedLog) -> WrittenLog:
    """A log of ten batches, of three commits with 100 bytes each."""
    written = WrittenLog(log)
    for _ in range(10):
        written.append(100, 100, 100)
    return written


def trim(written: WrittenLog, log_bytes: int = 0, clock: HandClock | None = None) -> LogTrimmer:
    trimmer = LogTrimmer(written.log, log_bytes, clock or HandClock())
    trimmer.trim(written.tenure)
    return trimmer


@pytest.mark.parametrize(
    ("claims", "first"),
    [
        ({"a": 30, "b": 30}, 28),  # The newest batch stays.
        ({"a": 30, "b": 12}, 13),
        ({"a": 30, "b": 13}, 13),  # Whole batches only.
        ({"a": 30, "b": 0}, 1),
        ({"a": 30, "b": 2}, 1),
        ({"a": 30, "b": 3}, 4),
        ({"a": 30, "b": 12, "c": 0}, 13),
        ({"a": 30, "b": 0, "c": 0}, 1),
        ({"a": 30, "b": 29, "c": 9, "d": 0}, 10),
        ({"a": 30, "b": 29, "c": 9, "d": 0, "e": 0}, 10),
        ({"a": 30, "b": 29, "c": 0, "d": 0, "e": 0}, 1),
    ],
)
def test_two_and_a_majority_have_to_have_it(
    written: WrittenLog, claims: dict[str, int], first: int
) -> None:
    for name, newest in claims.items():
        written.claim(name, newest)
    trim(written)
    assert written.first == first
    assert written.kept == [start for start in written.starts if start >= first]


def test_one_member_alone_has_to_have_two_snapshots(written: WrittenLog) -> None:
    written.claim("a", 30)
    trim(written)
    assert written.first == 1
    written.claim("a", 30, second=20)
    trim(written)
    assert written.first == 19


@pytest.mark.parametrize(("log_bytes", "first"), [(300, 28), (301, 25), (900, 22), (10_000, 1)])
def test_so_much_of_the_log_stays(written: WrittenLog, log_bytes: int, first: int) -> None:
    for name in ("a", "b"):
        written.claim(name, 30)
    trim(written, log_bytes)
    assert written.first == first


def test_the_log_goes_on_after_trimming(written: WrittenLog) -> None:
    for name in ("a", "b"):
        written.claim(name, 30)
    trimmer = trim(written, 300)
    written.append(1_000)
    assert [each.first_lsn for each in written.log.read(27, 31)] == [28, 31]
    with pytest.raises(DamageError):
        written.log.read(26, 31)
    trimmer.trim(written.tenure)
    assert written.first == 31


def test_a_claim_of_a_former_term_does_not_count(written: WrittenLog) -> None:
    for name in ("a", "b"):
        written.claim(name, 30)
    written.take_over("another")
    trimmer = trim(written)
    assert written.first == 1
    written.claim("a", 30)
    trimmer.trim(written.tenure)
    assert written.first == 1
    assert trimmer.obstacle is not None
    written.claim("b", 20)
    trimmer.trim(written.tenure)
    assert written.first == 19


def test_a_claim_that_is_not_renewed_counts_for_an_hour(written: WrittenLog) -> None:
    clock = HandClock()
    written.claim("a", 9)
    written.claim("b", 9)
    trimmer = trim(written, clock=clock)
    assert written.first == 10
    written.claim("a", 30)
    clock.now += CLAIM_SECONDS + 1
    trimmer.trim(written.tenure)
    assert written.first == 10, "b may be gone"
    written.claim("b", 30)
    trimmer.trim(written.tenure)
    assert written.first == 28


def test_a_member_that_lost_its_snapshot_just_before(written: WrittenLog) -> None:
    for name in ("a", "b"):
        written.claim(name, 30)
    declared, seen = written.log.declared(), written.log.look()
    written.claim("b", 0)  # It has started again, in an empty directory.
    assert not written.tenure.trim(seen, First(28, 0), declared)
    assert written.first == 1


def test_a_removed_member_counts_neither_way(written: WrittenLog) -> None:
    for name, newest in {"a": 30, "b": 30, "c": 0, "d": 0}.items():
        written.claim(name, newest)
    trim(written)
    assert written.first == 1
    declared, seen = written.log.declared(), written.log.look()
    assert written.log.remove_member("d")
    trim(written)
    assert written.first == 28
    assert written.log.remove_member("a")
    assert not written.tenure.trim(seen, First(30, 0), declared)


def test_never_above_a_pin(written: WrittenLog) -> None:
    for name in ("a", "b"):
        written.claim(name, 30)
    pin = PinRecord("c", 8, "nonce", 0)
    assert written.log.pin(pin, written.log.look()) is not None
    trim(written)
    assert written.first == 7


def test_a_pin_that_is_placed_just_before(written: WrittenLog) -> None:
    for name in ("a", "b"):
        written.claim(name, 30)
    declared, seen = written.log.declared(), written.log.look()
    assert written.log.pin(PinRecord("c", 1, "nonce", 0), seen) is not None
    assert not written.tenure.trim(seen, First(28, 0), declared)


def test_a_pin_cannot_be_placed_on_what_was_trimmed(written: WrittenLog) -> None:
    for name in ("a", "b"):
        written.claim(name, 30)
    seen = written.log.look()
    trim(written)
    pin = Pin(written.log, "c")
    assert not pin.place(seen)
    assert pin.place(written.log.look())
    pin.release()
    assert written.log.pins() == []


def test_a_pin_lapses_when_it_is_not_moved(written: WrittenLog) -> None:
    for name in ("a", "b"):
        written.claim(name, 30)
    clock = HandClock()
    pin = PinRecord("c", 8, "nonce", 0)
    revision = written.log.pin(pin, written.log.look())
    assert revision is not None
    trimmer = trim(written, clock=clock)
    clock.now += PIN_SECONDS - 1
    revision = written.log.move_pin(pin, revision)
    assert revision is not None
    trimmer.trim(written.tenure)
    clock.now += PIN_SECONDS - 1
    trimmer.trim(written.tenure)
    assert written.first == 7
    clock.now += 2
    trimmer.trim(written.tenure)
    assert written.first == 28
    assert written.log.pins() == []
    assert written.log.move_pin(pin, revision) is None


def test_a_kill_amid_trimming(written: WrittenLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log begins where `first` says, whatever is left before; the next leader deletes it."""
    monkeypatch.setattr(shared_log, "MOST_SWEPT", 2)
    for name in ("a", "b"):
        written.claim(name, 30)
    killed, declared, seen = written.tenure, written.log.declared(), written.log.look()
    first = written.log.last_before(seen.first, 20, seen.head.size)
    assert first is not None
    assert killed.trim(seen, first, declared)
    killed.sweep(first)
    assert (written.first, written.kept) == (19, written.starts[2:])
    written.take_over("another")
    trim(written)  # Nobody has claimed anything since.
    assert (written.first, written.kept) == (19, [19, 22, 25, 28])
    assert [each.first_lsn for each in written.log.read(18, 30)] == [19, 22, 25, 28]


def test_a_deposed_leader_trims_nothing(written: WrittenLog) -> None:
    for name in ("a", "b"):
        written.claim(name, 30)
    deposed, seen, declared = written.tenure, written.log.look(), written.log.declared()
    written.take_over("another")
    assert not deposed.trim(seen, First(28, 0), declared)
    with pytest.raises(DeposedError):
        deposed.sweep(First(28, 0))
    assert written.kept == written.starts


def test_a_watch_goes_on_over_compactions(written: WrittenLog) -> None:
    """Others watch the records while the leader has former states forgotten."""
    rung, ended = threading.Event(), threading.Event()
    keys, etcd = written.log.keys, written.log.etcd
    watch = etcd.watch(
        keys.fence, keys.leader + b"\0", 0, lambda *_: rung.set(), lambda _: ended.set()
    )

    def rings() -> bool:
        written.append(10)
        return rung.wait(0.1)

    try:
        for _ in range(5):
            eventually(rings, "the watch rings")
            rung.clear()
            etcd.compact(written.log.look().revision, 5.0)
        eventually(rings, "the watch rings")
        assert not ended.is_set()
    finally:
        watch.close()


@pytest.mark.parametrize("sizes", [(1,), (5,), (2, 1, 7), (1, 1, 30, 1)])
def test_reading_from_within_a_batch(log: SharedLog, sizes: tuple[int, ...]) -> None:
    """A snapshot may end anywhere."""
    written = WrittenLog(log)
    for number, size in enumerate(sizes * 3):
        large = (number == 4) * PART_BYTES  # In several parts.
        written.append(*[20 + large] * size)
    head = len(written.payloads)
    for after in range(head):
        lsn = after
        got: list[bytes] = []
        while lsn < head:
            for batch in log.read(lsn, head):
                assert batch.first_lsn == lsn + 1
                assert len(batch.payloads) == batch.last_lsn - lsn
                got += batch.payloads
                lsn = batch.last_lsn
        assert got == written.payloads[after:]
