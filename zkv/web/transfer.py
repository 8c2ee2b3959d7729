"""Export and import of a subtree, in the formats of ``zkv-cli export`` (`zkv.entries.records`).

Both stream: no more than `AT_ONCE` values, or one batch, are in memory. A batch of an import
changes one moment, a whole one does not, and an export shows each entry as it is when it is read.
With msgpack every byte of a value comes back, with JSON its widths do not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import IO, Any, Final

from zkv.client import NotFoundError
from zkv.client.codec import Packed
from zkv.entries.records import BadRecordError, Record, read, written
from zkv.web import MOST
from zkv.web.answers import HttpFailure, apart
from zkv.web.sampler import Ask

LONGEST_RECORD: Final = 192 * 1024 * 1024
"""Bytes of one record: a value of 16 MiB takes up to 11 times as many in JSON."""
BYTES_AT_ONCE: Final = 4 * 1024 * 1024
"""Bytes of values in one batch, unless a single one has more."""
AT_ONCE: Final = 8
"""Entries that an export reads at a time: each may have a value of the largest size."""


async def exported(ask: Ask, prefix: str, as_msgpack: bool) -> AsyncIterator[bytes]:
    """Yield the entries of a subtree, a few at a time."""
    clock = await _clock(ask)
    after = None
    while True:
        page = await ask("SCAN", prefix=prefix, after=after, limit=MOST, values=False)
        yield b""  # The server has not refused, which the caller waits for.
        for at in range(0, len(page["items"]), AT_ONCE):
            items = page["items"][at : at + AT_ONCE]
            found = await asyncio.gather(*[_record(ask, key, clock) for key, _, _ in items])
            records = [each for each in found if each is not None]
            size = sum(len(each.value) for each in records)
            yield await apart(size, _written, records, as_msgpack)
        after = page["next"]
        if after is None:
            return


async def _clock(ask: Ask) -> float:
    """Return how far the server's clock is ahead of the monotonic one here, in milliseconds."""
    time_there: int = (await ask("PING"))["time"]
    return time_there - time.monotonic() * 1000


def _written(records: list[Record], as_msgpack: bool) -> bytes:
    return b"".join([written(each, as_msgpack) for each in records])


async def _record(ask: Ask, key: str, clock: float) -> Record | None:
    """Return an entry; None if it has been removed meanwhile."""
    try:
        reply = await ask("GET", key=key)
    except NotFoundError:
        return None
    ttl = reply.get("ttl")
    expires = None if ttl is None else round(clock + (time.monotonic() + ttl) * 1000)
    return Record(key, reply["value"], reply["rev"], expires)


class Import:
    """Stores the records of a file, batch by batch.

    Args:
        ask: sends a request.
        file: open at its beginning.
        as_msgpack: True if it is a msgpack stream.
        prefix: with which all keys have to begin.

    Attributes:
        stored: how many entries are stored.
    """

    def __init__(self, ask: Ask, file: IO[bytes], as_msgpack: bool, prefix: str) -> None:
        self._ask = ask
        self._prefix = prefix
        self._records = self._checked(file, as_msgpack)
        self._number = 0
        self.stored = 0

    async def run(self) -> AsyncIterator[int]:
        """Store all; yield how many are stored, after each batch.

        Raises:
            HttpFailure: a record is wrong; those before it are stored.
            ClientError: the server refuses.
        """
        clock = await _clock(self._ask)
        error: BadRecordError | None = None
        while error is None:
            batch, error = await asyncio.to_thread(self._batch)
            ops = [_put(each, clock) for each in batch]
            if ops := [op for op in ops if op is not None]:
                await self._ask("TXN", ops=ops)
            self.stored += len(ops)
            if not batch and error is None:
                return
            yield self.stored
        text = f"record {self._number + 1}: {error}; {self.stored} entries are stored"
        raise HttpFailure("BAD_REQUEST", text)

    def _checked(self, file: IO[bytes], as_msgpack: bool) -> Iterator[Record]:
        for place in read(file, as_msgpack, LONGEST_RECORD):
            if place.record is not None:
                if not place.record.key.startswith(self._prefix):
                    key, prefix = place.record.key, self._prefix
                    raise BadRecordError(f"the key {key!r:.80} does not begin with {prefix!r:.80}")
                yield place.record
            self._number = place.number

    def _batch(self) -> tuple[list[Record], BadRecordError | None]:
        """Return the next records; and the error of the one after them, if that is wrong."""
        batch: list[Record] = []
        size = 0
        try:
            for record in self._records:
                batch.append(record)
                size += len(record.value)
                if len(batch) == MOST or size > BYTES_AT_ONCE:
                    break
        except BadRecordError as error:
            return batch, error
        return batch, None


def _put(record: Record, clock: float) -> dict[str, Any] | None:
    """Return the op that stores a record; None if it has expired."""
    op: dict[str, Any] = {"op": "PUT", "key": record.key, "value": Packed(record.value)}
    ttl = record.ttl
    if record.expires is not None:
        ttl = (record.expires - clock) / 1000 - time.monotonic()
        if ttl <= 0:
            return None
    return op if ttl is None else {**op, "ttl": ttl}
