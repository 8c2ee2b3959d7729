"""``zkv-cli top``: shows the activity of a server live.

It sends INFO once per interval, and shows the differences as rates, and the latencies of the
requests in the interval. On a terminal the view stays in place; otherwise each interval gives one
line, or one object with ``--json``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from zkv import compiled, figures
from zkv.cli.asking import CommandSession, failure, reading
from zkv.cli.output import FAILED, CommandError, is_terminal, note, print_result
from zkv.cli.values import to_json
from zkv.cli.view import boxes, duration, percentile, shown
from zkv.errors import ZkvError
from zkv.figures import FIGURES, Figure

if TYPE_CHECKING:
    from rich.console import RenderableType

    from zkv.client import Client

INTERVAL: Final = 1.0
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
        latencies: a histogram for each op; see `zkv.cli.view.percentile`.
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


def run(session: CommandSession, options: argparse.Namespace) -> int:
    """Show views, until there were ``--limit`` of them."""
    interval = INTERVAL if options.interval is None else options.interval
    if not 0 < interval <= 86_400:
        raise CommandError(FAILED, f"--interval must be above 0 and at most 1d, not {interval:g}")
    if options.limit is not None and options.limit < 1:
        raise CommandError(FAILED, f"--limit must be at least 1, not {options.limit}")
    client = session.client(options)
    if is_terminal(sys.stdout) and not options.json:
        _live(client, interval, options.limit)
        return 0
    if not options.json:
        info = _sample(client).info
        with reading("INFO"):
            if slow := _slow(info):
                note(slow)
        print_result("  ".join(HEADINGS))
    for sample, happened in _intervals(client, interval, options.limit):
        with reading("INFO"):
            numbers = _numbers(sample, happened)
        if options.json:
            print_result(to_json(dict(zip(HEADINGS, numbers, strict=True))))
        else:
            cells = zip(HEADINGS, numbers, strict=True)
            print_result("  ".join(f"{number:>{len(name)}}" for name, number in cells))
    return 0


def _live(client: Client, interval: float, limit: int | None) -> None:
    """Show a view that stays in place, until q or Ctrl-C. Waits for a server that is away."""
    from rich.console import Console
    from rich.live import Live

    from zkv.cli.keyboard import keyboard

    console = Console(highlight=False)
    with keyboard() as keys:
        ends = "q or Ctrl-C ends" if keys.is_there else "Ctrl-C ends"
        samples = _intervals(client, interval, limit, keys.wait)
        first = next(samples, None)
        if first is None:
            return
        with Live(console=console, screen=True, auto_refresh=False) as live:
            live.update(_view(client.endpoint, ends, *first), refresh=True)
            while True:
                try:
                    for sample, happened in samples:
                        live.update(_view(client.endpoint, ends, sample, happened), refresh=True)
                    return
                except ZkvError as error:
                    live.update(f"{failure(error)}; trying again", refresh=True)
                    if not keys.wait(interval):
                        return
                    samples = _intervals(client, interval, limit, keys.wait)


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True


def _intervals(
    client: Client, interval: float, limit: int | None, wait: Callable[[float], bool] = _sleep
) -> Iterator[tuple[Sample, RatesBetween]]:
    """The activity in each interval, until ``wait`` returns False.

    The first interval is short, to show something soon.
    """
    before, number = _sample(client), 0
    while limit is None or number < limit:
        if not wait(interval if number else min(interval, 0.25)):
            return
        now = _sample(client)
        with reading("INFO"):
            happened = _between(before, now)
        yield now, happened
        before, number = now, number + 1


def _sample(client: Client) -> Sample:
    """Ask for a sample. Raises CommandError if the user may not see it, ClientError."""
    asked = time.monotonic()
    info = client.call("INFO")
    came = time.monotonic()
    if hidden := figures.hidden(info):
        raise CommandError(FAILED, hidden)
    return Sample(came, came - asked, info)


def _between(before: Sample, now: Sample) -> RatesBetween:
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


def _numbers(sample: Sample, happened: RatesBetween) -> list[float]:
    """A number for each of `HEADINGS`."""
    info, counts = sample.info, happened.all_latencies
    every = sum(happened.requests.values())
    writes = sum(rate for op, rate in happened.requests.items() if op in WRITES)
    return [
        round(every), round(every - writes), round(writes), round(sum(happened.failures.values())),
        round(percentile(counts, 0.5) * 1e3, 3), round(percentile(counts, 0.99) * 1e3, 3),
        round(happened.cpu * 100), round(_rss(info) / 2**20, 1), info["keys"], info["rev"],
        round(happened.log_bytes / 2**20, 2), round(happened.syncs),
        figures.SESSIONS.of(info) or 0,
    ]  # fmt: skip


def _slow(info: Mapping[str, Any]) -> str:
    """The warning if C parts of the server are not built; otherwise empty."""
    slow = compiled.what_is_slow(info["stats"])
    return f"the server was built {slow}: see zkv doctor" if slow else ""


def _rss(info: Mapping[str, Any]) -> float:
    return float(figures.RSS.of(info) or 0)


def _view(endpoint: str, ends: str, sample: Sample, happened: RatesBetween) -> RenderableType:
    """The whole view."""
    from rich.console import Group
    from rich.text import Text

    info = sample.info
    title = Text.assemble(
        (f"zkv {info['version']}", "bold"), f"  up {duration(info['uptime'])}",
        (f"  {time.strftime('%H:%M:%S')}, {ends}", "dim"), f"  {endpoint}",
    )  # fmt: skip
    slow = Text(_slow(info), "yellow")
    return Group(title, slow, _ops(happened), "", boxes(_groups(sample, happened)))


def _ops(happened: RatesBetween) -> RenderableType:
    """A table with rate and latencies of each op, and the rates of failures."""
    from rich.table import Table

    table = Table("op", box=None, pad_edge=False, header_style="dim")
    for heading in ("per second", "p50", "p99", "p99.9"):
        table.add_column(heading, justify="right", min_width=10)
    rows = {"all": (sum(happened.requests.values()), happened.all_latencies)}
    for op, rate in sorted(happened.requests.items(), key=lambda item: -item[1]):
        rows[op] = rate, happened.latencies.get(op, [])
    for op, (rate, counts) in rows.items():
        times = [duration(percentile(counts, share)) for share in (0.5, 0.99, 0.999)]
        table.add_row(op, f"{rate:,.0f}", *(times if sum(counts) else []))
    for code, rate in sorted(happened.failures.items()):
        table.add_row(code, f"{rate:,.0f}", style="red")
    return table


def _groups(sample: Sample, happened: RatesBetween) -> dict[str, dict[str, str]]:
    """The groups of figures below the table, by heading."""
    groups: dict[str, dict[str, str]] = {}
    for figure in FIGURES:
        if figure.place is not None and figure.of(sample.info) is not None:
            heading, name = figure.place
            groups.setdefault(heading, {}).update(_rows(figure, name, sample.info, happened))
    groups["process"]["INFO takes"] = duration(sample.took)
    return groups


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
