"""Puts the console together, and serves it until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from zkv.web import api, page
from zkv.web.accounts import Connect, WebAccounts
from zkv.web.answers import HttpFailure, answer, answering, no_path, read_fields
from zkv.web.gate import ConsoleAddress, Gate, cookie_in, set_cookie
from zkv.web.tokens import OWN, Logins, Tokens

STATIC: Final = Path(__file__).parent / "static"
MOST_REQUESTS: Final = 256
"""Connections at a time; others get 503."""
GRACE: Final = 2
"""Seconds for answers that are being sent when it ends."""


class Console(NamedTuple):
    """The parts of a console.

    Args:
        address: where it is.
        tokens: who may log in.
        connect: makes the client for a key file.
        read_only: True = no request changes anything.
        has_own: True = figures are sampled from the start, with the console's own key.
    """

    address: ConsoleAddress
    tokens: Tokens
    connect: Connect
    read_only: bool
    has_own: bool


def make(console: Console) -> Gate:
    """Make the application."""
    accounts = WebAccounts(console.connect)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        if console.has_own:
            accounts.get(OWN)
        yield
        await accounts.aclose()

    app = Starlette(
        routes=[
            Route("/", _index, methods=["GET"]),
            Route("/healthz", _health, methods=["GET"]),
            Route("/login", answering(_log_in), methods=["POST"]),
            Route("/logout", answering(_log_out), methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
            *api.ROUTES,
            *page.ROUTES,
        ],
        lifespan=lifespan,
        exception_handlers={404: _no_path, 405: _no_path},
    )
    app.state.read_only = console.read_only
    app.state.closing = asyncio.Event()
    app.state.tokens = console.tokens
    app.state.logins = logins = Logins()
    # Cookies do not know ports: two consoles of one machine must not take each other's.
    app.state.cookie = cookie = f"zkv-{secrets.token_hex(4)}"
    app.state.secure = console.address.public.startswith("https://")
    return Gate(app, console.address, console.tokens, logins, accounts, cookie)


async def _no_path(request: Request, error: Exception) -> Response:
    return no_path(request, error)


async def _index(_request: Request) -> Response:
    return FileResponse(STATIC / "index.html")


async def _health(_request: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _log_in(request: Request) -> Response:
    """``POST /login``, with ``{"token": TOKEN}``: gives the browser a cookie."""
    fields = await read_fields(request, frozenset({"token"}))
    state = request.app.state
    token = fields.get("token")
    found = None if token is None else state.tokens.find(_text(token))
    if found is None:
        raise HttpFailure("LOGIN", "this token is not known")
    response = answer(request, {"read_only": state.read_only})
    set_cookie(response, state.cookie, state.logins.begin(found), state.secure)
    return response


def _text(packed: bytes) -> str:
    from zkv.entries.text import unquoted

    found = unquoted(packed)
    return found if isinstance(found, str) else ""


async def _log_out(request: Request) -> Response:
    """``POST /logout``: ends the login of this browser."""
    state = request.app.state
    state.logins.end(cookie_in(request.headers, state.cookie))
    response = answer(request, {})
    set_cookie(response, state.cookie, "", state.secure)
    return response


# --- Serving


class _Server(uvicorn.Server):
    """Tells when it is ready, and lets streams end when a signal comes."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], app: Starlette) -> None:
        super().__init__(config)
        self._ready = ready
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End at SIGTERM and SIGINT with exit status 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        yield

    def _end(self) -> None:
        self.should_exit = True
        self._app.state.closing.set()


def serve(console: Console, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        console: what to serve.
        listener: a bound socket.
        ready: called once it answers.
    """
    logging.basicConfig(format="zkv web: %(levelname)s %(message)s", level=logging.WARNING)
    gate = make(console)
    _Server(config_of(gate), ready, gate.app).run(sockets=[listener])


def config_of(gate: Gate) -> uvicorn.Config:
    """Return the settings of the HTTP server: nothing of a request is logged."""
    logging.getLogger("uvicorn.access").disabled = True  # Else it asks who would log.
    return uvicorn.Config(
        gate, http="h11", ws="none", lifespan="on", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_graceful_shutdown=GRACE,
        limit_concurrency=MOST_REQUESTS,
    )  # fmt: skip
