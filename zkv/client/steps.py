"""The ops of pipelines and transactions, as they are written down, packed and answered.

Each is one small object of msgspec, which packs a hundred of them in less time than it would take
to make dicts of them, and reads their results in a third of the time that msgpack takes. What it
would pack or read in another way than msgpack is left to msgpack: values of types that are none of
msgpack's own or hold others, ext, timestamps, and text that is no UTF-8.

A module of its own, imported when it is needed: importing msgspec takes a while.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final, cast

import msgpack
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.msgpack import Decoder, Encoder
from msgspec.structs import asdict, replace

from zkv.client.codec import PLAIN, Codec, IntTooLargeError
from zkv.client.messages import check_size, explained, pack_request, unpack_reply
from zkv.client.operations import RAISE


class Step(Struct, tag_field="op", gc=False):
    """One op of a pipeline or transaction.

    Attributes:
        told: which field of its reply is its result.
        absent: what stands for ``NOT_FOUND``; `RAISE` = that is an error.
    """

    told: ClassVar[str]
    absent: ClassVar[Any] = RAISE

    key: str


class GetStep(Step, tag="GET", gc=False):
    """Read a value."""

    told = "value"
    absent = None


class PutStep(Step, tag="PUT", gc=False):
    """Write a value."""

    told = "rev"

    value: Any


class PutIfStep(PutStep, tag="PUT", gc=False):
    """Write a value on a condition, or for a time."""

    ttl: float | UnsetType = UNSET
    if_rev: int | UnsetType = UNSET


class DeleteStep(Step, tag="DELETE", gc=False):
    """Remove an entry."""

    told = "ok"
    absent = False

    if_rev: int | UnsetType = UNSET


class TouchStep(Step, tag="TOUCH", gc=False):
    """Give an entry another time to live."""

    told = "rev"

    ttl: float | None


class IncrStep(Step, tag="INCR", gc=False):
    """Add to a number."""

    told = "value"

    by: int


def name_of(step: Step) -> str:
    """Its op."""
    return cast("str", step.__struct_config__.tag)


def fields_of(step: Step) -> dict[str, Any]:
    """Its fields without ``op``."""
    return {name: value for name, value in asdict(step).items() if value is not UNSET}


PACKED_ALIKE: Final = frozenset({type(None), bool, int, float, str, bytes})
"""Types that msgspec packs as msgpack does. Others, such as sets, only msgspec would take."""

_encode = Encoder().encode


def pack_steps(op: str, request_id: int, fields: dict[str, Any], codec: Codec = PLAIN) -> bytes:
    """`pack_request` for fields in which ``ops`` are steps."""
    steps: list[Step] = fields["ops"]
    request = dict(op=op, id=request_id, **fields)
    try:
        if not _packed_alike(steps):
            pack = msgpack.Packer(default=codec.default).pack
            request["ops"] = [_with_packed_value(step, pack) for step in steps]
        body = _encode(request)
    except UnicodeEncodeError:  # With surrogates.
        ops = [{"op": name_of(step), **fields_of(step)} for step in steps]
        return pack_request(op, request_id, {**fields, "ops": ops}, codec)
    except ValueError as error:
        raise explained(error) from None
    except OverflowError:
        raise IntTooLargeError("an int has more than 64 bits") from None
    check_size(body)
    return body


def _packed_alike(steps: list[Step]) -> bool:
    """Whether all values are of types that msgspec packs as msgpack does."""
    if not _WRITES & set(map(type, steps)):  # In C, where there is nothing to look at.
        return True
    return {type(step.value) for step in steps if isinstance(step, PutStep)} <= PACKED_ALIKE


_WRITES: Final = frozenset({PutStep, PutIfStep})


def _with_packed_value(step: Step, pack: Callable[[Any], bytes]) -> Step:
    if not isinstance(step, PutStep) or type(step.value) in PACKED_ALIKE:
        return step
    return replace(step, value=Raw(pack(step.value)))


def unpack_quickly(op: str, body: bytes, codec: Codec = PLAIN) -> dict[str, Any]:
    """`unpack_reply`, in a third of the time where there are many maps."""
    if codec is PLAIN and _TIMESTAMP not in body:
        try:
            reply = _decode(body)
        except (ValueError, TypeError, RecursionError):
            pass  # An ext, or something wrong, which is explained below.
        else:
            if type(reply) is dict:
                return reply
    return unpack_reply(op, body, codec)


_TIMESTAMP: Final = b"\xff"
"""The type code of a timestamp, of which msgspec would make a datetime."""


def _refuse(code: int, _data: memoryview) -> Any:
    raise ValueError(f"ext {code}")


_decode = Decoder(ext_hook=_refuse).decode
