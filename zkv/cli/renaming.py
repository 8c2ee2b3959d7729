"""``zkv-cli rename``: gives an entry another key, in one transaction."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from zkv.cli import text
from zkv.cli.asking import NEGATIVE, CommandSession, reading
from zkv.cli.fields import given
from zkv.cli.output import FAILED, CommandError, print_result
from zkv.entries.renaming import rename_fields
from zkv.entries.text import to_json

if TYPE_CHECKING:
    from zkv.client import Client

ATTEMPTS: Final = 20
"""The number of attempts. One fails if another client changes the entry after it was read."""


def run(session: CommandSession, options: argparse.Namespace) -> int:
    """Rename the entry; it keeps its remaining time to live."""
    if options.old == options.new:
        raise CommandError(FAILED, "OLD and NEW are the same key")
    client = session.client(options)
    for _ in range(ATTEMPTS):
        found = client.call("GET", key=options.old)
        with reading("GET"):
            fields = rename_fields(found, options.old, options.new, options.force)
        reply = _attempt(client, fields | given("durable")(options), options.new)
        if reply is not None:
            with reading("TXN"):
                result = {name: reply[name] for name in ("ok", "rev", "durable")}
                print_result(to_json(result) if options.json else text.written(result))
            return 0
    raise CommandError(
        NEGATIVE, f"{text.word(options.old)} is changing too often: it was not renamed"
    )


def _attempt(client: Client, transaction: dict[str, Any], new: str) -> dict[str, Any] | None:
    """The reply; None if the old entry has changed since it was read."""
    from zkv.client import RefusedError

    try:
        return client.call("TXN", **transaction)
    except RefusedError as error:
        if error.code != "CONFLICT":
            raise
        if error.details.get("index") == 1:
            rev = error.details.get("rev")
            raise CommandError(
                NEGATIVE,
                f"CONFLICT: {text.word(new)} exists, with revision {rev}; --force replaces it",
            ) from error
        return None
    except (ValueError, TypeError, OverflowError) as error:
        raise CommandError(FAILED, f"the value cannot be sent: {error}") from error
