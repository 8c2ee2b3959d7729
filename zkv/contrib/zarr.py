"""A store for zarr 3 (https://zarr.dev): arrays, groups and chunks as entries of a server.

An object of zarr is the entry ``prefix + key``, with its bytes as value.

zarr calls a store from event loops of its own. Requests run in threads there, so that packing a
large chunk holds nobody up, and a store works in several loops, and after a fork. Listing a
directory reads a page of keys, and skips what lies below a name that it has told.
"""

from __future__ import annotations

import asyncio
import json
import math
import warnings
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final, Self

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.dtype import parse_dtype

from zkv.client.errors import ConflictError
from zkv.contrib._link import Link

PAGE: Final = 500
"""Keys that listing reads at a time."""


class ZkvStore(Store):
    """Objects of zarr as entries of a server. May be pickled, and used in forked processes.

    Args:
        endpoint: as for `zkv.Client`; None = its default.
        prefix: of all keys.
        read_only: refuse to write.
        **options: further ones of `zkv.Client`, such as ``timeout`` or ``key_file``.

    Raises:
        ValueError: an object to write is larger than the server takes. Who writes the metadata of
            an array with such chunks is warned before.
        ClientError: a request failed. That is never taken for an absent key.
    """

    supports_writes: bool = True
    supports_deletes: bool = True
    supports_listing: bool = True

    def __init__(
        self, endpoint: str | Sequence[str] | None = None, prefix: str = "", *,
        read_only: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(read_only=read_only)
        self._link = Link(endpoint, prefix, **options)
        self._most = 0

    def with_read_only(self, read_only: bool = False) -> Self:
        made = type(self).__new__(type(self))
        Store.__init__(made, read_only=read_only)
        made._link, made._most = self._link, self._most
        return made

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ZkvStore)
            and (self._link, self.read_only) == (other._link, other.read_only)
        )  # fmt: skip

    __hash__ = None  # type: ignore[assignment]  # as other stores

    def __repr__(self) -> str:
        return f"ZkvStore('{self._link}')"

    __str__ = __repr__

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:  # fmt: skip
        data = self._link.keys.get(key)
        if data is None:
            return None
        if isinstance(byte_range, RangeByteRequest):
            data = data[byte_range.start : byte_range.end]
        elif isinstance(byte_range, OffsetByteRequest):
            data = data[byte_range.offset :]
        elif isinstance(byte_range, SuffixByteRequest):  # `[-0:]` would be all.
            data = data[max(0, len(data) - byte_range.suffix) :]
        elif byte_range is not None:
            raise ValueError(f"Unexpected byte_range, got {byte_range}.")
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    def set_sync(self, key: str, value: Buffer, *, create: bool = False) -> None:
        self._check_writable()
        if not isinstance(value, Buffer):
            raise TypeError(f"the value of {key!r} must be a Buffer, not a {type(value).__name__}")
        data = value.to_bytes()
        self._most = self._most or self._link.client.info()["limits"]["max_value_bytes"] - 5
        limit = f"the server takes {self._most:,} (limits.max_value_bytes)"
        if len(data) > self._most:  # The 5 bytes are the header of a bin.
            raise ValueError(f"{key!r} has {len(data):,} bytes, and {limit}: use smaller chunks")
        if key.endswith("zarr.json") and (size := chunk_bytes(data)) > self._most:
            text = f"a chunk has {size:,} bytes, and {limit}: one that does not compress is refused"
            warnings.warn(f"{key!r}: {text}", stacklevel=2)
        try:
            self._link.keys.put(key, data, create=create)
        except ConflictError:  # Another has created it, which is not asked for otherwise.
            pass

    def delete_sync(self, key: str) -> None:
        self._check_writable()
        self._link.keys.delete(key)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:  # fmt: skip
        await self._ensure_open()
        given = {"prototype": prototype, "byte_range": byte_range}
        return await asyncio.to_thread(self.get_sync, key, **given)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(self._link.keys.__contains__, key)

    async def set(self, key: str, value: Buffer) -> None:
        await self._ensure_open()
        await asyncio.to_thread(self.set_sync, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        await self._ensure_open()
        await asyncio.to_thread(self.set_sync, key, value, create=True)

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self.delete_sync, key)

    async def delete_dir(self, prefix: str) -> None:
        self._check_writable()
        await asyncio.to_thread(self._link.keys.namespace(_directory(prefix)).clear)

    async def clear(self) -> None:
        await self.delete_dir("")

    def list(self) -> AsyncIterator[str]:
        return self.list_prefix("")

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        after: str | None = None
        while page := await asyncio.to_thread(self._page, prefix, after=after):
            for after in page:
                yield after

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        directory = start = _directory(prefix)
        told = set[str]()
        while page := await asyncio.to_thread(self._page, directory, start=start):
            for key in page:
                name, slash, _ = key.removeprefix(directory).partition("/")
                if key >= start and name not in told:
                    told.add(name)
                    yield name
                # "0" follows "/": the next start lies behind all keys of a directory.
                start = max(start, f"{directory}{name}0" if slash else key + "\0")

    def _page(self, prefix: str, **bounds: str | None) -> Sequence[str]:
        entries = self._link.keys.scan(prefix, limit=PAGE, values=False, **bounds)  # type: ignore[arg-type]
        return [entry.key for entry in entries]


def _directory(prefix: str) -> str:
    return prefix.rstrip("/") + "/" if prefix.strip("/") else ""


def chunk_bytes(metadata: bytes) -> int:
    """Return the size of an array's chunks, or shards, before compression; 0 = unknown."""
    try:
        array = json.loads(metadata)
        shape = array["chunk_grid"]["configuration"]["chunk_shape"]
        item = parse_dtype(array["data_type"], zarr_format=3).to_native_dtype().itemsize
    except (ValueError, KeyError, TypeError):
        return 0
    return int(math.prod(shape) * item)
