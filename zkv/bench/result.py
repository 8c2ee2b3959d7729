"""The record of a run: settings, machine and figures. It is also the contents of the JSON file.

Latencies are in microseconds, sizes in bytes, rates in operations per second, other times in
seconds.
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
from msgspec.structs import replace

from zkv import __version__, compiled, figures
from zkv.bench.connections import BenchError
from zkv.bench.drive import INTERVAL
from zkv.bench.generator import LoadJob, LoadTarget, Measured
from zkv.bench.histogram import Histogram
from zkv.bench.workload import YCSB
from zkv.client import Client, ClientError, RetryPolicy
from zkv.client.curve import server_key_of
from zkv.reading import BadTextError, decode, read_file
from zkv.writing import Target

T = TypeVar("T", bound=Struct)

SHARES: Final = (0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 1.0)
NAMES: Final = ("p50", "p90", "p95", "p99", "p99.9", "p99.99", "max")
CURVE: Final = tuple(1 - 10 ** (-number / 10) for number in range(51))
"""Shares for the plot of percentiles: ten of them for each further nine."""
BUSY: Final = 0.9
"""If a loop computes for more than this share of its time, the generator may be the limit."""
HIDDEN: Final = "hidden"
"""The fact about a server that its other settings are not known, and why."""
ASK_LIMIT: Final = 5.0
"""The timeout in seconds for requests that are not measured."""
NEAR_CEILING: Final = 0.8
"""If the rate is above this share of the ceiling, the generator may be the limit."""


class Latency(Struct):
    """A distribution of latencies, in microseconds."""

    kind: str
    count: int
    mean: float
    percentiles: dict[str, float]


class Moment(Struct):
    """One interval of a run. ``at`` is its end, in seconds since the beginning."""

    at: float
    rate: float
    p50: float
    p99: float
    failed: int


class Machine(Struct):
    """The machine of the run."""

    cpu: str
    cores: int
    memory: int
    system: str
    load: float
    """The load average of the last minute, from all programs."""


class Generator(Struct):
    """The figures of the load generator."""

    cpu_per_op: float
    """CPU microseconds per operation, of all threads of all processes."""
    busy: float
    """The share of the run in which the busiest process's loop computed."""
    ceiling: float = 0.0
    """The rate of the same load against a server that answers a constant; 0 = not measured."""
    ceiling_is: str = ""
    behind: float = 0.0
    """Open loop: the longest time that the generator itself sent too late, in microseconds."""
    limits: list[str] = field(default_factory=list)
    """Reasons why the generator may have limited the result; empty = it has not."""


class Result(Struct, kw_only=True):
    """The record of a run."""

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
    """The latency at each share in `CURVE`."""
    timeline: list[Moment]
    generator: Generator
    server_cpu_per_op: float | None = None
    """CPU microseconds per operation; None if the server was not started by this program."""
    wrong: list[str] = field(default_factory=list)
    """With ``--verify``: descriptions of wrong answers."""
    wrong_count: int = 0
    verified: bool = False

    def overall(self) -> Latency:
        """The latencies of all kinds together."""
        return self.latencies[-1]


def make(name: str, job: LoadJob, measured: Measured, server: dict[str, Any]) -> Result:
    """Make the record of a run from its figures."""
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
        job=_without_key_file(job),
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


def _without_key_file(job: LoadJob) -> LoadJob:
    """The job, as others may read it."""
    return replace(job, target=replace(job.target, key_file=""))


def judge_generator(result: Result) -> None:
    """Note the reasons why the generator may have limited the result."""
    generator = result.generator
    if generator.busy > BUSY:
        generator.limits.append(
            f"a process of the load generator computed {generator.busy:.0%} of the time: "
            "use more --processes"
        )
    if generator.ceiling and result.rate > NEAR_CEILING * generator.ceiling:
        generator.limits.append(
            f"the rate is {result.rate / generator.ceiling:.0%} of this load's rate against a "
            f"server that answers a constant ({generator.ceiling:,.0f} ops/s)"
        )


def now() -> str:
    """The present date and time as text."""
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
        if begin >= elapsed:  # Replies that arrived after the end.
            break
        length = min(seconds, elapsed - begin)
        p50, p99 = histogram.percentiles((0.5, 0.99))
        moments.append(
            Moment(begin + length, len(histogram) / length, p50 / 1e3, p99 / 1e3, failed)
        )
    return moments


def machine() -> Machine:
    """Describe this machine."""
    cpu = platform.processor()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # Not Linux: use the name that Python reports.
    return Machine(
        cpu=cpu,
        cores=os.cpu_count() or 1,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.release().partition('-')[0]}",
        load=round(os.getloadavg()[0], 2),
    )


def versions() -> dict[str, str]:
    """The versions of the software on the client's side."""
    return {
        "zkv-bench": __version__,
        "Python": platform.python_version(),
        "pyzmq": zmq.__version__,
        "libzmq": zmq.zmq_version(),
        "msgspec": msgspec.__version__,
        "msgpack": ".".join(map(str, msgpack.version)),
    }


def ask(target: LoadTarget, in_flight: int) -> dict[str, Any]:
    """Version and settings of a zkv server, as far as the user may see.

    Args:
        target: the server.
        in_flight: the number of requests in flight on each connection.

    Raises:
        BenchError: there is no server, or it would drop replies of so many.
    """
    with connect(target) as client:
        try:
            info = client.call("INFO")
        except ClientError as error:
            raise BenchError(f"no zkv server at {target.endpoint}: {error}") from error
        is_encrypted = server_key_of(client) != ""
    most = info.get("limits", {}).get("max_in_flight", in_flight)  # Servers of 0.1 do not tell it.
    if in_flight > most:
        raise BenchError(
            f"--pipeline: this server takes {most} requests in flight on each connection; "
            f"its setting is limits.max_in_flight"
        )
    facts = {"version": info["version"], "endpoint": target.endpoint}
    if is_encrypted:
        facts["encryption"] = "CURVE"
    if hidden := figures.hidden(info):
        return facts | {HIDDEN: hidden}
    facts |= {
        "policy": info["durability"].get("fsync", "memory"),
        "workers": info["stats"].get("workers"),
        "keys": info["keys"],
    }
    return facts | ({"build": slow} if (slow := compiled.what_is_slow(info["stats"])) else {})


def connect(target: LoadTarget) -> Client:
    """A client for requests that are not measured. Raises BenchError."""
    retry = RetryPolicy(wait_for_start=False)
    try:
        return Client(target.endpoint, ASK_LIMIT, retry=retry, **target.keys())
    except ValueError as error:
        raise BenchError(str(error)) from error


def save(result: Struct, path: Path) -> None:
    """Write a record as JSON. Raises OSError."""
    with Target(path).open() as file:
        file.write(msgspec.json.format(msgspec.json.encode(result)) + b"\n")


def check_target(path: Path) -> None:
    """Check before the run that a file can be written. Raises BenchError."""
    try:
        Target(path).require_directory()
    except FileNotFoundError:
        raise BenchError(f"{path}: there is no such directory") from None
    except OSError as error:
        raise BenchError(f"{path}: cannot be written: {error.strerror}") from error


def read(path: Path, kind: type[T], option: str) -> T:
    """Read a record that was written by ``option``. Raises BenchError."""
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
    """A fault that no record of a run can have; empty = none."""
    if not result.latencies:
        return "`latencies` is empty"
    if any(each.percentiles.keys() != set(NAMES) for each in result.latencies):
        return f"`percentiles` must be {', '.join(NAMES)}"
    if len(result.curve) != len(CURVE):
        return f"`curve` has {len(result.curve)} values instead of {len(CURVE)}"
    if result.job.workload.ycsb not in {"", *YCSB}:
        return f"`ycsb` must be one of {', '.join(YCSB)}"
    return ""


def unique_name() -> str:
    """A unique name for a run."""
    return f"{time.time_ns():x}"
