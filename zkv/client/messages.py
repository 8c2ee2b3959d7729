"""Request bodies and replies, without any socket.

A field of a request may hold whatever msgpack holds: nil, bool, int, float, str, bytes, list, map,
``msgpack.ExtType`` and ``msgpack.Timestamp``, and what a codec adds; a reply gives the same back. A
str that is no UTF-8, as some languages store their bytes, is read with surrogates in the place of
the bytes that are none, and packed as the same bytes again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import msgpack

from zkv.client.codec import PACKED, PLAIN, Codec, Packed
from zkv.client.errors import (
    REFUSALS,
    BadReplyError,
    BadValueError,
    RefusedError,
    TooLargeError,
)
from zkv.client.slicing import Sliced, is_one_value, sliced
from zkv.client.values import FLAT, check_levels, pack, unpack

READ_OPS: Final = frozenset({"PING", "GET", "MGET", "SCAN", "COUNT", "CHANGES", "INFO"})
"""Ops that change nothing, whatever becomes of the request."""

WRITE_OPS: Final = frozenset({"PUT", "DELETE", "TOUCH", "INCR", "MPUT", "MDELETE", "TXN"})
"""Ops that take ``session`` and ``seq``, and may then be repeated."""

LARGEST_MESSAGE: Final = 64 * 1024 * 1024
"""Bytes of a request. ZeroMQ closes the connection of a larger one, and nobody answers."""

LEVELS_ABOVE: Final = {"MPUT": 2, "TXN": 3}
"""Levels of a request around its values, where it is not one."""

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
            that Python could not get back, or is ``op`` or ``id``.
        ValueError: a str holds a surrogate, an int needs more than 64 bits, or a value is nested
            too deeply.
        BadValueError: a function of the codec failed.
        TooLargeError: there would be no reply to such a large request.
    """
    request = dict(op=op, id=request_id, **fields)
    try:
        body = _pack_around(request) if codec is PACKED else _pack_fields(request, codec)
    except BadValueError as error:
        raise error.of(_key_of_bad(fields, codec)) from error.__cause__
    check_size(body)
    return body


def _pack_fields(request: dict[str, Any], codec: Codec) -> bytes:
    body = pack(request, codec)
    if type(request.get("value", request)) not in FLAT:
        check_levels(body, LEVELS_ABOVE.get(request["op"], 1))
    return body


def _pack_around(fields: Mapping[str, Any]) -> bytes:
    """A request, or an op in one, whose values are packed already where they are `Packed`."""
    parts = [_map_header(len(fields))]
    for name, field in fields.items():
        parts.append(pack(name))
        if type(field) is Packed:
            parts.append(_packed(field))
        elif name == "items":
            parts.append(_map_header(len(field)))
            parts += [part for key, value in field.items() for part in (pack(key), _packed(value))]
        elif name == "ops":
            parts.append(_array_header(len(field)))
            parts += map(_pack_around, field)
        else:
            parts.append(_packed(field))
    return b"".join(parts)


def _packed(value: Any) -> bytes:
    """A value, packed, unless it is already. Raises ValueError where that is no value."""
    if type(value) is not Packed:
        return pack(value)
    if not is_one_value(value):
        raise ValueError("a Packed is not one whole msgpack value")
    return value


_map_header: Final = msgpack.Packer().pack_map_header
_array_header: Final = msgpack.Packer().pack_array_header


def _key_of_bad(fields: Mapping[str, Any], codec: Codec) -> str | None:
    """The key of the value that cannot be packed."""
    entries = [(fields.get("key"), fields.get("value"))]
    entries += dict(fields.get("items", {})).items()
    entries += [(op.get("key"), op.get("value")) for op in fields.get("ops", ())]
    for key, value in entries:
        try:
            pack(value, codec)
        except BadValueError:
            return key
        except Exception:  # noqa: S112  Of another entry, which is not asked for.
            continue
    return None


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
    """The map in ``body``.

    One with values that cannot be decoded is a `Sliced` with a `BadValueError` in the place of
    each; with `PACKED`, a `Sliced` in which each value is `Packed`.

    Raises:
        BadReplyError: it is not one map, or its values cannot be told apart.
    """
    if codec is PACKED:
        return _slice(op, body, Packed)
    try:
        reply: dict[str, Any] = unpack(body, codec)
    except BadValueError:  # One value is not to take others with it.
        return _slice(op, body, partial(_value_or_error, codec))
    if type(reply) is not dict:
        raise bad_reply(op, "it is not a map")
    return reply


def _slice(op: str, body: bytes, make: Callable[[bytes], Any]) -> Sliced:
    try:
        return sliced(op, body, make)
    except msgpack.StackError as error:
        raise bad_reply(op, "it is nested deeper than msgpack reads") from error
    except (ValueError, TypeError) as error:
        raise bad_reply(op, f"it is not one msgpack map: {error}") from error


def _value_or_error(codec: Codec, packed: bytes) -> Any:
    try:
        return unpack(packed, codec)
    except BadValueError as error:
        return error


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
