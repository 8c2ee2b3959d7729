"""Fails over again and again between three members whose processes, networks, disks and etcd fail.

Each round does one thing, in an order that the seed decides: see `tests.torture_cluster.run`. At
the end it prints for how long each fault left the store without writes.

Exit status: 0 if all invariants hold in all rounds.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.torture_cluster.members import LEASE
from tests.torture_cluster.must_fail import must_fail
from tests.torture_cluster.run import Run


def main() -> int:
    """Run the rounds; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture_cluster", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no round later")
    parser.add_argument("--only", default="", help="only faults whose name holds this")
    parser.add_argument("--lease", type=float, default=LEASE, help="in seconds")
    parser.add_argument(
        "--must-fail", nargs="?", const="", metavar="WORD",
        help="plant faults into copies, all or those that hold this, and see that runs fail",
    )  # fmt: skip
    options = parser.parse_args()
    if options.must_fail is not None:
        return must_fail(options.must_fail, options.seed)
    directory = Path(tempfile.mkdtemp(prefix="zkv-torture-cluster-"))
    print(f"seed {options.seed}, files in {directory}", flush=True)
    run = Run(directory, options.seed, lease=options.lease)
    run.faults = [each for each in run.faults if options.only in each.__name__]
    for left_out in run.not_run:
        print(f"NOT RUN: {left_out}")
    if not run.faults:
        parser.error(f"there is no fault {options.only!r} that can be had here")
    began, number = time.monotonic(), 0
    try:
        run.begin()
        while number < options.rounds and time.monotonic() - began < options.seconds:
            name = run.round()
            number += 1
            took, gap = time.monotonic() - began, run.gaps[name][-1]
            print(f"{number:4} {took:7.1f} s  {name}: {gap:.2f} s without writes", flush=True)
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        run.end()
    print(run.table())
    print(
        f"{number} rounds, {run.failovers} fail-overs, {run.operations} requests checked, "
        f"{run.heard} of {run.asked} reads answered by a member that had been stopped or cut off, "
        f"{run.undecided} histories undecided, {run.resets} resets of the copy, "
        f"{sum(each.begun_anew for each in run.members)} members begun anew; "
        f"seed {options.seed}"
    )
    if not status:
        shutil.rmtree(directory)
    return status


if __name__ == "__main__":
    sys.exit(main())
