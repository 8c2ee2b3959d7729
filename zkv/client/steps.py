"""The ops of pipelines and transactions, as they are written down and packed.

Each is one small object of msgspec, which packs a hundred of them in less time than it would take
to make dicts of them. What it would pack in another way than msgpack is left to msgpack: values of
types that are none of msgpack's own or hold others, and text that is no UTF-8.

A module of its own, imported when it is needed: importing msgspec takes a while.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, cast

from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.msgpack import Encoder
from msgspec.structs import asdict, replace

from zkv.client.codec import PACKED, PLAIN, Codec, IntTooLargeError
from zkv.client.errors import BadValueError
from zkv.client.messages import check_size, pack_request
from zkv.client.operations import RAISE
from zkv.client.values import FLAT, check_levels, explained, pack


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


_encode = Encoder().encode


def pack_steps(op: str, request_id: int, fields: dict[str, Any], codec: Codec = PLAIN) -> bytes:
    """`pack_request` for fields in which ``ops`` are steps."""
    steps: list[Step] = fields["ops"]
    if codec is PACKED:
        return _pack_as_maps(op, request_id, fields, codec)
    request = dict(op=op, id=request_id, **fields)
    try:
        if not _packed_alike(steps):
            request["ops"] = [_with_packed_value(step, codec) for step in steps]
        body = _encode(request)
    except UnicodeEncodeError:  # With surrogates.
        return _pack_as_maps(op, request_id, fields, codec)
    except ValueError as error:
        raise explained(error) from None
    except OverflowError:
        raise IntTooLargeError("an int has more than 64 bits") from None
    check_size(body)
    return body


def _pack_as_maps(op: str, request_id: int, fields: dict[str, Any], codec: Codec) -> bytes:
    ops = [{"op": name_of(step), **fields_of(step)} for step in fields["ops"]]
    return pack_request(op, request_id, {**fields, "ops": ops}, codec)


def _packed_alike(steps: list[Step]) -> bool:
    """Whether all values are of types that msgspec packs as msgpack does."""
    if not _WRITES & set(map(type, steps)):  # In C, where there is nothing to look at.
        return True
    return {type(step.value) for step in steps if isinstance(step, PutStep)} <= FLAT


_WRITES: Final = frozenset({PutStep, PutIfStep})


def _with_packed_value(step: Step, codec: Codec) -> Step:
    if not isinstance(step, PutStep) or type(step.value) in FLAT:
        return step
    try:
        packed = pack(step.value, codec)
        check_levels(b"\x91" + packed, 1)  # In an array, since one level is always around it.
    except BadValueError as error:
        raise error.of(step.key) from error.__cause__
    return replace(step, value=Raw(packed))
