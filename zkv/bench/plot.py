"""Draws pictures with matplotlib, which is imported only when a picture is requested."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zkv.bench.connections import BenchError
from zkv.bench.result import CURVE, Result
from zkv.writing import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES: Final = (".png", ".svg")
TICKS: Final = (0.0, 0.9, 0.99, 0.999, 0.9999, 0.99999)


def check(path: Path) -> None:
    """Check that a picture can be made, before the run. Raises BenchError."""
    if path.suffix not in SUFFIXES:
        raise BenchError(f"{path}: the name of a picture must end in {' or '.join(SUFFIXES)}")
    figure(1)


def figure(rows: int, columns: int = 1, size: tuple[float, float] = (8, 7)) -> tuple[Figure, Any]:
    """A picture with ``rows`` by ``columns`` panels; ``size`` is in inches. Raises BenchError."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        pip = f"{shlex.quote(sys.executable)} -m pip"
        raise BenchError(f"pictures need matplotlib: {pip} install matplotlib") from error
    mpl.rcParams["svg.hashsalt"] = "zkv"  # The same figures give the same file,
    mpl.rcParams["svg.fonttype"] = "none"  # text remains text,
    mpl.rcParams["text.parse_math"] = False  # and a $ in a name is not mathematics.
    plt.close("all")
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Write a picture; the same figures give the same file. Raises OSError."""
    form = path.suffix.removeprefix(".")
    metadata = {"Date": None} if form == "svg" else None
    with Target(path).open() as file:
        figure.savefig(file, format=form, dpi=120, metadata=metadata)


def runs(results: Sequence[Result], path: Path) -> None:
    """Draw latency by percentile, and rate and latency over time, of one or more runs."""
    drawn, axes = figure(3)
    percentiles, rates, over_time = (row[0] for row in axes)
    for result in results:
        known = [  # Only shares that leave out at least one operation.
            (1 / (1 - share), value / 1e3)
            for share, value in zip(CURVE, result.curve, strict=True)
            if (1 - share) * result.operations >= 1
        ]
        percentiles.plot(*zip(*known, strict=True), label=result.name)
        at = [moment.at for moment in result.timeline]
        (line,) = rates.plot(at, [moment.rate for moment in result.timeline])
        for name, style in (("p99", "-"), ("p50", ":")):
            over_time.plot(
                at, [_or_gap(getattr(moment, name)) for moment in result.timeline], style,
                color=line.get_color(), label=f"{result.name}, {name}",
            )  # fmt: skip
    percentiles.set_xscale("log")
    percentiles.set_xticks([1 / (1 - share) for share in TICKS])
    percentiles.set_xticklabels([f"{share * 100:.10g}%" for share in TICKS])
    percentiles.minorticks_off()
    percentiles.set_xlabel("percentile")
    _milliseconds(percentiles)
    _milliseconds(over_time)
    rates.set_ylabel("operations per second")
    rates.set_ylim(bottom=0)
    over_time.set_xlabel("seconds")
    percentiles.legend()
    over_time.legend()
    save(drawn, path)


def sweep(results: Sequence[Result], path: Path) -> None:
    """Draw latency and the achieved rate over the offered rate."""
    drawn, axes = figure(2)
    latency, reached = (row[0] for row in axes)
    offered = [result.job.rate for result in results]
    for name in ("p50", "p99", "p99.9"):
        latency.plot(
            offered, [result.overall().percentiles[name] / 1e3 for result in results], "o-",
            label=name,
        )  # fmt: skip
    _milliseconds(latency)
    latency.legend()
    reached.plot(offered, [result.rate for result in results], "o-")
    reached.plot(offered, offered, ":", color="grey", label="as offered")
    reached.set_xlabel("offered, operations per second")
    reached.set_ylabel("achieved, operations per second")
    reached.legend()
    save(drawn, path)


def _milliseconds(axis: Axes) -> None:
    axis.set_yscale("log")
    axis.set_ylabel("milliseconds")
    axis.grid(visible=True, alpha=0.3)


def _or_gap(microseconds: float) -> float:
    """The value in milliseconds; NaN, which is not drawn, if there were no replies."""
    return microseconds / 1e3 if microseconds else float("nan")
