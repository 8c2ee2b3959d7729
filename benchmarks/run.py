"""Makes the measurements, and prints and saves the record.

    python -m benchmarks.run --json benchmarks/results.json
    python -m benchmarks.run --short

A pass starts all servers, measures row after row, and stops them; idle servers cost almost
nothing. A server that cannot be started, or fails in a row, is left out there with a note: the
rest of the comparison continues. The record is saved after each pass.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import zmq
from msgspec import Struct

import zkv
from benchmarks import clients, report
from benchmarks.activity import Meter
from benchmarks.load import Load
from benchmarks.record import Present, Record
from benchmarks.rows import ROWS, Row
from benchmarks.servers import CONTENDERS, AbsentError, Contender, Server, running
from benchmarks.starts import Starts
from zkv.bench import result
from zkv.bench.connections import BenchError

OPEN_FILES: Final = 20_000
SECONDS: Final = 0.4
ROUNDS: Final = 3
PASSES: Final = 2
STARTS: Final = 2
"""The rounds of starts in a pass."""


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description="Measure zkv beside the servers that are installed.",
    )
    parser.add_argument(
        "--short", action="store_true", help="one pass of the main rows, about 2 minutes"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="of each pass")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, metavar="S", help="the length of a measurement"
    )
    parser.add_argument(
        "--rows", metavar="WORDS", help="only rows of load whose names contain these words"
    )
    parser.add_argument(
        "--only", metavar="NAME,...",
        help="only these servers: " + ", ".join(each.name for each in CONTENDERS),
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record to FILE")
    options = parser.parse_args(words)
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be above 0")
    names = options.only.split(",") if options.only else [each.name for each in CONTENDERS]
    chosen = [each for each in CONTENDERS if each.name in names]
    if unknown := set(names) - {each.name for each in chosen}:
        parser.error(f"--only: unknown: {', '.join(sorted(unknown))}")
    rows = [row for row in ROWS if row.main or not options.short]
    rows = [row for row in rows if (options.rows or "") in row.name]
    if not rows:
        parser.error(f"--rows: no name contains {options.rows!r}")
    plan = Plan(
        chosen, rows, options.rounds, options.seconds,
        passes=1 if options.short else PASSES,
        others=not (options.short or options.rows or options.only),
    )  # fmt: skip
    try:
        record = compete(plan, options.json)
    except (BenchError, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    print(report.text(record))
    return 0


class Plan(Struct, frozen=True):
    """The work of a comparison. ``others`` adds starts, memory and Python clients."""

    contenders: list[Contender]
    rows: list[Row]
    rounds: int
    seconds: float
    passes: int = 1
    others: bool = False


def compete(plan: Plan, path: Path | None) -> Record:
    """Measure everything in the plan; the record is also written to ``path``.

    Raises BenchError if the load program cannot be compiled, and OSError.
    """
    if path is not None:
        result.check_target(path)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, most), most))
    record = Record(
        when=result.now(), machine=result.machine(), versions=result.versions(),
        seconds=plan.seconds, rounds=plan.rounds,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="zkv-bench-") as directory:
        load = Load(Path(directory), plan.seconds)
        for number in range(plan.passes):
            meter = Meter()
            _say(f"pass {number + 1} of {plan.passes}")
            _pass(record, plan, load, number)
            record.passes.append(meter.read())
            if path is not None:
                result.save(record, path)
    return record


def _pass(record: Record, plan: Plan, load: Load, number: int) -> None:
    with contextlib.ExitStack() as stack:
        needed = [each for each in plan.contenders if any(map(each.takes_part, plan.rows))]
        servers = _start_all(record, needed, stack)
        for row in plan.rows:
            playing = [server for server in servers if server.contender.takes_part(row)]
            _measure(record, load, row, playing, plan.rounds, number)
    if plan.others:
        with _noting_failures(record):
            _say("starts")
            Starts(record, load).measure(STARTS)
        with _noting_failures(record):
            _say("Python clients")
            clients.measure(record, load, plan.rounds, plan.seconds)


@contextlib.contextmanager
def _noting_failures(record: Record) -> Iterator[None]:
    """Note a failure, and continue with the rest of the comparison."""
    try:
        yield
    except (BenchError, OSError, zkv.ClientError, zmq.ZMQError) as error:
        record.notes.append(str(error))


def _start_all(
    record: Record, contenders: list[Contender], stack: contextlib.ExitStack
) -> list[Server]:
    servers = []
    for contender in contenders:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="zkv-bench-"))
        try:
            servers.append(stack.enter_context(running(contender, directory)))
        except AbsentError:
            record.miss(contender.name)
            continue
        except BenchError as error:
            record.notes.append(str(error))
            continue
        record.meet(Present(contender.name, contender.version(), contender.durability))
    return servers


def _measure(
    record: Record, load: Load, row: Row, playing: list[Server], rounds: int, number: int
) -> None:
    """Measure the servers of a row in turn."""
    for turn in range(number * rounds, (number + 1) * rounds):
        first = turn % max(1, len(playing))
        for server in playing[first:] + playing[:first]:
            name = server.contender.name
            if (row.name, name) in record.dropped:
                continue
            _say(f"{row.name}: round {turn % rounds + 1}: {name}")
            try:
                record.add(row.section, row.name, name, load.measure(server, row, turn))
            except BenchError as error:
                record.drop(row.name, name, str(error))


def _say(what: str) -> None:
    """Show progress on a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{what}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
