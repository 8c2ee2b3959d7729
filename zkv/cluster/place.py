"""The file in a data directory that says of which store it is a member, and under which name.

The file ``member.json`` is written before anything of the store is. A directory that has it is
opened as a member of that store alone: on its own, or in another store, it would get a history that
is not that of the others.
"""

from __future__ import annotations

import secrets
import socket
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from zkv.durability import snapshot
from zkv.errors import DamageError, DataDirError

if TYPE_CHECKING:
    from pathlib import Path

    from zkv.durability.files import Files

FILE: Final = "member.json"
MOST_HOST: Final = 40
"""Characters of the host's name in a name that is made up."""


class MemberFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The content of the file.

    Args:
        store: the identity of the store.
        member: the member's name.
        cluster: the identity of the etcd cluster; another one may have another history.
        limits: the settings on which the store's state depends.
    """

    store: str
    member: str
    cluster: int
    limits: dict[str, int | float]


def new_name() -> str:
    """Return a name for a member that was given none."""
    host = "".join(each if each.isalnum() or each in "-." else "-" for each in socket.gethostname())
    return f"{host[:MOST_HOST]}-{secrets.token_hex(4)}"


def read_member(files: Files, directory: Path) -> MemberFile | None:
    """Return what a data directory says; None if it is not that of a member.

    Raises DamageError, DataDirError.
    """
    path = directory / FILE
    try:
        with files.open_read(path) as file:
            return msgspec.json.decode(file.read(), type=MemberFile)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise DamageError(f"{path}: damaged: {error}") from None
    except OSError as error:
        raise DataDirError(f"{path}: {error.strerror or error}") from error


def write_member(files: Files, directory: Path, record: MemberFile) -> None:
    """Write the file. Raises OSError."""
    path = directory / FILE
    beside = path.with_name(path.name + snapshot.UNFINISHED)
    with files.create(beside) as file:
        files.write(file, msgspec.json.format(msgspec.json.encode(record)) + b"\n")
        files.sync(file)
    files.rename(beside, path)
    files.sync_directory(directory)
