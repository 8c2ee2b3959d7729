"""Packs and unpacks bodies in C, if all that they contain is of the usual types.

These are ``None``, ``bool``, ``int``, ``float``, ``str``, ``bytes``, ``list`` and ``dict``, each
exactly, at any depth up to 64. At anything else C gives up: another type, a str that is not UTF-8,
a map that no dict can hold, bytes that are not one msgpack value. Then `pack_request` and
`unpack_reply` do it, which specify what comes out, and word all errors. So nothing needs a proof
here: see zkv/compiled/values.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from zkv.client.codec import PACKED, PLAIN, Codec
from zkv.client.messages import LARGEST_MESSAGE, check_size, pack_request, unpack_reply
from zkv.compiled import COMPILED, store

if TYPE_CHECKING:
    from zkv.client.operations import Pack, Unpack


def pack_plain(op: str, request_id: int, fields: dict[str, Any], codec: Codec = PLAIN) -> bytes:
    """Return the same as `zkv.client.messages.pack_request`, usually faster.

    Args:
        op: as for `pack_request`, like all arguments.
        request_id: chosen by the client.
        fields: those that do not hold values have been checked.
        codec: of the client.
    """
    body = store.pack_plain(op, request_id, fields)
    if body is None:
        return pack_request(op, request_id, fields, codec)
    if len(body) > LARGEST_MESSAGE:
        check_size(body)
    return body


def unpack_plain(op: str, body: bytes, codec: Codec = PLAIN) -> dict[str, Any]:
    """Return the same as `zkv.client.messages.unpack_reply`, usually faster.

    Args:
        op: as for `unpack_reply`, like all arguments.
        body: as it was received.
        codec: of the client.
    """
    if codec is not PACKED:  # Its values stay packed.
        reply = store.unpack_plain(body)
        if type(reply) is dict:
            return reply
    return unpack_reply(op, body, codec)


pack_first: Final[Pack] = pack_plain if COMPILED else pack_request
"""Packs without msgspec, which takes some time to import."""
unpack_first: Final[Unpack] = unpack_plain if COMPILED else unpack_reply
"""Unpacks without it."""
