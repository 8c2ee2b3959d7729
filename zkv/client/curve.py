"""The keys of a client. With them CURVE encrypts its connections, and proves who both sides are.

Keys apply to tcp endpoints alone: what goes over ipc or inproc stays on one machine, and servers
there ask for none. So a list of endpoints may mix all of them, and the feed of a server may need
keys although its requests go over ipc.

A client may know several keys of its server, for the time in which that changes its key. It tries
them like the addresses of a name. A client without a key file makes a key pair for itself, which
lasts as long as the client: a server without users accepts any.

No message shows a secret key.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NoReturn

import zmq

from zkv import checks
from zkv.errors import ConfigError
from zkv.keys import KeyPair, check_public_key, read_key_file

if TYPE_CHECKING:
    from argparse import Namespace

    from zkv.client.namespace import ClientOps


class _Variable:
    """The default of an argument: the value of a variable of the environment, if that is set.

    Args:
        name: of the variable; signatures show it.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


SERVER_KEY_VARIABLE: Final = "ZKV_SERVER_PUBLIC_KEY"
KEY_FILE_VARIABLE: Final = "ZKV_KEY_FILE"
SERVER_KEY: Final[Any] = _Variable(SERVER_KEY_VARIABLE)
"""The default of ``server_key``. None may be passed by mistake, and would mean no encryption."""
KEY_FILE: Final[Any] = _Variable(KEY_FILE_VARIABLE)
"""The default of ``key_file``."""


class CurveKeys:
    """The keys of one client.

    Args:
        server_key: the public key of the server, or several of which it has one; empty = none;
            `SERVER_KEY` = those in the environment, where commas separate them.
        key_file: the file with the secret key of the client; `KEY_FILE` = the one that the
            environment names.

    Attributes:
        servers: the public keys that the server may have; empty = connections are not encrypted.
        servers_from: the argument or the variable that gave them.
        file: the name of the key file; empty = there is none.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a key is malformed.
    """

    __slots__ = ("_file_from", "_pair", "file", "servers", "servers_from")

    def __init__(self, server_key: object, key_file: object) -> None:
        self._pair: KeyPair | None = None
        self.servers_from = "server_key"
        if server_key is SERVER_KEY:
            self.servers_from = SERVER_KEY_VARIABLE
            text = os.environ.get(SERVER_KEY_VARIABLE)
            server_key = [each.strip() for each in text.split(",")] if text else ()
        self.servers = _checked(self.servers_from, server_key)
        self._file_from = "key_file"
        if key_file is KEY_FILE:
            self._file_from = KEY_FILE_VARIABLE
            key_file = os.environ.get(KEY_FILE_VARIABLE, "")
            if self.servers_from == "server_key" and not self.servers:
                key_file = ""  # The program wants no keys, whatever the environment says.
        self.file = _checked_name(key_file, is_needed=self._file_from == "key_file")

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys cannot be pickled or copied: pass the name of the key file")

    def of(self, endpoint: str) -> tuple[str, ...]:
        """Return the keys that the server at a checked endpoint may have; empty = it needs none.

        Raises:
            ConfigError: the key file cannot be used, or there is one, but no key of the server.
        """
        if not endpoint.startswith("tcp://"):
            return ()
        if self.servers:
            self.pair()
        elif self.file:
            raise ConfigError(
                f"{self._file_from}: a key file is of no use without the key of the server: pass "
                f"server_key, or set {SERVER_KEY_VARIABLE}"
            )
        return self.servers

    def pair(self) -> KeyPair:
        """Return the key pair of the client. Raises ConfigError."""
        if self._pair is None:
            if not zmq.has("curve"):
                raise ConfigError(f"{self.servers_from}: the libzmq here was built without CURVE")
            self._pair = self._read() if self.file else _new_pair()
        return self._pair

    def equip(self, socket: zmq.Socket[bytes], server_key: str) -> None:
        """Make a socket use CURVE, with a server that has this key."""
        pair = self.pair()
        socket.curve_serverkey = server_key.encode()
        socket.curve_publickey = pair.public.encode()
        socket.curve_secretkey = pair.secret.encode()

    def _read(self) -> KeyPair:
        try:
            return read_key_file(self.file)
        except ConfigError as error:
            text = f"{self._file_from}: {error}"
            if _is_key(self.file) and not os.path.exists(self.file):
                text = f"{self._file_from}: the name of a file, not a key itself"
            raise ConfigError(text) from None


def server_key_of(client: ClientOps) -> str:
    """Return the key of the server that a client uses; empty = nothing is encrypted."""
    return client._endpoints.current.server_key


def given(options: Namespace) -> dict[str, Any]:
    """Return the arguments of a client that the options of a command give."""
    arguments = {"server_key": options.server_key, "key_file": options.key_file}
    return {name: value for name, value in arguments.items() if value is not None}


def _checked(name: str, server_key: object) -> tuple[str, ...]:
    """Check the keys that a server may have. Raises TypeError or ValueError, with the name."""
    if isinstance(server_key, str):
        server_key = [server_key]
    if isinstance(server_key, bytes) or not isinstance(server_key, Iterable):
        raise TypeError(f"{name}: a str, or a list of them; not {type(server_key).__name__}")
    try:
        return tuple(dict.fromkeys(check_public_key(each) for each in server_key))
    except (TypeError, ValueError) as error:
        raise checks.named(name, error) from None


def _checked_name(key_file: object, is_needed: bool) -> str:
    """Check the name of a key file. Raises TypeError or ValueError, which do not show it."""
    if not isinstance(key_file, (str, os.PathLike)):
        raise TypeError(f"key_file: the name of a file; not {type(key_file).__name__}")
    name = os.fspath(key_file)
    if is_needed and not name:
        raise ValueError("key_file: the name of a file; not empty")
    return os.fsdecode(name)


def _is_key(text: str) -> bool:
    try:
        check_public_key(text)
    except ValueError:
        return False
    return True


def _new_pair() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())
