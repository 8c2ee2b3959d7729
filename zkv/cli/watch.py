"""``zkv-cli watch``: changes as they come, each a line; see `zkv.cli.follow` for how."""

from __future__ import annotations

import argparse

from zkv.cli import text
from zkv.cli.asking import Session, reading
from zkv.cli.output import FAILED, CommandError, note, print_result
from zkv.cli.values import to_json


def run(session: Session, options: argparse.Namespace) -> int:
    """Print changes until there were as many as asked for."""
    from zkv.cli.follow import follow

    left = options.limit
    if left is not None and left < 1:
        raise CommandError(FAILED, f"--limit is a number from 1, and not {left}")
    if options.since is not None and not 0 <= options.since < 2**63:
        raise CommandError(FAILED, f"--since is a revision, and not {str(options.since)[:40]}")
    client = session.client(options)
    for page in follow(client, options.prefix or "", options.since, note):
        printed = page[:left]
        with reading("CHANGES"):
            if options.json:
                print_result("\n".join(to_json(text.change_fields(*each)) for each in printed))
            else:
                print_result(text.changes({"changes": printed}))
        if left is not None:
            left -= len(printed)
            if left == 0:
                return 0
    return 0
