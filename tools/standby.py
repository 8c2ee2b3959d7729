#!/usr/bin/env python3
"""Show a second machine at work, on this one: a primary, a standby, a promotion, and the way back.

Two servers on free ports, with data directories that are removed at the end. A counter is raised
all the time: whatever happens, it must end up exact.

Exit status: 0 if it does, 1 if anything fails.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, Self

import zkv

BIN: Final = Path(sys.executable).parent
FREE: Final = "tcp://127.0.0.1:*"
STEP: Final = 100
"""Increments in each step."""


class Server:
    """A running server.

    Args:
        name: of its log.
        *words: the command, without ``zkv``.
    """

    def __init__(self, directory: Path, name: str, *words: str) -> None:
        self.log = directory / f"{name}.log"
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [BIN / "zkv", *words], cwd=directory, stdout=subprocess.PIPE, stderr=log, text=True
            )
        out = self._process.stdout
        line = [] if out is None else out.readline().split()
        if line[:1] != ["READY"]:
            raise RuntimeError(f"{name} does not start:\n{self.log.read_text()}")
        self.endpoint = line[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGKILL)

    def end(self, number: signal.Signals) -> None:
        """End it by a signal."""
        self._process.send_signal(number)
        self._process.wait()


class Counter:
    """A counter in the store, and what it must be."""

    def __init__(self) -> None:
        self.counted = 0

    def count(self, endpoint: str) -> None:
        """Raise it some times."""
        with zkv.Client(endpoint) as client:
            for _ in range(STEP):
                client.put("counter", self.counted + 1)
                self.counted += 1

    def check(self, endpoint: str, what: str) -> None:
        """Compare the counter at a server that leads with what was counted."""
        with zkv.Client(endpoint) as client:
            found: Any = client.get("counter")
        if found != self.counted:
            raise RuntimeError(f"{what}: the counter is {found}, not {self.counted}")
        print(f"  {what}: the counter is {found}, as counted")


def promote(endpoint: str, *words: str) -> None:
    """Promote a standby, and show what the command says."""
    subprocess.run([BIN / "zkv", "promote", "-e", endpoint, *words], check=True)


def run(directory: Path) -> None:
    """Go through all of it. Raises RuntimeError, subprocess.CalledProcessError."""
    counter = Counter()
    serve = ("--endpoint", FREE, "--data-dir")
    print("a primary")
    primary = Server(directory, "one", "serve", *serve, "one")
    with primary:
        counter.count(primary.endpoint)
        print("a standby: zkv follow")
        standby = Server(directory, "two", "follow", primary.endpoint, *serve, "two")
        with standby:
            counter.count(primary.endpoint)
            print("the primary hands over: zkv promote")
            promote(standby.endpoint)
            counter.check(standby.endpoint, "after a planned promotion")
            primary.end(signal.SIGTERM)
            print("the old primary is a standby now: zkv follow, in its old directory")
            with Server(directory, "one", "follow", standby.endpoint, *serve, "one") as old:
                counter.count(standby.endpoint)
                wait_for(old.endpoint, standby.endpoint)
                print("the new primary's machine is gone: zkv promote --force")
                standby.end(signal.SIGKILL)
                promote(old.endpoint, "--force")
                counter.check(old.endpoint, "after a forced promotion")
                counter.count(old.endpoint)
                counter.check(old.endpoint, "and the counter goes on")


def wait_for(standby: str, primary: str) -> None:
    """Wait until a standby has what its primary has."""
    with zkv.Client(primary) as one, zkv.Client(standby) as other:
        rev = one.info()["rev"]
        while other.info()["rev"] < rev:
            time.sleep(0.01)


def main() -> int:
    """Run the demonstration; returns the exit status."""
    directory = Path(tempfile.mkdtemp(prefix="zkv-standby-"))
    try:
        run(directory)
    except (RuntimeError, subprocess.CalledProcessError, zkv.ZkvError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        for log in sorted(directory.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text()}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory)
    print("all well")
    return 0


if __name__ == "__main__":
    sys.exit(main())
