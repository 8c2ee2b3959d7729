"""How a client proves who it is to etcd, and etcd to the client: TLS, user and password.

The files are read once, when the client is made. No message shows what is in them.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from zkv.errors import ConfigError
from zkv.etcd.link import PROTOCOL, text_of
from zkv.keys import read_secret_file


class EtcdCredentials(NamedTuple):
    """The contents of the files that `EtcdSecurity` names.

    Args:
        tls: how connections are encrypted; None if they are not.
        user: the user's name; empty without one.
        password: its password.
    """

    tls: ssl.SSLContext | None = None
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
            self._context() if has_files or scheme == "https" else None,
            self.user, _password(self.password_file),
        )  # fmt: skip

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols([PROTOCOL])
        if self.ca is None:
            context.load_default_certs()
        else:
            with _naming(self.ca):
                context.load_verify_locations(self.ca)
        if self.cert is not None and self.key is not None:
            for name in (self.cert, self.key):  # The errors of what follows do not say which.
                with _naming(name), open(name, "rb"):
                    pass
            with _naming(f"{self.cert}, {self.key}"):
                context.load_cert_chain(self.cert, self.key, _passphrase)
        return context


def _passphrase() -> NoReturn:
    """Have no terminal asked for one."""
    raise ConfigError("a key for etcd must not have a passphrase")


def _password(name: str | None) -> str:
    if name is None:
        return ""
    try:
        return read_secret_file(name).decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: the password is not in UTF-8") from None


@contextmanager
def _naming(files: str) -> Iterator[None]:
    """Name files in the error, if they cannot be used."""
    try:
        yield
    except ssl.SSLError as error:
        raise ConfigError(f"{files}: {text_of(error)}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{files}: {getattr(error, 'strerror', None) or error}") from None
