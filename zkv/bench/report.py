"""Writes the tables and plots of BENCHMARKS.md, from the record of a comparison.

What stands in the document between ``<!-- generated: NAME -->`` and the next ``<!-- end -->`` is
replaced; everything else was written by people, and stays. The plot lies beside the record.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
from pathlib import Path
from typing import Final

from zkv.bench import peers, plot, result
from zkv.bench.connections import BenchError
from zkv.bench.peers import Peers
from zkv.reading import BadTextError, decode, read_file
from zkv.streams import say
from zkv.writing import Target

BLOCK: Final = re.compile(
    r"(?P<begin><!-- generated: (?P<name>[\w -]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL
)


def main(words: list[str]) -> int:
    """The command ``zkv-bench report``."""
    parser = argparse.ArgumentParser(
        prog="zkv-bench report",
        description="Write tables and plots into a document, from what zkv-bench peers has found.",
    )
    parser.add_argument("record", type=Path, metavar="PEERS.json")
    parser.add_argument("document", type=Path, metavar="BENCHMARKS.md")
    options = parser.parse_args(words)
    record = peers.load(options.record)
    picture = options.record.with_suffix(".svg")
    for path in (options.document, picture):
        result.check_target(path)
    plot.check(picture)
    try:
        text = decode(read_file(options.document))
    except OSError as error:
        raise BenchError(f"{options.document}: {error.strerror}") from error
    except BadTextError as error:
        raise BenchError(f"{options.document}: {error}") from error
    link = os.path.relpath(picture, options.document.parent)
    blocks = {"machine": machine(record), "peers": tables(record, link)}
    filled = fill(text, blocks, str(options.document))
    with Target(options.document).open() as file:
        file.write(filled.encode())
    plot.bars(panels(record), picture)
    say(f"{options.document} and {picture} are written")
    return 0


def fill(text: str, blocks: dict[str, str], document: str) -> str:
    """``text`` with its blocks filled. Raises BenchError where one has no place there."""
    places = {match["name"] for match in BLOCK.finditer(text)}
    if places != blocks.keys():
        wanted = ", ".join(f"<!-- generated: {name} -->" for name in blocks)
        raise BenchError(f"{document} has to have these, each with an <!-- end -->: {wanted}")
    return BLOCK.sub(
        lambda match: f"{match['begin']}\n{blocks[match['name']]}\n\n{match['end']}", text
    )


def machine(record: Peers) -> str:
    """Where and how it was measured."""
    its = record.machine
    lines = [
        f"- {its.cpu}, {its.cores} cores, {its.memory / 2**30:.0f} GiB; {its.system}; "
        f"load average {its.load:g} before the run; {record.when}",
        "- " + ", ".join(f"{each.label} {each.version}".strip() for each in record.present),
        "- " + ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        f"- {record.rounds} rounds of {record.seconds:g} s for each figure, {record.keys:,} keys, "
        f"values of {record.value_bytes} bytes",
    ]
    if record.absent:
        lines.append(f"- not installed: {', '.join(record.absent)}")
    return "\n".join(lines)


def tables(record: Peers, picture: str) -> str:
    """A table for each shape of load."""
    parts = [f"![operations per second]({picture})"]
    for shape in record.shapes:
        parts.append(f"### {shape}")
        lines = [_row([*peers.HEAD]), _row(["---", *["--:"] * (len(peers.HEAD) - 1)])]
        for promise, group in peers.rows(record, shape):
            lines.append(_row([f"*{promise}*", *[""] * (len(peers.HEAD) - 1)]))
            lines += [_row(row) for row in group]
        parts += filter(None, ["\n".join(lines), peers.limited(record, shape)])
    return "\n\n".join(parts)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def panels(record: Peers) -> list[tuple[str, list[tuple[str, float, float, float]]]]:
    """For each shape of load, the bars of all who took part."""
    found = []
    for shape in record.shapes:
        cells = [(each, record.cell(shape, each.name)) for each in record.present]
        bars = [
            (each.label, statistics.median(cell.rates), min(cell.rates), max(cell.rates))
            for each, cell in cells
            if cell is not None
        ]
        found.append((shape, bars))
    return found
