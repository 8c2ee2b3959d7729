"""``python -m tests.clients``: install what the clients in other languages need, or time them.

``install``, as root on Debian or Ubuntu, installs the packages of those languages that are not
here yet. ``measure`` prints a table: lines, and round trips in a second through ``call``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.clients.languages import Driver, Language, languages
from tests.support import ServerProcess, pack, unpack


def main() -> int:
    """Run one command and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("command", choices=["install", "measure"])
    parser.add_argument("--requests", type=int, default=5000, help="for each language")
    options = parser.parse_args()
    if options.command == "install":
        return install()
    measure(options.requests)
    return 0


def install() -> int:
    """Install what is missing, and return 0 if nothing is any more."""
    missing = [language for language in languages() if not _ready(language)]
    packages = sorted({package for language in missing for package in language.packages})
    # What a machine has from elsewhere, such as Node.js with its own npm, need not fit Debian's.
    packages = [package for package in packages if shutil.which(package) is None]
    if packages:
        print("apt-get install", *packages, flush=True)
        subprocess.run(
            ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *packages],
            check=True,
        )
    still_missing = [language for language in languages() if not _ready(language)]
    for language in still_missing:
        print(f"{language} still cannot be run", file=sys.stderr)
    return 1 if still_missing else 0


def _ready(language: Language) -> bool:
    """Whether it can be run, once what it installs by itself is there."""
    if language.install and not Language(language.directory).is_present:
        language.shell(language.install, check=False)
    return Language(language.directory).is_present


def measure(requests: int) -> None:
    """Print a table of all languages that are here."""
    print(f"{'language':<10} {'lines':>6} {'GET/s':>8} {'PUT/s':>8}   lacks")
    with (
        tempfile.TemporaryDirectory() as directory,
        ServerProcess(Path(directory), "--fsync", "never") as server,
    ):
        for language in languages():
            if not language.is_present:
                print(f"{language!r:<10} not here")
                continue
            lines = sum(
                len(path.read_text(encoding="utf-8").splitlines())
                for path in language.sources
                if path.stem.lower() in ("client", "zkv", "msgpack")
                and path.suffix not in (".md", ".toml")
            )
            with Driver(language, server.endpoint) as driver:
                put = _rate(driver, requests, op="PUT", key="k", value=b"x" * 100)
                get = _rate(driver, requests, op="GET", key="k")
            lacks = " ".join(sorted(language.lacks))
            print(f"{language!r:<10} {lines:>6} {get:>8,.0f} {put:>8,.0f}   {lacks}", flush=True)


def _rate(driver: Driver, requests: int, **fields: object) -> float:
    """Round trips in a second. Requests are handed over in advance, a few at a time."""
    body = pack(fields)
    assert unpack(driver.exchange(body))["ok"]
    started = time.perf_counter()
    ahead = 20
    for number in range(requests + ahead):
        if number < requests:
            driver.send(body)
        if number >= ahead:
            assert unpack(driver.receive())["ok"]
    return requests / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
