"""Shows the record of a comparison: as text, and in BENCHMARKS.md.

    python -m benchmarks.report benchmarks/results.json BENCHMARKS.md

It replaces the text of the document between each ``<!-- generated: NAME -->`` and the next
``<!-- end -->``; everything else is written by hand, and stays. A figure is the median of all
rounds. A ratio is zkv's figure divided by that of the server in whose line it stands, taken round
by round: median, least and most.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks import record as records
from benchmarks.record import Cell, Record
from benchmarks.rows import ROWS, SECTIONS, Section
from benchmarks.servers import CONTENDERS, DURABILITY
from zkv.bench import show
from zkv.bench.connections import BenchError
from zkv.bench.result import BUSY
from zkv.reading import decode, read_file
from zkv.writing import Target

BLOCK: Final = re.compile(
    r"(?P<begin><!-- generated: (?P<name>[\w -]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL
)

Table = tuple[list[str], list[list[str]]]
"""The head, and rows of as many cells."""

HEADS: Final[dict[str, tuple[str, Callable[[float], str]]]] = {
    "rate": ("requests/s", show.rate),
    "p50": ("p50", show.duration),
    "p99": ("p99", show.duration),
    "server_cpu": ("server's CPU", show.duration),
    "client_cpu": ("client's CPU", show.duration),
    "beside": ("MPUTs/s", show.rate),
    "seconds": ("until it serves", lambda value: f"{value:.2f} s"),
    "cpu_seconds": ("CPU", lambda value: f"{value:.2f} s"),
    "megabytes": ("files", lambda value: f"{value:.0f} MB"),
    "bytes_per_key": ("bytes", show.rate),
}
"""Of each figure, the head of its column, and its text."""


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description="Write the tables into a document, from the record of a comparison.",
    )
    parser.add_argument("record", type=Path, metavar="RECORD.json")
    parser.add_argument("document", type=Path, metavar="BENCHMARKS.md")
    options = parser.parse_args(words)
    try:
        write(options.record, options.document)
    except (BenchError, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


def write(source: Path, document: Path) -> None:
    """Fill the document's blocks. Raises BenchError, OSError."""
    record = records.load(source)
    blocks = {"overview": markdown(overview(record)), "machine": machine(record)}
    blocks["tables"] = "\n\n".join(
        f"### {section.title}\n\n{markdown(table(record, name, section))}"
        for name, section in SECTIONS.items()
        if any(cell.section == name for cell in record.cells)
    )
    filled = fill(decode(read_file(document)), blocks, str(document))
    with Target(document).open() as file:
        file.write(filled.encode())
    print(f"wrote {document}")


def fill(text: str, blocks: dict[str, str], document: str) -> str:
    """``text`` with its blocks filled. Raises BenchError if a block has no place in it."""
    places = {match["name"] for match in BLOCK.finditer(text)}
    if places != blocks.keys():
        wanted = ", ".join(f"<!-- generated: {name} -->" for name in blocks)
        raise BenchError(f"{document} must contain these, each with an <!-- end -->: {wanted}")
    return BLOCK.sub(
        lambda match: f"{match['begin']}\n{blocks[match['name']]}\n\n{match['end']}", text
    )


def text(record: Record) -> str:
    """The whole record, for a terminal."""
    parts = [machine(record)]
    for name, section in SECTIONS.items():
        if any(cell.section == name for cell in record.cells):
            parts.append(f"{section.title}\n{show.table(*table(record, name, section))}")
    return "\n\n".join(parts)


def markdown(of: Table) -> str:
    """A table in Markdown; columns with a figure are aligned to the right."""
    head, rows = of
    names = 2 if head[1] == "" else 1
    rule = ["---"] * names + ["--:"] * (len(head) - names)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


# --- Tables ----------------------------------------------------------------------------------


def table(record: Record, name: str, section: Section) -> Table:
    """The table of a section: a line for each server of each row, zkv's first."""
    places = {each.name: each.durability for each in record.present if section.durability}
    head = [
        "", "", *(HEADS[figure][0] for figure in section.figures),
        *(f"zkv / it: {HEADS[figure][0]}" for figure in section.ratios),
    ]  # fmt: skip
    lines = []
    cells = [cell for cell in record.cells if cell.section == name]
    for row in dict.fromkeys(cell.row for cell in cells):
        group = [cell for cell in cells if cell.row == row]
        in_order = sorted(group, key=lambda cell: _place(cell.server))
        ours = next((cell for cell in in_order if cell.server.startswith("zkv")), None)
        for number, cell in enumerate(in_order):
            where = places.get(cell.server)
            server = f"{cell.server} ({where})" if where else cell.server
            lines.append([
                "" if number else row, server,
                *(_figure(cell, figure) for figure in section.figures),
                *(_ratio(ours, cell, figure) for figure in section.ratios),
            ])  # fmt: skip
    return head, lines


def overview(record: Record) -> Table:
    """A line for each main row: zkv's rate, and its ratio to that of each other server."""
    family = {each.name: each.family for each in CONTENDERS}
    measured = {cell.server for cell in record.cells}
    others = [each.family for each in CONTENDERS if each.name in measured and not each.is_zkv]
    others = list(dict.fromkeys(others))
    lines = []
    for row in (row for row in ROWS if row.main):
        cells = {family.get(cell.server): cell for cell in record.cells if cell.row == row.name}
        if ours := cells.get("zkv"):
            ratios = (
                _ratio(ours, cells[other], "rate") if other in cells else "" for other in others
            )
            lines.append([row.name, _figure(ours, "rate"), *ratios])
    return ["", "zkv: requests/s", *(f"zkv / {other}" for other in others)], lines


def _place(server: str) -> int:
    """The place of a server in a row: that of its contender; others as they were measured."""
    names = [each.name for each in CONTENDERS]
    return names.index(server) if server in names else len(names)


def _figure(cell: Cell, name: str) -> str:
    values = cell.figures.get(name)
    if not values:
        return ""
    shown = HEADS[name][1]
    middle = shown(statistics.median(values))
    if name != "rate":
        return middle
    star = "*" if statistics.median(cell.figures.get("busy", [0.0])) > BUSY else ""
    return f"{middle}{star} ({shown(min(values))} - {shown(max(values))})"


def _ratio(ours: Cell | None, other: Cell, name: str) -> str:
    if ours is None or other is ours:
        return ""
    mine, theirs = ours.figures.get(name, []), other.figures.get(name, [])
    if len(mine) != len(theirs) or not all(theirs):
        return ""  # It missed a pass, or has no such figure.
    ratios = [our / its for our, its in zip(mine, theirs, strict=True)]
    if not ratios:
        return ""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"


# --- The machine -----------------------------------------------------------------------------


def machine(record: Record) -> str:
    """The list of machine, servers, settings, and how busy the machine was."""
    its = record.machine
    places = dict.fromkeys(each.durability for each in record.present)
    servers = (f"{each.name} {each.version}".strip() for each in record.present)
    lines = [
        f"{its.cpu}, {its.cores} cores, {its.memory / 2**30:.0f} GiB; {its.system}; {record.when}",
        ", ".join(servers),
        ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        f"{record.rounds} rounds of {record.seconds:g} s in each pass",
    ]
    for number, each in enumerate(record.passes, 1):
        verdict = ": too busy for reliable figures" if each.disturbs else ""
        lines.append(
            f"pass {number}: {each.seconds / 60:.1f} min, load average {each.load_before:g} before "
            f"and {each.load_after:g} after; other programs used {each.others:.0%} of the cores, "
            f"{each.steal:.0%} were stolen{verdict}"
        )
    if record.absent:
        lines.append(f"not installed, so not run: {', '.join(record.absent)}")
    lines += [f"left out: {note}" for note in record.notes]
    lines += [f"{place}: {DURABILITY[place]}" for place in places]
    return "\n".join(f"- {line}" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
