"""What every log of commits promises, whatever it does to make them last: `zkv.keyspace.log`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from zkv.durability.files import Files
from zkv.durability.wal import Wal
from zkv.keyspace import CommitLog, MemoryLog
from zkv.keyspace.change import Commit, KeyChange
from zkv.keyspace.log import NOTHING

KINDS = ["memory", "files, always", "files, never"]


@pytest.fixture(params=KINDS)
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CommitLog]:
    """An empty log that belongs to a store which cannot roll back."""
    log: CommitLog = MemoryLog()
    if request.param != "memory":
        log = Wal(Files(), tmp_path, 0, 0, None, 65_536, sync_each=request.param == "files, always")
    log.attach(threading.Lock(), lambda _: pytest.fail("nothing is to be rolled back"))
    yield log
    log.close()


def commit(rev: int) -> bytes:
    return Commit(rev, 0, rev, (KeyChange("DELETE", "k"),)).pack()


def test_numbers_go_up_by_one_from_one(log: CommitLog) -> None:
    assert log.last_lsn == 0
    assert [log.append(commit(rev)) for rev in (1, 2, 3)] == [1, 2, 3]
    assert log.extend([commit(4), commit(5)], 60) == 5
    assert log.last_lsn == 5


def test_what_is_committed_durably_is_safe(log: CommitLog) -> None:
    lsn = log.extend([commit(1), commit(2)], 60)
    assert log.commit(lsn, durable=True) is True
    assert log.safe_lsn >= lsn
    assert log.safe_rev >= 2
    assert log.takes_commits


def test_what_is_written_is_safe_as_far_as_the_log_promises(log: CommitLog) -> None:
    lsn = log.append(commit(1))
    assert log.commit(lsn, durable=False) is True
    assert log.safe_rev in {0, 1, 2**63 - 1}
    assert (log.safe_rev >= 1) == (log.safe_lsn >= lsn)


def test_it_counts_the_bytes_that_wait(log: CommitLog) -> None:
    before = log.appended_bytes
    lsn = log.extend([commit(1), commit(2)], 60)
    assert log.appended_bytes - log.safe_bytes in {0, 60}
    log.commit(lsn, durable=True)
    assert log.appended_bytes == log.safe_bytes
    assert log.appended_bytes - before in {0, 60}


def test_it_tells_when_there_is_something_safe(log: CommitLog) -> None:
    told: list[int] = []
    log.on_safe = lambda: told.append(log.last_lsn)
    lsn = log.append(commit(1))
    log.commit(lsn, durable=True)
    assert told
    assert told[-1] == lsn


def test_waiting_for_what_lasts_already_changes_nothing(log: CommitLog) -> None:
    lsn = log.append(commit(1))
    log.commit(lsn, durable=True)
    before = log.safe_rev, log.safe_lsn, log.durable_rev
    assert log.commit(lsn, durable=True, patient=False) is True
    assert (log.safe_rev, log.safe_lsn, log.durable_rev) == before


def test_an_epoch_that_has_not_ended_left_nothing_behind(log: CommitLog) -> None:
    log.commit(log.append(commit(1)), durable=True)
    assert log.epoch == 0
    assert log.survived(log.epoch) == NOTHING
