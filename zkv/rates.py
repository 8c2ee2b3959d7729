"""Rates, latencies and readable figures of a server, from two replies to INFO.

`zkv.figures` has the figures; all that shows them live is derived from these functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from zkv import figures
from zkv.figures import FIGURES, Figure
from zkv.readable import duration, percentile, shown

HEADINGS: Final = (
    "requests/s", "reads/s", "writes/s", "failures/s", "p50 ms", "p99 ms", "cpu %", "rss MiB",
    "keys", "revision", "log MiB/s", "syncs/s", "sessions",
)  # fmt: skip
WRITES: Final = frozenset({"PUT", "DELETE", "TOUCH", "INCR", "MPUT", "MDELETE", "TXN"})


class Sample(NamedTuple):
    """One reply to INFO.

    Args:
        at: when it arrived, by the monotonic clock, in seconds.
        took: seconds from request to reply.
        info: the reply.
    """

    at: float
    took: float
    info: dict[str, Any]


class RatesBetween(NamedTuple):
    """The activity between two samples. Rates are per second.

    Args:
        before: the earlier reply to INFO.
        seconds: the time between the two.
        requests: the rate for each op.
        failures: the rate for each code.
        latencies: a histogram for each op; see `zkv.readable.percentile`.
        cpu: CPU seconds per second.
        log_bytes: the rate of bytes written to the log.
        syncs: the rate of syncs of the log.
    """

    before: dict[str, Any]
    seconds: float
    requests: dict[str, float]
    failures: dict[str, float]
    latencies: dict[str, list[int]]
    cpu: float
    log_bytes: float
    syncs: float

    @property
    def all_latencies(self) -> list[int]:
        """The histogram of all ops together."""
        longest = max(map(len, self.latencies.values()), default=0)
        padded = [[*counts, *[0] * (longest - len(counts))] for counts in self.latencies.values()]
        return [sum(step) for step in zip(*padded, strict=True)]


def between(before: Sample, now: Sample) -> RatesBetween:
    """Return the activity between two samples; the server may have been restarted meanwhile."""
    if now.info["uptime"] < before.info["uptime"]:  # It was restarted, so it counts from 0 again.
        before = Sample(now.at - now.info["uptime"], 0.0, {"stats": {}, "durability": {}})
    seconds = max(now.at - before.at, 1e-6)

    def rate(figure: Figure) -> float:
        return float((figure.of(now.info) or 0) - (figure.of(before.info) or 0)) / seconds

    def rates(path: int) -> dict[str, float]:
        then = figures.REQUESTS.of(before.info, path) or {}
        since = figures.REQUESTS.of(now.info, path) or {}
        found = {each: float(since[each] - then.get(each, 0)) / seconds for each in since}
        return {each: rate for each, rate in found.items() if rate}

    then = figures.LATENCIES.of(before.info) or {}
    since = figures.LATENCIES.of(now.info) or {}
    return RatesBetween(
        before=before.info,
        seconds=seconds,
        requests=rates(0),
        failures=rates(3),
        latencies={op: _added(counts, then.get(op, [])) for op, counts in since.items()},
        cpu=rate(figures.CPU),
        log_bytes=rate(figures.LOG_WRITTEN),
        syncs=rate(figures.SYNCS),
    )


def _added(counts: list[int], before: list[int]) -> list[int]:
    """The counts that have been added to a histogram."""
    before = [*before, *[0] * (len(counts) - len(before))]
    return [new - known for new, known in zip(counts, before, strict=True)]


def numbers(sample: Sample, happened: RatesBetween) -> list[float]:
    """Return a number for each of `HEADINGS`."""
    info, counts = sample.info, happened.all_latencies
    rss = figures.RSS.of(info) or 0
    every = sum(happened.requests.values())
    writes = sum(rate for op, rate in happened.requests.items() if op in WRITES)
    return [
        round(every), round(every - writes), round(writes), round(sum(happened.failures.values())),
        round(percentile(counts, 0.5) * 1e3, 3), round(percentile(counts, 0.99) * 1e3, 3),
        round(happened.cpu * 100), round(rss / 2**20, 1), info["keys"], info["rev"],
        round(happened.log_bytes / 2**20, 2), round(happened.syncs),
        figures.SESSIONS.of(info) or 0,
    ]  # fmt: skip


def op_rows(happened: RatesBetween) -> list[list[str]]:
    """Return op, rate and latencies of all ops together and of each op, the busiest first."""
    rows = {"all": (sum(happened.requests.values()), happened.all_latencies)}
    for op, rate in sorted(happened.requests.items(), key=lambda item: -item[1]):
        rows[op] = rate, happened.latencies.get(op, [])
    return [
        [op, f"{rate:,.0f}", *(_latencies(counts) if sum(counts) else [])]
        for op, (rate, counts) in rows.items()
    ]


def _latencies(counts: list[int]) -> list[str]:
    return [duration(percentile(counts, share)) for share in (0.5, 0.99, 0.999)]


def groups(sample: Sample, happened: RatesBetween) -> dict[str, dict[str, str]]:
    """Return all figures as text, by the heading of their group and their name in it."""
    found: dict[str, dict[str, str]] = {}
    for figure in FIGURES:
        if figure.place is not None and figure.of(sample.info) is not None:
            heading, name = figure.place
            found.setdefault(heading, {}).update(_rows(figure, name, sample.info, happened))
    found["process"]["INFO takes"] = duration(sample.took)
    return found


def _rows(
    figure: Figure, name: str, info: Mapping[str, Any], happened: RatesBetween
) -> dict[str, str]:
    """The text of a figure, by the name beside it; a gauge by part has a line for each."""
    value, before = figure.of(info), figure.of(happened.before)
    match figure.kind:
        case figures.COUNTER:
            return {name: _count(figure, value, before, happened.seconds)}
        case figures.HISTOGRAM | figures.SUMMARY:
            return {name: _spread(figure, value, before or {})}
        case _ if figure.members:
            return {part: shown(each, figure.unit) for part, each in value.items()}
        case _:
            return {name: shown(value, figure.unit)}


def _count(figure: Figure, value: Any, before: Any, seconds: float) -> str:
    """The rate of a counter, and how far it has come."""
    if figure is figures.CPU:
        return f"{(value - (before or 0)) / seconds:.0%}"
    if isinstance(value, Mapping):
        value, before = sum(value.values()), sum((before or {}).values())
    rate = round((value - (before or 0)) / seconds)
    in_all = shown(value, figure.unit)
    return f"{in_all}, {shown(rate, figure.unit)}/s" if rate else in_all


def _spread(figure: Figure, value: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """The distribution of the times that were added; the mean, without buckets or of numbers."""
    counts = _added(value.get("counts", []), before.get("counts", []))
    number = sum(counts) if counts else value.get("count", 0) - before.get("count", 0)
    if not number:
        return "-"
    mean = (value["sum"] - before.get("sum", 0)) / number
    if figure.unit != figures.SECONDS:
        return f"mean {mean:,.1f}"
    if not counts:
        return f"mean {duration(mean)}"
    return f"p50 {duration(percentile(counts, 0.5))}, p99 {duration(percentile(counts, 0.99))}"
