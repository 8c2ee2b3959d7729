"""A member claims the snapshots that are really on its disk, and no others."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.written import HandClock
from tests.etcd.fake import FakeClient, FakeEtcd, Faults
from zkv.cluster.claims import RENEW_SECONDS, Claims
from zkv.cluster.records import Claim, MemberRecord
from zkv.cluster.shared_log import SharedLog
from zkv.config import DurabilitySettings, LimitSettings
from zkv.engine import Engine
from zkv.etcd.errors import UnknownOutcomeError


class Disk:
    """A data directory with an engine, and the claims of a member with it."""

    def __init__(self, directory: Path, etcd: FakeEtcd) -> None:
        self.directory = directory
        self._etcd = etcd
        self.client: FakeClient = etcd.client()
        self.log = SharedLog(self.client, "test", 1.0)
        self.clock = HandClock()
        self.engine: Engine | None = None
        self.claims: Claims

    def open(self) -> Claims:
        """Start a process."""
        settings = DurabilitySettings(data_dir=str(self.directory), snapshot_interval=3600.0)
        self.engine = engine = Engine(settings, LimitSettings())
        engine.start()
        assert engine.disk is not None
        self.claims = Claims(self.log, "a", engine, engine.disk, list, self.clock)
        return self.claims

    def close(self) -> None:
        """End it; what has changed is saved."""
        if self.engine is not None:
            self.engine.save()
            self.engine.close()
            self.engine = None

    def write(self) -> int:
        """Write something, and a snapshot; return the log number."""
        assert self.engine is not None
        keyspace = self.engine.keyspace
        with keyspace.lock:
            transaction = keyspace.begin()
            transaction.put("k", b"\x01")
            keyspace.commit(transaction)
        self.engine.flush()
        self.engine.snapshot().result()
        return self.engine.last_lsn

    @property
    def record(self) -> MemberRecord:
        """What it says in etcd."""
        (record,) = self.log.members()
        return record

    @property
    def newest(self) -> Path:
        """The newest snapshot."""
        return max((self.directory / "snapshot").iterdir())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "data", FakeEtcd())
    yield disk
    disk.close()


def test_the_first_claim_is_what_is_there(disk: Disk) -> None:
    disk.open().begin(1)
    assert disk.record.claim == Claim()
    lsn = disk.write()
    disk.claims.look(1)
    claim = disk.record.claim
    assert (claim.newest, claim.second) == (lsn, 0)
    assert disk.write() == lsn + 1
    disk.claims.look(1)
    assert (disk.record.claim.newest, disk.record.claim.second) == (lsn + 1, lsn)
    assert disk.record.claim.crc != claim.crc


def test_an_older_copy_of_the_directory(disk: Disk, tmp_path: Path) -> None:
    disk.open().begin(1)
    older = disk.write()
    disk.close()
    shutil.copytree(disk.directory, tmp_path / "copy")
    disk.open().begin(1)
    newer = disk.write()
    disk.claims.look(1)
    assert disk.record.claim.newest == newer
    disk.close()
    shutil.rmtree(disk.directory)
    shutil.move(tmp_path / "copy", disk.directory)
    disk.open().begin(1)
    assert disk.record.claim.newest == older


def test_an_empty_directory_under_the_same_name(disk: Disk) -> None:
    disk.open().begin(1)
    disk.write()
    disk.claims.look(1)
    disk.close()
    shutil.rmtree(disk.directory)
    disk.open().begin(1)
    assert disk.record.claim == Claim()


def test_a_damaged_snapshot_is_not_claimed(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.open().begin(1)
    older = disk.write()
    disk.write()
    data = bytearray(disk.newest.read_bytes())
    data[len(data) // 2] ^= 1
    disk.newest.write_bytes(data)
    disk.claims.look(1)
    assert (disk.record.claim.newest, disk.record.claim.second) == (older, 0)
    assert "does not claim to have it" in caplog.text


def test_a_snapshot_that_goes_ends_the_claim(disk: Disk) -> None:
    disk.open().begin(1)
    older = disk.write()
    disk.write()
    disk.claims.look(1)
    disk.newest.unlink()
    disk.claims.look(1)
    assert disk.record.claim.newest == older


def test_it_is_renewed_in_time_and_in_each_term(disk: Disk) -> None:
    disk.open().begin(1)
    disk.claims.look(1)
    assert disk.record.renewals == 0
    disk.clock.now += RENEW_SECONDS
    disk.claims.look(1)
    assert disk.record.renewals == 1
    disk.claims.look(1)
    assert disk.record.renewals == 1
    disk.claims.look(2)
    assert disk.record.renewals == 2


def test_a_removed_member_claims_nothing_more(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.open().begin(1)
    assert disk.log.remove_member("a")
    disk.write()
    for term in (1, 2, 3):
        disk.claims.look(term)
    assert disk.log.members() == []
    assert caplog.text.count("removed from the members") == 1
    disk.close()
    disk.open().begin(3)
    assert disk.record.claim.newest


def test_two_processes_with_one_name(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    """That which was started last counts: a copied directory, or an empty one."""
    disk.open().begin(1)
    disk.write()
    other = MemberRecord(name="a", endpoints=[], applied=0, time=0, nonce="another")
    disk.log.declare(other)
    for term in (1, 2, 3):
        disk.claims.look(term)
    assert disk.record == other
    assert caplog.text.count("another process is member a") == 1


def test_a_withdrawn_claim_stays_so(disk: Disk) -> None:
    disk.open().begin(1)
    disk.write()
    disk.claims.look(1)
    disk.claims.withdraw()
    disk.claims.look(2)
    assert disk.record.claim == Claim()


def test_renewals_of_which_the_answer_is_lost(disk: Disk) -> None:
    disk.open().begin(1)
    for term in range(2, 60):
        disk.client.faults = Faults(lost=0.3, unanswered=0.3)
        with contextlib.suppress(UnknownOutcomeError):
            disk.claims.look(term)
    disk.client.faults = Faults()
    before = disk.record.renewals
    disk.claims.look(100)  # It may have to find out first what is there.
    disk.claims.look(100)
    assert disk.record.renewals > before
