"""The commands of ``zkv-cli`` that are not ops: a table like that of `zkv.cli.ops`."""

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
        "help": "the file; - or nothing: standard input or output",
    },
)
FORMAT: Final = Argument(
    "[--format json|msgpack]",
    ("--format",),
    {
        "metavar": "FORMAT",
        "choices": ("json", "msgpack"),
        "help": "json: one object per line; msgpack: one map after the other; default: msgpack if "
        "the name of FILE ends in .msgpack, else json",
    },
)
WATCH_SINCE: Final = option(
    "--since", "REV", "begin after this revision; default: only new changes", whole
)
WATCH_LIMIT: Final = option("--limit", "N", "stop after N changes; default: never", whole)
AFTER: Final = option("--after", "KEY", "begin after this key")
GO_ON: Final = flag("--resume", "continue with the FILE.part of an unfinished export")
STATE: Final = option(
    "--resume",
    "STATE",
    "a file for the progress: the same command, run again, continues from there",
)
FROM: Final = Argument(
    "[--from URL]",
    ("--from",),
    {
        "metavar": "URL",
        "dest": "source",
        "help": "instead of FILE another system: redis://HOST:PORT/DB, rediss:, unix:, "
        "etcd://HOST:PORT,HOST:PORT, dbm:PATH or shelve:PATH; run again, it goes on",
    },
)
FROM_PREFIX: Final = option("--prefix", "PREFIX", "with --from: only keys with this prefix")
FORM: Final = Argument(
    "[--values FORM]",
    ("--values",),
    {
        "metavar": "FORM",
        "choices": ("bin", "text", "json", "msgpack", "pickle"),
        "help": "with --from: what values are there: bytes, UTF-8 text, JSON, msgpack or, in a "
        "file, pickles, which run what is in them; default: bin",
    },
)
STRUCTURES: Final = flag(
    "--structures", "with --from redis: also hashes, lists, sets and sorted sets, as values"
)
INTERVAL: Final = option(
    "--interval", "TIME", "between two views: seconds, or such as 500ms; default: 1",
    durations.argument,
)  # fmt: skip
VIEWS: Final = option("--limit", "N", "stop after N views; default: never", whole)
SHELL: Final = Argument(
    "SHELL",
    ("shell",),
    {"metavar": "SHELL", "choices": ("bash", "zsh", "fish"), "help": "bash, zsh or fish"},
)

OLD: Final = Argument("OLD", ("old",), {"metavar": "OLD", "help": "the present key"})
NEW: Final = Argument("NEW", ("new",), {"metavar": "NEW", "help": "the new key"})
FORCE: Final = flag("--force", "replace an existing NEW; default: CONFLICT if NEW exists")

_TABLE: Final = (
    Command(
        "rename", "give an entry another key, all or nothing; it keeps its time to live",
        "rename a alpha", (OLD, NEW, FORCE, DURABLE), run=program("renaming"),
        more=("rename alpha a --force",),
    ),
    Command(
        "history", "print the changes of one key: revision, op, key, value as JSON",
        "history visits", (KEY,), run=program("history"),
    ),
    Command(
        "watch", "print changes as they happen: revision, op, key, value as JSON",
        "watch --since 0 --limit 1",
        (PREFIX, WATCH_SINCE, WATCH_LIMIT), run=program("watch"),
    ),
    Command(
        "export", "write entries to a file, for import", "export entries.jsonl",
        (FILE, CHANGED_PREFIX, AFTER, FORMAT, GO_ON), run=program("exporting"),
    ),
    Command(
        "import", "store the entries of a file, or of another system", "import entries.jsonl",
        (FILE, FORMAT, STATE, FROM, FROM_PREFIX, FORM, STRUCTURES), run=program("importing"),
        more=("import --from redis://127.0.0.1:6379/0 --values text",),
    ),
    Command(
        "top", "show the server's activity live", "top --limit 2 --interval 0.1",
        (INTERVAL, VIEWS), run=program("top"),
    ),
    Command(
        "completion", "print a completion script for your shell", "completion bash",
        (SHELL,), run=program("completion"),
    ),
)  # fmt: skip

PROGRAMS: Final = {command.name: command for command in _TABLE}
"""Lower-case name -> command."""
