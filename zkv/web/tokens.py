"""Who may log in: the file that maps a token's hash to a user's key file, and the logins.

    [tokens]
    "SHA-256 of the token, in hex" = "ann.key"
    "..." = ""                                  # the key of the console itself

The file holds no secret: a token has 256 bits of chance, so nobody finds it from its hash. It is
read again when it has changed; a bad one is refused whole, and the old one stays in force. So is
one that others may change: who writes it may have any key that the console can read. Whoever is no
longer in it is out at once, also a browser that has logged in; with an empty table, that is all.

A browser gets a cookie of its own for a token. The logins are in memory, by the hash of the cookie.
Hashes of what came in are compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from zkv.config.toml import toml_value
from zkv.errors import ConfigError
from zkv.reading import BadTextError, decode, parse_toml, read_file
from zkv.writing import Target

_log = logging.getLogger("zkv.web")

OWN: Final = ""
"""In place of a key file: the key that the console was started with."""
LOGIN_SECONDS: Final = 12 * 3600.0
"""A login ends after this long without a request."""
MOST_LOGINS: Final = 100
"""Browsers at a time that have logged in with one token: no user logs another one out."""
_HASH: Final = re.compile(r"[0-9a-f]{64}")


def new_token() -> str:
    """Return a new token."""
    return secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    """Return the hash of a token, as the file has it."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


class Tokens:
    """The tokens that are in force.

    Args:
        file: the file of tokens; None = there is none.
        own: a token for the console's own key; None = none.

    Raises:
        ConfigError: the file cannot be used; names it.
    """

    def __init__(self, file: Path | None, own: str | None = None) -> None:
        self._file = file
        self._own = {} if own is None else {hash_of(own): OWN}
        self._stamp: tuple[int, ...] | None = None
        self._told = ""
        self._users: Mapping[str, str] = {}
        if file is not None:
            self._stamp = _stamp(file)
            self._users = read_tokens(file)
            if not self._users:
                raise ConfigError(f"{file}: there is no token in it; see --add-token")

    @property
    def has_own(self) -> bool:
        """True if there is a token for the console's own key that is in no file."""
        return bool(self._own)

    def find(self, token: str) -> str | None:
        """Return the hash of a token that is in force; None if it is not."""
        wanted = hash_of(token).encode()
        found = None
        for known in self._present():  # All of them, so that the time tells nothing.
            if hmac.compare_digest(known.encode(), wanted):
                found = known
        return found

    def key_file(self, token_hash: str) -> str | None:
        """Return the key file of a token; `OWN` for the console's own; None if it has gone."""
        return self._present().get(token_hash)

    def _present(self) -> Mapping[str, str]:
        if self._file is not None:
            try:
                stamp = _stamp(self._file)
                if stamp != self._stamp:
                    self._users = read_tokens(self._file)
                    self._stamp = stamp
                self._told = ""
            except ConfigError as error:
                if str(error) != self._told:
                    self._told = str(error)
                    _log.error("%s; the tokens stay as they were", error)
        return {**self._users, **self._own}


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        status = os.stat(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    if status.st_mode & stat.S_IWOTH:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(f"{file}: others may change it (mode {mode:04o}): chmod 600 {file}")
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_tokens(file: Path) -> dict[str, str]:
    """Read a file of tokens: hash and key file of each. Raises ConfigError, which names it."""
    try:
        return _users(decode(read_file(file)), file)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from None
    except BadTextError as error:
        raise ConfigError(f"{file}: {error}") from None


def _users(text: str, file: Path) -> dict[str, str]:
    """Parse a file of tokens. Raises ConfigError and ValueError."""
    found = parse_toml(text)
    tokens = found.get("tokens")
    if found.keys() != {"tokens"} or not isinstance(tokens, dict):
        raise ConfigError(f"{file}: expected one table, [tokens]")
    for token_hash, name in tokens.items():
        if not _HASH.fullmatch(token_hash):
            raise ConfigError(
                f"{file}: {token_hash[:8]!r}...: expected the SHA-256 of a token, 64 hex digits"
            )
        if not isinstance(name, str) or "\0" in name:
            raise ConfigError(f"{file}: {token_hash[:8]!r}...: expected the name of a key file")
    return {each: str(file.parent / name) if name else OWN for each, name in tokens.items()}


def add_token(file: Path, key_file: str) -> str:
    """Add a new token for a key file to a file of tokens, which is made if need be; return it.

    Raises:
        ConfigError: the file cannot be used or written; names it.
    """
    token = new_token()
    try:
        before = ""
        if file.exists():
            before = decode(read_file(file)).rstrip("\n") + "\n"
        text = (before or "[tokens]\n") + f'"{hash_of(token)}" = {toml_value(key_file)}\n'
        _users(text, file)
        with Target(file).open() as out:
            out.write(text.encode())
        if not before:
            os.chmod(file, 0o600)
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"{file}: a line could not be added: {error}") from None
    return token


class _Login(NamedTuple):
    token_hash: str
    last: float


class Logins:
    """The browsers that have logged in."""

    def __init__(self) -> None:
        self._logins: dict[str, _Login] = {}  # The one without requests for longest first.

    def begin(self, token_hash: str) -> str:
        """Log in; return the content of the cookie."""
        cookie = new_token()
        same = [each for each, login in self._logins.items() if login.token_hash == token_hash]
        for name in same[: max(0, len(same) - MOST_LOGINS + 1)]:
            del self._logins[name]
        self._logins[hash_of(cookie)] = _Login(token_hash, time.monotonic())
        return cookie

    def find(self, cookie: str) -> str | None:
        """Return the hash of the token with which a browser has logged in; None if it has not."""
        name = hash_of(cookie)
        login = self._logins.pop(name, None)
        now = time.monotonic()
        if login is None or now - login.last > LOGIN_SECONDS:
            return None
        self._logins[name] = login._replace(last=now)
        return login.token_hash

    def end(self, cookie: str) -> None:
        """Log out."""
        self._logins.pop(hash_of(cookie), None)
