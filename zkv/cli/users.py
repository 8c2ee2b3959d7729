"""``zkv user``: adds users to the users file, lists and removes them.

The file is replaced as a whole. Nothing is written that a server would refuse. A running server
reads the file on SIGHUP, and logs what has changed.

Exit status: 0 done; 2 wrong usage, or the file is bad or cannot be written.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from zkv import system
from zkv.cli.settings import read_file_and_environment
from zkv.cli.users_text import CannotEditError, Fields, with_fields, with_user, without_user
from zkv.cli.values import to_bytes
from zkv.config import toml_value
from zkv.errors import ConfigError, suggest
from zkv.keys import check_public_key
from zkv.reading import BadTextError, decode, parse_toml, read_file
from zkv.streams import complain, write
from zkv.users.file import ANONYMOUS, UserEntry, check_users, read_users
from zkv.users.rights import ADMIN_RIGHTS
from zkv.writing import Target

ALL: Final = "all"
"""The option for all rights to administer."""
LISTS: Final = {"keys": "key", "uids": "uid", "read": "read", "write": "write"}
"""Field of a user -> option."""
NUMBERS: Final = ("max_bytes", "max_requests", "max_in_flight_bytes")
"""Fields of a user that are a limit."""
NOT_READ: Final = "a running server reads the file on SIGHUP"


def add(options: argparse.Namespace) -> int:
    """Add a user, or more to a user who is there. Raises ConfigError."""
    _check_keys(options.key)
    path, name = _file(options), options.name
    with _locked(path):
        text = _text(path)
        users = _users_of(path, text)
        there = users.get(name)
        changed = _more(name, there or {}, _fields(options))
        if there is not None and not changed:
            write(to_bytes(f"{name} has all of that already; {path} stays as it is"))
            return 0
        after = (there or {}) | changed
        _check(path, users | {name: after})
        _write(path, with_user if there is None else with_fields, text, name, changed)
    what = f"{name} added to" if there is None else f"{', '.join(changed)} of {name} changed in"
    write(to_bytes(f"{what} {path}; {NOT_READ}"))
    if name != ANONYMOUS and not (after.get("keys") or after.get("uids")):
        complain("zkv", f"{name} has neither a key nor a uid, so nobody can connect as {name}")
    return 0


def show(options: argparse.Namespace) -> int:
    """Print the users as a file. Raises ConfigError."""
    tables = [table_of(name, entry) for name, entry in read_users(_file(options)).items()]
    write(to_bytes("\n\n".join(tables)))
    return 0


def remove(options: argparse.Namespace) -> int:
    """Remove a user. Raises ConfigError."""
    path, name = _file(options), options.name
    with _locked(path):
        users = read_users(path)
        if name not in users:
            raise ConfigError(f"{path}: there is no user {name!r}; {suggest(name, users)}")
        if len(users) == 1:
            raise ConfigError(
                f"{path}: {name} is the last user, and a server refuses a file without users: add "
                'another one first, or have the server know no users (security.users = "")'
            )
        _write(path, without_user, _text(path), name)
    write(to_bytes(f"{name} removed from {path}; {NOT_READ}"))
    return 0


def _file(options: argparse.Namespace) -> Path:
    """Return the users file that options, settings or environment name. Raises ConfigError."""
    if options.users is not None:
        return Path(options.users)
    named = read_file_and_environment(options.config).security.users
    if not named:
        raise ConfigError(
            "no users file: name it with --users FILE, or with --config FILE, a file of settings "
            "in which security.users names it"
        )
    return Path(named)


def _check_keys(keys: list[str]) -> None:
    """Check public keys, without showing what they are instead. Raises ConfigError."""
    for key in keys:
        try:
            check_public_key(key)
        except ValueError as error:
            is_file = "\0" not in key and os.path.exists(key)
            why = "this is the name of a file" if is_file else str(error)
            advice = "; give the public key itself, which zkv keygen has printed" * is_file
            raise ConfigError(f"--key: {why}{advice}") from None


def _fields(options: argparse.Namespace) -> Fields:
    """Return the fields that options give a user."""
    fields: Fields = {
        field: list(dict.fromkeys(values))
        for field, option in LISTS.items()
        if (values := getattr(options, option))
    }
    if options.admin:
        rights = [right for right in ADMIN_RIGHTS if right in options.admin]
        fields["admin"] = True if ALL in options.admin else rights
    for field in NUMBERS:
        if (number := getattr(options, field)) is not None:
            fields[field] = number
    return fields


def _more(name: str, there: Fields, given: Fields) -> Fields:
    """Return the new values of the fields of a user that change. Raises ConfigError."""
    changed: Fields = {}
    for field, value in given.items():
        before = there.get(field)
        if field in NUMBERS and before not in {None, value}:
            raise ConfigError(
                f"{name} has {field} = {before} already: change it in the file by hand"
            )
        after = _sum(before, value)
        if after != before:
            changed[field] = after
    return changed


def _sum(before: Any, value: Any) -> Any:
    """Return the value of a field that has both."""
    if before is True:
        return True
    if isinstance(before, list) and isinstance(value, list):
        return before + [each for each in value if each not in before]
    return value


def table_of(name: str, entry: UserEntry) -> str:
    """The table of a user; fields that have their default are left out."""
    default = UserEntry()
    lines = [f"[users.{name}]"]
    for field, value in msgspec.structs.asdict(entry).items():
        if value != getattr(default, field):
            lines.append(f"{field} = {toml_value(value)}")
    return "\n".join(lines)


def _text(path: Path) -> str:
    """Return the content of the file; nothing if there is none. Raises ConfigError."""
    try:
        return decode(read_file(path))
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except BadTextError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def _users_of(path: Path, text: str) -> dict[str, Fields]:
    """Return the users in the content of the file. Raises ConfigError."""
    try:
        table = parse_toml(text)
        if table:
            check_users(table)
    except BadTextError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    users: dict[str, Fields] = table.get("users", {})
    return users


def _check(path: Path, users: dict[str, Fields]) -> None:
    """Check that a server would accept these users. Raises ConfigError."""
    try:
        check_users({"users": users})
    except ValueError as error:
        raise ConfigError(f"{path} is not changed: {error}") from None


def _write(path: Path, edit: Callable[..., str], text: str, *arguments: Any) -> None:
    """Replace the file by its edited content. Raises ConfigError."""
    try:
        edited = edit(text, *arguments)
        target = Target(path)
        if not target.is_file:
            raise ConfigError(f"{path}: it is not a regular file")
        with target.open() as file:
            if not path.exists():  # Whoever may write it takes all rights.
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                os.fchmod(file.fileno(), mode & ~(stat.S_IWGRP | stat.S_IWOTH))
            file.write(edited.encode())
    except CannotEditError as error:
        raise ConfigError(f"{path}: edit it by hand: {error}") from None
    except OSError as error:
        raise ConfigError(f"{error.filename or path}: {error.strerror or error}") from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other commands from editing the file meanwhile; they wait. Raises ConfigError."""
    try:
        directory = os.open(os.path.dirname(os.path.realpath(path)), os.O_RDONLY | os.O_DIRECTORY)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        with contextlib.suppress(OSError):  # Not every file system can.
            system.lock(directory, wait=True)
        yield
    finally:
        os.close(directory)
