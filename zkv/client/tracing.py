"""Spans of requests, for programs that use OpenTelemetry.

Each request gets one span, with all its repeats, and sends the name of the span as `trace`, so that
the server's logs name it, too. The server must list `trace` in the `features` of INFO: the clients
ask for them when they need them (`zkv.client.async_namespace.AsyncClientOps._ask_traced`).

The clients import nothing of OpenTelemetry before the program has: until then nothing can record a
span, and a look for the module costs 20 ns per request.

Names and attributes are those of OpenTelemetry's conventions for clients of databases. They hold no
keys and no values; so messages of refusals, which name keys, are left out.
"""

from __future__ import annotations

from functools import cache, lru_cache
from sys import modules
from typing import TYPE_CHECKING, Any, Final, Self

from zkv import __version__
from zkv.client.errors import NoReplyError, RefusedError
from zkv.client.process import generation, is_foreign

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.trace import Span, SpanKind

    from zkv.client.endpoints import Endpoints

OPENTELEMETRY: Final = "opentelemetry.trace"
"""The module that every program which records spans has imported."""

MANY: Final = ("keys", "items", "ops")
"""Fields that hold what a request is about, where that is more than one thing."""


def begin(op: str, fields: Mapping[str, Any], endpoints: Endpoints) -> RequestSpan | None:
    """Begin the span of a request, below the current span. Returns None if nobody records it.

    Args:
        op: of the protocol.
        fields: of the request.
        endpoints: the request is going to be sent to the current one.
    """
    if getattr(modules[OPENTELEMETRY], "_TRACER_PROVIDER", True) is None:
        return None  # No provider has been set. To learn this without a private name takes longer.
    try:
        start, kind = _tracer()
    except ImportError:  # The program is not done with its own import.
        return None
    endpoint = endpoints.current.endpoint
    attributes = _attributes(op, endpoint)
    for name in MANY:
        if name in fields and (size := _size(fields[name])) > 1:
            attributes = {**attributes, "db.operation.batch.size": size}
    span = start(op, None, kind, attributes)
    return RequestSpan(span, endpoint) if span.is_recording() else None


class RequestSpan:
    """The span of one request. Use as a context manager; it is not made the current span.

    Args:
        span: that has been started, and is being recorded.
        endpoint: in its attributes.
    """

    def __init__(self, span: Span, endpoint: str) -> None:
        self._span = span
        self._endpoint = endpoint
        self._made_in = generation()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if is_foreign(self._made_in):
            return  # The parent process ends it.
        if error is not None:
            self._failed(error)
        self._span.end()

    @property
    def traceparent(self) -> str:
        """The name of the span, in the 55 characters of W3C's Trace Context."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def repeats(self, reason: str) -> None:
        """Record that the request is about to be sent again.

        Args:
            reason: the code of a refusal, or the name of the error that giving up would raise.
        """
        self._span.add_event("retry", {"error.type": reason})

    def sent_to(self, endpoint: str) -> None:
        """Record the endpoint that the request has been sent to in the end."""
        if endpoint != self._endpoint:
            self._span.set_attributes(_server(endpoint))

    def _failed(self, error: BaseException) -> None:
        from opentelemetry.trace import StatusCode

        if isinstance(error, RefusedError):
            self._span.set_attribute("db.response.status_code", error.code)
        self._span.set_attribute("error.type", error_type(error))
        self._span.set_status(
            StatusCode.ERROR, str(error) if isinstance(error, NoReplyError) else None
        )


def error_type(error: BaseException) -> str:
    """Return the code of a refusal, or the name of another error."""
    return error.code if isinstance(error, RefusedError) else type(error).__name__


@cache
def _tracer() -> tuple[Callable[..., Span], SpanKind]:
    """Return what starts a span, and the kind of the spans. Raises ImportError."""
    from opentelemetry.trace import SpanKind, get_tracer

    return get_tracer("zkv", __version__).start_span, SpanKind.CLIENT


@lru_cache(maxsize=256)
def _attributes(op: str, endpoint: str) -> dict[str, str | int]:
    return {"db.system.name": "zkv", "db.operation.name": op, **_server(endpoint)}


def _server(endpoint: str) -> dict[str, str | int]:
    """Return the attributes of an endpoint: a host and a port, or a path or a name."""
    transport, _, address = endpoint.partition("://")
    if transport != "tcp":
        return {"server.address": address}
    host, _, port = address.rpartition(":")
    return {"server.address": host.strip("[]"), "server.port": int(port)}


def _size(many: object) -> int:
    return len(many) if isinstance(many, (list, dict)) else 1
