"""How a client proves who it is to etcd, and etcd to the client: TLS, user and password.

The files are read once, when the client is made. No message shows what is in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from zkv.errors import ConfigError
from zkv.keys import read_secret_file


class EtcdCredentials(NamedTuple):
    """The contents of the files that `EtcdSecurity` names.

    Args:
        tls: True if connections are encrypted.
        ca: the certificates that are trusted, in PEM; None for those of the system.
        cert: the client's own, in PEM.
        key: its secret key, in PEM.
        user: the user's name; empty without one.
        password: its password.
    """

    tls: bool = False
    ca: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = None
    user: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"EtcdCredentials(tls={self.tls!r}, user={self.user!r}, ...)"


@dataclass(frozen=True)
class EtcdSecurity:
    """Files and names with which a client proves who it is.

    Args:
        ca: the file with the certificates that are trusted, in PEM. With it connections are
            encrypted, as with endpoints that begin with ``https://``.
        cert: the file with the client's own certificate, in PEM.
        key: the file with its secret key, in PEM.
        user: the user's name; empty without one.
        password_file: the file with its password, as one line. Only its owner may read it.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    user: str = ""
    password_file: str | None = None

    def read(self, scheme: str) -> EtcdCredentials:
        """Read the files.

        Args:
            scheme: with which the endpoints begin: ``"http"``, ``"https"``, or empty.

        Raises:
            ConfigError: a file cannot be read, others may read the password, one of two that
                belong together is missing, or certificates are given for ``http://``.
        """
        has_files = self.ca is not None or self.cert is not None
        if has_files and scheme == "http":
            raise ConfigError("etcd is reached with certificates at https://, and not at http://")
        if (self.cert is None) != (self.key is None):
            raise ConfigError("a certificate for etcd and its key are given together")
        if bool(self.user) != (self.password_file is not None):
            raise ConfigError("a user of etcd and the file of the password are given together")
        return EtcdCredentials(
            has_files or scheme == "https",
            _content(self.ca), _content(self.cert), _content(self.key),
            self.user, _password(self.password_file),
        )  # fmt: skip


def _password(name: str | None) -> str:
    if name is None:
        return ""
    try:
        return read_secret_file(name).decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: the password is not in UTF-8") from None


def _content(name: str | None) -> bytes | None:
    if name is None:
        return None
    try:
        with open(name, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
