"""``zkv-cli watch``: prints changes as they happen, one per line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from zkv.cli import text
from zkv.cli.asking import CommandSession, reading
from zkv.cli.output import FAILED, CommandError, note, print_result
from zkv.entries.text import to_json

if TYPE_CHECKING:
    from zkv.client import Change, Watch

LOOK_SECONDS: Final = 0.5
"""How often to check if the server is away, while there are no changes."""


def run(session: CommandSession, options: argparse.Namespace) -> int:
    """Print changes, until there were ``--limit`` of them."""
    left = options.limit
    if left is not None and left < 1:
        raise CommandError(FAILED, f"--limit must be at least 1, not {left}")
    if options.since is not None and not 0 <= options.since < 2**63:
        raise CommandError(FAILED, f"--since must be a revision, not {str(options.since)[:40]}")
    client = session.client(options)
    with client.watch(options.prefix or "", since=options.since) as watch:
        note(f"watching from revision {watch.rev} on")
        for change in _changes(watch, client.endpoint):
            with reading("CHANGES"):
                if options.json:
                    print_result(to_json(text.change_fields(*change)))
                else:
                    print_result(text.changes({"changes": [change]}))
            if left is not None:
                left -= 1
                if left == 0:
                    break
    return 0


def _changes(watch: Watch, endpoint: str) -> Iterator[Change]:
    """The changes of ``watch``, for ever; prints a note when the server is away or back.

    Raises:
        CommandError: there is a gap. The watch would report the whole contents, not changes.
    """
    from zkv.client.follower import RESET

    away = False
    while True:
        seen = watch.rev
        change = watch.next(LOOK_SECONDS)
        if change is not None and change.op == RESET:
            if change.rev < seen:
                what = f"the store has gone back from revision {seen} to {change.rev}"
            else:
                what = f"the server no longer keeps the changes after revision {seen}"
            advice = "read the store again, then watch from its revision"
            raise CommandError(FAILED, f"{what}: {advice}")
        if away != (watch.trouble is not None):
            away = not away
            note(f"{watch.trouble}; trying again" if away else f"{endpoint} answers again")
        if change is not None:
            yield change
