"""The commands of ``zkv-cli`` that are ops of the protocol: a table with one entry for each.

An entry gives the command's arguments, the function that makes the fields of the request from them
(`zkv.cli.fields`), and the one that formats the reply (`zkv.cli.text`). Parsing, help and shell
completion are all derived from the table. A command that needs several requests has a module of its
own, which is imported only when the command runs. `zkv.cli.programs` has the commands that are not
ops.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from zkv import durations
from zkv.cli import fields, text
from zkv.cli.fields import Fields, given
from zkv.cli.text import Reply

if TYPE_CHECKING:
    from zkv.cli.asking import CommandSession

Run = Callable[["CommandSession", argparse.Namespace], int]
"""Carries out a command, and returns its exit status."""


class Argument(NamedTuple):
    """A positional argument or an option of a command.

    Args:
        synopsis: its form in the synopsis of the command; empty = not shown there.
        names: the names for `argparse`; those of an option begin with a dash.
        settings: the keyword arguments of `argparse.ArgumentParser.add_argument`.
    """

    synopsis: str
    names: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def is_option(self) -> bool:
        """True for an option, False for a positional argument."""
        return self.names[0].startswith("-")

    @property
    def is_file(self) -> bool:
        """True if it is the name of a file."""
        return self.settings.get("metavar") == "FILE"

    @property
    def is_value(self) -> bool:
        """True if it is a value to store, or contains some."""
        return self.settings.get("metavar") in {"VALUE", "KEY VALUE"}


class Command(NamedTuple):
    """One command.

    Args:
        name: the name in lower case; for an op, the op's name.
        summary: one line of help.
        example: a valid command line, without ``zkv-cli``.
        arguments: the arguments and options after the name.
        fields: makes the request's fields from the parsed arguments; raises ValueError or OSError.
        text: formats the reply: a str is printed as lines, bytes are printed unchanged. It gets the
            fields of the reply and of the request.
        result: the part of the reply that ``--output json`` prints.
        note: makes the remark for standard error; empty = none. It gets the same as ``text``.
        view: formats the reply for a terminal, if that differs from ``text``.
        run: carries out a command that needs several requests, instead of the functions above.
        more: further valid command lines, for the command's own help.
    """

    name: str
    summary: str
    example: str
    arguments: tuple[Argument, ...] = ()
    fields: Callable[[argparse.Namespace], Fields] = given()
    text: Callable[[Reply], str | bytes] = lambda reply: "OK"
    result: Callable[[Reply], Any] = lambda reply: reply
    note: Callable[[Reply], str] = lambda reply: ""
    view: Callable[[Reply], str] | None = None
    run: Run | None = None
    more: tuple[str, ...] = ()

    @property
    def op(self) -> str:
        """The op in the request."""
        return self.name.upper()

    @property
    def takes_value(self) -> bool:
        """True if the command takes a value to store."""
        return any(each.is_value for each in self.arguments)

    @property
    def synopsis(self) -> str:
        """The name and the arguments, as the help shows them."""
        return " ".join([self.name, *(each.synopsis for each in self.arguments if each.synopsis)])


def program(module: str) -> Run:
    """The function `run` of a module of this package, imported when it is called."""

    def run(session: CommandSession, options: argparse.Namespace) -> int:
        status: int = import_module(f"zkv.cli.{module}").run(session, options)
        return status

    return run


def whole(text: str) -> int:
    """A whole number, as a ``type`` of argparse."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a whole number") from None
    if not -(2**63) <= number < 2**64:
        raise argparse.ArgumentTypeError(f"{text[:60]} has more than 64 bits")
    return number


def number_of(text: str) -> int:
    """A number of things, as a ``type`` of argparse."""
    number = whole(text)
    if number >= 2**63:
        raise argparse.ArgumentTypeError(f"{text[:60]} is more than there can be")
    return number


def _end(text: str) -> str:
    """The word allowed after ``end``, as a ``type`` of argparse: an old spelling is `END end`."""
    if text.lower() != "end":
        raise argparse.ArgumentTypeError(f"end takes no argument: {text!r}")
    return text


KEY: Final = Argument("KEY", ("key",), {"metavar": "KEY", "help": "the key: text"})
KEY_OR_NONE: Final = KEY._replace(synopsis="[KEY]", settings={**KEY.settings, "nargs": "?"})
KEYS: Final = Argument(
    "KEY...", ("keys",), {"metavar": "KEY", "nargs": "+", "help": "the keys: text"}
)
VALUE: Final = Argument(
    "VALUE",
    ("value",),
    {
        "metavar": "VALUE",
        "help": "text; with --json it is JSON, so 1 is a number; - reads it from standard input",
    },
)
PAIRS: Final = Argument(
    "KEY VALUE [KEY VALUE...]",
    ("pairs",),
    {"metavar": "KEY VALUE", "nargs": "+", "help": "each key with its value, as for put"},
)
TIME: Final = Argument(
    "TIME|none",
    ("ttl",),
    {
        "metavar": "TIME",
        "help": "time until the key expires: seconds, or such as 90s, 5m, 1d12h; none or -: never",
    },
)
BY: Final = Argument(
    "[BY]",
    ("by",),
    {
        "metavar": "BY",
        "nargs": "?",
        "type": whole,
        "help": "what to add, may be negative; default: 1",
    },
)
PREFIX: Final = Argument(
    "[PREFIX]",
    ("prefix",),
    {"metavar": "PREFIX", "nargs": "?", "help": "only keys with this prefix"},
)
SINCE: Final = Argument(
    "SINCE",
    ("since",),
    {"metavar": "SINCE", "type": whole, "help": "the revision after which to begin; 0 = the first"},
)
TRANSACTION: Final = Argument(
    "FILE",
    ("file",),
    {
        "metavar": "FILE",
        "help": 'a file with JSON: {"if": [[KEY, REV], ...], "ops": [{"op": "PUT", ...}, ...]}; '
        "- reads it from standard input; a word that begins with { is the JSON itself",
    },
)


def option(name: str, metavar: str, help: str, kind: Callable[[str], object] = str) -> Argument:
    """An option with a value."""
    settings = {"metavar": metavar, "type": kind, "help": help}
    return Argument(f"[{name} {metavar}]", (name,), settings)


def flag(name: str, help: str) -> Argument:
    """An option without a value."""
    return Argument(f"[{name}]", (name,), {"action": "store_true", "help": help})


PREV: Final = flag("--prev", "also print the previous value")
IF_REV: Final = option(
    "--if-rev", "N", "only if the key's revision is N; 0 = only if there is no such key", whole
)
TTL: Final = option(
    "--ttl", "TIME", "time until it expires: seconds, or such as 90s, 5m, 1d12h; default: never",
    durations.argument,
)  # fmt: skip
LIMIT: Final = option("--limit", "N", "how many to print at most; default: all", number_of)
BOUNDS: Final = (
    option("--start", "KEY", "begin at this key"),
    option("--end", "KEY", "stop before this key"),
    option("--after", "KEY", "begin after this key, at which the previous page ended"),
)
TYPE: Final = flag("--type", "print the type of the value instead: str, int, map ...")
META: Final = flag("--meta", "print value, type, revision and time to live, one per line")
WATCH: Final = flag("--watch", "continue, and print each new value of the key")
DELETED_PREFIX: Final = option(
    "--prefix", "PREFIX",
    "delete all keys with this prefix, page by page: not all or nothing. Asks on a terminal",
)  # fmt: skip
YES: Final = flag("--yes", "with --prefix: do not ask")
SCAN_META: Final = flag("--meta", "also print type, revision and time to live, in this order")
KEYS_ONLY: Final = flag("--keys-only", "do not print values")
REVERSE: Final = flag("--reverse", "from the last key to the first")
CHANGED_PREFIX: Final = option("--prefix", "PREFIX", "only keys with this prefix")
SLOW_LIMIT: Final = option("--limit", "N", "how many to print at most; default: 100", number_of)
RESET: Final = flag("--reset", "forget all slow requests afterwards")
CHANGES_LIMIT: Final = option("--limit", "N", "about how many to print; default: 1000", number_of)

DURABLE: Final = flag("--durable", "wait until the write is on disk, whatever the server's policy")
EVERY_WRITE: Final = tuple(
    argument._replace(synopsis="")  # The help mentions them once for all writes.
    for argument in (
        DURABLE,
        flag("--deadline", "the server must not run it once --timeout has passed"),
        option(
            "--session", "NAME",
            "with --seq: applied once, however often it is sent; choose a random name per script",
        ),
        option("--seq", "N", "the number of the write in the session: 1, 2, 3 ...", whole),
    )
)  # fmt: skip
EVERY_READ: Final = tuple(
    argument._replace(synopsis="")  # The help mentions them once for all reads.
    for argument in (
        flag("--stale", "any server with a copy of the store may answer, although it may lag"),
        option(
            "--min-rev", "N",
            "show at least revision N, which a write has printed; a copy waits until it has it",
            whole,
        ),
    )
)  # fmt: skip
END_AGAIN: Final = Argument(
    "",
    ("again",),
    {
        "metavar": "end",
        "nargs": "?",
        "type": _end,
        "help": argparse.SUPPRESS,
    },
)


def _write(
    name: str,
    summary: str,
    example: str,
    arguments: tuple[Argument, ...],
    to_fields: fields.ToFields,
    to_text: Callable[[Reply], str | bytes] = text.written,
    **others: Any,
) -> Command:
    """A command that writes."""
    arguments = (*arguments, *EVERY_WRITE)
    return Command(
        name, summary, example, arguments, fields.write(to_fields), to_text, **others
    )  # fmt: skip


def _info_view(reply: Reply) -> str:
    from zkv.cli.view import info

    return info(reply)


_TABLE: Final = (
    _write(
        "put", "store a value", "put greeting 'hello, world'", (KEY, VALUE, PREV, IF_REV, TTL),
        fields.put, note=text.after_put,
        more=("put visits 1 --json", "put lock me --if-rev 0 --ttl 30s", "put page - <page.html"),
    ),
    Command(
        "get", "print only the value", "get greeting",
        (KEY, TYPE, META, WATCH, *EVERY_READ),
        run=program("getting"), more=("get visits --type", "get lock --meta", "get lock --watch"),
    ),
    _write(
        "touch", "give a key another time to live", "touch greeting 60", (KEY, TIME),
        fields.touch, more=("touch greeting 1h30m", "touch greeting none"),
    ),
    _write(
        "delete", "delete a key, or all keys with a prefix", "delete greeting",
        (KEY_OR_NONE, PREV, IF_REV, DELETED_PREFIX, YES), given("key", "prev", "if_rev"),
        run=program("deleting"), more=("delete --prefix user/ --yes",),
    ),
    _write(
        "incr", "add to a number, and print only the sum", "incr visits", (KEY, BY),
        given("key", "by"), text.number("value"),
    ),
    _write(
        "mput", "store many values, all or nothing", "mput a 1 b '[2, 3]' --json", (PAIRS, TTL),
        fields.mput,
    ),
    Command(
        "mget", "print many values as JSON, one per line; null if absent", "mget a b",
        (KEYS, *EVERY_READ), fields.read("keys"), text.values,
    ),
    Command(
        "scan", "print keys in order, each with its value as JSON", "scan --limit 10",
        (PREFIX, *BOUNDS, LIMIT, KEYS_ONLY, REVERSE, SCAN_META, *EVERY_READ), run=program("scan"),
        more=("scan user/ --keys-only", "scan user/ --meta", "scan --start a --end b -o json"),
    ),
    Command(
        "count", "print how many keys there are", "count a", (PREFIX, *EVERY_READ),
        fields.read("prefix"), text.number("count"), note=text.after_count,
    ),
    _write("mdelete", "delete many keys", "mdelete a b", (KEYS,), given("keys")),
    _write(
        "txn", "run many ops, all or nothing",
        """txn - <<< '{"if": [["a", 0]], "ops": [{"op": "PUT", "key": "a", "value": 1}]}'""",
        (TRANSACTION,), fields.txn, text.transaction,
    ),
    Command(
        "changes", "print changes: revision, op, key, value as JSON", "changes 0",
        (SINCE, CHANGED_PREFIX, CHANGES_LIMIT),
        given("since", "prefix", "limit"), text.changes, note=text.after_changes,
    ),
    Command("ping", "check that the server answers", "ping", text=text.ping),
    Command(
        "info", "print what the server reports about itself", "info",
        text=text.info, view=_info_view, note=text.after_info,
    ),
    Command(
        "slow", "print the newest slow requests: time, op, key, and where their time went", "slow",
        (SLOW_LIMIT, RESET), given("limit", "reset"), text.slow, note=text.after_slow,
    ),
    Command("snapshot", "write a snapshot now, and wait for it", "snapshot", text=text.saved),
    Command(
        "end", "save everything and stop the server", "end --timeout 60", (END_AGAIN,),
        text=text.ended,
    ),
)  # fmt: skip

OPS: Final = {command.name: command for command in _TABLE}
"""Lower-case name -> command."""
