"""Compares zkv with other servers: measures all of them in turn with the same load.

    python -m benchmarks.compare --json benchmarks/peers.json

All servers are started first. Then, for each shape of load, every round measures each server once,
in an order that rotates from round to round. So other activity of the machine affects all servers
alike. Ratios are computed within a round. Idle servers cost almost nothing.

One C program makes the load for all servers (`load.c`): the same preloaded keys and the same
values, without the client library of any server. The CPU cost of a request in the server comes from
the scheduler's counters, which vary less than rates on a shared machine.

The **floor** is the cost of libzmq alone (`floor.c`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct, field

from benchmarks.servers import CONTENDERS, PROMISES, Contender, Server, compile_c
from zkv.bench import result, show
from zkv.bench.connections import BenchError
from zkv.bench.result import Machine

FLOOR: Final = "floor"
OPEN_FILES: Final = 20_000


class Shape(Struct, frozen=True):
    """A shape of load. ``op`` is an op of `load.c`; ``writes`` is True to measure disk writes."""

    title: str
    connections: int
    in_flight: int
    op: str
    keys: int = 10_000
    value_bytes: int = 16
    writes: bool = False

    @property
    def batch(self) -> bool:
        """True if its requests have many keys."""
        return ":" in self.op


SHAPES: Final = (
    Shape("1 lock-step client, half GET half PUT", 1, 1, "mix"),
    Shape("50 lock-step clients, half GET half PUT", 50, 1, "mix"),
    Shape("50 clients x 16 in flight, half GET half PUT", 50, 16, "mix"),
    Shape("50 clients x 16 in flight, GET only", 50, 16, "get"),
    Shape("1,000 lock-step clients, half GET half PUT", 1_000, 1, "mix"),
    Shape("1 lock-step client, PUT only", 1, 1, "put", writes=True),
    Shape("50 lock-step clients, PUT only", 50, 1, "put", writes=True),
    Shape("50 clients x 16 in flight, PUT only", 50, 16, "put", writes=True),
    Shape("50 lock-step clients, INCR", 50, 1, "incr"),
    Shape("8 clients, MGET of 10 keys", 8, 1, "mget:10"),
    Shape("8 clients, MGET of 100 keys", 8, 1, "mget:100"),
    Shape("8 clients, MGET of 1,000 keys", 8, 1, "mget:1000"),
    Shape("8 clients, MPUT of 10 keys", 8, 1, "mput:10"),
    Shape("8 clients, MPUT of 100 keys", 8, 1, "mput:100", writes=True),
    Shape("8 clients, MPUT of 1,000 keys", 8, 1, "mput:1000"),
    Shape("50 lock-step clients, values of 1 KiB", 50, 1, "mix", 1_000, 1_024),
    Shape("50 lock-step clients, values of 16 KiB", 50, 1, "mix", 1_000, 16_384),
)


class Cell(Struct):
    """The figures of a contender under a shape of load, one per round. Times are in us."""

    shape: str
    contender: str
    rate: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    server_cpu: list[float] = field(default_factory=list)
    client_cpu: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    failed: int = 0
    missing: int = 0


class Present(Struct):
    """A contender that took part. ``name`` is its name in ``cells``."""

    name: str
    label: str
    version: str
    promise: str


class Record(Struct):
    """The record of a comparison."""

    when: str
    machine: Machine
    versions: dict[str, str]
    rounds: int
    seconds: float
    present: list[Present]
    absent: list[str]
    shapes: list[str]
    cells: list[Cell]

    def cell(self, shape: str, contender: str) -> Cell | None:
        """The figures of a contender under a shape of load; None if it was not measured."""
        for cell in self.cells:
            if (cell.shape, cell.contender) == (shape, contender):
                return cell
        return None


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description="Measure zkv with each fsync policy, the floor, and those of Redis, Valkey, "
        "memcached, NATS KV and etcd that are installed, in turn.",
    )
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="the number of rounds; default: 5"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, metavar="S",
        help="the length of each measurement; default: 1",
    )  # fmt: skip
    parser.add_argument(
        "--only", metavar="NAME,...",
        help="measure only these: " + ", ".join(each.name for each in CONTENDERS),
    )  # fmt: skip
    parser.add_argument(
        "--shape", metavar="WORDS", default="", help="only shapes with these words in their title"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record to FILE")
    options = parser.parse_args(words)
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be above 0")
    names = options.only.split(",") if options.only else [each.name for each in CONTENDERS]
    chosen = [each for each in CONTENDERS if each.name in names]
    unknown = set(names) - {each.name for each in chosen}
    if unknown:
        parser.error(f"--only: unknown: {', '.join(sorted(unknown))}")
    shapes = [shape for shape in SHAPES if options.shape in shape.title]
    if not shapes:
        parser.error(f"--shape: no title contains {options.shape!r}")
    try:
        record = compete(chosen, shapes, options.rounds, options.seconds)
        if options.json:
            result.save(record, options.json)
    except (BenchError, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    print(render(record))
    return 0


def load(path: Path) -> Record:
    """Read a record. Raises BenchError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise BenchError(f"{path} is not a record of a comparison: {error}") from error


# --- Measuring -------------------------------------------------------------------------------


def compete(chosen: list[Contender], shapes: list[Shape], rounds: int, seconds: float) -> Record:
    """Start the contenders that are installed, and measure them in turn."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, most), most))
    record = Record(
        when="", machine=result.machine(), versions=result.versions(), rounds=rounds,
        seconds=seconds, present=[], absent=[], shapes=[shape.title for shape in shapes], cells=[],
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="zkv-bench-"))
        driver = Driver(compile_c("load", Path(directory)), seconds)
        playing: list[tuple[Contender, Server]] = []
        for each in chosen:
            server = stack.enter_context(each.start())
            if server is None:
                record.absent.append(each.name)
                continue
            present = Present(each.name, server.label, server.version, each.promise)
            record.present.append(present)
            playing.append((each, server))
        for shape in shapes:
            taking_part = [pair for pair in playing if _takes_part(pair[0], shape)]
            for number in range(rounds):
                first = number % max(1, len(taking_part))
                for contender, server in taking_part[first:] + taking_part[:first]:
                    _say(f"{shape.title}: round {number + 1} of {rounds}: {contender.name}")
                    _note(record, shape, contender, driver.measure(server, shape, number))
    _say("")
    record.when = result.now()
    return record


def _takes_part(contender: Contender, shape: Shape) -> bool:
    if contender.promise != PROMISES[0] and not shape.writes:
        return False  # The fsync policy matters only for writes.
    if shape.batch and not contender.batches:
        return False
    return contender.counts or shape.op != "incr"


def _say(what: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{what}")
        sys.stderr.flush()


class Driver:
    """Runs the load program, and stores its keys first if needed.

    Args:
        program: the path of the compiled load program.
        seconds: the length of each measurement.
    """

    def __init__(self, program: str, seconds: float) -> None:
        self._program = program
        self._seconds = seconds
        self._filled: dict[int, tuple[int, int]] = {}

    def measure(self, server: Server, shape: Shape, seed: int) -> dict[str, float]:
        """Make one measurement. Raises BenchError."""
        content = shape.keys, shape.value_bytes
        if self._filled.get(server.pid) != content:
            self._run(server, msgspec.structs.replace(shape, connections=1, in_flight=8, op="fill"))
            self._filled[server.pid] = content
        return self._run(server, shape, seed)

    def _run(self, server: Server, shape: Shape, seed: int = 0) -> dict[str, float]:
        words = [
            self._program, server.protocol, server.port, server.pid, shape.connections,
            shape.in_flight, self._seconds, shape.op, shape.keys, shape.value_bytes, seed,
        ]  # fmt: skip
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"{server.label}, {shape.title}: {done.stderr.strip()}")
        measured: dict[str, float] = json.loads(done.stdout)
        return measured


def _note(record: Record, shape: Shape, contender: Contender, found: dict[str, float]) -> None:
    cell = record.cell(shape.title, contender.name)
    if cell is None:
        cell = Cell(shape.title, contender.name)
        record.cells.append(cell)
    for name in ("rate", "p50", "p99", "server_cpu", "client_cpu", "busy"):
        getattr(cell, name).append(found[name])
    if contender.name != FLOOR:
        cell.failed += int(found["failed"])
        cell.missing += int(found["missing"])


# --- Reports ---------------------------------------------------------------------------------

HEAD: Final = (
    "", "requests/s", "spread", "p50", "p99", "server CPU", "client CPU", "zkv to it: rate", "CPU",
)  # fmt: skip


def rows(record: Record, shape: str) -> list[tuple[str, list[list[str]]]]:
    """The rows for each promise; figures are medians of the rounds.

    The last two columns are ratios of zkv to the other server, computed round by round: median,
    minimum and maximum.
    """
    found = []
    for promise in PROMISES:
        group = [each for each in record.present if each.promise == promise]
        ours = next((each for each in group if each.name.startswith("zkv")), None)
        mine = record.cell(shape, ours.name) if ours else None
        lines = [
            [each.label, *_figures(cell), _ratio(mine, cell, "rate"), _ratio(mine, cell, "cpu")]
            for each in group
            if (cell := record.cell(shape, each.name)) is not None
        ]
        if lines:
            found.append((promise, lines))
    return found


def _figures(cell: Cell) -> list[str]:
    return [
        show.rate(statistics.median(cell.rate)),
        f"{show.rate(min(cell.rate))} - {show.rate(max(cell.rate))}",
        show.duration(statistics.median(cell.p50)),
        show.duration(statistics.median(cell.p99)),
        f"{statistics.median(cell.server_cpu):.2f} us",
        f"{statistics.median(cell.client_cpu):.2f} us",
    ]


def _ratio(mine: Cell | None, other: Cell, what: str) -> str:
    if mine is None or other.contender == mine.contender:
        return ""
    pairs = (
        zip(mine.rate, other.rate, strict=True)
        if what == "rate"
        else zip(mine.server_cpu, other.server_cpu, strict=True)
    )
    ratios = [ours / its for ours, its in pairs if its]
    if not ratios:
        return ""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"


def limited(record: Record, shape: str) -> str:
    """A line that names the servers whose rate the load may have limited; or empty."""
    names = [
        each.label
        for each in record.present
        if (cell := record.cell(shape, each.name)) and statistics.median(cell.busy) > result.BUSY
    ]
    return f"The load generator may have been the limit for: {', '.join(names)}." if names else ""


def render(record: Record) -> str:
    """The whole record as text."""
    machine = record.machine
    lines = [
        f"{machine.cpu}, {machine.cores} cores, load {machine.load:g} before; {machine.system}",
        f"{record.rounds} rounds of {record.seconds:g} s; medians",
    ]
    lines += [f"not installed: {name}" for name in record.absent]
    for shape in record.shapes:
        lines += ["", shape]
        for promise, group in rows(record, shape):
            lines += ["", show.table((promise, *HEAD[1:]), group)]
        lines += filter(None, [limited(record, shape)])
    wrong = [
        f"  {cell.contender}, {cell.shape}: {cell.failed:,} failed, {cell.missing:,} missing"
        for cell in record.cells
        if cell.failed or cell.missing
    ]
    return "\n".join([*lines, *wrong])


if __name__ == "__main__":
    sys.exit(main())
