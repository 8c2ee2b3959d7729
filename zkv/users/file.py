"""The users file: TOML with a table for each user.

A user is known by keys of CURVE, or on ipc endpoints by the numbers of system users. Everything in
the file is checked before anything of it is used: it counts as a whole, or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from zkv.errors import ConfigError, shorten, suggest
from zkv.keys import check_public_key
from zkv.reading import BadTextError, decode, parse_toml, read_file
from zkv.users.meter import Meter
from zkv.users.rights import ADMIN_RIGHTS, User

ANONYMOUS: Final = "anonymous"
"""The user that comes by tcp without CURVE."""
MOST_PREFIXES: Final = 1_000
"""Prefixes that a user may have: each request compares its keys with them."""

_NAME: Final = re.compile(r"[a-z0-9_-]+")
_PLACEHOLDER: Final = "{user}"


class UserEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """The table of a user, as the file has it; see docs/security.md."""

    keys: list[str] = []
    uids: list[Annotated[int, Meta(ge=0, le=2**32 - 2)]] = []
    read: Annotated[list[str], Meta(max_length=MOST_PREFIXES)] = []
    write: Annotated[list[str], Meta(max_length=MOST_PREFIXES)] = []
    admin: bool | list[Literal["monitor", "operate", "replicate"]] = False
    max_bytes: Annotated[int, Meta(ge=0, le=2**62)] = 0
    max_requests: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0
    max_in_flight_bytes: Annotated[int, Meta(ge=0, le=2**62)] = 0

    def user(self, name: str, meter: Meter | None = None) -> User:
        """Return the user.

        Args:
            name: the name.
            meter: counts the requests, if they are limited.
        """
        admin = self.admin if isinstance(self.admin, list) else ADMIN_RIGHTS * self.admin
        read, write = (
            [prefix.replace(_PLACEHOLDER, name) for prefix in prefixes]
            for prefixes in (self.read, self.write)
        )
        return User(name, read, write, admin, self.max_bytes, meter, self.max_in_flight_bytes)

    def credentials(self, name: str) -> Iterator[str]:
        """Yield the User-Ids by which libzmq tells that a message is of this user."""
        yield from self.keys
        for uid in self.uids:
            yield uid_credential(uid)
        if name == ANONYMOUS:
            yield ANONYMOUS


def uid_credential(uid: int) -> str:
    """Return the User-Id of a system user."""
    return f"uid:{uid}"


def read_users(path: Path) -> dict[str, UserEntry]:
    """Read the users file: name -> entry.

    Raises:
        ConfigError: it cannot be read, has no user, or anything in it is wrong; names file, user
            and field.
    """
    try:
        table = parse_toml(decode(read_file(path)))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except BadTextError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    try:
        return check_users(table)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def check_users(table: dict[str, Any]) -> dict[str, UserEntry]:
    """Check the content of a users file, and return the users. Raises ValueError."""
    others = [name for name in table if name != "users"]
    if others:
        raise ValueError(f"unknown table or key {shorten(others[0])}; expected tables [users.NAME]")
    users = table.get("users")
    if not isinstance(users, dict) or not users:
        raise ValueError("there is no user: expected at least one table [users.NAME]")
    entries = {name: _entry(name, values) for name, values in users.items()}
    _check_credentials(entries)
    return entries


def _entry(name: str, values: Any) -> UserEntry:
    """Check the table of one user. Raises ValueError."""
    where = f"users.{name}"
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"users: a name consists of small letters a to z, digits, - and _, got {shorten(name)}"
        )
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a table [users.{name}]")
    for field in values:
        if field not in UserEntry.__struct_fields__:
            advice = suggest(field, UserEntry.__struct_fields__)
            raise ValueError(f"{where}: unknown field {shorten(field)}; {advice}")
    try:
        entry = msgspec.convert(values, UserEntry)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        raise ValueError(f"{where}{place.rstrip('`')}: {text}") from None
    _check_fields(name, entry)
    return entry


def _check_fields(name: str, entry: UserEntry) -> None:
    """Check what types cannot express. Raises ValueError."""
    for place, key in enumerate(entry.keys):
        try:
            check_public_key(key)
        except ValueError as error:
            raise ValueError(f"users.{name}.keys[{place}]: {error}") from None
    for field in ("read", "write"):
        for place, prefix in enumerate(getattr(entry, field)):
            if set(prefix.replace(_PLACEHOLDER, "")) & set("{}"):
                raise ValueError(
                    f"users.{name}.{field}[{place}]: {shorten(prefix)}: a brace is only allowed in "
                    f"{_PLACEHOLDER}, which stands for the name of the user"
                )
    if name == ANONYMOUS and (entry.keys or entry.uids):
        raise ValueError(
            f"users.{name}: this is whoever comes by tcp without CURVE: it has no keys or uids"
        )


def _check_credentials(entries: dict[str, UserEntry]) -> None:
    """Check that each key and each uid is of one user. Raises ValueError."""
    owners: dict[str, str] = {}
    for name, entry in entries.items():
        for credential in entry.credentials(name):
            owner = owners.setdefault(credential, name)
            if owner != name:
                raise ValueError(f"users.{name}: {credential} is of users.{owner}, too")
