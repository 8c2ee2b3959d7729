"""Shows INFO on a terminal, with readable numbers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from zkv import figures
from zkv.cli.text import Reply
from zkv.cli.values import to_json

if TYPE_CHECKING:
    from rich.console import RenderableType


def info(reply: Reply) -> str:
    """The reply to INFO as a table in groups."""
    server = {name: fact for name, fact in reply.items() if not isinstance(fact, dict)}
    groups = {"server": {n: f for n, f in server.items() if n not in {"ok", "id"}}}
    groups |= {name: deepcopy(fact) for name, fact in reply.items() if isinstance(fact, dict)}
    stats = groups.get("stats", {})
    for name in [name for name, fact in stats.items() if isinstance(fact, dict)]:
        groups[name] = stats.pop(name)
    _separate_cluster(groups)
    if "latencies" in groups:
        groups["latencies"] = {op: latency(counts) for op, counts in groups["latencies"].items()}
    for name in ("lock_wait", "fsync", "append"):
        if "counts" in groups.get(name, {}):
            groups[name] |= {"counts": latency(groups[name]["counts"])}
    return _rendered(
        {
            heading: {name: readable(name, fact) for name, fact in facts.items()}
            for heading, facts in groups.items()
            if facts
        }
    )


def _separate_cluster(groups: dict[str, dict[str, Any]]) -> None:
    """Give the members of a store in etcd, and etcd, groups of their own."""
    replication = groups.get("replication", {})
    if "etcd" not in replication:
        return
    groups["members"] = {each["name"]: _member(each) for each in replication.pop("members")}
    groups["etcd"] = etcd = replication.pop("etcd")
    etcd |= {endpoint: f"silent: {why}" for endpoint, why in etcd.pop("silent", {}).items()}
    for name in ("append", "append_commits"):
        groups[name] = etcd.pop(name)


def _member(member: Mapping[str, Any]) -> str:
    """The text of a member."""
    seconds = member["seconds"]
    told = "never there" if seconds is None else f"{duration(seconds)} ago"
    return f"{member['role']}, at log number {member['applied']:,}, {told}"


def boxes(groups: Mapping[str, Mapping[str, str]]) -> RenderableType:
    """Groups of facts, each below its heading, in as many columns as fit."""
    from rich.columns import Columns
    from rich.table import Table
    from rich.text import Text

    tables = []
    for heading, facts in groups.items():
        table = Table.grid(padding=(0, 2))
        table.add_row(Text(heading, style="bold"))
        for name, fact in facts.items():
            table.add_row(Text(name, style="cyan"), Text(fact))
        table.add_row("")
        tables.append(table)
    return Columns(tables, padding=(0, 4))


def _rendered(groups: Mapping[str, Mapping[str, str]]) -> str:
    from rich.console import Console

    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(boxes(groups))
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def readable(name: str, fact: Any) -> str:
    """A fact of INFO in readable units, which depend on its ``name``."""
    if isinstance(fact, list):
        return "  ".join(readable(name, each) for each in fact)
    if isinstance(fact, int | float) and not isinstance(fact, bool):
        return _number(name, fact)
    if fact is None:
        return "none"
    return fact if isinstance(fact, str) else to_json(fact)


def _number(name: str, number: float) -> str:
    if name == "rss" or name.endswith("bytes"):
        return size(number)
    if name in {"uptime", "lease"} or name.endswith(("_seconds", "_interval", "_ttl")):
        return duration(number)
    return str(number) if name == "pid" else f"{number:,}"


def shown(value: Any, unit: str) -> str:
    """A figure in readable units.

    Args:
        value: its value in INFO.
        unit: its unit; see `zkv.figures`.
    """
    if isinstance(value, str):
        return value
    if unit == figures.BYTES:
        return size(value)
    if unit == figures.TIME:
        return f"{duration(max(0.0, time.time() - value))} ago"
    return duration(value) if unit == figures.SECONDS else f"{value:,}"


def size(number: float) -> str:
    """A number of bytes with a unit, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{number:,.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"


def duration(seconds: float) -> str:
    """A number of seconds in a suitable unit."""
    if seconds == 0:
        return "0 s"
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (120.0, 1.0, "s")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes < 120:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def latency(counts: Iterable[int]) -> str:
    """Median and 99th percentile of a histogram; see `percentile`."""
    counts = list(counts)
    half, most = percentile(counts, 0.5), percentile(counts, 0.99)
    return f"p50 {duration(half)}, p99 {duration(most)}" if sum(counts) else "none"


def percentile(counts: list[int], share: float) -> float:
    """The time, in seconds, within which a share of the requests was done.

    Args:
        counts: a histogram from INFO: the number of requests that took less than 1 µs, from 1 to
            2 µs, from 2 to 4 µs and so on. They are assumed to be spread evenly in each step.
        share: from 0 to 1.
    """
    wanted, below = share * sum(counts), 0
    for step, count in enumerate(counts):
        if count and below + count >= wanted:
            low = 0.0 if step == 0 else 2.0 ** (step - 1)
            return float(low + (2.0**step - low) * (wanted - below) / count) / 1e6
        below += count
    return 0.0
