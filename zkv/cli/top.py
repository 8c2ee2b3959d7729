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

from zkv import compiled
from zkv.cli.asking import CommandSession, failure, reading
from zkv.cli.output import FAILED, CommandError, is_terminal, note, print_result
from zkv.cli.values import to_json
from zkv.cli.view import boxes, duration, percentile, size
from zkv.errors import ZkvError

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
        requests: the rate for each op.
        failures: the rate for each code.
        latencies: a histogram for each op; see `zkv.cli.view.percentile`.
        cpu: CPU seconds per second.
        log_bytes: the rate of bytes written to the log.
        syncs: the rate of syncs of the log.
        published: the rate of feed messages.
    """

    requests: dict[str, float]
    failures: dict[str, float]
    latencies: dict[str, list[int]]
    cpu: float
    log_bytes: float
    syncs: float
    published: float

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
        with reading("INFO"):
            if slow := _slow(client.call("INFO")):
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
    asked = time.monotonic()
    info = client.call("INFO")
    came = time.monotonic()
    return Sample(came, came - asked, info)


def _between(before: Sample, now: Sample) -> RatesBetween:
    if now.info["uptime"] < before.info["uptime"]:  # It was restarted, so it counts from 0 again.
        before = Sample(now.at - now.info["uptime"], 0.0, {"stats": {}, "durability": {}})
    seconds = max(now.at - before.at, 1e-6)
    was, stats = before.info["stats"], now.info["stats"]

    def rate(then: Mapping[str, Any], since: Mapping[str, Any], name: str) -> float:
        return float(since.get(name, 0) - then.get(name, 0)) / seconds

    def rates(name: str) -> dict[str, float]:
        then, since = was.get(name, {}), stats.get(name, {})
        return {each: found for each in since if (found := rate(then, since, each))}

    latencies = {}
    for op, counts in stats.get("latencies", {}).items():
        old = was.get("latencies", {}).get(op, [])
        old = [*old, *[0] * (len(counts) - len(old))]
        latencies[op] = [new - known for new, known in zip(counts, old, strict=True)]
    log_then, log = before.info["durability"], now.info["durability"]
    return RatesBetween(
        requests=rates("requests"),
        failures=rates("failures"),
        latencies=latencies,
        cpu=rate(was.get("process", {}), stats.get("process", {}), "cpu_seconds"),
        log_bytes=rate(log_then, log, "log_bytes"),
        syncs=rate(log_then, log, "syncs"),
        published=rate(was.get("feed", {}), stats.get("feed", {}), "published"),
    )


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
        info["stats"].get("sessions", {}).get("sessions", 0),
    ]  # fmt: skip


def _slow(info: Mapping[str, Any]) -> str:
    """The warning if C parts of the server are not built; otherwise empty."""
    slow = compiled.what_is_slow(info["stats"])
    return f"the server was built {slow}: see zkv doctor" if slow else ""


def _rss(info: Mapping[str, Any]) -> float:
    return float(info["stats"].get("process", {}).get("rss", 0))


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
    """The groups of facts below the table, by heading."""
    info = sample.info
    stats, log = info["stats"], info["durability"]
    process, feed = stats.get("process", {}), stats.get("feed", {})
    sessions, history = stats.get("sessions", {}), stats.get("history", {})
    return {
        "store": {
            "keys": f"{info['keys']:,}",
            "that expire": f"{stats.get('expiring', 0):,}",
            "revision": f"{info['rev']:,}",
            "not on disk yet": f"{info['rev'] - info['durable_rev']:,}",
        },
        "process": {
            "memory": size(process.get("rss", 0)),
            "cpu": f"{happened.cpu:.0%}",
            "open files": f"{process.get('open_files', 0):,}",
            "INFO takes": duration(sample.took),
        },
        f"log, fsync = {log['fsync']}": {
            "written": f"{size(happened.log_bytes)}/s",
            "syncs": f"{happened.syncs:,.0f}/s",
            "last snapshot": f"revision {log['snapshot_rev']:,}",
            "took": f"{duration(log['snapshot_seconds'])}, {size(log['snapshot_bytes'])}",
        },
        "sessions": {
            "remembered": f"{sessions.get('sessions', 0):,}",
            "replies": f"{sessions.get('replies', 0):,}, {size(sessions.get('bytes', 0))}",
        },
        "changes": {
            "published": f"{happened.published:,.0f}/s",
            "dropped": f"{feed.get('dropped', 0):,}",
            "kept": f"{history.get('changes', 0):,}, {size(history.get('bytes', 0))}",
        },
    }
