"""Keys of CURVE (https://rfc.zeromq.org/spec/26/), which encrypts and authenticates connections.

A key has 32 bytes, which are written as 40 characters of Z85 (https://rfc.zeromq.org/spec/32/). A
file holds a secret key alone, as one line, since the public key follows from it. Nobody but its
owner may read it; one that others may read is refused, as by OpenSSH. No message ever shows what is
in such a file.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from pathlib import Path
from typing import Final, NamedTuple

from zkv.errors import ConfigError

KEY_CHARACTERS: Final = 40
"""Characters of a key in Z85."""
MOST_BYTES: Final = 1_024
"""Bytes of a key file that are read at most."""
_Z85: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_TAKE_KEYS: Final = frozenset({"--server-key", "--key"})
"""Options of commands."""
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_THAN_GROUP: Final = _OTHERS & ~stat.S_IRGRP


class KeyPair(NamedTuple):
    """A key pair, each half in Z85."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r}, secret=...)"


def check_public_key(text: object) -> str:
    """Check a public key, and return it.

    Raises:
        TypeError: it is not a str.
        ValueError: it is no key. The message does not show it: it may be a secret by mistake.
    """
    if not isinstance(text, str):
        raise TypeError(f"a key is a str, not {type(text).__name__}")
    if not _is_key(text):
        raise ValueError(
            f"not a key: expected {KEY_CHARACTERS} characters of Z85, as zkv keygen prints them, "
            f"got {len(text)} characters"
        )
    return text


def read_key_file(name: str | os.PathLike[str]) -> KeyPair:
    """Read a secret key, and return it with its public key.

    Raises:
        ConfigError: the file cannot be read, others may read it, or it holds no key; names it.
    """
    secret = read_secret_file(name).decode("latin-1")
    if not _is_key(secret):
        raise ConfigError(
            f"{_named(name)}: not a key file: expected one line of {KEY_CHARACTERS} characters of "
            f"Z85, as zkv keygen writes it"
        )
    import zmq

    return KeyPair(zmq.curve_public(secret.encode()).decode(), secret)


def read_secret_file(name: str | os.PathLike[str]) -> bytes:
    """Read a file with a secret, such as a password: `MOST_BYTES` of it, less space around it.

    The group may read one that belongs to root, unless this process is root's. So systemd and
    Kubernetes hand secrets to a service that is not root's (as in PostgreSQL, for ssl_key_file).

    Raises:
        ConfigError: the file cannot be read, or others may read it; names it.
    """
    path = _named(name)
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            mode = stat.S_IMODE(status.st_mode)
            is_handed = status.st_uid == 0 != os.geteuid()
            is_open = mode & (_OTHERS_THAN_GROUP if is_handed else _OTHERS)
            content = b"" if is_open else file.read(MOST_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if is_open:
        raise ConfigError(f"{path}: others may read it (mode {mode:04o}): chmod 600 {path}")
    return content.strip()


def argument(text: str) -> list[str]:
    """Parse public keys between commas, as a ``type`` of argparse."""
    try:
        return [check_public_key(each.strip()) for each in text.split(",")]
    except ValueError as error:
        from argparse import ArgumentTypeError

        raise ArgumentTypeError(str(error)) from None


def joined(words: list[str]) -> list[str]:
    """Join the options of a command line that take keys with their values.

    A key may begin with a dash: one that `make_key_file` has made does not, but others make keys,
    too. argparse would take it for an option.
    """
    words = list(words)
    for at, word in enumerate(words):
        if word == "--":
            break
        if word in _TAKE_KEYS and at + 1 < len(words):
            words[at : at + 2] = [f"{word}={words[at + 1]}"]
    return words


def make_key_file(name: str | os.PathLike[str]) -> str:
    """Make a key pair, write the secret key to a new file, and return the public key.

    Raises:
        ConfigError: the file exists, or cannot be written; names it.
    """
    import zmq

    path = _named(name)
    public, secret = zmq.curve_keypair()
    while not public[:1].isalnum():  # After an option, a key that begins with - would be one, too.
        public, secret = zmq.curve_keypair()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.fchmod(descriptor, 0o600)  # Whatever the umask is.
            os.write(descriptor, secret + b"\n")
            os.fsync(descriptor)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        is_there = getattr(error, "errno", None) == errno.EEXIST
        reason = "exists already: a key is never overwritten" if is_there else ""
        raise ConfigError(
            f"{path}: {reason or getattr(error, 'strerror', None) or error}"
        ) from None
    return str(public.decode())


def _named(name: str | os.PathLike[str]) -> Path:
    """Return the path of a key file. Raises ConfigError if no file can have that name."""
    if "\0" in os.fspath(name):
        raise ConfigError(f"{os.fspath(name)!r}: the name of a file holds no NUL character")
    return Path(name)


def _is_key(text: str) -> bool:
    """Return True if a text is a key: five characters of Z85 hold four bytes."""
    if not _Z85.fullmatch(text):
        return False
    from zmq.utils import z85

    try:
        return len(z85.decode(text)) == KEY_CHARACTERS * 4 // 5
    except struct.error:  # More than four bytes hold.
        return False
