"""A console in this process, and a plain HTTP client."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode

import uvicorn

from tests.support import LIMIT, unpack
from zkv.client import AsyncClient, RetryPolicy
from zkv.client.codec import PACKED
from zkv.web import app
from zkv.web.gate import ConsoleAddress
from zkv.web.tokens import Tokens

TOKEN = "a-token-of-the-tests"
JSON = "application/json"
MSGPACK = "application/msgpack"


class HttpAnswer(NamedTuple):
    """What came over HTTP."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def msgpack(self) -> Any:
        """The body as msgpack."""
        return unpack(self.body)


class ConsoleInProcess:
    """A console at a free port, in a thread. Use as a context manager.

    Args:
        endpoint: of the server.
        tokens: who may log in; None = `TOKEN`, with no key.
        read_only: as `zkv web --read-only`.
        public: its origin behind a proxy.
        path: its path there.
        timeout: of its client, in seconds.
        keys: further arguments of its clients.
    """

    def __init__(
        self,
        endpoint: str,
        tokens: Tokens | None = None,
        read_only: bool = False,
        public: str = "",
        path: str = "",
        timeout: float = 5.0,
        keys: dict[str, Any] | None = None,
    ) -> None:
        def connect(key_file: str) -> AsyncClient:
            given = {"key_file": key_file} if key_file else {}
            policy = RetryPolicy(wait_for_start=False)
            arguments: dict[str, Any] = {**(keys or {}), **given}
            return AsyncClient(
                endpoint, timeout, codec=PACKED, retry=policy, read="stale", **arguments
            )

        self.last_id = ""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        names = {f"127.0.0.1:{self.port}", f"localhost:{self.port}"}
        if public:
            names.add(public.partition("://")[2])
        address = ConsoleAddress(frozenset(names), self.port, False, public, path)
        known = Tokens(None, TOKEN) if tokens is None else tokens
        self.gate = app.make(app.Console(address, known, connect, read_only))
        self._ready = threading.Event()
        self._server = _Server(app.config_of(self.gate), self._ready)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, name="console"
        )

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._server.server_state.connections)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(LIMIT)
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.app.state.closing.set()
        self._server.should_exit = True
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()

    def ask(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        body: bytes | str | None = None,
        token: str | None = TOKEN,
        **headers: str,
    ) -> HttpAnswer:
        """Send a request; names of headers have ``_`` for ``-``."""
        with self.open(method, path, query, body, token, **headers) as answer:
            return HttpAnswer(answer.status, answer.headers, answer.read())

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        body: bytes | str | None = None,
        token: str | None = TOKEN,
        **headers: str,
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request, and yield the answer, of which nothing is read yet."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        given = {} if token is None else {"Authorization": f"Bearer {token}"}
        given |= {name.replace("_", "-"): text for name, text in headers.items()}
        try:
            connection.request(method, f"{path}?{urlencode(query)}" if query else path, body, given)
            yield connection.getresponse()
        finally:
            connection.close()

    def put(self, key: str, value: str, **query: Any) -> HttpAnswer:
        """Store JSON."""
        return self.ask("PUT", "/api/entry", {"key": key, **query}, value, Content_Type=JSON)

    def events(self, answer: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
        """Yield the events of a stream: name and data; `last_id` is the id of the last one."""
        name = ""
        while line := answer.readline():
            field, _, text = line.decode().rstrip("\n").partition(": ")
            if field == "event":
                name = text
            elif field == "id":
                self.last_id = text
            elif field == "data":
                yield name, json.loads(text)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: threading.Event) -> None:
        super().__init__(config)
        self._told: Callable[[], None] = ready.set

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._told()
