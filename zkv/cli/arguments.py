"""Parses the words of a ``zkv-cli`` command line into a command and its options.

One parser takes the options before the command; another, built for that command only, takes the
words after it. So options may be on both sides, and no parser is built for the other commands.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from itertools import islice
from typing import Final, NoReturn

from zkv import __version__, durations, keys
from zkv.cli.ops import OPS, Argument, Command
from zkv.cli.programs import PROGRAMS
from zkv.defaults import DEFAULT_ENDPOINT
from zkv.endpoint import named_by_environment

DEFAULT_TIMEOUT: Final = 5.0


class UsageError(Exception):
    """The command line is invalid; the message is one line."""


OPTIONS: Final = (
    Argument(
        "[-e ENDPOINT]",
        ("-e", "--endpoint"),
        {
            "metavar": "ENDPOINT",
            "help": f"where the server listens; else ZKV_ENDPOINT, else {DEFAULT_ENDPOINT}. "
            "ENDPOINT,ENDPOINT for several servers with copies of one store",
        },
    ),
    Argument(
        "[--timeout TIME]",
        ("--timeout",),
        {
            "metavar": "TIME",
            "type": durations.argument,
            "default": DEFAULT_TIMEOUT,
            "help": "how long to wait for the answer: seconds, or such as 500ms, 2m; "
            f"else {DEFAULT_TIMEOUT:g}",
        },
    ),
    Argument(
        "[--server-key KEY]",
        ("--server-key",),
        {
            "metavar": "KEY",
            "type": keys.argument,
            "help": "the public key of the server, for a server with CURVE; else "
            "ZKV_SERVER_PUBLIC_KEY. KEY,KEY while the server changes it",
        },
    ),
    Argument(
        "[--key-file FILE]",
        ("--key-file",),
        {
            "metavar": "FILE",
            "help": "the file with your own secret key; else ZKV_KEY_FILE, else a new key",
        },
    ),
    Argument(
        "[-o text|json]",
        ("-o", "--output"),
        {"metavar": "FORMAT", "choices": ("text", "json"), "help": "how answers are printed"},
    ),
    Argument(
        "[--json]",
        ("--json",),
        {
            "action": "store_true",
            "default": False,
            "dest": "json_flag",
            "help": "VALUE is JSON, not text; with a command without a VALUE, the same as -o json",
        },
    ),
)
"""Options that are allowed before and after the command."""

OPTION_LIKE: Final = re.compile(r"-[^\d.]")
"""A word that looks like an option: not ``-``, which is standard input, and no negative number."""

NOTES: Final = """\
without a command:
  a shell: it takes these commands, one per line, and has a history; help says more.
  If standard input is not a terminal, the shell runs its lines.

every write that is one request:
  takes --durable, --deadline, and --session NAME with --seq N: see zkv-cli put --help. With a
  session you may repeat the same command after exit status 3: the server applies it once.

get, mget, scan and count:
  take --stale and --min-rev N, for servers with copies of a store: see zkv-cli get --help.

values:
  A VALUE is text: put n 1 stores the text "1", put n 1 --json the number 1. - reads it from
  standard input, to the end. Put -- before a word that begins with a dash:
  zkv-cli put key -- -value
  get prints text as a line, bin unchanged, anything else as JSON. On a terminal, text that looks
  like JSON or is not printable has quotes, and bin is shown as below; get --type prints the type.
  Types that JSON lacks are {"$bin": "<base64>"}, {"$ext": [<type>, "<base64>"]},
  {"$time": "<UTC>"}, {"$float": "NaN"} and {"$map": [[<key>, <value>], ...]}, also in a VALUE that
  is JSON. In a line with other fields a value is JSON; a key is text, or JSON if it begins with a
  quotation mark or is not printable.

times:
  A TIME is a number of seconds, or numbers with units: 500ms, 90s, 5m, 1h30m, 7d, 2w.

answers:
  -o json prints every answer as JSON: get prints the value, others one object per line.

exit status:
  0 done; 1 a negative answer (NOT_FOUND, CONFLICT); 2 wrong usage, or refused by the server;
  3 no answer in time"""

_OF_THE_SERVER: Final = frozenset({"ping", "info", "slow", "snapshot", "end", "completion"})
_ALL: Final = {**OPS, **PROGRAMS}
COMMANDS: Final = {name: _ALL[name] for name in sorted(_ALL, key=_OF_THE_SERVER.__contains__)}
"""Lower-case name -> command, in the order of the help: commands for entries come first."""


def parse(
    arguments: list[str], given: argparse.Namespace | None = None
) -> tuple[Command | None, argparse.Namespace]:
    """Parse a command line; returns the command, if there is one, and the options.

    Args:
        arguments: the words of the command line.
        given: the default options, as an earlier parse without a command returned them.

    Raises:
        UsageError: the command line is invalid.
        SystemExit: help, or the version, has been printed.
    """
    parser = _main_parser()
    parser.typed = arguments
    ahead, words = _split(keys.joined(arguments))
    if ahead[-1:] == ["-h"] and words and words[0].lower() not in COMMANDS:
        parser.error("-h is short for --help")  # In Redis' tools it gives the host.
    if words and words[0].lower() == "help":
        ahead, words = ["--help"][: 2 - len(words[:2])], [*words[1:2], "--help"]
    options = parser.parse_args(ahead, given and argparse.Namespace(**vars(given)))
    if not words:
        return None, options
    command = COMMANDS.get(words[0].lower())
    if command is None:
        parser.error(f"no such command: {words[0]!r}")
    parser = _command_parser(command)
    parser.typed = arguments
    options = parser.parse_args(_options_first(command, words[1:]), options)
    as_value = options.json_flag and command.takes_value
    as_output = "json" if options.json_flag and not as_value else "text"
    options.json_value = as_value
    options.json = (options.output or as_output) == "json"
    return command, options


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line, with a hint if there is one (`zkv.cli.hints`)."""

    typed: list[str]
    synopsis = ""

    def error(self, message: str) -> NoReturn:
        from zkv.cli import hints

        message = message.replace("unrecognized arguments: -- ", "unrecognized arguments: ")
        hint = hints.find(message, self.typed, COMMANDS)
        raise UsageError(f"{self._plain(message)}; {hint or f'see {self.prog} --help'}")

    def _plain(self, message: str) -> str:
        """The message of argparse in the words of the help."""
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            return f"missing {missing}: zkv-cli {self.synopsis}"
        leftover = message.removeprefix("unrecognized arguments: ")
        if leftover != message:
            return f"{'unknown option' if leftover.startswith('-') else 'unexpected'}: {leftover}"
        message = re.sub("ignored explicit argument .*", "it takes no value", message)
        return message.replace("expected one argument", "its value is missing")


def _main_parser() -> _Parser:
    """The parser for the words before the command."""
    parser = _Parser(
        prog="zkv-cli",
        usage=f"zkv-cli {_synopsis(OPTIONS)} [COMMAND ...]",
        description="Send commands to a zkv server. COMMAND may be in upper or lower case.",
        epilog=f"{list_commands()}\n\n{NOTES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"zkv-cli {__version__}")
    for option in OPTIONS:
        parser.add_argument(*option.names, **option.settings)
    parser.set_defaults(endpoint=named_by_environment())
    return parser


def _command_parser(command: Command) -> _Parser:
    """The parser for the words after the command. Its options override those before it."""
    parser = _Parser(
        prog=f"zkv-cli {command.name}",
        usage=f"zkv-cli {command.synopsis} {_synopsis(OPTIONS)}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        epilog="\n         ".join(
            [f"example: zkv-cli {command.example}", *(f"zkv-cli {each}" for each in command.more)]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.synopsis = command.synopsis
    for argument in command.arguments:
        parser.add_argument(*argument.names, **argument.settings)
    for option in OPTIONS:
        parser.add_argument(*option.names, **{**option.settings, "default": argparse.SUPPRESS})
    return parser


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The words before the command; the command and the words after it."""
    takes_value = _taking_value(OPTIONS)
    at = 0
    while at < len(arguments) and OPTION_LIKE.match(arguments[at]):
        if arguments[at] == "--":
            return arguments[:at], arguments[at + 1 :]
        at += 2 if arguments[at] in takes_value else 1
    return arguments[:at], arguments[at:]


def _options_first(command: Command, words: list[str]) -> list[str]:
    """``words`` with the options first, then ``--``, then the rest: argparse cannot mix them.

    (`parse_intermixed_args` can, but it also takes words after a ``--`` for options.)
    """
    options: list[str] = []
    rest: list[str] = []
    takes_value = _taking_value((*OPTIONS, *command.arguments))
    following = iter(words)
    for word in following:
        if word == "--":
            rest += following
        elif OPTION_LIKE.match(word):
            options += [word, *islice(following, 1)] if word in takes_value else [word]
        else:
            rest.append(word)
    if "--" in rest:  # argparse removes every one of them.
        raise UsageError("a key or value cannot be --, except from standard input")
    return [*options, "--", *rest] if rest else options


def _taking_value(arguments: Iterable[Argument]) -> set[str]:
    """The names of the options that take a value."""
    return {name for each in arguments if "metavar" in each.settings for name in each.names}


def _synopsis(arguments: Iterable[Argument]) -> str:
    return " ".join(argument.synopsis for argument in arguments)


def list_commands() -> str:
    """Every command with its synopsis, its summary and an example."""
    indent = "\n" + " " * 8
    lines = ["commands, each with an example:"]
    for command in COMMANDS.values():
        lines.append(
            f"  {command.synopsis}{indent}{command.summary}{indent}$ zkv-cli {command.example}"
        )
    return "\n".join(lines)
