"""``zkv-cli history``: prints the changes of one key that the server still keeps."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from zkv.cli import text
from zkv.cli.asking import NEGATIVE, CommandSession, reading
from zkv.cli.output import CommandError, note, print_result
from zkv.entries.text import to_json

if TYPE_CHECKING:
    from zkv.client import Client

PAGE: Final = 1_000


def run(session: CommandSession, options: argparse.Namespace) -> int:
    """Print a line for each change."""
    count = 0
    for changes in _pages(session.client(options), options.key):
        with reading("CHANGES"):
            ours = [change for change in changes if change[2] == options.key]
            if options.json:
                print_result("\n".join(to_json(text.change_fields(*each)) for each in ours) or b"")
            else:
                print_result(text.changes({"changes": ours}))
        count += len(ours)
    if not count:
        raise CommandError(NEGATIVE, f"the server keeps no change of {text.word(options.key)}")
    return 0


def _pages(client: Client, key: str) -> Iterator[list[Any]]:
    """The changes of all keys with the prefix ``key``, oldest first, in pages."""
    from zkv.client import RefusedError

    since, newest = 0, 1
    while since < newest:
        try:
            reply = client.call("CHANGES", since=since, prefix=key, limit=PAGE)
        except RefusedError as error:
            oldest = error.details.get("oldest")
            if error.code != "COMPACTED" or not isinstance(oldest, int) or oldest - 1 <= since:
                raise
            note(f"the server no longer keeps changes before revision {oldest}")
            since = oldest - 1
            newest = max(newest, oldest)
            continue
        with reading("CHANGES"):
            since, newest = max(since + 1, int(reply["next"])), int(reply["rev"])
            yield list(reply["changes"])
