"""Carries out a command: sends its requests, then prints the reply or raises an error.

`ask` carries out a command that is one op of the protocol. Commands that need more requests have
modules of their own, which use the same connection and the same errors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

from zkv.cli.output import FAILED, CommandError, is_terminal, note, print_result
from zkv.endpoint import check_option
from zkv.entries.text import to_json
from zkv.errors import ZkvError

if TYPE_CHECKING:
    from zkv.checks import ReadFrom
    from zkv.cli.ops import Command
    from zkv.client import Client

NEGATIVE: Final = 1
NO_ANSWER: Final = 3

NEGATIVE_CODES: Final = frozenset({"NOT_FOUND", "CONFLICT"})


class CommandSession:
    """The connection of one command, or of all commands of a shell. A context manager."""

    def __init__(self) -> None:
        self._client: Client | None = None
        self._made_for: tuple[object, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def client(self, options: argparse.Namespace) -> Client:
        """A client for the endpoint, timeout and keys in ``options``. Raises CommandError."""
        from zkv.client import Client, RetryPolicy
        from zkv.client.codec import PACKED
        from zkv.client.curve import given

        read: ReadFrom = "stale" if getattr(options, "stale", False) else "leader"
        wanted = (options.endpoint, options.timeout, options.server_key, options.key_file, read)
        if self._client is None or self._made_for != wanted:
            self.close()
            try:
                endpoints = check_option(options.endpoint)
                retry = RetryPolicy(wait_for_start=False)
                self._client = Client(
                    endpoints, options.timeout, codec=PACKED, retry=retry, read=read,
                    **given(options),
                )  # fmt: skip
            except ValueError as error:
                raise CommandError(FAILED, str(error)) from error
            self._made_for = wanted
        return self._client

    def close(self) -> None:
        """Close the connection, if there is one; the next command opens another."""
        if self._client is not None:
            self._client.close()
            self._client = None


def carry_out(command: Command, session: CommandSession, options: argparse.Namespace) -> int:
    """Carry out a command; its exit status. Raises CommandError, BrokenPipeError."""
    try:
        return command.run(session, options) if command.run else ask(command, session, options)
    except ZkvError as error:
        raise failure(error, command.op) from error
    except OverflowError as error:
        raise CommandError(FAILED, "an int has more than 64 bits") from error


def ask(command: Command, session: CommandSession, options: argparse.Namespace) -> int:
    """Send the request of a command that is one op, and print the reply; the exit status."""
    client = session.client(options)
    try:
        fields = command.fields(options)
    except (ValueError, OSError) as error:
        raise CommandError(FAILED, str(error)) from error
    try:
        reply = client.call(command.op, **fields)
    except ZkvError:
        raise
    except OverflowError as error:
        raise CommandError(FAILED, "an int has more than 64 bits") from error
    except ValueError as error:
        raise CommandError(FAILED, str(error)) from error
    with reading(command.op):
        answer, beside = _answer(command, options, {**fields, **reply}, reply)
    print_result(answer)
    if beside:
        note(beside)
    return 0


@contextmanager
def reading(op: str) -> Iterator[None]:
    """Turn the errors of code that reads a reply into CommandError: the reply is invalid."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"bad reply to {op}: it does not follow the protocol: {error!r}"
        raise CommandError(FAILED, message) from error
    except RecursionError as error:
        raise CommandError(FAILED, "the value is nested too deeply to print") from error


def failure(error: ZkvError, op: str = "") -> CommandError:
    """The CommandError for ``error`` of an op: exit status, and a hint on trying again."""
    from zkv.client import (
        AuthenticationError,
        ClientError,
        NoReplyError,
        NotLeaderError,
        RefusedError,
    )

    status, hint = FAILED, ""
    match error:
        case AuthenticationError():
            pass
        case NoReplyError():
            status = NO_ANSWER
        case RefusedError():
            status = NEGATIVE if error.code in NEGATIVE_CODES else FAILED
            if "index" in error.details:
                hint = f"; at index {error.details['index']} of the transaction"
            if op == "END" and error.code != "DENIED":
                hint += "; the server ends nevertheless"
            elif isinstance(error, NotLeaderError) and error.leader:
                hint += f"; the leader is at {','.join(error.leader)}"
            elif error.retry:
                hint += "; it may succeed later"
            if error.code == "WRONG_TYPE" and "(str)" in str(error):
                hint += "; to store a number: zkv-cli put KEY 1 --json"
    if isinstance(error, ClientError) and error.applied is None:
        hint = "; the request may have been applied, or may be applied later"
    return CommandError(status, f"{error}{hint}")


def _answer(
    command: Command, options: argparse.Namespace, all_fields: dict[str, Any], reply: dict[str, Any]
) -> tuple[str | bytes, str]:
    """The text for standard output, and the note for standard error."""
    beside = command.note(all_fields)
    if options.json:
        return to_json(command.result(reply)), beside
    if command.view is not None and is_terminal(sys.stdout):
        return command.view(reply), beside
    return command.text(all_fields), beside
