"""Three members and three nodes of etcd, of which one after the other fails: a short run.

`make torture-cluster` is the long one, with all faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.etcd.nodes import needs_etcd
from tests.torture_cluster.members import LEASE
from tests.torture_cluster.run import Run

pytestmark = [needs_etcd, pytest.mark.timeout(300)]
SEED = 1


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """All that runs; etcd is without a majority for longer than a lease."""
    made = Run(tmp_path, SEED, minority=2 * LEASE)
    try:
        made.begin()
        yield made
    finally:
        made.end()


def test_nothing_is_lost_or_doubled_and_nobody_reads_what_is_old(run: Run) -> None:
    for fault in (
        run.kill_leader,
        run.terminate_leader,
        run.stop_leader_beyond_its_lease,
        run.etcd_without_majority,
    ):
        run.round(fault)
    assert run.failovers >= 3
    assert run.operations > 200
    assert run.asked, "a stopped leader was asked"
    assert not run.resets
