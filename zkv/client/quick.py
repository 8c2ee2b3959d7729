"""Unpacks replies by msgspec, in a third of the time of msgpack for replies with many maps.

msgspec reads some values differently from `zkv.client.messages`, or loses a part of them: of two
keys of a map that are equal in Python it keeps one; a timestamp becomes a datetime. So its result
is used only if the values are of types without loss, or if it packs to exactly the same bytes
again. Otherwise msgpack unpacks the reply once more. Both ways return the same for every body.

This is a separate module, imported when it is needed, because importing msgspec takes some time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct
from msgspec.msgpack import Decoder, Encoder

from zkv.client.codec import PACKED, PLAIN, Codec
from zkv.client.messages import bad_reply, unpack_reply
from zkv.client.values import FLAT


def unpack_quickly(op: str, body: bytes, codec: Codec = PLAIN) -> dict[str, Any]:
    """Return the same as `zkv.client.messages.unpack_reply`, usually faster."""
    if codec is not PACKED:
        try:
            reply = _decode(body)
            if type(reply) is dict and (_is_flat(reply) or _is_proven(reply, body)):
                return reply
        except Exception:  # noqa: S110  An ext, or an error, which the call below explains.
            pass
    return unpack_reply(op, body, codec)


def id_of(body: bytes) -> Any:
    """Decode only the ``id`` of a reply. Raises BadReplyError if it is not one map."""
    try:
        return _decode_head(body).id
    except (ValueError, TypeError, RecursionError) as error:
        raise bad_reply("-", f"it is not one msgpack map: {error}") from error


def _is_flat(reply: dict[str, Any]) -> bool:
    """True if all values are certainly of `FLAT` types, of which msgspec loses nothing."""
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


def _is_proven(reply: dict[str, Any], body: bytes) -> bool:
    """True if the reply packs to the same bytes. Not for datetimes, whose bytes are equal, too."""
    if b"\xff" in body and any(head in body for head in _TIMESTAMPS):
        return False
    return _encode(reply) == body


_TIMESTAMPS: Final = (b"\xd6\xff", b"\xd7\xff", b"\xc7\x0c\xff")
"""The heads of timestamps as msgspec packs them. Timestamps with other heads pack differently."""


class _Head(Struct, gc=False):
    id: Any = None


def _refuse(code: int, _data: memoryview) -> Any:
    raise ValueError(f"ext {code}")


_decode = Decoder(ext_hook=_refuse).decode
_decode_head = Decoder(_Head).decode
_encode = Encoder().encode
