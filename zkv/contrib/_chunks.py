"""The bytes of zarr's objects: parts that are asked for, and sizes that the server takes."""

from __future__ import annotations

import json
import math
import warnings

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.dtype import parse_dtype


def part_of(data: bytes, wanted: ByteRequest | None) -> bytes:
    """Return the part of an object that is asked for; None = all of it.

    Raises:
        ValueError: it is no request of zarr.
    """
    if isinstance(wanted, RangeByteRequest):
        return data[wanted.start : wanted.end]
    if isinstance(wanted, OffsetByteRequest):
        return data[wanted.offset :]
    if isinstance(wanted, SuffixByteRequest):  # `[-0:]` would be all.
        return data[max(0, len(data) - wanted.suffix) :]
    if wanted is not None:
        raise ValueError(f"Unexpected byte_range, got {wanted}.")
    return data


def check_size(key: str, data: bytes, most: int) -> None:
    """Warn of the metadata of an array whose chunks may be too large.

    Args:
        key: of the object.
        data: the object.
        most: bytes that the server takes.

    Raises:
        ValueError: the object itself is too large.
    """
    limit = f"the server takes {most:,} (limits.max_value_bytes)"
    if len(data) > most:
        raise ValueError(f"{key!r} has {len(data):,} bytes, and {limit}: use smaller chunks")
    if key.endswith("zarr.json") and (size := chunk_bytes(data)) > most:
        text = f"a chunk has {size:,} bytes, and {limit}: one that does not compress is refused"
        warnings.warn(f"{key!r}: {text}", stacklevel=3)


def chunk_bytes(metadata: bytes) -> int:
    """Return the size of an array's chunks, or shards, before compression; 0 = unknown."""
    try:
        array = json.loads(metadata)
        shape = array["chunk_grid"]["configuration"]["chunk_shape"]
        item = parse_dtype(array["data_type"], zarr_format=3).to_native_dtype().itemsize
    except (ValueError, KeyError, TypeError):
        return 0
    return int(math.prod(shape) * item)
