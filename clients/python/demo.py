#!/usr/bin/env python3
"""Show a zkv server at work: store every named Unicode character, and read it back.

Starts a temporary server on a free port with an empty data directory, loads the Unicode
table of Python's standard library in batches, reads everything back and compares it, gets a
few characters with the command line client, stops the server, restarts it on the same
directory, compares everything again, and stops it. Finally it removes the directory.

Exit status: 0 if every entry was read back unchanged; 1 on any difference or failure.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from client import Client, NoReply, ZkvError

BIN = Path(sys.executable).parent  # where zkv and zkv-cli are installed, beside Python
BATCH = 1000  # entries in one MPUT or MGET
TIMEOUT = 30.0  # seconds for any one step; a step that takes longer has failed
LOOKED_UP = ("U+0041", "U+00DF", "U+20AC", "U+4E2D", "U+1F600")
BAR_WIDTH = 30  # characters
REDRAW = {True: 0.1, False: 1.0}  # seconds between two drawings: terminal, pipe


class Failure(Exception):
    """The demonstration failed: a value differs, or the server did not start or stop."""


class Progress:
    """A progress bar on a terminal, or a line now and then in a pipe."""

    def __init__(self, label: str, total: int) -> None:
        self._label = label
        self._total = total
        self._live = sys.stdout.isatty()
        self._started = self._drawn = time.perf_counter()
        self._done = 0

    def advance(self, count: int) -> None:
        """Add to the count; draw if it is time to, and always at the end."""
        self._done += count
        now = time.perf_counter()
        if self._done >= self._total or now - self._drawn >= REDRAW[self._live]:
            self._drawn = now
            self._draw()

    @property
    def rate(self) -> float:
        """Entries per second up to the last drawing."""
        return self._done / max(self._drawn - self._started, 1e-9)

    def _draw(self) -> None:
        share = self._done / self._total
        figures = f"{share:4.0%}  {self._done:>9,} entries  {self.rate:>9,.0f}/s"
        if not self._live:
            print(f"  {self._label:<24}{figures}", flush=True)
            return
        bar = ("#" * round(share * BAR_WIDTH)).ljust(BAR_WIDTH, ".")
        end = "\n" if self._done >= self._total else ""
        print(f"\r  {self._label:<24}[{bar}] {figures}", end=end, flush=True)


class Server:
    """A running `zkv serve`; the constructor returns once it serves requests."""

    def __init__(self, directory: Path) -> None:
        started = time.perf_counter()
        self.log = directory / "server.log"
        command: list[str | Path] = [BIN / "zkv", "serve", "--endpoint", "tcp://127.0.0.1:*"]
        command += ["--data-dir", directory / "data"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=directory, stdout=subprocess.PIPE, stderr=log, text=True
            )
        try:
            self.endpoint = self._wait_until_ready()
        except BaseException:
            self.kill()
            raise
        self.start_time = time.perf_counter() - started  # seconds

    def _wait_until_ready(self) -> str:
        """Return the endpoint from the line `READY endpoint...` on standard output."""
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        output = self.process.stdout
        # A thread, because a pipe cannot be read with a timeout. It reads to the end, so that
        # a full pipe never blocks the server.
        threading.Thread(target=self._read_lines, args=(output, lines), daemon=True).start()
        try:
            line = lines.get(timeout=TIMEOUT)
        except queue.Empty:
            raise Failure(f"the server was not ready within {TIMEOUT:g} s") from None
        if not line.startswith("READY "):
            raise Failure(f"the server did not start: {line.strip()}\n{self.last_words()}")
        return line.split()[1]

    def last_words(self) -> str:
        """Return the end of the server's log."""
        return self.log.read_text(errors="replace").strip()[-2000:]

    @staticmethod
    def _read_lines(output: IO[str], lines: queue.SimpleQueue[str]) -> None:
        with output:
            for line in output:
                lines.put(line)
        lines.put("")  # the end, in case READY has not come

    def end(self) -> None:
        """Stop it with the command line client; both must exit with status 0."""
        zkv_cli(self.endpoint, "end")
        try:
            status = self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise Failure(f"the server is still running {TIMEOUT:g} s after END") from None
        if status:
            raise Failure(f"the server exited with status {status} after END")

    def kill(self) -> None:
        """Make sure that the process is gone."""
        self.process.kill()
        self.process.wait()


@contextmanager
def running(directory: Path) -> Iterator[Server]:
    """Start a server, and stop it at the end; its log is shown if a reply is lost."""
    server = Server(directory)
    try:
        yield server
    except NoReply as error:
        raise Failure(f"{error}\n{server.last_words()}") from error
    finally:
        server.kill()


def zkv_cli(endpoint: str, *words: str, status: int = 0) -> str:
    """Run `zkv-cli`, check its exit status and return its output."""
    command = [str(BIN / "zkv-cli"), "-e", endpoint, "--timeout", f"{TIMEOUT:g}", *words]
    result = subprocess.run(
        command, capture_output=True, encoding="utf-8", timeout=2 * TIMEOUT, check=False
    )
    if result.returncode != status:
        fault = f"exit status {result.returncode} instead of {status}: {result.stderr.strip()}"
        raise Failure(f"zkv-cli {' '.join(words)}: {fault}")
    return result.stdout.strip()


def unicode_table() -> dict[str, dict[str, Any]]:
    """Return every named character of Python's Unicode tables, by its code point."""
    characters = (chr(number) for number in range(sys.maxunicode + 1))
    return {
        f"U+{ord(char):04X}": describe(char) for char in characters if unicodedata.name(char, "")
    }


def describe(char: str) -> dict[str, Any]:
    """Return a map with values of many types: str, bin, int, float, bool, array."""
    value: dict[str, Any] = {
        "character": char,
        "name": unicodedata.name(char),
        "code_point": ord(char),
        "utf8": char.encode(),
        "category": unicodedata.category(char),
        "bidirectional": unicodedata.bidirectional(char),
        "combining": unicodedata.combining(char),
        "mirrored": bool(unicodedata.mirrored(char)),
        "width": unicodedata.east_asian_width(char),
        "decomposition": unicodedata.decomposition(char).split(),
    }
    numbers = {
        "decimal": unicodedata.decimal(char, None),
        "digit": unicodedata.digit(char, None),
        "numeric": unicodedata.numeric(char, None),
    }
    return value | {name: number for name, number in numbers.items() if number is not None}


def batches(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut the keys into batches for one request each."""
    for start in range(0, len(keys), BATCH):
        yield keys[start : start + BATCH]


def load(client: Client, table: Mapping[str, Any]) -> float:
    """Store the table and return the rate in entries per second."""
    progress = Progress("load, with MPUT", len(table))
    rev = 0
    for keys in batches(list(table)):
        before, rev = rev, client.mput({key: table[key] for key in keys})
        if rev != before + 1:
            raise Failure(f"an MPUT got revision {rev} after revision {before}")
        progress.advance(len(keys))
    return progress.rate


def compare(client: Client, table: Mapping[str, Any], label: str) -> float:
    """Read everything, compare it with the table, return the rate in entries per second."""
    progress = Progress(label, len(table))
    for keys in batches(list(table)):
        values = client.mget(keys)
        if len(values) != len(keys):
            raise Failure(f"{len(values)} values came for {len(keys)} keys")
        for key, value in zip(keys, values, strict=True):
            # Not with ==, for which 1, 1.0 and True are equal.
            if repr(value) != repr(table[key]):
                raise Failure(f"{key} is {value!r} instead of {table[key]!r}")
        progress.advance(len(keys))
    stored = client.call("INFO")["keys"]
    if stored != len(table):
        raise Failure(f"the server counts {stored} entries instead of {len(table)}")
    return progress.rate


def look_up(endpoint: str, table: Mapping[str, Any]) -> None:
    """Get a few entries, and one that does not exist, with the command line client."""
    for key in LOOKED_UP:
        printed = zkv_cli(endpoint, "get", key)
        name = table[key]["name"]
        if name not in printed:
            raise Failure(f"zkv-cli get {key} does not print {name}: {printed}")
        print(f"  zkv-cli get {key:<8} {name}")
    zkv_cli(endpoint, "get", "U+D800", status=1)  # half of a surrogate pair has no name
    print("  zkv-cli get U+D800   not found, as it should be")


def demonstrate(directory: Path, table: Mapping[str, Any]) -> None:
    """Run the server twice, and print the figures."""
    with running(directory) as server:
        print(f"  server ready in {server.start_time:.2f} s at {server.endpoint}")
        with Client(server.endpoint, timeout=TIMEOUT, attempts=1) as client:
            load_rate = load(client, table)
            read_rate = compare(client, table, "read, with MGET")
        look_up(server.endpoint, table)
        server.end()
    size = sum(file.stat().st_size for file in (directory / "data").rglob("*") if file.is_file())
    print(f"  server ended, exit status 0, {size / 1e6:,.1f} MB on disk")
    with running(directory) as server:
        print(f"  server ready again in {server.start_time:.2f} s")
        with Client(server.endpoint, timeout=TIMEOUT, attempts=1) as client:
            again_rate = compare(client, table, "read after the restart")
        server.end()
    print(f"load     {load_rate:>10,.0f} entries/s")
    print(f"read     {read_rate:>10,.0f} entries/s, {again_rate:,.0f} after the restart")
    print(f"restart  {server.start_time:>10.2f} s with {len(table):,} entries")
    print("every entry was read back unchanged, twice")


def main() -> int:
    """Run the demonstration and return the exit status."""
    if not (BIN / "zkv").exists():
        print(f"demo.py: no zkv in {BIN}; is it installed?", file=sys.stderr)
        return 1
    for variable in ("ZKV_SERVER_PUBLIC_KEY", "ZKV_KEY_FILE"):
        os.environ.pop(variable, None)  # those of another server
    table = unicode_table()
    print(f"{len(table):,} named characters of Unicode {unicodedata.unidata_version}")
    try:
        with tempfile.TemporaryDirectory(prefix="zkv-demo-") as directory:
            demonstrate(Path(directory), table)
    except (Failure, ZkvError, OSError, subprocess.SubprocessError) as error:
        print(f"\ndemo.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo.py: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
