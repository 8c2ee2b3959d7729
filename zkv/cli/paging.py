"""Reads entries page by page, with the client's paging."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from zkv.cli.output import FAILED, CommandError
from zkv.cli.text import Reply

if TYPE_CHECKING:
    from zkv.client import Client


def pages(client: Client, limit: int | None, **asked: Any) -> Iterator[Reply]:
    """The pages of a SCAN, without empty ones, up to ``limit`` entries in all.

    Only a last page that ended at the limit has a ``next``.

    Raises:
        ClientError: there is no reply, or the server refuses.
        CommandError: ``limit`` is below 1.
    """
    from zkv.client.operations import ScanPages

    if limit is not None and limit < 1:
        raise CommandError(FAILED, f"--limit must be at least 1, not {limit}")
    given = {name: value for name, value in asked.items() if value is not None}
    scan = ScanPages("", given, limit)
    for page in client._pages(scan):
        # Before the limit only the server knows whether there is more: all of it may have expired.
        following = scan.following if scan.next_page() is None else None
        yield {"items": [entry[:3] for entry in page], "next": following}
