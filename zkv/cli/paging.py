"""Pages of keys, as the client reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from zkv.cli.output import FAILED, CommandError
from zkv.cli.text import Reply

if TYPE_CHECKING:
    from zkv.client import Client


def pages(client: Client, limit: int | None, **asked: Any) -> Iterator[Reply]:
    """The pages of a SCAN that have entries, up to ``limit`` of them in all.

    The last one has a ``next`` where the limit ended it.

    Raises:
        ClientError: the server cannot be asked, or refuses.
        CommandError: there is nothing to ask for.
    """
    from zkv.client.operations import ScanPages

    if limit is not None and limit < 1:
        raise CommandError(FAILED, f"--limit is a number from 1, and not {limit}")
    given = {name: value for name, value in asked.items() if value is not None}
    scan = ScanPages("", given, limit)
    for page in client._pages(scan):
        yield {"items": [entry[:3] for entry in page], "next": scan.following}
