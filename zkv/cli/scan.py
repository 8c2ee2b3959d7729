"""``zkv-cli scan``: prints keys in order, each page as it arrives."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from zkv.cli import fields, text
from zkv.cli.asking import CommandSession, reading
from zkv.cli.output import note, print_result
from zkv.cli.paging import pages
from zkv.cli.text import Reply
from zkv.entries.text import to_json, type_name

if TYPE_CHECKING:
    from zkv.client import Client
    from zkv.entries.records import Record


def run(session: CommandSession, options: argparse.Namespace) -> int:
    """Print the entries, and a note if there are more."""
    client = session.client(options)
    asked = fields.scan(options)
    following, is_empty = None, True
    for page in pages(client, options.limit, **asked):
        if options.meta:
            _print_meta(client, page, options)
        else:
            with reading("SCAN"):
                if options.json:
                    print_result(_json_lines(page, options.keys_only))
                else:
                    print_result(text.page({**asked, **page}))
        following, is_empty = page["next"], is_empty and not page["items"]
    if following is not None:
        note(text.after_page(following))
    if is_empty and (hint := text.wildcard(options.prefix or "")):
        note(hint)
    return 0


def _print_meta(client: Client, page: Reply, options: argparse.Namespace) -> None:
    """Print a page with metadata, which needs a GET for each entry."""
    from zkv.cli.exporting import ServerClock, records

    clock = ServerClock(client)
    for entries in records(client, clock, [page]):
        now = clock.now()
        items = [_facts(entry, now, options.keys_only) for entry in entries]
        print_result("\n".join(map(to_json, items)) if options.json else text.entries(items))


def _facts(entry: Record, now: float, keys_only: bool) -> dict[str, Any]:
    """The fields of an entry, in the order in which they are printed."""
    ttl = None if entry.expires is None else max(0.0, round(entry.expires / 1000 - now, 3))
    value = {} if keys_only else {"value": entry.value, "type": type_name(entry.value)}
    return {"key": entry.key, **value, "rev": entry.rev, "ttl": ttl}


def _json_lines(page: Reply, keys_only: bool) -> str | bytes:
    lines = [
        to_json({"key": key, "rev": rev} if keys_only else {"key": key, "value": value, "rev": rev})
        for key, value, rev in page["items"]
    ]
    return "\n".join(lines) or b""
