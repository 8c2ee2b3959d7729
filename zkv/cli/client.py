"""``zkv-cli``: sends a command to a server, and prints the answer.

Results go to standard output, messages to standard error. Exit status: 0 done; 1 a negative answer
(NOT_FOUND, CONFLICT); 2 wrong usage, wrong keys, any other refusal by the server, or an answer that
cannot be read or printed; 3 no answer in time; as usual in a shell, 130 after Ctrl-C, and 141 if
standard output was closed by its reader.

Without a command it is a shell (`zkv.cli.shell`).

Most of the time of a command is the start of the interpreter and its imports. So ZeroMQ is imported
only when there is something to send, libraries for terminals only when they draw, and the server's
modules never.
"""

from __future__ import annotations

import argparse
import sys

from zkv.cli.arguments import UsageError, parse
from zkv.cli.asking import CommandSession, carry_out
from zkv.cli.ops import Command
from zkv.cli.output import FAILED, CommandError, complain, write
from zkv.streams import guarded


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return guarded("zkv-cli", FAILED, lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    try:
        command, options = _parse(sys.argv[1:] if arguments is None else arguments)
        with CommandSession() as session:
            if command is not None:
                return carry_out(command, session, options)
            from zkv.cli.shell import Shell

            return Shell(session, options).run()
    except CommandError as error:
        complain(str(error))
        return error.status


def _parse(arguments: list[str]) -> tuple[Command | None, argparse.Namespace]:
    """Like `parse`, but raises CommandError."""
    try:
        return parse(arguments)
    except UsageError as error:
        raise CommandError(FAILED, str(error)) from error
    except SystemExit:  # Help has been printed into Python's buffer: flush it.
        write(b"")
        raise


if __name__ == "__main__":
    sys.exit(main())
