"""Shows INFO on a terminal, with readable numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from zkv.cli.text import Reply
from zkv.entries.text import to_json
from zkv.readable import duration, percentile, size

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


def latency(counts: Iterable[int]) -> str:
    """Median and 99th percentile of a histogram; see `percentile`."""
    counts = list(counts)
    half, most = percentile(counts, 0.5), percentile(counts, 0.99)
    return f"p50 {duration(half)}, p99 {duration(most)}" if sum(counts) else "none"
