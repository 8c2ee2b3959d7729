"""Small files that hold one record as JSON: replaced whole, or not at all.

The new content is written beside the file, synced, and renamed over it; then the directory is
synced. So a crash leaves the old content or the new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from zkv.durability import snapshot
from zkv.errors import DamageError, DataDirError

if TYPE_CHECKING:
    from pathlib import Path

    from msgspec import Struct

    from zkv.durability.files import Files

_T = TypeVar("_T")


def read_record(files: Files, path: Path, kind: type[_T]) -> _T:
    """Return the record in a file. Raises DamageError, OSError."""
    with files.open_read(path) as file:
        content = file.read()
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise DamageError(f"{path}: damaged: {error}") from None


def find_record(files: Files, path: Path, kind: type[_T]) -> _T | None:
    """Return the record in a file; None if there is no file. Raises DamageError, DataDirError."""
    try:
        return read_record(files, path, kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataDirError(f"{path}: {error.strerror or error}") from error


def write_record(files: Files, path: Path, record: Struct) -> None:
    """Replace a file with a record. Raises OSError."""
    beside = path.with_name(path.name + snapshot.UNFINISHED)
    with files.create(beside) as file:
        files.write(file, msgspec.json.format(msgspec.json.encode(record)) + b"\n")
        files.sync(file)
    files.rename(beside, path)
    files.sync_directory(path.parent)
