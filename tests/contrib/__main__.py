"""Run the frameworks' own tests with the adapters of `zkv.contrib`: ``make test-contrib``.

Each suite runs in environments of its own below ``build/contrib/``: with the version that is pinned
here, and with the newest one if that is another. Frameworks and their tests come from the package
index; the tests from the source archive of the same version, unchanged, and nothing of them is kept
in the repository. In ``tests/contrib/suites/`` are classes that derive from a framework's, and
further tests, in which a server is killed in the middle.

The last table has what each suite did. The exit status is 1 if a test has failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from tests.cli import redis_server
from tests.support import ROOT, ServerProcess, environment, free_ports

BUILD: Final = ROOT / "build" / "contrib"
SUITES: Final = ROOT / "tests" / "contrib" / "suites"
PYTEST: Final = (
    "pytest>=8.4", "pytest-asyncio", "pytest-rerunfailures", "pytest-timeout", "hypothesis",
)  # fmt: skip


class Run(NamedTuple):
    """One run of pytest.

    Args:
        files: relative to the directory of the suites, or in a run ``inside`` to the source.
        inside: run in the directory of the framework's source, with the plugin of that name.
        options: further ones of pytest.
    """

    files: tuple[str, ...]
    inside: str = ""
    options: tuple[str, ...] = ()


class Suite(NamedTuple):
    """The tests of one framework.

    Args:
        package: its name in the index.
        pinned: the version that always has to pass.
        runs: of pytest.
        needs: further packages.
        tests: the directory of tests within the source; None = the package brings them.
        newest: the Python that the newest version needs, if it is another one.
        broker: start a Redis for it, as the broker of Celery.
    """

    package: str
    pinned: str
    runs: tuple[Run, ...]
    needs: tuple[str, ...] = ()
    tests: str | None = None
    newest: str = ""
    broker: bool = False


FLAKY: Final = ("--reruns", "5")
"""For tests that measure time."""

TABLE: Final = {
    "zarr": Suite("zarr", "3.1.6", (Run(("zarr_suite.py",)),), ("xarray", "numpy")),
    "django": Suite(
        "django", "5.2.19", (Run(("django_suite.py",), options=FLAKY),), tests="tests",
        newest="python3.12",
    ),
    "cachelib": Suite("cachelib", "0.17.0", (Run(("cachelib_suite.py",)),),
                      ("pytest-xprocess", "flask", "flask-session", "flask-caching"),
                      tests="tests"),
    "dogpile": Suite("dogpile.cache", "1.5.0", (Run(("dogpile_suite.py",)),)),
    "limits": Suite(
        "limits", "5.8.0",
        (
            Run(("limits_suite.py",)),
            Run(("tests/test_storage.py", "tests/test_strategy.py", "tests/integration"),
                inside="limits_plugin", options=FLAKY),
        ),
        ("redis", "valkey", "pymemcache", "pymongo", "pytest-lazy-fixtures", "pytest-docker",
         "flask-limiter", "slowapi", "starlette", "httpx"),
        tests="tests",
    ),
    "celery": Suite(
        "celery", "5.7.0",
        (
            Run(("celery_suite.py",)),
            Run(("t/integration/test_tasks.py", "t/integration/test_canvas.py",
                 "t/integration/test_group_chains.py"),
                inside="celery_plugin",
                options=("--timeout", "120", "-o", "python_classes=test_*")),
        ),
        ("redis", "pytest-celery", "pytest-subtests", "pydantic", "cryptography"),
        tests="t", broker=True,
    ),
    "bluesky": Suite("bluesky", "1.15.1", (Run(("bluesky_suite.py",)),)),
}  # fmt: skip


class Outcome(NamedTuple):
    """What one suite did with one version."""

    suite: str
    version: str
    python: str
    passed: int
    failed: list[str]
    skipped: Counter[str]


class Environment:
    """A framework of one version, in a virtual environment."""

    def __init__(self, name: str, suite: Suite, version: str | None) -> None:
        self._suite = suite
        self.directory = BUILD / f"{name}-{version or 'newest'}"
        self._base = sys.executable if version or not suite.newest else suite.newest
        self._python = str(self.directory / "bin" / "python")
        self._install(suite.package if version is None else f"{suite.package}=={version}")
        self.version = self._run(
            "-c", f"from importlib.metadata import version; print(version({suite.package!r}))"
        ).strip()
        self.python = self._run("-c", "import platform; print(platform.python_version())").strip()
        self.source = self._fetch_tests() if suite.tests else None

    def _install(self, framework: str) -> None:
        subprocess.run([self._base, "-m", "venv", str(self.directory)], check=True)
        wanted = [*PYTEST, *self._suite.needs, framework]
        self._pip("install", "--upgrade", "--require-hashes", "-r", f"{ROOT}/requirements/run.txt")
        self._pip("install", "--upgrade", *wanted)
        wheels = BUILD / "wheels"
        if not wheels.exists():
            self._pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(ROOT))
        # The names by which frameworks find adapters; the code is that of the checkout.
        self._pip("install", "--no-deps", "--force-reinstall", *map(str, wheels.glob("*.whl")))

    def _fetch_tests(self) -> Path:
        """The source archive of the same version, unpacked."""
        target = self.directory / "source"
        if not target.exists():
            with tempfile.TemporaryDirectory() as archive:
                self._pip("download", "--no-deps", "--no-binary", ":all:", "-d", archive,
                          f"{self._suite.package}=={self.version}")  # fmt: skip
                (packed,) = Path(archive).iterdir()
                with tarfile.open(packed) as tar:
                    tar.extractall(target, filter="data")
        (source,) = target.iterdir()
        return source

    def is_newest(self) -> bool:
        """Whether the index has no newer version for this Python or the one that it needs."""
        if self._suite.newest:
            return not runs(self._suite.newest)
        told = self._run("-m", "pip", "install", "--upgrade", "--dry-run", "--no-deps",
                         self._suite.package)  # fmt: skip
        return "Would install" not in told

    def _pip(self, *arguments: str) -> None:
        self._run("-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *arguments)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [self._python, *arguments], cwd=BUILD, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def test(self, run: Run, endpoint: str, variables: dict[str, str]) -> Path:
        """Run pytest, which shows what it does; the file with its outcomes."""
        report = self.directory / "report.xml"
        report.unlink(missing_ok=True)
        paths = [str(ROOT)]
        plugin, where, files = "tests.contrib.suites.plugin", SUITES, run.files
        if self.source and run.inside:
            plugin, where = run.inside, self.source
            paths.insert(0, str(SUITES))
        elif self.source:
            paths.append(str(self.source / str(self._suite.tests)))
        if not run.inside:
            files = tuple(str(SUITES / name) for name in files)
        subprocess.run(
            [self._python, "-m", "pytest", "-c", str(SUITES / "pytest.ini"), "--rootdir",
             str(where), "-p", plugin, "-q", f"--junit-xml={report}", *run.options, *files],
            cwd=where, check=False,
            env=environment() | variables
            | {"PYTHONPATH": os.pathsep.join(paths), "ZKV_ENDPOINT": endpoint},
        )  # fmt: skip
        return report


def runs(program: str) -> bool:
    """Whether a Python is installed here, and not only a script that would look for it."""
    try:
        return subprocess.run([program, "-c", ""], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def outcomes_in(report: Path) -> Iterator[tuple[str, str, str]]:
    """Name, outcome and reason of each test."""
    cases = [*ET.parse(report).iter("testcase")] if report.exists() else []
    if not cases:
        yield "pytest", "failed", "it has run no test"
    for case in cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        outcome, reason = "passed", ""
        for child in case:
            if child.tag in {"failure", "error"}:
                outcome, reason = "failed", child.get("message", "")
            elif child.tag == "skipped":
                outcome, reason = "skipped", child.get("message", "")
        yield name, outcome, reason


def run_suite(name: str, made: Environment) -> Outcome:
    suite = TABLE[name]
    failed: list[str] = []
    skipped: Counter[str] = Counter()
    passed = 0
    variables: dict[str, str] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(ServerProcess(directory))
        if suite.broker and redis_server.PROGRAM is not None:
            variables["REDIS_PORT"] = port = str(free_ports(1)[0])
            stack.enter_context(redis_server.running(directory, "--port", port))
        for run in suite.runs:
            if run.inside and suite.broker and not variables:
                skipped[redis_server.MISSING] += 1
                continue
            for case, outcome, reason in outcomes_in(made.test(run, server.endpoint, variables)):
                if outcome == "skipped":
                    skipped[re.sub(r"\s+", " ", reason)] += 1
                elif outcome == "failed":
                    failed.append(f"{case}: {reason[:200]}")
                else:
                    passed += 1
    return Outcome(name, made.version, made.python, passed, failed, skipped)


def main() -> int:
    """Run what was asked for, and print what it did."""
    parser = argparse.ArgumentParser(prog="make test-contrib", description=__doc__)
    parser.add_argument("suites", nargs="*", help=f"of {', '.join(TABLE)}; default: all")
    parser.add_argument("--pinned", action="store_true", help="not the newest versions")
    arguments = parser.parse_args()
    if unknown := set(arguments.suites) - set(TABLE):
        parser.error(f"there are no such suites: {', '.join(sorted(unknown))}")
    BUILD.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(BUILD / "wheels", ignore_errors=True)
    outcomes: list[Outcome] = []
    for name in arguments.suites or TABLE:
        pinned = Environment(name, TABLE[name], TABLE[name].pinned)
        outcomes.append(run_suite(name, pinned))
        suite = TABLE[name]
        if suite.newest and not (arguments.pinned or runs(suite.newest)):
            print(f"NOT RUN: the newest {name} needs {suite.newest}, which is not installed here")
        elif not (arguments.pinned or pinned.is_newest()):
            outcomes.append(run_suite(name, Environment(name, TABLE[name], None)))
    print(f"\n{'suite':10} {'version':10} {'python':8} {'passed':>6} {'failed':>6} {'skipped':>7}")
    for each in outcomes:
        print(f"{each.suite:10} {each.version:10} {each.python:8} {each.passed:6}"
              f" {len(each.failed):6} {each.skipped.total():7}")  # fmt: skip
        for reason, count in each.skipped.most_common():
            print(f"{'':10} {count} skipped: {reason}")
        for case in each.failed:
            print(f"{'':10} failed: {case}")
    return 1 if any(each.failed for each in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
