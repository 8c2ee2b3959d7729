"""How far something long has got, on standard error where that is a terminal; else nothing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from zkv.cli.output import is_terminal

if TYPE_CHECKING:
    import rich.progress


class TransferProgress:
    """A bar with a count and a rate. Use as a context manager.

    Args:
        what: is being done, in a word.
        unit: of what is counted.
        total: how much there is of what `show` is told as ``part``; None = nobody knows.
        hidden: whether not to show it, since something else is printed meanwhile.
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
        """Say how far it is.

        Args:
            count: how many there have been.
            part: how much of the total that is; None = the count.
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
