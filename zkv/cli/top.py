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
from typing import TYPE_CHECKING, Any, Final

from zkv import compiled, figures
from zkv.cli.asking import CommandSession, failure, reading
from zkv.cli.output import FAILED, CommandError, is_terminal, note, print_result
from zkv.cli.view import boxes
from zkv.entries.text import to_json
from zkv.errors import ZkvError
from zkv.rates import HEADINGS, RatesBetween, Sample, between, groups, numbers, op_rows
from zkv.readable import duration

if TYPE_CHECKING:
    from rich.console import RenderableType

    from zkv.client import Client

INTERVAL: Final = 1.0


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
            row = numbers(sample, happened)
        if options.json:
            print_result(to_json(dict(zip(HEADINGS, row, strict=True))))
        else:
            cells = zip(HEADINGS, row, strict=True)
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
            happened = between(before, now)
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


def _slow(info: Mapping[str, Any]) -> str:
    """The warning if C parts of the server are not built; otherwise empty."""
    slow = compiled.what_is_slow(info["stats"])
    return f"the server was built {slow}: see zkv doctor" if slow else ""


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
    return Group(title, slow, _ops(happened), "", boxes(groups(sample, happened)))


def _ops(happened: RatesBetween) -> RenderableType:
    """A table with rate and latencies of each op, and the rates of failures."""
    from rich.table import Table

    table = Table("op", box=None, pad_edge=False, header_style="dim")
    for heading in ("per second", "p50", "p99", "p99.9"):
        table.add_column(heading, justify="right", min_width=10)
    for op, *cells in op_rows(happened):
        table.add_row(op, *cells)
    for code, rate in sorted(happened.failures.items()):
        table.add_row(code, f"{rate:,.0f}", style="red")
    return table
