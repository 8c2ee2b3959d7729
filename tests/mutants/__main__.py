"""Plants the bugs of `tests.mutants.table` one at a time, and says which of them no test catches.

Each is planted into a copy of the checkout, of which what is written in C is compiled anew where
the bug is in C. Then the tests run that are to catch it. Exit status: 0 where all were caught.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from tests.compiled.sanitizer import COMPILER, compile_part
from tests.mutants.checkout import Checkout, NotAppliedError
from tests.mutants.table import MUTANTS, Mutant

IN_C: Final = "zkv/compiled/_store.abi3.so"
UNOPTIMISED: Final = "-O0"
FAILED: Final = 1
"""Exit status of pytest where a test has failed."""
LONGEST_SECONDS: Final = 300
"""After that a test counts as hung, and so as failed."""


class TestedCheckout(Checkout):
    """A copy of the checkout, into which one bug after the other is planted."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._part = directory / IN_C
        compile_part(self._part, UNOPTIMISED)
        self._compiled = self._part.read_bytes()

    def run(self, mutant: Mutant | None, arguments: tuple[str, ...]) -> tuple[str, str]:
        """Run tests with a bug planted; what became of it, and the output."""
        if mutant is None:
            return self._test(arguments)
        try:
            with self.planted(mutant):
                if mutant.path.endswith(".c"):
                    compile_part(self._part, UNOPTIMISED)
                return self._test(arguments)
        except NotAppliedError:
            return "not applied", ""
        finally:
            self._part.write_bytes(self._compiled)

    def _test(self, arguments: tuple[str, ...]) -> tuple[str, str]:
        command = [
            sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider",
            "--timeout", str(LONGEST_SECONDS), *arguments,
        ]  # fmt: skip
        try:
            done = self.run_command(command, 2 * LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            return "caught", "the tests hang"
        outcome = {0: "survived", FAILED: "caught"}.get(done.returncode, "not run")
        return outcome, done.stdout + done.stderr


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="only bugs whose name or file holds one of these")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default: 2)")
    options = parser.parse_args()
    chosen = [
        mutant
        for mutant in MUTANTS
        if not options.words
        or any(word in mutant.name or word in mutant.path for word in options.words)
    ]
    if COMPILER is None:
        parser.error("needs a C compiler")
    if not chosen:
        parser.error("there is no such bug")
    with tempfile.TemporaryDirectory(prefix="zkv-mutants-") as directory:
        checkouts: SimpleQueue[TestedCheckout] = SimpleQueue()
        for number in range(options.jobs):
            place = Path(directory) / str(number)
            place.mkdir()
            checkouts.put(TestedCheckout(place))

        def run(mutant: Mutant | None, tests: tuple[str, ...]) -> str:
            checkout = checkouts.get()
            try:
                outcome, output = checkout.run(mutant, tests)
            finally:
                checkouts.put(checkout)
            what = " ".join(tests) if mutant is None else f"{mutant.path}: {mutant.name}"
            print(f"{outcome:11}  {what}", flush=True)
            if outcome == "not run" or (mutant is None and outcome == "caught"):
                print(output[-2000:], flush=True)
            return outcome

        tests = sorted({mutant.tests for mutant in chosen})
        with ThreadPoolExecutor(options.jobs) as pool:
            good = list(pool.map(lambda each: run(None, each), tests))
            if set(good) != {"survived"}:
                print("these tests fail without any bug", file=sys.stderr)
                return 1
            outcomes = list(pool.map(lambda each: run(each, each.tests), chosen))
    caught = outcomes.count("caught")
    print(f"{caught} of {len(chosen)} caught")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
