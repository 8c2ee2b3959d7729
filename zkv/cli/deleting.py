"""``zkv-cli delete``: deletes one key, or all keys with a prefix, page by page."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from zkv.cli import text
from zkv.cli.asking import NEGATIVE, CommandSession, ask, reading
from zkv.cli.fields import given
from zkv.cli.ops import OPS
from zkv.cli.output import FAILED, CommandError, is_terminal, note, print_result
from zkv.cli.paging import pages
from zkv.entries.text import to_json
from zkv.errors import ZkvError

if TYPE_CHECKING:
    from zkv.client import Client


def run(session: CommandSession, options: argparse.Namespace) -> int:
    """Delete the key, or the keys, and print how many were deleted."""
    if (options.key is None) == (options.prefix is None):
        raise CommandError(FAILED, "delete takes either a KEY or --prefix PREFIX")
    if options.prefix is None:
        return ask(OPS["delete"], session, options)
    for name in ("prev", "if_rev", "session", "seq", "deadline"):
        value = getattr(options, name)
        if value is not None and value is not False:  # By identity: 0 is a revision.
            flag = f"--{name.replace('_', '-')}"
            raise CommandError(FAILED, f"{flag} needs a KEY; it does not go with --prefix")
    client = session.client(options)
    reply = client.call("COUNT", prefix=options.prefix)
    with reading("COUNT"):
        count = int(reply["count"])
    if count:
        _require_consent(options, count)
    elif hint := text.wildcard(options.prefix):
        note(hint)
    result = _delete(client, options.prefix, **given("durable")(options))
    print_result(to_json(result) if options.json else text.deleted(result))
    return 0


def _require_consent(options: argparse.Namespace, count: int) -> None:
    """Ask the user at a terminal, unless ``--yes`` was given. Raises CommandError."""
    if options.yes:
        return
    what = f"{count:,} {'key' if count == 1 else 'keys'}"
    if is_terminal(sys.stdin):
        begin = f"with the prefix {text.word(options.prefix)}" if options.prefix else "(all)"
        print(f"Delete {what} {begin}? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            raise CommandError(NEGATIVE, "nothing was deleted")
    elif not options.prefix:
        raise CommandError(FAILED, f"an empty PREFIX deletes all {what}: add --yes to do that")


def _delete(client: Client, prefix: str, **durable: Any) -> dict[str, Any]:
    """Delete page by page; returns the fields of the result."""
    result: dict[str, Any] = {"ok": True, "deleted": 0}
    try:
        for page in pages(client, None, prefix=prefix, values=False):
            keys = [key for key, _, _ in page["items"]]
            if not keys:
                continue
            reply = client.call("MDELETE", keys=keys, **durable)
            with reading("MDELETE"):
                count = result["deleted"] + reply["deleted"]
                result |= {"deleted": count, "rev": reply["rev"], "durable": reply["durable"]}
    except (ZkvError, CommandError, KeyboardInterrupt):
        note(f"deleted {result['deleted']:,} keys, then stopped")
        raise
    return result
