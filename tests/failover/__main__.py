"""Fails over again and again between machines whose processes, network and disks fail.

Each round does one thing, in an order that the seed decides: kills, stops, cut and silent
connections, full disks, flipped bytes, a log that is gone, promotions as planned or by force, and
faults in the middle of promotions. Meanwhile askers count up keys by exactly-once writes, and read
and write shared ones; a mirror and a follower of the feed look on.

There are a primary and a standby; with ``--chain`` also a standby of the standby, and with
``--pair`` two standbys of the primary, of which one has to confirm each write.

After each round: the standbys have the state of the primary at the same log number (entries with
revisions and deadlines, and sessions); each counter is what was answered; the mirror is the store;
what a machine had of its own when another one took over is in a file there.
What is missing after a promotion by force is a suffix: what was answered up to the revision where
the new primary begins is there, and what came later is not. With ``--sync`` or ``--pair`` nothing
is missing if the standby that has most was promoted.
What was asked between two promotions by force is linearizable.

Exit status: 0 if all that holds in all rounds.
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

from tests.failover.run import Run
from tests.failover.three import Chain, Pair
from tests.failover.two import Two


def main() -> int:
    """Run the rounds; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.failover", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--sync", action="store_true", help="with replication.sync = 1")
    machines = parser.add_mutually_exclusive_group()
    machines.add_argument("--chain", action="store_true", help="with a standby of the standby")
    machines.add_argument("--pair", action="store_true", help="with two standbys, and --sync")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no round later")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="zkv-failover-"))
    print(f"seed {options.seed}, files in {directory}", flush=True)
    kind: type[Run] = Chain if options.chain else Pair if options.pair else Two
    run = kind(directory, options.seed, options.sync or options.pair)
    status = _rounds(run, options.rounds, options.seconds)
    print(f"seed {options.seed}")
    if not status:
        shutil.rmtree(directory)
    return status


def _rounds(run: Run, rounds: int, seconds: float) -> int:
    """Run so many rounds, and print what was done; the exit status."""
    began, number = time.monotonic(), 0
    try:
        run.begin()
        while number < rounds and time.monotonic() - began < seconds:
            name = run.round()
            number += 1
            print(f"{number:4} {time.monotonic() - began:7.1f} s  {name}", flush=True)
        run.check_rest()
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        run.end()
    for name, count in sorted(run.done.items()):
        print(f"{count:5}  {name}")
    print(
        f"{number} rounds, {run.operations} requests checked, {run.undecided} histories undecided, "
        f"{run.lost} counts lost by force, {run.kept} commits given up into files, "
        f"{run.gone} that were in the log no more"
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
