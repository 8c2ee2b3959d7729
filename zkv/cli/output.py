"""The output of commands: results go to standard output, messages to standard error.

The output is written as bytes, so it does not depend on the locale. On a terminal it has colours,
unless ``NO_COLOR`` is set; in a pipe or a file it has none.
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
    """The command failed: a line for standard error, and an exit status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def is_terminal(stream: TextIO | None) -> bool:
    """True if the stream is a terminal."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False  # It is closed.


def has_colours(stream: TextIO | None) -> bool:
    """True if the stream may get colours; see https://no-color.org for the variable."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return is_terminal(stream)


def paint(text: str, style: str, stream: TextIO | None) -> str:
    """``text`` in a style of `STYLES` if the stream may have colours, else unchanged."""
    return f"{STYLES[style]}{text}{RESET}" if has_colours(stream) else text


def print_result(output: str | bytes) -> None:
    """Print lines of text, or bytes unchanged. Raises the errors of `write`."""
    if sys.stdout is None:
        raise CommandError(FAILED, "cannot print: standard output is closed")
    write(to_bytes(output) if isinstance(output, str) else output)


def write(data: bytes) -> None:
    """Write ``data`` to standard output, after what has been printed; nothing if it is closed.

    Raises:
        BrokenPipeError: the reader of the pipe is gone.
        CommandError: writing failed, for example because the disk is full.
    """
    if sys.stdout is None:
        return
    try:
        streams.write(data)
    except streams.OutputError as error:
        streams.forget(sys.stdout)
        raise CommandError(FAILED, f"cannot print: {error.strerror}") from error


def complain(message: str) -> None:
    """Print an error message as one line to standard error, if that can be written."""
    name = paint("zkv-cli:", "bad", sys.stderr)
    streams.error_text(" ".join([name, *message.splitlines()]) + "\n")


def note(message: str) -> None:
    """Print a remark that is not an error as one line to standard error."""
    line = " ".join(["zkv-cli:", *message.splitlines()])
    streams.error_text(paint(line, "dim", sys.stderr) + "\n")
