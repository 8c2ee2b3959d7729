"""``zkv-cli export``: entries, page by page, to a file that can be imported again.

The keys of a page come from SCAN, their values and what is left of their lives from one TXN of
GETs: so a page shows one moment, but two pages may show two. (``zkv backup`` gives a whole store at
one revision.) Times to live are written as the time at which they end, by the server's clock.

A file is written as FILE.part and gets its name once it is whole and on disk. One that was not
finished is gone on with: the key that it ends with says where.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from zkv.cli.asking import Session, reading
from zkv.cli.output import FAILED, CommandError, is_terminal, note, write
from zkv.cli.progress import TransferProgress
from zkv.cli.records import BadRecordError, Record, last_key, written
from zkv.errors import ZkvError

if TYPE_CHECKING:
    from zkv.client import Client

KEYS_AT_ONCE: Final = 500
BYTES_AT_ONCE: Final = 4 * 1024 * 1024
"""About what one reply may have; keys with large values are asked for in smaller groups."""


def run(session: Session, options: argparse.Namespace) -> int:
    """Write the entries."""
    client = session.client(options)
    packed = is_packed(options)
    prefix = options.prefix or ""
    clock = ServerClock(client)
    with _target(client, options, packed) as (put, after):
        count = 0
        hidden = options.file == "-" and is_terminal(sys.stdout)
        with TransferProgress("export", "entries", _expected(client, prefix), hidden) as progress:
            for records in _records(client, clock, prefix, after):
                put(b"".join([written(record, packed) for record in records]))
                count += len(records)
                progress.show(count)
    note(f"{count} {'entry' if count == 1 else 'entries'} written")
    return 0


def is_packed(options: argparse.Namespace) -> bool:
    """Whether the file is a msgpack stream."""
    if options.format is not None:
        return bool(options.format == "msgpack")
    return str(options.file).endswith(".msgpack")


class ServerClock:
    """The server's clock, which need not be that of this machine; asked for once."""

    def __init__(self, client: Client) -> None:
        before = time.monotonic()
        reply = client.call("PING")
        with reading("PING"):
            self._ahead: float = reply["time"] / 1000 - (before + time.monotonic()) / 2

    def now(self) -> float:
        """Unix time in seconds."""
        return time.monotonic() + self._ahead


class Limits(NamedTuple):
    """What a server takes, in bytes.

    Args:
        record: the longest in a file; JSON is longer than msgpack.
        message: the longest request.
    """

    record: int
    message: int


def limits_of(client: Client) -> Limits:
    """The limits of a server."""
    info = client.call("INFO")
    with reading("INFO"):
        limits = info["limits"]
        return Limits(6 * int(limits["max_value_bytes"]) + 65_536, int(limits["max_message_bytes"]))


def _expected(client: Client, prefix: str) -> int:
    reply = client.call("COUNT", prefix=prefix)
    with reading("COUNT"):
        return int(reply["count"])


def _records(
    client: Client, clock: ServerClock, prefix: str, after: str | None
) -> Iterator[list[Record]]:
    """All entries with a prefix, in the order of their keys."""
    from zkv.client.operations import ScanPages, scan_fields

    at_once = KEYS_AT_ONCE
    fields = scan_fields("", prefix, after=after, values=False)
    for page in client._pages(ScanPages("", fields, None)):
        keys = [entry.key for entry in page]
        while keys:
            records, size = _get(client, clock, keys[:at_once])
            if records is None:  # They are too large for one reply.
                at_once = max(1, min(at_once, len(keys)) // 2)
                continue
            keys = keys[at_once:]
            yield records
            fitting = at_once * BYTES_AT_ONCE // max(size, 1)
            at_once = max(1, min(KEYS_AT_ONCE, 2 * at_once, fitting))


def _get(client: Client, clock: ServerClock, keys: list[str]) -> tuple[list[Record] | None, int]:
    """The entries of some keys, without those that are gone, and about how large they are."""
    from zkv.client import RefusedError

    try:
        reply = client.call("TXN", ops=[{"op": "GET", "key": key} for key in keys])
    except RefusedError as error:
        if error.code != "TOO_LARGE" or len(keys) == 1:
            raise
        return None, 0
    now = clock.now()
    records = []
    size = 0
    with reading("TXN"):
        for key, found in zip(keys, reply["results"], strict=True):
            if not found["rev"]:
                continue
            ttl, value = found.get("ttl"), found["value"]
            expires = None if ttl is None else round((now + ttl) * 1000)
            records.append(Record(key, value, found["rev"], expires))
            size += len(value) if isinstance(value, str | bytes) else 100
    return records, size


@contextmanager
def _target(client: Client, options: argparse.Namespace, packed: bool) -> Iterator[Any]:
    """Where to write, and the key behind which to begin."""
    if options.file == "-":
        if options.resume:
            raise CommandError(FAILED, "--resume goes on with a file; elsewhere --after does")
        if sys.stdout is None:
            raise CommandError(FAILED, "cannot print: standard output is closed")
        yield write, options.after
        return
    path = Path(options.file)
    part = path.with_name(f"{path.name}.part")
    try:
        with _open_part(part, options.resume) as file:
            after = options.after
            if options.resume:
                key, end = last_key(file, packed, limits_of(client).record)
                file.truncate(end)
                file.seek(end)
                after = after if key is None else key
            yield file.write, after
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BadRecordError as error:
        raise CommandError(FAILED, f"{part} is no export: {error}") from error
    except ZkvError:  # Of these, some are OSErrors.
        raise
    except OSError as error:
        raise CommandError(FAILED, f"{error.filename or part}: {error.strerror}") from error


def _open_part(part: Path, resume: bool) -> IO[bytes]:
    if resume:
        return open(part, "r+b")
    try:
        return open(part, "xb")
    except FileExistsError:
        raise CommandError(
            FAILED,
            f"{part} is there, from an export that was not finished: --resume goes on with it; "
            f"to begin anew, remove it",
        ) from None
