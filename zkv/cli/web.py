"""``zkv web``: serves the console of a server, for browsers and by HTTP.

Exit status: 0 after SIGTERM or SIGINT; 2 wrong usage, a file that cannot be used, or an address
that cannot be listened at, or must not.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from zkv.cli.outcome import NOT_STARTED, announce
from zkv.client import AsyncClient, RetryPolicy
from zkv.client.codec import PACKED
from zkv.client.curve import given
from zkv.endpoint import check_option, is_exposed, split_http
from zkv.errors import ConfigError, EndpointError
from zkv.streams import complain

if TYPE_CHECKING:
    from zkv.web.gate import ConsoleAddress

MISSING: Final = (
    "zkv web needs the packages starlette and uvicorn, which are not installed here: "
    "pip install starlette uvicorn"
)
OPEN: Final = (
    "other machines can reach it, and tokens and values would travel in the clear: listen at "
    "127.0.0.1 behind a proxy with TLS, name it with --public-url https://..., or add --insecure"
)
NOBODY: Final = "nobody can log in: there is no terminal to print a token on, and no --tokens FILE"


def run(options: argparse.Namespace) -> int:
    """Serve until a signal ends it. Raises StartupError."""
    try:
        from zkv.web import app, tokens
    except ImportError as error:
        complain("zkv", f"{MISSING} ({error})")
        return NOT_STARTED
    try:
        if options.add_token is not None:
            print(tokens.add_token(_tokens_file(options), options.add_token))
            return 0
        file = None if options.tokens is None else Path(options.tokens)
        own = tokens.new_token() if file is None else None
        known = tokens.Tokens(file, own)
        _connect(options, "")  # Wrong options are told now.
        listener, address = _listen(options)
    except (ConfigError, EndpointError):
        raise
    except ValueError as error:
        complain("zkv", str(error))
        return NOT_STARTED
    console = app.Console(address, known, lambda name: _connect(options, name), options.read_only)
    app.serve(console, listener, lambda: _ready(address, listener, own))
    return 0


def _tokens_file(options: argparse.Namespace) -> Path:
    if options.tokens is None:
        raise ConfigError("--add-token needs --tokens FILE")
    return Path(options.tokens)


def _connect(options: argparse.Namespace, key_file: str) -> AsyncClient:
    """Make the client for a key file; empty = with the keys in the options.

    With one endpoint, a standby there answers reads, too; with several, the one that leads.
    """
    endpoints = check_option(options.endpoint)
    arguments: dict[str, Any] = given(options) | ({"key_file": key_file} if key_file else {})
    return AsyncClient(
        endpoints, options.timeout, codec=PACKED, retry=RetryPolicy(wait_for_start=False),
        read="stale" if len(endpoints) == 1 else "leader", **arguments,
    )  # fmt: skip


# --- Where it listens


def _listen(options: argparse.Namespace) -> tuple[socket.socket, ConsoleAddress]:
    """Bind. Raises EndpointError."""
    from zkv.web.gate import ConsoleAddress

    public, path = _public(options.public_url)
    try:
        host, port = split_http(f"http://{options.listen}")
    except ValueError as error:
        raise EndpointError(f"--listen: {error}") from None
    exposed = is_exposed(f"tcp://{options.listen.lower()}")
    if exposed and not (options.insecure or public.startswith("https://")):
        raise EndpointError(f"--listen: {options.listen}: {OPEN}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise EndpointError(f"--listen: {options.listen}: {why}") from None
    port = listener.getsockname()[1]
    names = {"127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host}
    hosts = {f"{name}:{port}".lower() for name in names}
    if port == 80:
        hosts |= {name.lower() for name in names}
    if public:
        hosts.add(public.partition("://")[2])
    return listener, ConsoleAddress(frozenset(hosts), port, exposed, public, path)


def _public(url: str | None) -> tuple[str, str]:
    """Return origin and path of ``--public-url``. Raises EndpointError."""
    if url is None:
        return "", ""
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        raise EndpointError(f"--public-url: {url!r:.80} is not a URL") from None
    if not good or parts.query or parts.fragment or "@" in parts.netloc:
        raise EndpointError(f"--public-url: {url!r:.80}: expected https://HOST[:PORT][/PATH]")
    return f"{parts.scheme}://{parts.netloc.lower()}", parts.path.rstrip("/")


def _ready(address: ConsoleAddress, listener: socket.socket, token: str | None) -> None:
    host = listener.getsockname()[0]
    url = f"http://{f'[{host}]' if ':' in host else host}:{address.port}"
    announce(f"READY {url}\n")
    if token is None:
        return
    page = f"{address.public or url}{address.path}/"
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and stream.isatty():
            print(f"To log in, open {page} and enter this token: {token}", file=stream, flush=True)
            return
    complain("zkv", NOBODY)
