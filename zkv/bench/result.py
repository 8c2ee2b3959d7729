"""The record of a run: what was asked, on which machine, and what came out. It is the JSON file.

Latencies are in microseconds, sizes in bytes, rates in operations per second, all else in seconds.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import msgpack
import msgspec
import zmq
from msgspec import Struct, field

from zkv import __version__, compiled
from zkv.bench.connections import BenchError
from zkv.bench.drive import INTERVAL
from zkv.bench.generator import LoadJob, Measured
from zkv.bench.histogram import Histogram
from zkv.bench.workload import YCSB
from zkv.client import Client, ClientError, RetryPolicy
from zkv.reading import BadTextError, decode, read_file
from zkv.writing import Target

T = TypeVar("T", bound=Struct)

SHARES: Final = (0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 1.0)
NAMES: Final = ("p50", "p90", "p95", "p99", "p99.9", "p99.99", "max")
CURVE: Final = tuple(1 - 10 ** (-number / 10) for number in range(51))
"""Shares for the plot of percentiles: each ten of them are a nine more."""
BUSY: Final = 0.9
"""The share of its time in which a process's loop computes, from which on it may be the limit."""
ASK_LIMIT: Final = 5.0
"""Seconds that a server may take to answer what is not measured."""
NEAR_CEILING: Final = 0.8
"""The share of the echo ceiling from which on the generator may be the limit."""


class Latency(Struct):
    """A distribution of latencies, in microseconds."""

    kind: str
    count: int
    mean: float
    percentiles: dict[str, float]


class Moment(Struct):
    """One interval of a run: ``at`` is where it ends, in seconds from the begin."""

    at: float
    rate: float
    p50: float
    p99: float
    failed: int


class Machine(Struct):
    """Where it ran."""

    cpu: str
    cores: int
    memory: int
    system: str
    load: float
    """The load average of the last minute before the run: what else was going on."""


class Generator(Struct):
    """What making the load took."""

    cpu_per_op: float
    """Microseconds, all threads of all processes."""
    busy: float
    """The share of the run in which the busiest process's loop computed."""
    ceiling: float = 0.0
    """What the same load reaches against a server that answers a constant; 0 = not measured."""
    ceiling_is: str = ""
    behind: float = 0.0
    """Open loop: how much later than due the generator itself sent at worst, in microseconds."""
    limits: list[str] = field(default_factory=list)
    """Why the generator, and not the server, may be what was measured; empty = it is not."""


class Result(Struct, kw_only=True):
    """A run."""

    name: str
    when: str
    job: LoadJob
    machine: Machine
    versions: dict[str, str]
    server: dict[str, Any]
    elapsed: float
    operations: int
    rate: float
    failed: int
    lost: int
    resent: int
    unsent: int
    errors: dict[str, int]
    gap: float
    gap_at: float
    latencies: list[Latency]
    curve: list[float]
    """Latency at each of `CURVE`."""
    timeline: list[Moment]
    generator: Generator
    server_cpu_per_op: float | None = None
    """Microseconds; None where the server is not ours to look at."""
    wrong: list[str] = field(default_factory=list)
    """With verify: wrong answers, in words."""
    wrong_count: int = 0
    verified: bool = False

    def overall(self) -> Latency:
        """The latencies of all kinds together."""
        return self.latencies[-1]


def make(name: str, job: LoadJob, measured: Measured, server: dict[str, Any]) -> Result:
    """Put together what a run has measured."""
    totals = [report.totals for report in measured.reports]
    merged = Histogram()
    for histogram in measured.latencies.values():
        merged.merge(histogram.counts)
    latencies = [_latency(kind, h) for kind, h in measured.latencies.items() if len(h)]
    operations = len(merged)
    elapsed = max(each.elapsed for each in totals) / 1e9
    longest = max(totals, key=lambda each: each.gap)
    errors = sum((report.errors for report in measured.reports), Counter[str]())
    return Result(
        name=name,
        when=now(),
        job=job,
        machine=machine(),
        versions=versions(),
        server=server,
        elapsed=elapsed,
        operations=operations,
        rate=operations / elapsed,
        failed=measured.failed,
        lost=sum(each.lost for each in totals),
        resent=sum(each.resent for each in totals),
        unsent=sum(each.unsent for each in totals),
        errors=dict(errors),
        gap=longest.gap / 1e9,
        gap_at=longest.gap_at / 1e9,
        latencies=[*latencies, _latency("all", merged)],
        curve=[value / 1e3 for value in merged.percentiles(CURVE)],
        timeline=_timeline(measured, elapsed),
        generator=Generator(
            cpu_per_op=sum(report.cpu for report in measured.reports) / max(1, operations) * 1e6,
            busy=max(report.loop_cpu / report.wall for report in measured.reports),
            behind=max(each.behind for each in totals) / 1e3,
        ),
        wrong=[complaint for report in measured.reports for complaint in report.wrong],
        wrong_count=sum(report.wrong_count for report in measured.reports),
        verified=bool(job.verify),
    )


def judge_generator(result: Result) -> None:
    """Say so where the generator may be what was measured."""
    generator = result.generator
    if generator.busy > BUSY:
        generator.limits.append(
            f"a process of the load generator computed {generator.busy:.0%} of the time: "
            "use more --processes"
        )
    if generator.ceiling and result.rate > NEAR_CEILING * generator.ceiling:
        generator.limits.append(
            f"the rate is {result.rate / generator.ceiling:.0%} of what this load reaches against "
            f"a server that answers a constant ({generator.ceiling:,.0f} ops/s)"
        )


def now() -> str:
    """The date and time, for people."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _latency(kind: str, histogram: Histogram) -> Latency:
    values = histogram.percentiles(SHARES)
    return Latency(
        kind=kind,
        count=len(histogram),
        mean=histogram.mean() / 1e3,
        percentiles={name: value / 1e3 for name, value in zip(NAMES, values, strict=True)},
    )


def _timeline(measured: Measured, elapsed: float) -> list[Moment]:
    moments = []
    seconds = INTERVAL / 1e9
    for number in range(max(measured.intervals, default=-1) + 1):
        histogram, failed = measured.intervals.get(number, (Histogram(), 0))
        begin = number * seconds
        if begin >= elapsed:  # Replies that were waited for behind the end.
            break
        length = min(seconds, elapsed - begin)
        p50, p99 = histogram.percentiles((0.5, 0.99))
        moments.append(
            Moment(begin + length, len(histogram) / length, p50 / 1e3, p99 / 1e3, failed)
        )
    return moments


def machine() -> Machine:
    """This one."""
    cpu = platform.processor()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # Not Linux: what Python knows must do.
    return Machine(
        cpu=cpu,
        cores=os.cpu_count() or 1,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.release().partition('-')[0]}",
        load=round(os.getloadavg()[0], 2),
    )


def versions() -> dict[str, str]:
    """Of what takes part on the client's side."""
    return {
        "zkv-bench": __version__,
        "Python": platform.python_version(),
        "pyzmq": zmq.__version__,
        "libzmq": zmq.zmq_version(),
        "msgspec": msgspec.__version__,
        "msgpack": ".".join(map(str, msgpack.version)),
    }


def ask(endpoint: str) -> dict[str, Any]:
    """What a zkv server says of itself. Raises BenchError."""
    with connect(endpoint) as client:
        try:
            facts = client.call("INFO")
        except ClientError as error:
            raise BenchError(f"no zkv server at {endpoint}: {error}") from error
    return {
        "version": facts["version"],
        "endpoint": endpoint,
        "policy": facts["durability"].get("fsync", "memory"),
        "workers": facts["stats"].get("workers"),
        "keys": facts["keys"],
    } | ({"build": slow} if (slow := compiled.what_is_slow(facts["stats"])) else {})


def connect(endpoint: str) -> Client:
    """A client for what is not measured. Raises BenchError."""
    try:
        return Client(endpoint, ASK_LIMIT, retry=RetryPolicy(wait_for_start=False))
    except ValueError as error:
        raise BenchError(str(error)) from error


def save(result: Struct, path: Path) -> None:
    """Write a record as JSON. Raises OSError."""
    with Target(path).open() as file:
        file.write(msgspec.json.format(msgspec.json.encode(result)) + b"\n")


def check_target(path: Path) -> None:
    """See that a file can be written: now, and not when everything is measured."""
    try:
        Target(path).require_directory()
    except FileNotFoundError:
        raise BenchError(f"{path}: there is no such directory") from None
    except OSError as error:
        raise BenchError(f"{path}: it cannot be written: {error.strerror}") from error


def read(path: Path, kind: type[T], option: str) -> T:
    """A record that an option has written. Raises BenchError."""
    try:
        return msgspec.json.decode(decode(read_file(path)), type=kind)
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from error
    except RecursionError:
        raise BenchError(f"{path}: not written by {option}: it is nested too deeply") from None
    except (msgspec.DecodeError, BadTextError) as error:
        raise BenchError(f"{path}: not written by {option}: {error}") from error


def load(path: Path) -> Result:
    """Read the record of a run. Raises BenchError."""
    found = read(path, Result, "zkv-bench --json")
    if fault := _fault(found):
        raise BenchError(f"{path}: not written by zkv-bench --json: {fault}")
    return found


def _fault(result: Result) -> str:
    """What no run could have recorded; empty = nothing."""
    if not result.latencies:
        return "`latencies` is empty"
    if any(each.percentiles.keys() != set(NAMES) for each in result.latencies):
        return f"`percentiles` are {', '.join(NAMES)}"
    if len(result.curve) != len(CURVE):
        return f"`curve` has {len(result.curve)} values, and not {len(CURVE)}"
    if result.job.workload.ycsb not in {"", *YCSB}:
        return f"`ycsb` is none of {', '.join(YCSB)}"
    return ""


def unique_name() -> str:
    """A name for a run that no other has."""
    return f"{time.time_ns():x}"
