"""Writes the tables and plots of BENCHMARKS.md, from the record of a comparison.

    python -m benchmarks.report benchmarks/peers.json BENCHMARKS.md

It replaces the text of the document between each ``<!-- generated: NAME -->`` and the next
``<!-- end -->``; everything else is written by hand, and stays. The plot is put beside the record.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks import compare
from benchmarks.compare import Record
from zkv.bench import plot
from zkv.bench.connections import BenchError
from zkv.reading import decode, read_file
from zkv.writing import Target

BLOCK: Final = re.compile(
    r"(?P<begin><!-- generated: (?P<name>[\w -]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL
)


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description="Write tables and plots into a document, from the record of a comparison.",
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
    """Fill the document's blocks, and draw the picture. Raises BenchError, OSError."""
    picture = source.with_suffix(".svg")
    plot.check(picture)
    record = compare.load(source)
    text = decode(read_file(document))
    link = os.path.relpath(picture, document.parent)
    blocks = {"machine": machine(record), "peers": tables(record, link)}
    filled = fill(text, blocks, str(document))
    with Target(document).open() as file:
        file.write(filled.encode())
    bars(panels(record), picture)
    print(f"wrote {document} and {picture}")


def fill(text: str, blocks: dict[str, str], document: str) -> str:
    """``text`` with its blocks filled. Raises BenchError if a block has no place in it."""
    places = {match["name"] for match in BLOCK.finditer(text)}
    if places != blocks.keys():
        wanted = ", ".join(f"<!-- generated: {name} -->" for name in blocks)
        raise BenchError(f"{document} must contain these, each with an <!-- end -->: {wanted}")
    return BLOCK.sub(
        lambda match: f"{match['begin']}\n{blocks[match['name']]}\n\n{match['end']}", text
    )


def machine(record: Record) -> str:
    """The list of machine, versions and settings."""
    its = record.machine
    lines = [
        f"- {its.cpu}, {its.cores} cores, {its.memory / 2**30:.0f} GiB; {its.system}; "
        f"load average {its.load:g} before the run; {record.when}",
        "- " + ", ".join(f"{each.label} {each.version}".strip() for each in record.present),
        "- " + ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        f"- {record.rounds} rounds of {record.seconds:g} s for each figure",
    ]
    if record.absent:
        lines.append(f"- not installed: {', '.join(record.absent)}")
    return "\n".join(lines)


def tables(record: Record, picture: str) -> str:
    """The picture, and a table for each shape of load."""
    parts = [f"![requests per second]({picture})"]
    for shape in record.shapes:
        parts.append(f"### {shape}")
        lines = [_row([*compare.HEAD]), _row(["---", *["--:"] * (len(compare.HEAD) - 1)])]
        for promise, group in compare.rows(record, shape):
            lines.append(_row([f"*{promise}*", *[""] * (len(compare.HEAD) - 1)]))
            lines += [_row(row) for row in group]
        parts += filter(None, ["\n".join(lines), compare.limited(record, shape)])
    return "\n\n".join(parts)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def panels(record: Record) -> list[tuple[str, list[tuple[str, float, float, float]]]]:
    """For each shape of load, a bar for each server: label, median, minimum, maximum."""
    found = []
    for shape in record.shapes:
        cells = [(each, record.cell(shape, each.name)) for each in record.present]
        bars = [
            (each.label, statistics.median(cell.rate), min(cell.rate), max(cell.rate))
            for each, cell in cells
            if cell is not None
        ]
        found.append((shape, bars))
    return found


def bars(
    panels: Sequence[tuple[str, Sequence[tuple[str, float, float, float]]]], path: Path
) -> None:
    """Draw a panel of bars for each title. A bar has name, median, minimum and maximum."""
    columns = 2
    rows = (len(panels) + columns - 1) // columns
    most = max(len(entries) for _, entries in panels)
    picture, axes = plot.figure(rows, columns, (11, rows * (0.8 + 0.28 * most)))
    for axis, (title, entries) in zip(axes.flat, panels, strict=False):
        names = [name for name, *_ in entries]
        medians = [median for _, median, _, _ in entries]
        spread = [
            [median - least for _, median, least, _ in entries],
            [most_ - median for _, median, _, most_ in entries],
        ]
        colors = ["C1" if name.startswith("zkv") else "C0" for name in names]
        colors = [
            "C7" if name == "bare ROUTER" else c for name, c in zip(names, colors, strict=True)
        ]
        axis.barh(names, medians, xerr=spread, color=colors, ecolor="black", capsize=2)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("requests per second")
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    plot.save(picture, path)


if __name__ == "__main__":
    sys.exit(main())
