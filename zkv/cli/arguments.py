"""From the words of a ``zkv-cli`` command line to a command and its options.

Two parsers share the work: one for what stands before the command, one, made for the command, for
what stands behind it. So only the one that is needed is made, and options may stand on both sides.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable
from itertools import islice
from typing import Final, NoReturn

from zkv import __version__, durations
from zkv.cli.ops import OPS, Argument, Command
from zkv.cli.programs import PROGRAMS
from zkv.defaults import DEFAULT_ENDPOINT

DEFAULT_TIMEOUT: Final = 5.0


class UsageError(Exception):
    """The command line cannot be understood: one line that says why."""


OPTIONS: Final = (
    Argument(
        "[-e ENDPOINT]",
        ("-e", "--endpoint"),
        {
            "metavar": "ENDPOINT",
            "help": f"where the server listens; else ZKV_ENDPOINT, else {DEFAULT_ENDPOINT}",
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
            "help": "VALUE is JSON, not text; for a command without a VALUE: -o json",
        },
    ),
)
"""What stands before the command or behind it."""

OPTION_LIKE: Final = re.compile(r"-[^\d.]")
"""Neither ``-``, which is standard input, nor a number below 0."""

NOTES: Final = """\
without a command:
  a shell: it takes these commands, one per line, and has a history; help says more.
  If standard input is not a terminal, the shell runs its lines.

every write that is one request:
  takes --durable, --deadline, and --session NAME with --seq N: see zkv-cli put --help. With a
  session you may repeat the same command after exit status 3: the server applies it once.

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

_OF_THE_SERVER: Final = frozenset({"ping", "info", "snapshot", "end", "completion"})
_ALL: Final = {**OPS, **PROGRAMS}
COMMANDS: Final = {name: _ALL[name] for name in sorted(_ALL, key=_OF_THE_SERVER.__contains__)}
"""Name, lower case -> command, in the order of the help: what is about entries comes first."""


def parse(
    arguments: list[str], given: argparse.Namespace | None = None
) -> tuple[Command | None, argparse.Namespace]:
    """The command, if there is one, and all that was said with it.

    Args:
        arguments: the words.
        given: what holds unless the words say otherwise, as a parse without a command gave it.

    Raises:
        UsageError: the words cannot be understood.
        SystemExit: help, or the version, has been printed.
    """
    parser = _main_parser()
    parser.typed = arguments
    ahead, words = _split(arguments)
    if ahead[-1:] == ["-h"] and words and words[0].lower() not in COMMANDS:
        parser.error("-h is short for --help")  # Of Redis' tools it names the host.
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
    """Tells an error in one line, with what was meant where that can be guessed."""

    typed: list[str]
    synopsis = ""

    def error(self, message: str) -> NoReturn:
        from zkv.cli import hints

        message = message.replace("unrecognized arguments: -- ", "unrecognized arguments: ")
        hint = hints.find(message, self.typed, COMMANDS)
        raise UsageError(f"{self._plain(message)}; {hint or f'see {self.prog} --help'}")

    def _plain(self, message: str) -> str:
        """What argparse says, in words for whoever has typed it."""
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            return f"missing {missing}: zkv-cli {self.synopsis}"
        leftover = message.removeprefix("unrecognized arguments: ")
        if leftover != message:
            return f"{'unknown option' if leftover.startswith('-') else 'unexpected'}: {leftover}"
        message = re.sub("ignored explicit argument .*", "it takes no value", message)
        return message.replace("expected one argument", "its value is missing")


def _main_parser() -> _Parser:
    """Takes what stands before the command."""
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
    parser.set_defaults(endpoint=os.environ.get("ZKV_ENDPOINT") or DEFAULT_ENDPOINT)
    return parser


def _command_parser(command: Command) -> _Parser:
    """Takes what stands behind the command. Options given there win over those before it."""
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
    """What stands before the command; the command and what stands behind it."""
    takes_value = _taking_value(OPTIONS)
    at = 0
    while at < len(arguments) and OPTION_LIKE.match(arguments[at]):
        if arguments[at] == "--":
            return arguments[:at], arguments[at + 1 :]
        at += 2 if arguments[at] in takes_value else 1
    return arguments[:at], arguments[at:]


def _options_first(command: Command, words: list[str]) -> list[str]:
    """``words`` with the options in front, then ``--``, then the rest: argparse cannot mix them.

    (It can: `parse_intermixed_args`. But then words behind a ``--`` are taken for options, too.)
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
    if "--" in rest:  # argparse takes any of them away.
        raise UsageError("a word cannot be -- itself, except from standard input")
    return [*options, "--", *rest] if rest else options


def _taking_value(arguments: Iterable[Argument]) -> set[str]:
    """The names of those that take the word behind them."""
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
