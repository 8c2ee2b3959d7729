"""``zkv store`` and ``zkv member``: begin and leave a replicated store, and see its members.

Exit status: 0 done; 1 not done, such as that there is a store already; 2 wrong usage, or etcd does
not answer.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from zkv import config
from zkv.cli.output import write
from zkv.cli.settings import read_file_and_environment
from zkv.cli.values import to_bytes
from zkv.cluster.founding import found_from
from zkv.cluster.founding import leave as leave_store
from zkv.cluster.joining import found as found_store
from zkv.cluster.joining import shared_log
from zkv.cluster.observer import members_in, seconds_told
from zkv.cluster.records import MemberRecord
from zkv.durability.files import Files
from zkv.errors import ConfigError, DataDirError, ReadOnly
from zkv.etcd.errors import EtcdError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zkv.cluster.observer import MemberSeen
    from zkv.cluster.shared_log import SharedLog
    from zkv.config import Settings


def found(options: argparse.Namespace) -> int:
    """Begin a store in etcd, empty or with what a directory holds. Raises StartupError."""
    settings = _settings(options)
    with _shared_log(settings) as log:
        if options.source is not None:
            return _found_from(options.source, log, settings)
        identity = found_store(log, settings.limits, settings.cache)
    write(to_bytes(f"store {identity} begins, empty: start its members with {settings.store.url}"))
    return 0


def _found_from(directory: Path, log: SharedLog, settings: Settings) -> int:
    try:
        file = found_from(Files(), directory, log, settings)
    except ReadOnly as error:
        raise DataDirError(f"{directory}: {error.message}") from error
    write(to_bytes(
        f"store {file.store} begins with what is in {directory}, which is the directory of its "
        f"first member now, {file.member}: start that with {settings.store.url}, then the others "
        f"in empty directories. Until another member has a snapshot, only this machine has the data"
    ))  # fmt: skip
    return 0


def leave(options: argparse.Namespace) -> int:
    """Have the member of a directory, which does not run, leave its store. Raises StartupError."""
    settings = _settings(options)
    directory = Path(options.data_dir or settings.durability.data_dir or "")
    with _shared_log(settings) as log:
        try:
            left = leave_store(Files(), directory, log, settings)
        except ReadOnly as error:
            raise DataDirError(f"{directory}: {error.message}") from error
    if left.head is None:
        write(to_bytes(f"the store of {left.member} is not in etcd: nothing was changed there"))
    elif left.head > left.lsn:
        write(to_bytes(
            f"{directory} has the log up to number {left.lsn} only, and etcd up to {left.head}"
        ))  # fmt: skip
    if left.head is not None and not left.others:
        write(to_bytes("it was the last member: nobody else has a snapshot of the store in etcd"))
    write(to_bytes(
        f"{left.member} has left: {directory} is a store of its own, from revision {left.rev} on; "
        f"start it without store.url"
    ))  # fmt: skip
    return 0


def members(options: argparse.Namespace) -> int:
    """Print the members, a line each. Raises StartupError."""
    with _shared_log(_settings(options)) as log:
        log.look()
        sightings, leader = log.tell()
    for each in members_in(sightings, leader, seconds_told):
        write(to_bytes("\t".join(_columns(each))))
    return 0


def _columns(member: MemberSeen) -> list[str]:
    """Return the columns of a member."""
    endpoints, seconds = ",".join(member.endpoints) or "-", member.seconds
    told = "-" if seconds is None else f"{seconds:.0f}"
    return [member.name, member.role, endpoints, str(member.applied), told]


def add(options: argparse.Namespace) -> int:
    """Declare a member that is to come. Raises StartupError."""
    with _shared_log(_settings(options)) as log:
        log.look()
        if options.name not in {each.name for each in log.members()}:
            log.declare(MemberRecord(name=options.name, endpoints=[], applied=0, time=0))
    return 0


def remove(options: argparse.Namespace) -> int:
    """Remove a member. Raises StartupError."""
    with _shared_log(_settings(options)) as log:
        if not log.remove_member(options.name):
            raise DataDirError(f"there is no member {options.name!r}")
    write(to_bytes(f"{options.name} is no member any more"))
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    """Return the settings, with the store that the command line names. Raises ConfigError."""
    settings = read_file_and_environment(options.config)
    if options.url is not None:
        settings = config.override(settings, store={"url": options.url})
    if not settings.store.url:
        raise ConfigError("name the store: etcd://HOST:PORT/PREFIX, or --config FILE, or "
                          "ZKV_CFG_STORE__URL")  # fmt: skip
    return settings


@contextlib.contextmanager
def _shared_log(settings: Settings) -> Iterator[SharedLog]:
    """Yield the log in etcd. Raises DataDirError if etcd does not answer."""
    log = shared_log(settings)
    try:
        yield log
    except EtcdError as error:
        raise DataDirError(str(error)) from error
    finally:
        log.etcd.close()
