"""Request bodies and replies, without any socket.

A field of a request may hold whatever msgpack holds: nil, bool, int, float, str, bytes, list, map,
``msgpack.ExtType`` and ``msgpack.Timestamp``, and what a codec adds; a reply gives the same back. A
str that is no UTF-8, as some languages store their bytes, is read with surrogates in the place of
the bytes that are none, and packed as the same bytes again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgpack

from zkv.client.codec import PLAIN, Codec
from zkv.client.errors import REFUSALS, BadReplyError, RefusedError, TooLargeError
from zkv.defaults import TOO_DEEP

READ_OPS: Final = frozenset({"PING", "GET", "MGET", "SCAN", "COUNT", "CHANGES", "INFO"})
"""Ops that change nothing, whatever becomes of the request."""

WRITE_OPS: Final = frozenset({"PUT", "DELETE", "TOUCH", "INCR", "MPUT", "MDELETE", "TXN"})
"""Ops that take ``session`` and ``seq``, and may then be repeated."""

LARGEST_MESSAGE: Final = 64 * 1024 * 1024
"""Bytes of a request. ZeroMQ closes the connection of a larger one, and nobody answers."""

STR_ERRORS: Final = "surrogateescape"

REFUSAL_FIELDS: Final = frozenset({"ok", "id", "code", "message", "retry", "applied"})


def lost(op: str) -> bool | None:
    """What is known of ``op`` having been applied where its reply is not known."""
    return False if op in READ_OPS else None


def pack_request(
    op: str, request_id: int, fields: Mapping[str, Any], codec: Codec = PLAIN
) -> bytes:
    """The body of a request.

    Raises:
        TypeError: a field holds something that neither msgpack nor the codec has a type for, or
            is ``op`` or ``id``.
        ValueError: a str holds a surrogate, an int needs more than 64 bits, or something is nested
            too deeply.
        TooLargeError: there would be no reply to such a large request.
    """
    request = dict(op=op, id=request_id, **fields)
    body = pack(request, codec)
    check_size(body)
    return body


def pack(value: Any, codec: Codec = PLAIN) -> bytes:
    """A value, packed. Raises as `pack_request` does."""
    packed: bytes
    try:
        packed = msgpack.packb(value, default=codec.default)
    except UnicodeEncodeError:  # With surrogates, which takes twice the time for every str.
        packed = _pack_surrogates(value, codec)
    except ValueError as error:
        raise explained(error) from None
    return packed


def _pack_surrogates(value: Any, codec: Codec) -> bytes:
    """A value with surrogates, those of bytes that are no UTF-8. Raises ValueError for others."""
    try:
        packed: bytes = msgpack.packb(value, default=codec.default, unicode_errors=STR_ERRORS)
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise ValueError(
            f"a str holds U+{code:04X}: surrogates are no characters, and cannot be stored"
        ) from None
    except ValueError as error:
        raise explained(error) from None
    return packed


def explained(error: ValueError) -> ValueError:
    """What msgpack raises where it packs, in the terms of a request: it takes 511 levels itself."""
    return ValueError(f"a value {TOO_DEEP}") if "recursion limit" in str(error) else error


def check_size(body: bytes) -> None:
    """Raise TooLargeError where there would be no reply to such a large request."""
    if len(body) > LARGEST_MESSAGE:
        message = f"the request would have {len(body)} bytes; {LARGEST_MESSAGE} are possible"
        raise TooLargeError("TOO_LARGE", message, retry=False, applied=False, details={})


def check_answer(op: str, request_id: int, reply: Mapping[str, Any]) -> None:
    """Raise BadReplyError unless ``reply`` tells success or failure, and of this very request."""
    check_reply(op, reply)
    echoed = reply.get("id")
    if type(echoed) is int and echoed == request_id:  # True == 1, and yet is no id
        return
    if reply["ok"] is False and "id" not in reply:
        return  # The server could not read the id, and says what is wrong.
    raise bad_reply(op, f"its id is {echoed!r:.40}, the request's is {request_id}")


def check_reply(op: str, reply: Mapping[str, Any]) -> None:
    """Raise BadReplyError unless ``reply`` tells success, or what failed."""
    ok = reply.get("ok")
    if ok is True:
        return
    if ok is False and type(reply.get("code")) is str and type(reply.get("message")) is str:
        return
    raise bad_reply(op, "it tells neither success nor what failed")


def unpack_reply(op: str, body: bytes, codec: Codec = PLAIN) -> dict[str, Any]:
    """The map in ``body``. Raises BadReplyError."""
    try:
        reply = msgpack.unpackb(
            body, strict_map_key=False, unicode_errors=STR_ERRORS, ext_hook=codec.ext_hook
        )
    except msgpack.StackError as error:
        raise bad_reply(op, "it is nested deeper than msgpack reads") from error
    except (ValueError, TypeError) as error:
        raise bad_reply(op, f"it is not one msgpack value: {error}") from error
    if type(reply) is not dict:
        raise bad_reply(op, "it is not a map")
    return reply


def refusal(op: str, reply: Mapping[str, Any]) -> RefusedError:
    """The error that ``reply``, a reply of failure, stands for."""
    code = reply["code"]
    return REFUSALS.get(code, RefusedError)(
        code,
        _in_words(reply["message"]) if code == "CONFLICT" else reply["message"],
        retry=reply.get("retry") is True,
        applied=False if reply.get("applied") is False else lost(op),
        details={name: value for name, value in reply.items() if name not in REFUSAL_FIELDS},
    )


_CONFLICT: Final = re.compile(r"(.*) has revision (\d+), not (\d+)", re.DOTALL)


def _in_words(message: str) -> str:
    """What the server says of a conflict, without 0 for a key that is not there."""
    found = _CONFLICT.fullmatch(message)
    if found is None or "0" not in {found[2], found[3]}:
        return message
    if found[3] == "0":
        return f"{found[1]} is there already, at revision {found[2]}, and was to be created"
    return f"{found[1]} is not there, and was to be at revision {found[3]}"


def bad_reply(op: str, why: str) -> BadReplyError:
    """The error for a reply that breaks the protocol."""
    return BadReplyError(f"bad reply to {op}: {why}", lost(op))
