"""The verbs of ``zkv``, and their options.

The module that carries out a verb is imported when the verb runs: the server starts sooner without
the others, and these also work on systems on which the server does not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zkv import durations, keys
from zkv.cli.outcome import LEADER
from zkv.cli.settings import add_flags
from zkv.defaults import DEFAULT_ENDPOINT
from zkv.endpoint import check_option, named_by_environment
from zkv.errors import StartupError
from zkv.system import lacking_for_server
from zkv.users.rights import ADMIN_RIGHTS

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

SIGNALS: Final = (
    "Signals: SIGTERM or SIGINT saves everything and stops the server, a second one kills it; "
    "SIGHUP reopens the log file and reads the settings again; SIGUSR1 writes the stack of each "
    "thread to the log."
)
FOLLOW: Final = (
    "Run a standby. It copies the store of a primary into a data directory of its own, and then "
    "follows its log. It answers reads with `stale` or `min_rev`, publishes a feed, and may take "
    "over: see `zkv promote`. The key with which it connects is replication.key_file, the keys of "
    "the primary are replication.server_keys. A directory that holds another history of the same "
    "store, as that of an old primary, is brought into line: what only it had is kept in a file."
)
PROMOTE: Final = (
    "Have the standby at this endpoint take over. Its primary first stops to read and to write, "
    "and from then on sends clients to the standby, also after a restart; the standby applies all "
    "that the primary has answered, and then leads. If that fails, the primary leads on. Where "
    "replication.machines and replication.sync are set, the other machines have to agree, so that "
    "nothing that was acknowledged is missing; then the primary need not be there. The exit "
    "status is 0 if the standby leads, 1 if not, 2 if the arguments are wrong."
)
STORE: Final = "A store of which several members have a copy, and of which the log is in etcd."
FOUND: Final = (
    "Begin a store in etcd. It is the only way in which one begins: a member never makes a store "
    "by itself, as etcd may have lost the one that was there. Without --from it is empty. With it, "
    "its revision goes up by 2^32, and a term begins, as when a backup is restored. Copy the "
    "directory before, if it is to stay as it is; no server may use it meanwhile."
)
LEAVE: Final = (
    "Have the member that a data directory belongs to leave its store. Its server must not run. "
    "The directory is a store of its own then: its revision goes up by 2^32, and a term begins. "
    "If etcd is lost for good, copy the directory with zkv backup, and restore that instead."
)
MEMBER: Final = (
    "The members of such a store. A member that starts declares itself; a name is removed when the "
    "member will not come back."
)
MOST: Final = 10**12
"""The largest number of anything of which the size is estimated."""
LATEST: Final = 253_402_300_799
"""The last second of the year 9999, Unix time."""


def _late(module: str, function: str = "run") -> Callable[[argparse.Namespace], int]:
    """A function of a module of this package, which is imported when it is called."""

    def run(options: argparse.Namespace) -> int:
        status: int = getattr(import_module(f"zkv.cli.{module}"), function)(options)
        return status

    return run


def _late_server(module: str, function: str = "run") -> Callable[[argparse.Namespace], int]:
    """The same for a server. Raises StartupError where none can run."""
    late = _late(module, function)

    def run(options: argparse.Namespace) -> int:
        if lacking := lacking_for_server():
            raise StartupError(f"the server runs on Linux; this system has no {lacking}")
        return late(options)

    return run


def add_serve(verbs: Verbs) -> None:
    """Add ``zkv serve``."""
    parser = verbs.add_parser(
        "serve", help="run a server", description="Run a server.", epilog=SIGNALS
    )
    add_flags(parser)
    parser.add_argument(
        "--wait", choices=(LEADER,), default="",
        help="print READY only once a member leads the store: this one, or one that it follows",
    )  # fmt: skip
    parser.set_defaults(run=_late_server("serving", "serve"))


def add_follow(verbs: Verbs) -> None:
    """Add ``zkv follow``."""
    parser = verbs.add_parser(
        "follow",
        help="run a standby: a copy of another server, on this machine",
        description=FOLLOW,
    )
    parser.add_argument(
        "primary", metavar="ENDPOINT", type=_endpoints,
        help="where the primary listens; commas separate it from others that may take its place",
    )  # fmt: skip
    add_flags(parser)
    parser.set_defaults(run=_late_server("follow"), wait="")


def add_promote(verbs: Verbs) -> None:
    """Add ``zkv promote``."""
    parser = verbs.add_parser(
        "promote", help="have a standby take over from its primary", description=PROMOTE
    )
    _add_endpoint(parser)
    parser.add_argument(
        "--force", action="store_true",
        help="take over whatever the others say: what the standby does not have yet is lost",
    )  # fmt: skip
    parser.set_defaults(run=_late("promote"))


def add_store(verbs: Verbs) -> None:
    """Add ``zkv store`` and ``zkv member``."""
    commands = _group(verbs, "store", "begin a store that several members share, in etcd", STORE)
    found = commands.add_parser("found", help="begin a store", description=FOUND)
    found.add_argument(
        "--from", dest="source", type=Path, metavar="DIR",
        help="begin with what this data directory holds; it becomes that of the first member",
    )  # fmt: skip
    _add_store_place(found, "found")
    leave = commands.add_parser("leave", help="have a member leave the store", description=LEAVE)
    leave.add_argument(
        "--data-dir", metavar="DIR", help="its data directory; else the one of the settings"
    )
    _add_store_place(leave, "leave")

    commands = _group(verbs, "member", "see and change who is a member of such a store", MEMBER)
    show = commands.add_parser(
        "list", help="print the members",
        description="Print the members, a line each, with tabs between: name; leader, follower, or "
        "declared if it was never there; endpoints; the log number up to which it has applied the "
        "log, when it told so last; how many seconds ago that was, by the clocks of both machines.",
    )  # fmt: skip
    _add_store_place(show, "members")
    for name, what in (("add", "declare a member that is to come"), ("remove", "remove a member")):
        each = commands.add_parser(name, help=what, description=f"{what.capitalize()}.")
        each.add_argument("name", metavar="NAME", help="the member")
        _add_store_place(each, name)


def _group(verbs: Verbs, name: str, what: str, description: str) -> Verbs:
    parser = verbs.add_parser(name, help=what, description=description)
    return parser.add_subparsers(required=True, metavar="COMMAND")


def _add_store_place(parser: argparse.ArgumentParser, function: str) -> None:
    parser.add_argument(
        "url", metavar="URL", nargs="?",
        help="etcd://HOST:PORT[,HOST:PORT...]/PREFIX; else the one that the settings name",
    )  # fmt: skip
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings; see config.toml")
    parser.set_defaults(run=_late("store", function))


def add_doctor(verbs: Verbs) -> None:
    """Add ``zkv doctor``."""
    parser = verbs.add_parser(
        "doctor",
        help="check a running server, and advise what to do",
        description="Check a running server from the outside in: endpoint, round trips, versions, "
        "clocks, durability, limits, change feed, who can reach it, and on the same machine its "
        "disk. Before that, check the key in ZKV_KEY_FILE, and with --config the keys and users of "
        "the server. Nothing is changed. The exit status is 0 if there is nothing to do, 1 if "
        "there is, 3 if no answer comes in time.",
    )
    _add_endpoint(parser)
    parser.add_argument(
        "--latency", action="store_true", help="instead: why requests were slow, from the slow log"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE",
        help="the settings of the server: also check its keys and its users",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="an object for each finding")
    parser.set_defaults(run=_late("doctor"))


def add_metrics(verbs: Verbs) -> None:
    """Add ``zkv metrics``."""
    parser = verbs.add_parser(
        "metrics",
        help="serve the metrics of a running server by HTTP",
        description="Serve /metrics, /healthz, /readyz and /readyz?for=write of a server that does "
        "not do so itself. The server is asked for its figures at each request. The command runs "
        "until SIGTERM or SIGINT. It needs the Python package prometheus-client.",
    )
    _add_endpoint(parser)
    parser.add_argument(
        "--listen", metavar="HOST:PORT", default="127.0.0.1:9555",
        help="where to serve (port * = a free one); else 127.0.0.1:9555",
    )  # fmt: skip
    parser.set_defaults(run=_late("metrics"))


def add_web(verbs: Verbs) -> None:
    """Add ``zkv web``."""
    parser = verbs.add_parser(
        "web",
        help="serve a console for the browser, and the store by HTTP",
        description=WEB,
    )
    _add_endpoint(parser)
    parser.add_argument(
        "--listen", metavar="HOST:PORT", default="127.0.0.1:8080",
        help="where to serve (port * = a free one); else 127.0.0.1:8080",
    )  # fmt: skip
    parser.add_argument(
        "--read-only", action="store_true", help="refuse every request that changes something"
    )
    parser.add_argument(
        "--tokens", metavar="FILE",
        help="who may log in: maps the hash of each token to the key file of a user",
    )  # fmt: skip
    parser.add_argument(
        "--add-token", metavar="KEYFILE",
        help="add a token for a user's key file to FILE, print it, and end",
    )  # fmt: skip
    parser.add_argument(
        "--public-url", metavar="URL",
        help="where browsers find it behind a proxy, such as https://ops.example.org/zkv/",
    )  # fmt: skip
    parser.add_argument(
        "--insecure", action="store_true",
        help="listen where other machines can reach it, without TLS",
    )  # fmt: skip
    parser.set_defaults(run=_late("web"))


def add_size(verbs: Verbs) -> None:
    """Add ``zkv size``."""
    parser = verbs.add_parser(
        "size",
        help="estimate memory, disk and files of a server, before there is one",
        description=SIZE,
    )
    for option, name, default, summary in (
        ("--keys", "N", None, "the number of keys, such as 1e6"),
        ("--key", "BYTES", 20, "the length of a key"),
        ("--value", "BYTES", 100, "the length of a value, as msgpack"),
        ("--expiring", "N", 0, "so many of the keys expire"),
        ("--writes", "N", 100, "writes a second, one key each"),
        ("--changes", "N", None, "changes that the history holds; else as many as it may hold"),
        ("--sessions", "N", 0, "sessions of exactly-once clients; the writes are theirs then"),
        ("--connections", "N", 100, "connections of clients"),
        ("--followers", "N", 0, "connections of followers to the feed"),
    ):
        parser.add_argument(
            option, metavar=name, type=_amount, default=default, required=option == "--keys",
            help=summary if default is None else f"{summary}; else {default}",
        )  # fmt: skip
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings; see config.toml")
    parser.add_argument("--json", action="store_true", help="one object, in bytes")
    parser.set_defaults(run=_late("size"))


def _endpoints(text: str) -> list[str]:
    try:
        return check_option(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-e", "--endpoint", metavar="ENDPOINT",
        default=named_by_environment(),
        help=f"where the server listens; else ZKV_ENDPOINT, else {DEFAULT_ENDPOINT}",
    )  # fmt: skip
    _add_keys(parser)
    parser.add_argument(
        "--timeout", metavar="TIME", type=durations.argument, default=5.0,
        help="how long to wait for an answer: seconds, or such as 500ms; else 5",
    )  # fmt: skip


def add_config(verbs: Verbs) -> None:
    """Add ``zkv config``."""
    parser = verbs.add_parser(
        "config",
        help="show the settings in force and where they come from, or check a file",
        description=CONFIG,
    )
    add_flags(parser)
    parser.set_defaults(run=_late("config"), file=None)
    checks = parser.add_subparsers(metavar="check", title="other command")
    check = checks.add_parser(
        "check",
        help="say whether a file of settings is good",
        description="Check a file of settings by itself, without the environment. The exit status "
        "is 0 if it is good; otherwise 1, and each fault is a line.",
    )
    check.add_argument("file", type=Path, metavar="FILE", help="see config.toml")


def add_keygen(verbs: Verbs) -> None:
    """Add ``zkv keygen``."""
    parser = verbs.add_parser(
        "keygen",
        help="make a key pair, for a server or a client",
        description="Make a key pair. The secret key is written to FILE, which only its owner may "
        "read; the public key is printed. Each server and each client has a pair of its own.",
    )
    parser.add_argument("file", metavar="FILE", help="must not exist: a key is never overwritten")
    parser.set_defaults(run=_late("keygen"))


def add_user(verbs: Verbs) -> None:
    """Add ``zkv user``."""
    parser = verbs.add_parser(
        "user",
        help="add, list and remove users: who may connect, and what each may do",
        description="Edit the file of the users, which the setting security.users names. What else "
        "is written in it stays. A running server reads it again on SIGHUP.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add = commands.add_parser(
        "add", help="add a user, or keys and rights to one who is there", description=USER_ADD
    )
    add.add_argument("name", metavar="NAME", help="small letters a to z, digits, - and _")
    for option, name, kind, summary in (
        ("--key", "KEY", str, "a public key, as zkv keygen prints it"),
        ("--uid", "N", _whole_number, "the number of a system user, for ipc endpoints"),
        ("--read", "PREFIX", str, "keys with this prefix may be read; empty = all"),
        ("--write", "PREFIX", str, "keys with this prefix may be read and written; empty = all"),
    ):
        add.add_argument(
            option, action="append", default=[], type=kind, metavar=name,
            help=f"{summary}; may be repeated",
        )  # fmt: skip
    add.add_argument(
        "--admin", action="append", default=[], choices=(*ADMIN_RIGHTS, "all"),
        help="monitor: see the statistics; operate: SNAPSHOT and END; replicate: copy the store; "
        "all: all of these; may be repeated",
    )  # fmt: skip
    add.add_argument(
        "--max-bytes", type=_whole_number, metavar="N",
        help="the most bytes that entries under the prefixes to write may take; 0 = no limit",
    )  # fmt: skip
    add.add_argument(
        "--max-requests", type=_whole_number, metavar="N",
        help="the most requests per second; 0 = no limit",
    )  # fmt: skip
    add.add_argument(
        "--max-in-flight-bytes", type=_whole_number, metavar="N",
        help="the most bytes of replies that may wait for the user's connections; 0 = no limit",
    )  # fmt: skip
    _add_users_file(add, "add")

    show = commands.add_parser(
        "list", help="print the users", description="Print the users, in the format of the file."
    )
    _add_users_file(show, "show")

    remove = commands.add_parser(
        "remove", help="remove a user", description="Remove a user. The last one cannot be removed."
    )
    remove.add_argument("name", metavar="NAME", help="the user")
    _add_users_file(remove, "remove")


def _add_users_file(parser: argparse.ArgumentParser, function: str) -> None:
    parser.add_argument(
        "--users", metavar="FILE", help="the file of the users; else the one that the settings name"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings; see config.toml")
    parser.set_defaults(run=_late("users", function))


def add_data_verbs(verbs: Verbs) -> None:
    """Add the commands for data directories."""
    parser = _add(verbs, "check", "look for faults in a data directory", CHECK)
    _add_directory(parser)

    parser = _add(verbs, "repair", "repair a damaged data directory", REPAIR)
    _add_directory(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")

    parser = _add(verbs, "dump", "print a data directory as JSON lines", DUMP)
    _add_directory(parser)
    parser.add_argument(
        "--at-rev",
        type=_revision,
        metavar="N",
        help="the entries as of revision N; with --log, the changes up to it",
    )
    parser.add_argument("--log", action="store_true", help="the log instead of the entries")

    parser = _add(verbs, "backup", "copy the data of a server, running or not", BACKUP)
    parser.add_argument(
        "directory", type=_path, metavar="DIR", nargs="?", help="the data directory"
    )
    parser.add_argument("target", type=_path, metavar="TARGET", help="absent or empty")
    _add_primary(parser, required=False)

    parser = _add(verbs, "restore", "make a data directory from a backup", RESTORE)
    parser.add_argument("source", type=_path, metavar="SOURCE", help="the backup, or the archive")
    parser.add_argument("directory", type=_path, metavar="DIR", help="absent or empty")
    parser.add_argument(
        "--above", type=_revision, default=0, metavar="REV",
        help="the newest revision that clients may have seen, if it is above the backup's: for "
        "example that of a store that was restored from the same backup before",
    )  # fmt: skip
    when = parser.add_mutually_exclusive_group()
    when.add_argument(
        "--at-rev", type=_revision, metavar="N", help="the store as it was at this revision"
    )
    when.add_argument(
        "--at-time", type=_time, metavar="T",
        help="the store as it was at the last commit not after this time, such as "
        "2026-11-30T12:02:59Z, or Unix seconds; without Z or an offset: local time",
    )  # fmt: skip
    parser.add_argument(
        "--up-to-damage", action="store_true",
        help="if damage is on the way, restore what was before it",
    )  # fmt: skip

    parser = verbs.add_parser(
        "archive",
        help="keep the log of a running server, to restore any moment",
        description=ARCHIVE,
    )
    parser.add_argument(
        "archive", type=_path, metavar="ARCHIVE", help="a directory; made if absent"
    )
    _add_primary(parser, required=True)
    parser.add_argument(
        "--keep", metavar="TIME", type=durations.positive_argument,
        help="every moment within this time can be restored, such as 7d; what is older is "
        "removed; else everything is kept",
    )  # fmt: skip
    parser.set_defaults(run=_late("archive"))


CONFIG = """\
Show the settings with which zkv serve would start here, given the same flags, as a file like
config.toml. A comment beside each says where it comes from: a line of the file, a variable, a flag
or the default. Flags override the environment, and the environment overrides the file. The variable
of a setting is ZKV_CFG_SECTION__NAME, such as ZKV_CFG_SERVER__WORKERS."""

SIZE = """\
Estimate what a server with such a store takes: what it counts, which limits.max_memory bounds; what
the process takes; the disk, the number of open files; and the settings that fit. No server is asked
and nothing is written. docs/sizing.md says where the figures come from."""

WEB = """\
Serve a page that shows what a server does and holds, and an HTTP API. The command is a client of
the server at ENDPOINT, which enforces the rights of users. It runs until SIGTERM or SIGINT. Without
--tokens, it prints a token on the terminal, with which one can log in until it ends. It needs the
Python packages starlette and uvicorn."""

USER_ADD = """\
Add a user. If it is there already, it gets the keys, uids, prefixes and rights in addition to those
that it has. In a shell, keys need single quotes."""

CHECK = """\
Read every file of a data directory, report all findings, and change nothing. The exit status is 1
if anything is damaged or missing, even if a server starts without it. The traces of a crash are not
faults: a torn tail, which the next start cuts off, or an unfinished file. The command may run while
a server uses the directory: data that the server is writing is not a fault either."""

REPAIR = """\
Repair a damaged data directory so that a server starts with it. The command shows its plan and the
revisions that will be lost, and asks before it does anything. If only a snapshot is damaged and the
log is intact, nothing is lost. If the log is damaged, the store goes back to its state before the
damage. The originals are kept in DIR/damaged-TIME. Lost revisions are not used again: the repaired
store gets a revision above them, so clients that follow the changes notice, and read it again."""

DUMP = """\
Print the entries of a data directory, ordered by key, or its log: one JSON object per line. Types
that JSON lacks are shown as zkv-cli shows them, such as {"$bin": "<base64>"}; zkv-cli import reads
the entries. The command may run while a server uses the directory, and then also shows writes that
are not acknowledged yet."""

BACKUP = """\
Copy the data in DIR, or of the server at ENDPOINT, to TARGET; a server may be using DIR. The copy
is the store at one revision, with every write that was acknowledged before the backup began. When
the command ends, the copy is on disk and has been checked. It is a data directory itself: check it,
dump it, and restore it to serve it again. A server with users gives its store to who has the right
to replicate."""

ARCHIVE = """\
Follow a running server, and keep its log and snapshots in ARCHIVE, until SIGTERM or SIGINT. zkv
restore makes a store from it as it was at any moment. The command prints READY once it archives. It
goes on where it was after a restart, a lost connection or a full disk, and follows a promotion if
ENDPOINT names both servers. Where the server no longer has what comes next, or has another history,
it begins a new part beside the old one, and says so. A server with users gives its store to who has
the right to replicate. The exit status is 0 after a signal, 1 if the end could not be put on disk,
2 if the command could not start."""

RESTORE = """\
Check a backup or an archive and make a data directory from it, with the same entries and the same
remembered replies to exactly-once writes: the newest ones, or those of a moment. The store's
revision becomes 2^32 higher, so that no revision that was taken after that, and is lost, is used
again: clients that follow the changes notice, and read the store again. The command holds the whole
store in memory, as a server does. With an archive or a moment, the exit status is 2 if there is
damage on the way, and the message says what can be reached, or if the moment is not there."""


def _add(verbs: Verbs, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=summary, description=description)
    parser.set_defaults(run=_late("data"), verb=name)
    return parser


def _add_keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server-key", metavar="KEY", type=keys.argument,
        help="the public key of the server, for a server with CURVE; else ZKV_SERVER_PUBLIC_KEY",
    )  # fmt: skip
    parser.add_argument(
        "--key-file", metavar="FILE",
        help="the file with your own secret key; else ZKV_KEY_FILE, else a new key",
    )  # fmt: skip


def _add_primary(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--from", dest="primary", metavar="ENDPOINT", type=_endpoints, required=required,
        help="where the server listens; commas separate it from others that may take its place",
    )  # fmt: skip
    _add_keys(parser)


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=_path, metavar="DIR", help="the data directory")


def _path(word: str) -> Path:
    if not word:
        raise argparse.ArgumentTypeError("the name of a directory must not be empty")
    if "\0" in word:
        raise argparse.ArgumentTypeError(f"{word!r} contains a NUL character")
    return Path(word)


def _whole_number(word: str, kind: str = "whole number") -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 20):
        raise argparse.ArgumentTypeError(f"{word[:40]!r} is not a {kind}")
    return int(word)


def _amount(word: str) -> int:
    try:
        number = float(word)
    except ValueError:
        number = -1.0
    if not (0 <= number <= MOST and number.is_integer()):
        raise argparse.ArgumentTypeError(
            f"{word[:40]!r} is not a whole number from 0 to {MOST:,}, such as 5000 or 1e6"
        )
    return int(number)


def _time(word: str) -> int:
    """Return a time in Unix ms."""
    try:
        seconds = float(word)
    except ValueError:
        try:
            seconds = datetime.fromisoformat(word).timestamp()
        except (ValueError, OverflowError):
            seconds = -1.0
    if not 0 <= seconds <= LATEST:
        raise argparse.ArgumentTypeError(
            f"{word[:40]!r} is not a time such as 2026-11-30T12:02:59Z or 1796040179"
        )
    return round(seconds * 1000)


def _revision(word: str) -> int:
    return _whole_number(word, "revision")
