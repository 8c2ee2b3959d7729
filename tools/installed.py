"""Runs an installed zkv as its user would: serves, stores, stops, and serves again.

    PYTHON installed.py DIRECTORY    # PYTHON: of the environment in which zkv is installed

Prints a line of JSON that says what worked. It needs nothing but the installed package, and uses
its commands, so that it can be copied to any system. `tools.systems` does so.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import zkv
from zkv.cli.built import is_compiled

COMMANDS = Path(sysconfig.get_path("scripts"))
PATIENCE = 300
"""Seconds that a command may take: in an emulator, all takes long."""


class Serving:
    """A server on a free port. A context manager, which stops it."""

    def __init__(self, directory: Path) -> None:
        command = [str(COMMANDS / "zkv"), "serve", "--data-dir", str(directory)]
        self._process = subprocess.Popen(
            [*command, "--endpoint", "tcp://127.0.0.1:*"], stdout=subprocess.PIPE, text=True
        )
        line = "" if self._process.stdout is None else self._process.stdout.readline()
        self.endpoint = line.removeprefix("READY ").strip()

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)

    def command(self, *arguments: str) -> str:
        """Run ``zkv-cli``; returns what it prints. Raises CalledProcessError."""
        patient = ["--timeout", f"{PATIENCE}s"]
        done = subprocess.run(
            [str(COMMANDS / "zkv-cli"), "-e", self.endpoint, *patient, *arguments],
            stdout=subprocess.PIPE, text=True, timeout=PATIENCE, check=True,
        )  # fmt: skip
        return done.stdout.strip()


def main(directory: Path) -> None:
    """Serve twice from one data directory, and print what was seen."""
    with Serving(directory) as server:
        server.command("put", "greeting", "hello")
        with zkv.Client(server.endpoint, timeout=PATIENCE) as client:
            client["number"] = 42
            stats = client.info()["stats"]
    seen = {
        "version": zkv.__version__,
        "python": sys.version.split()[0],
        "compiled": is_compiled() and {stats["store"], stats["mailbox"]} == {"compiled"},
        "served": True,
    }
    with Serving(directory) as server, zkv.Client(server.endpoint, timeout=PATIENCE) as client:
        seen["restarted"] = server.command("get", "greeting") == "hello" and client["number"] == 42
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
