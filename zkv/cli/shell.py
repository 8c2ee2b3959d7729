"""The shell of ``zkv-cli``: runs commands, one per line, over one connection.

At a terminal it has a prompt (`zkv.cli.prompt`), shows the time that each command took, and
continues after errors; Ctrl-C stops the command, not the shell. Otherwise it runs all lines of
standard input, and its exit status is that of the first command that failed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Final

from zkv.cli.arguments import COMMANDS, UsageError, parse
from zkv.cli.asking import CommandSession, carry_out
from zkv.cli.lexer import split
from zkv.cli.output import FAILED, CommandError, complain, is_terminal, paint, print_result, write
from zkv.readable import duration
from zkv.reading import MARK

INTERRUPTED: Final = 130
GREETING_SECONDS: Final = 1.0
LEAVING: Final = frozenset({"exit", "quit"})
HELP: Final = """\
help COMMAND, or COMMAND --help, describes one command. Tab completes commands, options and keys.
A word that begins with { or [ is JSON up to the closing bracket, even over several lines, and is
stored as JSON; other words are text, quoted as in a Unix shell (put n 1 --json stores a number).
A line with only options, such as -o json or -e ENDPOINT, sets them for all later lines. Ctrl-C
stops a command; exit, quit or Ctrl-D ends the shell."""


class Shell:
    """A shell.

    Args:
        session: the connection for all commands.
        options: the options of the command line, which apply to every command.
    """

    def __init__(self, session: CommandSession, options: argparse.Namespace) -> None:
        self._session = session
        self._options = options
        self._is_over = False

    def run(self) -> int:
        """Run commands until the end of the input; the exit status."""
        if is_terminal(sys.stdin) and is_terminal(sys.stdout):
            return self._converse()
        return self._read()

    def _converse(self) -> int:
        from zkv.cli.prompt import Prompt

        prompt = Prompt()
        _greet(self._options)
        while not self._is_over:
            try:
                line = prompt.ask(self._options)
            except KeyboardInterrupt:
                continue  # Discard the unfinished line.
            except EOFError:
                break
            begin = time.monotonic()
            if self._carry_out(line) is not None:
                took = duration(time.monotonic() - begin)
                print_result(paint(f"({took})", "dim", sys.stdout))
        return 0

    def _read(self) -> int:
        first_failure, text = 0, ""
        for line in _lines():
            text += line
            if split(text).is_whole:
                status = self._carry_out(text)
                first_failure = first_failure or status or 0
                text = ""
                if self._is_over:
                    break
        if text.strip() and not self._is_over:
            complain(f"a quote or bracket is not closed: {text.strip()[:60]}")
            first_failure = first_failure or FAILED
        return first_failure

    def _carry_out(self, line: str) -> int | None:
        """Carry out a line; returns its exit status, or None if it has no command."""
        words = [word.text for word in split(line).words]
        if words[:1] == ["zkv-cli"]:  # Pasted from the help or from documents.
            del words[0]
        if not words:
            return None
        name = words[0].lower()
        if name in LEAVING:
            self._is_over = True
            return None
        if name in {"help", "?"}:
            words = [*words[1:2], "--help"]
            if len(words) == 1:
                _help()
                return None
        try:
            return self._command(words)
        except CommandError as error:
            complain(str(error))
            return error.status
        except KeyboardInterrupt:
            complain("interrupted")
            return INTERRUPTED

    def _command(self, words: list[str]) -> int | None:
        """Run a command, or set options for later ones. Raises CommandError."""
        try:
            command, options = parse(words, self._options)
        except UsageError as error:
            raise CommandError(FAILED, str(error)) from error
        except SystemExit:  # Help has been printed.
            write(b"")
            return None
        if command is None:
            self._options = options
            return None
        return carry_out(command, self._session, options)


def _greet(options: argparse.Namespace) -> None:
    """Print a warning if the server is unreachable. Raises CommandError for bad options."""
    from zkv.client import ClientError

    patience = argparse.Namespace(**vars(options) | {"timeout": GREETING_SECONDS})
    with CommandSession() as session:
        try:
            session.client(patience).ping()
        except ClientError as error:
            complain(str(error))


def _lines() -> Iterator[str]:
    """The lines of standard input. Raises CommandError."""
    if sys.stdin is None:
        raise CommandError(FAILED, "no command given; see zkv-cli --help")
    mark = MARK
    try:
        while line := sys.stdin.buffer.readline():
            yield line.removeprefix(mark).decode("utf-8", "surrogateescape")
            mark = b""
    except OSError as error:
        raise CommandError(FAILED, f"standard input: {error.strerror or error}") from error


def _help() -> None:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    print_result("\n".join([*lines, "", HELP]))
