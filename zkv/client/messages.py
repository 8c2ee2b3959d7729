"""Packs request bodies and unpacks replies. Uses no sockets.

A field of a request may hold any msgpack value: nil, bool, int, float, str, bytes, list, map,
``msgpack.ExtType`` and ``msgpack.Timestamp``, and the types that a codec adds; replies return the
same. Some languages store bytes as a str that is not UTF-8. Such a str is read with surrogates in
place of the invalid bytes, and packed as the same bytes again.
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
from zkv.client.values import FLAT, check_levels, decode_fast, gives_bytes, pack, unpack
from zkv.defaults import MAX_LEVELS

READ_OPS: Final = frozenset({"PING", "GET", "MGET", "SCAN", "COUNT", "CHANGES", "INFO"})
"""Ops that change nothing, even if their reply is lost."""

WRITE_OPS: Final = frozenset({"PUT", "DELETE", "TOUCH", "INCR", "MPUT", "MDELETE", "TXN"})
"""Ops that accept ``session`` and ``seq``, and may then be repeated."""

DATA_READS: Final = frozenset({"GET", "MGET", "SCAN", "COUNT"})
"""Ops that read entries: only the leader answers them, unless they say that others may."""

LEADER_OPS: Final = WRITE_OPS | DATA_READS
"""Ops that a server which does not lead may refuse."""

ONE_SERVER_OPS: Final = frozenset({"END", "SNAPSHOT", "PROMOTE"})
"""Ops that concern the server to which they are sent, and never another one."""

LARGEST_MESSAGE: Final = 64 * 1024 * 1024
"""Bytes of a request. After a larger one ZeroMQ closes the connection, without a reply."""

LEVELS_ABOVE: Final = {"MPUT": 2, "TXN": 3}
"""Levels of arrays and maps around the values of a request, for ops with more than one."""

MOST_PACKED: Final = 65_536
"""Bytes of a reply up to which packing it takes less time than looking at each value's type."""

REFUSAL_FIELDS: Final = frozenset({"ok", "id", "code", "message", "retry", "applied"})


def lost(op: str) -> bool | None:
    """Return ``applied`` for a request whose reply is lost: False for reads, None for writes."""
    return False if op in READ_OPS else None


def pack_request(
    op: str, request_id: int, fields: Mapping[str, Any], codec: Codec = PLAIN
) -> bytes:
    """Pack the body of a request.

    Raises:
        TypeError: a field holds an object that neither msgpack nor the codec has a type for, or
            that Python could not read back.
        ValueError: a str holds a surrogate, an int needs more than 64 bits, or a value is nested
            too deeply.
        BadValueError: a function of the codec failed.
        TooLargeError: the request exceeds `LARGEST_MESSAGE`, so the server could not answer it.
    """
    request = {"op": op, "id": request_id, **fields}
    try:
        body = _pack_around(request) if codec is PACKED else pack(request, codec)
    except BadValueError as error:
        raise error.of(_key_of_bad(fields, codec)) from error.__cause__
    if len(body) > MAX_LEVELS:  # Each level takes at least a byte.
        if codec is not PACKED and type(fields.get("value", fields)) not in FLAT:
            check_levels(body, LEVELS_ABOVE.get(op, 1))
        check_size(body)
    return body


def _pack_around(fields: Mapping[str, Any]) -> bytes:
    """Pack a request, or an op in one. Values that are `Packed` are copied unchanged."""
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
    """Pack a value unless it is `Packed`. Raises ValueError if that is not one whole value."""
    if type(value) is not Packed:
        return pack(value)
    if not is_one_value(value):
        raise ValueError("a Packed is not one whole msgpack value")
    return value


_map_header: Final = msgpack.Packer().pack_map_header
_array_header: Final = msgpack.Packer().pack_array_header


def _key_of_bad(fields: Mapping[str, Any], codec: Codec) -> str | None:
    """Return the key of the value that cannot be packed."""
    entries = [(fields.get("key"), fields.get("value"))]
    entries += dict(fields.get("items", {})).items()
    entries += [(op.get("key"), op.get("value")) for op in fields.get("ops", ())]
    for key, value in entries:
        try:
            pack(value, codec)
        except BadValueError:
            return key
        except Exception:  # noqa: S112  This value is wrong in another way.
            continue
    return None


def check_size(body: bytes) -> None:
    """Raise TooLargeError if the request is so large that the server could not answer it."""
    if len(body) > LARGEST_MESSAGE:
        message = f"the request has {len(body)} bytes; the maximum is {LARGEST_MESSAGE}"
        raise TooLargeError("TOO_LARGE", message, retry=False, applied=False, details={})


def check_answer(op: str, request_id: int, reply: Mapping[str, Any]) -> None:
    """Raise BadReplyError unless ``reply`` reports success or failure of this request."""
    if reply.get("ok") is not True:
        check_reply(op, reply)
    echoed = reply.get("id")
    if echoed == request_id and type(echoed) is int:  # True == 1, but True is not an id.
        return
    if reply["ok"] is False and "id" not in reply:
        return  # The server could not read the id; its message says why.
    raise bad_reply(op, f"its id is {echoed!r:.40}, the request's is {request_id}")


def check_reply(op: str, reply: Mapping[str, Any]) -> None:
    """Raise BadReplyError unless ``reply`` reports success, or failure with code and message."""
    ok = reply.get("ok")
    if ok is True:
        return
    if ok is False and type(reply.get("code")) is str and type(reply.get("message")) is str:
        return
    raise bad_reply(op, "it reports neither success nor an error with code and message")


def unpack_reply(
    op: str,
    body: bytes,
    codec: Codec = PLAIN,
    decode: Callable[[bytes], Any] = decode_fast,
    gives: Callable[[Any, bytes], bool] = gives_bytes,
) -> dict[str, Any]:
    """Unpack the map in ``body``.

    If a value cannot be decoded, this is a `Sliced` with a `BadValueError` in place of each such
    value; with `PACKED`, a `Sliced` in which each value is `Packed`.

    Args:
        op: of the request; ``feed`` for a message of the feed.
        body: as it was received.
        codec: of the client.
        decode: decodes a body; may lose a part of it, or raise any error.
        gives: returns True if what was decoded packs to these bytes again.

    Raises:
        BadReplyError: the body is not one map, or it is impossible to find its values.
    """
    if codec is PACKED:
        return _slice(op, body, Packed)
    try:
        reply: dict[str, Any] = decode(body)
        if type(reply) is dict and (
            FLAT.issuperset(map(type, reply.values())) or _is_proven(reply, body, gives)
        ):
            return reply
    except Exception:  # noqa: S110  An ext, or an error, which the code below explains.
        pass
    try:
        reply = unpack(body, codec)
    except BadValueError:  # Decode value by value, since the others must not fail.
        return _slice(op, body, partial(_value_or_error, codec))
    if type(reply) is not dict:
        raise bad_reply(op, "it is not a map")
    return reply


def _is_proven(reply: dict[str, Any], body: bytes, gives: Callable[[Any, bytes], bool]) -> bool:
    """True if decoding the body has lost nothing.

    The body may be packed unusually, and then the proof by packing fails. Types without loss are
    another proof, which takes more time than packing small values.
    """
    if len(body) > MOST_PACKED and _has_flat_values(reply):
        return True
    return gives(reply, body) or _has_flat_values(reply)


def _has_flat_values(reply: dict[str, Any]) -> bool:
    for name, field in reply.items():
        if type(field) in FLAT:
            continue
        values_in = _LISTS.get(name)
        if values_in is None or type(field) is not list:
            return False
        if not FLAT.issuperset(map(type, values_in(field))):
            return False
    return True


_LISTS: Final[dict[str, Callable[[list[Any]], list[Any]]]] = {
    "revs": lambda revs: revs,
    "values": lambda values: values,
    "items": lambda items: [item[1] for item in items],
    "changes": lambda changes: [change[3] for change in changes],
    "results": lambda results: [value for result in results for value in result.values()],
}
"""Find the values in fields that are arrays, by the name of the field."""


def _slice(op: str, body: bytes, make: Callable[[bytes], Any]) -> Sliced:
    try:
        return sliced(op, body, make)
    except msgpack.StackError as error:
        raise bad_reply(op, "it is nested too deeply for msgpack") from error
    except (ValueError, TypeError) as error:
        raise bad_reply(op, f"it is not one msgpack map: {error}") from error


def _value_or_error(codec: Codec, packed: bytes) -> Any:
    try:
        return unpack(packed, codec)
    except BadValueError as error:
        return error


def refusal(op: str, reply: Mapping[str, Any]) -> RefusedError:
    """Return the error for ``reply``, which reports a failure."""
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
    """Rephrase the server's message about a conflict if revision 0 means an absent key."""
    found = _CONFLICT.fullmatch(message)
    if found is None or "0" not in {found[2], found[3]}:
        return message
    if found[3] == "0":
        return f"{found[1]} already exists, at revision {found[2]}; expected: absent"
    return f"{found[1]} is absent; expected: revision {found[3]}"


def bad_reply(op: str, why: str) -> BadReplyError:
    """The error for a reply that breaks the protocol."""
    return BadReplyError(f"bad reply to {op}: {why}", lost(op))
