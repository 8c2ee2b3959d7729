"""Reads key presses while a view is on the terminal."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from typing import Final, NoReturn

from zkv.cli.output import is_terminal
from zkv.system import optional

termios: Final = optional("termios")
tty: Final = optional("tty")

ENDING: Final = frozenset({b"q", b"Q", b""})
"""Input that ends a view. A terminal that is gone gives empty input."""


class Keyboard:
    """Waits, and reads key presses meanwhile if standard input is a terminal.

    Args:
        file: the file descriptor of standard input; None if it is not a terminal.
        signals: that of a pipe which has something to read once a signal has come.
    """

    def __init__(self, file: int | None, signals: int | None = None) -> None:
        self._file = file
        self._files = [each for each in (file, signals) if each is not None]

    @property
    def is_there(self) -> bool:
        """True if standard input is a terminal."""
        return self._file is not None

    def wait(self, seconds: float) -> bool:
        """Wait; returns False at once if the user presses q."""
        if self._file is None:
            time.sleep(seconds)
            return True
        end = time.monotonic() + seconds
        while ready := select.select(self._files, [], [], max(0.0, end - time.monotonic()))[0]:
            for each in ready:  # Signals: their handlers are called right after this.
                if os.read(each, 1) in ENDING and each == self._file:
                    return False
        return True


@contextlib.contextmanager
def keyboard() -> Iterator[Keyboard]:
    """Read keys one by one, without echo; restore the terminal at the end.

    SIGTERM and SIGHUP restore it, too, and then end the program in the usual way. Python would
    handle a signal that comes just before a wait only after it, so a pipe ends the wait.
    """
    if termios is None or not is_terminal(sys.stdin):
        yield Keyboard(None)
        return
    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)
    handlers = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        tty.setcbreak(file)
        yield Keyboard(file, reading)
    finally:
        with contextlib.suppress(termios.error):  # The terminal is gone.
            termios.tcsetattr(file, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken)
        os.close(reading)
        os.close(writing)


def _end(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)
