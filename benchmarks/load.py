"""Runs load.c against a server, and stores the keys of a row first if they are not there.

A measurement in which a request failed, or a value was absent, is an error: otherwise a server that
refuses everything would be the fastest.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.rows import Row
from benchmarks.servers import Server, compile_c
from zkv.bench.connections import BenchError

LARGE_WRITE: Final = "mput:10000"


class Load:
    """Compiles the load program and runs it.

    Args:
        directory: where the program is put.
        seconds: the length of a measurement.
    """

    def __init__(self, directory: Path, seconds: float) -> None:
        self._program = compile_c("load", directory)
        self._seconds = seconds
        self._stored: dict[int, tuple[int, int]] = {}

    def measure(self, server: Server, row: Row, seed: int) -> dict[str, float]:
        """The figures of one measurement, by name. Raises BenchError."""
        content = row.keys, row.value_bytes
        if self._stored.get(server.pid) != content:
            self.fill(server, row.keys, row.value_bytes)
            self._stored[server.pid] = content
        large = msgspec.structs.replace(row, connections=1, op=LARGE_WRITE)
        beside = [self._start(server, large, seed + 1 + number) for number in range(row.beside)]
        try:
            found = _figures(server, row, self._start(server, row, seed))
            if beside:
                each = [_figures(server, large, process) for process in beside]
                found["beside"] = sum(figures["rate"] for figures in each)
        finally:
            for process in beside:
                process.kill()
                process.wait()
        return found

    def fill(
        self, server: Server, keys: int, value_bytes: int, batch: int = 0, seed: int = 0
    ) -> None:
        """Write every key once; with ``batch``, that many in each request, from 50 clients.

        Raises BenchError.
        """
        op, connections = (f"fill:{batch}", 50) if batch else ("fill", 1)
        row = Row("storing the keys", "", connections, 8, op, keys, value_bytes)
        _figures(server, row, self._start(server, row, seed))

    def _start(self, server: Server, row: Row, seed: int) -> subprocess.Popen[str]:
        words = [
            self._program, server.contender.protocol, server.port, server.pid, row.connections,
            row.in_flight, self._seconds * row.times, row.op, row.keys, row.value_bytes, seed,
        ]  # fmt: skip
        pipe = subprocess.PIPE
        return subprocess.Popen(list(map(str, words)), stdout=pipe, stderr=pipe, text=True)


def _figures(server: Server, row: Row, process: subprocess.Popen[str]) -> dict[str, float]:
    with process:
        try:
            printed, complaint = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise BenchError(f"{server.contender.name}, {row.name}: {complaint.strip()}")
    found: dict[str, float] = json.loads(printed)
    failed, missing = found.pop("failed"), found.pop("missing")
    if (failed or missing) and not server.contender.is_floor:
        raise BenchError(
            f"{server.contender.name}, {row.name}: {failed:,.0f} failed, {missing:,.0f} missing"
        )
    return found
