"""The HTTP endpoint for monitoring: ``/metrics``, ``/healthz`` and ``/readyz``.

Each connection has a thread, as few of them come. There are at most `MOST_CONNECTIONS`: a new one
beyond that ends the oldest, so that nobody who is slow, or never asks, keeps others out.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import parse_qs, urlsplit

from zkv.endpoint import split_http
from zkv.errors import EndpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_log = logging.getLogger("zkv.metrics")

MOST_CONNECTIONS: Final = 16
PATIENCE: Final = 5.0
"""Seconds that a client may be silent, or not read."""
PLAIN: Final = "text/plain; charset=utf-8"
PATHS: Final = "/metrics, /healthz, /readyz and /readyz?for=write"
MISSING: Final = (
    "needs the package prometheus-client, which is not installed here: "
    "pip install prometheus-client"
)

Answer = tuple[HTTPStatus, str, bytes]
"""Status, content type and body."""


class Watched(Protocol):
    """The server that is told about. Its methods are called in any thread."""

    def info(self) -> Mapping[str, Any] | str:
        """Return what INFO replies; or why that is not possible now."""

    def unready(self, for_write: bool) -> str:
        """Return why it cannot answer; empty if it can.

        Args:
            for_write: also say why it cannot take a write.
        """


class MetricsEndpoint:
    """Listens in a thread, from `start` to `close`.

    Args:
        endpoint: ``http://HOST:PORT``; the port ``*``, or 0, takes a free one.
        setting: the setting or option that names it.
        watched: the server.

    Raises:
        EndpointError: the package that it needs is not installed.
    """

    def __init__(self, endpoint: str, setting: str, watched: Watched) -> None:
        self._endpoint = endpoint
        self._setting = setting
        self._watched = watched
        self._listener: _Listener
        self._thread: threading.Thread | None = None
        self._exposition = _exposition(setting)

    def start(self) -> str:
        """Begin to listen; return the endpoint with its real port. Raises EndpointError."""
        try:
            host, port = split_http(self._endpoint)
        except ValueError as error:
            raise EndpointError(f"{self._setting}: {error}") from None
        try:
            self._listener = _Listener(host, port, self._answer)
        except OSError as error:
            why = error.strerror or str(error)
            raise EndpointError(f"{self._setting}: {self._endpoint}: {why}") from None
        self._thread = threading.Thread(target=self._listener.serve_forever, name="zkv-metrics")
        self._thread.start()
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{self._listener.server_address[1]}"

    def close(self) -> None:
        """Stop to listen, and end all connections. May be called without `start`."""
        if self._thread is not None:
            self._listener.shutdown()
            self._thread.join()
            self._listener.close()

    def _answer(self, target: str, accept: str) -> Answer:
        """Return the answer to GET."""
        url = urlsplit(target)
        match url.path:
            case "/healthz":
                return HTTPStatus.OK, PLAIN, b"ok\n"
            case "/readyz":
                return self._ready(parse_qs(url.query, keep_blank_values=True))
            case "/metrics":
                info = self._watched.info()
                if isinstance(info, str):
                    return self._unavailable(info)
                text, content_type = self._exposition(info, accept)
                return HTTPStatus.OK, content_type, text
        return HTTPStatus.NOT_FOUND, PLAIN, f"there are {PATHS}\n".encode()

    def _ready(self, query: dict[str, list[str]]) -> Answer:
        if query not in ({}, {"for": ["write"]}):
            return HTTPStatus.BAD_REQUEST, PLAIN, f"there are {PATHS}\n".encode()
        why = self._watched.unready(bool(query))
        return self._unavailable(why) if why else (HTTPStatus.OK, PLAIN, b"ready\n")

    def _unavailable(self, why: str) -> Answer:
        return HTTPStatus.SERVICE_UNAVAILABLE, PLAIN, f"{why}\n".encode()


def _exposition(setting: str) -> Callable[[Mapping[str, Any], str], tuple[bytes, str]]:
    try:
        from zkv.metrics.families import exposition_of
    except ImportError:
        raise EndpointError(f"{setting} {MISSING}") from None
    return exposition_of


class _Listener(ThreadingHTTPServer):
    """Accepts connections, and knows those that are open."""

    daemon_threads = False  # They are joined: see `close`.

    def __init__(self, host: str, port: int, answer: Callable[[str, str], Answer]) -> None:
        self.answer = answer
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, None] = {}  # The oldest first.
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind, without asking for the name of the host, which may take long."""
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a connection, and end the oldest one if there are too many."""
        oldest = None
        with self._lock:
            if len(self._connections) >= MOST_CONNECTIONS:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
            self._connections[request] = None
        if oldest is not None:
            _end(oldest)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an error that is not the network's."""
        _log.error("a request for metrics failed", exc_info=True)

    def close(self) -> None:
        """End all connections and their threads."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            _end(connection)
        self.server_close()


def _end(connection: socket.socket) -> None:
    """Make the thread of a connection end."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request, and ends the connection."""

    server: _Listener
    timeout = PATIENCE
    server_version = "zkv"
    sys_version = ""

    def handle(self) -> None:
        """Answer. A client that leaves or is too slow is no error."""
        with contextlib.suppress(OSError):
            super().handle()

    def do_GET(self) -> None:
        """Answer GET."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer HEAD."""
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        status, content_type, body = self.server.answer(
            self.path, ",".join(self.headers.get_all("Accept", []))
        )
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a scraper comes every few seconds."""
