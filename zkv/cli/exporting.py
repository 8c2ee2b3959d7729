"""``zkv-cli export``: writes entries, page by page, to a file that ``import`` reads.

Strategy: SCAN returns the keys of a page, and one TXN of GETs their values and remaining times to
live. So a page shows one moment, and two pages may show two; ``zkv backup`` copies a whole store at
one revision. A time to live is written as the time at which it ends, by the server's clock. Values
stay packed from the reply to the file (`zkv.entries.records`).

A file is written as FILE.part, and gets its name once it is complete and on disk. ``--resume``
continues an unfinished one after its last key. FILE.part.state has the server and the options; with
others the export is not continued. Anything but a regular file is written directly (`zkv.writing`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

from zkv.cli.asking import CommandSession, reading
from zkv.cli.output import FAILED, CommandError, is_terminal, note, write
from zkv.cli.paging import pages
from zkv.cli.progress import TransferProgress
from zkv.entries.records import BadRecordError, Record, last_key, written
from zkv.errors import ZkvError
from zkv.reading import BadTextError, decode, parse_json, read_file
from zkv.writing import Target

if TYPE_CHECKING:
    from zkv.client import Client

KEYS_AT_ONCE: Final = 500
BYTES_AT_ONCE: Final = 4 * 1024 * 1024
"""About what one reply may have; keys with large values are asked for in smaller groups."""
TEXT_GROWTH: Final = 11
"""More than a byte of a packed value becomes in JSON: maps of false to maps of false and so on,
two bytes each, are ``{"$map": [[false, `` and ``]]}``, 21 characters."""


def run(session: CommandSession, options: argparse.Namespace) -> int:
    """Write the entries."""
    client = session.client(options)
    packed = is_packed(options)
    prefix = options.prefix or ""
    clock = ServerClock(client)
    with _target(client, options, packed) as (put, after):
        count = 0
        hidden = options.file == "-" and is_terminal(sys.stdout)
        with TransferProgress("export", "entries", _expected(client, prefix), hidden) as progress:
            asked: dict[str, Any] = {"prefix": prefix, "after": after, "values": False}
            for entries in records(client, clock, pages(client, None, **asked)):
                put(b"".join([written(record, packed) for record in entries]))
                count += len(entries)
                progress.show(count)
    note(f"{count} {'entry' if count == 1 else 'entries'} written")
    return 0


def is_packed(options: argparse.Namespace) -> bool:
    """True if the file is a msgpack stream."""
    if options.format is not None:
        return bool(options.format == "msgpack")
    return str(options.file).endswith(".msgpack")


class ServerClock:
    """The server's clock, which may differ from that of this machine; asked for once."""

    def __init__(self, client: Client) -> None:
        before = time.monotonic()
        reply = client.call("PING")
        with reading("PING"):
            self._ahead: float = reply["time"] / 1000 - (before + time.monotonic()) / 2

    def now(self) -> float:
        """Unix time in seconds."""
        return time.monotonic() + self._ahead


class Limits(NamedTuple):
    """The limits of a server, in bytes.

    Args:
        record: of a record in a file; JSON is longer than msgpack.
        message: of a request.
        key: of a key.
        value: of a value.
    """

    record: int
    message: int
    key: int
    value: int


def limits_of(client: Client) -> Limits:
    """The limits of a server."""
    info = client.call("INFO")
    with reading("INFO"):
        limits = info["limits"]
        key, value = int(limits["max_key_bytes"]), int(limits["max_value_bytes"])
        return Limits(TEXT_GROWTH * value + 65_536, int(limits["max_message_bytes"]), key, value)


def rev_of(client: Client) -> int:
    """The present revision of a store."""
    info = client.call("INFO")
    with reading("INFO"):
        return int(info["rev"])


def _expected(client: Client, prefix: str) -> int:
    reply = client.call("COUNT", prefix=prefix)
    with reading("COUNT"):
        return int(reply["count"])


def records(
    client: Client, clock: ServerClock, found: Iterable[dict[str, Any]]
) -> Iterator[list[Record]]:
    """The entries whose keys are in pages of a SCAN, with the times at which they expire."""
    reader = EntryReader(client, clock)
    for page in found:
        yield from reader.read([key for key, _, _ in page["items"]])


class EntryReader:
    """Reads entries of given keys, as many at a time as fit into a reply.

    Args:
        client: of the server.
        clock: that of the server.
    """

    def __init__(self, client: Client, clock: ServerClock) -> None:
        self._client = client
        self._clock = clock
        self._at_once = KEYS_AT_ONCE

    def read(self, keys: list[str]) -> Iterator[list[Record]]:
        """The entries of keys, without absent ones, with the times at which they expire."""
        while keys:
            entries, size = _get(self._client, self._clock, keys[: self._at_once])
            if entries is None:  # They are too large for one reply.
                self._at_once = max(1, min(self._at_once, len(keys)) // 2)
                continue
            keys = keys[self._at_once :]
            yield entries
            fitting = self._at_once * BYTES_AT_ONCE // max(size, 1)
            self._at_once = max(1, min(KEYS_AT_ONCE, 2 * self._at_once, fitting))


def _get(client: Client, clock: ServerClock, keys: list[str]) -> tuple[list[Record] | None, int]:
    """The entries of keys, without absent ones, and their size in bytes; None if too large."""
    from zkv.client import RefusedError
    from zkv.client.codec import Packed
    from zkv.client.values import pack

    try:
        reply = client.call("TXN", ops=Packed(pack([{"op": "GET", "key": key} for key in keys])))
    except RefusedError as error:
        if error.code != "TOO_LARGE" or len(keys) == 1:
            raise
        return None, 0
    now = clock.now()
    entries = []
    size = 0
    with reading("TXN"):
        for key, found in zip(keys, reply["results"], strict=True):
            if not found["rev"]:
                continue
            ttl, value = found.get("ttl"), found["value"]
            expires = None if ttl is None else round((now + ttl) * 1000)
            entries.append(Record(key, value, found["rev"], expires))
            size += len(value)
    return entries, size


@contextmanager
def _target(client: Client, options: argparse.Namespace, packed: bool) -> Iterator[Any]:
    """A function that writes, and the key after which to begin."""
    if options.file == "-":
        if options.resume:
            raise CommandError(FAILED, "--resume continues a file; for other output use --after")
        if sys.stdout is None:
            raise CommandError(FAILED, "cannot print: standard output is closed")
        yield write, options.after
        return
    try:
        target = Target(options.file)
        if target.is_file:
            with _part(client, options, packed, target) as (file, after):
                yield file.write, after
        elif options.resume:
            raise CommandError(FAILED, f"--resume continues a file, which {target.name} is not")
        else:
            with target.open() as file:
                yield file.write, options.after
    except ZkvError:  # Of these, some are OSErrors.
        raise
    except OSError as error:
        raise CommandError(FAILED, f"{error.filename or options.file}: {error.strerror}") from error


@contextmanager
def _part(
    client: Client, options: argparse.Namespace, packed: bool, target: Target
) -> Iterator[tuple[BinaryIO, str | None]]:
    """The file that gets its name at the end, and the key after which to continue."""
    part = target.path.with_name(f"{target.path.name}.part")
    asked = _Asked(part, client, options, packed)
    try:
        with target.open(part.name, options.resume) as file:
            after = options.after
            if options.resume:
                asked.check()
                longest = limits_of(client).record
                key, end = last_key(file, packed, longest, options.prefix or "", after)
                file.truncate(end)
                file.seek(end)
                after = after if key is None else key
            elif part.exists():  # Else there is no room for it, and none for a state.
                asked.keep()
            yield file, after
        asked.remove()
    except FileExistsError:
        raise CommandError(
            FAILED,
            f"an unfinished export left {part}: --resume continues it; to start again, remove it",
        ) from None
    except BadRecordError as error:
        raise CommandError(
            FAILED, f"{part} is not an export that --resume can continue: {error}"
        ) from error


class _Asked:
    """The server and the options of an export, in a file beside its part.

    Args:
        part: the unfinished file.
        client: of the server.
        options: of this command.
        packed: whether the file is a msgpack stream.
    """

    def __init__(
        self, part: Path, client: Client, options: argparse.Namespace, packed: bool
    ) -> None:
        self._part = part
        self._path = part.with_name(f"{part.name}.state")
        self._client = client
        self._fields = {
            "server": client.endpoint,
            "format": "msgpack" if packed else "json",
            "prefix": options.prefix or "",
            "after": options.after,
        }

    def keep(self) -> None:
        """Write the file, as an export begins."""
        fields = self._fields | {"rev": rev_of(self._client)}
        with Target(self._path).open() as file:
            file.write(json.dumps(fields).encode() + b"\n")

    def check(self) -> None:
        """Raise CommandError if the part is from another export."""
        try:
            kept = parse_json(decode(read_file(self._path)))
        except FileNotFoundError:
            return  # The part alone has to do.
        except BadTextError as error:
            raise CommandError(FAILED, f"{self._path}: {error}") from None
        if not isinstance(kept, dict) or type(kept.get("rev")) is not int:
            raise CommandError(FAILED, f"{self._path} does not say what was exported")
        for name, value in self._fields.items():
            if kept.get(name) != value:
                raise CommandError(
                    FAILED,
                    f"{self._part} is from another export: its {name} was {kept.get(name)!r:.80}, "
                    f"and now is {value!r:.80}",
                )
        if (rev := rev_of(self._client)) < kept["rev"]:
            raise CommandError(
                FAILED,
                f"{self._part} is from another store, which had revision {kept['rev']}; the one at "
                f"{self._client.endpoint} has {rev}",
            )

    def remove(self) -> None:
        """Remove the file, as the export is complete."""
        with suppress(OSError):
            self._path.unlink()
