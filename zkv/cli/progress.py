"""A progress bar on standard error for long operations, if that is a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from zkv.cli.output import is_terminal

if TYPE_CHECKING:
    import rich.progress


class TransferProgress:
    """A bar with a count and a rate. Use it as a context manager.

    Args:
        what: the operation, in a word.
        unit: the unit of the count.
        total: the value of ``part`` at the end; None = unknown.
        hidden: True to show nothing, because something else is printed meanwhile.
    """

    def __init__(self, what: str, unit: str, total: int | None, hidden: bool = False) -> None:
        self._bar: rich.progress.Progress | None = None
        self._unit = unit
        if is_terminal(sys.stderr) and not hidden:
            self._bar = _bar()
            self._task = self._bar.add_task(what, total=total, count=f"0 {unit}", rate="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, count: int, part: int | None = None) -> None:
        """Update the bar.

        Args:
            count: the number of units done.
            part: the share of ``total`` that is done; None = the count.
        """
        if self._bar is None:
            return
        seconds = self._bar.tasks[0].elapsed or 0.0
        self._bar.update(
            self._task,
            completed=count if part is None else part,
            count=f"{count:,} {self._unit}",
            rate=f"{count / seconds:,.0f}/s" if seconds else "",
        )


def _bar() -> rich.progress.Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[rate]}"),
        Remaining(),
        console=Console(stderr=True),
    )
