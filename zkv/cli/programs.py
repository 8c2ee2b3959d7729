"""The commands of ``zkv-cli`` that are no op of the protocol: a table, as `zkv.cli.ops` has one."""

from __future__ import annotations

from typing import Final

from zkv import durations
from zkv.cli.ops import (
    CHANGED_PREFIX,
    DURABLE,
    KEY,
    PREFIX,
    Argument,
    Command,
    flag,
    option,
    program,
    whole,
)

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
    "--since", "REV", "begin behind this revision; else with what is new", whole
)
WATCH_LIMIT: Final = option("--limit", "N", "end after so many changes; else go on for ever", whole)
AFTER: Final = option("--after", "KEY", "begin behind this key")
GO_ON: Final = flag("--resume", "go on with the FILE.part that an export left unfinished")
STATE: Final = option(
    "--resume",
    "STATE",
    "a file that keeps how far it has got: the same command once more goes on from there",
)
INTERVAL: Final = option(
    "--interval", "TIME", "from one view to the next: seconds, or such as 500ms; else 1",
    durations.argument,
)  # fmt: skip
VIEWS: Final = option("--limit", "N", "end after so many views; else go on for ever", whole)
SHELL: Final = Argument(
    "SHELL",
    ("shell",),
    {"metavar": "SHELL", "choices": ("bash", "zsh", "fish"), "help": "bash, zsh or fish"},
)

OLD: Final = Argument("OLD", ("old",), {"metavar": "OLD", "help": "the key that there is"})
NEW: Final = Argument("NEW", ("new",), {"metavar": "NEW", "help": "the key that it gets"})
FORCE: Final = flag("--force", "replace NEW where it is there; else that is a CONFLICT")

_TABLE: Final = (
    Command(
        "rename", "give an entry another key, all or nothing; its time to live goes with it",
        "rename a alpha", (OLD, NEW, FORCE, DURABLE), run=program("renaming"),
        more=("rename alpha a --force",),
    ),
    Command(
        "history", "print the changes of one key: revision, op, key, value as JSON",
        "history visits", (KEY,), run=program("history"),
    ),
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
