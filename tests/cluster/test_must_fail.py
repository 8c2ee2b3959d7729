"""The runs that must fail, which `make torture-cluster` does, name what there is."""

from __future__ import annotations

import pytest

from tests.mutants.table import MUTANTS
from tests.torture_cluster.must_fail import RUNS, MustFail
from tests.torture_cluster.run import Run


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.mutant)
def test_a_run_has_its_fault_and_what_provokes_it(run: MustFail) -> None:
    assert run.mutant in {mutant.name for mutant in MUTANTS}
    assert callable(getattr(Run, run.provoked_by))
