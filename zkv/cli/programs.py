"""The commands of ``zkv-cli`` that are no op of the protocol: a table, as `zkv.cli.ops` has one."""

from __future__ import annotations

from typing import Final

from zkv.cli.ops import CHANGED_PREFIX, PREFIX, Argument, Command, flag, option, program

FILE: Final = Argument(
    "[FILE]",
    ("file",),
    {
        "metavar": "FILE",
        "nargs": "?",
        "default": "-",
        "help": "its name; - or nothing = standard input or output",
    },
)
FORMAT: Final = Argument(
    "[--format json|msgpack]",
    ("--format",),
    {
        "metavar": "FORMAT",
        "choices": ("json", "msgpack"),
        "help": "json: an object a line; msgpack: a map behind the other; else msgpack where the "
        "name of FILE ends in .msgpack, and json elsewhere",
    },
)
WATCH_SINCE: Final = option(
    "--since", "REV", "begin behind this revision; else with what is new", int
)
WATCH_LIMIT: Final = option("--limit", "N", "end after so many changes; else go on for ever", int)
AFTER: Final = option("--after", "KEY", "begin behind this key")
GO_ON: Final = flag("--resume", "go on with the FILE.part that an export left unfinished")
STATE: Final = option(
    "--resume",
    "STATE",
    "a file that keeps how far it has got: the same command once more goes on from there",
)
INTERVAL: Final = option("--interval", "S", "seconds from one view to the next; else 1", float)
VIEWS: Final = option("--limit", "N", "end after so many views; else go on for ever", int)
SHELL: Final = Argument(
    "SHELL",
    ("shell",),
    {"metavar": "SHELL", "choices": ("bash", "zsh", "fish"), "help": "bash, zsh or fish"},
)

_TABLE: Final = (
    Command(
        "watch", "print changes as they come: revision, op, key, value as JSON",
        "watch --since 0 --limit 1",
        (PREFIX, WATCH_SINCE, WATCH_LIMIT), run=program("watch"),
    ),
    Command(
        "export", "write entries to a file, to be imported again", "export entries.jsonl",
        (FILE, CHANGED_PREFIX, AFTER, FORMAT, GO_ON), run=program("exporting"),
    ),
    Command(
        "import", "store the entries of a file", "import entries.jsonl", (FILE, FORMAT, STATE),
        run=program("importing"),
    ),
    Command(
        "top", "show what the server does, as it does it", "top --limit 2 --interval 0.1",
        (INTERVAL, VIEWS), run=program("top"),
    ),
    Command(
        "completion", "print a script for the shell to complete words", "completion bash",
        (SHELL,), run=program("completion"),
    ),
)  # fmt: skip

PROGRAMS: Final = {command.name: command for command in _TABLE}
"""Name, lower case -> command."""
