"""What commands print: results to standard output, messages to standard error.

Bytes, not text, are written, so that what is printed does not depend on the locale. On a terminal
some parts have colours, unless ``NO_COLOR`` is set; a pipe or a file gets none.
"""

from __future__ import annotations

import os
import sys
from typing import Final, TextIO

from zkv import streams
from zkv.cli.values import to_bytes

FAILED: Final = 2

RESET: Final = "\x1b[0m"
STYLES: Final = {"key": "\x1b[36m", "op": "\x1b[33m", "dim": "\x1b[2m", "bad": "\x1b[31m"}


class CommandError(Exception):
    """The command failed: one line for standard error, and an exit status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks at what is written there."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False  # It has been closed.


def has_colours(stream: TextIO | None) -> bool:
    """Whether colours may be written there; see https://no-color.org for the variable."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return is_terminal(stream)


def paint(text: str, style: str, stream: TextIO | None) -> str:
    """``text`` in a style of `STYLES` where the stream may have colours, else as it is."""
    return f"{STYLES[style]}{text}{RESET}" if has_colours(stream) else text


def print_result(output: str | bytes) -> None:
    """Print lines of text, or bytes as they are. Raises as `write` does."""
    if sys.stdout is None:
        raise CommandError(FAILED, "cannot print: standard output is closed")
    write(to_bytes(output) if isinstance(output, str) else output)


def write(data: bytes) -> None:
    """Write all of ``data`` to standard output, if there is any, behind what has been printed.

    Raises:
        BrokenPipeError: nobody reads it.
        CommandError: it takes no more.
    """
    if sys.stdout is None:
        return
    try:
        streams.write(data)
    except streams.OutputError as error:
        streams.forget(sys.stdout)
        raise CommandError(FAILED, f"cannot print: {error.strerror}") from error


def complain(message: str) -> None:
    """Print one line to standard error, if that takes any."""
    name = paint("zkv-cli:", "bad", sys.stderr)
    streams.error_text(" ".join([name, *message.splitlines()]) + "\n")


def note(message: str) -> None:
    """Print to standard error what is no fault: `complain`, without alarm."""
    line = " ".join(["zkv-cli:", *message.splitlines()])
    streams.error_text(paint(line, "dim", sys.stderr) + "\n")
