"""The standard streams of a tool: each may be closed, full or gone, and so may whoever reads it.

`guarded` is the outermost frame of every tool. What can be foreseen has its own message long before
it comes to this; here is what may happen anywhere, and what nobody has thought of.
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
NOBODY_READS: Final = 141


class OutputError(OSError):
    """Standard output takes nothing; ``strerror`` says why."""


def guarded(tool: str, failed: int, main: Callable[[], int]) -> int:
    """Run a tool; whatever happens becomes an exit status, and a line on standard error at most.

    Args:
        tool: its name, for messages.
        failed: the exit status where it could not do its work.
        main: does it, and gives its exit status.

    Raises:
        SystemExit: as ``main`` does, with everything printed.
    """
    _prepare()
    try:
        return _printed(main)
    except BrokenPipeError:
        forget(sys.stdout)
        return NOBODY_READS
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
    """The exit status of ``main``, with everything printed."""
    try:
        status = main()
    except SystemExit:
        error_text("")  # What argparse has not got rid of.
        _flush()
        raise
    _flush()
    return status


def bug(error: Exception) -> str:
    """What nobody has thought of, in a line that can be reported."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"a bug, please report it: {type(error).__name__} at {place}: {error!s:.200}"


def _prepare() -> None:
    """Have a closed standard stream lead nowhere.

    Else what is opened next would get its descriptor: whoever writes to descriptor 2, as the log
    does, would write into a file or a socket.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # It gets the lowest that is free: this one.
    if isinstance(sys.stdout, io.TextIOWrapper):  # A name that no terminal can show is no fault.
        with contextlib.suppress(OSError):  # It looks where a file is; a pipe has no such place.
            sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is None:  # Not everything that complains looks.
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="replace", closefd=False)


def write(data: bytes) -> None:
    """Write to standard output, behind what has been printed.

    Raises:
        BrokenPipeError: nobody reads it.
        OutputError: it is closed, or takes no more.
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
    """Print what is still buffered. Raises as `write` does."""
    if sys.stdout is not None and not sys.stdout.closed:
        _print("")


def _print(text: str) -> None:
    try:
        if text:  # To write nothing fails, too, where a device is full.
            sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.errno, error.strerror) from error


def forget(stream: TextIO | None) -> None:
    """Send what is still buffered nowhere: the interpreter would try once more, and complain."""
    if stream is None or stream.closed:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def complain(tool: str, message: str) -> None:
    """Print one line to standard error, if that takes any."""
    error_text(" ".join([f"{tool}:", *message.splitlines()]) + "\n")


def error_text(text: str) -> None:
    """Print text to standard error as it is, if that takes any; the exit status still tells."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        forget(sys.stderr)
