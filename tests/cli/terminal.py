"""A terminal in which ``zkv-cli`` runs: what is typed into it, and what stands on it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

import pexpect

from tests.cli.running import COMMAND
from tests.support import LIMIT, ROOT, environment

CONTROL = re.compile(r"\x1b(\[[0-9;?>=]*[a-zA-Z]|[=>]|\][^\x07]*\x07)")
"""Sequences that move the cursor or set colours."""


class Terminal:
    """Runs a command in a terminal of its own. Use as a context manager.

    Args:
        home: where the shell keeps its history.
        *words: of the command line, behind ``zkv-cli``.
        **env: variables beside those that the tests have.
    """

    def __init__(self, home: Path, *words: str, **env: str) -> None:
        variables = environment() | {
            "TERM": "xterm-256color",
            "XDG_STATE_HOME": str(home),
            # Nobody here answers the question where the cursor is.
            "PROMPT_TOOLKIT_NO_CPR": "1",
        }
        for name in ("NO_COLOR", "COLUMNS", "LINES"):
            variables.pop(name, None)
        self.process: pexpect.spawn[str] = pexpect.spawn(
            COMMAND[0], [*COMMAND[1:], *words], cwd=str(ROOT), dimensions=(50, 120),
            env=variables | env, encoding="utf-8", timeout=LIMIT,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.close(force=True)

    def type(self, text: str) -> None:
        """Type ``text``; ``\\r`` is the key Enter."""
        self.process.send(text)

    def press(self, key: str) -> None:
        """Press a key together with Ctrl."""
        self.process.sendcontrol(key)

    def expect(self, text: str) -> str:
        """Wait until ``text`` is there; what stood before it, without control sequences."""
        self.process.expect(text)
        return CONTROL.sub("", str(self.process.before))

    def line(self, text: str) -> None:
        """Wait for a line that is ``text``, below what was typed."""
        self.process.expect(rf"(\n|\x1b\[\?2004l){text}\r\n")

    def prompt(self) -> str:
        """Wait until the shell takes the next line; what stood before, as `expect`."""
        before = self.expect(r"\x1b\[\?2004h")  # From now on it knows what is pasted.
        return before + self.expect(r"\x1b\[\?25h")  # The cursor is shown.

    def end(self) -> tuple[str, int | None]:
        """Wait for the end; what was printed since, with control sequences, and the status."""
        self.process.expect(pexpect.EOF)
        self.process.close()
        return str(self.process.before), self.process.exitstatus
