"""``zkv-cli rename``: gives an entry another key, in one transaction."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from zkv.cli import text
from zkv.cli.asking import NEGATIVE, CommandSession, reading
from zkv.cli.fields import given
from zkv.cli.output import FAILED, CommandError, print_result
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
            transaction = _transaction(found, options)
        reply = _attempt(client, transaction, options.new)
        if reply is not None:
            with reading("TXN"):
                result = {name: reply[name] for name in ("ok", "rev", "durable")}
                print_result(to_json(result) if options.json else text.written(result))
            return 0
    raise CommandError(
        NEGATIVE, f"{text.word(options.old)} is changing too often: it was not renamed"
    )


def _transaction(found: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The fields of the TXN that renames the entry in the reply to a GET."""
    put = {"op": "PUT", "key": options.new, "value": found["value"]}
    if "ttl" in found:
        put["ttl"] = found["ttl"]
    conditions = [[options.old, found["rev"]]]
    if not options.force:
        conditions.append([options.new, 0])
    ops = [put, {"op": "DELETE", "key": options.old}]
    return {"if": conditions, "ops": ops, **given("durable")(options)}


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
