"""Packs and unpacks bodies by msgspec, in a half to a third of the time of msgpack.

msgspec reads some values differently from msgpack, or loses a part of them: of two keys of a map
that are equal in Python it keeps one, and a timestamp becomes a datetime. So its result is used
only on the same conditions as that of msgpack: see `zkv.client.messages.unpack_reply`.

This is a separate module, imported when it is needed, because importing msgspec takes some time.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from msgspec.msgpack import Decoder, Encoder

from zkv.client.codec import PLAIN, Codec
from zkv.client.messages import LARGEST_MESSAGE, bad_reply, check_size, pack_request, unpack_reply
from zkv.client.plain import pack_plain, unpack_plain
from zkv.client.values import FLAT, gives_bytes, refuse_ext
from zkv.compiled import COMPILED

if TYPE_CHECKING:
    from zkv.client.operations import Pack, Unpack


def pack_quickly(op: str, request_id: int, fields: dict[str, Any], codec: Codec = PLAIN) -> bytes:
    """Return the same as `zkv.client.messages.pack_request`, usually faster.

    Args:
        op: as for `pack_request`, like all arguments.
        request_id: chosen by the client.
        fields: those that do not hold values have been checked.
        codec: of the client.
    """
    items = fields.get("items")
    if type(fields.get("value")) in FLAT and (
        items is None or FLAT.issuperset(map(type, items.values()))
    ):
        try:
            body = _encode({"op": op, "id": request_id, **fields})
        except (TypeError, ValueError, OverflowError):
            pass  # The function below packs it, or explains the error.
        else:
            if len(body) > LARGEST_MESSAGE:
                check_size(body)
            return body
    return pack_request(op, request_id, fields, codec)


def id_of(body: bytes) -> Any:
    """Decode only the ``id`` of a reply. Raises BadReplyError if it is not one map."""
    try:
        return _decode_head(body).id
    except (ValueError, TypeError, RecursionError) as error:
        raise bad_reply("-", f"it is not one msgpack map: {error}") from error


def _gives(reply: Any, body: bytes) -> bool:
    """True if the reply packs to the same bytes. False for datetimes, though they do."""
    if b"\xff" in body and _may_have_timestamps(body):
        return gives_bytes(reply, body)  # msgpack refuses datetimes.
    return _encode(reply) == body


def _may_have_timestamps(body: bytes) -> bool:
    parts = body.split(b"\xff", _MOST_PARTS)
    return len(parts) > _MOST_PARTS or not _LAST.isdisjoint([part[-1:] for part in parts])


_LAST: Final = frozenset({b"\xd6", b"\xd7", b"\x0c"})
"""The bytes before the type of a timestamp, which is 0xff, as msgspec packs one."""
_MOST_PARTS: Final = 100
"""Beyond this many, packing by msgpack takes less time than looking at each."""


class _Head(Struct, gc=False):
    id: Any = None


_decode_head = Decoder(_Head).decode
_encode = Encoder().encode

unpack_quickly: Final = partial(
    unpack_reply, decode=Decoder(ext_hook=refuse_ext).decode, gives=_gives
)
"""Returns the same as `zkv.client.messages.unpack_reply`, usually faster."""

pack_best: Final[Pack] = pack_plain if COMPILED else pack_quickly
"""Packs in the fastest way that is there."""
unpack_best: Final[Unpack] = unpack_plain if COMPILED else unpack_quickly
"""Unpacks in the fastest way that is there."""
