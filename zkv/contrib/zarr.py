"""A store for zarr 3 (https://zarr.dev): arrays, groups and chunks as entries of a server.

An object of zarr is the entry ``prefix + key``, with its bytes as value.

zarr calls a store from event loops of its own. Requests run in threads there, so that packing a
large chunk holds nobody up, and a store works in several loops, and after a fork.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Self

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from zkv.client import ConflictError
from zkv.contrib._chunks import check_size, part_of
from zkv.contrib._link import Link
from zkv.contrib._requests import PAGE, names_in


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

    def with_read_only(self, read_only: bool = False) -> Self:
        made = type(self).__new__(type(self))
        Store.__init__(made, read_only=read_only)
        made._link = self._link
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
        buffer = (prototype or default_buffer_prototype()).buffer
        return buffer.from_bytes(part_of(data, byte_range))

    def set_sync(self, key: str, value: Buffer, *, create: bool = False) -> None:
        self._check_writable()
        if not isinstance(value, Buffer):
            raise TypeError(f"the value of {key!r} must be a Buffer, not a {type(value).__name__}")
        data = value.to_bytes()
        check_size(key, data, self._link.largest_bytes)
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

    def list(self) -> AsyncIterator[str]:
        return self.list_prefix("")

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        found = self._link.keys.scan(prefix, values=False)
        async for key in _in_threads(entry.key for entry in found):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        async for name in _in_threads(names_in(self._link.keys, _directory(prefix))):
            yield name


async def _in_threads(found: Iterator[str]) -> AsyncIterator[str]:
    """Iterate page by page, each in a thread."""
    while page := await asyncio.to_thread(lambda: list(islice(found, PAGE))):
        for each in page:
            yield each


def _directory(prefix: str) -> str:
    return prefix.rstrip("/") + "/" if prefix.strip("/") else ""
