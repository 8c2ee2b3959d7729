"""Measures at rising rates, open loop, and finds the saturation point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Struct

from zkv.bench import show
from zkv.bench.generator import LoadJob
from zkv.bench.result import Result

SERVED: Final = 0.98
"""A rate is served if at least this share of the operations due by the end could be sent by then.

If the rate is too high, more and more operations wait for a free connection.
"""
STEPS: Final = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 1.0, 1.1)
"""The rates to begin with, as shares of the closed loop's rate."""
FURTHER: Final = 1.2
"""The factor for further rates if all of `STEPS` are served: the closed loop was disturbed."""
MOST: Final = 30
"""The largest number of rates."""
TRIES: Final = 3
"""Attempts per rate. A saturated server fails all; a machine that was briefly busy does not."""


class Sweep(Struct):
    """The record of a sweep: one result for each rate, in ascending order."""

    results: list[Result]


def sweep(
    job: LoadJob, rates: list[float] | None, measure: Callable[[LoadJob, str], Result]
) -> list[Result]:
    """Measure at each of ``rates``; None = at rising rates until one is not served.

    The rising rates begin with shares of a closed loop's rate. Up to the saturation point, a rate
    that is not served is tried again.
    """
    results: list[Result] = []

    def is_saturated() -> bool:
        return bool(results) and saturation(results) != results[-1].job.rate

    def add(rate: float) -> None:
        paced = msgspec.structs.replace(job, rate=rate, operations=0)
        further_tries = 0 if is_saturated() else TRIES - 1
        made = measure(paced, f"{show.rate(rate)} ops/s")
        while not is_served(made) and further_tries:
            further_tries -= 1
            made = measure(paced, f"{show.rate(rate)} ops/s")
        results.append(made)

    if rates:
        for rate in sorted(rates):
            add(rate)
        return results
    most = measure(job, "closed loop").rate
    for step in STEPS:
        add(_rounded(most * step, most))
    while not is_saturated() and len(results) < MOST:
        add(_rounded(results[-1].job.rate * FURTHER, most))
    return results


def _rounded(rate: float, most: float) -> float:
    return max(1.0, round(rate, -2 if most > 2000 else 0))


def is_served(result: Result) -> bool:
    """True if the server kept up with the rate; see `SERVED`."""
    due = result.operations + result.unsent
    return result.operations >= SERVED * due and not result.failed and not result.lost


def saturation(results: list[Result]) -> float | None:
    """The highest rate up to which all rates are served; None if the first is not."""
    found = None
    for result in results:
        if not is_served(result):
            break
        found = result.job.rate
    return found


def render(results: list[Result]) -> str:
    """The results as text: a line for each rate, and the saturation point."""
    names = ("p50", "p99", "p99.9", "max")
    rows = []
    for result in results:
        values = result.overall().percentiles
        late = result.generator.behind
        rows.append([
            show.rate(result.job.rate), show.rate(result.rate),
            *(show.duration(values[name]) for name in names),
            f"{result.unsent:,}", "yes" if is_served(result) else "no",
            show.duration(late), f"{result.generator.busy:.0%}",
        ])  # fmt: skip
    head = ["offered", "ops/s", *names, "unsent", "served", "sent late", "generator busy"]
    lines = [show.table(head, rows), ""]
    found = saturation(results)
    if found is None:
        lines.append("  Not even the lowest rate is served.")
    elif found == results[-1].job.rate:
        lines.append(f"  All rates are served: the saturation point is above {show.rate(found)}.")
    else:
        lines.append(f"  Saturation point: {show.rate(found)} ops/s; the next rate is not served.")
    lines += sorted({f"  NOTE: {limit}" for result in results for limit in result.generator.limits})
    return "\n".join(lines)
