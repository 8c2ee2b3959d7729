"""Replies read by msgspec, in a third of the time that msgpack takes where there are many maps.

It reads some values otherwise than `zkv.client.messages` does, or loses a part of them: of two keys
of a map that are equal in Python it keeps one; a timestamp becomes a datetime. So what it has read
is believed where it holds no maps, or where it packs into the very same bytes again: then nothing
was lost. All else is read once more by msgpack. Both ways give the same for all bodies.

A module of its own, imported when it is needed: importing msgspec takes a while.
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
    """`zkv.client.messages.unpack_reply`."""
    if codec is not PACKED:
        try:
            reply = _decode(body)
            if type(reply) is dict and (_is_flat(reply) or _is_proven(reply, body)):
                return reply
        except Exception:  # noqa: S110  An ext, or something wrong, which is explained below.
            pass
    return unpack_reply(op, body, codec)


def id_of(body: bytes) -> Any:
    """The ``id`` in a reply, of which nothing else is decoded. Raises BadReplyError."""
    try:
        return _decode_head(body).id
    except (ValueError, TypeError, RecursionError) as error:
        raise bad_reply("-", f"it is not one msgpack map: {error}") from error


def _is_flat(reply: dict[str, Any]) -> bool:
    """Whether its values are surely of `FLAT` types, of which msgspec loses nothing."""
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
}
"""The values in fields that are arrays, by the name of the field."""


def _is_proven(reply: dict[str, Any], body: bytes) -> bool:
    """Whether it packs into what it was unpacked from, and has no datetime, which does so, too."""
    if b"\xff" in body and any(head in body for head in _TIMESTAMPS):
        return False
    return _encode(reply) == body


_TIMESTAMPS: Final = (b"\xd6\xff", b"\xd7\xff", b"\xc7\x0c\xff")
"""The heads of timestamps as msgspec packs them. One with another head does not come out alike."""


class _Head(Struct, gc=False):
    id: Any = None


def _refuse(code: int, _data: memoryview) -> Any:
    raise ValueError(f"ext {code}")


_decode = Decoder(ext_hook=_refuse).decode
_decode_head = Decoder(_Head).decode
_encode = Encoder().encode
