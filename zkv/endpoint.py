"""Checks endpoints, for the server, the clients and all tools.

libzmq accepts many endpoints that can never connect, and some that connect elsewhere: it cuts port
numbers to 16 bits. So an endpoint that does not certainly mean one place is refused here, with the
reason.

An endpoint is ``tcp://HOST:PORT``, ``ipc://PATH`` or ``inproc://NAME``. HOST is an IPv4 address, an
IPv6 address in brackets, or a name; for a server, also the name of a network interface. Those for
HTTP, and those of etcd in the URL of a store, are checked likewise.
"""

from __future__ import annotations

import os
import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple

from zkv.defaults import DEFAULT_ENDPOINT

VARIABLE: Final = "ZKV_ENDPOINT"
"""The environment variable that names the server for tools."""
TRANSPORTS: Final = ("tcp://", "ipc://", "inproc://")
HTTP: Final = "http://"
ETCD: Final = "etcd://"
LONGEST_PATH: Final = 107
"""Bytes of a path: the system's address structure of Unix sockets holds no more."""
LONGEST_NAME: Final = 253
HIGHEST_PORT: Final = 65_535
LONGEST_PREFIX: Final = 255
"""Characters of the prefix of a store in etcd: each of its keys there begins with it."""
SHOWN: Final = 300
"""Characters of an endpoint that a message shows."""

_LABEL: Final = re.compile(r"[A-Za-z0-9_-]{1,63}")
_NUMBER: Final = re.compile(r"\d+|0[xX][0-9a-fA-F]*")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_PREFIX: Final = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")


class StoreUrl(NamedTuple):
    """The place of a store in etcd, ``etcd://HOST:PORT,HOST:PORT/PREFIX``."""

    endpoints: list[str]
    """Those of etcd, each ``HOST:PORT``; an IPv6 address is in brackets."""
    prefix: str
    """The beginning of the store's keys in etcd, without a slash at either end."""


def check_to_bind(endpoint: str) -> None:
    """Check that a server can listen on an endpoint. Raises ValueError, which says what is wrong.

    The port ``*``, or 0, means a free one; the host ``*`` means all addresses.
    """
    address = _address(endpoint)
    if endpoint.startswith("tcp://"):
        host, port = _host_and_port(endpoint, address)
        if host != "*":
            _check_host(endpoint, host)
        if port != "*":
            _check_port(endpoint, port)


def split_http(endpoint: str) -> tuple[str, int]:
    """Return host and port of an endpoint for HTTP, ``http://HOST:PORT``.

    The port ``*`` is returned as 0, which means a free one, and the host ``*`` as 0.0.0.0. An IPv6
    address is returned without brackets.

    Raises ValueError, which says what is wrong.
    """
    if not endpoint.startswith(HTTP) or endpoint == HTTP or _CONTROL.search(endpoint):
        raise _wrong(endpoint, "expected http://HOST:PORT")
    host, port = _host_and_port(endpoint, endpoint.removeprefix(HTTP))
    if host != "*":
        _check_host(endpoint, host)
    if port != "*":
        _check_port(endpoint, port)
    every = "0.0.0.0"  # noqa: S104  who writes * means it
    return every if host == "*" else host.strip("[]"), 0 if port == "*" else int(port)


def split_store_url(url: str) -> StoreUrl:
    """Return the parts of the URL of a store. Raises ValueError, which says which part is wrong."""
    if "@" in url:  # Not shown: it may be a password.
        raise ValueError("the URL contains @: user and password do not belong into it")
    if not url.startswith(ETCD) or _CONTROL.search(url):
        raise _wrong_url(url, f"expected {ETCD}HOST:PORT,HOST:PORT/PREFIX")
    places, _, prefix = url.removeprefix(ETCD).partition("/")
    endpoints = places.split(",")
    if "" in endpoints:
        raise _wrong_url(url, "an endpoint is missing: expected HOST:PORT, with commas between")
    for at, place in enumerate(endpoints):
        _check_to_reach(f"{ETCD}{place}", place)
        if place in endpoints[:at]:
            raise _wrong_url(url, f"{place} is there twice")
    _check_prefix(url, prefix)
    return StoreUrl(endpoints, prefix)


def _check_prefix(url: str, prefix: str) -> None:
    """Check that a prefix is written in one way only: two spellings would be two stores."""
    if not prefix:
        raise _wrong_url(url, "a prefix is missing: expected /PREFIX behind the endpoints")
    if len(prefix) > LONGEST_PREFIX:
        raise _wrong_url(url, f"the prefix has {len(prefix)} characters, over {LONGEST_PREFIX}")
    if not _PREFIX.fullmatch(prefix):
        raise _wrong_url(
            url,
            f"the prefix {prefix!r} must be of letters, digits, -, . and _, with single slashes "
            f"only between them",
        )


def check_to_connect(endpoint: object) -> str:
    """Check that a client can connect to an endpoint, and return it.

    Raises:
        TypeError: it is not a str.
        ValueError: it is not an endpoint, or not one for clients.
    """
    if not isinstance(endpoint, str):
        raise TypeError(f"an endpoint is a str, not {type(endpoint).__name__}: {_shown(endpoint)}")
    address = _address(endpoint)
    if address == "*":
        raise _wrong(endpoint, "* is for servers: a client must name the path")
    if endpoint.startswith("tcp://"):
        _check_to_reach(endpoint, address)
    return endpoint


def named_by_environment() -> str:
    """Return the value of `VARIABLE`, or else the default endpoint."""
    return os.environ.get(VARIABLE) or DEFAULT_ENDPOINT


def listed(endpoints: str) -> list[str]:
    """Return the endpoints of one server in a text, where commas separate them."""
    return [endpoint.strip() for endpoint in endpoints.split(",")]


def from_environment() -> list[str]:
    """Return the endpoints of `named_by_environment`. Raises ValueError if one is malformed."""
    try:
        return [check_to_connect(endpoint) for endpoint in listed(named_by_environment())]
    except ValueError as error:
        raise ValueError(f"{VARIABLE}: {error}") from None


def check_option(endpoints: str) -> list[str]:
    """Check that a tool can connect to a server in another process.

    Args:
        endpoints: from the option ``--endpoint``, or the variable `VARIABLE`; commas separate them.

    Returns:
        The endpoints.

    Raises:
        ValueError: says what is wrong, and where the endpoint came from.
    """
    try:
        for endpoint in listed(endpoints):
            if check_to_connect(endpoint).startswith("inproc://"):
                raise _wrong(endpoint, "only the program that runs the server can use inproc://")
    except ValueError as error:
        named = os.environ.get(VARIABLE, "")
        where = VARIABLE if endpoints in {named, listed(named)[0]} else "--endpoint"
        raise ValueError(f"{where}: {error}") from None
    return listed(endpoints)


def is_any(endpoint: str) -> bool:
    """Return True if a checked endpoint to bind means another place each time."""
    return endpoint == "ipc://*" or (
        endpoint.startswith("tcp://") and endpoint[-2:] in {":*", ":0"}
    )


def is_name(endpoint: str) -> bool:
    """Return True if a checked endpoint has a host name, which must be resolved."""
    return endpoint.startswith("tcp://") and not is_address(host_of(endpoint))


def host_of(endpoint: str) -> str:
    """Return the host of a checked tcp endpoint, without brackets."""
    return endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")


def is_exposed(endpoint: str) -> bool:
    """Return True if other machines can reach a server at a checked endpoint.

    A host is an address, as a server reports it, or a name; of names only ``localhost`` is local.
    """
    if not endpoint.startswith("tcp://"):
        return False
    host = host_of(endpoint).partition("%")[0]
    return host != "localhost" and not (is_address(host) and ip_address(host).is_loopback)


def is_wildcard(endpoint: str) -> bool:
    """Return True if a checked endpoint to bind means all interfaces: nobody can connect there."""
    return endpoint.startswith("tcp://") and host_of(endpoint) in {"*", "0.0.0.0", "::"}  # noqa: S104


def is_address(host: str) -> bool:
    """Return True if a host is an address and not a name."""
    return ":" in host or _ends_in_number(host)


def _address(endpoint: str) -> str:
    """Return the part after the transport."""
    transport = next((each for each in TRANSPORTS if endpoint.startswith(each)), None)
    if transport is None and endpoint.strip().lower().startswith(TRANSPORTS):
        raise _wrong(endpoint, "it must begin with tcp://, ipc:// or inproc:// in lower case")
    if transport is None or endpoint == transport:
        raise _wrong(endpoint, "expected tcp://HOST:PORT, ipc://PATH or inproc://NAME")
    if "\0" in endpoint:
        raise _wrong(endpoint, "it contains a NUL character")
    if _CONTROL.search(endpoint):
        raise _wrong(endpoint, "it contains a control character, such as a line break")
    if endpoint != endpoint.strip():
        raise _wrong(endpoint, "it ends in white space")
    address = endpoint.removeprefix(transport)
    try:
        encoded = address.encode()
    except UnicodeEncodeError:
        raise _wrong(endpoint, "it is not valid UTF-8") from None
    if transport == "ipc://":
        _check_path(endpoint, encoded)
    return address


def _check_path(endpoint: str, path: bytes) -> None:
    if len(path) > LONGEST_PATH:
        raise _wrong(endpoint, f"the path has {len(path)} bytes, over {LONGEST_PATH}")
    if path == b"@":
        raise _wrong(endpoint, "the name after the @ is missing")


def _check_to_reach(endpoint: str, address: str) -> None:
    """Check ``HOST:PORT`` of a server to connect to."""
    host, port = _host_and_port(endpoint, address)
    if host == "*":
        raise _wrong(endpoint, "the host * is for servers: a client must name one")
    _check_host(endpoint, host)
    if port in {"*", "0"}:
        raise _wrong(endpoint, f"the port {port} is for servers: a client must name one")
    _check_port(endpoint, port)


def _host_and_port(endpoint: str, address: str) -> tuple[str, str]:
    if "@" in address:
        raise _wrong(endpoint, "it contains a user or password, which zkv does not use")
    transport = endpoint.partition("://")[0]
    if found := re.search(r"[/?#;]", address):
        raise _wrong(endpoint, f"it must not contain {found[0]}; expected {transport}://HOST:PORT")
    bare = address.strip("[]")
    if bare.count(":") > 1 and (not address.startswith("[") or address.endswith("]")):
        if address != bare:
            raise _wrong(endpoint, "it needs a host and a port: a port is missing")
        raise _wrong(endpoint, f"an IPv6 address needs brackets: {transport}://[::1]:5555")
    host, colon, port = address.rpartition(":")
    if not colon or not port:
        raise _wrong(endpoint, "it needs a host and a port: a port is missing")
    if not host:
        raise _wrong(endpoint, "it needs a host and a port: a host is missing")
    return host, port


def _check_port(endpoint: str, port: str) -> None:
    if not (port.isascii() and port.isdigit()):
        raise _wrong(endpoint, f"{port!r} is not a port number from 1 to {HIGHEST_PORT}")
    if len(port) > 1 and port.startswith("0"):
        raise _wrong(endpoint, f"the port {port[:20]} begins with 0")
    if len(port) > len(str(HIGHEST_PORT)) or int(port) > HIGHEST_PORT:
        raise _wrong(endpoint, f"the port is over {HIGHEST_PORT}")


def _check_host(endpoint: str, host: str) -> None:
    if host.startswith("[") or host.endswith("]"):
        try:
            if not (host.startswith("[") and host.endswith("]")):
                raise AddressValueError
            IPv6Address(host[1:-1])
        except AddressValueError:
            host = host[:40]
            raise _wrong(endpoint, f"{host!r} is in brackets, but no IPv6 address") from None
    elif _ends_in_number(host):
        try:
            IPv4Address(host)
        except AddressValueError:
            raise _wrong(endpoint, f"{host!r} is no IPv4 address: four numbers to 255") from None
    elif not host.isascii():
        raise _wrong(endpoint, "a host name must be ASCII; write others in Punycode: xn--...")
    elif (
        len(host) > LONGEST_NAME
        or not host[0].isalnum()  # libzmq refuses other names.
        or not all(map(_LABEL.fullmatch, host.removesuffix(".").split(".")))
    ):
        raise _wrong(endpoint, f"{host[:80]!r} is neither an address nor a host name")


def _ends_in_number(host: str) -> bool:
    """Return True for IPv4 addresses, and what some programs accept as one: 127.1, 0x7f.1."""
    return _NUMBER.fullmatch(host.removesuffix(".").rpartition(".")[2]) is not None


def _wrong(endpoint: str, why: str) -> ValueError:
    return ValueError(f"endpoint {_shown(endpoint)}: {why}")


def _wrong_url(url: str, why: str) -> ValueError:
    return ValueError(f"URL {_shown(url)}: {why}")


def _shown(endpoint: object) -> str:
    text = repr(endpoint)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
