"""``zkv``'s verbs for data directories: check, repair, dump, backup and restore.

Results go to standard output; messages, and how far long work has got, to standard error. Exit
status: 0 fine; 1 a fault was found, or nothing was done; 2 usage; as usual in a shell, 130 after
Ctrl-C, and 141 where nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import logging
import resource
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from zkv.cli import value_writer
from zkv.cli.values import to_bytes, to_json, to_object
from zkv.durability import backup, dump, repair
from zkv.durability.check import Finding, Level, Survey, count, survey
from zkv.durability.files import Files
from zkv.durability.frozen_view import FrozenView, require_data
from zkv.durability.layout import Layout
from zkv.errors import ZkvError
from zkv.keyspace.change import REMOVALS
from zkv.streams import complain, forget

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.durability.repair import Plan
    from zkv.keyspace import Commit, KeyChange, StoredEntry

FAULT = 1
LONGEST_ANSWER = 100


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs to the command line; each sets ``run``, a function of the parsed options."""
    parser = _add(verbs, "check", _check, "look for faults in a data directory", CHECK)
    _add_directory(parser)

    parser = _add(verbs, "repair", _repair, "make a damaged data directory serve again", REPAIR)
    _add_directory(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")

    parser = _add(verbs, "dump", _dump, "print a data directory as JSON lines", DUMP)
    _add_directory(parser)
    parser.add_argument(
        "--at-rev",
        type=_revision,
        metavar="N",
        help="the entries as of revision N; with --log, the changes up to it",
    )
    parser.add_argument("--log", action="store_true", help="the log instead of the entries")

    parser = _add(verbs, "backup", _backup, "copy the data of a server, running or not", BACKUP)
    _add_directory(parser)
    parser.add_argument("target", type=_path, metavar="TARGET", help="absent or empty")

    parser = _add(verbs, "restore", _restore, "make a data directory from a backup", RESTORE)
    parser.add_argument("source", type=_path, metavar="SOURCE", help="the backup")
    parser.add_argument("directory", type=_path, metavar="DIR", help="absent or empty")
    parser.add_argument(
        "--above", type=_revision, default=0, metavar="REV",
        help="the newest revision that clients may have seen, if it is above the backup's, such as "
        "that of a store that was restored from the same backup before",
    )  # fmt: skip


CHECK = """\
Read every file of a data directory, say all that is found, and change nothing. The exit status is 1
where anything is damaged or missing, also what a server does without. What a crash leaves behind
is no fault: a torn tail, which the next start cuts off, or a file that was not finished. It may be
run beside a server: what that is just writing is no fault either."""

REPAIR = """\
Make a damaged data directory one that a server starts with. What is going to be done, and which
revisions are lost, is said first, and asked for. Where the newest snapshot is damaged and the log
is whole, nothing is lost. Where the log is damaged, the store becomes what it was before. The
originals are kept, in DIR/damaged-TIME. Lost revisions do not come again: the repaired store has a
revision above theirs, so that every client that follows the changes notices, and reads it anew."""

DUMP = """\
Print the entries of a data directory, in the order of their keys, or its log: a JSON object a line.
What JSON lacks is shown as zkv-cli shows it, such as {"$bin": "<base64>"}; zkv-cli import reads the
entries. It may be run beside a server, and then shows also what that has written and not yet
acknowledged."""

BACKUP = """\
Copy the data in DIR to TARGET, also while a server runs. The copy is the store at one revision,
with every write that was acknowledged before the backup began. It is on disk, and checked, when
this ends. It is a data directory itself: check it, dump it, and restore it to serve it again."""

RESTORE = """\
Check a backup and make a data directory from it, with the same entries and the same remembered
answers of exactly-once writes. The store's revision is raised by 2^32, so that none that was taken
after the backup, and is lost, comes again: clients that follow the changes notice, and read the
store anew. All of the store is held in memory, as a server holds it."""


def _add(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    action: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=summary, description=description)
    parser.set_defaults(run=lambda options: _run(action, options))
    return parser


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=_path, metavar="DIR", help="the data directory")


def _path(word: str) -> Path:
    if not word:
        raise argparse.ArgumentTypeError("the name of a directory must not be empty")
    if "\0" in word:
        raise argparse.ArgumentTypeError(f"{word!r} holds a NUL character")
    return Path(word)


def _revision(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 20):
        raise argparse.ArgumentTypeError(f"{word[:40]!r} is no revision")
    return int(word)


def _run(action: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a verb; every error becomes a line and an exit status."""
    if sys.stdout is None:
        return _complain("standard output is closed")
    _show_progress()
    _allow_open_files()
    try:
        status = action(options)
        sys.stdout.flush()
    except ZkvError as error:
        return _complain(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is None:
            forget(sys.stdout)
        return _complain(f"{error.filename or 'standard output'}: {error.strerror or error}")
    return status


def _show_progress() -> None:
    """Have the package's log, which says how far long readings are, on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("zkv: %(message)s"))
    log = logging.getLogger("zkv")
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def _allow_open_files() -> None:
    """Allow as many open files as may be: every segment is opened at once."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _print(line: str) -> None:
    sys.stdout.buffer.write(to_bytes(line))


def _say(line: str) -> None:
    """Print a line at once."""
    _print(line)
    sys.stdout.buffer.flush()


def _complain(message: str) -> int:
    complain("zkv", message)
    return FAULT


# check. -------------------------------------------------------------------------------------


def _check(options: argparse.Namespace) -> int:
    with FrozenView(Files(), options.directory) as view:
        if view.holder is not None:
            _say_finding(Finding(Level.NOTE, options.directory, _running(view.holder)))
        found = survey(view, _say_finding)
    _say(_summary(found))
    return FAULT if found.faults else 0


def _running(holder: str) -> str:
    process = f"process {holder}" if holder else "a process"
    return f"{process} holds this data directory: read while a server goes on with it"


def _say_finding(finding: Finding) -> None:
    _say(f"{finding.level.value:5}  {finding.path}: {finding.text}")


def _summary(found: Survey) -> str:
    entries = count(found.entries, "entry", "entries") if found.entries is not None else "?"
    faults = count(len(found.faults), "fault", "faults") if found.faults else "no fault"
    line = f"revision {found.rev}, {entries}, {faults}"
    if not found.serves:
        return f"{line}: a server does not start with this; see `zkv repair`"
    if found.faults:
        return f"{line}: a server starts with this, but what a repair needs is not whole"
    return line


# repair. ------------------------------------------------------------------------------------


def _repair(options: argparse.Namespace) -> int:
    files, layout = Files(), Layout(options.directory)
    require_data(files, layout)
    with closing(files.lock(layout.lock)):
        with FrozenView(files, layout.directory) as view:
            found = survey(view)
        plan = repair.make_plan(layout, found)
        if plan is None:
            _say(f"nothing to repair: {_summary(found)}")
            return 0
        for fault in found.faults:
            _say_finding(fault)
        now = time.time()
        name = _aside_name(files.names(layout.directory), now)
        _say_plan(plan, layout, name)
        if not options.yes and not _ask("Carry this out? [y/N] "):
            return _complain("nothing has been done")
        aside = repair.carry_out(files, layout, plan, name, now)
        with FrozenView(files, layout.directory) as view:
            found = survey(view)
    if found.faults or found.rev != plan.rev:
        return _complain(f"{layout.directory}: repaired, but not as planned; see `zkv check`")
    _say(f"repaired: {_summary(found)}; lost: {plan.loss()}; the originals are in {aside}")
    return 0


def _aside_name(taken: list[str], now: float) -> str:
    """A name for a directory that is not there yet."""
    name = time.strftime("damaged-%Y%m%dT%H%M%SZ", time.gmtime(now))
    others = sum(each.startswith(name) for each in taken)
    return f"{name}-{others + 1}" if others else name


def _say_plan(plan: Plan, layout: Layout, name: str) -> None:
    for path in plan.aside:
        _say(f"aside  {path}, to {layout.directory / name}")
    _say(f"lost   {plan.loss()}")
    if plan.forgets:
        _say(
            "note   if the unreadable part had answers to exactly-once requests that changed "
            "nothing, they are forgotten"
        )
    if plan.loses:
        _say(
            f"then   the store as it was at revision {plan.reach}; it gets revision {plan.rev}, "
            f"so that no lost revision is used again"
        )
    else:
        _say(f"then   the store as it was, at revision {plan.rev}")


def _ask(question: str) -> bool:
    sys.stdout.write(question)
    sys.stdout.flush()
    if sys.stdin is None:
        return False
    try:
        answer = sys.stdin.buffer.readline(LONGEST_ANSWER)
    except OSError:  # It cannot be read: nobody has said yes.
        return False
    return answer.strip().lower() in {b"y", b"yes"}


# dump. --------------------------------------------------------------------------------------


def _dump(options: argparse.Namespace) -> int:
    with FrozenView(Files(), options.directory) as view:
        if options.log:
            for commit in dump.log(view, options.at_rev):
                _print(_commit_line(commit))
            return 0
        if options.at_rev is None:
            entries = dump.newest_state(view)
        else:
            entries = dump.state_at(view, options.at_rev)
    for key, entry in sorted(entries.items()):
        _print(_entry_line(key, entry))
    return 0


def _entry_line(key: str, entry: StoredEntry) -> str:
    value = value_writer.write(entry.value)
    fields = {"key": to_json(key), "value": value, "rev": to_json(entry.rev)}
    if entry.expires is not None:
        fields["expires"] = to_json(entry.expires)
    return to_object(fields)


def _commit_line(commit: Commit) -> str:
    changes = ", ".join(map(_change, commit.changes))
    fields = {"rev": to_json(commit.rev), "time": to_json(commit.time), "changes": f"[{changes}]"}
    if commit.once is not None:
        fields["session"] = to_json(commit.once.session)
        fields["seq"] = to_json(commit.once.seq)
        fields["reply"] = value_writer.write(commit.once.reply)
    return to_object(fields)


def _change(change: KeyChange) -> str:
    fields = {"op": to_json(change.op), "key": to_json(change.key)}
    if change.op not in REMOVALS:
        fields["value"] = value_writer.write(bytes(change.value))
    if change.expires is not None:
        fields["expires"] = to_json(change.expires)
    return to_object(fields)


# backup and restore. ------------------------------------------------------------------------


def _backup(options: argparse.Namespace) -> int:
    found = backup.create(Files(), options.directory, options.target)
    _say(f"backed up to {options.target}: {_summary(found)}")
    return 0


def _restore(options: argparse.Namespace) -> int:
    found = backup.restore(Files(), options.source, options.directory, options.above)
    _say(f"restored to {options.directory}: {_summary(found)}")
    return 0
