"""Checks all that a release needs, and leaves a report: build/release.md.

    python -m tools.release            # all of it, which takes hours
    python -m tools.release NAME...    # some of it, by the names in the report

A check that fails does not keep the others from running. The output of each is in
``build/release/NAME.log``. The exit status is 1 if any failed.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tools.wheels import unpacked
from zkv import __version__

ROOT: Final = Path(__file__).parents[1]
LOGS: Final = ROOT / "build" / "release"
REPORT: Final = ROOT / "build" / "release.md"
LAST_LINES: Final = 15
"""Lines of a failed check's output that the report shows."""


TABLE: Final = "| check | result | seconds | |\n|---|---|---|---|\n"


class NotReadyError(Exception):
    """A check has failed; the message says why."""


class Check(NamedTuple):
    """Something that a release needs.

    Attributes:
        name: as the report shows it.
        what: what is checked: a command, or a function that raises NotReadyError and returns what
            it has found.
    """

    name: str
    what: str | Callable[[], str]


def tree() -> str:
    """All files are committed."""
    if changed := output("git", "status", "--porcelain"):
        raise NotReadyError(f"these files are not committed:\n{changed}")
    return output("git", "log", "-1", "--format=%h %s")


def version() -> str:
    """The version is that of a release, and not of the way to one."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", __version__):
        raise NotReadyError(f"zkv/__init__.py has version {__version__}")
    return __version__


def changelog() -> str:
    """The changelog has a dated section for the version, and nothing that is not released."""
    sections = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.M)[1:]
    heads = [section.splitlines()[0] for section in sections]
    waiting = [each for each in sections if each.startswith("[Unreleased]")]
    if waiting and len(waiting[0].split()) > 1:
        raise NotReadyError("CHANGELOG.md has entries under [Unreleased]")
    head = re.compile(rf"\[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d")
    if not any(head.fullmatch(each) for each in heads):
        raise NotReadyError(f"CHANGELOG.md has no section `## [{__version__}] - YYYY-MM-DD`")
    return next(each for each in heads if head.fullmatch(each))


def fixtures() -> str:
    """Data directories and conformance vectors of this version are kept for those to come."""
    minor = ".".join(__version__.split(".")[:2])
    places = (f"tests/durability/versions/{minor}", f"tests/conformance/versions/{minor}.txt")
    if missing := [place for place in places if not (ROOT / place).exists()]:
        raise NotReadyError(f"{' and '.join(missing)} are missing: later versions test with them")
    return ", ".join(places)


def source_tests() -> str:
    """The source distribution passes its own tests, in a directory of its own."""
    found = sorted((ROOT / "dist").glob("zkv-*.tar.gz"))
    if len(found) != 1:
        raise NotReadyError(f"dist/ has {len(found)} source distributions: make dist")
    with tempfile.TemporaryDirectory(prefix="zkv-release-") as directory:
        return run(["make", "-C", str(unpacked(found[0], Path(directory, "source"))), "test"])


CHECKS: Final = (
    Check("tree", tree),
    Check("version", version),
    Check("changelog", changelog),
    Check("fixtures", fixtures),
    Check("tests", "make test"),
    Check("docs", "make docs"),
    Check("wheels", "make dist"),
    Check("systems", "make dist-check"),
    Check("source-tests", source_tests),
    Check("fuzz", "make fuzz ARGS=-max_total_time=600"),
    Check("torture", "make torture"),
    Check("failover", "make failover ARGS='--rounds 50'"),
    Check("torture-cluster", "make torture-cluster ARGS='--rounds 50'"),
    Check("soak", "make soak"),
    Check("mutants", "make mutants"),
    Check("benchmarks", "make bench"),
)


def main() -> int:
    """Run the command line; returns the exit status."""
    names = [check.name for check in CHECKS]
    parser = argparse.ArgumentParser(prog="tools.release", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*names, []], help=str(names))
    chosen = parser.parse_args().names or names
    LOGS.mkdir(parents=True, exist_ok=True)
    commit = output("git", "log", "-1", "--format=%H")
    head = f"# zkv {__version__}\n\nCommit {commit}\n\n{TABLE}"
    rows, failures = "", ""
    for check in CHECKS:
        if check.name not in chosen:
            rows += f"| {check.name} | not run | | |\n"
            continue
        print(f"... {check.name}", flush=True)
        began = time.monotonic()
        told, is_fault = outcome(check)
        (LOGS / f"{check.name}.log").write_text(told, encoding="utf-8")
        lines = told.strip().splitlines() or [""]
        what = check.what if isinstance(check.what, str) else lines[-1]
        result = "FAILED" if is_fault else "passed"
        rows += f"| {check.name} | {result} | {time.monotonic() - began:.0f} | {what} |\n"
        if is_fault:
            last = "\n".join(lines[-LAST_LINES:])
            failures += f"\n## {check.name}\n\n```text\n{last}\n```\n"
        REPORT.write_text(head + rows + failures, encoding="utf-8")
    print(head + rows + failures, end="")
    return 1 if failures else 0


def outcome(check: Check) -> tuple[str, bool]:
    """Run a check; returns what it printed or said, and True if it failed."""
    try:
        return (
            run(shlex.split(check.what)) if isinstance(check.what, str) else check.what()
        ), False
    except NotReadyError as error:
        return str(error), True


def run(command: Sequence[str]) -> str:
    """Run a command at the top of the repository; returns all its output. Raises NotReadyError."""
    done = subprocess.run(
        command, cwd=ROOT, check=False, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode != 0:
        raise NotReadyError(f"{done.stdout}\nexit status {done.returncode}")
    return done.stdout


def output(*command: str) -> str:
    """Run a command; returns what it prints. Raises NotReadyError."""
    return run(command).strip()


if __name__ == "__main__":
    sys.exit(main())
