"""The standard streams of a tool. Each may be closed or full, or its reader may have ended.

`guarded` is the outermost call of every tool. Foreseeable errors get their own messages long before
they reach it; it handles those that may occur anywhere, and bugs.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final, TextIO

INTERRUPTED: Final = 130
NO_READER: Final = 141


class OutputError(OSError):
    """Standard output cannot be written; ``strerror`` says why."""


def guarded(tool: str, failed: int, main: Callable[[], int]) -> int:
    """Run a tool. Any error becomes an exit status and at most one line on standard error.

    Args:
        tool: its name, for messages.
        failed: its exit status if it cannot do its work.
        main: runs the tool, and returns its exit status.

    Raises:
        SystemExit: if ``main`` raises it; everything has been printed.
    """
    _prepare()
    try:
        return _printed(main)
    except BrokenPipeError:
        forget(sys.stdout)
        return NO_READER
    except KeyboardInterrupt:
        return INTERRUPTED
    except OutputError as error:
        forget(sys.stdout)
        message = f"cannot print: {error.strerror}"
    except OSError as error:
        named = f"{error.filename}: " if error.filename is not None else ""
        message = f"{named}{error.strerror or error}"
    except MemoryError:
        message = "out of memory"
    except Exception as error:
        message = bug(error)
    complain(tool, message)
    return failed


def _printed(main: Callable[[], int]) -> int:
    """Run ``main``, print what is buffered, and return the exit status."""
    try:
        status = main()
    except SystemExit:
        error_text("")  # Flushes what argparse could not print.
        _flush()
        raise
    _flush()
    return status


def bug(error: Exception) -> str:
    """Describe an unexpected exception in one line, for a bug report."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"a bug, please report it: {type(error).__name__} at {place}: {error!s:.200}"


def _prepare() -> None:
    """Connect closed standard streams to the null device.

    Otherwise the next file or socket would get such a descriptor, and output to descriptor 2, such
    as the log's, would go there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Gets the lowest free descriptor, which is this one.
    if isinstance(sys.stdout, io.TextIOWrapper):  # Show names that the terminal cannot display.
        with contextlib.suppress(OSError):  # It asks for the position, which a pipe does not have.
            sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is None:  # Some libraries write to it without checking.
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="replace", closefd=False)


def write(data: bytes) -> None:
    """Write to standard output, after what has been printed.

    Raises:
        BrokenPipeError: its reader has ended.
        OutputError: it is closed or full.
    """
    if sys.stdout is None:
        raise OutputError(None, "standard output is closed")
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.errno, error.strerror) from error


def say(text: str) -> None:
    """Print lines of text. Raises as `write` does."""
    if sys.stdout is None:
        raise OutputError(None, "standard output is closed")
    _print(f"{text}\n")


def _flush() -> None:
    """Print what is buffered. Raises as `write` does."""
    if sys.stdout is not None and not sys.stdout.closed:
        _print("")


def _print(text: str) -> None:
    try:
        if text:  # On a full device even an empty write fails.
            sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.errno, error.strerror) from error


def forget(stream: TextIO | None) -> None:
    """Discard a stream's buffer, which the interpreter would otherwise print again, and fail."""
    if stream is None or stream.closed:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def complain(tool: str, message: str) -> None:
    """Print one line to standard error, if that is possible."""
    error_text(" ".join([f"{tool}:", *message.splitlines()]) + "\n")


def error_text(text: str) -> None:
    """Print text to standard error unchanged, if that is possible; there is still the status."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        forget(sys.stderr)
