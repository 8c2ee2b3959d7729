"""Runs that must fail: what keeps a replicated store right is taken out, one thing at a time.

Each fault is planted into a copy of the checkout, and the torture runs there with what provokes it.
It has to fail, and by the right cause. The same run without the fault must not: else it would show
nothing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from tests.mutants.checkout import Checkout
from tests.mutants.table import MUTANTS, Mutant
from tests.torture_cluster.members import LEASE

ROUNDS: Final = 8
"""In which a fault has to show."""
SOUND_ROUNDS: Final = 2
"""In which nothing may show without a fault."""
LONGEST_SECONDS: Final = 1_200
STALE: Final = r"BrokenError: not linearizable"


class MustFail(NamedTuple):
    """A run.

    Args:
        mutant: the name of the fault, in the table of mutants.
        provoked_by: what is done in each round.
        cause: matches what the run has to say at its end.
        lease: in seconds.
    """

    mutant: str
    provoked_by: str
    cause: str
    lease: float = LEASE


RUNS: Final = (
    MustFail("the fence is taken out", "stop_leader_beyond_its_lease", STALE),
    MustFail("a leader never demotes itself", "stop_leader_beyond_its_lease", STALE),
    MustFail(
        "there is no margin for clocks of different rates", "cut_slow_leader_from_etcd", STALE,
        lease=20.0,
    ),
    MustFail(
        "members go by revisions instead of log numbers", "kill_leader_after_a_refusal",
        r"BrokenError: a write was refused, and not when repeated",
    ),
    MustFail(
        "the time of a new leader is that of its system", "set_clocks",
        # Sessions are forgotten, too: a write that is repeated is then applied twice.
        rf"BrokenError: lasting/\d+ is gone, too early|{STALE}",
    ),
)  # fmt: skip


def must_fail(word: str, seed: int) -> int:
    """Do the runs whose fault holds a word; the exit status: 0 if all failed as they have to."""
    chosen = [run for run in RUNS if word in run.mutant]
    if not chosen:
        print(f"no fault has {word!r} in its name")
        return 1
    mutants = {mutant.name: mutant for mutant in MUTANTS}
    directory = Path(tempfile.mkdtemp(prefix="zkv-must-fail-"))
    print(f"seed {seed}, files in {directory}", flush=True)
    checkout = Checkout(directory / "checkout")
    wrong = 0
    for run in chosen:
        outcome = _outcome(checkout, run, mutants[run.mutant], seed)
        print(f"{outcome or 'failed, as it has to'}: {run.mutant}", flush=True)
        wrong += outcome is not None
    if not wrong:
        shutil.rmtree(directory)
    return int(wrong > 0)


def _outcome(checkout: Checkout, run: MustFail, mutant: Mutant, seed: int) -> str | None:
    """Return what is wrong with a run; None if it fails with its fault, and only then."""
    sound = _torture(checkout, run, SOUND_ROUNDS, seed)
    if sound.returncode:
        return f"FAILED WITHOUT THE FAULT\n{_end(sound)}"
    with checkout.planted(mutant):
        done = _torture(checkout, run, ROUNDS, seed)
    if not done.returncode:
        return f"DID NOT FAIL in {ROUNDS} rounds\n{_end(done)}"
    found = re.search(f".*{run.cause}.*", done.stdout + done.stderr)
    if found is None:
        return f"FAILED BY ANOTHER CAUSE\n{_end(done)}"
    print(f"    {found[0][:300]}")
    return None


def _torture(
    checkout: Checkout, run: MustFail, rounds: int, seed: int
) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "tests.torture_cluster", "--rounds", str(rounds), "--seed", str(seed),
        "--only", run.provoked_by, "--lease", str(run.lease),
    ]  # fmt: skip
    place = {"TMPDIR": str(checkout.directory.parent)}
    return checkout.run_command(command, LONGEST_SECONDS, place)


def _end(done: subprocess.CompletedProcess[str]) -> str:
    return f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
