"""Shows records as text: progress during a run, a table at its end, CSV, and comparisons."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, TextIO

from zkv.bench.drive import INTERVAL
from zkv.bench.generator import LoadJob, Measured
from zkv.bench.histogram import Histogram
from zkv.bench.result import HIDDEN, NAMES, Result
from zkv.bench.workload import YCSB
from zkv.writing import Target

WINDOW: Final = 4
"""The number of intervals that the progress line covers."""
SHOWN_GAP: Final = 0.5
"""A time without any reply is reported from this length on, in seconds."""
ROW: Final = [
    "name", "when", "workload", "policy", "clients", "pipeline", "batch", "offered_rate", "kind",
    "count", "rate", "mean_us", *(f"{name}_us" for name in NAMES), "failed", "lost",
]  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[str]], indent: str = "  ") -> str:
    """A table as text; the first column is aligned to the left, all others to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        (
            indent
            + "  ".join(
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
        ).rstrip()
        for line in lines
    )


def duration(microseconds: float) -> str:
    """A duration as text: three digits with a unit."""
    if microseconds < 999.5:
        return f"{microseconds:.3g} us"
    if microseconds < 999_500:
        return f"{microseconds / 1e3:.3g} ms"
    return f"{microseconds / 1e6:.3g} s"


def rate(per_second: float) -> str:
    """A rate as text, without its unit."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def workload(job: LoadJob) -> str:
    """The workload of a job as text."""
    work = job.workload
    if job.verify:
        return "GET, PUT, DELETE, INCR, MGET, MPUT; every answer is checked"
    if work.ycsb:
        kinds = ", ".join(f"{share:.0%} {kind}" for kind, share in work.shares())
        record = f"records of {work.fields} x {work.field_bytes} bytes"
        return f"YCSB {work.ycsb.upper()}: {kinds}; {work.keys:,} {record}, {work.draw_from()}"
    kinds = ", ".join(f"{share:.0%} {kind}" for kind, share in work.shares())
    batch = f" of {work.batch}" if work.batch > 1 else ""
    return f"{kinds}{batch}; {work.keys:,} keys, {work.distribution}, {work.value_bytes} bytes"


def shape(job: LoadJob) -> str:
    """The connections and rate of a job as text."""
    loop = f"open loop at {rate(job.rate)} ops/s" if job.rate else "closed loop"
    processes = f" from {job.processes} processes" if job.processes > 1 else ""
    return f"{loop}, {job.clients} connections{processes}, {job.pipeline} in flight on each"


class RunProgress:
    """A progress line on a terminal, which is rewritten; nothing if there is no terminal."""

    def __init__(self, job: LoadJob, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._job = job
        self._shown = 0.0
        self._on = self._stream.isatty()

    def __call__(self, measured: Measured, elapsed: int) -> None:
        """Show the figures so far."""
        if not self._on or time.monotonic() - self._shown < INTERVAL / 1e9 * 0.8:
            return
        self._shown = time.monotonic()
        newest = max(measured.intervals, default=0)
        window = Histogram()
        failed = sum(count for _, count in measured.intervals.values())
        first = max(0, newest - WINDOW + 1)
        for number in range(first, newest + 1):
            if number in measured.intervals:
                window.merge(measured.intervals[number][0].counts)
        seconds = (newest - first + 1) * INTERVAL / 1e9
        p50, p99 = window.percentiles((0.5, 0.99))
        done = elapsed / 1e9
        if self._job.operations:
            count = sum(len(histogram) for histogram in measured.latencies.values())
            left = f"{count:,} of {self._job.operations:,}"
        else:
            left = f"{max(0.0, self._job.duration - done):.0f} s left"
        self._write(
            f"{done:5.1f} s  {rate(len(window) / seconds):>9} ops/s  p50 {duration(p50 / 1e3):>7}  "
            f"p99 {duration(p99 / 1e3):>7}  errors {failed}  {left}"
        )

    def close(self) -> None:
        """Erase the line."""
        if self._on:
            self._write("")

    def _write(self, text: str) -> None:
        self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()


def render(result: Result) -> str:
    """The final table, with settings, costs, warnings and versions."""
    job, generator = result.job, result.generator
    known = {key: value for key, value in result.server.items() if value is not None}
    hidden = known.pop(HIDDEN, "")
    facts = [f"{key} {value}" for key, value in known.items()]
    who = "generator"
    if job.target.endpoint.startswith("inproc:"):
        who = "generator and server, one process,"
    cost = f"{who} {generator.cpu_per_op:.1f} us (its loop busy {generator.busy:.0%})"
    if result.server_cpu_per_op is not None:
        cost += f", server {result.server_cpu_per_op:.1f} us"
    lines = [
        f"{result.name}: {rate(result.rate)} ops/s "
        f"({result.operations:,} in {result.elapsed:.2f} s)",
        f"  {workload(job)}",
        f"  {shape(job)}",
        f"  server: {', '.join(facts)}",
        "",
        latencies(result),
        "",
        f"  CPU per op: {cost}",
    ]
    if generator.ceiling:
        lines.append(
            f"  ceiling of this load: {rate(generator.ceiling)} ops/s, against a server "
            f"{generator.ceiling_is} that answers a constant"
        )
    if job.rate and generator.behind > 1000:
        lines.append(f"  the generator itself was late by up to {duration(generator.behind)}")
    lines += [f"  NOTE: {limit}" for limit in [hidden, *generator.limits] if limit]
    lines += troubles(result)
    machine = result.machine
    lines += [
        f"  {machine.cpu}, {machine.cores} cores, load {machine.load:g} before; {machine.system}",
        "  " + ", ".join(f"{name} {version}" for name, version in result.versions.items()),
    ]
    return "\n".join(lines)


def latencies(result: Result) -> str:
    """The table of counts and percentiles by kind of operation."""
    shown = result.latencies if len(result.latencies) > 2 else result.latencies[-1:]
    rows = [
        [
            each.kind, f"{each.count:,}", duration(each.mean),
            *(duration(each.percentiles[name]) for name in NAMES),
        ]
        for each in shown
    ]  # fmt: skip
    return table(["latency", "count", "mean", *NAMES], rows)


def troubles(result: Result) -> list[str]:
    """Lines about failures, timeouts, gaps and operations never sent; and about ``--verify``."""
    lines = []
    if result.failed:
        codes = ", ".join(f"{count:,} {code}" for code, count in result.errors.items())
        lines.append(f"  failed: {result.failed:,} ({codes or 'see below'})")
    if result.lost or result.resent:
        lines.append(
            f"  no reply in time: {result.lost:,} operations given up, {result.resent:,} requests "
            "sent again"
        )
    if result.gap >= SHOWN_GAP:
        lines.append(
            f"  longest gap without any reply: {result.gap:.2f} s, from {result.gap_at:.2f} s on"
        )
    if result.unsent:
        lines.append(
            f"  {result.unsent:,} operations were due but never sent: all connections were waiting"
        )
    if result.verified:
        if result.wrong_count:
            lines.append(f"  WRONG ANSWERS: {result.wrong_count:,}")
            lines += [f"    {complaint}" for complaint in result.wrong]
        else:
            lines.append("  all answers were right")
    return lines


def write_csv(result: Result, path: Path) -> None:
    """Append a line for each kind of operation, and one for all; first a header, if needed."""
    job = result.job
    offered = f"{job.rate:g}" if job.rate else ""
    target = Target(path)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    if target.is_empty:
        writer.writerow(ROW)
    for each in result.latencies:
        writer.writerow([
            result.name, result.when, workload(job), result.server.get("policy", ""),
            job.clients, job.pipeline, job.workload.batch, offered, each.kind, each.count,
            f"{each.count / result.elapsed:.1f}", f"{each.mean:.1f}",
            *(f"{each.percentiles[name]:.1f}" for name in NAMES), result.failed, result.lost,
        ])  # fmt: skip
    with target.append() as file:
        file.write(text.getvalue().encode())


def compare(a: Result, b: Result) -> str:
    """The comparison of two runs as text, with the differences in their settings."""

    def row(name: str, first: float, second: float, text: str, other: str) -> list[str]:
        return [name, text, other, f"{second / first:.2f}" if first else "-"]

    old, new = a.overall(), b.overall()
    rows = [row("ops/s", a.rate, b.rate, rate(a.rate), rate(b.rate))]
    for name in NAMES:
        first, second = old.percentiles[name], new.percentiles[name]
        rows.append(row(name, first, second, duration(first), duration(second)))
    rows.append(
        row(
            "generator CPU/op", a.generator.cpu_per_op, b.generator.cpu_per_op,
            duration(a.generator.cpu_per_op), duration(b.generator.cpu_per_op),
        )
    )  # fmt: skip
    if a.server_cpu_per_op and b.server_cpu_per_op:
        first, second = a.server_cpu_per_op, b.server_cpu_per_op
        rows.append(row("server CPU/op", first, second, duration(first), duration(second)))
    rows.append(["failed", f"{a.failed:,}", f"{b.failed:,}", ""])
    rows.append(["lost", f"{a.lost:,}", f"{b.lost:,}", ""])
    lines = [table(["", f"A: {a.name}", f"B: {b.name}", "B / A"], rows)]
    differences = _differences(a, b)
    if differences:
        lines += ["", "  The runs also differ in:"]
        lines += [f"    {name}: {first} / {second}" for name, first, second in differences]
    return "\n".join(lines)


def _differences(a: Result, b: Result) -> list[tuple[str, str, str]]:
    def facts(result: Result) -> dict[str, str]:
        return {
            "workload": workload(result.job),
            "load": shape(result.job),
            "machine": f"{result.machine.cpu}, {result.machine.cores} cores",
            "system": result.machine.system,
            **{f"server {key}": str(value) for key, value in result.server.items()},
            **result.versions,
        }

    first, second = facts(a), facts(b)
    names = [*first, *(name for name in second if name not in first)]
    ignored = {"server endpoint", "server keys"}
    return [
        (name, first.get(name, "-"), second.get(name, "-"))
        for name in names
        if name not in ignored and first.get(name) != second.get(name)
    ]


def ycsb_list() -> str:
    """The core workloads as text, one line each."""
    rows = [
        [name, each.is_about, ", ".join(f"{share:.0%} {kind}" for kind, share in each.shares)]
        for name, each in YCSB.items()
    ]
    return "\n".join(f"  {name}  {about:<18} {kinds}" for name, about, kinds in rows)
