"""The record of a comparison: figures of each server in each row, one for each round.

It is also the JSON file. All lists of figures of one row have the same length, so that ratios can
be taken within rounds. A server that failed in a row has no cell there, but a note.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct, field

from benchmarks.activity import Activity
from zkv.bench.connections import BenchError
from zkv.bench.result import Machine


class Cell(Struct):
    """The figures of one server in one row, by name: one for each round."""

    row: str
    section: str
    server: str
    figures: dict[str, list[float]] = field(default_factory=dict)


class Present(Struct, frozen=True):
    """A server that took part. ``durability`` says where an acknowledged write is."""

    name: str
    version: str
    durability: str


class Record(Struct):
    """The record of a comparison."""

    when: str
    machine: Machine
    versions: dict[str, str]
    seconds: float
    rounds: int
    """The rounds of each pass."""
    present: list[Present] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    passes: list[Activity] = field(default_factory=list)

    def add(self, section: str, row: str, server: str, found: dict[str, float]) -> None:
        """Add the figures of one round."""
        cell = self.cell(row, server)
        if cell is None:
            cell = Cell(row, section, server)
            self.cells.append(cell)
        for name, value in found.items():
            cell.figures.setdefault(name, []).append(value)

    def cell(self, row: str, server: str) -> Cell | None:
        """The figures of a server in a row; None if it was not measured."""
        for cell in self.cells:
            if (cell.row, cell.server) == (row, server):
                return cell
        return None

    def meet(self, present: Present) -> None:
        """Note a server that takes part."""
        if present not in self.present:
            self.present.append(present)

    def miss(self, name: str) -> None:
        """Note what is not installed."""
        if name not in self.absent:
            self.absent.append(name)

    def drop(self, row: str, server: str, reason: str) -> None:
        """Forget a server in a row for good, because a measurement failed."""
        self.cells = [cell for cell in self.cells if (cell.row, cell.server) != (row, server)]
        self.dropped.append((row, server))
        self.notes.append(reason)


def load(path: Path) -> Record:
    """Read a record. Raises BenchError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise BenchError(f"{path} is not a record of a comparison: {error}") from error
