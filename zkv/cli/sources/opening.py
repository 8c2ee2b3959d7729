"""Which source ``--from`` names, and which options go with it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from zkv.cli.output import FAILED, CommandError

if TYPE_CHECKING:
    from zkv.cli.exporting import Limits, ServerClock
    from zkv.cli.sources import Convert, Entries
    from zkv.cli.sources.foreign import ForeignSource

REDIS: Final = ("redis", "rediss", "unix")
FILES: Final = ("dbm", "shelve")
SCHEMES: Final = (*REDIS, "etcd", *FILES)


def check_file_options(options: argparse.Namespace) -> None:
    """Refuse what goes with ``--from`` alone. Raises CommandError."""
    for name in ("prefix", "values", "structures"):
        if getattr(options, name):
            raise CommandError(FAILED, f"--{name} goes with --from")


def open_source(options: argparse.Namespace, clock: ServerClock, limits: Limits) -> ForeignSource:
    """Open what ``--from`` names. Raises CommandError."""
    from zkv.cli.sources.foreign import ForeignSource
    from zkv.cli.sources.forms import BIN, FORMS

    scheme = options.source.partition(":")[0].lower()
    _check(options, scheme)
    convert = FORMS[options.values or BIN]
    entries = _open(options, scheme, convert, limits)
    return ForeignSource(entries, convert, clock, limits)


def _check(options: argparse.Namespace, scheme: str) -> None:
    """Refuse options that do not go together."""
    if scheme not in SCHEMES or ":" not in options.source:
        known = ", ".join(f"{each}:" for each in SCHEMES)
        raise CommandError(FAILED, f"--from: what to import begins with one of {known}")
    if options.file != "-":
        raise CommandError(FAILED, "what to import is a FILE, or --from URL, not both")
    if options.format is not None:
        raise CommandError(FAILED, "--format is that of a FILE; with --from there is --values")
    if options.resume is not None:
        raise CommandError(
            FAILED, "--resume goes with a FILE; an import with --from goes on when it is run again"
        )
    if options.structures and scheme not in REDIS:
        raise CommandError(FAILED, "--structures goes with --from redis:")
    if options.values == "pickle" and scheme not in FILES:
        raise CommandError(
            FAILED, f"--values pickle goes with a file: what {scheme} sends is not unpickled"
        )
    if scheme == "shelve" and options.values != "pickle":
        raise CommandError(
            FAILED,
            "a shelf holds pickles, which run what is in them: give --values pickle if you trust "
            "it, or dbm: instead of shelve: to take the bytes as they are",
        )


def _open(options: argparse.Namespace, scheme: str, convert: Convert, limits: Limits) -> Entries:
    url, prefix = options.source, options.prefix or ""
    if scheme in FILES:
        from zkv.cli.sources.dbm import DbmEntries

        return DbmEntries(url, prefix)
    if scheme == "etcd":
        from zkv.cli.sources.etcd import EtcdEntries

        return EtcdEntries(url, prefix, options.timeout)
    from zkv.cli.sources.redis import RedisEntries

    structures = convert if options.structures else None
    return RedisEntries(url, prefix, structures, limits.value, options.timeout)
