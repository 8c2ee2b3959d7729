"""``zkv-cli scan``: keys in order, page after page, printed as they come."""

from __future__ import annotations

import argparse

from zkv.cli import fields, text
from zkv.cli.asking import Session, reading
from zkv.cli.output import FAILED, CommandError, note, print_result
from zkv.cli.values import to_json


def run(session: Session, options: argparse.Namespace) -> int:
    """Print the entries that were asked for."""
    from zkv.client.operations import Entry, ScanPages

    def line(entry: Entry) -> str:
        shown = {"key": entry.key, "value": entry.value, "rev": entry.rev}
        if options.keys_only:
            del shown["value"]
        return to_json(shown)

    if options.limit is not None and options.limit < 1:
        raise CommandError(FAILED, f"--limit is a number from 1, and not {options.limit}")
    scan = ScanPages("", fields.scan(options), options.limit)
    for page in session.client(options)._pages(scan):
        with reading("SCAN"):
            if options.json:
                print_result("\n".join(map(line, page)))
            else:
                items = [entry[:3] for entry in page]
                print_result(text.page({"items": items, "values": not options.keys_only}))
    if scan.following is not None:
        note(text.after_page(scan.following))
    return 0
