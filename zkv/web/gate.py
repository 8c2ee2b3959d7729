"""Decides which requests get in, before anything reads them, and what browsers may do with answers.

- **Host** has to name the console. Another name means that the name of a foreign page was made to
  lead here (DNS rebinding).
- **Origin**, where there is one, has to be the console's own page; a request that changes something
  by a cookie needs one. ``Sec-Fetch-Site`` must not tell of another site. So no foreign page can
  use the login of a browser; the cookie is SameSite=Strict besides.
- **A token** comes in the header ``Authorization: Bearer``, or once in the body of ``/login``,
  which gives the browser a cookie; never in a URL. Only the page itself is there without.
- **Headers** forbid inline scripts and styles, foreign sources, frames, guessing of types, and to
  keep answers.

It is ASGI by hand, and not a middleware of Starlette, so that it wraps every answer, also streams.
"""

from __future__ import annotations

from functools import partial
from typing import Final, NamedTuple

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from zkv.endpoint import is_address
from zkv.web.accounts import WebAccounts
from zkv.web.answers import HttpFailure, refusal
from zkv.web.tokens import Logins, Tokens

SAFE: Final = frozenset({"GET", "HEAD"})
OPEN_PATHS: Final = ("/static/",)
OPEN: Final = frozenset({"/", "/login", "/healthz", "/favicon.ico"})
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
BEARER: Final = "bearer "


class ConsoleAddress(NamedTuple):
    """Where the console is.

    Args:
        hosts: the ``Host`` headers that name it, in lower case.
        port: at which it listens.
        by_number: True = any address with this port names it, too, as it listens on all.
        public: its origin behind a proxy, such as ``https://ops.example.org``; empty = none.
        path: its path there, such as ``/zkv``; empty = the root.
    """

    hosts: frozenset[str]
    port: int
    by_number: bool = False
    public: str = ""
    path: str = ""

    def is_named(self, host: str) -> bool:
        """True if a ``Host`` header names the console."""
        if host in self.hosts:
            return True
        name, _, port = host.rpartition(":")
        return self.by_number and port == str(self.port) and is_address(name.strip("[]"))

    def origins(self, host: str) -> frozenset[str]:
        """Return the origins of the console's own page, asked for by this ``Host``."""
        here = frozenset({f"http://{host}"})
        if not self.public:
            return here
        proxied = self.public.partition("://")[2] == host
        return frozenset({self.public}) if proxied else here | {self.public}


class Gate:
    """Wraps the application.

    Args:
        app: the application.
        address: where it is.
        tokens: who may log in.
        logins: who has.
        accounts: the clients of the users.
        cookie: the name of the cookie.
    """

    def __init__(
        self,
        app: Starlette,
        address: ConsoleAddress,
        tokens: Tokens,
        logins: Logins,
        accounts: WebAccounts,
        cookie: str,
    ) -> None:
        self.app = app
        self._address = address
        self._tokens = tokens
        self._logins = logins
        self._accounts = accounts
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        scope = self._without_path(scope)
        request = Request(scope)
        wrapped = partial(self._send, send, scope["path"].startswith(OPEN_PATHS))
        try:
            self._admit(request)
        except HttpFailure as failure:
            await refusal(request, failure)(scope, receive, wrapped)
            return
        await self.app(scope, receive, wrapped)

    def _without_path(self, scope: Scope) -> Scope:
        """Remove the path that a proxy may have left in front."""
        path, scope = self._address.path, {**scope, "state": {**scope.get("state", {})}}
        if path and scope["path"].startswith(f"{path}/"):
            scope["path"] = scope["path"].removeprefix(path)
            scope["raw_path"] = scope["path"].encode()
        return scope

    @staticmethod
    async def _send(send: Send, may_be_kept: bool, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, text in HEADERS.items():
                headers[name] = text
            headers["Cache-Control"] = "no-cache" if may_be_kept else "no-store"
        await send(message)

    # --- Who gets in

    def _admit(self, request: Request) -> None:
        """Raise HttpFailure if a request does not get in; otherwise note whose it is."""
        headers = request.headers
        host = self._check_host(headers)
        path = request.scope["path"]
        is_open = path in OPEN or path.startswith(OPEN_PATHS)
        self._check_page(request, host)
        if is_open and path != "/login":
            return
        bearer = headers.get("authorization", "")
        if bearer:
            token_hash = self._by_token(bearer)
        else:
            if request.method not in SAFE and "origin" not in headers:
                raise HttpFailure("DENIED", "Origin is missing: it is needed without Authorization")
            if path == "/login":
                return
            token_hash = self._by_cookie(headers)
        self._note(request, token_hash, "" if bearer else cookie_in(headers, self._cookie))

    def _check_host(self, headers: Headers) -> str:
        hosts = [host.lower() for host in headers.getlist("host")]
        if len(hosts) != 1 or not self._address.is_named(hosts[0]):
            shown = hosts[0] if hosts else ""
            raise HttpFailure(
                "DENIED", f"Host {shown!r:.80} does not name this console; see zkv web --public-url"
            )
        return hosts[0]

    def _check_page(self, request: Request, host: str) -> None:
        """Check that no page of another site has sent a request."""
        origins = request.headers.getlist("origin")
        if origins and (len(origins) > 1 or origins[0] not in self._address.origins(host)):
            raise HttpFailure("DENIED", f"Origin {origins[0]!r:.80} is not this console")
        site = request.headers.get("sec-fetch-site", "none")
        is_link = request.method in SAFE and request.scope["path"] == "/"
        if site not in {"none", "same-origin"} and not is_link:
            raise HttpFailure("DENIED", "a page of another site has sent this")

    def _by_token(self, bearer: str) -> str:
        if bearer[: len(BEARER)].lower() != BEARER:
            raise HttpFailure("LOGIN", "Authorization: expected Bearer and a token")
        found = self._tokens.find(bearer[len(BEARER) :].strip())
        if found is None:
            raise HttpFailure("LOGIN", "this token is not known")
        return found

    def _by_cookie(self, headers: Headers) -> str:
        found = self._logins.find(cookie_in(headers, self._cookie))
        if found is None:
            raise HttpFailure("LOGIN", "log in with a token: in the page, or by Authorization")
        return found

    def _note(self, request: Request, token_hash: str, cookie: str) -> None:
        key_file = self._tokens.key_file(token_hash)
        if key_file is None:
            raise HttpFailure("LOGIN", "this token is no longer known")

        def is_valid() -> bool:
            if cookie and self._logins.find(cookie) is None:
                return False
            return self._tokens.key_file(token_hash) is not None

        request.state.account = self._accounts.get(key_file)
        request.state.is_valid = is_valid


def cookie_in(headers: Headers, name: str) -> str:
    """Return the content of the cookie with this name; empty = there is none.

    Others on this machine set cookies for it, too, with any content: `http.cookies` finds none
    behind one that it cannot read.
    """
    for pair in headers.get("cookie", "").split(";"):
        found, _, content = pair.strip().partition("=")
        if found == name:
            return content
    return ""


def set_cookie(response: Response, name: str, content: str, secure: bool) -> None:
    """Set the cookie; without a path, so that it is for the directory of ``/login`` and below."""
    parts = [f"{name}={content}", "HttpOnly", "SameSite=Strict"]
    if not content:
        parts.append("Max-Age=0")
    if secure:
        parts.append("Secure")
    response.headers.append("Set-Cookie", "; ".join(parts))
