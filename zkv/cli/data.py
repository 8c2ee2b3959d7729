"""The commands of ``zkv`` for data directories: check, repair, dump, backup and restore.

`check` and `restore` also take an archive.

Results go to standard output; messages and progress go to standard error. Exit status: 0 no fault;
1 a fault was found, or nothing was done; 2 wrong usage, or an archive is damaged, or does not have
the moment; as usual in a shell, 130 after Ctrl-C, and 141 if standard output was closed by its
reader.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from zkv import __version__, system
from zkv.cli.dumped import commit_line, entry_line
from zkv.cli.values import to_bytes
from zkv.durability import archive, backup, dump, moments, repair, restoring
from zkv.durability.check import Finding, Level, Survey, count, survey
from zkv.durability.files import Files
from zkv.durability.frozen_view import FrozenView, require_data
from zkv.durability.layout import Layout
from zkv.durability.moments import PointInTime
from zkv.errors import DataDirError, LockedError, ZkvError
from zkv.streams import complain, forget

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from zkv.durability.repair import Plan
    from zkv.keyspace import StoredEntry

FAULT = 1
USAGE = 2
LONGEST_ANSWER = 100


def run(options: argparse.Namespace) -> int:
    """Run the command ``options.verb``; every error becomes a line and an exit status."""
    if sys.stdout is None:
        return _complain("standard output is closed")
    _show_progress()
    system.raise_file_limit()  # Every segment is open at once.
    try:
        status = _ACTIONS[options.verb](options)
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
    """Write the package's log, which reports the progress of long operations, to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("zkv: %(message)s"))
    log = logging.getLogger("zkv")
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def _print(line: str) -> None:
    sys.stdout.buffer.write(to_bytes(line))


def _say(line: str) -> None:
    """Print a line at once."""
    _print(line)
    sys.stdout.buffer.flush()


def _complain(message: str, status: int = FAULT) -> int:
    complain("zkv", message)
    return status


# check. -------------------------------------------------------------------------------------


def _check(options: argparse.Namespace) -> int:
    files, directory = Files(), options.directory
    if archive.is_archive(files, directory):
        return _check_archive(files, directory)
    with FrozenView(files, directory) as view:
        if view.holder is not None:
            _say_finding(Finding(Level.NOTE, directory, _running(view.holder)))
        found = survey(view, _say_finding)
    _say(_summary(found))
    return FAULT if found.faults else 0


def _check_archive(files: Files, directory: Path) -> int:
    """Check each part of an archive."""
    holder = archive.holder(files, directory)
    if holder is not None:
        _say_finding(Finding(Level.NOTE, directory, _running(holder)))
    names = archive.part_names(files, directory)
    faults = 0
    for name in names:
        part = archive.read_part(files, directory / name)
        with FrozenView(files, directory / name) as view:
            if name == names[-1]:
                view.holder = holder
            found = survey(view, _say_finding)
            has = moments.span(view, part.until)
        faults += len(found.faults)
        _say(f"{name}: {has}; {_faults(found)}")
    _say(f"{count(len(names), 'part', 'parts')}, {count(faults, 'fault', 'faults')}")
    return FAULT if faults else 0


def _faults(found: Survey) -> str:
    return count(len(found.faults), "fault", "faults") if found.faults else "no fault"


def _running(holder: str) -> str:
    process = f"process {holder}" if holder else "a process"
    return f"{process} is using this data directory; it is checked as it is now"


def _say_finding(finding: Finding) -> None:
    _say(f"{finding.level.value:5}  {finding.path}: {finding.text}")


def _summary(found: Survey) -> str:
    entries = count(found.entries, "entry", "entries") if found.entries is not None else "?"
    line = f"revision {found.rev}, {entries}, {_faults(found)}"
    if not found.serves:
        return f"{line}: a server does not start with this; see `zkv repair`"
    if found.faults:
        return f"{line}: a server starts with this, but a later repair may lack data"
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
            return _complain("nothing was done")
        aside = repair.carry_out(files, layout, plan, name, now)
        with FrozenView(files, layout.directory) as view:
            found = survey(view)
    if found.faults or found.rev != plan.rev:
        return _complain(f"{layout.directory}: repaired, but not as planned; see `zkv check`")
    _say(f"repaired: {_summary(found)}; lost: {plan.loss()}; the originals are in {aside}")
    return 0


def _aside_name(taken: list[str], now: float) -> str:
    """The name of a new directory for the originals."""
    name = time.strftime("damaged-%Y%m%dT%H%M%SZ", time.gmtime(now))
    others = sum(each.startswith(name) for each in taken)
    return f"{name}-{others + 1}" if others else name


def _say_plan(plan: Plan, layout: Layout, name: str) -> None:
    for path in plan.aside:
        _say(f"aside  {path}, to {layout.directory / name}")
    _say(f"lost   {plan.loss()}")
    if plan.forgets:
        _say(
            "note   if the unreadable part had replies to exactly-once requests that changed "
            "nothing, they are lost"
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
    except OSError:  # Standard input cannot be read, so nobody has agreed.
        return False
    return answer.strip().lower() in {b"y", b"yes"}


# dump. --------------------------------------------------------------------------------------


def _dump(options: argparse.Namespace) -> int:
    with FrozenView(Files(), options.directory) as view:
        if options.log:
            for commit in dump.log(view, options.at_rev):
                _print(commit_line(commit))
            entries: Mapping[str, StoredEntry] = {}
        elif options.at_rev is None:
            entries = dump.newest_state(view)
        else:
            entries = dump.state_at(view, options.at_rev)
    for key, entry in sorted(entries.items()):
        _print(entry_line(key, entry))
    sys.stdout.flush()
    # Not on standard output, where each line is an entry or a commit.
    which = " and ".join(map(str, sorted(view.versions))) or "unknown"
    complain("zkv", f"{options.directory}: format {which}; dumped by zkv {__version__}")
    return 0


# backup and restore. ------------------------------------------------------------------------


def _backup(options: argparse.Namespace) -> int:
    if (options.primary is None) == (options.directory is None):
        return _complain("backup takes either a DIR or --from ENDPOINT, and a TARGET", USAGE)
    if options.primary is None:
        found = backup.create(Files(), options.directory, options.target)
    else:
        found = _copy(options)
    _say(f"backed up to {options.target}: {_summary(found)}")
    return 0


def _copy(options: argparse.Namespace) -> Survey:
    from zkv.cli.upstream import upstream
    from zkv.replication.copying import copy_from
    from zkv.replication.place import new_member

    with closing(upstream(options, options.primary)) as source:
        return copy_from(Files(), source, new_member(), options.target)


def _restore(options: argparse.Namespace) -> int:
    files, source, target = Files(), options.source, options.directory
    moment = PointInTime(options.at_rev, options.at_time)
    is_archive = archive.is_archive(files, source)
    if not is_archive and moment == PointInTime() and not options.up_to_damage:
        found = backup.restore(files, source, target, options.above)
        _say(f"restored to {target}: {_summary(found)}")
        return 0
    try:
        restored = restoring.restore_moment(
            files, source, target, moment, options.above, options.up_to_damage
        )
    except LockedError:
        raise
    except DataDirError as error:
        return _complain(str(error), USAGE)
    _say(
        f"restored to {target}: the store as it was at revision {restored.rev}; "
        f"{_summary(restored.survey)}"
    )
    return 0


_ACTIONS: Final = {
    "check": _check, "repair": _repair, "dump": _dump, "backup": _backup, "restore": _restore
}  # fmt: skip
