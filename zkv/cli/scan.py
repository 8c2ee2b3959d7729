"""``zkv-cli scan``: keys in order, page after page, printed as they come."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from zkv.cli import fields, text
from zkv.cli.asking import Session, reading
from zkv.cli.output import note, print_result
from zkv.cli.text import Reply
from zkv.cli.values import to_json, type_name

if TYPE_CHECKING:
    from zkv.cli.records import Record
    from zkv.client import Client

PAGE: Final = 1_000
"""Entries asked for at once; fewer where they are large."""


def run(session: Session, options: argparse.Namespace) -> int:
    """Print the entries that were asked for."""
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
    """Print a page with what only GET tells of an entry."""
    from zkv.cli.exporting import Clock, records

    clock = Clock(client)
    for entries in records(client, clock, [page]):
        now = clock.now()
        items = [_facts(entry, now, options.keys_only) for entry in entries]
        print_result("\n".join(map(to_json, items)) if options.json else text.entries(items))


def _facts(entry: Record, now: float, keys_only: bool) -> dict[str, Any]:
    """What is known of an entry, in the order in which it is printed."""
    ttl = None if entry.expires is None else max(0.0, round(entry.expires / 1000 - now, 3))
    value = {} if keys_only else {"value": entry.value, "type": type_name(entry.value)}
    return {"key": entry.key, **value, "rev": entry.rev, "ttl": ttl}


def pages(client: Client, limit: int | None, **asked: Any) -> Iterator[Reply]:
    """The pages of a SCAN, up to ``limit`` entries in all.

    A page that is too large for a reply is asked for in smaller ones. The last one has a ``next``
    where the limit ended it.

    Raises:
        ClientError: as `zkv.client.Client.call`.
        CommandError: a reply is not as it should be.
    """
    from zkv.client import RefusedError

    size, left = PAGE, limit
    while True:
        wanted = size if left is None else min(size, left)
        try:
            page = client.call("SCAN", limit=wanted, **asked)
        except RefusedError as error:
            if error.code != "TOO_LARGE" or wanted <= 1:
                raise
            size = wanted // 2
            continue
        with reading("SCAN"):
            following = _check(page)
            left = None if left is None else left - len(page["items"])
        yield page
        if following is None or left == 0:
            return
        asked["after"] = following


def _check(page: Reply) -> str | None:
    """Where the next page begins. Raises TypeError where the page is none."""
    following = page["next"]
    if not isinstance(following, str | None) or not isinstance(page["items"], list):
        raise TypeError("it is no page")
    if following is not None and not page["items"]:
        raise ValueError("an empty page, and yet another one")
    return following


def _json_lines(page: Reply, keys_only: bool) -> str | bytes:
    lines = [
        to_json({"key": key, "rev": rev} if keys_only else {"key": key, "value": value, "rev": rev})
        for key, value, rev in page["items"]
    ]
    return "\n".join(lines) or b""
