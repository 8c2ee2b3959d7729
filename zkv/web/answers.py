"""Bodies and statuses: JSON or msgpack, as the client asks, and each failure with its HTTP status.

A failure has the fields of the protocol: ``code``, ``message``, ``retry``, ``applied`` and so on.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import msgpack
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from zkv.client import (
    AuthenticationError,
    ClientError,
    NoReplyError,
    RefusedError,
    UnavailableError,
)
from zkv.client.codec import Packed
from zkv.client.slicing import is_one_value
from zkv.entries.text import to_json
from zkv.entries.value_reader import pack_parsed, parse
from zkv.entries.value_writer import head_at
from zkv.reading import BadTextError, decode

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
LONGEST_BODY: Final = 64 * 1024 * 1024
"""Bytes of the body of a request; the server's limits are lower for each value."""

MOST_BODY_BYTES: Final = 4 * LONGEST_BODY
"""Bytes of the bodies of all requests of one user at a time."""
QUICK: Final = 64 * 1024
"""Bytes of values and text that are converted at once."""

STATUSES: Final = {
    "BAD_REQUEST": 400, "UNKNOWN_OP": 501, "NOT_FOUND": 404, "DENIED": 403, "CONFLICT": 409,
    "WRONG_TYPE": 422, "TOO_LARGE": 413, "COMPACTED": 410, "NOT_LEADER": 503, "BEHIND": 503,
    "STALE_SEQ": 409, "DEADLINE": 504, "BUSY": 503, "FULL": 507, "READ_ONLY": 503,
    "SHUTTING_DOWN": 503, "INTERNAL": 500, "UNAVAILABLE": 503, "HANDSHAKE_FAILED": 502,
    "NO_REPLY": 504, "LOGIN": 401, "NO_SUCH_PATH": 404, "METHOD": 405,
}  # fmt: skip
"""The status of each code of the protocol, and of those that only the console has."""

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]


class HttpFailure(Exception):
    """A request fails.

    Args:
        code: one of `STATUSES`.
        message: for people; names the field or limit.
        **details: further fields of the answer.
    """

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.fields = {"code": code, "message": message, "retry": False, "applied": False} | details


def failure_of(error: Exception) -> HttpFailure:
    """Return the failure that an error of the client, or bad input, means."""
    if isinstance(error, HttpFailure):
        return error
    if isinstance(error, RefusedError):
        details = {"retry": error.retry, "applied": error.applied, **error.details}
        return HttpFailure(error.code, error.message, **details)
    if isinstance(error, ClientError):
        code = next((code for kind, code in _CODES if isinstance(error, kind)), "INTERNAL")
        is_early = isinstance(error, UnavailableError)
        retry = is_early and not isinstance(error, AuthenticationError)
        return HttpFailure(code, str(error), retry=retry, applied=error.applied)
    return HttpFailure("BAD_REQUEST", str(error))


_CODES: Final = (
    (AuthenticationError, "HANDSHAKE_FAILED"),
    (UnavailableError, "UNAVAILABLE"),
    (NoReplyError, "NO_REPLY"),
)


def answering(handler: Handler) -> Handler:
    """Return a handler that answers failures, too."""

    async def answer_all(request: Request) -> Response:
        try:
            return await handler(request)
        except (HttpFailure, ClientError, ValueError, OverflowError, RecursionError) as error:
            return refusal(request, failure_of(error))
        except ClientDisconnect:
            return Response(status_code=400)  # Nobody reads it.
        finally:
            if held := getattr(request.state, "body_bytes", 0):
                request.state.account.body_bytes -= held

    return answer_all


def refusal(request: Request, failure: HttpFailure) -> Response:
    """Return the answer that tells of a failure."""
    answered = answer(request, failure.fields, STATUSES.get(failure.code, 500))
    after = failure.fields.get("retry_after")
    if isinstance(after, int):
        answered.headers["Retry-After"] = str(-(-after // 1000))
    if failure.code == "LOGIN":
        answered.headers["WWW-Authenticate"] = "Bearer"
    return answered


def wants_msgpack(request: Request) -> bool:
    """True if the client asks for msgpack."""
    return MSGPACK in request.headers.get("accept", "").lower()


def answer(request: Request, fields: Any, status: int = 200) -> Response:
    """Return an answer in the format that the client asks for; values in it may be `Packed`."""
    if wants_msgpack(request):
        return Response(packed(fields), status, media_type=MSGPACK)
    return Response(to_json(fields) + "\n", status, media_type=JSON)


async def answer_values(request: Request, fields: Any) -> Response:
    """Do as `answer`; for fields with values, which may be large."""
    return await apart(weight(fields), answer, request, fields)


async def apart(size: int, convert: Callable[..., T], *given: Any) -> T:
    """Convert between text and values, and let others be answered meanwhile if that takes long.

    One at a time, since parsed text takes dozens of times as many bytes.

    Args:
        size: bytes that are converted.
        convert: does it.
        given: its arguments.
    """
    if size <= QUICK:
        return convert(*given)
    return await asyncio.get_running_loop().run_in_executor(
        _converter, _uncollected, convert, *given
    )


def _uncollected(convert: Callable[..., T], *given: Any) -> T:
    """Convert without looking for garbage: parsed text has no cycles.

    Python would look through millions of new objects again and again, which takes most of the time,
    and holds up all threads.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return convert(*given)
    finally:
        if was_enabled:
            gc.enable()


_converter: Final = ThreadPoolExecutor(1, "zkv-web-converter")


def weight(fields: Any) -> int:
    """Return the bytes of all values in fields."""
    if isinstance(fields, bytes):
        return len(fields)
    if isinstance(fields, dict):
        return sum(map(weight, fields.values()))
    return sum(map(weight, fields)) if isinstance(fields, list | tuple) else 0


def packed(value: Any) -> bytes:
    """Pack a value, or what holds several and is told with them; each `Packed` stays as it is."""
    if isinstance(value, bytes) and type(value) is not bytes:
        return bytes(value)
    if isinstance(value, dict):
        parts = [_packer.pack_map_header(len(value))]
        for name, field in value.items():
            parts += [packed(name), packed(field)]
        return b"".join(parts)
    if isinstance(value, list | tuple):
        return b"".join([_packer.pack_array_header(len(value)), *map(packed, value)])
    return _pack(value)


_packer: Final = msgpack.Packer()
_pack: Final[Callable[[Any], bytes]] = msgpack.Packer(unicode_errors="surrogateescape").pack


# --- What comes in


async def read_body(request: Request, most: int) -> bytes:
    """Read the body of a request. Raises HttpFailure if it is too large."""
    parts, size = [], 0
    account = getattr(request.state, "account", None)
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise HttpFailure("TOO_LARGE", f"the body has more than {most} bytes")
        if account is not None:
            account.body_bytes += len(part)
            request.state.body_bytes = size
            if account.body_bytes > MOST_BODY_BYTES:
                text = f"the requests of this user have more than {MOST_BODY_BYTES} bytes now"
                raise HttpFailure("BUSY", text, retry=True)
        parts.append(part)
    return b"".join(parts)


async def read_value(request: Request, most: int = LONGEST_BODY) -> Packed:
    """Read a body that is one value: msgpack, byte for byte, or JSON, as Content-Type says."""
    body = await read_body(request, most)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == MSGPACK:
        if not is_one_value(body):
            raise HttpFailure("BAD_REQUEST", "the body is not one whole msgpack value")
        return Packed(body)
    if kind != JSON:
        raise HttpFailure(
            "BAD_REQUEST", f"Content-Type: expected {JSON} or {MSGPACK}, not {kind!r:.60}"
        )
    try:
        return await apart(len(body), _from_json, body)
    except BadTextError as error:
        raise HttpFailure("BAD_REQUEST", f"the body: {error}") from None


def _from_json(body: bytes) -> Packed:
    text = decode(body)
    return Packed(pack_parsed(parse(text), text))


async def read_fields(
    request: Request, known: frozenset[str], most: int = LONGEST_BODY
) -> dict[str, Packed]:
    """Read a body that is a map with some of the fields ``known``; each stays packed."""
    body = await read_value(request, most)
    kind, _, size = head_at(body, 0)
    if kind == "map" and size > 2 * len(known):  # Each field that is decoded takes memory.
        takes = ", ".join(sorted(known))
        raise HttpFailure("BAD_REQUEST", f"the body has {size // 2} fields; it takes {takes}")
    try:
        fields = _decode_fields(body)
    except (msgspec.MsgspecError, ValueError):
        raise HttpFailure("BAD_REQUEST", "the body is not a map with text as keys") from None
    if unknown := fields.keys() - known:
        takes = ", ".join(sorted(known))
        raise HttpFailure("BAD_REQUEST", f"unknown field {min(unknown)!r:.60}; it takes {takes}")
    return {name: Packed(field) for name, field in fields.items()}


_decode_fields: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode


async def no_path(request: Request, error: Exception) -> Response:
    """Answer a request for a path or a method that there is not."""
    if getattr(error, "status_code", 404) == 405:
        return refusal(request, HttpFailure("METHOD", f"{request.method} is not allowed here"))
    return refusal(request, HttpFailure("NO_SUCH_PATH", "there is nothing at this path"))
