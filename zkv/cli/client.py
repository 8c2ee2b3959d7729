"""``zkv-cli``: asks a server for one thing, and prints the answer.

Results go to standard output, messages to standard error. Exit status: 0 done; 1 a negative answer
(NOT_FOUND, CONFLICT); 2 usage, any other refusal by the server, or an answer that cannot be read
or printed; 3 no answer in time; as usual in a shell, 130 after Ctrl-C, and 141 where nobody reads
the output any more.

Starting is most of what a command costs. So ZeroMQ is imported only once there is something to
send, and of the server's modules none.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Final

from zkv.cli.arguments import COMMANDS, COMPLETION, OPTIONS, UsageError, parse
from zkv.cli.fields import Fields
from zkv.cli.ops import Command
from zkv.cli.text import Reply
from zkv.cli.values import to_bytes, to_json

if TYPE_CHECKING:
    from zkv.client import ClientError

NEGATIVE = 1
FAILED = 2
NO_ANSWER = 3
INTERRUPTED = 130
NOBODY_READS = 141

NEGATIVE_CODES: Final = frozenset({"NOT_FOUND", "CONFLICT"})


class CommandError(Exception):
    """The command failed: one line for standard error, and an exit status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        return _run(arguments)
    except CommandError as error:
        _complain(str(error))
        return error.status
    except BrokenPipeError:
        _forget_output()
        return NOBODY_READS
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(arguments: list[str] | None) -> int:
    """Run the command line. Raises CommandError, and BrokenPipeError where nobody reads."""
    command, options = _parse(sys.argv[1:] if arguments is None else arguments)
    if command is COMPLETION:
        from zkv.cli.completion import script

        _print(script(options.shell, COMMANDS, OPTIONS))
        return 0
    answer, note = _answer(command, options, *_ask(command, options))
    _print(answer)
    if note:
        _complain(note)
    return 0


def _parse(arguments: list[str]) -> tuple[Command, argparse.Namespace]:
    """`parse`, with its errors as this module tells them."""
    try:
        return parse(arguments)
    except UsageError as error:
        raise CommandError(FAILED, str(error)) from error
    except SystemExit:  # Help is printed, as far as Python's own buffer.
        _write(b"")
        raise


def _ask(command: Command, options: argparse.Namespace) -> tuple[Fields, Reply]:
    """Send the command's request; its fields, and the reply's. Raises CommandError."""
    from zkv.client import Client, ClientError

    try:
        with Client(options.endpoint, options.timeout) as client:
            fields = command.fields(options)
            return fields, client.call(command.op, **fields)
    except ClientError as error:
        raise _failure(error) from error
    except OverflowError as error:
        raise CommandError(FAILED, "an int has more than 64 bits") from error
    except (ValueError, OSError) as error:
        raise CommandError(FAILED, str(error)) from error


def _failure(error: ClientError) -> CommandError:
    """The exit status for ``error``, and what a person should know before trying again."""
    from zkv.client import NoReplyError, RefusedError

    status, hint = FAILED, ""
    match error:
        case NoReplyError():
            status = NO_ANSWER
        case RefusedError():
            status = NEGATIVE if error.code in NEGATIVE_CODES else FAILED
            if "index" in error.details:
                hint = f"; at index {error.details['index']} of the transaction"
            if error.retry:
                hint += "; it may succeed later"
    if error.applied is None:
        hint = "; the request may have been carried out, or may yet be"
    return CommandError(status, f"{error}{hint}")


def _answer(
    command: Command, options: argparse.Namespace, asked: Fields, reply: Reply
) -> tuple[str | bytes, str]:
    """What to print, and what to say beside it.

    Raises CommandError where the reply lacks something.
    """
    try:
        note = command.note(reply)
        if options.json:
            return to_json(command.result(reply)), note
        return command.text({**asked, **reply}), note
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"bad reply to {command.op}: it is not as the protocol says: {error!r}"
        raise CommandError(FAILED, message) from error
    except RecursionError as error:
        raise CommandError(FAILED, "the value is nested too deeply to be printed") from error


def _print(output: str | bytes) -> None:
    """Print lines of text, or bytes as they are. Raises as `_write` does."""
    if sys.stdout is None:
        raise CommandError(FAILED, "cannot print: standard output is closed")
    _write(to_bytes(output) if isinstance(output, str) else output)


def _write(data: bytes) -> None:
    """Write all of ``data`` to standard output, if there is any, behind what has been printed.

    Raises:
        BrokenPipeError: nobody reads it.
        CommandError: it takes no more.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _forget_output()
        raise CommandError(FAILED, f"cannot print: {error.strerror}") from error


def _forget_output() -> None:
    """Send what is still buffered nowhere: the interpreter would try once more, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str) -> None:
    """Print one line to standard error, if that takes any."""
    if sys.stderr is None:
        return
    try:
        print("zkv-cli:", *message.splitlines(), file=sys.stderr)
    except OSError:
        pass  # The exit status still tells.


if __name__ == "__main__":
    sys.exit(main())
