"""From a reply to INFO to the text that Prometheus reads.

The package prometheus-client writes the two formats, the classic one and OpenMetrics, and chooses
between them as the scraper asks. It is imported here alone, and only where metrics are served: zkv
does not need it otherwise.

No label has a key or a value of the store. The series of a metric are bounded: by the ops and codes
of the protocol, and by the fixed buckets below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from prometheus_client import exposition
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from zkv import figures
from zkv.figures import FIGURES, Figure

SUCCESS: Final = "OK"
"""The label `code` of a request that has succeeded."""
TIME_STEPS: Final = range(3, 24)
"""The buckets of a time that are exported: up to 8 µs, 16 µs ... 8.4 s."""
NUMBER_STEPS: Final = range(1, 13)
"""The buckets of a number that are exported: up to 1, 3, 7 ... 4,095."""

Info = Mapping[str, Any]


def exposition_of(info: Info, accept: str) -> tuple[bytes, str]:
    """Return the text of all figures, and its content type.

    Args:
        info: a reply to INFO. What it lacks is left out.
        accept: the header ``Accept`` of the request.
    """
    encode, content_type = exposition.choose_encoder(accept)
    return encode(_InfoCollector(info)), content_type


class _InfoCollector(Collector):
    """Makes a family of each figure that a reply to INFO has."""

    def __init__(self, info: Info) -> None:
        self._info = info

    def collect(self) -> Iterator[Metric]:
        """Iterate over the families."""
        for figure in FIGURES:
            family = _FAMILIES[figure.kind](figure, self._info)
            if family is not None:
                yield family


def _counter(figure: Figure, info: Info) -> Metric | None:
    value = figure.of(info)
    if value is None:
        return None
    family = CounterMetricFamily(figure.name, figure.help, labels=figure.labels)
    for labels, count in _requests(info) if figure is figures.REQUESTS else _by_label(value):
        family.add_metric(labels, count)
    return family


def _gauge(figure: Figure, info: Info) -> Metric | None:
    value = figure.of(info)
    if value is None:
        return None
    family = GaugeMetricFamily(figure.name, figure.help, labels=figure.labels)
    for labels, number in _by_label(value):
        family.add_metric(labels, number)
    return family


def _flag(figure: Figure, info: Info) -> Metric | None:
    *above, name = figure.paths[0].split(".")
    table: Any = info
    for each in above:
        table = table.get(each, {})
    if name not in table:
        return None
    return GaugeMetricFamily(figure.name, figure.help, value=int(figure.of(info) is not None))


def _histogram(figure: Figure, info: Info) -> Metric | None:
    value = figure.of(info)
    if value is None:
        return None
    family = HistogramMetricFamily(figure.name, figure.help, labels=figure.labels)
    if figure is figures.LATENCIES:
        sums = figure.of(info, 1) or {}
        for op, counts in value.items():
            family.add_metric([op], _buckets(figure, counts), sums.get(op, 0))
    else:
        family.add_metric([], _buckets(figure, value["counts"]), value["sum"])
    return family


def _summary(figure: Figure, info: Info) -> Metric | None:
    value = figure.of(info)
    if value is None:
        return None
    return SummaryMetricFamily(
        figure.name, figure.help, count_value=value["count"], sum_value=value["sum"]
    )


def _facts(figure: Figure, info: Info) -> Metric | None:
    values = [figure.of(info, place) for place in range(len(figure.paths))]
    facts = {
        label: value
        for label, value in zip(figure.labels, values, strict=True)
        if value is not None
    }
    return InfoMetricFamily(figure.name.removesuffix("_info"), figure.help, value=facts)


_FAMILIES: Final[dict[str, Callable[[Figure, Info], Metric | None]]] = {
    figures.COUNTER: _counter,
    figures.GAUGE: _gauge,
    figures.FLAG: _flag,
    figures.HISTOGRAM: _histogram,
    figures.SUMMARY: _summary,
    figures.FACTS: _facts,
}


def _by_label(value: Any) -> list[tuple[list[str], float]]:
    """The samples of a figure: of each key of a map, or one."""
    if isinstance(value, Mapping):
        return [([label], number) for label, number in value.items()]
    return [([], value)]


def _requests(info: Info) -> list[tuple[list[str], float]]:
    """The samples of the requests by op and code.

    Not as a difference: while the server makes INFO it counts on, so a difference might decrease,
    which Prometheus takes for a restart.
    """
    succeeded = figures.REQUESTS.of(info, 1) or {}
    samples: list[tuple[list[str], float]] = [
        ([op, SUCCESS], number) for op, number in succeeded.items()
    ]
    for op, failed in (figures.REQUESTS.of(info, 2) or {}).items():
        samples += [([op, code], number) for code, number in failed.items()]
    return samples


def _buckets(figure: Figure, counts: list[int]) -> list[tuple[str, float]]:
    """The upper bounds of the exported buckets, and how many values are not above them."""
    steps = TIME_STEPS if figure.unit == figures.SECONDS else NUMBER_STEPS
    factor, less = (1e6, 0) if figure.unit == figures.SECONDS else (1, 1)
    buckets: list[tuple[str, float]] = [
        (str((2**step - less) / factor), sum(counts[: step + 1])) for step in steps
    ]
    return [*buckets, ("+Inf", sum(counts))]
