"""Request bodies and replies, without any socket.

A field of a request may hold whatever msgpack holds: nil, bool, int, float, str, bytes, list, map,
``msgpack.ExtType`` and ``msgpack.Timestamp``; a reply gives the same back. A str that is no UTF-8,
as some languages store their bytes, is read with surrogates in the place of the bytes that are
none, and packed as the same bytes again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgpack

from zkv.client.errors import BadReplyError, RefusedError

READ_OPS: Final = frozenset({"PING", "GET", "MGET", "SCAN", "COUNT", "CHANGES", "INFO"})
"""Ops that change nothing, whatever becomes of the request."""

STR_ERRORS: Final = "surrogateescape"

REFUSAL_FIELDS: Final = frozenset({"ok", "id", "code", "message", "retry", "applied"})


def lost(op: str) -> bool | None:
    """What is known of ``op`` having been applied where its reply is not known."""
    return False if op in READ_OPS else None


def pack_request(op: str, request_id: int, fields: Mapping[str, Any]) -> bytes:
    """The body of a request.

    Raises:
        TypeError: a field holds something that msgpack has no type for, or is ``op`` or ``id``.
        OverflowError: an int needs more than 64 bits.
        ValueError: a str holds a surrogate, or something is nested too deeply.
    """
    body: bytes = msgpack.packb(dict(op=op, id=request_id, **fields), unicode_errors=STR_ERRORS)
    return body


def read_reply(op: str, request_id: int, frames: Sequence[bytes]) -> dict[str, Any]:
    """The reply in ``frames``: success or refusal, and an answer to this very request.

    Raises:
        BadReplyError: it is none.
    """
    try:
        (body,) = frames
        reply = msgpack.unpackb(body, strict_map_key=False, unicode_errors=STR_ERRORS)
    except (ValueError, TypeError) as error:
        raise _bad(op, f"it is not one msgpack value: {error}") from error
    if not isinstance(reply, dict):
        raise _bad(op, "it is not a map")
    _check_id(op, request_id, reply)
    match reply:
        case {"ok": True} | {"ok": False, "code": str(), "message": str()}:
            return reply
    raise _bad(op, "it tells neither success nor what failed")


def refusal(op: str, reply: Mapping[str, Any]) -> RefusedError:
    """The error that ``reply``, a reply of failure, stands for."""
    return RefusedError(
        reply["code"],
        reply["message"],
        retry=reply.get("retry") is True,
        applied=False if reply.get("applied") is False else lost(op),
        details={name: value for name, value in reply.items() if name not in REFUSAL_FIELDS},
    )


def _check_id(op: str, request_id: int, reply: Mapping[str, Any]) -> None:
    """Raise BadReplyError unless ``reply`` carries the request's id, or need not."""
    if "id" not in reply and reply.get("ok") is False:
        return  # The server could not read the id, and says what is wrong.
    echoed = reply.get("id")
    if type(echoed) is not int or echoed != request_id:  # True == 1, and yet is no id
        raise _bad(op, f"its id is {echoed!r:.40}, the request's is {request_id}")


def _bad(op: str, why: str) -> BadReplyError:
    return BadReplyError(f"bad reply to {op}: {why}", lost(op))
