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
from typing import Final, NamedTuple, cast

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from zkv.entries.text import unquoted
from zkv.web import api, page
from zkv.web.accounts import Connect, WebAccounts
from zkv.web.answers import HttpFailure, answer, answering, no_path, read_fields
from zkv.web.gate import ConsoleAddress, Gate, cookie_in, set_cookie
from zkv.web.tokens import OWN, Logins, Tokens

STATIC: Final = Path(__file__).parent / "static"
MOST_CONNECTIONS: Final = 256
"""Connections at a time; others get 503."""
LONGEST_LOGIN: Final = 4_096
"""Bytes of the body of a login."""
LOGIN_PATIENCE: Final = 10
"""Seconds in which that has to come."""
PATIENCE: Final = 10.0
"""Seconds in which a peer has to send the head of a request, and something of a body."""
UNREAD_LOOKS: Final = 6
"""Times `PATIENCE` in which a peer has to read something of an answer that waits for it."""
GRACE: Final = 2
"""Seconds for answers that are being sent when it ends."""


class Console(NamedTuple):
    """The parts of a console.

    Args:
        address: where it is.
        tokens: who may log in.
        connect: makes the client for a key file.
        read_only: True = no request changes anything.
    """

    address: ConsoleAddress
    tokens: Tokens
    connect: Connect
    read_only: bool


def make(console: Console) -> Gate:
    """Make the application."""
    accounts = WebAccounts(console.connect)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        if console.tokens.has_own:  # Its figures are sampled from the start.
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
        exception_handlers={404: no_path, 405: no_path},
    )
    app.router.redirect_slashes = False  # Behind a proxy it would lead to another place.
    app.state.read_only = console.read_only
    app.state.closing = asyncio.Event()
    app.state.tokens = console.tokens
    app.state.logins = logins = Logins()
    # Cookies do not know ports: two consoles of one machine must not take each other's.
    app.state.cookie = cookie = f"zkv-{secrets.token_hex(4)}"
    app.state.secure = console.address.public.startswith("https://")
    return Gate(app, console.address, console.tokens, logins, accounts, cookie)


async def _index(_request: Request) -> Response:
    return FileResponse(STATIC / "index.html")


async def _health(_request: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _log_in(request: Request) -> Response:
    """``POST /login``, with ``{"token": TOKEN}``: gives the browser a cookie."""
    # Whoever sends this is not known yet.
    try:
        async with asyncio.timeout(LOGIN_PATIENCE):
            fields = await read_fields(request, frozenset({"token"}), LONGEST_LOGIN)
    except TimeoutError:
        text = f"the body is not there after {LOGIN_PATIENCE} seconds"
        raise HttpFailure("BAD_REQUEST", text) from None
    state = request.app.state
    token = fields.get("token")
    found = None if token is None else state.tokens.find(_text(token))
    if found is None:
        raise HttpFailure("LOGIN", "this token is not known")
    response = answer(request, {"read_only": state.read_only})
    set_cookie(response, state.cookie, state.logins.begin(found), state.secure)
    return response


def _text(packed: bytes) -> str:
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


class _Connection(H11Protocol):
    """Closes a connection whose peer stops in the middle.

    uvicorn waits for ever for the head of a request, for the rest of a body, also after the answer,
    and for somebody to read an answer. So anybody could keep all `MOST_CONNECTIONS`. When there are
    that many, the oldest one on which no request has come gives way.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to look at what the peer does."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._had: object = None  # What there was at the last look: the request,
        self._received = False  # if anything has come since,
        self._unread = 0  # and what the peer had not read yet, in bytes,
        self._unread_looks = 0  # for so many looks.
        self._made_at = self.loop.time()
        self._next_look = self.loop.call_later(PATIENCE, self._look)
        if len(self.connections) >= MOST_CONNECTIONS:
            self._make_room()

    def _make_room(self) -> None:
        others = [each for each in self.connections if isinstance(each, _Connection)]
        idle = [each for each in others if each is not self and each.conn.their_state is h11.IDLE]
        unused = [
            each for each in idle
            if not (each.transport.is_closing() or each.transport.get_write_buffer_size())
        ]  # fmt: skip
        if unused:
            min(unused, key=lambda each: each._made_at).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._next_look.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of the peer."""
        self._received = True
        super().data_received(data)

    def _look(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self._unread_looks = self._unread_looks + 1 if unread == self._unread else 0
        is_stuck = self._unread_looks >= UNREAD_LOOKS if unread else self._sends_too_little()
        if is_stuck:
            self.transport.abort()
            return
        self._had, self._received, self._unread = self.cycle, False, unread
        self._next_look = self.loop.call_later(PATIENCE, self._look)

    def _sends_too_little(self) -> bool:
        request: RequestResponseCycle | None = self.cycle
        if request is not self._had:
            return False
        is_answered = request is None or request.response_complete
        if self.conn.their_state is h11.IDLE:  # The head of a request is not there yet.
            return is_answered
        if self.conn.their_state is not h11.SEND_BODY:
            return False
        return is_answered or not (self._received or self.flow.read_paused)


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
        gate, http=_Connection, ws="none", lifespan="on", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_graceful_shutdown=GRACE,
        limit_concurrency=MOST_CONNECTIONS,
    )  # fmt: skip
